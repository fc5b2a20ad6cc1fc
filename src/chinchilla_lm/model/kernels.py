"""Fused CPU kernels as autograd functions, over the loops in `kernels.cpp`.

On a CPU a training step at d_model 32-256 is bound by passes over memory and by the number of operations, not by
matmuls. These functions do what lies between two matmuls in one pass forward and one backward.
They take float32 or bfloat16 activations on the CPU; weights of norms, tables and statistics are float32.
They do not choose themselves: `compiling.compile_blocks` puts them into a model. Plain torch in `layers`, `attention`
and `transformer` is the definition, and tests compare each function with it.

Axes: n rows, b batch rows, t positions, d d_model, h query heads, k key/value heads, e head_dim, f d_ff, v vocab.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from chinchilla_lm.core.errors import ModelError

KEPT_ELEMENTS = 1 << 26
"""Largest (tokens, vocab) matrix of logit gradients that is kept for the backward pass (128 MiB in bfloat16); above it
the logits are computed a second time there, one more of the head's three matmuls."""
CHUNK_ELEMENTS = 1 << 21
"""Elements of logits computed at a time, so that they stay in the cache between the matmul and the softmax."""

_KINDS: dict[str, Any] = {"p": ctypes.c_void_p, "l": ctypes.c_int64, "f": ctypes.c_float, "i": ctypes.c_int}
_SIGNATURES = {  # of kernels.cpp: p pointer, l int64, f float, i int; the last argument is always `threads`
    "norm_forward": "ppppppllfi",
    "norm_backward": "ppppppplli",
    "heads_forward": "ppppppppplllllfi",
    "heads_backward": "ppppppppppppllllli",
    "softmax_forward": "ppllfi",
    "softmax_backward": "ppllfi",
    "swiglu_forward": "pplli",
    "swiglu_backward": "ppplli",
    "cross_entropy": "ppppllii",
    "embed_forward": "ppplli",
    "embed_backward": "ppplli",
}
_SUFFIXES = {torch.float32: "f32", torch.bfloat16: "bf16"}
_functions: dict[tuple[str, torch.dtype], Any] = {}


def bind(library: ctypes.CDLL) -> None:
    """Makes a compiled kernels.cpp the one that these functions call, for the whole process.

    Raises:
        AttributeError: the library is not a kernels.cpp.
    """
    find = library.find_kernel
    find.argtypes, find.restype = [ctypes.c_char_p], ctypes.c_void_p
    for name, kinds in _SIGNATURES.items():
        for dtype, suffix in _SUFFIXES.items():
            address = find(f"{name}_{suffix}".encode())
            assert address, name
            _functions[name, dtype] = ctypes.CFUNCTYPE(None, *(_KINDS[kind] for kind in kinds))(address)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """RMSNorm over the last axis, as `layers.RMSNorm`: x (..., d), weight (d) float32."""
    assert weight.dtype == torch.float32
    return _Norm.apply(x, weight, epsilon)


