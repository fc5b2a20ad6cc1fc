"""Designs: derivatives against differences, predicted errors against refits of simulated losses, floors and budgets."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from chinchilla_lm.core.errors import PlanError
from chinchilla_lm.laws.fitting.solver import centred_problem, centred_theta, natural_constants, refit
from chinchilla_lm.laws.forms.additive import AdditiveLaw
from chinchilla_lm.laws.planning.belief import fitted_belief, published_belief
from chinchilla_lm.laws.planning.candidates import Space, count_repeats
from chinchilla_lm.laws.planning.costs import CostModel
from chinchilla_lm.laws.planning.design import Made, Rules, suggest_runs
from chinchilla_lm.laws.planning.precision import (
    Belief,
    Goal,
    Misfit,
    Runs,
    Sums,
    linearise,
    size_regret,
    squared_errors,
    squared_errors_with_each,
    sums_of,
)

LAW = AdditiveLaw(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658, params_convention="total")
GOAL = Goal(flops=1e24)
TRUSTING = Misfit(coupling=0.0, drift=0.0, small_scale=0.0)
SPACE = Space(flops_low=3e17, flops_high=1e20)


def isoflop_grid(half_width):
    """Five budgets from 1e18 to 1e20 by seven sizes: 1.02e21 FLOPs."""
    flops = np.repeat(np.geomspace(1e18, 1e20, 5), 7)
    centre = np.array([LAW.optimum(float(budget))[0] for budget in flops])
    params = centre * np.tile(10 ** np.linspace(-half_width, half_width, 7), 5)
    return params, flops / 6 / params


def runs(params, tokens, trunk=None):
    return Runs(params=params, tokens=tokens, trunk=np.arange(len(params)) if trunk is None else trunk)


def columns(design):
    return np.array([run.params for run in design.runs]), np.array([run.tokens for run in design.runs])


@pytest.mark.parametrize(("half_width", "sd"), [(0.35, 0.152), (0.5, 0.107), (0.7, 0.078), (1.0, 0.056)])
def test_the_error_of_an_isoflop_grid_is_the_known_one(half_width, sd):
    linear = linearise(Belief(laws=(LAW,), misfit=TRUSTING), runs(*isoflop_grid(half_width)), goal=GOAL)
    noise, misfit = squared_errors(linear, sums_of(linear))
    assert math.sqrt(noise[0, 0]) == pytest.approx(sd, abs=0.001)
    assert misfit[0, 0] == 0


def test_derivatives_are_those_of_the_law_s_own_answers():
    params, tokens = isoflop_grid(0.5)
    belief = Belief(laws=(LAW,), noise_sd=1.0)
    linear = linearise(belief, runs(params, tokens), goal=GOAL)
    theta = centred_theta(LAW, params, tokens)
    step = 1e-6
    for column in range(5):
        answers = []
        for sign in (1, -1):
            moved = theta + sign * step * np.eye(5)[column]
            E, A, B, alpha, beta = natural_constants(moved[None], params, tokens)[0]
            law = AdditiveLaw(E=E, A=A, B=B, alpha=alpha, beta=beta)
            size, length = law.optimum(1e24)
            answers.append([*np.log(law.loss(params, tokens)), math.log(size), math.log(law.loss(size, length))])
        difference = (np.array(answers[0]) - np.array(answers[1])) / (2 * step)
        assert linear.jacobian_kn5[0, :, column] == pytest.approx(difference[:-2], abs=1e-8)
        # ln N* comes from a second difference of its own, with a step of 2 % in N.
        assert linear.goals_kg5[0, :, column] == pytest.approx(difference[-2:], rel=2e-3, abs=1e-5)


def test_the_errors_with_a_run_are_those_of_adding_it():
    params, tokens = isoflop_grid(0.5)
    trunk = np.arange(35) // 7
    linear = linearise(published_belief(), runs(params, tokens, trunk), goal=GOAL, trunk_share=0.5)
    base = sums_of(linear.rows(range(20)))
    fast = squared_errors_with_each(linear, base, 35)
    for place in (3, 20, 34):
        one = sums_of(linear.rows([place]))
        whole = Sums(
            matrix_k55=base.matrix_k55 + one.matrix_k55 - linear.prior_55,
            moment_k5q=base.moment_k5q + one.moment_k5q,
        )
        assert fast[:, place] == pytest.approx(sum(squared_errors(linear, whole)), rel=1e-8)


def test_one_run_twice_on_a_trunk_tells_less_than_on_two():
    params, tokens = isoflop_grid(0.5)
    params, tokens = np.tile(params, 2), np.tile(tokens, 2)
    belief = Belief(laws=(LAW,), misfit=TRUSTING)
    errors = []
    for trunk in (np.arange(70), np.arange(70) % 35):
        linear = linearise(belief, runs(params, tokens, trunk), goal=GOAL, trunk_share=0.5)
        errors.append(squared_errors(linear, sums_of(linear))[0][0, 0])
    # Two runs of variance 1 that share half: their mean has 3/4 instead of 1/2.
    assert errors[1] / errors[0] == pytest.approx(1.5, rel=0.01)


def test_the_regret_of_a_size_is_what_the_law_says():
    params, tokens = LAW.optimum(1e24)
    missed = LAW.loss(params * math.exp(0.1), tokens * math.exp(-0.1)) / LAW.loss(params, tokens) - 1
    assert size_regret(LAW, 1e24) * 0.01 == pytest.approx(missed, rel=0.02)


@pytest.mark.parametrize("misfit", [TRUSTING, Misfit()])
def test_a_design_s_error_is_that_of_real_refits(misfit):
    design = suggest_runs(Belief(laws=(LAW,), misfit=misfit), GOAL, 2.5e20, space=SPACE, rules=Rules(most_runs=35))
    params, tokens = columns(design)
    truth = np.asarray(LAW.loss(params, tokens))
    noise = 0.003 * np.random.default_rng(0).standard_normal((600, len(params)))
    problem = centred_problem(params, tokens, truth, delta=1.0)
    draws = refit(centred_theta(LAW, params, tokens), problem, loss_kn=truth * np.exp(noise))
    sizes, losses = [], []
    for E, A, B, alpha, beta in natural_constants(draws, params, tokens):
        law = AdditiveLaw(E=E, A=A, B=B, alpha=alpha, beta=beta)
        sizes.append(math.log(law.optimum(1e24)[0]))
        losses.append(math.log(law.loss(*law.optimum(1e24))))
    # 600 draws fix an sd to 3 %; the rest is what a straight line misses of a curved law.
    assert np.std(sizes) == pytest.approx(design.sd_after["size"].noise, rel=0.10)
    assert np.std(losses) == pytest.approx(design.sd_after["loss"].noise, rel=0.15)


@pytest.mark.parametrize(
    ("misfit", "share", "answers"), [(TRUSTING, 0.12, ("size", "loss")), (Misfit(), 0.25, ("size",))]
)
def test_a_part_of_the_compute_reaches_the_grid_s_precision(misfit, share, answers):
    # Doubting the form, a quarter of the compute leaves 5 % more noise in the loss than the grid; see bench/design.py.
    params, tokens = isoflop_grid(0.5)
    linear = linearise(Belief(laws=(LAW,), misfit=TRUSTING), runs(params, tokens), goal=GOAL)
    grid = dict(zip(GOAL.answers, np.sqrt(squared_errors(linear, sums_of(linear))[0][0]), strict=True))
    budget = share * float((6 * params * tokens).sum())
    design = suggest_runs(Belief(laws=(LAW,), misfit=misfit), GOAL, budget, space=SPACE, rules=Rules(most_runs=35))
    assert design.cost <= budget
    for answer in answers:
        assert design.sd_after[answer].noise < grid[answer]


def test_branches_buy_more_than_separate_runs():
    belief = published_belief()
    separate = suggest_runs(belief, GOAL, 1e20, space=SPACE)
    branches = suggest_runs(belief, GOAL, 1e20, space=SPACE, cost_model=CostModel(cooldown_fraction=0.2))
    ratios = [branches.sd_after[answer].total / separate.sd_after[answer].total for answer in GOAL.answers]
    assert math.prod(ratios) < 1, "what is minimised is the product of both errors"
    once = [(run.params, run.tokens) for run in branches.runs if run.role != "repeat"]
    assert len(set(once)) == len(once), "the same cooldown of the same trunk again is no new run"


def test_the_floor_shows_lack_of_fit_and_pure_error():
    design = suggest_runs(Belief(laws=(LAW,), misfit=TRUSTING), GOAL, 1e20, space=SPACE)
    roles = [run.role for run in design.runs]
    assert roles.count("floor") == 9
    assert roles.count("repeat") == 2
    assert count_repeats(*columns(design)) >= 2
    floor = [run for run in design.runs if run.role == "floor"]
    assert sum(run.cost for run in floor) <= 0.25 * 1e20
    levels = np.round(np.log10([run.flops for run in floor]), 0)
    assert len(set(levels)) >= 2
    bare = suggest_runs(Belief(laws=(LAW,)), GOAL, 1e20, space=SPACE, rules=Rules(floor_share=0, repeats=0))
    assert {run.role for run in bare.runs} == {"chosen"}


def test_runs_made_stand_in_for_the_floor_and_lower_what_is_left():
    belief = published_belief()
    first = suggest_runs(belief, GOAL, 5e19, space=SPACE)
    second = suggest_runs(
        belief, GOAL, 5e19, space=SPACE, made=Made(params=columns(first)[0], tokens=columns(first)[1])
    )
    assert {run.role for run in second.runs} == {"chosen"}
    for answer in GOAL.answers:
        assert second.sd_before[answer].total == pytest.approx(first.sd_after[answer].total, rel=0.05)
        assert second.sd_after[answer].total < second.sd_before[answer].total


def test_a_kept_trunk_is_not_paid_again():
    kept = {2e8: 2e10}
    made = Made(params=np.array([2e8]), tokens=np.array([2e10]), trunks=kept)
    design = suggest_runs(
        published_belief(), GOAL, 5e19, space=SPACE, made=made, cost_model=CostModel(cooldown_fraction=0.1)
    )
    branches = [run for run in design.runs if run.params == 2e8 and run.tokens <= 2e10]
    assert branches
    for run in branches:
        assert run.cost == pytest.approx(0.1 * run.flops)


def test_the_curve_falls_and_ends_beyond_the_budget():
    design = suggest_runs(published_belief(), GOAL, 1e20, space=SPACE)
    costs = [point.cost for point in design.curve]
    assert costs == sorted(costs)
    assert costs[0] == 0
    planned = [point for point in design.curve if point.is_planned]
    assert planned[-1].cost == pytest.approx(design.cost) == pytest.approx(sum(run.cost for run in design.runs))
    assert design.curve[-1].cost > design.budget
    assert design.curve[-1].errors["size"].total < design.sd_after["size"].total < design.sd_before["size"].total
    record = json.loads(json.dumps(design.to_dict(), allow_nan=False))
    assert record["sd_after"]["size"]["total"] == pytest.approx(
        math.hypot(record["sd_after"]["size"]["noise"], record["sd_after"]["size"]["misfit"])
    )


def test_a_design_stops_where_the_form_s_error_is_all_that_is_left():
    doubtful = Belief(laws=(LAW,), misfit=Misfit(coupling=0.2, drift=0.05, small_scale=0.05))
    design = suggest_runs(doubtful, GOAL, 1e22, space=SPACE, rules=Rules(most_runs=60, least_elasticity=0.3))
    assert design.stopped == "pays_no_more"
    assert design.cost < 1e22
    assert any("no further run pays" in reason for reason in design.reasons)


def test_a_goal_alone_is_served_best():
    belief = published_belief()
    size = suggest_runs(belief, Goal(flops=1e24, answers=("size",)), 1e20, space=SPACE)
    loss = suggest_runs(belief, Goal(flops=1e24, answers=("loss",)), 1e20, space=SPACE)
    both = suggest_runs(belief, GOAL, 1e20, space=SPACE)
    assert size.sd_after["size"].total <= 1.02 * both.sd_after["size"].total
    assert loss.sd_after["loss"].total <= 1.02 * both.sd_after["loss"].total
    assert set(size.sd_after) == {"size"}


def test_a_loss_at_a_given_model_is_a_goal():
    near = suggest_runs(published_belief(), Goal(flops=1e21, answers=("loss",), target=(2e9, 8e10)), 1e20, space=SPACE)
    far = suggest_runs(published_belief(), Goal(flops=1e24, answers=("loss",)), 1e20, space=SPACE)
    assert near.sd_after["loss"].total < far.sd_after["loss"].total


def test_seconds_are_spent_where_speeds_are_known():
    model = CostModel(flops_per_s_by_params={1e6: 1e13, 1e9: 2e14}, seconds_per_run=60.0)
    design = suggest_runs(published_belief(), GOAL, 3600 * 24 * 7, space=SPACE, cost_model=model)
    assert design.unit == "seconds"
    assert design.cost <= 3600 * 24 * 7
    assert all(run.cost > 60 for run in design.runs)


def test_belief_from_runs_holds_the_truth():
    params, tokens = isoflop_grid(0.7)
    rng = np.random.default_rng(1)
    loss = np.asarray(LAW.loss(params, tokens)) * np.exp(0.002 * rng.standard_normal(len(params)))
    belief = fitted_belief(params, tokens, loss)
    assert 0.001 < belief.noise_sd < 0.003
    sizes = np.log([law.optimum(1e24)[0] for law in belief.laws])
    assert abs(sizes.mean() - math.log(LAW.optimum(1e24)[0])) < 3 * sizes.std()
    few = fitted_belief(params[:2], tokens[:2], loss[:2])
    assert few.laws == published_belief().laws
    assert "prior" in fitted_belief(params[::5], tokens[::5], loss[::5]).source


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Space(flops_low=1e20, flops_high=1e18), "must be below"),
        (lambda: Space(flops_low=1e18, flops_high=1e19, sizes=(1e14,)).candidates(), "no run of"),
        (lambda: Goal(flops=-1.0), "must be finite"),
        (lambda: Goal(flops=1e24, answers=()), "'size' and 'loss'"),
        (lambda: Misfit(drift=-1.0), "trusts the form"),
        (lambda: Belief(laws=()), "give one"),
        (lambda: Rules(most_runs=0), "must be 1 or more"),
        (lambda: suggest_runs(published_belief(), GOAL, 1e15, space=SPACE), "pays no run"),
        (lambda: suggest_runs(published_belief(), GOAL, math.nan, space=SPACE), "budget"),
    ],
)
def test_requests_without_an_answer_are_refused(make, said):
    with pytest.raises(PlanError, match=said):
        make()
