"""Trunks and branches: the anchors of the literature, an identity, brute force."""

from __future__ import annotations

import numpy as np
import pytest

from chinchilla_lm.core.errors import PlanError
from chinchilla_lm.laws.planning.costs import CostModel


@pytest.mark.parametrize(
    ("horizons", "fraction", "ratio"),
    [
        ([0.5, 1, 2, 5, 10], 0.2, 0.63),  # the horizons of OLMo's ladder
        ([0.5, 1, 2, 5, 10], 0.1, 0.59),
        (list(range(1, 9)), 0.2, 0.38),
        (list(range(1, 9)), 0.1, 0.30),
    ],
)
def test_branches_save_what_was_worked_out_by_hand(horizons, fraction, ratio):
    sizes, tokens = np.ones(len(horizons)), np.array(horizons, dtype=float)
    branched = CostModel(cooldown_fraction=fraction).sweep_cost(sizes, tokens)
    assert branched / CostModel().sweep_cost(sizes, tokens) == pytest.approx(ratio, abs=0.005)


def test_without_sharing_a_sweep_costs_six_n_d():
    params, tokens = np.array([1e8, 1e8, 3e8]), np.array([2e9, 4e9, 6e9])
    assert CostModel().sweep_cost(params, tokens) == pytest.approx((6 * params * tokens).sum())
    assert CostModel().unit == "flops"


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]])
def test_a_sweep_costs_the_same_in_any_order(order):
    params, tokens = np.array([1e8, 1e8, 1e8, 3e8]), np.array([2e9, 8e9, 4e9, 6e9])
    found = CostModel(cooldown_fraction=0.2).sweep_cost(params[order], tokens[order])
    by_hand = 6 * (1e8 * (0.8 * 8e9 + 0.2 * 14e9) + 3e8 * 6e9)
    assert found == pytest.approx(by_hand)


def test_marginal_costs_add_up_to_the_sweep_s():
    model = CostModel(cooldown_fraction=0.15)
    params, tokens = np.full(4, 2e8), np.array([1e9, 3e9, 2e9, 9e9])
    reach, total = 0.0, 0.0
    for size, horizon in zip(params, tokens, strict=True):
        total += model.run_costs(np.array([size]), np.array([horizon]), reach)[0]
        reach = max(reach, horizon)
    assert total == pytest.approx(model.sweep_cost(params, tokens))
    # A branch of a trunk that is long enough costs its cooldown alone.
    assert model.run_costs(params[:1], tokens[:1], 9e9)[0] == pytest.approx(6 * 2e8 * 0.15 * 1e9)


def test_trunks_that_exist_are_not_paid_again():
    model = CostModel(cooldown_fraction=0.2)
    params, tokens = np.array([1e8]), np.array([4e9])
    assert model.sweep_cost(params, tokens, {1e8: 4e9}) == pytest.approx(0.2 * 6 * 1e8 * 4e9)
    assert model.sweep_cost(params, tokens, {2e8: 4e9}) == pytest.approx(6 * 1e8 * 4e9)


def test_speeds_turn_flops_into_seconds():
    model = CostModel(flops_per_s_by_params={1e6: 1e12, 1e8: 1e14}, seconds_per_run=10.0)
    found = model.run_costs(np.array([1e6, 1e7, 1e8, 1e9]), np.full(4, 1e9))
    speeds = np.array([1e12, 1e13, 1e14, 1e14])  # a line in the logs, flat beyond its ends
    assert found == pytest.approx(6 * np.array([1e6, 1e7, 1e8, 1e9]) * 1e9 / speeds + 10)
    assert model.unit == "seconds"


@pytest.mark.parametrize(
    "wrong",
    [
        {"cooldown_fraction": 0.0},
        {"cooldown_fraction": 1.2},
        {"flops_per_param_token": -6.0},
        {"flops_per_s_by_params": {1e6: 0.0}},
        {"seconds_per_run": 3.0},
    ],
)
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(PlanError, match=next(iter(wrong)).split("_by_")[0].replace("flops_per_s", "FLOP/s")):
        CostModel(**wrong)
