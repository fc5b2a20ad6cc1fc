"""The simulation of one's own intervals: right under even noise, and it catches intervals that suppose it wrongly."""

from __future__ import annotations

import json

import numpy as np
import pytest

from chinchilla_lm.core.errors import FitError
from chinchilla_lm.laws.fitting.additive import fit_additive
from chinchilla_lm.laws.forms.additive import AdditiveLaw
from chinchilla_lm.laws.table import RunTable
from chinchilla_lm.laws.trust.selftest import coverage_selftest

TRUTH = AdditiveLaw(E=1.8, A=482.0, B=2085.0, alpha=0.348, beta=0.366)


def fitted(scale, seed=0):
    flops = np.repeat(10.0 ** np.linspace(18, 20, 6), 9)
    params = np.array([TRUTH.optimum(c)[0] for c in flops]) * np.tile(np.geomspace(0.15, 7, 9), 6)
    tokens = flops / 6 / params
    errors = scale(flops) * np.random.default_rng(seed).normal(size=len(flops))
    loss = TRUTH.loss(params, tokens) * np.exp(errors)
    table = RunTable(params=params, tokens=tokens, flops=flops, loss=loss)
    return table, fit_additive(params, tokens, loss)


def even(flops):
    return np.full(len(flops), 0.003)


def uneven(flops):
    return 0.03 * (flops / flops.min()) ** -0.7


def test_even_noise_leaves_the_delta_method_what_it_promises():
    found = coverage_selftest(*fitted(even), method="delta", noise="gaussian", repeats=600)
    for name in ("a", "E", "params", "loss"):  # standard error 1.2 points
        assert found.covered[name] == pytest.approx(0.9, abs=0.045)
    assert not found.is_short


def test_uneven_noise_is_caught_and_the_robust_intervals_hold_it():
    table, fit = fitted(uneven)
    delta = coverage_selftest(table, fit, method="delta", repeats=300)
    robust = coverage_selftest(table, fit, method="robust", repeats=300)
    assert delta.covered["a"] < 0.84
    assert delta.is_short
    assert "take robust or bootstrap ones" in delta.sentence
    assert robust.covered["a"] > delta.covered["a"] + 0.05
    assert robust.covered["a"] >= 0.85


def test_the_slow_methods_give_shares_too():
    found = coverage_selftest(*fitted(even), method="profile", noise="gaussian", repeats=12)
    assert 0.5 <= found.covered["a"] <= 1
    assert json.loads(json.dumps(found.to_dict()))["method"] == "profile"


def test_a_level_that_is_none_is_refused():
    with pytest.raises(FitError, match="must lie in"):
        coverage_selftest(*fitted(even), level=90)
