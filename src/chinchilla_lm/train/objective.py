"""Objectives: what a batch is scored on. The loop asks for nothing else.

An objective takes (model, batch tensors) and returns (loss_sum, target_count): the *sum* of the losses over the batch's
targets, nats, differentiable, and how many targets it summed. The loop divides by the targets of the whole batch, so
that micro-batches of unequal target counts still give the gradient of the full batch.

Axes: b rows, t positions.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn


class Objective(Protocol):
    """Score one micro-batch: (model, batch) -> (loss_sum scalar tensor in nats, target_count)."""

    def __call__(self, model: nn.Module, batch: tuple[Tensor, ...], /) -> tuple[Tensor, int]:
        """Return the sum of losses and the number of targets it sums."""
        ...


class ScoresTokens(Protocol):
    """A language model that prices each target: `token_losses(ids_bt, targets_bt) -> losses_bt`, nats, float32."""

    def token_losses(self, ids_bt: Tensor, targets_bt: Tensor, /) -> Tensor:
        """Return -ln p(target) at every position."""
        ...


def next_token_objective(model: nn.Module, batch: tuple[Tensor, ...]) -> tuple[Tensor, int]:
    """Sum the next-token losses of every position.

    Args:
        model: anything that `ScoresTokens`.
        batch: (inputs_bt, targets_bt), int64; targets are the inputs shifted by one.

    Returns:
        (loss_sum in nats, b * t).
    """
    inputs_bt, targets_bt = batch
    losses_bt: Tensor = model.token_losses(inputs_bt, targets_bt)  # type: ignore[operator]
    return losses_bt.sum(dtype=torch.float32), targets_bt.numel()
