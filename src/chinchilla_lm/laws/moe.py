"""Counts of a mixture of experts: what is stored, what a token uses, and what it costs.

A `MixtureOfExperts` stands beside a `ModelShape`, whose `d_ff` is then the width of its dense blocks alone. Symbols: as
in `laws.count`; "stored" counts every expert, "active" those that one token meets. It never balances or routes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from chinchilla_lm.core.errors import ConfigError
from chinchilla_lm.core.shapes import ModelShape
from chinchilla_lm.laws.count import ParameterCount, attention_flops, count_parameters

MoeFlopsConvention = Literal["exact", "exact_full_attention", "6N_active"]


@dataclass(frozen=True, kw_only=True)
class MixtureOfExperts:
    """Which feed-forward layers are split into experts.

    Attributes:
        experts: routed experts in a block, > 0.
        active: routed experts that a token meets, in 1..experts.
        d_expert: width of one expert, > 0.
        shared: experts that every token meets besides, >= 0, of the same width.
        dense_layers: blocks that keep the shape's own feed-forward layer, >= 0.
    """

    experts: int
    active: int
    d_expert: int
    shared: int = 0
    dense_layers: int = 0

    def __post_init__(self) -> None:
        """Refuse a mixture that no model can have.

        Raises:
            ConfigError: a number that is not whole or out of range.
        """
        for name, least in (("experts", 1), ("active", 1), ("d_expert", 1), ("shared", 0), ("dense_layers", 0)):
            size = getattr(self, name)
            if type(size) is not int or size < least:
                raise ConfigError(f"{name}={size!r} must be a whole number >= {least}; write for example {name} = 8")
        if self.active > self.experts:
            raise ConfigError(f"active={self.active} is over experts={self.experts}; a token meets at most all of them")


@dataclass(frozen=True, kw_only=True)
class MoeParameterCount:
    """The counts of a mixture: of everything, and of what one token meets.

    Attributes:
        stored: every expert.
        active: `active` + `shared` experts a block, and the router; the count that 6 N D needs.
    """

    stored: ParameterCount
    active: ParameterCount


def count_moe_parameters(shape: ModelShape, moe: MixtureOfExperts) -> MoeParameterCount:
    """Count the parameters of a shape whose feed-forward layers are experts, to the last one.

    An expert is the shape's feed-forward layer at width d_expert (three matrices for SwiGLU); the router is one
    experts x d matrix a block without bias.

    Args:
        shape: of a layout whose feed-forward layer has no biases, "qwen3" or "llama" with SwiGLU.
        moe: the experts.

    Returns:
        Stored and active counts.

    Raises:
        ConfigError: another layout, or more dense layers than layers.
    """
    _require_moe(shape, moe)
    dense = count_parameters(shape)
    moe_layers = shape.n_layers - moe.dense_layers
    expert = 3 * shape.d_model * moe.d_expert
    replaced = 3 * shape.d_model * shape.d_ff
    router = moe.experts * shape.d_model

    def with_experts(number: int) -> ParameterCount:
        change = moe_layers * (number * expert + router - replaced)
        return ParameterCount(
            total=dense.total + change,
            embedding=dense.embedding,
            head=dense.head,
            non_embedding=dense.non_embedding + change,
            matmul=dense.matmul + change,
        )

    return MoeParameterCount(
        stored=with_experts(moe.experts + moe.shared), active=with_experts(moe.active + moe.shared)
    )


def moe_training_flops_per_token(
    shape: ModelShape, moe: MixtureOfExperts, convention: MoeFlopsConvention = "exact"
) -> float:
    """Count what one training target costs, forward and backward.

    Args:
        shape: sequences are taken to be `shape.context` tokens long.
        moe: the experts.
        convention: "exact" and "exact_full_attention" as in `laws.count.training_flops_per_token`, over the active
            matrices; "6N_active" is six times the active total.

    Returns:
        FLOPs per token.

    Raises:
        ConfigError: an unknown convention, or a shape without experts' counts.
    """
    if convention not in get_args(MoeFlopsConvention):
        choices = ", ".join(get_args(MoeFlopsConvention))
        raise ConfigError(f"FLOPs convention {convention!r} is unknown for experts; choose from {choices}")
    active = count_moe_parameters(shape, moe).active
    if convention == "6N_active":
        return 6.0 * active.total
    keys = shape.context / 2 if convention == "exact" else float(shape.context)
    return 3.0 * (2.0 * active.matmul + attention_flops(shape, keys))


def moe_inference_flops_per_token(shape: ModelShape, moe: MixtureOfExperts, past_tokens: float | None = None) -> float:
    """Count what generating one token costs; arguments as `laws.count.inference_flops_per_token` and the experts."""
    keys = shape.context / 2 if past_tokens is None else float(past_tokens)
    return 2.0 * count_moe_parameters(shape, moe).active.matmul + attention_flops(shape, keys)


def _require_moe(shape: ModelShape, moe: MixtureOfExperts) -> None:
    if shape.activation != "swiglu" or shape.layout not in ("qwen3", "llama"):
        raise ConfigError(
            f"experts are counted for SwiGLU in layouts 'qwen3' and 'llama', not for {shape.activation!r} in "
            f"{shape.layout!r}; choose one of these"
        )
    if moe.dense_layers > shape.n_layers:
        raise ConfigError(f"dense_layers={moe.dense_layers} is over n_layers={shape.n_layers}; lower it")
