"""LoRA on our own Transformer: y = x W^T + scale * dropout(x) A^T B^T, with W frozen and A, B trained.

Our blocks hold fused matrices (qkv; gate_up), Hugging Face's hold q_proj, k_proj, v_proj, gate_proj, up_proj. Each
projection has an A and a B of its own, so that an adapter is the same thing here and in peft; those of one fused matrix
lie under each other in one parameter, which keeps the number of operations small:

    lora_a (p r, d_in)    rows i r ... (i + 1) r are A of the i-th projection of this matrix
    lora_b (rows, r)      the rows of B of the first projection, then of the second, ...

The base weight keeps its name (`blocks.0.attention.qkv.weight`), gets no gradient, and its copy in the compute type is
made once, not once a step. With `compile_blocks(model, "kernels")` one autograd function does the whole map.
This file never reads or writes files (`adapter_files` does) and never trains.

Axes: n rows of the input, d_in, d_out; r rank, p projections in one matrix.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from chinchilla_lm.core.errors import ConfigError
from chinchilla_lm.core.shapes import ModelShape
from chinchilla_lm.model.layers import Linear
from chinchilla_lm.model.transformer import Transformer

ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Every matrix of a block: LoRA on attention alone learns less. Source: Schulman et al. 2025 (LoRA Without Regret)."""


_INTEGERS = {torch.bfloat16: torch.int16, torch.float32: torch.int32}


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """The size of an adapter.

    Attributes:
        rank: r >= 1.
        alpha: the product is scaled by alpha / rank; 2 * rank is usual.
        dropout: of the adapter's input, in [0, 1).
        targets: Hugging Face's names of the projections, among `ALL_LINEAR`.

    Source: Hu et al. 2021 (LoRA), section 4.1.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.05
    targets: tuple[str, ...] = ALL_LINEAR

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 < self.alpha < math.inf:
            raise ConfigError(
                f"LoRA takes rank >= 1 and alpha > 0, got {self.rank} and {self.alpha}; 8 and 16 are usual"
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"LoRA's dropout must be in [0, 1), got {self.dropout}; 0.05 is usual")
        unknown = [name for name in self.targets if name not in ALL_LINEAR]
        if unknown or not self.targets:
            raise ConfigError(f"LoRA targets {unknown or '()'} must be among {', '.join(ALL_LINEAR)}; correct them")

    @property
    def scale(self) -> float:
        """The factor of the low-rank product."""
        return self.alpha / self.rank


def add_lora(model: Transformer, settings: LoraSettings, *, seed: int) -> list[nn.Parameter]:
    """Put an adapter on every target of every block, and freeze everything else.

    A is drawn U(-1/sqrt(d_in), 1/sqrt(d_in)) and B is 0, as in peft: the model computes what it did before.

    Args:
        model: changed in place; has no adapter yet.
        settings: rank, scale, dropout, targets.
        seed: of a private generator.

    Returns:
        The adapter's parameters, in the order of the blocks.

    Raises:
        ConfigError: the model has none of the targets.
    """
    assert not has_lora(model), "a model carries one adapter at a time; merge it first"
    generator = torch.Generator().manual_seed(seed)
    model.requires_grad_(False)
    added: list[nn.Parameter] = []
    for block in model.blocks:
        for place, projections in fused_projections(model.shape).items():
            chosen = {name: rows for name, rows in projections.items() if name.rpartition(".")[2] in settings.targets}
            if not chosen:
                continue
            parent, name = block.get_submodule(place.rpartition(".")[0]), place.rpartition(".")[2]
            adapted = LoraLinear(getattr(parent, name), chosen, settings)
            adapted.has_kernels = bool(block.has_kernels)
            adapted.initialise(generator)
            setattr(parent, name, adapted)
            added += [adapted.lora_a, adapted.lora_b]
    if not added:
        raise ConfigError(f"a {model.shape.layout} model has none of {settings.targets}; choose among its projections")
    return added


def has_lora(model: nn.Module) -> bool:
    """Whether an adapter is on the model."""
    return any(isinstance(module, LoraLinear) for module in model.modules())


def lora_modules(model: Transformer) -> Iterator[tuple[str, LoraLinear]]:
    """Yield (name in the model, module) of each adapted matrix."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            yield name, module


def merged_copy(model: Transformer) -> Transformer:
    """Return the same model with the low-rank products added into the weights, for decoding and saving.

    Args:
        model: with an adapter or without; not changed. Matrices without an adapter are shared with it, not copied.

    Returns:
        A plain Transformer in eval mode, without gradients; the same function up to rounding (1e-5 on logits).
    """
    with torch.device("meta"):
        plain = Transformer(model.shape)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for name, module in lora_modules(model):
        weights[f"{name}.weight"] = module.merged_weight()
        del weights[f"{name}.lora_a"], weights[f"{name}.lora_b"]
    plain.load_state_dict(weights, assign=True)
    plain.compute_dtype = model.compute_dtype
    return plain.requires_grad_(False).eval()


