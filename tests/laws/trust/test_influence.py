"""Runs and groups left out: the same as fitting without them, and a planted bad run is named."""

from __future__ import annotations

import json

import numpy as np
import pytest

from chinchilla_lm.laws.fitting.additive import fit_additive
from chinchilla_lm.laws.forms.additive import AdditiveLaw
from chinchilla_lm.laws.table import RunTable
from chinchilla_lm.laws.trust.influence import leave_out

TRUTH = AdditiveLaw(E=1.8, A=482.0, B=2085.0, alpha=0.348, beta=0.366)


def table_of(noise=0.003, seed=0, bad=None):
    flops = np.repeat(10.0 ** np.arange(17.0, 20.1, 0.5), 7)
    params = np.array([TRUTH.optimum(c)[0] for c in flops]) * np.tile(np.geomspace(0.2, 5, 7), 7)
    tokens = flops / 6 / params
    loss = TRUTH.loss(params, tokens) * np.exp(noise * np.random.default_rng(seed).normal(size=len(flops)))
    if bad is not None:
        loss[bad] *= 1.01
    return RunTable(params=params, tokens=tokens, flops=flops, loss=loss)


def fit_of(table, delta=0.02):
    return fit_additive(table.params, table.tokens, table.loss, delta=delta)


def test_leaving_a_run_out_is_fitting_without_it():
    table = table_of()
    fit = fit_of(table)
    found = leave_out(table, fit, target_flops=1e22)
    for one in found.runs[:3]:
        kept = np.arange(49) != int(one.name.split()[1]) - 1
        again = fit_additive(table.params[kept], table.tokens[kept], table.loss[kept], delta=0.02)
        assert one.a_change == pytest.approx(again.law.a - fit.law.a, abs=1e-5)
        change = 100 * (again.law.optimal_loss(1e22) / fit.law.optimal_loss(1e22) - 1)
        assert one.loss_change_percent == pytest.approx(change, abs=1e-3)


def test_the_runs_ranked_highest_are_the_highest_of_all():
    table = table_of(seed=4)
    fit = fit_of(table)
    shifts = {}
    for place in range(49):
        kept = np.arange(49) != place
        again = fit_additive(table.params[kept], table.tokens[kept], table.loss[kept], delta=0.02)
        shifts[f"run {place + 1}"] = abs(again.law.a - fit.law.a)
    found = {one.name: abs(one.a_change) for one in leave_out(table, fit).runs}
    assert max(found, key=found.get) == max(shifts, key=shifts.get)


def test_leaving_a_budget_and_a_size_out_is_fitting_without_them():
    table = table_of()
    fit = fit_of(table)
    found = leave_out(table, fit)
    assert len(found.budgets) == 7
    one = next(group for group in found.budgets if group.name.startswith("budget 1e+20"))
    kept = table.flops < 9e19
    again = fit_additive(table.params[kept], table.tokens[kept], table.loss[kept], delta=0.02)
    assert one.a_change == pytest.approx(again.law.a - fit.law.a, abs=1e-5)


def test_leverage_sums_to_the_number_of_constants():
    table = table_of()
    assert sum(leave_out(table, fit_of(table)).leverage) == pytest.approx(5, rel=1e-6)


def test_a_bad_large_run_is_named_by_its_line():
    table = table_of(noise=0.0005, bad=48)
    found = leave_out(table, fit_of(table), lines=range(2, 51))
    assert found.runs[0].name == "line 50"
    assert "without line 50 a changes by" in found.warnings[0]
    assert "repeat it" in found.warnings[0]


def test_the_record_is_json():
    table = table_of()
    record = json.loads(json.dumps(leave_out(table, fit_of(table)).to_dict()))
    assert set(record) == {"target_flops", "runs", "sizes", "budgets", "warnings"}
