"""Hidden largest runs: exact on noise-free runs, silent where too little is left."""

from __future__ import annotations

import numpy as np
import pytest

from chinchilla_lm.laws.forms.additive import AdditiveLaw
from chinchilla_lm.laws.table import RunTable
from chinchilla_lm.laws.trust.rolling import forecast_optimum, predict_largest

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
