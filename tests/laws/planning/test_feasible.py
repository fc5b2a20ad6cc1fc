"""Feasible shapes: each spends the same budget at its own exact FLOPs, and the best of all near ones comes first."""

from __future__ import annotations

import math

import pytest

from chinchilla_lm.laws.count import count_parameters, training_flops_per_token
from chinchilla_lm.laws.planning.demand import Demand
from chinchilla_lm.laws.planning.feasible import training_bytes
from chinchilla_lm.laws.planning.plan import add_shapes, make_plan
from chinchilla_lm.laws.planning.question import Conditions, Goal
from chinchilla_lm.laws.published import published_law
from chinchilla_lm.laws.shapes import path, shape_on_path

LAW = published_law("besiroglu2024").law


@pytest.mark.parametrize("flops", [1e18, 1e20, 1e22, 5.76e23])
def test_shapes_spend_the_budget_exactly_and_lose_next_to_nothing(flops):
    made = add_shapes(make_plan(Goal(flops=flops), LAW), LAW, context=2048)
    assert len(made.shapes) == 5
    for option in made.shapes:
        assert option.params == count_parameters(option.shape).total
        assert option.flops_per_token == training_flops_per_token(option.shape)
        assert option.tokens * option.flops_per_token == pytest.approx(flops, rel=1e-12)
        assert option.loss == pytest.approx(LAW.loss(option.params, option.tokens), rel=1e-12)
        assert option.shape.n_heads * option.shape.head_dim >= option.shape.d_model
        assert option.shape.d_model % 16 == 0
        assert option.loss == pytest.approx(made.loss * (1 + option.loss_penalty), rel=1e-12)
    best = made.shapes[0]
    for shape in path(vocab=best.shape.vocab, context=2048, d_min=64, d_max=16384):  # none of the path is better
        tokens = flops / training_flops_per_token(shape)
        assert LAW.loss(count_parameters(shape).total, tokens) >= best.loss * (1 - 3e-4)


def test_serving_is_charged_to_each_shape():
    demand = Demand(prefill_tokens=1e11, decode_tokens=1e10)
    made = add_shapes(make_plan(Goal(flops=1e21), LAW, conditions=Conditions(demand=demand)), LAW, context=2048)
    for option in made.shapes:
        served = 1e21 - option.flops
        n = count_parameters(option.shape)
        low = 2.0 * 1.1e11 * n.non_embedding * 0.99  # the head runs only where a token is written
        assert low < served < 2.0 * 1.1e11 * n.total * 1.5


def test_a_loss_is_reached_by_every_shape_at_its_own_cost():
    made = add_shapes(make_plan(Goal(loss=2.5), LAW), LAW, context=2048)
    for option in made.shapes:
        assert option.loss == pytest.approx(2.5, rel=1e-9)
    least = min(option.flops for option in made.shapes)
    assert made.shapes[0].flops <= least * 1.006  # the first may be a tie of .5 % on the path's own depth


@pytest.mark.parametrize("params", [3e6, 1e8, 1e9, 7e9, 7e10])
def test_a_size_that_is_given_gets_shapes_of_that_size(params):
    made = add_shapes(make_plan(Goal(params=params), LAW), LAW, context=512, vocab=512)
    assert made.shapes[0].params == pytest.approx(params, rel=0.12 if params < 1e7 else 0.05)
    assert made.shapes[0].tokens == pytest.approx(made.tokens)
    assert made.shape.vocab == 512


def test_the_depth_stays_near_the_path_s():
    for option in add_shapes(make_plan(Goal(flops=1e22), LAW), LAW, context=2048).shapes:
        on_path = shape_on_path(option.shape.d_model, vocab=option.shape.vocab, context=2048)
        assert abs(math.log(option.shape.n_layers / on_path.n_layers)) < 0.2


def test_training_memory_is_mostly_sixteen_bytes_a_parameter():
    shape = shape_on_path(4096, vocab=32768, context=2048)
    weights = 16.0 * count_parameters(shape).total
    assert weights < training_bytes(shape) < 1.2 * weights


def test_no_shape_is_a_note():
    made = add_shapes(make_plan(Goal(params=10.0, tokens=1e6), LAW), LAW, context=64, vocab=512)
    assert made.shape is None
    assert "no shape near" in made.notes[-1]
