from __future__ import annotations

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_lm.core.errors import ConfigError
from chinchilla_lm.core.shapes import ModelShape

SMALL = ModelShape(
    vocab=256, context=64, d_model=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, d_ff=176, is_tied=False
)

sizes = st.integers(1, 10**6)


@st.composite
def shapes(draw: st.DrawFn) -> ModelShape:
    layout = draw(st.sampled_from(["qwen3", "llama", "chinchilla", "textbook"]))
    n_kv_heads = draw(st.integers(1, 8))
    return ModelShape(
        layout=layout,
        vocab=draw(sizes),
        context=draw(sizes),
        d_model=2 * draw(sizes),
        n_layers=draw(sizes),
        n_heads=n_kv_heads * draw(st.integers(1, 8)),
        n_kv_heads=n_kv_heads,
        head_dim=2 * draw(st.integers(1, 128)),
        d_ff=draw(sizes),
        is_tied=draw(st.booleans()),
        rope_theta=draw(st.floats(1e-3, 1e9)),
        norm_epsilon=draw(st.floats(1e-12, 1)),
        dropout=draw(st.floats(0, 1, exclude_max=True)),
        activation=draw(st.sampled_from(["swiglu", "gelu", "relu"])),
        norm_placement=draw(st.sampled_from(["pre", "post"])) if layout == "textbook" else "pre",
    )


@given(shapes())
def test_a_shape_survives_json(shape: ModelShape) -> None:
    assert ModelShape.from_dict(json.loads(json.dumps(shape.to_dict()))) == shape


@pytest.mark.parametrize(
    "change",
    [
        {"vocab": 0},
        {"d_model": -64},
        {"n_layers": 2.0},
        {"n_heads": True},
        {"n_kv_heads": 3},
        {"head_dim": 15},
        {"layout": "gpt5"},
        {"activation": "mish"},
        {"norm_placement": "post"},
        {"dropout": 1.0},
        {"dropout": math.nan},
        {"rope_theta": 0},
        {"rope_theta": math.inf},
        {"norm_epsilon": "small"},
        {"is_tied": 1},
        {"layout": "textbook", "d_model": 63},
    ],
)
def test_shapes_that_no_module_can_have_are_refused_by_their_field(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as caught:
        dataclasses.replace(SMALL, **change)  # type: ignore[arg-type]
    assert list(change)[-1] in str(caught.value)
    assert "; " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_field_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="'n_head'.*'n_heads'"):
        ModelShape.from_dict({**SMALL.to_dict(), "n_head": 4})


def test_a_missing_field_is_named() -> None:
    mapping = SMALL.to_dict()
    del mapping["d_ff"]
    with pytest.raises(ConfigError, match="missing key 'd_ff'"):
        ModelShape.from_dict(mapping)


def test_whole_numbers_become_floats_where_floats_are_asked() -> None:
    assert repr(dataclasses.replace(SMALL, rope_theta=10000).rope_theta) == "10000.0"
