"""Trends, changing noise and outliers: found where planted, and no more often than chance where not."""

from __future__ import annotations

import json

import numpy as np
import pytest

from chinchilla_lm.laws.fitting.additive import fit_additive
from chinchilla_lm.laws.forms.additive import AdditiveLaw
from chinchilla_lm.laws.forms.coupled import CoupledLaw
from chinchilla_lm.laws.table import RunTable
from chinchilla_lm.laws.trust.residuals import examine_residuals

TRUTH = AdditiveLaw(E=1.8, A=482.0, B=2085.0, alpha=0.348, beta=0.366)
BENT = CoupledLaw(E=1.2, A=5e5, B=5e5, alpha=0.75, beta=0.55, kappa=0.4)
SIZES, LENGTHS = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e7, 1e10, 10), np.geomspace(1e9, 1e11, 6)))


def examined(law=TRUTH, seed=0, noise=0.003, together=0.0):
    """A table of 10 sizes at 6 lengths; `together` is noise that the runs of one size share."""
    rng = np.random.default_rng(seed)
    errors = noise * rng.normal(size=60) + together * np.tile(rng.normal(size=10), 6)
    loss = law.loss(SIZES, LENGTHS) * np.exp(errors)
    table = RunTable(params=SIZES, tokens=LENGTHS, flops=6 * SIZES * LENGTHS, loss=loss)
    return table, fit_additive(SIZES, LENGTHS, loss)


@pytest.mark.parametrize("together", [0.0, 0.004])
def test_a_right_form_shows_a_trend_as_often_as_chance_has_it(together):
    tested = [examine_residuals(*examined(seed=seed, together=together)) for seed in range(60)]
    chances = np.array([[trend.p_value for trend in found.trends] for found in tested])
    # Standard errors 2.8 and 6.5 points. Were runs of one size taken for independent, the second case would give 60 %.
    assert ((chances < 0.05).mean(axis=0) <= 0.15).all()
    assert (chances < 0.5).mean(axis=0) == pytest.approx([0.5] * 3, abs=0.2)


def test_runs_of_one_size_taken_for_independent_would_show_trends_that_are_none():
    alone = [examine_residuals(*examined(seed=seed, together=0.004), labels=np.arange(60)) for seed in range(30)]
    assert np.mean([found.trends[1].p_value < 0.05 for found in alone]) > 0.3


def test_another_form_is_seen_in_the_residuals():
    sizes, lengths = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e7, 1e10, 20), np.geomspace(1e9, 1e11, 6)))
    loss = BENT.loss(sizes, lengths) * np.exp(0.001 * np.random.default_rng(0).normal(size=120))
    table = RunTable(params=sizes, tokens=lengths, flops=6 * sizes * lengths, loss=loss)
    found = examine_residuals(table, fit_additive(sizes, lengths, loss))
    assert min(trend.p_value for trend in found.trends) < 1e-4
    assert "compare the coupled form" in found.warnings[0]


def test_a_diverged_run_is_named_by_its_line():
    table, _ = examined()
    loss = table.loss.copy()
    loss[11] *= 1.08
    bad = RunTable(params=table.params, tokens=table.tokens, flops=table.flops, loss=loss)
    fit = fit_additive(bad.params, bad.tokens, bad.loss)
    assert examine_residuals(bad, fit).outliers[0].name == "run 12"
    found = examine_residuals(bad, fit, lines=range(2, 62))
    assert found.outliers[0].name == "line 13"
    assert found.outliers[0].residual_percent == pytest.approx(7.7, abs=0.7)
    assert any("line 13 (+7." in warning and "diverged" in warning for warning in found.warnings)


def test_noise_that_falls_with_compute_is_found_and_even_noise_is_not():
    table, _ = examined()
    scale = 0.02 * (table.flops / table.flops.min()) ** -0.4
    loss = TRUTH.loss(SIZES, LENGTHS) * np.exp(scale * np.random.default_rng(1).normal(size=60))
    uneven = RunTable(params=SIZES, tokens=LENGTHS, flops=table.flops, loss=loss)
    found = examine_residuals(uneven, fit_additive(SIZES, LENGTHS, loss))
    assert found.noise_ratio > 4
    assert found.noise_p_value < 1e-3
    assert any("noise of the smallest runs" in warning for warning in found.warnings)
    assert examine_residuals(*examined(seed=2)).noise_p_value > 0.01


def test_the_record_is_json():
    assert json.loads(json.dumps(examine_residuals(*examined()).to_dict()))["trends"][0]["axis"] == "C"
