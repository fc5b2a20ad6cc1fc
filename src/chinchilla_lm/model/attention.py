"""Causal attention: with rotary or absolute positions (SelfAttention), or relative ones (RelativeAttention).

Axes: b batch rows, t query positions, s key positions, d d_model, h query heads, k key/value heads, g = h/k query heads
that share one key/value head, e head_dim.
Queries, keys and values are one matrix `qkv` (query heads, then key heads, then value heads): one matmul, not three.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chinchilla_lm.core.shapes import ModelShape
from chinchilla_lm.model import kernels
from chinchilla_lm.model.layers import Linear, RMSNorm, rotate

MASKED = -1e30
"""Added to the score of a key that a query may not see. Finite, so that a query without keys (padding) gives no NaN;
bfloat16 holds it; exp(MASKED - any score) is exactly 0."""


LONGEST_WRITTEN_OUT = {torch.float32: 256, torch.bfloat16: 512}
"""On a CPU, longest sequence whose (t, s) scores are written out: two matmuls and a softmax are faster up to here than
torch's fused attention (bench/model_step.py: in bfloat16 1.45 times at 512 and as fast at 1024; in float32 as fast at
256), which needs less memory and skips the masked half."""


class Positions(NamedTuple):
    """What attention needs to know about positions; the same for every block of one forward pass.

    Attributes:
        bias_ts: 0 where query t may see key s, else MASKED; (t, s), or (b, 1, t, s) if rows differ; compute type. Empty
            where no block adds it: at 40,960 tokens it would take 8 GB.
        cos, sin: rotary tables of the queries, float32, (t, e/2) or (b, 1, t, e/2); None without rotary positions.
        distance_sd: sinusoids of the distances s-1, ..., 1, 0, (s, d), compute type; None without relative positions.
        is_plain: positions are 0 ... t-1 and nothing is cached: the bias is the causal triangle; kernels may be used.
    """

    bias_ts: Tensor
    cos: Tensor | None = None
    sin: Tensor | None = None
    distance_sd: Tensor | None = None
    is_plain: bool = False


class LayerCache:
    """Keys and values of one block for the tokens seen so far, in tensors allocated once."""

    def __init__(self, size_bkse: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        """Keys and values of (b, k, s, e) each: room for s tokens in each of b sequences."""
        self.keys = torch.zeros(size_bkse, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)
        self.length = 0

    def extend(self, k_bkte: Tensor, v_bkte: Tensor) -> tuple[Tensor, Tensor]:
        """Appends t tokens; returns views of all keys and values so far, (b, k, s, e) each."""
        end = self.length + k_bkte.shape[2]
        self.keys[:, :, self.length : end] = k_bkte
        self.values[:, :, self.length : end] = v_bkte
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class SelfAttention(nn.Module):
    """Softmax(q k^T / sqrt(e) + causal bias) v, with optional rotary positions and QK-norm.

    Source: Vaswani et al. 2017, eq. 1; grouped key/value heads: Ainslie et al. 2023; QK-norm: Henry et al. 2020, in the
    form of Qwen3 (an RMSNorm over each head of queries and keys before the rotation).
    """

    def __init__(self, shape: ModelShape) -> None:
        """Layouts qwen3 (QK-norm, rotary), llama (rotary) and textbook (neither; biases on all maps)."""
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = shape.n_heads, shape.n_kv_heads, shape.head_dim
        has_bias = shape.layout == "textbook"
        self.qkv = Linear(shape.d_model, (shape.n_heads + 2 * shape.n_kv_heads) * shape.head_dim, has_bias=has_bias)
        self.out = Linear(shape.n_heads * shape.head_dim, shape.d_model, has_bias=has_bias)
        if shape.layout == "qwen3":
            self.query_norm = RMSNorm(shape.head_dim, shape.norm_epsilon)
            self.key_norm = RMSNorm(shape.head_dim, shape.norm_epsilon)
        else:
            self.query_norm = self.key_norm = None
        self.form: Literal["auto", "bmm", "sdpa"] = "auto"  # of a whole causal sequence; "bmm" writes the scores out
        self.has_kernels = False

    def forward(self, x_btd: Tensor, positions: Positions, cache: LayerCache | None = None) -> Tensor:
        """Maps (b, t, d) to (b, t, d); with a cache the keys of earlier calls are seen too."""
        q_bhte, k_bkte, v_bkte = self._heads(self.qkv(x_btd), positions)
        if cache is not None:
            k_bkte, v_bkte = cache.extend(k_bkte, v_bkte)
        if not positions.is_plain:
            return self.out(join_heads(attend(q_bhte, k_bkte, v_bkte, positions.bias_ts)))
        if self.is_fused(q_bhte.shape[2], q_bhte.dtype, q_bhte.device):
            is_grouped = self.n_heads != self.n_kv_heads
            x_bhte = F.scaled_dot_product_attention(q_bhte, k_bkte, v_bkte, is_causal=True, enable_gqa=is_grouped)
            return self.out(join_heads(x_bhte))
        if self.has_kernels:
            return self.out(kernels.causal_attention(q_bhte, k_bkte, v_bkte))
        return self.out(join_heads(attend(q_bhte, k_bkte, v_bkte, positions.bias_ts)))

    def is_fused(self, length: int, dtype: torch.dtype, device: torch.device) -> bool:
        """Whether a whole causal sequence of `length` goes through torch's fused attention, which holds no (t, s)."""
        if self.form == "auto":
            return device.type != "cpu" or length > LONGEST_WRITTEN_OUT[dtype]
        return self.form == "sdpa"

    def _heads(self, qkv_bte: Tensor, positions: Positions) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, normed and turned."""
        norms = None
        if self.query_norm is not None and self.key_norm is not None:
            norms = (self.query_norm, self.key_norm)
        tables = None if positions.cos is None or positions.sin is None else (positions.cos, positions.sin)
        if self.has_kernels and tables is not None and tables[0].ndim == 2:
            weights, epsilon = (None, 0.0) if norms is None else ((norms[0].weight, norms[1].weight), norms[0].epsilon)
            return kernels.rotary_heads(qkv_bte, weights, tables, (self.n_heads, self.n_kv_heads), epsilon)
        q_bhte, k_bkte, v_bkte = split_heads(qkv_bte, self.n_heads, self.n_kv_heads)
        if norms is not None:
            q_bhte, k_bkte = norms[0](q_bhte), norms[1](k_bkte)
        if tables is not None:
            cos, sin = (table.to(qkv_bte.dtype) for table in tables)
            q_bhte, k_bkte = rotate(q_bhte, cos, sin), rotate(k_bkte, cos, sin)
        return q_bhte, k_bkte, v_bkte


class RelativeAttention(nn.Module):
    """Attention whose scores depend on the distance between query and key, as in Gopher and Chinchilla.

    score(i, j) = (q_i + u) . k_j + (q_i + v) . (W_kr R_{i-j}), R the sinusoids of the distance, over sqrt(e).
    Terms: content, and position; u is `content_bias`, v is `position_bias`, W_kr is `position_key`.
    The papers do not print which maps carry biases; as in Transformer-XL's code, those of attention have none but u, v.

    Source: Dai et al. 2019 (Transformer-XL), section 3.3, and appendix B for the shift; Rae et al. 2021, section 2.1.
    """

    def __init__(self, shape: ModelShape) -> None:
        """One u and one v for each head, not shared between blocks."""
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = shape.n_heads, shape.n_kv_heads, shape.head_dim
        self.qkv = Linear(shape.d_model, (shape.n_heads + 2 * shape.n_kv_heads) * shape.head_dim)
        self.position_key = Linear(shape.d_model, shape.n_heads * shape.head_dim)
        self.content_bias = nn.Parameter(torch.zeros(shape.n_heads, shape.head_dim))
        self.position_bias = nn.Parameter(torch.zeros(shape.n_heads, shape.head_dim))
        self.out = Linear(shape.n_heads * shape.head_dim, shape.d_model)

    def forward(self, x_btd: Tensor, positions: Positions, cache: LayerCache | None = None) -> Tensor:
        """Maps (b, t, d) to (b, t, d); with a cache the keys of earlier calls are seen too."""
        q_bhte, k_bkte, v_bkte = split_heads(self.qkv(x_btd), self.n_heads, self.n_kv_heads)
        if cache is not None:
            k_bkte, v_bkte = cache.extend(k_bkte, v_bkte)
        assert positions.distance_sd is not None
        r_she = self.position_key(positions.distance_sd).unflatten(-1, (self.n_heads, self.head_dim))
        r_hes = r_she.permute(1, 2, 0)
        u_h1e = self.content_bias.to(x_btd.dtype)[:, None]
        v_h1e = self.position_bias.to(x_btd.dtype)[:, None]
        position_bhts = shift_distances((q_bhte + v_h1e) @ r_hes) / math.sqrt(self.head_dim)
        return self.out(join_heads(attend(q_bhte + u_h1e, k_bkte, v_bkte, position_bhts + positions.bias_ts)))


def split_heads(qkv_bte: Tensor, n_heads: int, n_kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cuts the fused projection into q (b, h, t, e), k (b, k, t, e) and v (b, k, t, e): views, no copies."""
    qkv_bthe = qkv_bte.unflatten(-1, (n_heads + 2 * n_kv_heads, -1))
    q_bhte, k_bkte, v_bkte = qkv_bthe.transpose(1, 2).split((n_heads, n_kv_heads, n_kv_heads), dim=1)
    return q_bhte, k_bkte, v_bkte


