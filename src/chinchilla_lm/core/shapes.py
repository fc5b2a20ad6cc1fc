"""The shape of a model: every number that fixes its modules, and none that fixes its training.

Symbols are the field names of the papers and of DESIGN: d_model (width), n_layers (blocks), d_ff (feed-forward width).
A shape is a value. It counts nothing (see `chinchilla_lm.laws.count`) and builds nothing (see `chinchilla_lm.model`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from chinchilla_lm.core.config import from_mapping
from chinchilla_lm.core.errors import ConfigError

Layout = Literal["qwen3", "llama", "chinchilla", "textbook"]
Activation = Literal["swiglu", "gelu", "relu"]
NormPlacement = Literal["pre", "post"]

_POSITIVE_INTEGERS = ("vocab", "context", "d_model", "n_layers", "n_heads", "n_kv_heads", "head_dim", "d_ff")


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """One model's layout and sizes.

    Attributes:
        layout: "qwen3" (RMSNorm, rotary positions, QK-norm), "llama" (the same without QK-norm), "chinchilla" (RMSNorm,
            Transformer-XL relative positions) or "textbook" (LayerNorm, sinusoidal positions, biases).
        vocab: rows of the embedding, > 0.
        context: the most tokens that one sequence may have, > 0.
        d_model: width of the residual stream, > 0.
        n_layers: blocks, > 0.
        n_heads: query heads, > 0.
        n_kv_heads: key and value heads, > 0, a divisor of n_heads.
        head_dim: width of one head, even (rotary positions turn pairs); n_heads * head_dim need not be d_model.
        d_ff: width of the feed-forward layer, > 0.
        is_tied: the output projection is the embedding.
        rope_theta: base of the rotary positions, > 0 (10000: Su et al. 2021, section 3.3).
        norm_epsilon: added to the mean square before its root, > 0.
        dropout: chance that an activation is zeroed in training, in [0, 1).
        activation: of the feed-forward layer; "swiglu" has a third matrix.
        norm_placement: "pre" normalises each branch's input, "post" the sum after it (textbook only).
    """

    layout: Layout = "qwen3"
    vocab: int
    context: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    is_tied: bool = False
    rope_theta: float = 10000.0
    norm_epsilon: float = 1e-6
    dropout: float = 0.0
    activation: Activation = "swiglu"
    norm_placement: NormPlacement = "pre"

    def __post_init__(self) -> None:
        """Refuse a shape that no module can have.

        Raises:
            ConfigError: a field of the wrong type, out of its range, or in conflict with another.
        """
        for name in _POSITIVE_INTEGERS:
            size = getattr(self, name)
            if type(size) is not int or size <= 0:
                raise ConfigError(f"{name}={size!r} must be a whole number > 0; write for example {name} = 64")
        for name, choices in (("layout", Layout), ("activation", Activation), ("norm_placement", NormPlacement)):
            if getattr(self, name) not in get_args(choices):
                raise ConfigError(
                    f"{name}={getattr(self, name)!r} is unknown; choose from {', '.join(get_args(choices))}"
                )
        if type(self.is_tied) is not bool:
            raise ConfigError(f"is_tied={self.is_tied!r} must be true or false; write one of them")
        self._check_numbers()
        self._check_combinations()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, as plain values that JSON and TOML can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> ModelShape:
        """Build a shape from `to_dict`'s mapping.

        Args:
            mapping: field name to value; a field with a default may be left out.

        Returns:
            The shape.

        Raises:
            ConfigError: an unknown or missing field, or a shape that breaks a rule.
        """
        return from_mapping(cls, mapping, where="model shape")

    def _check_numbers(self) -> None:
        for name in ("rope_theta", "norm_epsilon", "dropout"):
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
                raise ConfigError(f"{name}={number!r} must be a finite number; write for example {name} = 1e-6")
            object.__setattr__(self, name, float(number))  # 10000 and 10000.0 are one shape, with one record
        for name in ("rope_theta", "norm_epsilon"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}={getattr(self, name)!r} must be > 0; leave it out for the default")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout={self.dropout!r} must be in [0, 1); write 0 for none")

    def _check_combinations(self) -> None:
        if self.n_heads % self.n_kv_heads:
            raise ConfigError(
                f"n_heads={self.n_heads} is not a multiple of n_kv_heads={self.n_kv_heads}; "
                "set n_kv_heads to a divisor of n_heads (equal to it for full attention)"
            )
        if self.head_dim % 2:
            raise ConfigError(
                f"head_dim={self.head_dim} is odd, and rotary positions turn pairs; write an even number such as 64"
            )
        if self.d_model % 2 and self.layout in ("chinchilla", "textbook"):
            raise ConfigError(
                f"d_model={self.d_model} is odd, and sinusoidal positions come in pairs; write an even number"
            )
        if self.norm_placement == "post" and self.layout != "textbook":
            raise ConfigError(
                f"norm_placement='post' does not exist in layout {self.layout!r}; write 'pre', or layout 'textbook'"
            )
