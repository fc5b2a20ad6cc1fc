"""The engine's forward pass in plain torch operations: every layout, every device; the definition of the fast form.

Axes: b rows (slots), t new tokens, s key positions, d width, k key/value heads, e head size, v vocabulary.
Keys and values of a slot lie in tensors that are allocated once. Rows of unequal length meet in one batch aligned at
their last token, so that the model's own blocks run unchanged. It knows nothing of text or of how tokens are chosen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from chinchilla_lm.generate.weights import WeightsType, convert_model
from chinchilla_lm.model.attention import MASKED, LayerCache, Positions
from chinchilla_lm.model.layers import rotary_table, sinusoids
from chinchilla_lm.model.transformer import Transformer

LONGEST_CHUNK_TOKENS = 512  # of a prompt read at once: bounds the (t, s) scores


class TorchForm:
    """Forward passes over slots. Attributes: `name` = "torch"; `reason`, why it is not a faster form ("" if it is)."""

    name = "torch"

    def __init__(self, model: Transformer, slots: int, capacity: int, weights: WeightsType, reason: str = "") -> None:
        """Converts the weights (float32 ones are shared with `model`) and allocates the cache of every slot."""
        self.reason = reason
        self._model = convert_model(model, weights)
        shape, device = model.shape, model.embedding.device
        size_bkse = (slots, shape.n_kv_heads, capacity, shape.head_dim)
        self._layers = [_empty_layer(size_bkse, self._model.compute_dtype, device) for _ in range(shape.n_layers)]
        self._device = device

    @torch.inference_mode()
    def forward(
        self, slots: Sequence[int], pasts: Sequence[int], ids: Sequence[Sequence[int]], last_only: bool
    ) -> Tensor:
        """Read t new tokens in each of several slots.

        Args:
            slots: distinct slots.
            pasts: tokens that each slot holds already.
            ids: new tokens for each slot, at least one; rows of one length are read together.
            last_only: only the last position of each row meets the head.

        Returns:
            Logits (w, v), float32: of each slot in turn, its last position with `last_only`, else all.
        """
        if len({len(row) for row in ids}) > 1:
            return torch.cat(self._by_length(slots, pasts, ids, last_only))
        x_btd = self._chunks(slots, pasts, ids, last_only)
        return F.linear(x_btd.flatten(0, 1), self._model.head_weight.to(x_btd.dtype)).float()

    @torch.inference_mode()
    def hidden(self, ids: Sequence[int]) -> Tensor:
        """Last hidden states after the final norm, x_td float32; no slot is touched."""
        return self._model.hidden(torch.tensor([list(ids)], device=self._device))[0].float()

    @torch.inference_mode()
    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first positions of a slot to another."""
        for layer in self._layers:
            for cache in (layer.keys, layer.values):
                cache[target, :, :length] = cache[source, :, :length]

    def is_finite(self, logits: Tensor) -> bool:
        """Whether no logit is nan or infinite."""
        return math.isfinite(float(logits.sum()))  # one nan or infinity makes the sum one; no sum of logits overflows

    def timed(self) -> AbstractContextManager[dict[str, float]]:
        """Nothing is measured here: torch's own profiler knows more."""
        return nullcontext({})

    def _by_length(
        self, slots: Sequence[int], pasts: Sequence[int], ids: Sequence[Sequence[int]], last_only: bool
    ) -> list[Tensor]:
        """The logits of each row, in order."""
        places: dict[int, list[int]] = {}
        for place, row in enumerate(ids):
            places.setdefault(len(row), []).append(place)
        parts: dict[int, Tensor] = {}
        for own in places.values():
            own_slots, own_pasts, own_ids = ([rows[place] for place in own] for rows in (slots, pasts, ids))
            logits_wv = self.forward(own_slots, own_pasts, own_ids, last_only)  # type: ignore[arg-type]
            parts |= dict(zip(own, logits_wv.chunk(len(own)), strict=True))
        return [parts[place] for place in range(len(ids))]

    def _chunks(
        self, slots: Sequence[int], pasts: Sequence[int], ids: Sequence[Sequence[int]], last_only: bool
    ) -> Tensor:
        parts: list[Tensor] = []
        ids_bt = torch.tensor([list(row) for row in ids], device=self._device)
        for start in range(0, ids_bt.shape[1], LONGEST_CHUNK_TOKENS):
            chunk_bt = ids_bt[:, start : start + LONGEST_CHUNK_TOKENS]
            x_btd = self._read(slots, [past + start for past in pasts], chunk_bt)
            parts = [x_btd[:, -1:]] if last_only else [*parts, x_btd]
        return torch.cat(parts, dim=1)

    def _read(self, slots: Sequence[int], pasts: Sequence[int], ids_bt: Tensor) -> Tensor:
        model, shape = self._model, self._model.shape
        view = _SlotView(slots, pasts, ids_bt.shape[1], self._device)
        x_btd = F.embedding(ids_bt, model.embedding).to(model.compute_dtype)
        if shape.layout == "textbook":  # as in Transformer.hidden
            if shape.is_tied:
                x_btd = x_btd * shape.d_model**0.5
            x_btd = x_btd + sinusoids(view.queries_bt, shape.d_model).to(x_btd.dtype)
        positions = _describe(model, view)
        for block, layer in zip(model.blocks, self._layers, strict=True):
            view.layer = layer
            x_btd = block.forward(x_btd, positions, view)
        return x_btd if model.norm is None else model.norm(x_btd)


