"""Learning-rate schedules as pure functions of (step, schedule).

Steps count from 0: `learning_rate_factor(step, schedule)` is the factor that the update after `step` finished updates
uses, so the last update of a run uses step = steps - 1, and step = steps is the border where a decay to zero is zero.

A *trunk* is a wsd schedule whose cooldown lies beyond the steps trained. A *branch* continues a trunk checkpoint under
a schedule of its own, ending `decay_steps` later. Both agree on every step before the branch's cooldown, because the
factor depends on nothing but (step, schedule).
"""

from __future__ import annotations

import math
from dataclasses import replace

from chinchilla_lm.core.errors import ConfigError
from chinchilla_lm.train.config import ScheduleConfig


def learning_rate_factor(step: int, schedule: ScheduleConfig) -> float:
    """Give the fraction of the peak learning rate for one update.

    Args:
        step: updates already done, in 0..schedule.steps.
        schedule: kind and lengths, in updates.

    Returns:
        Factor in [0, 1]. Warm-up: (step + 1) / warmup_steps, so that no update is wasted on a rate of zero.

    Source: wsd with the 1-sqrt cooldown: Haegele et al. 2024 (arXiv 2405.18392), eq. 2 and sec. 3; cosine over exactly
        the length of the run: Hoffmann et al. 2022, App. B; linear to zero: Bergsma et al. 2025 (arXiv 2502.15938).
    """
    assert 0 <= step <= schedule.steps, (step, schedule.steps)
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    decay_steps = schedule.decay_steps if schedule.kind == "wsd" else schedule.steps - schedule.warmup_steps
    decay_start = schedule.steps - decay_steps
    if step < decay_start or decay_steps == 0:
        return 1.0
    progress = (step - decay_start) / decay_steps
    return schedule.final_fraction + (1 - schedule.final_fraction) * _decay_shape(schedule.kind, progress)


def branch_schedule(trunk: ScheduleConfig, *, branch_step: int, decay_steps: int) -> ScheduleConfig:
    """Make the schedule that cools a trunk down from one of its checkpoints.

    Args:
        trunk: the wsd schedule that was trained so far.
        branch_step: updates done at the checkpoint; past the warm-up, not past the trunk's own cooldown.
        decay_steps: updates of cooldown, >= 1.

    Returns:
        A wsd schedule of branch_step + decay_steps updates, equal to the trunk up to branch_step.

    Raises:
        ConfigError: the trunk's rate is not constant at branch_step.
    """
    constant_end = trunk.steps - trunk.decay_steps
    if trunk.kind != "wsd" or not trunk.warmup_steps <= branch_step <= constant_end:
        raise ConfigError(
            f"branch_step = {branch_step} of a {trunk.kind} schedule must lie where the rate is constant, "
            f"in {trunk.warmup_steps}..{constant_end} of a wsd schedule; branch there"
        )
    return replace(trunk, steps=branch_step + decay_steps, decay_steps=decay_steps)


def _decay_shape(kind: str, progress: float) -> float:
    """Fall from 1 at progress 0 to exactly 0 at progress 1."""
    if kind == "wsd":
        return 1 - math.sqrt(progress)
    if kind == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1 - progress
