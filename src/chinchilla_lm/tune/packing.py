"""Several examples in one row, none of which sees another: packing isolated by a document mask.

A packed row holds the inputs of whole examples one after the other; `documents_bt` numbers them from 0, padding is -1.
A token attends to earlier tokens of its own document only, and positions restart with each document, so that every loss
is the one of the example alone (a test holds both backbones to 1e-5). Without the mask examples contaminate each other:
functionary #265 measured a loss of 37.6 where the isolated one is 44.1; TRL isolates on FlashAttention alone.

On our backbone the mask takes attention off its fused kernel, which knows the causal triangle only; everything else
keeps its kernels. Rows of equal length (length buckets) waste little and keep it: there packing is not the default.
Axes: b rows, t positions, d width, s keys. Never tokenises or trains.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from chinchilla_lm.model import kernels
from chinchilla_lm.model.attention import MASKED, Positions
from chinchilla_lm.model.layers import rotary_table
from chinchilla_lm.model.transformer import Transformer
from chinchilla_lm.tune.own_backbone import OwnBackbone
from chinchilla_lm.tune.task import IGNORED

if TYPE_CHECKING:
    from chinchilla_lm.tune.backbone import Backbone

PADDING = -1
"""Document number of padding. Padding sees padding, so that no row of scores is masked whole (a softmax of nothing)."""


def pack_lengths(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Divide examples over as few rows as first-fit-decreasing finds.

    Args:
        lengths: tokens of each example, 1..capacity.
        capacity: tokens of a row.

    Returns:
        Indices of the examples in each row; every index exactly once; rows of examples in their given order.

    Source: Johnson 1973 (at most 11/9 of the fewest rows, plus 6/9).
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        assert 1 <= lengths[index] <= capacity, (lengths[index], capacity)
        place = next((row for row, left in enumerate(room) if left >= lengths[index]), None)
        if place is None:
            rows.append([])
            room.append(capacity)
            place = len(rows) - 1
        rows[place].append(index)
        room[place] -= lengths[index]
    return [sorted(row) for row in rows]


def pack_examples(
    inputs: Sequence[np.ndarray[Any, Any]], targets: Sequence[np.ndarray[Any, Any]], capacity: int
) -> tuple[np.ndarray[Any, Any], ...]:
    """Put examples into rows.

    Args:
        inputs: ids of each example, (t_i) int64.
        targets: the token after each input, or -100; (t_i) int64.
        capacity: tokens of a row.

    Returns:
        (ids_bt, lengths_b, targets_bt, documents_bt), int64; lengths count all the examples of a row.
    """
    plan = pack_lengths([len(ids) for ids in inputs], capacity)
    lengths = [sum(len(inputs[index]) for index in row) for row in plan]
    ids_bt = np.zeros((len(plan), max(lengths)), dtype=np.int64)
    targets_bt, documents_bt = np.full_like(ids_bt, IGNORED), np.full_like(ids_bt, PADDING)
    for place, row in enumerate(plan):
        start = 0
        for document, index in enumerate(row):
            end = start + len(inputs[index])
            ids_bt[place, start:end], targets_bt[place, start:end] = inputs[index], targets[index]
            documents_bt[place, start:end] = document
            start = end
    return ids_bt, np.asarray(lengths, dtype=np.int64), targets_bt, documents_bt


def packed_token_losses(backbone: Backbone, ids_bt: Tensor, targets_bt: Tensor, documents_bt: Tensor) -> Tensor:
    """-ln p(target) of packed rows, float32 nats, losses_bt, 0 where the target is -100.

    Args:
        backbone: causal, ours or transformers'.
        ids_bt: token ids.
        targets_bt: already shifted, -100 where there is none.
        documents_bt: document of each token, -1 for padding.
    """
    assert backbone.kind == "causal", backbone.kind
    targets_n = targets_bt.flatten()
    chosen_n = (targets_n != IGNORED).nonzero()[:, 0]
    if isinstance(backbone, OwnBackbone):
        x_nd = packed_hidden(backbone.transformer, ids_bt, documents_bt).flatten(0, 1)
        losses_n = backbone.transformer.losses_of(x_nd[chosen_n], targets_n[chosen_n])
    else:
        hub: Any = backbone
        x_nd = _packed_hub_hidden(hub, ids_bt, documents_bt).flatten(0, 1)
        losses_n = hub._losses_of(x_nd[chosen_n], targets_n[chosen_n])
    return losses_n.new_zeros(len(targets_n)).index_copy(0, chosen_n, losses_n).view_as(targets_bt)


def packing_obstacle(backbone: Backbone, method: str) -> str:
    """Why examples cannot be packed for this model and method, one line; empty where they can."""
    if backbone.kind != "causal":
        return "packing is for decoders"
    if method in ("prompt", "prefix"):
        return f"method {method} puts its own tokens before each row, once"
    if isinstance(backbone, OwnBackbone):
        layout = backbone.transformer.shape.layout
        return "" if layout in ("qwen3", "llama") else f"layout {layout} has no positions that restart"
    hub: Any = backbone
    if "position_ids" not in inspect.signature(hub.body.forward).parameters:
        return f"{type(hub.body).__name__} takes no positions from outside"
    return "" if hub._has_plain_head() else f"{type(hub.module).__name__} changes its logits after the output matrix"


def restarted_positions(documents_bt: Tensor) -> Tensor:
    """Positions that count from 0 in each document, int64 (b, t)."""
    index_t = torch.arange(documents_bt.shape[1], device=documents_bt.device)
    is_start_bt = torch.ones_like(documents_bt, dtype=torch.bool)
    is_start_bt[:, 1:] = documents_bt[:, 1:] != documents_bt[:, :-1]
    starts_bt = torch.where(is_start_bt, index_t, 0).cummax(dim=1).values
    return index_t - starts_bt


def isolating_bias(documents_bt: Tensor, dtype: torch.dtype, masked: float) -> Tensor:
    """0 where a query may see a key (own document, not later), else `masked`: (b, 1, t, s)."""
    t = documents_bt.shape[1]
    is_own_bts = documents_bt[:, :, None] == documents_bt[:, None, :]
    is_causal_ts = torch.ones(t, t, dtype=torch.bool, device=documents_bt.device).tril()
    bias_bts = torch.full(is_own_bts.shape, masked, dtype=dtype, device=documents_bt.device)
    return bias_bts.masked_fill_(is_own_bts & is_causal_ts, 0.0)[:, None]


def packed_hidden(model: Transformer, ids_bt: Tensor, documents_bt: Tensor) -> Tensor:
    """Last hidden states of packed rows in our Transformer (layouts qwen3, llama), as `Transformer.hidden`: x_btd."""
    shape, dtype = model.shape, model.compute_dtype
    assert shape.layout in ("qwen3", "llama"), shape.layout
    cos, sin = rotary_table(restarted_positions(documents_bt), shape.head_dim, shape.rope_theta)
    positions = Positions(isolating_bias(documents_bt, dtype, MASKED), cos[:, None], sin[:, None])
    if model.has_kernels:
        x_btd = kernels.embed(model.embedding, ids_bt, dtype)
    else:
        x_btd = F.embedding(ids_bt, model.embedding).to(dtype)
    x_btd = F.dropout(x_btd, shape.dropout, model.training)
    for block in model.blocks:
        x_btd = block(x_btd, positions)
    return x_btd if model.norm is None else model.norm(x_btd)


def _packed_hub_hidden(backbone: Any, ids_bt: Tensor, documents_bt: Tensor) -> Tensor:
    """The same of a decoder of transformers: a mask with a row for each query is used as it is given (5.23)."""
    dtype = next(backbone.module.parameters()).dtype
    with backbone._precision():
        return backbone.body(
            input_ids=ids_bt,
            attention_mask=isolating_bias(documents_bt, dtype, torch.finfo(dtype).min),
            position_ids=restarted_positions(documents_bt),
            use_cache=False,
        ).last_hidden_state
