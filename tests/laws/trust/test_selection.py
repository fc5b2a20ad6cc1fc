"""Forms compared by what they say of hidden runs: the right one wins, weights form a simplex, cuts hide."""

from __future__ import annotations

import json

import numpy as np
import pytest

from chinchilla_lm.core.errors import FitError
from chinchilla_lm.laws.forms.additive import AdditiveLaw
from chinchilla_lm.laws.forms.coupled import CoupledLaw
from chinchilla_lm.laws.forms.kaplan import KaplanLaw
from chinchilla_lm.laws.table import RunTable
from chinchilla_lm.laws.trust.groups import budget_groups, size_groups
from chinchilla_lm.laws.trust.selection import (
    RollingOrigin,
    compare_forms,
    form_fitter,
    robust_aicc,
    rolling_origin,
    stack,
    stacked_errors,
    stacked_fitter,
)

ADDITIVE = AdditiveLaw(E=1.8, A=482.0, B=2085.0, alpha=0.348, beta=0.366)
COUPLED = CoupledLaw(E=1.2, A=5e4, B=5e5, alpha=0.6, beta=0.62, kappa=0.5)
KAPLAN = KaplanLaw(alpha_N=0.076, alpha_D=0.103, N_c=6.4e13, D_c=1.8e13)


BUDGETS = 10.0 ** np.arange(17.0, 21.1, 0.5)


def table_of(law, noise=0.0, seed=0, budgets=BUDGETS):
    flops = np.repeat(budgets, 7)
    params = 0.1 * flops**0.5 * np.tile(np.geomspace(0.2, 5, 7), len(budgets))
    tokens = flops / 6 / params
    noise = np.exp(noise * np.random.default_rng(seed).normal(size=len(flops)))
    return RunTable(params=params, tokens=tokens, flops=flops, loss=law.loss(params, tokens) * noise)


@pytest.mark.parametrize(("law", "form"), [(ADDITIVE, "additive"), (COUPLED, "coupled"), (KAPLAN, "kaplan")])
def test_the_true_form_predicts_hidden_runs_best_and_gets_the_weight(law, form):
    compared = compare_forms(table_of(law, noise=0.001), ("additive", "coupled", "kaplan"))
    scores = {score.form: score for score in compared.scores}
    # The coupled form holds the other two: it may tie, never the wrong ones.
    wrong = set(scores) - {form, "coupled"}
    for other in wrong:
        assert scores[form].aicc < scores[other].aicc
        assert scores[form].backtest_percent < scores[other].backtest_percent
        assert scores[other].weight < 0.35
    assert sum(compared.weights.values()) == pytest.approx(1)
    assert json.dumps(compared.to_dict())


def test_extra_constants_cost_aicc_when_the_simple_form_is_true():
    better = 0
    for seed in range(4):
        scores = {s.form: s for s in compare_forms(table_of(ADDITIVE, 0.003, seed), ("additive", "coupled")).scores}
        better += scores["additive"].aicc < scores["coupled"].aicc
    assert better >= 3


def test_aicc_is_the_gaussian_one_for_a_large_delta():
    residuals = np.random.default_rng(0).normal(size=50)
    expected = 50 * np.log(np.mean(residuals**2)) + 2 * 6 + 2 * 6 * 7 / 43
    assert robust_aicc(residuals, 5, 1e3) == pytest.approx(expected)


def test_a_stack_learns_its_weights_below_the_cut_alone():
    table = table_of(COUPLED, noise=0.001)
    seen = []

    def watching(below):
        seen.append(float(below.flops.max()))
        return form_fitter("additive")(below)

    fitters = {"watched": watching, "coupled": form_fitter("coupled")}
    tested = rolling_origin(table, {"stacked": stacked_fitter(fitters)}, [1e20])
    assert max(seen) == pytest.approx(1e20)
    assert np.abs(tested.errors("stacked")).max() < 0.02


