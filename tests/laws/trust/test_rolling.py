"""Hidden largest runs: truly hidden, exact on noise-free runs, silent where too little is left."""

from __future__ import annotations

import numpy as np
import pytest

from chinchilla_lm.laws.forms.additive import AdditiveLaw
from chinchilla_lm.laws.table import RunTable
from chinchilla_lm.laws.trust.calibration import predict
from chinchilla_lm.laws.trust.cuts import choose_cuts
from chinchilla_lm.laws.trust.rolling import forecast_optimum, predict_largest, rolling_origin

TRUTH = AdditiveLaw(E=1.8, A=482.0, B=2085.0, alpha=0.348, beta=0.366)


def table(budgets):
    flops = np.repeat(budgets, 5)
    params = np.array([TRUTH.optimum(c)[0] for c in flops]) * np.tile(np.geomspace(0.2, 5, 5), len(budgets))
    tokens = flops / 6 / params
    return RunTable(params=params, tokens=tokens, flops=flops, loss=TRUTH.loss(params, tokens))


def test_the_hidden_runs_of_a_true_law_are_met():
    tested = predict_largest(table((1e19, 3e19, 1e20, 1e21)))
    assert tested.n_fitted == 15
    assert tested.n_predicted == 5
    assert tested.median_error_percent < 1e-4


@pytest.mark.parametrize("budgets", [(1e20,), (9e19, 1e20), (1e19, 1e20)])
def test_too_few_runs_below_the_cut_give_no_test(budgets):
    assert predict_largest(table(budgets)) is None


def test_a_table_s_forecast_speaks_of_the_law_s_optimum():
    made = forecast_optimum(table((1e19, 3.16e19, 1e20, 3.16e20)), TRUTH, 3e21)
    assert 6 * made.target.params * made.target.tokens == pytest.approx(3e21)
    assert len(made.rungs) == 4
    assert made.low < TRUTH.loss(made.target.params, made.target.tokens) < made.high


def noisy(budgets, seed=0):
    made = table(budgets)
    noise = 0.003 * np.random.default_rng(seed).standard_normal(len(made.loss))
    return RunTable(params=made.params, tokens=made.tokens, flops=made.flops, loss=made.loss * np.exp(noise))


def test_every_cut_predicts_the_runs_three_to_a_hundred_times_above_it():
    runs = noisy(np.geomspace(1e18, 1e22, 9))
    casts = rolling_origin(runs)
    assert {round(cast.cut_flops / 1e18, 1) for cast in casts} > {10.0, 100.0, 1000.0}
    assert all(0.47 < cast.decades < 2.01 for cast in casts)
    for cast in casts:
        assert cast.low < cast.predicted < cast.high
        assert cast.n_seen == (runs.flops <= cast.cut_flops * 1.001).sum()
    raw = rolling_origin(table(np.geomspace(1e18, 1e22, 9)))
    assert max(abs(np.log(cast.raw_predicted / cast.actual)) for cast in raw) < 2e-3  # the prior pulls by this much


def test_hidden_runs_are_hidden_from_all_that_is_said_of_them():
    """Losses above the cut are replaced by nonsense: point, width and raw interval stay."""
    runs = noisy(np.geomspace(1e18, 1e22, 9))
    nonsense = RunTable(
        params=runs.params, tokens=runs.tokens, flops=runs.flops, loss=np.where(runs.flops > 1.1e20, 9.0, runs.loss)
    )
    cuts = [1e19, 3.1623e19, 1e20]
    for first, second in zip(
        rolling_origin(runs, cut_flops=cuts), rolling_origin(nonsense, cut_flops=cuts), strict=True
    ):
        for end in ("predicted", "low", "high", "raw_predicted", "raw_low", "raw_high"):
            assert getattr(first, end) == pytest.approx(getattr(second, end), rel=1e-9)


def test_a_hindcast_is_what_the_lower_table_would_have_been_told():
    runs = noisy(np.geomspace(1e18, 1e22, 9))
    seen = runs.flops <= 1.001e20
    lower = RunTable(params=runs.params[seen], tokens=runs.tokens[seen], flops=runs.flops[seen], loss=runs.loss[seen])
    cuts = choose_cuts(lower, 1e20)
    last = [cast for cast in rolling_origin(runs, cut_flops=cuts.tolist()) if cast.cut_flops > 0.99e20][-1]
    told = predict(lower, last.params, last.tokens, flops=1e20 * 10**last.decades)
    assert told.loss == pytest.approx(last.predicted, rel=1e-6)
    assert told.high == pytest.approx(last.high, rel=1e-6)
    assert told.raw_low == pytest.approx(last.raw_low, rel=1e-6)


def test_a_table_without_enough_below_any_cut_gives_no_hindcasts():
    assert rolling_origin(table((9e19, 1e20))) == ()
