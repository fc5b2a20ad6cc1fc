"""What the runs cannot tell: inflation against a regression, a ladder whose a hangs on the objective, flat designs."""

from __future__ import annotations

import json

import numpy as np
import pytest

from chinchilla_lm.laws.fitting.additive import fit_additive
from chinchilla_lm.laws.fitting.intervals import fitted_problem
from chinchilla_lm.laws.forms.additive import AdditiveLaw
from chinchilla_lm.laws.table import RunTable
from chinchilla_lm.laws.trust.identifiability import identify
from chinchilla_lm.laws.trust.robust import slopes_of

TRUTH = AdditiveLaw(E=1.8, A=482.0, B=2085.0, alpha=0.348, beta=0.366)


def table_of(params, tokens, noise=0.003, seed=0):
    errors = noise * np.random.default_rng(seed).normal(size=len(params))
    return RunTable(
        params=params, tokens=tokens, flops=6 * params * tokens, loss=TRUTH.loss(params, tokens) * np.exp(errors)
    )


def wide_table():
    sizes, lengths = np.meshgrid(np.geomspace(1e7, 1e10, 7), np.geomspace(1e9, 1e12, 7))
    return table_of(sizes.ravel(), lengths.ravel())


def test_inflation_is_that_of_regressing_each_slope_on_the_others():
    table = wide_table()
    fit = fit_additive(table.params, table.tokens, table.loss)
    found = identify(table, fit)
    _, slopes = slopes_of(*fitted_problem(table, fit))
    for place, name in enumerate(("A", "B", "E", "alpha", "beta")):
        others = np.delete(slopes, place, axis=1)
        left = slopes[:, place] - others @ np.linalg.lstsq(others, slopes[:, place], rcond=None)[0]
        share = (left**2).sum() / (slopes[:, place] ** 2).sum()
        assert found.inflation[name] == pytest.approx(1 / share, rel=1e-6)
    assert found.inflation_uncentred["alpha"] > found.inflation["alpha"]


def test_a_wide_design_knows_its_exponent():
    table = wide_table()
    found = identify(table, fit_additive(table.params, table.tokens, table.loss))
    assert found.is_a_known
    assert found.warnings == ()
    assert found.ends == 1


def test_the_olmo_ladder_to_1b_does_not_know_a(olmo_to_1b):
    found = identify(olmo_to_1b, fit_additive(olmo_to_1b.params, olmo_to_1b.tokens, olmo_to_1b.loss))
    assert found.a_by_objective["huber 1e-3"] == pytest.approx(0.72, abs=0.005)
    assert found.a_by_objective["least squares"] == pytest.approx(0.50, abs=0.005)
    assert not found.is_a_known
    assert "do not identify a" in found.warnings[0]
    assert "give a prior" in found.warnings[0]


def test_epoch_s_a_moves_with_the_objective_as_published(epoch_table):
    found = identify(epoch_table, fit_additive(epoch_table.params, epoch_table.tokens, epoch_table.loss))
    assert found.a_by_objective["huber 1e-3"] == pytest.approx(0.514, abs=5e-4)
    assert found.a_by_objective["least squares"] == pytest.approx(0.530, abs=5e-4)
    assert found.a_by_objective["lad"] == pytest.approx(0.5126, abs=5e-4)
    assert found.is_a_known


def test_runs_at_one_ratio_of_tokens_know_nothing_of_a():
    params = np.geomspace(1e7, 1e10, 20)
    table = table_of(params, 20 * params)
    found = identify(table, fit_additive(table.params, table.tokens, table.loss))
    assert not found.is_a_known
    assert found.condition > 1e6
    assert max(found.inflation.values()) > 1e4


def test_the_record_is_json():
    table = wide_table()
    record = identify(table, fit_additive(table.params, table.tokens, table.loss)).to_dict()
    assert json.loads(json.dumps(record))["is_a_known"] is True
