"""Parabolas: Hoffmann et al.'s own interval, the published bias to three digits, its remedies, intervals, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from chinchilla_lm.core.errors import FitError
from chinchilla_lm.laws.fitting.isoflop import fit_isoflop, vertex_shift
from chinchilla_lm.laws.forms.additive import AdditiveLaw

SYMMETRIC = AdditiveLaw(E=1.69, A=406.4, B=410.7, alpha=0.31, beta=0.31)
CHINCHILLA = AdditiveLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)


def sweep(law, reach, budgets=(1e17, 1e18, 1e19, 1e20, 1e21), drift=1.0):
    sizes = np.geomspace(1 / reach, reach, 15)
    flops = np.repeat(budgets, len(sizes))
    centres = np.repeat(np.geomspace(1, drift, len(budgets)), len(sizes))
    params = np.array([law.optimum(c)[0] for c in flops]) * np.tile(sizes, len(budgets)) * centres
    return params, flops, law.loss(params, flops / 6 / params)


BUDGETS = (6e18, 1e19, 3e19, 6e19, 1e20, 3e20, 6e20, 1e21, 3e21)  # Hoffmann et al. 2022, figure 3


def test_the_chinchilla_runs_give_the_paper_s_exponent(epoch, epoch_245):
    # Hoffmann et al. 2022, table 2: .49, and .462 to .534 from the 10th to the 90th percentile of approach 2.
    # LAWS 2.1 has .495 from "the 123 points that snap to the 9 budgets" and .513 from another copy: the first comes out
    # with the five distorted points of most loss (.4955 to .498 whether 119 or 128 points count as snapped), the
    # second without.
    with_distorted, without = (
        fit_isoflop(params, 6 * params * tokens, loss, budgets=BUDGETS) for params, tokens, loss in (epoch_245, epoch)
    )
    assert with_distorted.law.a == pytest.approx(0.495, abs=0.004)
    assert without.law.a == pytest.approx(0.513, abs=0.002)
    for fit in (with_distorted, without):
        assert 0.462 < fit.law.a < 0.534
        assert len(fit.valleys) == 9
        assert fit.intervals["a"].low < 0.49 < fit.intervals["a"].high


@pytest.mark.parametrize("reach", [2, 16])
def test_a_symmetric_law_is_met_exactly(reach):
    fit = fit_isoflop(*sweep(SYMMETRIC, reach))
    assert fit.law.a == pytest.approx(0.5, abs=1e-9)
    assert fit.law.optimum(1e24)[0] == pytest.approx(SYMMETRIC.optimum(1e24)[0], rel=1e-6)


# Czech et al. 2026 (arXiv 2603.22339), error of D* at 1e24 in per cent: 15 sizes log-spaced from 1/reach to reach
# around the optimum of each of five budgets, no noise.
PUBLISHED = {
    (0.34, 0.28): {2: -0.327, 4: -1.301, 8: -2.903, 16: -5.100},
    (0.465, 0.155): {2: -1.675, 4: -6.498, 8: -13.910, 16: -23.116},
}


@pytest.mark.parametrize(("exponents", "reach"), [(e, reach) for e, errors in PUBLISHED.items() for reach in errors])
def test_the_parabola_s_bias_is_the_published_one(exponents, reach):
    law = AdditiveLaw(E=1.69, A=406.4, B=410.7, alpha=exponents[0], beta=exponents[1])
    fit = fit_isoflop(*sweep(law, reach))
    error = 100 * (fit.law.optimum(1e24)[1] / law.optimum(1e24)[1] - 1)
    assert error == pytest.approx(PUBLISHED[exponents][reach], abs=1e-3)
    # The same number without any fit: the shift depends on the exponents and the sizes alone.
    shift = vertex_shift(*exponents, np.linspace(-np.log(reach), np.log(reach), 15))
    assert 100 * np.expm1(-shift) == pytest.approx(error, abs=1e-6)
    assert [valley.bias for valley in fit.valleys] == pytest.approx([shift] * 5, rel=1e-4)


@pytest.mark.parametrize(("exponents", "error"), [((0.34, 0.28), 11.6), ((0.465, 0.155), 34.6)])
def test_sizes_that_drift_off_the_optimum_bend_the_line_as_published(exponents, error):
    # The same source: sizes centred on the optimum at the lowest budget and three times below it at the highest.
    law = AdditiveLaw(E=1.69, A=406.4, B=410.7, alpha=exponents[0], beta=exponents[1])
    found = {}
    for remedy in ("none", "law"):
        fit = fit_isoflop(*sweep(law, 2, drift=1 / 3), remedy=remedy)
        found[remedy] = 100 * (fit.law.optimum(1e24)[1] / law.optimum(1e24)[1] - 1)
    assert found["none"] == pytest.approx(error, abs=0.05)
    assert found["law"] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("reach", [4, 16])
def test_remedies_take_the_bias_out(reach):
    law = AdditiveLaw(E=1.69, A=406.4, B=410.7, alpha=0.465, beta=0.155)
    errors = {}
    for remedy in ("none", "local", "cubic", "law"):
        fit = fit_isoflop(*sweep(law, reach), remedy=remedy)
        errors[remedy] = abs(fit.law.optimum(1e24)[1] / law.optimum(1e24)[1] - 1)
        assert fit.valleys[0].loss == pytest.approx(law.loss(*law.optimum(1e17)), rel=0.02)
    assert errors["law"] < 1e-6
    assert errors["cubic"] < 0.05 * errors["none"]
    assert errors["local"] < errors["none"]


def test_the_bias_is_warned_of_with_the_way_out():
    law = AdditiveLaw(E=1.69, A=406.4, B=410.7, alpha=0.465, beta=0.155)
    assert 'take remedy "law"' in fit_isoflop(*sweep(law, 16)).warnings[0]
    assert not fit_isoflop(*sweep(law, 16), remedy="law").warnings
    assert not fit_isoflop(*sweep(CHINCHILLA, 2)).warnings


def test_the_interval_of_a_holds_the_truth_as_often_as_it_says(simulate, truth):
    # 60 noisy sweeps at 95 %: 51 or more of them in 999 of 1,000 cases.
    inside = 0
    for seed in range(60):
        table = simulate(seed=seed)
        interval = fit_isoflop(table.params, table.flops, table.loss, remedy="law").intervals["a"]
        inside += interval.low <= truth.a <= interval.high
    assert inside >= 51


def test_three_sizes_a_budget_have_no_interval_and_say_so():
    sizes = np.tile([0.5, 1.0, 2.0], 5)
    flops = np.repeat([1e17, 1e18, 1e19, 1e20, 1e21], 3)
    params = np.array([CHINCHILLA.optimum(c)[0] for c in flops]) * sizes
    fit = fit_isoflop(params, flops, CHINCHILLA.loss(params, flops / 6 / params))
    assert fit.intervals == {}
    assert fit.params_interval(1e22) is None
    assert any("no scatter" in warning for warning in fit.warnings)


def test_one_budget_is_refused():
    params, flops, loss = sweep(CHINCHILLA, 4, budgets=(1e18,))
    with pytest.raises(FitError, match="two are needed"):
        fit_isoflop(params, flops, loss)


def test_a_valley_beyond_the_sizes_tried_is_reported():
    params, flops, loss = sweep(CHINCHILLA, 4)
    keep = params < 0.7 * np.array([CHINCHILLA.optimum(c)[0] for c in flops])
    fit = fit_isoflop(params[keep], flops[keep], loss[keep])
    assert "add a larger one" in fit.warnings[0]


def test_an_unknown_remedy_is_refused():
    with pytest.raises(FitError, match="choose from"):
        fit_isoflop(*sweep(CHINCHILLA, 4), remedy="spline")
