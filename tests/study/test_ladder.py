"""The ladder's design against its own rules, by recomputing what it promises."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_lm.core.errors import BudgetError
from chinchilla_lm.laws.count import count_parameters, training_flops_per_token
from chinchilla_lm.laws.shapes import nearest_shape
from chinchilla_lm.study import ladder as module
from chinchilla_lm.study.ladder import asking_share, design_ladder, edge_size, prior_params, rung_sizes, tokens_for
from chinchilla_lm.study.request import Allowance
from chinchilla_lm.study.speeds import MachineSpeeds, SpeedTable, speed_table

VOCAB, CONTEXT = 1024, 128


def shape_near(params: float):
    return nearest_shape(params, vocab=VOCAB, context=CONTEXT, d_min=16)


def constant_speed(flops_per_s: float, n_workers: int = 2) -> MachineSpeeds:
    """A machine that does the same FLOPs a second at every size, twice as many on the whole."""
    costs = tuple(training_flops_per_token(shape_near(params)) for params in (5e4, 5e5, 5e6))
    worker = SpeedTable(flops_per_token=costs, tokens_per_s=tuple(flops_per_s / cost for cost in costs))
    return MachineSpeeds(worker=worker, whole=worker.scaled(n_workers), n_workers=n_workers)


def design(allowance: Allowance, **changes):
    settings = {"sweep_share": 0.3, "least_rung_flops": 3e11, "shape_near": shape_near, **changes}
    return design_ladder(allowance, 30.0 if allowance.kind == "seconds" else 0.0, constant_speed(5e10), **settings)


@given(st.floats(min_value=13.5, max_value=24.0))
def test_a_flops_budget_is_kept_and_the_top_rung_is_at_most_a_tenth(exponent):
    budget = Allowance(kind="flops", amount=10**exponent)
    made = design(budget)
    assert made.sweep_cost <= 0.3 * budget.amount * (1 + 1e-9)
    assert made.sweep_cost + made.final_flops <= budget.amount * (1 + 1e-9)
    assert made.rung_flops[-1] <= 0.1 * made.final_flops * (1 + 1e-9) or made.rung_flops[-1] < 1e12


@pytest.mark.parametrize("minutes", [5, 20, 60, 600])
def test_a_time_budget_gives_rungs_a_factor_sqrt_ten_apart_above_the_floor(minutes):
    made = design(Allowance(kind="seconds", amount=60.0 * minutes))
    ratios = [high / low for low, high in zip(made.rung_flops[:-1], made.rung_flops[1:], strict=True)]
    assert ratios == pytest.approx([math.sqrt(10)] * len(ratios))
    assert 2 <= len(made.rung_flops) <= module.MOST_RUNGS
    assert made.rung_flops[0] >= 3e11 * 0.99
    assert made.sweep_cost <= 0.3 * 60 * minutes


def test_asking_the_models_is_part_of_the_sweeps_share_of_the_budget():
    budget = Allowance(kind="seconds", amount=1200.0)
    plain, asking = design(budget), design(budget, asking_tokens=2e5)
    assert asking.sweep_cost <= 0.3 * (1200.0 - 30.0)
    assert asking.rung_flops[-1] < plain.rung_flops[-1]
    speeds = constant_speed(5e10)
    share = asking_share(plain, budget, speeds, shape_near, 2e5)
    flops = sum(training_flops_per_token(shape_near(prior_params(rung))) for rung in plain.rung_flops)
    rounds = math.ceil(plain.sizes_per_rung / 2)
    final = training_flops_per_token(shape_near(prior_params(plain.final_flops)))
    assert share == pytest.approx(2e5 * (rounds * flops / 5e10 + final / 1e11) / 1200.0)


def test_more_time_never_gives_a_lower_top_rung():
    tops = [design(Allowance(kind="seconds", amount=60.0 * m)).rung_flops[-1] for m in (5, 10, 20, 40, 80)]
    assert tops == sorted(tops)


@pytest.mark.parametrize("seconds", [25.0, 40.0])
def test_a_budget_too_small_for_two_rungs_is_refused_with_what_would_do(seconds):
    with pytest.raises(BudgetError, match="give at least"):
        design(Allowance(kind="seconds", amount=seconds))


def test_few_trusted_rungs_are_said():
    assert "rough" in design(Allowance(kind="seconds", amount=240.0)).notes[0]
    assert design(Allowance(kind="seconds", amount=7200.0)).notes == ()


@given(st.floats(min_value=11.5, max_value=19.0), st.integers(min_value=1, max_value=6))
def test_sizes_are_distinct_in_the_corridor_and_around_the_optimum(exponent, count):
    flops = 10**exponent
    shapes = rung_sizes(flops, prior_params(flops), count, vocab=VOCAB, context=CONTEXT, unique_tokens=1e12)
    sizes = [count_parameters(shape).matmul for shape in shapes]
    assert sizes == sorted(set(sizes))
    for shape, params in zip(shapes, sizes, strict=True):
        assert 1 <= tokens_for(shape, flops) / params <= 150
    if exponent > 13 and count >= 3:
        assert sizes[0] < prior_params(flops) < sizes[-1]


def test_no_run_reads_a_small_text_more_than_four_times():
    shapes = rung_sizes(1e13, prior_params(1e13), 4, vocab=VOCAB, context=CONTEXT, unique_tokens=5e5)
    assert shapes
    assert all(tokens_for(shape, 1e13) <= 4 * 5e5 for shape in shapes)


def test_the_size_beyond_an_edge_lies_beyond_it_and_a_middle_has_none():
    shapes = rung_sizes(1e13, prior_params(1e13), 3, vocab=VOCAB, context=CONTEXT, unique_tokens=1e12)
    size = [count_parameters(shape).matmul for shape in shapes]
    smaller = edge_size(shapes, shapes[0], 1e13, unique_tokens=1e12)
    larger = edge_size(shapes, shapes[-1], 1e13, unique_tokens=1e12)
    assert smaller is not None
    assert larger is not None
    assert count_parameters(smaller).matmul < size[0]
    assert count_parameters(larger).matmul > size[-1]
    assert edge_size(shapes, shapes[1], 1e13, unique_tokens=1e12) is None


def test_speeds_are_met_at_the_measured_shapes_and_a_power_law_between():
    costs, speeds = (1e6, 1e7), (1e4, 2e3)
    table = speed_table(
        [{"flops_per_token": c, "tokens_per_s": s} for c, s in zip(costs, speeds, strict=True)]
        + [{"flops_per_token": 1e6, "tokens_per_s": 1e4}]
    )
    shape = shape_near(3e5)
    cost = training_flops_per_token(shape)
    slope = math.log(0.2) / math.log(10)
    assert table.tokens_per_s_of(shape) == pytest.approx(1e4 * (cost / 1e6) ** slope)
