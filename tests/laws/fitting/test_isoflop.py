"""Parabolas: Hoffmann et al.'s own interval, the symmetric law where they are exact, refusals."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from chinchilla_lm.core.errors import FitError
from chinchilla_lm.laws.fitting.isoflop import fit_isoflop
from chinchilla_lm.laws.forms.additive import AdditiveLaw

SYMMETRIC = AdditiveLaw(E=1.69, A=406.4, B=410.7, alpha=0.31, beta=0.31)
CHINCHILLA = AdditiveLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)


def sweep(law, reach, budgets=(1e17, 1e18, 1e19, 1e20, 1e21)):
    sizes = np.geomspace(1 / reach, reach, 15)
    flops = np.repeat(budgets, len(sizes))
    params = np.array([law.optimum(c)[0] for c in flops]) * np.tile(sizes, len(budgets))
    return params, flops, law.loss(params, flops / 6 / params)


def test_the_chinchilla_runs_give_the_paper_s_exponent(shared_data):
    path = shared_data / "laws" / "epoch_chinchilla.csv"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    with path.open(newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row["in_besiroglu_240"] == "True"]
    params, flops, loss = (np.array([float(row[name]) for row in rows]) for name in ("n_params", "flops", "loss"))
    budgets = (6e18, 1e19, 3e19, 6e19, 1e20, 3e20, 6e20, 1e21, 3e21)
    fit = fit_isoflop(params, flops, loss, budgets=budgets)
    assert 0.462 < fit.law.a < 0.534  # Hoffmann et al. 2022, table 2: 10th to 90th percentile of approach 2
    assert len(fit.valleys) == 9


@pytest.mark.parametrize("reach", [2, 16])
def test_a_symmetric_law_is_met_exactly(reach):
    fit = fit_isoflop(*sweep(SYMMETRIC, reach))
    assert fit.law.a == pytest.approx(0.5, abs=1e-9)
    assert fit.law.optimum(1e24)[0] == pytest.approx(SYMMETRIC.optimum(1e24)[0], rel=1e-6)


@pytest.mark.parametrize(("reach", "error"), [(2, -0.0033), (4, -0.0130), (8, -0.0290), (16, -0.0510)])
def test_the_parabola_s_bias_is_the_published_one(reach, error):
    # Czech et al. 2026 (arXiv 2603.22339): error of D* at 1e24 from noise-free runs of the Chinchilla law.
    fit = fit_isoflop(*sweep(CHINCHILLA, reach))
    relative = fit.law.optimum(1e24)[1] / CHINCHILLA.optimum(1e24)[1] - 1
    assert relative == pytest.approx(error, abs=2e-3)


def test_one_budget_is_refused():
    params, flops, loss = sweep(CHINCHILLA, 4, budgets=(1e18,))
    with pytest.raises(FitError, match="two are needed"):
        fit_isoflop(params, flops, loss)


def test_a_valley_beyond_the_sizes_tried_is_reported():
    params, flops, loss = sweep(CHINCHILLA, 4)
    keep = params < 0.7 * np.array([CHINCHILLA.optimum(c)[0] for c in flops])
    fit = fit_isoflop(params[keep], flops[keep], loss[keep])
    assert "add a larger one" in fit.warnings[0]
