"""One decoder-only Transformer: token ids in, logits or losses out. Read it beside the papers.

Axes: b batch rows, t positions (queries), s key positions, d d_model, v vocab. `x_btd` is a tensor with axes b, t, d.

Layouts (modules, and the parameters each has; H = n_heads * head_dim, K = n_kv_heads * head_dim):
    all         embedding (vocab, d); head (vocab, d) unless tied; a last `norm` unless norm_placement is "post"
    block       attention_norm, attention, feed_forward_norm, feed_forward
    qwen3       RMSNorm (d); attention: qkv (H+2K, d), out (d, H), query_norm (e), key_norm (e); no biases
    llama       qwen3 without query_norm and key_norm
    chinchilla  RMSNorm (d); attention: qkv (H+2K, d), out (d, H), position_key (H, d), content_bias (H),
                position_bias (H); no other biases in attention
    textbook    LayerNorm (2 d); attention: qkv (H+2K, d) + bias (H+2K), out (d, H) + bias (d); sinusoidal positions
    swiglu      feed_forward: gate_up (2 d_ff, d), down (d, d_ff); no biases
    gelu, relu  feed_forward: up (d_ff, d) + bias (d_ff), down (d, d_ff) + bias (d)

Masters are float32. `compute_dtype` is the type of activations and of the casts of the weights (float32 or bfloat16);
statistics of norms, sums of softmax and losses are float32 in both. This file never trains, samples or reads files.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from chinchilla_lm.core.errors import ModelError
from chinchilla_lm.core.shapes import ModelShape
from chinchilla_lm.model import kernels
from chinchilla_lm.model.attention import MASKED, LayerCache, Positions, RelativeAttention, SelfAttention
from chinchilla_lm.model.layers import (
    FeedForward,
    GatedFeedForward,
    LayerNorm,
    Linear,
    RMSNorm,
    rotary_table,
    sinusoids,
)

EMBEDDING_STD = 0.5
"""Standard deviation of an untied embedding at the start (recipe v1; the learning rate of the embedding fits it)."""
TIED_EMBEDDING_STD = 0.02
"""The same if the head is tied (GPT-2's; Radford et al. 2019). At the start every block is the identity and a token
predicts itself with logit std * d_model: 0.5 would start the loss tens of nats too high."""

IGNORED = -100
"""Target of a position without one (padding, a prompt); the value that Hugging Face and torch use."""
CHUNK_LOGITS = 1 << 26
"""Largest number of logits that exist at once in training (256 MiB in float32); more are computed part by part."""


class Transformer(nn.Module):
    """The decoder. Attributes: `shape`; `compute_dtype` (torch.float32 or torch.bfloat16, may be set at any time)."""

    def __init__(self, shape: ModelShape) -> None:
        """Builds the modules with zero matrices; call `initialise` (or load weights) before use."""
        super().__init__()
        self.shape = shape
        self.compute_dtype = torch.float32
        self.has_kernels = False
        self._plain_positions: tuple[tuple[int, torch.dtype, torch.device, bool], Tensor, Positions] | None = None
        self.embedding = nn.Parameter(torch.zeros(shape.vocab, shape.d_model))
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.n_layers))
        self.norm = None if shape.norm_placement == "post" else make_norm(shape)
        self.head = None if shape.is_tied else Linear(shape.d_model, shape.vocab)

    def forward(self, ids_bt: Tensor, cache: KeyValueCache | None = None, positions_bt: Tensor | None = None) -> Tensor:
        """Logits of the next token at every position.

        Args:
            ids_bt: token ids, int64, in [0, vocab).
            cache: keys and values of earlier tokens; these ids follow them, and are added to it.
            positions_bt: explicit positions for rows of unequal length (left-padded: -1 for padding); None = 0, 1, ...

        Returns:
            logits_btv, float32.
        """
        return F.linear(self.hidden(ids_bt, cache, positions_bt), self.head_weight.to(self.compute_dtype)).float()

    def hidden(self, ids_bt: Tensor, cache: KeyValueCache | None = None, positions_bt: Tensor | None = None) -> Tensor:
        """The normalised last hidden state that the head reads: x_btd in `compute_dtype`. Arguments as `forward`."""
        positions_bt, positions = self._positions(ids_bt, cache, positions_bt)
        if self.has_kernels:
            x_btd = kernels.embed(self.embedding, ids_bt, self.compute_dtype)
        else:
            x_btd = F.embedding(ids_bt, self.embedding).to(self.compute_dtype)
        if self.shape.layout == "textbook":
            if self.shape.is_tied:  # Vaswani et al. 2017, section 3.4; untied, the factor is part of the initial scale
                x_btd = x_btd * math.sqrt(self.shape.d_model)
            x_btd = x_btd + sinusoids(positions_bt.clamp_min(0), self.shape.d_model).to(x_btd.dtype)
        x_btd = F.dropout(x_btd, self.shape.dropout, self.training)
        for index, block in enumerate(self.blocks):
            # Decoding goes past a torch.compile of the block, which would compile again for every length.
            x_btd = block(x_btd, positions) if cache is None else block.forward(x_btd, positions, cache.layers[index])
        return x_btd if self.norm is None else self.norm(x_btd)

    def token_losses(self, ids_bt: Tensor, targets_bt: Tensor) -> Tensor:
        """Cross-entropy of each target, nats: losses_bt, float32.

        Args:
            ids_bt: token ids, int64.
            targets_bt: the token that follows each, int64; IGNORED (-100) where there is none: loss 0.
        """
        return self.losses_of(self.hidden(ids_bt).flatten(0, 1), targets_bt.flatten()).view_as(targets_bt)

    def losses_of(self, x_nd: Tensor, targets_n: Tensor) -> Tensor:
        """Cross-entropy of targets at chosen positions, nats: losses_n, float32; IGNORED (-100): loss 0.

        Args:
            x_nd: states that `hidden` returned, of any n positions.
            targets_n: the token that follows each, int64.
        """
        head_vd = self.head_weight.to(self.compute_dtype)
        if self.has_kernels:
            return kernels.token_losses(x_nd, head_vd, targets_n)
        size = max(1, CHUNK_LOGITS // self.shape.vocab)
        if len(targets_n) <= size:
            return _losses(x_nd, head_vd, targets_n)
        parts = [  # the backward pass computes the logits of a part again, so that only one part's are held
            checkpoint(
                _losses, x_nd[start : start + size], head_vd, targets_n[start : start + size], use_reentrant=False
            )
            for start in range(0, len(targets_n), size)
        ]
        return torch.cat(parts)

    @property
    def head_weight(self) -> Tensor:
        """The (vocab, d) matrix of the output projection: the embedding if tied."""
        return self.embedding if self.head is None else self.head.weight

    def _positions(
        self, ids_bt: Tensor, cache: KeyValueCache | None, positions_bt: Tensor | None
    ) -> tuple[Tensor, Positions]:
        """Positions of the queries, (t) or (b, t), and what attention needs of them."""
        past = 0 if cache is None else cache.length
        end = past + ids_bt.shape[1]
        if end > self.shape.context:
            raise ModelError(
                f"{end} tokens are more than the model's context of {self.shape.context}; cut the text or the prompt"
            )
        is_plain = positions_bt is None and cache is None
        has_bias = not is_plain or self._adds_bias(end, ids_bt.device)
        key = (end, self.compute_dtype, ids_bt.device, has_bias)
        if is_plain and self._plain_positions is not None and self._plain_positions[0] == key:
            return self._plain_positions[1:]
        with torch.inference_mode(False):  # what is kept may serve a training step later
            if positions_bt is None:
                positions_bt = torch.arange(past, end, device=ids_bt.device)
            keys_bs = positions_bt if cache is None else cache.extend_positions(positions_bt, ids_bt.shape[1])
            positions = self._describe_positions(positions_bt, keys_bs, is_plain, has_bias)
        if is_plain:
            self._plain_positions = (key, positions_bt, positions)
        return positions_bt, positions

    def _adds_bias(self, length: int, device: torch.device) -> bool:
        """Whether a block adds the bias to the scores of a whole causal sequence."""
        attentions = (block.attention for block in self.blocks)
        return any(
            not isinstance(one, SelfAttention) or not one.is_fused(length, self.compute_dtype, device)
            for one in attentions
        )

    def _describe_positions(self, queries_bt: Tensor, keys_bs: Tensor, is_plain: bool, has_bias: bool) -> Positions:
        bias_ts = torch.empty(0, device=queries_bt.device)
        if has_bias:
            hidden_ts = (keys_bs[..., None, :] > queries_bt[..., :, None]) | (keys_bs[..., None, :] < 0)
            bias_ts = torch.zeros(hidden_ts.shape, device=hidden_ts.device).masked_fill_(hidden_ts, MASKED)
        cos = sin = distance_sd = None
        if self.shape.layout in ("qwen3", "llama"):
            cos, sin = rotary_table(queries_bt.clamp_min(0), self.shape.head_dim, self.shape.rope_theta)
        if self.shape.layout == "chinchilla":
            distances = torch.arange(keys_bs.shape[-1] - 1, -1, -1, device=keys_bs.device)
            distance_sd = sinusoids(distances, self.shape.d_model).to(self.compute_dtype)
        if queries_bt.ndim == 2:  # a head axis between b and t
            bias_ts = bias_ts[:, None]
            cos, sin = (None, None) if cos is None or sin is None else (cos[:, None], sin[:, None])
        return Positions(bias_ts.to(self.compute_dtype), cos, sin, distance_sd, is_plain)


def _losses(x_nd: Tensor, head_vd: Tensor, targets_n: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(x_nd, head_vd).float(), targets_n, reduction="none")


class Block(nn.Module):
    """Attention, then feed-forward, each a branch added to the residual stream."""

    def __init__(self, shape: ModelShape) -> None:
        """The modules of one layout; see the list at the top of the file."""
        super().__init__()
        self.attention_norm = make_norm(shape)
        self.attention = RelativeAttention(shape) if shape.layout == "chinchilla" else SelfAttention(shape)
        self.feed_forward_norm = make_norm(shape)
        if shape.activation == "swiglu":
            self.feed_forward = GatedFeedForward(shape.d_model, shape.d_ff)
        else:
            self.feed_forward = FeedForward(shape.d_model, shape.d_ff, shape.activation)
        self.is_post_norm = shape.norm_placement == "post"
        self.dropout = shape.dropout
        self.has_kernels = False

    def forward(self, x_btd: Tensor, positions: Positions, cache: LayerCache | None = None) -> Tensor:
        """Pre-norm: x + f(norm(x)) (Xiong et al. 2020). Post-norm: norm(x + f(x)) (Vaswani et al. 2017)."""
        if self.is_post_norm:
            x_btd = self.attention_norm(x_btd + self._drop(self.attention(x_btd, positions, cache)))
            return self.feed_forward_norm(x_btd + self._drop(self.feed_forward(x_btd)))
        branch_btd = self._drop(self.attention(self.attention_norm(x_btd), positions, cache))
        if self.has_kernels and isinstance(self.feed_forward_norm, RMSNorm):
            norm = self.feed_forward_norm
            x_btd, normed_btd = kernels.add_norm(x_btd, branch_btd, norm.weight, norm.epsilon)
            return x_btd + self._drop(self.feed_forward(normed_btd))
        x_btd = x_btd + branch_btd
        return x_btd + self._drop(self.feed_forward(self.feed_forward_norm(x_btd)))

    def _drop(self, x_btd: Tensor) -> Tensor:
        return F.dropout(x_btd, self.dropout, self.training) if self.dropout and self.training else x_btd


def make_norm(shape: ModelShape) -> nn.Module:
    """LayerNorm for the textbook, RMSNorm for all others."""
    norm = LayerNorm if shape.layout == "textbook" else RMSNorm
    return norm(shape.d_model, shape.norm_epsilon)


class KeyValueCache:
    """Keys, values and positions of the tokens a model has read, for decoding one token at a time."""

    def __init__(self, model: Transformer, rows: int, capacity: int | None = None) -> None:
        """Room for `capacity` tokens (default: the model's context) in each of `rows` sequences."""
        shape, device = model.shape, model.embedding.device
        capacity = shape.context if capacity is None else capacity
        self.layers = [
            LayerCache((rows, shape.n_kv_heads, capacity, shape.head_dim), model.compute_dtype, device)
            for _ in range(shape.n_layers)
        ]
        self._positions_bs = torch.zeros(rows, capacity, dtype=torch.int64, device=device)
        self._is_ragged = False

    @property
    def length(self) -> int:
        """Tokens held, padding included."""
        return self.layers[0].length

    def extend_positions(self, positions: Tensor, count: int) -> Tensor:
        """Notes the positions of `count` new tokens, (t) or (b, t); returns those of all keys, (s) or (b, s)."""
        end = self.length + count
        self._positions_bs[:, self.length : end] = positions
        self._is_ragged = self._is_ragged or positions.ndim == 2
        return self._positions_bs[:, :end] if self._is_ragged else self._positions_bs[0, :end]


def initialise(model: Transformer, seed: int) -> None:
    """Draws the weights: the same on every device (drawn on the CPU in float32, in the order of `parameters()`).

    embedding N(0, 0.5^2), or N(0, 0.02^2) if tied (the head's scale decides then); matrices that read the stream
    N(0, 1/fan_in); matrices that write to it (attention.out, feed_forward.down) and the head 0; biases 0; norms 1.
    Every block then starts as the identity, and an untied model starts at loss ln(vocab).

    Args:
        model: changed in place.
        seed: of a private generator; the global one is not touched.

    Source: recipe v1 (standard parametrisation with learning rates per width: Everett et al. 2024).
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            kind = name.split(".")[-2:]
            if parameter.ndim == 2 and kind[-1] not in ("content_bias", "position_bias"):
                std = _initial_std(name, parameter, model.shape)
                draw = torch.empty(parameter.shape).normal_(generator=generator)  # drawn even for std 0: fixed order
                parameter.copy_(draw * std)
            else:
                parameter.fill_(1.0 if kind[0].endswith("norm") and kind[-1] == "weight" else 0.0)


def _initial_std(name: str, parameter: Tensor, shape: ModelShape) -> float:
    if name == "embedding":
        return TIED_EMBEDDING_STD if shape.is_tied else EMBEDDING_STD
    if name == "head.weight" or name.endswith((".out.weight", ".down.weight")):
        return 0.0
    return parameter.shape[1] ** -0.5
