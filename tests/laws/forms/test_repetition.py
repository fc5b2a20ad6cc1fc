"""Repetition: the repository's own digits, the limits of fresh and endless text, and a brute search of the optimum."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_lm.core.errors import PlanError
from chinchilla_lm.laws.forms.repetition import RepetitionLaw, effective_tokens
from chinchilla_lm.laws.published import published_law

LAW = published_law("muennighoff2023-repetition").law
FRESH = published_law("muennighoff2023").law
assert isinstance(LAW, RepetitionLaw)


def test_the_losses_of_datablations_are_met_to_the_last_digit():
    # The two examples of huggingface/datablations: U = 25e9.
    assert LAW.loss(6.34e9, 242e9, 25e9) == 2.2256440889984477
    assert LAW.loss(8.67e9, 178e9, 25e9) == 2.2269634075087867


def test_the_best_repetition_of_25_billion_tokens():
    # Their grid says 7.022e9 params, 237.34e9 tokens, 9.49 epochs; the optimum itself is .05 % away from it.
    params, tokens = LAW.optimum(1e22, unique_tokens=25e9)
    assert params == pytest.approx(7.026e9, rel=1e-4)
    assert tokens == pytest.approx(237.2e9, rel=1e-4)
    assert tokens / 25e9 == pytest.approx(9.488, abs=1e-3)
    assert LAW.optimal_loss(1e22, unique_tokens=25e9) == pytest.approx(2.222129, abs=5e-7)
    assert params == pytest.approx(7.022e9, rel=1e-3)


def test_the_optimum_of_fresh_text_at_gopher_s_budget():
    params, tokens = LAW.optimum(5.76e23)
    assert params == pytest.approx(69.962e9, rel=1e-5)
    assert tokens == pytest.approx(1.37217e12, rel=1e-5)


def test_a_budget_that_its_text_suffices_for_is_split_as_fresh_text_exactly():
    assert LAW.optimum(1e20, unique_tokens=1e12) == FRESH.optimum(1e20)
    budgets = np.array([1e19, 1e20, 1e24])
    sizes = LAW.optimum(budgets, unique_tokens=1e12)[0]
    assert (sizes == FRESH.optimum(budgets)[0]).tolist() == [True, True, False]


@given(st.floats(1e18, 1e26), st.floats(1e8, 1e13), st.floats(2.0, 12.0))
def test_no_split_of_a_fine_grid_is_better(flops, unique, k):
    params, tokens = LAW.optimum(flops, k, unique)
    assert k * params * tokens == pytest.approx(flops, rel=1e-12)
    sizes = params * np.exp(np.linspace(-8, 8, 4001))
    losses = LAW.loss(sizes, flops / k / sizes, unique)
    best = LAW.optimal_loss(flops, k, unique)
    assert best <= losses.min() * (1 + 1e-12)
    assert best >= LAW.least_loss(unique) * (1 - 1e-12)


@given(st.floats(1e7, 1e11), st.floats(1e8, 1e12), st.floats(0.01, 1.0))
def test_text_that_does_not_repeat_is_fresh(params, tokens, size_share):
    unique = tokens
    params = min(params, LAW.params_filled_by(unique)) * size_share
    assert LAW.loss(params, tokens, unique) == pytest.approx(FRESH.loss(params, tokens), rel=1e-14)
    assert LAW.gradient(params, tokens, unique) == pytest.approx(FRESH.gradient(params, tokens), rel=1e-12)
    assert LAW.loss(params, tokens) == FRESH.loss(params, tokens)


def test_a_filled_size_is_the_one_whose_optimal_tokens_are_the_unique_ones():
    for unique in (1e9, 25e9, 1e12):
        params = LAW.params_filled_by(unique)
        assert FRESH.optimum(6 * params * unique)[1] == pytest.approx(unique, rel=1e-12)


@given(st.floats(1e8, 1e12), st.floats(0.1, 500.0), st.floats(1e6, 1e12))
def test_repeats_never_beat_fresh_text_nor_do_harm(unique, epochs, params):
    tokens = unique * epochs
    worth = effective_tokens(tokens, unique)
    assert worth <= tokens * (1 + 1e-12)
    assert worth <= unique * (1 + LAW.repeated_tokens) * (1 + 1e-12)
    assert LAW.loss(params, tokens, unique) >= FRESH.loss(params, tokens) * (1 - 1e-12)
    by_params, by_tokens = LAW.gradient(params, tokens, unique)
    assert by_params <= 0 >= by_tokens


@given(st.floats(1e7, 1e11), st.floats(1e8, 1e11), st.floats(1.01, 60.0))
def test_gradients_of_repeats_are_finite_differences(params, unique, epochs):
    tokens, step = unique * epochs, 1e-5
    by_params, by_tokens = LAW.gradient(params, tokens, unique)
    rise = LAW.loss(params, tokens * math.exp(step), unique) - LAW.loss(params, tokens * math.exp(-step), unique)
    assert by_tokens * tokens == pytest.approx(rise / (2 * step), rel=1e-3, abs=1e-9)
    rise = LAW.loss(params * math.exp(step), tokens, unique) - LAW.loss(params * math.exp(-step), tokens, unique)
    assert by_params * params == pytest.approx(rise / (2 * step), rel=1e-3, abs=1e-9)


@given(st.floats(1e8, 1e10), st.floats(1e9, 1e11), st.floats(0.1, 30.0))
def test_tokens_for_a_loss_are_found_through_the_repeats(params, unique, epochs):
    tokens = unique * epochs
    loss = LAW.loss(params, tokens, unique)
    assert LAW.tokens_for_loss(params, loss, unique) == pytest.approx(tokens, rel=1e-6)
    assert LAW.tokens_for_loss(np.array([params]), loss, unique)[0] == pytest.approx(tokens, rel=1e-6)


@pytest.mark.parametrize("flops", [1e19, 1e21, 1e22, 1e23])
def test_the_budget_for_a_loss_is_found_through_the_repeats(flops):
    loss = LAW.optimal_loss(flops, unique_tokens=25e9)
    assert LAW.flops_for_loss(loss, unique_tokens=25e9) == pytest.approx(flops, rel=1e-6)


def test_what_repeats_cannot_reach_is_refused():
    floor = LAW.least_loss(1e9)
    with pytest.raises(PlanError, match="1e\\+09 distinct tokens, however often repeated"):
        LAW.flops_for_loss(floor, unique_tokens=1e9)
    near = floor * (1 + 1e-9)
    assert LAW.optimal_loss(LAW.flops_for_loss(near, unique_tokens=1e9), unique_tokens=1e9) == pytest.approx(near)
    with pytest.raises(PlanError, match="however often repeated"):
        LAW.tokens_for_loss(1e9, floor, 1e9)
    assert math.isinf(LAW.tokens_for_loss(np.array([1e9]), floor, 1e9)[0])
    with pytest.raises(PlanError, match="unique_tokens"):
        LAW.optimum(1e20, unique_tokens=0.0)


def test_many_runs_with_their_own_texts_at_once():
    params, tokens, unique = np.array([1e8, 1e9]), np.array([1e10, 4e10]), np.array([1e9, 4e10])
    losses = LAW.loss(params, tokens, unique)
    for place in range(2):
        alone = LAW.loss(float(params[place]), float(tokens[place]), float(unique[place]))
        assert losses[place] == pytest.approx(alone, rel=1e-14)


def test_the_form_does_not_see_the_harm_that_its_authors_measured(shared_data):
    # 1.1B params on 100M tokens get worse from the 15th epoch on; 14M params gain for thousands. The form never rises.
    with (shared_data / "laws" / "datablations_c4.csv").open(newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if float(row["n_unique_tokens"]) == 1e8]
    measured = {
        params: dict(sorted((float(row["epochs"]), float(row["loss"])) for row in rows if row["n_params"] == params))
        for params in ("1096300000", "14100000")
    }
    large, small = measured["1096300000"], measured["14100000"]
    assert (round(large[15.0], 2), round(large[59.0], 2)) == (3.82, 6.01)
    assert min(large, key=large.get) == 15
    assert min(small, key=small.get) > 6000
    for params in measured:
        losses = [LAW.loss(float(params), 1e8 * epochs, 1e8) for epochs in sorted(large)]
        assert losses == sorted(losses, reverse=True)
