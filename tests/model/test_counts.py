"""The counts of `laws.count` against the built module: every parameter, and every matrix product that torch runs."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from chinchilla_lm.core.shapes import ModelShape
from chinchilla_lm.laws.count import count_parameters, inference_flops_per_token, training_flops_per_token
from chinchilla_lm.model.transformer import Transformer

SMALL = ModelShape(vocab=96, context=32, d_model=24, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=40)
LAYOUTS = [
    SMALL,
    dataclasses.replace(SMALL, layout="llama"),
    dataclasses.replace(SMALL, layout="chinchilla", activation="gelu"),
    dataclasses.replace(SMALL, layout="textbook", activation="relu"),
    dataclasses.replace(SMALL, layout="textbook", activation="gelu", norm_placement="post", is_tied=True),
]


def name_of(shape: ModelShape) -> str:
    return f"{shape.layout}-{shape.activation}-{shape.norm_placement}"


@st.composite
def shapes(draw: st.DrawFn) -> ModelShape:
    layout = draw(st.sampled_from(["qwen3", "llama", "chinchilla", "textbook"]))
    n_kv_heads = draw(st.integers(1, 3))
    return ModelShape(
        layout=layout,
        vocab=draw(st.integers(1, 50)),
        context=8,
        d_model=2 * draw(st.integers(1, 12)),
        n_layers=draw(st.integers(1, 3)),
        n_heads=n_kv_heads * draw(st.integers(1, 3)),
        n_kv_heads=n_kv_heads,
        head_dim=2 * draw(st.integers(1, 5)),
        d_ff=draw(st.integers(1, 30)),
        is_tied=draw(st.booleans()),
        activation=draw(st.sampled_from(["swiglu", "gelu", "relu"])),
        norm_placement=draw(st.sampled_from(["pre", "post"])) if layout == "textbook" else "pre",
    )


@settings(max_examples=200)
@given(shapes())
def test_every_parameter_is_counted_in_every_layout(shape: ModelShape) -> None:
    model = Transformer(shape)
    parameters = dict(model.named_parameters())
    count = count_parameters(shape)
    assert count.total == sum(parameter.numel() for parameter in parameters.values())
    assert count.embedding == parameters["embedding"].numel()
    assert count.head == sum(p.numel() for name, p in parameters.items() if name.startswith("head."))
    assert count.non_embedding == count.total - count.embedding - count.head
    matrices = [p for name, p in parameters.items() if p.ndim == 2 and name.endswith(".weight") and "head." not in name]
    assert count.matmul == sum(p.numel() for p in matrices) + model.head_weight.numel()


def test_a_shape_of_realistic_size_is_counted_without_allocating_it() -> None:
    shape = dataclasses.replace(
        SMALL, vocab=151936, d_model=1024, n_layers=28, n_heads=16, n_kv_heads=8, head_dim=128, d_ff=3072, is_tied=True
    )
    with torch.device("meta"):
        model = Transformer(shape)
    assert count_parameters(shape).total == sum(p.numel() for p in model.parameters()) == 596_049_920  # Qwen3-0.6B


@pytest.mark.parametrize("shape", LAYOUTS, ids=name_of)
def test_forward_flops_are_those_torch_counts_over_all_keys(shape: ModelShape) -> None:
    model = Transformer(shape)
    ids_bt = torch.zeros(1, shape.context, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(ids_bt)
    assert counter.get_total_flops() == shape.context * inference_flops_per_token(shape, past_tokens=shape.context)


@pytest.mark.parametrize("shape", [shape for shape in LAYOUTS if shape.layout != "chinchilla"], ids=name_of)
def test_training_flops_are_those_torch_counts_over_all_keys(shape: ModelShape) -> None:
    model = Transformer(shape)
    ids_bt = torch.zeros(2, shape.context, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model.token_losses(ids_bt, ids_bt).sum().backward()
    expected = ids_bt.numel() * training_flops_per_token(shape, "exact_full_attention")
    assert counter.get_total_flops() == expected


def test_training_flops_of_relative_positions_are_an_upper_bound() -> None:
    # The sinusoids of the distances need no gradient, and the rows of a batch share their key product.
    shape = LAYOUTS[2]
    model = Transformer(shape)
    ids_bt = torch.zeros(1, shape.context, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model.token_losses(ids_bt, ids_bt).sum().backward()
    expected = shape.context * training_flops_per_token(shape, "exact_full_attention")
    unneeded = shape.n_layers * 2 * shape.context * shape.d_model * shape.n_heads * shape.head_dim
    assert counter.get_total_flops() == expected - unneeded