def add_norm(x: Tensor, delta: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """(x + delta, RMSNorm of it): the stream after a branch and the input of the next branch, in one pass."""
    assert weight.dtype == torch.float32
    assert x.dtype == delta.dtype, (x.dtype, delta.dtype)  # such as under torch.autocast, which casts branches
    return _AddNorm.apply(x, delta, weight, epsilon)


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up: (..., 2 f), gate first, to (..., f)."""
    return _SwiGLU.apply(gate_up)


def rotary_heads(
    qkv_bte: Tensor,
    norm_weights: tuple[Tensor, Tensor] | None,
    tables: tuple[Tensor, Tensor],
    heads: tuple[int, int],
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Cuts the fused projection into heads, norms (QK-norm) and turns (rotary positions) queries and keys.

    Args:
        qkv_bte: (b, t, (h + 2k) e): query heads, key heads, value heads.
        norm_weights: of QK-norm, for queries and keys, (e) each, float32; None without QK-norm.
        tables: cos and sin of the t positions, (t, e/2) each, float32.
        heads: (h, k).
        epsilon: of QK-norm.

    Returns:
        q (b, h, t, e), k (b, k, t, e), v (b, k, t, e).
    """
    q_weight, k_weight = norm_weights or (None, None)
    assert all(x is None or x.dtype == torch.float32 for x in (q_weight, k_weight, *tables))
    return _RotaryHeads.apply(qkv_bte, q_weight, k_weight, tables, heads, epsilon)


def causal_attention(q_bhte: Tensor, k_bkte: Tensor, v_bkte: Tensor) -> Tensor:
    """Softmax(q k^T / sqrt(e)) v over the keys up to each query, as `attention.attend`; h a multiple of k.

    Returns:
        (b, t, h e), the input of the output projection.
    """
    return _CausalAttention.apply(q_bhte, k_bkte, v_bkte)


def token_losses(x_nd: Tensor, head_vd: Tensor, targets_n: Tensor) -> Tensor:
    """Cross-entropy (n), nats, float32, of the logits x W^T, which are never whole in float32.

    Args:
        x_nd: hidden states in the compute type.
        head_vd: output projection in the compute type.
        targets_n: whole numbers; negative ones are ignored: loss 0.

    Raises:
        ModelError: a target is not in the vocabulary.
    """
    if targets_n.numel() and int(targets_n.max()) >= len(head_vd):
        raise ModelError(
            f"target {int(targets_n.max())} is outside the vocabulary of {len(head_vd)}; check the tokenizer"
        )
    # A Function's forward pass cannot see that gradients are off, and would keep what an evaluation never reads.
    return _LinearCrossEntropy.apply(x_nd, head_vd, targets_n.long(), torch.is_grad_enabled())


def embed(table_vd: Tensor, ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows of a float32 table as `dtype`: ids (...) to (..., d).

    Raises:
        ModelError: an id has no row.
    """
    assert table_vd.dtype == torch.float32
    least, largest = (int(ids.min()), int(ids.max())) if ids.numel() else (0, 0)
    if least < 0 or largest >= len(table_vd):
        outside = least if least < 0 else largest
        raise ModelError(f"token id {outside} is outside the vocabulary of {len(table_vd)}; check the tokenizer")
    return _Embedding.apply(table_vd, ids.long(), dtype)  # the loops read eight bytes an id


def _run(name: str, dtype: torch.dtype, *arguments: Tensor | int | float | None) -> None:
    """Calls one loop of kernels.cpp: tensors as pointers (None as null), `threads` appended."""
    values = []
    for argument in arguments:
        if isinstance(argument, Tensor):
            assert argument.is_cpu, name
            assert argument.is_contiguous(), name
            values.append(argument.data_ptr())
        else:
            values.append(argument)
    _functions[name, dtype](*values, torch.get_num_threads())


def _scratch(width: int) -> Tensor:
    return torch.empty(torch.get_num_threads(), width)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        x = x.contiguous()
        y, inverse, d = torch.empty_like(x), torch.empty(x.numel() // x.shape[-1]), x.shape[-1]
        _run("norm_forward", x.dtype, x, None, weight, None, y, inverse, inverse.numel(), d, epsilon)
        ctx.save_for_backward(x, weight, inverse)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return (*_norm_backward(ctx.saved_tensors, d_y, None), None)


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, delta: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        x, delta = x.contiguous(), delta.contiguous()
        total, y = torch.empty_like(x), torch.empty_like(x)
        inverse, d = torch.empty(x.numel() // x.shape[-1]), x.shape[-1]
        _run("norm_forward", x.dtype, x, delta, weight, total, y, inverse, inverse.numel(), d, epsilon)
        ctx.save_for_backward(total, weight, inverse)
        ctx.set_materialize_grads(False)
        return total, y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_total: Tensor | None, d_y: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        d_x, d_weight = _norm_backward(ctx.saved_tensors, d_y, d_total)
        return d_x, d_x, d_weight, None


def _norm_backward(saved: tuple[Tensor, ...], d_y: Tensor, d_total: Tensor | None) -> tuple[Tensor, Tensor]:
    x, weight, inverse = saved
    d_x, d_weight = torch.empty_like(x), torch.zeros(torch.get_num_threads(), x.shape[-1])
    d_total = None if d_total is None else d_total.contiguous()
    sizes = inverse.numel(), x.shape[-1]
    _run("norm_backward", x.dtype, d_y.contiguous(), d_total, x, weight, inverse, d_x, d_weight, *sizes)
    return d_x, d_weight.sum(0)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        gate_up = gate_up.contiguous()
        f = gate_up.shape[-1] // 2
        y = gate_up.new_empty(*gate_up.shape[:-1], f)
        _run("swiglu_forward", y.dtype, gate_up, y, y.numel() // f, f)
        ctx.save_for_backward(gate_up)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> Tensor:  # type: ignore[override]
        (gate_up,) = ctx.saved_tensors
        d_gate_up, f = torch.empty_like(gate_up), d_y.shape[-1]
        _run("swiglu_backward", d_y.dtype, d_y.contiguous(), gate_up, d_gate_up, d_y.numel() // f, f)
        return d_gate_up


class _RotaryHeads(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0913 - ctx is not an argument
        ctx: Any,
        qkv: Tensor,
        q_weight: Tensor | None,
        k_weight: Tensor | None,
        tables: tuple[Tensor, Tensor],
        heads: tuple[int, int],
        epsilon: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        (b, t, _), (h, k) = qkv.shape, heads
        e = qkv.shape[-1] // (h + 2 * k)
        qkv = qkv.contiguous()
        q, keys, values = qkv.new_empty(b, h, t, e), qkv.new_empty(b, k, t, e), qkv.new_empty(b, k, t, e)
        inverse = torch.empty(b * t, h + k)
        inputs = (qkv, q_weight, k_weight, *tables)
        _run("heads_forward", qkv.dtype, *inputs, q, keys, values, inverse, b, t, h, k, e, epsilon)
        # Turning alone is undone from the gradient; only QK-norm needs its input again.
        ctx.save_for_backward(None if q_weight is None else qkv, *inputs[1:], inverse)
        ctx.sizes = (b, t, h, k, e)
        return q, keys, values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (qkv, q_weight, *others), (b, t, h, k, e) = ctx.saved_tensors, ctx.sizes
        d_qkv, d_weights = gradients[0].new_empty(b, t, (h + 2 * k) * e), torch.zeros(2, torch.get_num_threads(), e)
        dense = [gradient.contiguous() for gradient in gradients]
        inputs = (d_qkv if qkv is None else qkv, q_weight, *others)  # without QK-norm the first is not read
        _run("heads_backward", d_qkv.dtype, *dense, *inputs, d_qkv, d_weights[0], d_weights[1], *ctx.sizes)
        d_q_weight, d_k_weight = (None, None) if q_weight is None else d_weights.sum(1)
        return d_qkv, d_q_weight, d_k_weight, None, None, None


class _CausalAttention(torch.autograd.Function):
    """Rows of a key head's matrices are u = (g t): the g = h/k query heads that share it, one after the other."""

    @staticmethod
    def forward(ctx: Any, q_bhte: Tensor, k_bkte: Tensor, v_bkte: Tensor) -> Tensor:
        (b, h, t, e), k = q_bhte.shape, k_bkte.shape[1]
        q = q_bhte.reshape(b * k, h // k * t, e)
        keys, values = k_bkte.reshape(b * k, t, e), v_bkte.reshape(b * k, t, e)
        weights = torch.bmm(q, keys.transpose(1, 2))
        _run("softmax_forward", q.dtype, weights, _scratch(t), b * h * t, t, e**-0.5)
        ctx.save_for_backward(q, keys, values, weights)
        ctx.sizes = (b, h, k, t, e)
        return torch.bmm(weights, values).view(b, h, t, e).transpose(1, 2).reshape(b, t, h * e)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, keys, values, weights = ctx.saved_tensors
        b, h, k, t, e = ctx.sizes
        d_out = d_out.reshape(b, t, h, e).transpose(1, 2).reshape(q.shape)
        d_values = torch.bmm(weights.transpose(1, 2), d_out)
        d_scores = torch.bmm(d_out, values.transpose(1, 2))
        _run("softmax_backward", q.dtype, weights, d_scores, b * h * t, t, e**-0.5)
        d_q, d_keys = torch.bmm(d_scores, keys), torch.bmm(d_scores.transpose(1, 2), q)
        return d_q.view(b, h, t, e), d_keys.view(b, k, t, e), d_values.view(b, k, t, e)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, head: Tensor, targets: Tensor, has_gradients: bool) -> Tensor:
        x, head, targets = x.contiguous(), head.contiguous(), targets.contiguous()
        n, v = x.shape[0], head.shape[0]
        is_kept = n * v <= KEPT_ELEMENTS and has_gradients and any(ctx.needs_input_grad)
        losses, scratch = torch.empty(n), _scratch(v)
        d_logits = x.new_empty(n if is_kept else 0, v)
        for rows in _chunks(n, v):
            logits = d_logits[rows] if is_kept else x.new_empty(rows.stop - rows.start, v)
            torch.mm(x[rows], head.t(), out=logits)
            _run("cross_entropy", x.dtype, logits, targets[rows], losses[rows], scratch, *logits.shape, int(is_kept))
        ctx.save_for_backward(x, head, targets, d_logits)
        ctx.is_kept = is_kept
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_losses: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, head, targets, d_logits = ctx.saved_tensors
        scale = d_losses[:, None]
        scaled = (x * scale).to(x.dtype)  # scaling (n, d) here costs less than scaling (n, v)
        has_head = ctx.needs_input_grad[1]  # False under LoRA: a third of this function's products saved
        if ctx.is_kept:
            d_head = torch.mm(d_logits.t(), scaled) if has_head else None
            return torch.mm(d_logits, head).mul_(scale), d_head, None, None
        d_x, d_head, scratch = torch.empty_like(x), torch.zeros(head.shape), _scratch(head.shape[0])
        for rows in _chunks(x.shape[0], head.shape[0]):
            logits = torch.mm(x[rows], head.t())
            _run("cross_entropy", x.dtype, logits, targets[rows], torch.empty(len(logits)), scratch, *logits.shape, 1)
            torch.mm(logits, head, out=d_x[rows])
            if has_head:
                d_head += torch.mm(logits.t(), scaled[rows])
        return d_x.mul_(scale), d_head.to(head.dtype) if has_head else None, None, None


def _chunks(rows: int, width: int) -> list[slice]:
    size = max(16, CHUNK_ELEMENTS // width)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor, dtype: torch.dtype) -> Tensor:
        ids = ids.contiguous()
        y = torch.empty(*ids.shape, table.shape[1], dtype=dtype)
        _run("embed_forward", dtype, table, ids, y, ids.numel(), table.shape[1])
        ctx.save_for_backward(ids)
        ctx.rows = len(table)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (ids,) = ctx.saved_tensors
        d_table = torch.zeros(ctx.rows, d_y.shape[-1])
        _run("embed_backward", d_y.dtype, d_y.contiguous(), ids, d_table, ids.numel(), d_y.shape[-1])
        return d_table, None, None
