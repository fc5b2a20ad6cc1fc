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


def test_a_good_sweep_of_a_true_law_gives_hardly_a_warning():
    # Five tables, six questions at chances of 1 to 5 % each: one or two false alarms are expected.
    assert sum(len(diagnosed(table_of(seed)).warnings) for seed in range(5)) <= 4


def test_epoch_s_runs_are_said_to_drift_and_to_hang_on_one_budget(epoch_table):
    found = diagnosed(epoch_table)
    assert found.drift.is_drifting
    assert found.identifiability.is_a_known
    assert any("drifts beyond its errors" in warning for warning in found.warnings)
    assert any("without budget" in warning for warning in found.warnings)
    assert found.influence.budgets[0].a_change == pytest.approx(-0.088, abs=0.01)


def test_every_warning_is_one_line_with_a_way_out(epoch_table, olmo_to_1b):
    for table in (epoch_table, olmo_to_1b):
        for warning in diagnosed(table).warnings:
            assert "\n" not in warning
            assert ";" in warning  # what is wrong; the way out


def test_the_thorough_diagnosis_finds_the_form_that_predicts_the_ladder(olmo_to_1b):
    found = diagnosed(olmo_to_1b, is_thorough=True)
    assert found.comparison.scores[0].form == "coupled"
    assert any("coupled form predicts hidden runs with 0.2 %" in warning for warning in found.warnings)


def test_the_record_is_json():
    record = json.loads(json.dumps(diagnosed(table_of(), is_thorough=True).to_dict()))
    assert record["schema"] == "diagnosis/1"
    assert {"identifiability", "drift", "residuals", "influence", "selftest", "forms", "warnings"} <= set(record)


def test_a_few_runs_are_refused():
    table = table_of()
    few = RunTable(**{name: getattr(table, name)[:7] for name in ("params", "tokens", "flops", "loss")})
    with pytest.raises(FitError, match="add runs"):
        diagnosed(few)