def remove_lora(model: Transformer, *, merges: bool) -> None:
    """Take the adapter off, in place: its product stays in the weights (`merges`), or the base comes back bit for bit.

    Args:
        model: with an adapter.
        merges: add scale * B A to the weights first.
    """
    for name, module in list(lora_modules(model)):
        if merges:
            with torch.no_grad():
                module.weight.copy_(module.merged_weight())
        plain = Linear.__new__(Linear)  # its own __init__ would allocate a second matrix
        nn.Module.__init__(plain)
        plain.weight, plain.bias = module.weight, module.bias
        setattr(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], plain)


class LoraLinear(nn.Module):
    """A frozen, possibly fused matrix with a low-rank product for some of its projections.

    Attributes: `weight` and `bias` (the base's own parameters); `lora_a`, `lora_b`; `projections`, Hugging Face's name
    of each adapted projection -> (first row, end row) in `weight`; `scale`.
    """

    def __init__(self, base: Linear, projections: dict[str, tuple[int, int]], settings: LoraSettings) -> None:
        """Allocates zeros; `initialise` draws A."""
        super().__init__()
        self.weight, self.bias = base.weight, base.bias
        self.projections, self.rank = projections, settings.rank
        self.scale, self.dropout = settings.scale, settings.dropout
        rows = sum(end - start for start, end in projections.values())
        device = base.weight.device
        self.lora_a = nn.Parameter(torch.zeros(len(projections) * settings.rank, base.weight.shape[1], device=device))
        self.lora_b = nn.Parameter(torch.zeros(rows, settings.rank, device=device))
        self.has_kernels = False
        self._cast: tuple[tuple[torch.dtype, int, int], Tensor] | None = None

    def initialise(self, generator: torch.Generator) -> None:
        """Draw A, on the CPU for the same values on every device; B stays 0. Source: peft's default (Kaiming, a=5)."""
        bound = self.lora_a.shape[1] ** -0.5
        draw = torch.empty(self.lora_a.shape).uniform_(-bound, bound, generator=generator)
        with torch.no_grad():
            self.lora_a.copy_(draw)

    def forward(self, x: Tensor) -> Tensor:
        """Maps the last axis d_in -> d_out. One dropout mask for all projections (peft: one each)."""
        weight = self._base_weight(x.dtype)
        dropped, scale = None, self.scale
        if self.dropout and self.training:  # what is kept is scaled here, where it costs nothing
            dropped, scale = _Dropped.apply(x, self.dropout), scale / (1 - self.dropout)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        spans = tuple(self.projections.values())
        if self.has_kernels and bias is None:
            return _LoraProduct.apply(x, dropped, weight, self.lora_a, self.lora_b, (spans, scale))
        y = F.linear(x, weight, bias)
        low = F.linear(x if dropped is None else dropped, self.lora_a.to(x.dtype)) * scale
        pieces, done, used = [], 0, 0
        for index, (start, end) in enumerate(spans):
            b = self.lora_b[used : used + end - start].to(x.dtype)
            delta = F.linear(low[..., index * self.rank : (index + 1) * self.rank], b)
            pieces += [y[..., done:start], y[..., start:end] + delta]
            done, used = end, used + end - start
        return torch.cat((*pieces, y[..., done:]), dim=-1)

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """Return W + scale * B A, float32, a new tensor."""
        merged = self.weight.detach().clone()
        for name, (start, end) in self.projections.items():
            a, b = self.factors(name)
            merged[start:end].addmm_(b, a, alpha=self.scale)
        return merged

    def factors(self, projection: str) -> tuple[Tensor, Tensor]:
        """Return views (A (r, d_in), B (rows, r)) of one projection."""
        used = 0
        for index, (name, (start, end)) in enumerate(self.projections.items()):
            if name == projection:
                a = self.lora_a.detach()[index * self.rank : (index + 1) * self.rank]
                return a, self.lora_b.detach()[used : used + end - start]
            used += end - start
        raise AssertionError(projection)

    def _base_weight(self, dtype: torch.dtype) -> Tensor:
        """Return the frozen weight in the compute type, cast again only when it has been changed."""
        weight = self.weight
        if weight.dtype == dtype or weight.requires_grad:
            return weight.to(dtype)
        key = (dtype, weight._version, weight.data_ptr())
        if self._cast is None or self._cast[0] != key:
            with torch.inference_mode(False), torch.no_grad():  # what is kept may serve a training step later
                self._cast = (key, weight.detach().to(dtype))
        return self._cast[1]


