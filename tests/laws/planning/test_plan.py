"""Plans: every way of asking, conservation, limits on text, serving, refusals, bands, and the record."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla_lm.core.errors import PlanError
from chinchilla_lm.laws.forms.additive import AdditiveLaw
from chinchilla_lm.laws.forms.coupled import CoupledLaw
from chinchilla_lm.laws.planning.demand import Demand, demand_at_speeds
from chinchilla_lm.laws.planning.plan import add_shapes, make_plan
from chinchilla_lm.laws.planning.question import Conditions, Evidence, Goal
from chinchilla_lm.laws.published import PUBLISHED_LAWS, published_law

LAW = published_law("besiroglu2024").law
MUENNIGHOFF = published_law("muennighoff2023").law
ALLOCATION = published_law("hoffmann2022-approach1").law


def draws_of(law, *, n=400, sd=0.02, seed=0):
    constants = np.array([law.E, law.A, law.B, law.alpha, law.beta])
    return constants * np.exp(np.random.default_rng(seed).normal(0, sd, (n, 5)))


@given(st.floats(15, 26), st.floats(6, 13))
@settings(max_examples=25)
def test_every_plan_spends_its_budget_and_counts_its_epochs(exponent, text):
    made = make_plan(Goal(flops=10.0**exponent), LAW, conditions=Conditions(unique_tokens=10.0**text))
    assert 6 * made.params * made.tokens == pytest.approx(10.0**exponent, rel=1e-9)
    assert made.flops == pytest.approx(made.total_flops, rel=1e-12)
    assert made.epochs == pytest.approx(max(1.0, made.tokens / 10.0**text), rel=1e-12)
    assert made.flat_band.params_low <= made.params <= made.flat_band.params_high
    if made.epochs < 20:
        assert made.overhead == pytest.approx(0, abs=1e-6)
    json.dumps(made.to_dict(), allow_nan=False)


def test_without_a_limit_on_text_the_plan_is_the_closed_form():
    made = make_plan(Goal(flops=5.76e23), LAW, conditions=Conditions(unique_tokens=1e15))
    assert (made.params, made.tokens) == pytest.approx(LAW.optimum(5.76e23), rel=1e-9)


@pytest.mark.parametrize(
    "conditions",
    [
        Conditions(),
        Conditions(unique_tokens=3e10),
        Conditions(demand=Demand(prefill_tokens=1e12)),
        Conditions(overtrain=8.0),
        Conditions(overtrain=0.25, unique_tokens=3e10),
        Conditions(unique_tokens=3e10, demand=demand_at_speeds(1e11, 1e10, training_mfu=0.4, prefill_mfu=0.5,
                                                               decode_mfu=0.01)),
    ],
    ids=["plain", "text", "serving", "long", "short-on-text", "all"],
)  # fmt: skip
def test_every_way_of_asking_gives_the_same_plan(conditions):
    made = make_plan(Goal(flops=1e22), LAW, conditions=conditions)
    asked = [Goal(loss=made.loss), Goal(params=made.params), Goal(tokens=made.tokens)]
    if conditions.overtrain == 1:
        asked += [
            Goal(flops=1e22, params=made.params),
            Goal(flops=1e22, tokens=made.tokens),
            Goal(loss=made.loss, params=made.params),
            Goal(loss=made.loss, tokens=made.tokens),
            Goal(params=made.params, tokens=made.tokens),
        ]
    for goal in asked:
        again = make_plan(goal, LAW, conditions=conditions)
        found = (again.params, again.tokens, again.total_flops)
        assert found == pytest.approx((made.params, made.tokens, made.total_flops), rel=1e-5), goal
        assert again.loss == pytest.approx(made.loss, rel=1e-9), goal


def test_overtraining_multiplies_the_ratio_at_equal_compute():
    optimal = make_plan(Goal(flops=1e21), LAW)
    longer = make_plan(Goal(flops=1e21), LAW, conditions=Conditions(overtrain=4.0))
    assert longer.tokens_per_param == pytest.approx(4 * optimal.tokens_per_param, rel=1e-9)
    assert longer.flops == pytest.approx(1e21)
    assert longer.loss > optimal.loss
    assert LAW.flops_for_loss(longer.loss) * (1 + longer.overhead) == pytest.approx(1e21, rel=1e-9)


def test_serving_is_paid_from_the_same_budget_and_saves():
    law = AdditiveLaw(E=1.69, A=406.4, B=410.7, alpha=0.336, beta=0.283)
    loss = law.loss(13e9, (0.283 * 410.7 / (0.336 * 406.4) * 13e9**0.336) ** (1 / 0.283))
    made = make_plan(Goal(loss=loss), law, conditions=Conditions(demand=Demand(prefill_tokens=2e12)))
    assert made.serving.saving_share == pytest.approx(0.1745, abs=1e-4)  # Sardana et al. 2024, figure 1: 17 %
    assert made.serving.saving_flops == pytest.approx(1.692e22, rel=1e-3)
    assert made.flops + made.serving.flops == pytest.approx(made.total_flops, rel=1e-12)
    budget = make_plan(Goal(flops=made.total_flops), law, conditions=made.conditions)
    assert budget.params == pytest.approx(6.97e9, rel=1e-3)


def test_written_tokens_weigh_as_the_device_time_they_take():
    # At a hundredth of the peak a written token takes 40 times the time of a read one at training's .4.
    demand = demand_at_speeds(0.0, 1e10, training_mfu=0.4, prefill_mfu=0.4, decode_mfu=0.01)
    assert demand.training_equivalent == pytest.approx(4e11)
    assert demand.flops(1e9) == pytest.approx(2e19)
    by_time = make_plan(Goal(flops=1e22), LAW, conditions=Conditions(demand=demand))
    as_read = make_plan(Goal(flops=1e22), LAW, conditions=Conditions(demand=Demand(prefill_tokens=4e11)))
    assert by_time.params == pytest.approx(as_read.params, rel=1e-12)
    in_flops = make_plan(Goal(flops=1e22), LAW, conditions=Conditions(demand=Demand(decode_tokens=1e10)))
    assert by_time.params < in_flops.params
    assert any("about .01" in note for note in in_flops.notes)
    assert not any("about .01" in note for note in by_time.notes)


def test_text_supports_a_size_at_one_and_at_four_epochs():
    made = make_plan(Goal(flops=1e22), MUENNIGHOFF, conditions=Conditions(unique_tokens=25e9))
    one, four = made.text
    assert LAW.params_convention == "total"
    filled = (MUENNIGHOFF.alpha * MUENNIGHOFF.A / (MUENNIGHOFF.beta * MUENNIGHOFF.B)) ** (1 / MUENNIGHOFF.alpha) * 25e9
    assert (one.epochs, one.params) == (1.0, pytest.approx(filled, rel=1e-9))
    at_four = make_plan(Goal(flops=four.flops), MUENNIGHOFF, conditions=Conditions(unique_tokens=25e9))
    assert at_four.epochs == pytest.approx(4, rel=1e-6)
    assert at_four.params == pytest.approx(four.params, rel=1e-6)
    assert any("9.5 epochs" in note for note in made.notes)


def test_the_band_grows_with_the_distance_to_the_runs_and_with_their_scatter():
    near, far = (make_plan(Goal(flops=c), LAW, evidence=Evidence(largest_flops=3e21)) for c in (1e21, 3e23))
    assert far.loss_high / far.loss_low > near.loss_high / near.loss_low > 1
    drawn = make_plan(Goal(flops=1e21), LAW, evidence=Evidence(largest_flops=3e21, draws=draws_of(LAW)))
    assert drawn.loss_high / drawn.loss_low > near.loss_high / near.loss_low
    unknown = make_plan(Goal(flops=1e21), LAW)
    assert unknown.loss_low is None
    assert any("no band" in note for note in unknown.notes)
    assert any("run in between" in note for note in far.notes)
    assert not any("tested up to" in note for note in far.notes)
    farther = make_plan(Goal(flops=4e23), LAW, evidence=Evidence(largest_flops=3e21))
    assert any("tested up to 100 times" in note for note in farther.notes)


def test_intervals_are_those_of_the_draws_one_by_one():
    draws = draws_of(LAW)
    made = make_plan(Goal(flops=1e22), LAW, evidence=Evidence(draws=draws))
    names = ("E", "A", "B", "alpha", "beta")
    sizes = [AdditiveLaw(**dict(zip(names, map(float, row), strict=True))).optimum(1e22)[0] for row in draws]
    spread = made.intervals["params"]
    assert spread.low == pytest.approx(np.quantile(sizes, 0.05, method="lower"), rel=1e-9)
    assert spread.high == pytest.approx(np.quantile(sizes, 0.95, method="higher"), rel=1e-9)
    assert "flops" not in made.intervals  # the budget fixes it
    assert "params" not in make_plan(Goal(params=1e9), LAW, evidence=Evidence(draws=draws)).intervals


def test_the_cost_of_a_loss_is_as_uncertain_as_the_loss():
    made = make_plan(Goal(loss=2.3), LAW, evidence=Evidence(largest_flops=3e21))
    spread = made.intervals["flops"]
    assert spread.low < made.flops < spread.high
    assert LAW.optimal_loss(spread.high) == pytest.approx(2.3**2 / made.loss_high, rel=1e-9)
    near_the_floor = make_plan(Goal(loss=1.82), LAW, evidence=Evidence(largest_flops=3e21))
    assert near_the_floor.intervals["flops"].high is None  # if the law errs by its band, no compute reaches it


@pytest.mark.parametrize("name", PUBLISHED_LAWS)
def test_every_published_law_plans_and_its_record_is_json(name):
    row = published_law(name)
    made = make_plan(Goal(flops=1e20), row.law, evidence=Evidence(name=name, largest_flops=row.largest_flops))
    record = json.loads(json.dumps(add_shapes(made, row.law, context=2048).to_dict(), allow_nan=False))
    assert {"params", "tokens", "flops", "loss", "loss_low", "loss_high", "tokens_per_param", "epochs"} <= set(record)
    assert {"gpu_hours", "cost", "flat_band", "shape", "law"} <= set(record)
    assert record["shapes"][0]["params"] == pytest.approx(record["params"], rel=0.3)


def test_a_law_that_only_splits_goes_from_one_number_to_the_others():
    made = make_plan(Goal(flops=1e21), ALLOCATION)
    for goal in (Goal(params=made.params), Goal(tokens=made.tokens)):
        again = make_plan(goal, ALLOCATION)
        assert (again.params, again.tokens, again.flops) == pytest.approx((made.params, made.tokens, 1e21), rel=1e-9)
    with_line = published_law("kaplan2020").law
    made_by_line = make_plan(Goal(flops=1e21), with_line)
    assert make_plan(Goal(loss=made_by_line.loss), with_line).params == pytest.approx(made_by_line.params, rel=1e-9)
    longer = make_plan(Goal(flops=1e21), ALLOCATION, conditions=Conditions(overtrain=4))
    assert longer.tokens_per_param == pytest.approx(4 * made.tokens_per_param)
    again = make_plan(Goal(tokens=longer.tokens), ALLOCATION, conditions=Conditions(overtrain=4))
    assert again.params == pytest.approx(longer.params, rel=1e-9)


@pytest.mark.parametrize(
    ("goal", "conditions", "law", "words"),
    [
        ({"flops": -1e20}, {}, LAW, "budget=-1e"),
        ({"flops": math.nan}, {}, LAW, "budget=nan"),
        ({}, {}, LAW, "nothing to plan for"),
        ({"flops": 1e20, "loss": 2.5}, {}, LAW, "two goals"),
        ({"flops": 1e20, "params": 1e9, "tokens": 1e9}, {}, LAW, "leave nothing"),
        ({"flops": 1e20}, {"overtrain": 0.0}, LAW, "overtrain=0.0"),
        ({"flops": 1e20}, {"unique_tokens": -5.0}, LAW, "unique_tokens=-5.0"),
        ({"flops": 1e20}, {"overtrain": 2.0, "demand": Demand(prefill_tokens=1e9)}, LAW, "give one of them"),
        ({"flops": 1e20, "params": 1e9}, {"overtrain": 2.0}, LAW, "already fixes"),
        ({"flops": 1e20}, {"unique_tokens": 1e9}, ALLOCATION, "use a parametric law"),
        ({"loss": 2.5}, {}, ALLOCATION, "only splits a budget"),
        ({"flops": 1e20, "params": 1e9}, {}, ALLOCATION, "use a parametric law"),
        ({"loss": 1.8}, {}, LAW, "endless text stays above 1.817"),
        ({"loss": 2.5}, {"unique_tokens": 1e8}, LAW, "bring more text"),
        ({"loss": 2.0, "params": 1e9}, {}, LAW, "allow a larger model"),
        ({"loss": 2.0, "tokens": 1e9}, {}, LAW, "allow more tokens"),
        ({"flops": 1e20, "params": 1e9}, {"demand": Demand(prefill_tokens=1e12)}, LAW, "spent by serving"),
        ({"tokens": 1e3}, {"demand": Demand(prefill_tokens=1e16)}, LAW, "under one is none"),
    ],
)
def test_impossible_requests_are_refused_in_one_line(goal, conditions, law, words):
    with pytest.raises(PlanError, match=words) as caught:
        make_plan(Goal(**goal), law, conditions=Conditions(**conditions))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prefill_tokens": -1.0}, "prefill_tokens=-1.0"),
        ({"decode_tokens": math.inf}, "decode_tokens=inf"),
        ({"prefill_cost": 0.0}, "prefill_cost=0.0"),
    ],
)
def test_impossible_demand_is_refused(fields, words):
    with pytest.raises(PlanError, match=words):
        Demand(**fields)
    with pytest.raises(PlanError, match="decode_mfu=0.0"):
        demand_at_speeds(1.0, 1.0, training_mfu=0.4, prefill_mfu=0.4, decode_mfu=0.0)


def test_a_coupled_law_plans_with_its_draws():
    law = CoupledLaw(E=1.7, A=60.0, B=200.0, alpha=0.24, beta=0.26, kappa=0.8)
    rows = np.column_stack([draws_of(law), np.full(400, law.kappa)])
    made = make_plan(Goal(flops=1e22), law, evidence=Evidence(largest_flops=1e21, draws=rows))
    assert (made.params, made.tokens) == pytest.approx(law.optimum(1e22), rel=1e-9)
    assert made.loss == pytest.approx(law.optimal_loss(1e22), rel=1e-12)
    assert made.intervals["params"].low < made.params < made.intervals["params"].high


def test_tokens_far_from_optimal_come_with_a_warning():
    made = make_plan(Goal(params=1e8, tokens=1e12), LAW)
    assert any("promise too much" in note for note in made.notes)


def test_where_the_text_is_spent_loss_says_nothing_of_compute():
    made = make_plan(Goal(flops=1e25), LAW, conditions=Conditions(unique_tokens=1e8, demand=Demand(prefill_tokens=1.0)))
    assert made.overhead is None
    assert made.serving.saving_flops is None
    json.dumps(made.to_dict(), allow_nan=False)
