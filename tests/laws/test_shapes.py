from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_lm.core.errors import PlanError
from chinchilla_lm.laws.count import count_parameters
from chinchilla_lm.laws.shapes import nearest_shape, path, shape_on_path, vocab_for


@pytest.mark.parametrize(("d_model", "n_layers"), [(32, 2), (64, 3), (128, 5), (256, 8), (512, 11), (768, 12)])
def test_depth_follows_the_recipe(d_model: int, n_layers: int) -> None:
    assert shape_on_path(d_model, vocab=1024, context=256).n_layers == n_layers


def test_wide_models_are_as_deep_as_published_ones() -> None:
    llama3_8b = shape_on_path(4096, vocab=128256, context=8192)
    assert (llama3_8b.n_layers, llama3_8b.n_heads * llama3_8b.head_dim) == (32, 4096)


def test_the_path_rises_in_every_size_and_never_jumps() -> None:
    shapes = path(vocab=4096, context=512)
    assert (shapes[0].d_model, shapes[-1].d_model) == (32, 8192)
    params = [count_parameters(shape).non_embedding for shape in shapes]
    for smaller, larger, before, after in zip(shapes, shapes[1:], params, params[1:], strict=False):
        assert smaller.d_model < larger.d_model
        assert smaller.n_layers <= larger.n_layers
        assert before < after < (4 if smaller.d_model < 112 else 1.6) * before  # 32 to 48 adds a layer to two


def test_the_path_holds_the_layout_rules() -> None:
    for shape in path(vocab=4096, context=512):
        assert shape.head_dim == (32 if shape.d_model < 256 else 64)
        assert shape.d_model <= shape.n_heads * shape.head_dim < shape.d_model + shape.head_dim
        assert shape.d_ff % 16 == 0
        assert shape.d_ff == pytest.approx(8 / 3 * shape.d_model, abs=8)
        assert shape.n_kv_heads * (1 if shape.d_model <= 1024 else 4) == shape.n_heads
        assert not shape.is_tied


@given(st.floats(1e3, 1e12))
def test_no_shape_of_the_path_is_nearer(params: float) -> None:
    def distance(count: int) -> float:
        return abs(math.log(count / params))

    found = nearest_shape(params, vocab=1024, context=256)
    every = path(vocab=1024, context=256, d_max=65536)
    assert distance(count_parameters(found).matmul) == min(distance(count_parameters(s).matmul) for s in every)


@given(st.floats(1e5, 1e12))
def test_any_size_is_met_within_a_third(params: float) -> None:
    found = count_parameters(nearest_shape(params, vocab=256, context=256)).matmul
    assert abs(math.log(found / params)) < math.log(4 / 3)


@pytest.mark.parametrize("params", [0, -1e6, math.nan, math.inf, 1e15])
def test_sizes_that_no_shape_has_are_refused(params: float) -> None:
    with pytest.raises(PlanError, match="params_matmul"):
        nearest_shape(params, vocab=1024, context=256)


@pytest.mark.parametrize("d_model", [0, -16, 40])
def test_widths_off_the_path_are_refused(d_model: int) -> None:
    with pytest.raises(PlanError, match="multiple of 16"):
        shape_on_path(d_model, vocab=1024, context=256)


def test_an_empty_stretch_of_the_path_is_refused() -> None:
    with pytest.raises(PlanError, match="d_min=300"):
        path(vocab=1024, context=256, d_min=300, d_max=310)


@given(st.floats(1e6, 1e26), st.sampled_from([32, 64, 512, 4096]))
def test_vocabularies_are_powers_of_two_in_range_that_grow_with_the_budget(flops: float, d_model: int) -> None:
    vocab = vocab_for(flops, d_model)
    assert vocab in {2**k for k in range(9, 16)}
    assert vocab_for(10 * flops, d_model) >= vocab
    if 512 < vocab < 32768:
        assert abs(math.log2(vocab * d_model / (0.2 * flops**0.42))) <= 0.5 + 1e-9


def test_a_budget_that_is_none_is_refused() -> None:
    with pytest.raises(PlanError, match="flops"):
        vocab_for(math.nan, 64)