def fused_projections(shape: ModelShape) -> dict[str, dict[str, tuple[int, int]]]:
    """Return, for each matrix of a block, Hugging Face's projections in it: name -> (first row, end row)."""
    heads, keys, d, f = shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim, shape.d_model, shape.d_ff
    table = {
        "attention.qkv": _rows(("self_attn.q_proj", heads), ("self_attn.k_proj", keys), ("self_attn.v_proj", keys)),
        "attention.out": _rows(("self_attn.o_proj", d)),
    }
    if shape.activation == "swiglu":
        table["feed_forward.gate_up"] = _rows(("mlp.gate_proj", f), ("mlp.up_proj", f))
    else:
        table["feed_forward.up"] = _rows(("mlp.up_proj", f))
    table["feed_forward.down"] = _rows(("mlp.down_proj", d))
    return table


def _rows(*sizes: tuple[str, int]) -> dict[str, tuple[int, int]]:
    spans, start = {}, 0
    for name, rows in sizes:
        spans[name] = (start, start + rows)
        start += rows
    return spans


class _Dropped(torch.autograd.Function):
    """x with a random share of its elements set to 0, the others unchanged.

    torch's dropout takes 14 ns an element on a CPU, a third of a whole LoRA step of SmolLM2 in bfloat16 (512 tokens:
    1.32 CPU-s; 0.85 without dropout; 1.06 so). Random integers as wide as an element are compared with the share and
    become masks of its bits; the share is rounded to 1 / 65,536 in bfloat16.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, share: float) -> Tensor:
        x = x.contiguous()
        whole = _INTEGERS[x.dtype]
        draws = torch.empty(-(-x.numel() * x.element_size() // 8), dtype=torch.int64, device=x.device)
        bits = draws.random_(-(2**63), None).view(whole)[: x.numel()].view(x.shape)
        lowest = torch.iinfo(whole).min
        ctx.mask = torch.ge(bits, round(lowest + share * 2.0 ** (8 * x.element_size())), out=bits).neg_()
        return (x.view(whole) & ctx.mask).view(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return (d_y.contiguous().view(ctx.mask.dtype) & ctx.mask).view(d_y.dtype), None


class _LoraProduct(torch.autograd.Function):
    """The whole map without a copy of the output; the frozen weight gets no gradient."""

    @staticmethod
    def forward(  # noqa: PLR0913 - ctx is not an argument
        ctx: Any,
        x: Tensor,
        dropped: Tensor | None,
        weight: Tensor,
        lora_a: Tensor,
        lora_b: Tensor,
        form: tuple[Sequence[tuple[int, int]], float],
    ) -> Tensor:
        spans, scale = form
        x_nd = x.reshape(-1, x.shape[-1])
        seen_nd = x_nd if dropped is None else dropped.reshape(x_nd.shape)
        a, b = lora_a.to(x.dtype), lora_b.to(x.dtype)
        y_no, low_nr = x_nd @ weight.t(), seen_nd @ a.t()
        for low, rows, (start, end) in _parts(low_nr, b, spans):
            y_no[:, start:end].addmm_(low, rows.t(), alpha=scale)
        ctx.save_for_backward(seen_nd, low_nr, weight, a, b)
        ctx.spans, ctx.scale, ctx.is_dropped = spans, scale, dropped is not None
        return y_no.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        seen_nd, low_nr, weight, a, b = ctx.saved_tensors
        d_y_no = d_y.reshape(len(seen_nd), -1)
        d_low_nr, d_b = torch.empty_like(low_nr), torch.empty_like(b)
        for (d_low, d_rows, (start, end)), (low, rows, _) in zip(
            _parts(d_low_nr, d_b, ctx.spans), _parts(low_nr, b, ctx.spans), strict=True
        ):
            d_part = d_y_no[:, start:end]
            d_low.copy_(d_part @ rows)
            d_rows.copy_(d_part.t() @ low)
        d_low_nr.mul_(ctx.scale)
        d_a, d_x = d_low_nr.t() @ seen_nd, None
        if ctx.needs_input_grad[0]:
            d_x = d_y_no @ weight
            if not ctx.is_dropped:
                d_x.addmm_(d_low_nr, a)
            d_x = d_x.view(*d_y.shape[:-1], -1)
        d_dropped = None
        if ctx.is_dropped and ctx.needs_input_grad[1]:
            d_dropped = (d_low_nr @ a).view(*d_y.shape[:-1], -1)
        return d_x, d_dropped, None, d_a.float(), d_b.float().mul_(ctx.scale), None


def _parts(
    low_nr: Tensor, b: Tensor, spans: Sequence[tuple[int, int]]
) -> Iterator[tuple[Tensor, Tensor, tuple[int, int]]]:
    """Yield (its columns of the low-rank input, its rows of B, its rows of the weight) for each projection."""
    rank, used = b.shape[1], 0
    for index, (start, end) in enumerate(spans):
        yield low_nr[:, index * rank : (index + 1) * rank], b[used : used + end - start], (start, end)
        used += end - start
