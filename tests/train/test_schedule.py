"""Schedules against closed forms, torch's and transformers' own, and the trunk-branch identity."""

from __future__ import annotations

import math

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_lm.core.errors import ConfigError
from chinchilla_lm.train.config import ScheduleConfig
from chinchilla_lm.train.schedule import branch_schedule, learning_rate_factor


@st.composite
def schedules(draw):
    steps = draw(st.integers(1, 300))
    warmup = draw(st.integers(0, steps))
    kind = draw(st.sampled_from(["wsd", "cosine", "linear"]))
    decay = draw(st.integers(0, steps - warmup)) if kind == "wsd" else 0
    final = draw(st.floats(0, 1))
    return ScheduleConfig(kind=kind, steps=steps, warmup_steps=warmup, decay_steps=decay, final_fraction=final)


@given(schedules())
def test_factor_lies_in_0_1_rises_then_falls(schedule):
    factors = [learning_rate_factor(step, schedule) for step in range(schedule.steps + 1)]
    assert all(0 <= factor <= 1 for factor in factors)
    warm, rest = factors[: schedule.warmup_steps], factors[schedule.warmup_steps :]
    assert warm == sorted(warm)
    assert rest == sorted(rest, reverse=True)


@pytest.mark.parametrize(("kind", "decay_steps"), [("wsd", 20), ("cosine", 0), ("linear", 0)])
def test_borders_are_exact(kind, decay_steps):
    schedule = ScheduleConfig(kind=kind, steps=100, warmup_steps=10, decay_steps=decay_steps)
    assert learning_rate_factor(0, schedule) == 1 / 10
    assert learning_rate_factor(9, schedule) == 1.0
    assert learning_rate_factor(10, schedule) == 1.0
    assert learning_rate_factor(100, schedule) == 0.0
    assert learning_rate_factor(99, schedule) > 0.0
    if kind == "wsd":
        assert learning_rate_factor(80, schedule) == 1.0
        assert learning_rate_factor(81, schedule) == 1 - math.sqrt(1 / 20)


@pytest.mark.parametrize(("kind", "decay_steps"), [("wsd", 20), ("cosine", 0), ("linear", 0)])
def test_decay_ends_at_the_final_fraction(kind, decay_steps):
    schedule = ScheduleConfig(kind=kind, steps=100, decay_steps=decay_steps, final_fraction=0.1)
    assert learning_rate_factor(0, schedule) == 1.0
    assert learning_rate_factor(100, schedule) == pytest.approx(0.1, abs=1e-15)


def _torch_factors(make_scheduler, steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make_scheduler(optimizer)
    factors = []
    for _ in range(steps):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return factors


def test_cosine_equals_torch():
    schedule = ScheduleConfig(kind="cosine", steps=50, final_fraction=0.1)
    theirs = _torch_factors(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 50, eta_min=0.1), 50)
    assert [learning_rate_factor(step, schedule) for step in range(50)] == pytest.approx(theirs)


def test_linear_equals_torch():
    schedule = ScheduleConfig(kind="linear", steps=50)
    theirs = _torch_factors(lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.0, total_iters=50), 50)
    assert [learning_rate_factor(step, schedule) for step in range(50)] == pytest.approx(theirs, abs=1e-12)


def test_wsd_equals_transformers_1_sqrt():
    schedule = ScheduleConfig(steps=50, warmup_steps=5, decay_steps=10)
    theirs = _torch_factors(
        lambda o: transformers.get_wsd_schedule(
            o, num_warmup_steps=5, num_stable_steps=35, num_decay_steps=10, decay_type="1-sqrt"
        ),
        50,
    )
    mine = [learning_rate_factor(step, schedule) for step in range(50)]
    assert mine[5:] == pytest.approx(theirs[5:])  # their warm-up starts at 0, which wastes an update


@given(st.integers(0, 20), st.integers(0, 100), st.integers(1, 50))
def test_branch_equals_its_trunk_before_the_cooldown(warmup, extra, decay):
    trunk = ScheduleConfig(steps=1000, warmup_steps=warmup)
    branch = branch_schedule(trunk, branch_step=warmup + extra, decay_steps=decay)
    assert branch.steps == warmup + extra + decay
    for step in range(warmup + extra + 1):
        assert learning_rate_factor(step, branch) == learning_rate_factor(step, trunk)
    assert learning_rate_factor(branch.steps, branch) == 0.0


@pytest.mark.parametrize("branch_step", [3, 90])
def test_branch_outside_the_constant_part_is_refused(branch_step):
    trunk = ScheduleConfig(steps=100, warmup_steps=5, decay_steps=20)
    with pytest.raises(ConfigError, match=r"5\.\.80"):
        branch_schedule(trunk, branch_step=branch_step, decay_steps=5)