class _SlotView:
    """What a block sees as its cache: writes each row's keys where they belong, returns all of them, ends aligned."""

    layer: LayerCache

    def __init__(self, slots: Sequence[int], pasts: Sequence[int], count: int, device: torch.device) -> None:
        pasts_b1 = torch.tensor(pasts, device=device)[:, None]
        end = max(pasts) + count
        self.queries_bt = pasts_b1 + torch.arange(count, device=device)
        self.keys_bs = pasts_b1 + count - end + torch.arange(end, device=device)  # negative: before the row's start
        self._slots_b1 = torch.tensor(slots, device=device)[:, None]
        # One slot is a view of its cache; several are gathered, from position 0 (masked) where there is nothing.
        self._alone = (slots[0], pasts[0], end) if len(slots) == 1 else None

    def extend(self, k_bkte: Tensor, v_bkte: Tensor) -> tuple[Tensor, Tensor]:
        return self._extend(self.layer.keys, k_bkte), self._extend(self.layer.values, v_bkte)

    def _extend(self, cache: Tensor, new_bkte: Tensor) -> Tensor:
        if self._alone is not None:
            slot, past, end = self._alone
            cache[slot, :, past:end] = new_bkte[0]
            return cache[slot : slot + 1, :, :end]
        cache[self._slots_b1, :, self.queries_bt] = new_bkte.transpose(1, 2)
        return cache[self._slots_b1, :, self.keys_bs.clamp_min(0)].transpose(1, 2)


def _describe(model: Transformer, view: _SlotView) -> Positions:
    shape, dtype = model.shape, model.compute_dtype
    keys_b1s, queries_bt1 = view.keys_bs[:, None], view.queries_bt[..., None]
    is_hidden_bts = (keys_b1s > queries_bt1) | (keys_b1s < 0)
    bias_bts = torch.zeros(is_hidden_bts.shape, device=is_hidden_bts.device).masked_fill_(is_hidden_bts, MASKED)
    cos = sin = distance_sd = None
    if shape.layout in ("qwen3", "llama"):
        cos, sin = (table[:, None] for table in rotary_table(view.queries_bt, shape.head_dim, shape.rope_theta))
    if shape.layout == "chinchilla":
        distances = torch.arange(view.keys_bs.shape[1] - 1, -1, -1, device=view.keys_bs.device)
        distance_sd = sinusoids(distances, shape.d_model).to(dtype)
    return Positions(bias_bts[:, None].to(dtype), cos, sin, distance_sd, False)


def _empty_layer(size_bkse: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> LayerCache:
    layer = LayerCache((0, *size_bkse[1:]), dtype, device)
    # Not zeros: untouched pages of a large cache then cost no memory.
    layer.keys = torch.empty(size_bkse, dtype=dtype, device=device)
    layer.values = torch.empty(size_bkse, dtype=dtype, device=device)
    return layer