def test_a_cut_hides_every_run_above_it_and_no_other():
    table = table_of(ADDITIVE)
    seen_flops = []

    def watching(below):
        seen_flops.append(float(below.flops.max()))
        return lambda params, tokens: np.ones(len(params))

    tested = rolling_origin(table, {"watch": watching}, [1e20, 1e19])
    assert seen_flops == [pytest.approx(1e19), pytest.approx(1e20)]
    for cut in tested.cuts:
        hidden = tested.row[tested.cut_flops == cut]
        assert set(hidden) == set(np.flatnonzero(table.flops > cut * 1.001))
    np.testing.assert_allclose(tested.decades, np.log10(table.flops[tested.row] / tested.cut_flops), atol=1e-9)
    np.testing.assert_allclose(tested.errors("watch"), -np.log(table.loss[tested.row]))


def test_a_true_law_meets_its_hidden_runs():
    tested = rolling_origin(table_of(ADDITIVE), {"additive": form_fitter("additive")})
    assert len(tested.cuts) == 4
    assert np.abs(tested.errors("additive")).max() < 1e-4


def test_too_few_runs_below_every_cut_leave_no_case_and_equal_weights():
    table = table_of(ADDITIVE, budgets=np.array([1e20]))
    tested = rolling_origin(table, {"additive": form_fitter("additive"), "kaplan": form_fitter("kaplan")})
    assert len(tested.actual) == 0
    assert stack(tested, ["additive", "kaplan"]) == {"additive": 0.5, "kaplan": 0.5}
    assert stacked_errors(tested, ["additive", "kaplan"]) is None


def test_the_stack_is_the_constrained_minimum_a_brute_search_finds():
    rng = np.random.default_rng(4)
    actual = np.full(60, 2.0)
    errors = {name: rng.normal(mean, 0.01, 60) for name, mean in (("a", 0.03), ("b", -0.02), ("c", 0.05))}
    tested = RollingOrigin(
        cut_flops=np.repeat([1e18, 1e19], 30),
        row=np.arange(60),
        decades=np.ones(60),
        actual=actual,
        predicted={name: actual * np.exp(error) for name, error in errors.items()},
    )
    weights = np.array(list(stack(tested, ["a", "b", "c"]).values()))
    matrix = np.stack(list(errors.values()))
    moments = matrix @ matrix.T / 60
    moments += 0.1 * np.trace(moments) / 3 * np.eye(3)  # the ridge toward equal shares
    grid = rng.dirichlet(np.ones(3), 20000)
    assert weights.min() >= 0
    assert weights @ moments @ weights <= np.einsum("gi,ij,gj->g", grid, moments, grid).min() + 1e-12


def test_a_fitter_that_failed_gets_no_weight():
    def failing(below):
        raise FitError("no; do something else")

    tested = rolling_origin(table_of(ADDITIVE), {"additive": form_fitter("additive"), "failing": failing})
    assert stack(tested, ["additive", "failing"]) == {"additive": 1.0, "failing": 0.0}


def test_the_stacked_loss_lies_between_its_forms():
    compared = compare_forms(table_of(COUPLED, noise=0.002), ("additive", "kaplan"))
    far = (np.array([1e11]), np.array([1e13]))
    losses = [fit.law.loss(*far)[0] for fit in compared.fits.values()]
    assert min(losses) <= compared.stacked_loss(*far)[0] <= max(losses)


def test_runs_are_grouped_by_size_and_budget():
    table = table_of(ADDITIVE)
    assert budget_groups(table.flops).max() == 8
    assert list(budget_groups(table.flops)[:8]) == [0] * 7 + [1]
    assert list(size_groups(np.array([1e8, 1.005e8, 2e8, 9e7]))) == [1, 1, 2, 0]
    scattered = 10.0 ** np.linspace(17, 20, 31)  # no IsoFLOP sets: half-decades
    assert budget_groups(scattered).max() == 6