def join_heads(x_bhte: Tensor) -> Tensor:
    """(b, h, t, e) to (b, t, h e)."""
    return x_bhte.transpose(1, 2).flatten(2)


def attend(q_bhte: Tensor, k_bkse: Tensor, v_bkse: Tensor, bias: Tensor) -> Tensor:
    """Softmax(q k^T / sqrt(e) + bias) v, written out as two batched matmuls; softmax sums in float32.

    Args:
        q_bhte: queries.
        k_bkse: keys; h is a multiple of k, and query head i uses key head i // (h/k).
        v_bkse: values, like the keys.
        bias: broadcastable to (b, h, t, s).

    Returns:
        (b, h, t, e).
    """
    b, h, t, e = q_bhte.shape
    n_kv_heads, s = k_bkse.shape[1], k_bkse.shape[2]
    q_bkue = q_bhte.reshape(b, n_kv_heads, (h // n_kv_heads) * t, e) / math.sqrt(e)  # u = (g t): one matmul a key head
    scores_bhts = (q_bkue @ k_bkse.transpose(-1, -2)).view(b, h, t, s)
    weights_bhts = F.softmax(scores_bhts + bias, dim=-1)
    return (weights_bhts.view(b, n_kv_heads, -1, s) @ v_bkse).view(b, h, t, e)


def shift_distances(x_bhts: Tensor) -> Tensor:
    """Relative shift: column c of the input belongs to distance s-1-c; column j of the output to key j.

    Row i (query position s-t+i) needs distance (s-t+i) - j, that is column t-1-i+j. Padding each row by one and reading
    the same memory with rows of the old length moves row i left by t-1-i. Entries with j > s-t+i are garbage (masked).

    Source: Dai et al. 2019, appendix B.
    """
    b, h, t, s = x_bhts.shape
    return F.pad(x_bhts, (1, 0)).view(b, h, s + 1, t)[:, :, 1:].view(b, h, t, s)
