"""Exact counts of a shape: parameters, and the FLOPs that one token costs.

Symbols: d d_model, f d_ff, e head_dim, H = n_heads * e, K = n_kv_heads * e, V vocab, T context, L n_layers.
A multiply-add is two FLOPs, and a backward pass costs twice its forward pass. Only matrix products are counted:
norms, softmax, rotations and the optimizer are left out, as in every convention of the literature but appendix F's.
Parameters are ints; FLOPs are floats always, since 6 N D overflows an int64 above 9.2e18. Experts are counted in
`laws.moe`, serving in `laws.serving`, and one convention of N turns into another in `laws.conversion`. It never builds
a module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args, overload

import numpy as np
import numpy.typing as npt

from chinchilla_lm.core.errors import ConfigError
from chinchilla_lm.core.shapes import ModelShape

ParamsConvention = Literal["total", "non_embedding", "matmul"]
FlopsConvention = Literal[
    "exact",
    "exact_full_attention",
    "6N_total",
    "6N_matmul",
    "6N_non_embedding",
    "kaplan",
    "palm",
    "hoffmann_table",
    "hoffmann_logits",
    "hoffmann_text",
]


@dataclass(frozen=True, kw_only=True)
class ParameterCount:
    """How many parameters, by the conventions that laws use.

    Attributes:
        total: all that are stored; a tied head is stored once, as the embedding.
        embedding: of the input embedding, V d.
        head: of the output projection if it is stored apart, V d or 0.
        non_embedding: neither embedding nor head (Kaplan et al. 2020, section 2.1); the same whether tied or not.
        matmul: weights that each token is multiplied with: the blocks' matrices and the head (tied or not), without
            the embedding that is only looked up, norms and biases.
    """

    total: int
    embedding: int
    head: int
    non_embedding: int
    matmul: int

    def by(self, convention: ParamsConvention) -> int:
        """Return the count that a law's `params_convention` names.

        Raises:
            ConfigError: an unknown convention.
        """
        if convention not in get_args(ParamsConvention):
            raise ConfigError(
                f"params convention {convention!r} is unknown; choose from {', '.join(get_args(ParamsConvention))}"
            )
        return int(getattr(self, convention))


def count_parameters(shape: ModelShape) -> ParameterCount:
    """Count the parameters of the module that `shape` describes, to the last one.

    Layout "chinchilla" is counted as the papers describe it: RMSNorm, and no biases in attention but Transformer-XL's
    two. The parameter totals published for Hoffmann et al.'s own models need another composition: see
    `count_hoffmann_parameters`.

    Args:
        shape: any layout.

    Returns:
        The counts; `total` equals the sum of `numel()` over the parameters of `model.transformer.Transformer(shape)`.
    """
    embedding = shape.vocab * shape.d_model
    head = 0 if shape.is_tied else embedding
    matrices = shape.n_layers * _block_matrices(shape)
    final_norm = 0 if shape.norm_placement == "post" else _norm(shape)
    non_embedding = matrices + shape.n_layers * _block_vectors(shape) + final_norm
    return ParameterCount(
        total=embedding + head + non_embedding,
        embedding=embedding,
        head=head,
        non_embedding=non_embedding,
        matmul=matrices + embedding,
    )


@dataclass(frozen=True, kw_only=True)
class ForwardFlops:
    """What one token costs in a forward pass, by what it is spent on, so that any convention is a sum.

    Attributes:
        blocks: products with the blocks' matrices, 2 FLOPs a weight.
        attention: products of queries with keys, and of weights with values (no softmax).
        head: product with the output projection, 2 V d, tied or not.
        embedding: the embedding as a product with a one-hot vector, 2 V d; it is looked up in practice, for nothing.
    """

    blocks: float
    attention: float
    head: float
    embedding: float

    def total(self, *, attention: bool = True, head: bool = True, embedding: bool = False) -> float:
        """Return the FLOPs of one token with or without each part; a training token costs three times that."""
        return (
            self.blocks
            + (self.attention if attention else 0.0)
            + (self.head if head else 0.0)
            + (self.embedding if embedding else 0.0)
        )


def forward_flops(shape: ModelShape, keys: float | None = None) -> ForwardFlops:
    """Count one token's forward pass.

    Args:
        shape: any layout.
        keys: how many keys its query meets, >= 0; None is T/2, the causal mean over a full context.

    Returns:
        FLOPs per token, by part.
    """
    vocabulary = 2.0 * shape.vocab * shape.d_model
    return ForwardFlops(
        blocks=2.0 * shape.n_layers * _block_matrices(shape),
        attention=attention_flops(shape, shape.context / 2 if keys is None else float(keys)),
        head=vocabulary,
        embedding=vocabulary,
    )


def count_hoffmann_parameters(shape: ModelShape) -> int:
    """Count parameters so as to meet the totals of Hoffmann et al.'s models, such as 73,825,280 for their "73M".

    The composition that gives them: in each block q, k, v and output matrices with biases, a relative-position key
    matrix H x d without bias, two relative-position biases of width H, a feed-forward pair with biases, and two norms
    with gain and bias; a last norm with gain and bias; one V x d output matrix. The input embedding is left out, or
    tied. With H = d and f = 4 d that is L (13 d^2 + 15 d) + 2 d + V d.

    Differs: from `count_parameters`, because the papers say RMSNorm, which has no bias. The matrices are the same.

    Args:
        shape: layout "chinchilla", n_kv_heads = n_heads, activation not "swiglu".

    Returns:
        N; V = 32000 meets Tables A4 and A9.

    Raises:
        ConfigError: another layout.

    Source: Hoffmann et al. 2022, Tables A4 and A9 (labels in millions).
    """
    _require_hoffmann(shape)
    d, f, heads_width = shape.d_model, shape.d_ff, shape.n_heads * shape.head_dim
    attention = 3 * (d * heads_width + heads_width) + (heads_width * d + d)
    relative = d * heads_width + 2 * heads_width
    feed_forward = (d * f + f) + (f * d + d)
    norms = 2 * 2 * d
    return shape.n_layers * (attention + relative + feed_forward + norms) + 2 * d + shape.vocab * d


def training_flops_per_token(shape: ModelShape, convention: FlopsConvention = "exact") -> float:
    """Count what one training target costs, forward and backward.

    Args:
        shape: sequences are taken to be `shape.context` = T tokens long.
        convention:
            "exact": 6 for each weight in a matrix product, and the products of attention over the T/2 keys that a
                causal query sees on average: 3 * 2 * 2 * (T/2) * H * L (layout "chinchilla" has a third product, of
                queries and distances, and its position keys are counted once a token: right for one row a pass).
            "exact_full_attention": the same over all T keys, as most published counts do (Narayanan et al. 2021).
            "6N_total", "6N_matmul", "6N_non_embedding": six times the count of that name, no attention.
            "kaplan": 3 (2 N + 2 n_layers T H), N the blocks' matrices: no head, and attention over half of the keys
                (Kaplan et al. 2020, table 1, whose d_attn is H).
            "palm": 6 N + 12 n_layers H T, N all that is stored but an embedding apart from the head: attention over all
                keys (Chowdhery et al. 2022, appendix B, whose models are tied).
            "hoffmann_table": appendix F of Hoffmann et al. without embedding and logits; with N of
                `count_hoffmann_parameters` it gives the ratios of their Table A4.
            "hoffmann_logits": the same with logits.
            "hoffmann_text": the appendix as written: with logits, and the embedding as a product with one-hot vectors.

    Returns:
        FLOPs per token.

    Raises:
        ConfigError: an unknown convention, or one of Hoffmann's for another layout than "chinchilla".
    """
    if convention not in get_args(FlopsConvention):
        raise ConfigError(
            f"FLOPs convention {convention!r} is unknown; choose from {', '.join(get_args(FlopsConvention))}"
        )
    count = count_parameters(shape)
    if convention == "exact":
        return 3.0 * (2.0 * count.matmul + attention_flops(shape, shape.context / 2))
    if convention == "exact_full_attention":
        return 3.0 * (2.0 * count.matmul + attention_flops(shape, float(shape.context)))
    if convention == "6N_total":
        return 6.0 * count.total
    if convention == "6N_matmul":
        return 6.0 * count.matmul
    if convention == "6N_non_embedding":
        return 6.0 * count.non_embedding
    keys_width = float(shape.context) * shape.n_heads * shape.head_dim * shape.n_layers
    if convention == "kaplan":
        return 3.0 * (2.0 * (count.matmul - count.embedding) + 2.0 * keys_width)
    if convention == "palm":
        stored = count.total - (0 if shape.is_tied else count.embedding)
        return 6.0 * stored + 12.0 * keys_width
    vocabulary_products = {"hoffmann_table": 0, "hoffmann_logits": 1, "hoffmann_text": 2}[convention]
    return _hoffmann_training_flops(shape, vocabulary_products)


def inference_flops_per_token(shape: ModelShape, past_tokens: float | None = None) -> float:
    """Count what generating one token costs with a key-value cache: one forward pass of one position.

    Args:
        shape: any layout.
        past_tokens: keys that the token sees, >= 0; None is T/2, the mean over a full context.

    Returns:
        FLOPs per token.
    """
    keys = shape.context / 2 if past_tokens is None else float(past_tokens)
    return 2.0 * count_parameters(shape).matmul + attention_flops(shape, keys)


def attention_flops(shape: ModelShape, keys: float) -> float:
    """Count one query's products with `keys` keys in all layers: scores, values and (relative positions) distances.

    Args:
        shape: any layout; grouped key heads cost as much as full ones, since every query head meets every key.
        keys: how many, >= 0.

    Returns:
        Forward FLOPs.
    """
    products = 3.0 if shape.layout == "chinchilla" else 2.0
    return 2.0 * products * keys * shape.n_heads * shape.head_dim * shape.n_layers


@overload
def flops_of(params: float, tokens: float, flops_per_param_token: float = 6.0) -> float: ...
@overload
def flops_of(
    params: npt.NDArray[Any], tokens: npt.NDArray[Any], flops_per_param_token: float = 6.0
) -> npt.NDArray[np.float64]: ...
def flops_of(
    params: float | npt.NDArray[Any], tokens: float | npt.NDArray[Any], flops_per_param_token: float = 6.0
) -> float | npt.NDArray[np.float64]:
    """Return C = k N D in floats, whatever the numbers came as.

    Args:
        params: N > 0, number or array; integers of any width are turned into floats first.
        tokens: D > 0.
        flops_per_param_token: k; 6 counts a multiply-add of each weight forward and two backward.

    Returns:
        FLOPs, a float or an array of floats. In numpy's int64 the same product is silently wrong above 9.2e18.
    """
    product = flops_per_param_token * np.asarray(params, dtype=np.float64) * np.asarray(tokens, dtype=np.float64)
    return product if product.ndim else float(product)


def _block_matrices(shape: ModelShape) -> int:
    d, heads_width, kv_width = shape.d_model, shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
    attention = d * (heads_width + 2 * kv_width) + heads_width * d
    relative = heads_width * d if shape.layout == "chinchilla" else 0
    feed_forward = (3 if shape.activation == "swiglu" else 2) * d * shape.d_ff
    return attention + relative + feed_forward


def _block_vectors(shape: ModelShape) -> int:
    """Count norms, biases and whatever else of a block is no matrix."""
    heads_width, kv_width = shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
    attention = {
        "qwen3": 2 * shape.head_dim,  # QK-norm: one gain for queries, one for keys, shared by the heads
        "llama": 0,
        "chinchilla": 2 * heads_width,  # Transformer-XL's u and v
        "textbook": heads_width + 2 * kv_width + shape.d_model,
    }[shape.layout]
    feed_forward = 0 if shape.activation == "swiglu" else shape.d_ff + shape.d_model
    return attention + feed_forward + 2 * _norm(shape)


def _norm(shape: ModelShape) -> int:
    return (2 if shape.layout == "textbook" else 1) * shape.d_model


def _hoffmann_training_flops(shape: ModelShape, vocabulary_products: int) -> float:
    """Appendix F, per token: forward times three; 3 FLOPs for each score's softmax; relative positions left out."""
    _require_hoffmann(shape)
    d, heads_width, context = float(shape.d_model), float(shape.n_heads * shape.head_dim), float(shape.context)
    projections = 2.0 * 4.0 * d * heads_width
    scores = 2.0 * 2.0 * context * heads_width + 3.0 * shape.n_heads * context
    feed_forward = 2.0 * 2.0 * d * shape.d_ff
    vocabulary = vocabulary_products * 2.0 * shape.vocab * d
    return 3.0 * (shape.n_layers * (projections + scores + feed_forward) + vocabulary)


def _require_hoffmann(shape: ModelShape) -> None:
    if shape.layout != "chinchilla" or shape.activation == "swiglu" or shape.n_kv_heads != shape.n_heads:
        raise ConfigError(
            f"Hoffmann et al.'s counts do not describe layout {shape.layout!r} with {shape.activation!r} and "
            f"{shape.n_kv_heads} of {shape.n_heads} key heads; use layout 'chinchilla', 'gelu' and equal heads, "
            "or convention 'exact'"
        )
