"""The best size: the papers' own figures, brute force, duality, and many laws at once against one at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from chinchilla_lm.core.errors import PlanError
from chinchilla_lm.laws.forms.additive import AdditiveLaw
from chinchilla_lm.laws.forms.coupled import CoupledLaw
from chinchilla_lm.laws.forms.kaplan import KaplanLaw
from chinchilla_lm.laws.forms.overtraining import OvertrainingLaw
from chinchilla_lm.laws.forms.repetition import RepetitionLaw
from chinchilla_lm.laws.planning.optimum import (
    flat_band,
    least_cost,
    least_loss,
    overhead,
    params_that_suit,
    tokens_that_suit,
    total_flops,
)
from chinchilla_lm.laws.planning.surface import surface_of, surface_of_draws
from chinchilla_lm.laws.published import published_law

LAW = published_law("besiroglu2024").law
MUENNIGHOFF = published_law("muennighoff2023").law
COUPLED = CoupledLaw(E=1.7, A=60.0, B=200.0, alpha=0.24, beta=0.26, kappa=0.8)
FORMS = {
    "additive": LAW,
    "coupled": COUPLED,
    "kaplan": KaplanLaw(alpha_N=0.076, alpha_D=0.103, N_c=6.4e13, D_c=1.8e13),
    "overtraining": OvertrainingLaw(E=1.84, size_scale=200.0, tokens_scale=400.0, eta=0.136),
    "repetition": RepetitionLaw.from_additive(MUENNIGHOFF),
}


def one(number):
    return np.array([math.log(number)])


@pytest.mark.parametrize("form", FORMS)
def test_a_surface_is_its_law(form):
    law, sizes, texts = FORMS[form], np.geomspace(1e7, 1e12, 7), np.geomspace(1e8, 1e13, 7)
    found = surface_of(law).loss(np.log(sizes), np.log(texts))
    assert found == pytest.approx(law.loss(sizes, texts), rel=1e-12)


def test_a_surface_repeats_text_as_muennighoff_s_notebook_does():
    surface = surface_of(MUENNIGHOFF, 25e9)
    found = surface.loss(np.log([6.34e9, 8.67e9]), np.log([242e9, 178e9]))
    assert found.tolist() == pytest.approx([2.2256440889984477, 2.2269634075087867], rel=1e-13)


@pytest.mark.parametrize("unique", [None, 3e9])
@pytest.mark.parametrize("form", FORMS)
def test_gains_are_the_slopes_of_the_loss(form, unique):
    surface = surface_of(FORMS[form], unique)
    step = 1e-5
    for params, tokens in ((1e8, 1e9), (4e8, 2e10), (6e8, 5e10)):  # 17 epochs at most: slopes that differences see
        x, y = one(params), one(tokens)
        by_x = (surface.loss(x + step, y) - surface.loss(x - step, y)) / (2 * step)
        by_y = (surface.loss(x, y + step) - surface.loss(x, y - step)) / (2 * step)
        gain_x, slope_x = surface.params_gain(x)
        gain_y, slope_y = surface.tokens_gain(y)
        assert gain_x - gain_y == pytest.approx(np.log(by_x / by_y), abs=1e-4)  # the outer power cancels
        high, low = surface.params_gain(x + step)[0], surface.params_gain(x - step)[0]
        assert slope_x == pytest.approx((high - low) / (2 * step), rel=1e-4)
        high, low = surface.tokens_gain(y + step)[0], surface.tokens_gain(y - step)[0]
        assert slope_y == pytest.approx((high - low) / (2 * step), rel=1e-4)


# Sardana et al. 2024, figure 1, with three sets of Chinchilla's constants: quality of `size` while serving `served`.
_TEX = {"A": math.exp(6.0073404), "B": math.exp(6.0179186), "alpha": 0.33917084, "beta": 0.2849083}
_SARDANA = {"A": 406.4, "B": 410.7, "alpha": 0.336, "beta": 0.283}
_PRINTED = {"A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}


@pytest.mark.parametrize(
    ("constants", "size", "served", "params", "longer", "saving"),
    [
        (_SARDANA, 13e9, 2e12, 6.97e9, 2.16, 0.1745),  # the paper: 7B, 17 %
        (_SARDANA, 30e9, 1e13, 13.6e9, 2.85, 0.280),
        (_PRINTED, 13e9, 2e12, 8.0e9, None, 0.101),
        (_TEX, 13e9, 2e12, 7.12e9, None, 0.163),
    ],
)
def test_serving_shrinks_the_model_as_sardana_found(constants, size, served, params, longer, saving):
    surface = surface_of(AdditiveLaw(E=1.69, **constants))
    x0 = one(size)
    y0 = tokens_that_suit(surface, x0)
    x, y = least_cost(surface, surface.loss(x0, y0), served)
    before, after = total_flops(x0, y0, served), total_flops(x, y, served)
    assert math.exp(x[0]) == pytest.approx(params, rel=5e-3)
    assert 1 - after[0] / before[0] == pytest.approx(saving, abs=5e-4)
    if longer is not None:
        assert math.exp(y[0] - y0[0]) == pytest.approx(longer, rel=5e-3)


def test_sardana_s_example_saves_17_per_cent_of_1_7e22():
    surface = surface_of(AdditiveLaw(E=1.69, **_SARDANA))
    y0 = tokens_that_suit(surface, one(13e9))
    x, y = least_cost(surface, surface.loss(one(13e9), y0), 2e12)
    assert math.exp(y[0]) == pytest.approx(1.248e12, rel=1e-3)
    saved = total_flops(one(13e9), y0, 2e12) - total_flops(x, y, 2e12)
    assert saved[0] == pytest.approx(1.692e22, rel=1e-3)


def test_repeated_optimum_is_muennighoff_s():
    # Their grid says 7.022e9 and 237.34B tokens; the optimum of the same formula is .05 % away.
    surface = surface_of(MUENNIGHOFF, 25e9)
    x, y = least_loss(surface, np.array([1e22]))
    assert math.exp(x[0]) == pytest.approx(7.026e9, rel=1e-4)
    assert math.exp(y[0]) == pytest.approx(237.2e9, rel=1e-4)
    assert math.exp(y[0]) / 25e9 == pytest.approx(9.488, abs=5e-4)
    assert surface.loss(x, y)[0] == pytest.approx(2.222129, abs=5e-7)


@pytest.mark.parametrize("k", [0.25, 0.5, 1.5, 3.0])
def test_overhead_is_de_vries_closed_form(k):
    # k_D = (1 - (k_N^-alpha - 1) (A/B) G^(-alpha-beta))^(-1/beta), overhead k_N k_D - 1 (de Vries 2023).
    A, B, alpha, beta = (_SARDANA[name] for name in ("A", "B", "alpha", "beta"))
    law = AdditiveLaw(E=1.69, **_SARDANA)
    params, tokens = law.optimum(1e22)
    k_tokens = (1 - (k**-alpha - 1) * A / B * law.G ** (-alpha - beta)) ** (-1 / beta)
    found = overhead(surface_of(law), one(k * params), one(k_tokens * tokens))
    assert found[0] == pytest.approx(k * k_tokens - 1, rel=1e-9)


@given(
    st.floats(17, 26),
    st.sampled_from([None, 1e8, 1e10, 1e12]),
    st.sampled_from([0.0, 1e9, 1e12, 1e14]),
    st.sampled_from(sorted(FORMS)),
)
@settings(max_examples=60)
def test_no_other_size_is_better(exponent, unique, served, form):
    flops = 10.0**exponent
    surface = surface_of(FORMS[form], unique)
    x, y = least_loss(surface, np.array([flops]), served)
    assert total_flops(x, y, served)[0] == pytest.approx(flops, rel=1e-9)
    best = surface.loss(x, y)[0]
    others = x + np.linspace(-6, 6, 601)
    tokens = flops / (6 * np.exp(others)) - served / 3
    others, tokens = others[tokens > 0], tokens[tokens > 0]
    assert surface.loss(others, np.log(tokens)).min() >= best * (1 - 1e-12)


@given(st.floats(18, 25), st.sampled_from([None, 1e10, 1e12]), st.sampled_from([0.0, 1e10, 1e13]))
@settings(max_examples=40)
def test_least_cost_is_the_inverse_of_least_loss(exponent, unique, served):
    surface = surface_of(LAW, unique)
    x, y = least_loss(surface, np.array([10.0**exponent]), served)
    # Where repeats have spent the text the loss is flat in C, and C cannot come back.
    assume(surface.loss(x, y)[0] > surface.least_loss()[0] * (1 + 1e-6))
    back_x, back_y = least_cost(surface, surface.loss(x, y), served)
    assert total_flops(back_x, back_y, served)[0] == pytest.approx(10.0**exponent, rel=1e-7)
    assert surface.loss(back_x, back_y)[0] == pytest.approx(surface.loss(x, y)[0], rel=1e-12)


@given(st.floats(6, 12), st.sampled_from([None, 1e9]), st.sampled_from([0.0, 1e11]))
@settings(max_examples=30)
def test_the_ridge_is_met_from_either_side(exponent, unique, served):
    surface = surface_of(LAW, unique)
    x = one(10.0**exponent)
    y = tokens_that_suit(surface, x, served)
    assert params_that_suit(surface, y, served)[0] == pytest.approx(x[0], abs=1e-9)
    again, _ = least_loss(surface, total_flops(x, y, served), served)
    assert again[0] == pytest.approx(x[0], abs=1e-7)


def test_ten_thousand_laws_at_once_are_ten_thousand_laws():
    rng = np.random.default_rng(0)
    constants = np.array([LAW.E, LAW.A, LAW.B, LAW.alpha, LAW.beta])
    draws = constants * np.exp(rng.normal(0, 0.05, (10_000, 5)))
    surface = surface_of_draws(draws, LAW, 1e11)
    x, y = least_loss(surface, np.full(10_000, 1e23), 1e12)
    at_loss, _ = least_cost(surface, np.full(10_000, 2.2), 1e12)
    for row in (0, 1, 77, 4_242, 9_999):
        E, A, B, alpha, beta = draws[row]
        alone = surface_of(AdditiveLaw(E=E, A=A, B=B, alpha=alpha, beta=beta), 1e11)
        one_x, one_y = least_loss(alone, np.array([1e23]), 1e12)
        assert (x[row], y[row]) == pytest.approx((one_x[0], one_y[0]), abs=1e-9)
        assert at_loss[row] == pytest.approx(least_cost(alone, np.array([2.2]), 1e12)[0][0], abs=1e-9, nan_ok=True)
    closed, _ = least_loss(surface_of_draws(draws, LAW), np.full(10_000, 1e23))
    log_ratio = np.log(draws[:, 3] * draws[:, 1] / (draws[:, 4] * draws[:, 2]))
    expected = (log_ratio + draws[:, 4] * math.log(1e23 / 6)) / (draws[:, 3] + draws[:, 4])
    assert closed == pytest.approx(expected, abs=1e-10)


def test_a_law_that_never_reaches_the_loss_is_no_number():
    surface = surface_of_draws(np.array([[1.9, 482, 2085, 0.35, 0.37], [1.7, 482, 2085, 0.35, 0.37]]), LAW)
    x, y = least_cost(surface, np.full(2, 1.8))
    assert np.isnan(x[0])
    assert np.isnan(y[0])
    assert surface.loss(x, y)[1] == pytest.approx(1.8)


@pytest.mark.parametrize("served", [0.0, 1e12])
@pytest.mark.parametrize("unique", [None, 1e10])
def test_the_flat_band_ends_where_half_a_per_cent_is_lost(unique, served):
    surface = surface_of(LAW, unique)
    x, y = least_loss(surface, np.array([1e22]), served)
    for end in flat_band(surface, 1e22, served, 0.005):
        tokens = 1e22 / (6 * np.exp(end)) - served / 3
        assert surface.loss(end, np.log(tokens))[0] == pytest.approx(surface.loss(x, y)[0] * 1.005, rel=1e-9)


def test_draws_that_are_no_law_are_left_out_or_refused():
    rows = np.array([[1.8, 482, 2085, 0.35, 0.37], [1.8, -1.0, 2085, 0.35, 0.37], [np.nan, 1, 1, 1, 1]])
    assert surface_of_draws(rows, LAW).E.shape == (1,)
    with pytest.raises(PlanError, match="none of the law's resamples"):
        surface_of_draws(rows[1:], LAW)
    with pytest.raises(PlanError, match="no resamples"):
        surface_of_draws(rows[:, :3], LAW)
