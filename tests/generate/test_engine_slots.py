from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.random_models import random_model

from chinchilla_lm.core.errors import ConfigError, ModelError
from chinchilla_lm.core.shapes import ModelShape
from chinchilla_lm.generate.engine import Engine
from chinchilla_lm.model.transformer import Transformer

QWEN3 = ModelShape(vocab=67, context=96, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, d_ff=48)
SHAPES = {
    "qwen3": QWEN3,
    "qwen3-tied": replace(QWEN3, is_tied=True),
    "llama": replace(QWEN3, layout="llama", n_kv_heads=1, head_dim=10, d_model=36, d_ff=50),
    "llama-relu": replace(QWEN3, layout="llama", activation="relu"),
    "chinchilla": replace(QWEN3, layout="chinchilla", activation="gelu", n_kv_heads=4),
    "textbook": replace(QWEN3, layout="textbook", activation="relu", norm_placement="post", n_kv_heads=4, is_tied=True),
}
PROMPTS = ([5, 66, 20, 31, 9], [1], [7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24], [3, 3])
TOLERANCE = 2e-4  # float32 logits of size about 5 through sums of about 50 terms in another order


@pytest.fixture(params=SHAPES.values(), ids=SHAPES.keys())
def model(request: pytest.FixtureRequest) -> Transformer:
    return random_model(request.param, spread=0.2)


@torch.no_grad()
def plain_logits(model: Transformer, ids: list[int]) -> torch.Tensor:
    return model(torch.tensor([ids]))[0]


def greedy(model: Transformer, ids: list[int], count: int) -> list[int]:
    ids = list(ids)
    for _ in range(count):
        ids.append(int(plain_logits(model, ids)[-1].argmax()))
    return ids[-count:]


def test_a_prompt_gives_the_logits_of_the_model(model: Transformer) -> None:
    engine = Engine(model, slots=2, weights="float32")
    expected = plain_logits(model, PROMPTS[2])
    assert (engine.prefill(1, PROMPTS[2]) - expected[-1]).abs().max() < TOLERANCE
    assert (engine.prefill_logits(0, PROMPTS[2]) - expected).abs().max() < TOLERANCE
    with torch.no_grad():
        hidden = model.hidden(torch.tensor([PROMPTS[2]]))[0]
    assert (engine.hidden(PROMPTS[2]) - hidden).abs().max() < TOLERANCE


def test_batched_decoding_of_unequal_lengths_gives_each_the_tokens_it_gets_alone(model: Transformer) -> None:
    engine = Engine(model, slots=5, weights="float32")
    order = [3, 0, 4, 2]
    last = [int(engine.prefill(slot, ids).argmax()) for slot, ids in zip(order, PROMPTS, strict=True)]
    found = [[token] for token in last]
    for _ in range(20):
        last = engine.decode(order, last).argmax(-1).tolist()
        for row, token in zip(found, last, strict=True):
            row.append(token)
    assert found == [greedy(model, ids, 21) for ids in PROMPTS]


def test_prompts_read_together_give_each_the_logits_it_gets_alone(model: Transformer) -> None:
    engine = Engine(model, slots=5, weights="float32")
    engine.prefill(3, PROMPTS[0][:3])  # a beginning that is held already
    found_bv = engine.prefill_many([3, 0, 4, 2], PROMPTS)
    expected_bv = torch.stack([plain_logits(model, ids)[-1] for ids in PROMPTS])
    assert (found_bv - expected_bv).abs().max() < TOLERANCE
    assert engine.tokens(3) == tuple(PROMPTS[0])


def test_several_tokens_at_once_equal_one_at_a_time(model: Transformer) -> None:
    engine = Engine(model, slots=2, weights="float32")
    guess = [4, 60, 2, 2, 33]
    for slot in (0, 1):
        engine.prefill(slot, PROMPTS[0])
    together = engine.extend(0, guess)
    alone = torch.cat([engine.decode([1], [token]) for token in guess])
    assert (together - alone).abs().max() < TOLERANCE
    assert engine.tokens(0) == engine.tokens(1) == (*PROMPTS[0], *guess)


