"""Plans: the papers' own examples, conservation, ranking, money."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla_lm.core.errors import PlanError
from chinchilla_lm.core.units import parse_budget
from chinchilla_lm.laws.count import count_parameters
from chinchilla_lm.laws.forms.additive import AdditiveLaw
from chinchilla_lm.laws.planning.devices import add_cost, budget_in_flops, find_device
from chinchilla_lm.laws.planning.plan import (
    SpeedOption,
    add_shape,
    best_for_seconds,
    effective_tokens,
    plan_budget,
    repeated_loss,
)
from chinchilla_lm.laws.published import PUBLISHED_LAWS, published_law
from chinchilla_lm.laws.shapes import shape_on_path

LAW = published_law("besiroglu2024").law
MUENNIGHOFF = published_law("muennighoff2023").law


def test_repeated_losses_are_those_of_muennighoff_s_notebook():
    params, tokens = np.array([6.34e9, 8.67e9]), np.array([242e9, 178e9])
    found = repeated_loss(MUENNIGHOFF, params, tokens, 25e9)
    assert found.tolist() == pytest.approx([2.2256440889984477, 2.2269634075087867], rel=1e-14)


def test_repeated_optimum_is_muennighoff_s():
    # Their grid says 7.022e9 and 237.34B tokens; the optimum of the same formula is .05 % away.
    made = plan_budget(1e22, MUENNIGHOFF, unique_tokens=25e9)
    assert made.params == pytest.approx(7.026e9, rel=1e-3)
    assert made.tokens == pytest.approx(237.2e9, rel=1e-3)
    assert made.epochs == pytest.approx(9.488, abs=2e-3)
    assert made.loss == pytest.approx(2.222129, abs=1e-6)


@given(st.floats(1e15, 1e26), st.floats(1e6, 1e13))
@settings(max_examples=25, deadline=None)
def test_every_plan_spends_its_budget_and_counts_its_epochs(flops, unique_tokens):
    made = plan_budget(flops, LAW, unique_tokens=unique_tokens)
    assert 6 * made.params * made.tokens == pytest.approx(flops, rel=1e-9)
    assert made.flops == pytest.approx(flops, rel=1e-9)
    assert made.epochs == pytest.approx(max(1.0, made.tokens / unique_tokens), rel=1e-12)
    assert made.flat_band.params_low <= made.params <= made.flat_band.params_high


def test_without_a_limit_on_text_the_plan_is_the_closed_form():
    made = plan_budget(5.76e23, LAW, unique_tokens=1e15)
    assert (made.params, made.tokens) == pytest.approx(LAW.optimum(5.76e23), rel=1e-6)


def test_repeats_are_worth_less_than_fresh_text_and_never_over_their_limit():
    tokens = np.array([1e6, 1e7, 4e7, 1e12])
    worth = effective_tokens(tokens, 1e7)
    assert worth[:2].tolist() == [1e6, 1e7]
    assert 3.5e7 < worth[2] < 4e7  # four epochs are nearly as good as fresh: the abstract's claim
    assert worth[3] == pytest.approx(1e7 * (1 + 15.387756))
    assert effective_tokens(4e7, 1e7) == pytest.approx(float(worth[2]))


def test_flat_band_ends_where_half_a_per_cent_is_lost():
    made = plan_budget(1e21, LAW)
    for params in (made.flat_band.params_low, made.flat_band.params_high):
        assert LAW.loss(params, 1e21 / 6 / params) == pytest.approx(made.loss * 1.005, rel=1e-9)


def test_overtraining_multiplies_the_ratio_at_equal_compute():
    optimal, longer = plan_budget(1e21, LAW), plan_budget(1e21, LAW, overtrain=4.0)
    assert longer.tokens_per_param == pytest.approx(4 * optimal.tokens_per_param, rel=1e-6)
    assert longer.flops == pytest.approx(1e21)
    assert longer.loss > optimal.loss


def test_serving_makes_the_model_smaller_as_sardana_found():
    # Sardana et al. 2024, figure 1: quality of 13B with 2T tokens served -> 7B on 1.25T, with alpha .336, beta .283.
    law = AdditiveLaw(E=1.69, A=406.4, B=410.7, alpha=0.336, beta=0.283)
    params, tokens, served = 6.97e9, 1.248e12, 2e12
    made = plan_budget(6 * params * tokens + 2 * params * served, law, inference_tokens=served)
    assert made.params == pytest.approx(params, rel=2e-3)
    assert made.tokens == pytest.approx(tokens, rel=4e-3)
    assert made.loss == pytest.approx(law.loss(13e9, _tokens_of_optimum(law, 13e9)), rel=1e-3)


def _tokens_of_optimum(law, params):
    """The tokens for which `params` is optimal: alpha A / N^alpha = beta B / D^beta."""
    return (law.beta * law.B / (law.alpha * law.A) * params**law.alpha) ** (1 / law.beta)


def test_the_band_of_the_loss_grows_with_the_distance_to_the_runs():
    near, far = (plan_budget(c, LAW, largest_flops=3e21) for c in (1e21, 3e23))
    assert near.loss_high / near.loss_low == pytest.approx(np.exp(0.02), rel=1e-6)
    assert far.loss_high / far.loss_low > near.loss_high / near.loss_low
    unknown = plan_budget(1e21, LAW)
    assert unknown.loss_low is None
    assert "no band" in unknown.notes[0]


@pytest.mark.parametrize("name", PUBLISHED_LAWS)
def test_every_published_law_plans_and_its_record_is_json(name):
    row = published_law(name)
    made = add_shape(plan_budget(1e20, row.law, largest_flops=row.largest_flops, law_name=name), context=2048)
    record = json.loads(json.dumps(made.to_dict(), allow_nan=False))
    assert {"params", "tokens", "flops", "loss", "loss_low", "loss_high", "tokens_per_param", "epochs"} <= set(record)
    assert {"gpu_hours", "cost", "flat_band", "shape", "law"} <= set(record)
    size = count_parameters(made.shape).by(row.law.params_convention)
    assert 0.8 < size / made.params < 1.25


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"budget_flops": -1e20}, "budget=-1e"),
        ({"budget_flops": float("nan")}, "budget=nan"),
        ({"overtrain": 0.0}, "overtrain=0.0"),
        ({"unique_tokens": -5.0}, "unique_tokens=-5.0"),
        ({"inference_tokens": -1.0}, "inference_tokens=-1.0"),
        ({"inference_tokens": 1e9, "overtrain": 2.0}, "give one of them"),
        ({"law": published_law("kaplan2020").law, "unique_tokens": 1e9}, "use a parametric law"),
    ],
)
def test_impossible_requests_are_refused(arguments, words):
    with pytest.raises(PlanError, match=words):
        plan_budget(**{"budget_flops": 1e20, "law": LAW, **arguments})


def test_the_best_model_for_a_time_is_found_by_brute_force():
    shapes = [shape_on_path(d, vocab=512, context=128) for d in (32, 64, 96, 128, 192)]
    options = [
        SpeedOption(shape=shape, params=float(count_parameters(shape).matmul), tokens_per_s=speed)
        for shape, speed in zip(shapes, (9e4, 5e4, 3e4, 2e4, 1e4), strict=True)
    ]
    law = AdditiveLaw(E=1.0, A=50.0, B=500.0, alpha=0.3, beta=0.4)
    ranked = best_for_seconds(law.loss, options, seconds=300.0)
    assert [c.loss for c in ranked] == sorted(c.loss for c in ranked)
    assert ranked[0].loss == min(law.loss(o.params, o.tokens_per_s * 300) for o in options)
    assert all(c.tokens == pytest.approx(300 * o.tokens_per_s) for c in ranked for o in options if o.shape == c.shape)
    scarce = best_for_seconds(law.loss, options, seconds=300.0, unique_tokens=1e5)
    assert scarce[0].loss > ranked[0].loss
    assert scarce[0].params >= ranked[0].params  # with little text the slow large model loses less
    with pytest.raises(PlanError, match="no model"):
        best_for_seconds(law.loss, [], seconds=300.0)


def test_budgets_of_every_kind_become_flops():
    h100 = find_device("8xH100")
    assert budget_in_flops(parse_budget("1e20"), None, None) == 1e20
    assert budget_in_flops(parse_budget("1h"), h100, None) == pytest.approx(8 * 3600 * 989e12 * 0.4)
    assert budget_in_flops(parse_budget("8 H100-hours"), None, None) == pytest.approx(8 * 3600 * 989e12 * 0.4)
    assert budget_in_flops(parse_budget("$20"), h100, 2.5) == pytest.approx(8 * 3600 * 989e12 * 0.4)
    assert budget_in_flops(parse_budget("10s"), find_device("65e9"), None) == pytest.approx(65e10)


def test_the_bill_is_the_budget():
    device = find_device("A100", mfu=0.5)
    made = add_cost(plan_budget(budget_in_flops(parse_budget("$100"), device, 2.0), LAW), device, 2.0)
    assert made.cost == pytest.approx(100)
    assert made.gpu_hours == pytest.approx(50)


@pytest.mark.parametrize(
    ("text", "words"), [("B9000", "write one of A100"), ("0xH100", "0xH100"), ("-5", "-5"), ("", "''")]
)
def test_unknown_hardware_is_refused(text, words):
    with pytest.raises(PlanError, match=words):
        find_device(text)


@pytest.mark.parametrize(("budget", "words"), [("5m", "--hardware"), ("$5", "--hardware")])
def test_time_and_money_need_a_machine(budget, words):
    with pytest.raises(PlanError, match=words):
        budget_in_flops(parse_budget(budget), None, 1.0)
    with pytest.raises(PlanError, match="--price"):
        budget_in_flops(parse_budget("$5"), find_device("H100"), None)
