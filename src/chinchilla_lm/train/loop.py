"""THE training loop: pretraining, fine-tuning and adversarial training differ only by their batches and objective.

`train` is a generator of step records. At each yield the model, the optimizer and torch's random state are those
after `record.step` updates, so whoever consumes it may save, evaluate, or stop. It starts from any step. It knows
nothing of files, printing or evaluation.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from chinchilla_lm.core.errors import TrainingDiverged
from chinchilla_lm.train.config import ScheduleConfig
from chinchilla_lm.train.objective import Objective
from chinchilla_lm.train.placement import Placement
from chinchilla_lm.train.schedule import learning_rate_factor

# Reference cycles are rare in the loop, and a full collection stops it (~500 ms in nanochat): one each so many steps.
_COLLECT_EVERY_STEPS = 1000


class Batches(Protocol):
    """A source of global batches, a pure function of the step."""

    def at(self, step: int, /) -> tuple[np.ndarray[Any, Any], ...]:
        """Return the arrays of one update, each with the rows on its first axis."""
        ...


@dataclass(frozen=True, kw_only=True)
class LoopPlan:
    """What the loop must know of a run.

    Attributes:
        schedule: the learning rate's kind and lengths.
        micro_batch: rows of one pass, >= 1; the last pass of a batch may be shorter.
        clip_norm: the global gradient norm is scaled down to this; inf: never.
        start_step: updates already in the weights.
        stop_step: updates after which to stop, at most schedule.steps; None: schedule.steps.
        start_tokens: targets already trained on.
    """

    schedule: ScheduleConfig
    micro_batch: int
    clip_norm: float = 1.0
    start_step: int = 0
    stop_step: int | None = None
    start_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One update, as it was.

    Attributes:
        step: updates done, this one included.
        tokens: targets trained on so far.
        loss: mean over the batch's targets before the update, nats per token.
        lr: rate of the first parameter group in this update.
        grad_norm: global L2 norm of the mean loss's gradient, before clipping.
        step_seconds: wall time of this update, the batch included.
    """

    step: int
    tokens: int
    loss: float
    lr: float
    grad_norm: float
    step_seconds: float


def train(
    model: nn.Module,
    batches: Batches,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    plan: LoopPlan,
    placement: Placement,
) -> Generator[StepRecord, None, None]:
    """Train, one update for each record.

    Args:
        model: on `placement.device`; left in training mode.
        batches: `at(step)` for step in start_step..stop_step - 1.
        objective: (model, batch) -> (loss_sum, target_count).
        optimizer: each group has "lr_peak".
        plan: schedule, micro-batch, clipping, where to start and stop.
        placement: device and threads.

    Yields:
        A record after each update.

    Raises:
        TrainingDiverged: the loss or the gradient is nan or infinite. The update is not applied: the weights are those
            of the last record.
    """
    stop_step = plan.schedule.steps if plan.stop_step is None else plan.stop_step
    assert 0 <= plan.start_step <= stop_step <= plan.schedule.steps, plan
    torch.set_num_threads(placement.threads)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    tokens = plan.start_tokens
    with _without_garbage_collection():
        for step in range(plan.start_step, stop_step):
            started = time.perf_counter()
            if not model.training:
                model.train()
            lr = _set_learning_rate(optimizer, learning_rate_factor(step, plan.schedule))
            loss_sum, target_count = _accumulate_gradients(model, batches.at(step), objective, plan, placement)
            loss, grad_norm = _normalise_gradients(parameters, loss_sum, target_count, plan.clip_norm)
            if not (math.isfinite(loss) and math.isfinite(grad_norm)):
                optimizer.zero_grad(set_to_none=True)
                raise TrainingDiverged(
                    f"step {step + 1}: loss {loss}, gradient norm {grad_norm} at lr {lr:.3g} must be finite; weights "
                    f"are those of step {step}: try half the peak learning rates, or a longer warm-up"
                )
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            tokens += target_count
            if (step + 1) % _COLLECT_EVERY_STEPS == 0:
                gc.collect()
            yield StepRecord(
                step=step + 1,
                tokens=tokens,
                loss=loss,
                lr=lr,
                grad_norm=grad_norm,
                step_seconds=time.perf_counter() - started,
            )


def _set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    for group in optimizer.param_groups:
        group["lr"] = factor * group["lr_peak"]
    return optimizer.param_groups[0]["lr"]


def _accumulate_gradients(
    model: nn.Module,
    batch: tuple[np.ndarray[Any, Any], ...],
    objective: Objective,
    plan: LoopPlan,
    placement: Placement,
) -> tuple[Tensor, int]:
    """Add up the gradient of the *summed* loss over micro-batches; return that sum and how many targets it has."""
    rows = batch[0].shape[0]
    loss_sum, target_count = torch.zeros((), device=placement.device), 0
    for first in range(0, rows, plan.micro_batch):
        part = tuple(
            torch.from_numpy(array[first : first + plan.micro_batch]).to(placement.device, non_blocking=True)
            for array in batch
        )
        part_loss, part_targets = objective(model, part)
        part_loss.backward()
        loss_sum += part_loss.detach()
        target_count += part_targets
    return loss_sum, target_count


def _normalise_gradients(
    parameters: list[nn.Parameter], loss_sum: Tensor, target_count: int, clip_norm: float
) -> tuple[float, float]:
    """Turn the gradient of the sum into that of the mean, clipped; return (mean loss, its gradient norm unclipped)."""
    assert target_count > 0, "a batch without targets"
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm_of_sum = torch.nn.utils.get_total_norm(gradients)
    # One wait for the device a step: both numbers together, needed before the update to keep the weights good.
    loss, grad_norm = (torch.stack((loss_sum, norm_of_sum.float())) / target_count).tolist()
    if math.isfinite(loss) and math.isfinite(grad_norm):
        shrink = min(1.0, clip_norm / grad_norm) if grad_norm > 0 else 1.0
        torch._foreach_mul_(gradients, shrink / target_count)  # pyright: ignore[reportPrivateImportUsage]
    return loss, grad_norm


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Freeze what exists and collect only by hand until the block ends."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()