def test_a_truncated_slot_continues_as_if_never_longer(model: Transformer) -> None:
    engine = Engine(model, slots=1, weights="float32")
    engine.prefill(0, PROMPTS[2])
    engine.truncate(0, 6)
    assert engine.length(0) == 6
    found = engine.decode([0], [40])[0]
    assert (found - plain_logits(model, [*PROMPTS[2][:6], 40])[-1]).abs().max() < TOLERANCE


@pytest.mark.parametrize("length", [0, 1, 5, 17, 35])
def test_a_copied_slot_continues_as_the_one_it_was_copied_from(model: Transformer, length: int) -> None:
    engine, ids = Engine(model, slots=2, weights="float32"), [*PROMPTS[2], *PROMPTS[2][::-1]]
    engine.prefill(0, ids)
    engine.prefill(1, [66] * 40)
    engine.copy(0, 1, length)
    assert engine.tokens(1) == tuple(ids[:length])
    assert engine.tokens(0) == tuple(ids)
    engine.clear(0)
    found_v = engine.extend(1, [*ids[length:], 3])[-1]
    assert (found_v - plain_logits(model, [*ids, 3])[-1]).abs().max() < TOLERANCE


@pytest.mark.parametrize("second", [PROMPTS[2], PROMPTS[2][:7], [*PROMPTS[2][:9], 50, 51], [1, 2], [*PROMPTS[2], 5]])
def test_a_prompt_with_a_known_beginning_gives_the_same_logits(second: list[int]) -> None:
    model = random_model(QWEN3, spread=0.2)
    engine = Engine(model, slots=1, weights="float32")
    engine.prefill(0, PROMPTS[2])
    assert (engine.prefill(0, second) - plain_logits(model, second)[-1]).abs().max() < TOLERANCE
    assert engine.tokens(0) == tuple(second)


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_rounded_weights_change_logits_little(model: Transformer, weights: str) -> None:
    engine = Engine(model, slots=2, weights=weights)  # type: ignore[arg-type]
    expected = plain_logits(model, PROMPTS[2])
    found = engine.prefill_logits(0, PROMPTS[2])
    # Two roundings of 1/256 (bfloat16) or 1/127 of the row's largest (int8) in each of 2 blocks; std of logits ~ 5.
    assert (found - expected).std() < 0.05 * expected.std()
    assert torch.isfinite(engine.decode([0], [3])).all()


def test_the_model_is_not_changed() -> None:
    model = random_model(QWEN3, spread=0.2).train()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    for weights in ("float32", "bfloat16", "int8"):
        Engine(model, slots=1, weights=weights).prefill(0, [1, 2, 3])
    assert model.training
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_what_cannot_be_read_is_refused_and_changes_nothing() -> None:
    engine = Engine(random_model(QWEN3, spread=0.2), slots=1, capacity=8, weights="float32")
    engine.prefill(0, [1, 2, 3, 4, 5, 6])
    for ids, words in (([], "no tokens"), ([67], "outside"), ([-1], "outside"), ([1] * 3, "capacity of 8")):
        with pytest.raises(ModelError, match=words):
            engine.extend(0, ids)
    assert engine.length(0) == 6
    with pytest.raises(ModelError, match="capacity"):
        engine.prefill(0, [1] * 9)
    with pytest.raises(ModelError, match="no tokens"):
        engine.prefill(0, [])


def test_logits_that_are_not_finite_are_refused() -> None:
    model = random_model(QWEN3, spread=0.2)
    with torch.no_grad():
        model.blocks[0].attention.qkv.weight[0, 0] = float("nan")  # type: ignore[union-attr, index]
    with pytest.raises(ModelError, match="nan or infinite"):
        Engine(model, slots=1, weights="float32").prefill(0, [1, 2])


@pytest.mark.parametrize("options", [{"slots": 0}, {"capacity": 0}, {"capacity": 97}, {"weights": "int4"}])
def test_an_engine_that_cannot_be_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Engine(random_model(QWEN3, spread=0.2), **options)  # type: ignore[arg-type]
