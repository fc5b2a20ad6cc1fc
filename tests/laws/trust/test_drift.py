"""Exponents by cut: the published drift, a true law that holds, a wrong form that is caught."""

from __future__ import annotations

import json

import numpy as np
import pytest

from chinchilla_lm.laws.forms.additive import AdditiveLaw
from chinchilla_lm.laws.forms.coupled import CoupledLaw
from chinchilla_lm.laws.table import RunTable
from chinchilla_lm.laws.trust.drift import exponent_drift

TRUTH = AdditiveLaw(E=1.8, A=482.0, B=2085.0, alpha=0.348, beta=0.366)
BENT = CoupledLaw(E=1.2, A=5e5, B=5e5, alpha=0.75, beta=0.55, kappa=0.4)


def table_of(law, noise, seed=0):
    flops = np.repeat(10.0 ** np.arange(17.0, 21.1, 0.5), 9)
    params = 0.1 * flops**0.5 * np.tile(np.geomspace(0.1, 10, 9), 9)
    tokens = flops / 6 / params
    errors = noise * np.random.default_rng(seed).normal(size=len(flops))
    return RunTable(params=params, tokens=tokens, flops=flops, loss=law.loss(params, tokens) * np.exp(errors))


def test_epoch_s_exponent_falls_as_published(epoch_table):
    found = exponent_drift(epoch_table, cuts=(3e19, 1e20, 3e20, 6e20), delta=1e-3)
    assert [round(point.a, 3) for point in found.points] == [0.667, 0.602, 0.578, 0.568, 0.514]
    assert found.is_drifting
    assert "drifts beyond its errors" in found.sentence
    assert "take the calibrated interval" in found.sentence


def test_a_true_law_is_seldom_said_to_drift():
    called = [exponent_drift(table_of(TRUTH, 0.003, seed)).is_drifting for seed in range(20)]
    assert sum(called) <= 4  # promised: at most 5 % of the time; five of 20 has a chance of .3 %


def test_another_form_drifts():
    found = exponent_drift(table_of(BENT, 0.002))
    assert found.is_drifting
    assert found.points[0].cut_flops < found.points[-1].cut_flops
    assert max(found.a_sigmas, found.loss_sigmas) > 4


def test_runs_that_know_no_exponent_are_not_said_to_hold(olmo_to_1b):
    found = exponent_drift(olmo_to_1b)
    assert not found.is_drifting
    assert "too few runs to tell" in found.sentence


def test_noise_free_runs_give_the_same_law_at_every_cut():
    found = exponent_drift(table_of(TRUTH, 0.0), target_flops=1e23)
    for point in found.points:
        assert point.a == pytest.approx(TRUTH.a, abs=1e-4)
        assert point.loss == pytest.approx(TRUTH.optimal_loss(1e23), rel=1e-4)


def test_one_budget_gives_no_drift():
    table = table_of(TRUTH, 0.002)
    top = table.flops > 5e20
    kept = {name: getattr(table, name)[top] for name in ("params", "tokens", "flops", "loss")}
    assert exponent_drift(RunTable(**kept)) is None


def test_the_record_is_json():
    assert json.loads(json.dumps(exponent_drift(table_of(TRUTH, 0.003)).to_dict()))["points"][0]["n_runs"] >= 12
