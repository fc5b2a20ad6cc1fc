"""One call that asks everything: silent on a good sweep, plain about a bad one, JSON throughout."""

from __future__ import annotations

import json

import numpy as np
import pytest

from chinchilla_lm.core.errors import FitError
from chinchilla_lm.laws.fitting.additive import fit_additive
from chinchilla_lm.laws.forms.additive import AdditiveLaw
from chinchilla_lm.laws.table import RunTable
from chinchilla_lm.laws.trust.diagnosis import diagnose

TRUTH = AdditiveLaw(E=1.8, A=482.0, B=2085.0, alpha=0.348, beta=0.366)


def table_of(seed=0):
    flops = np.repeat(10.0 ** np.arange(17.0, 20.6, 0.5), 9)
    params = np.array([TRUTH.optimum(c)[0] for c in flops]) * np.tile(np.geomspace(0.1, 10, 9), 8)
    tokens = flops / 6 / params
    loss = TRUTH.loss(params, tokens) * np.exp(0.003 * np.random.default_rng(seed).normal(size=len(flops)))
    return RunTable(params=params, tokens=tokens, flops=flops, loss=loss)


def diagnosed(table, **options):
    return diagnose(table, fit_additive(table.params, table.tokens, table.loss), **options)


@pytest.fixture(scope="module")
def epoch(epoch_table):
    return diagnosed(epoch_table)


@pytest.fixture(scope="module")
def olmo(olmo_to_1b):
    return diagnosed(olmo_to_1b, is_thorough=True)


def test_a_good_sweep_of_a_true_law_gives_hardly_a_warning():
    # Four tables, six questions at chances of 1 to 5 % each: one false alarm is expected.
    assert sum(len(diagnosed(table_of(seed)).warnings) for seed in range(4)) <= 3


def test_epoch_s_runs_are_said_to_drift_and_to_hang_on_one_budget(epoch):
    assert epoch.drift.is_drifting
    assert epoch.identifiability.is_a_known
    assert any("drifts beyond its errors" in warning for warning in epoch.warnings)
    assert any("without budget" in warning for warning in epoch.warnings)
    assert epoch.influence.budgets[0].a_change == pytest.approx(-0.088, abs=0.01)


def test_every_warning_is_one_line_with_a_way_out(epoch, olmo):
    for warning in (*epoch.warnings, *olmo.warnings):
        assert "\n" not in warning
        assert ";" in warning  # what is wrong; the way out


def test_the_thorough_diagnosis_finds_forms_that_predict_the_ladder_better(olmo):
    errors = {score.form: score.backtest_percent for score in olmo.comparison.scores}
    assert errors["coupled"] < 0.5 * errors["additive"]
    assert any("form predicts hidden runs with" in warning and "the stack" in warning for warning in olmo.warnings)


def test_the_records_are_json(epoch, olmo):
    for found in (epoch, olmo):
        record = json.loads(json.dumps(found.to_dict()))
        assert record["schema"] == "diagnosis/1"
        assert {"identifiability", "drift", "residuals", "influence", "selftest", "forms", "warnings"} <= set(record)


def test_checkpoints_of_one_run_are_told_to_go_together():
    table = table_of()
    fit = fit_additive(table.params, table.tokens, table.loss)
    assert diagnose(table, fit, labels=np.repeat(np.arange(9), 8)).residuals.n_groups == 9


def test_a_few_runs_are_refused():
    table = table_of()
    few = RunTable(**{name: getattr(table, name)[:7] for name in ("params", "tokens", "flops", "loss")})
    with pytest.raises(FitError, match="add runs"):
        diagnosed(few)
