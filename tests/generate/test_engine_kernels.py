"""The compiled step against torch operations, against itself in other batches, and against transformers."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.random_models import random_model

from chinchilla_lm.core.shapes import ModelShape
from chinchilla_lm.generate import engine as engine_module
from chinchilla_lm.generate.engine import Engine
from chinchilla_lm.model import compiling, decoding
from chinchilla_lm.model.decoding import Decoder, obstacle, quantise_rows
from chinchilla_lm.model.huggingface import load_model, save_model
from chinchilla_lm.model.transformer import Transformer

needs_compiler = pytest.mark.skipif(decoding.find_compiler() is None, reason="no C++ compiler")
QWEN3 = ModelShape(vocab=203, context=160, d_model=128, n_layers=2, n_heads=6, n_kv_heads=2, head_dim=32, d_ff=192)
SHAPES = {
    "qwen3": QWEN3,  # sizes that whole tiles and vectors fit
    "tied": replace(QWEN3, is_tied=True, n_kv_heads=6),
    "ragged": replace(QWEN3, layout="llama", d_model=52, n_heads=5, n_kv_heads=1, head_dim=18, d_ff=77, vocab=61),
    "narrow": replace(QWEN3, layout="llama", d_model=8, n_heads=2, n_kv_heads=1, head_dim=4, d_ff=6, vocab=11),
    "long-heads": replace(QWEN3, n_heads=2, n_kv_heads=1, head_dim=160),
}
WEIGHTS = ("float32", "bfloat16", "int8")


def make_ids(shape: ModelShape, count: int) -> list[int]:
    return torch.randint(shape.vocab, (count,), generator=torch.Generator().manual_seed(4)).tolist()


def rounded(model: Transformer, weights: str) -> Transformer:
    """The same model with every matrix replaced by what its rounded form stands for, in float32."""
    twin = Transformer(model.shape)
    twin.load_state_dict(model.state_dict())
    with torch.no_grad():
        for parameter in twin.parameters():
            if parameter.ndim == 2 and weights == "bfloat16":
                parameter.copy_(parameter.bfloat16())
            if parameter.ndim == 2 and weights == "int8":
                whole, scale = quantise_rows(parameter)
                parameter.copy_(whole * scale[:, None])
    return twin.eval()


@needs_compiler
@pytest.mark.parametrize("may_tile", [True, False])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_the_compiled_step_computes_what_torch_computes_with_the_same_rounded_weights(
    shape: ModelShape, weights: str, may_tile: bool
) -> None:
    model, ids = random_model(shape), make_ids(shape, 150)
    with torch.no_grad():
        expected_tv = rounded(model, weights)(torch.tensor([ids]))[0]
    decoder = Decoder(model, 1, 160, weights, may_tile)
    every = range(len(ids))
    found_tv = decoder.step(ids, [0] * len(ids), every, every, True)[1]
    assert found_tv is not None
    error = (found_tv - expected_tv).std() / expected_tv.std()
    # float32: other orders of sums. The others round keys, values and (bfloat16) activations to 8 bits.
    assert error < {"float32": 1e-5, "bfloat16": 0.02, "int8": 0.01}[weights]


@needs_compiler
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_a_text_gets_the_same_bits_alone_in_a_batch_and_read_at_once(shape: ModelShape, weights: str) -> None:
    engine, ids = Engine(random_model(shape), slots=19, weights=weights), make_ids(shape, 70)  # type: ignore[arg-type]
    whole_tv = engine.prefill_logits(0, ids)
    engine.prefill(1, ids[:30])
    assert torch.equal(engine.extend(1, ids[30:37]), whole_tv[30:37])
    assert torch.equal(engine.decode([1], ids[37:38])[0], whole_tv[37])
    others = list(range(2, 19))
    for slot in others:
        engine.prefill(slot, make_ids(shape, slot))
    batch_bv = engine.decode([*others, 1], [*[3] * len(others), ids[38]])
    assert torch.equal(batch_bv[-1], whole_tv[38])
    assert torch.equal(engine.prefill(1, ids), whole_tv[-1])


@needs_compiler
@pytest.mark.parametrize("may_tile", [True, False])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_what_the_cache_held_before_is_not_seen(weights: str, may_tile: bool) -> None:
    ids, every = make_ids(QWEN3, 77), range(77)
    decoder = Decoder(random_model(QWEN3), 2, 160, weights, may_tile)
    for cache in decoder._caches:
        cache.fill_(torch.nan)
    first_tv = decoder.step(ids, [1] * 77, every, every, True)[1]
    assert first_tv is not None
    assert torch.isfinite(first_tv).all()
    again_tv = decoder.step(ids[:41], [1] * 41, every[:41], every[:41], True)[1]
    assert again_tv is not None
    assert torch.equal(again_tv, first_tv[:41])


@needs_compiler
def test_the_fastest_flags_compile() -> None:
    """If they do not, slower flags are taken without a word."""
    compiler = decoding.find_compiler()
    assert compiler is not None
    command = [*compiler, *compiling._FLAG_SETS[0].split(), "-fsyntax-only", "-w", str(decoding.SOURCES[0])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not any("error:" in line and ".h:" in line for line in done.stderr.splitlines()), done.stderr[:500]


@needs_compiler
@pytest.mark.parametrize("weights", WEIGHTS)
def test_threads_change_no_bit(weights: str) -> None:
    model, ids = random_model(QWEN3), make_ids(QWEN3, 40)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(Engine(model, slots=1, weights=weights).prefill_logits(0, ids))  # type: ignore[arg-type]
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@needs_compiler
def test_a_prompt_longer_than_a_chunk_is_read_whole() -> None:
    shape = replace(QWEN3, context=decoding.LONGEST_CHUNK_TOKENS * 2 + 40)
    model, ids = random_model(shape), make_ids(shape, decoding.LONGEST_CHUNK_TOKENS * 2 + 20)
    with torch.no_grad():
        expected_tv = model(torch.tensor([ids]))[0]
    engine = Engine(model, slots=1, weights="float32")
    assert (engine.prefill_logits(0, ids) - expected_tv).abs().max() < 1e-3
    engine.clear(0)
    assert (engine.prefill(0, ids) - expected_tv[-1]).abs().max() < 1e-3


@pytest.mark.parametrize("weights", WEIGHTS)
def test_without_the_compiled_step_torch_gives_the_same_and_says_why(
    weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ids = random_model(QWEN3), make_ids(QWEN3, 40)
    fast = Engine(model, slots=3, weights=weights)  # type: ignore[arg-type]
    monkeypatch.setattr(engine_module, "obstacle", lambda model: "no C++ compiler found")
    plain = Engine(model, slots=3, weights=weights)  # type: ignore[arg-type]
    assert (plain.form, plain.form_reason) == ("torch", "no C++ compiler found")
    tolerance = {"float32": 1e-5, "bfloat16": 0.05, "int8": 0.02}[weights]
    for slot, length in ((2, 40), (0, 5)):
        expected, found = fast.prefill(slot, ids[:length]), plain.prefill(slot, ids[:length])
        assert (found - expected).std() < tolerance * expected.std()
    expected, found = fast.decode([0, 2], [7, 8]), plain.decode([0, 2], [7, 8])
    assert (found - expected).std() < tolerance * expected.std()


def test_a_machine_without_a_compiler_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "find_compiler", lambda: None)
    decoding._load_obstacle.cache_clear()
    try:
        assert "no C++ compiler" in obstacle(random_model(QWEN3))
    finally:
        decoding._load_obstacle.cache_clear()


def test_layouts_that_the_compiled_step_does_not_know_are_named() -> None:
    shape = replace(QWEN3, layout="chinchilla", activation="gelu", n_kv_heads=6)
    assert "chinchilla with gelu" in obstacle(random_model(shape))
    assert Engine(random_model(shape), slots=1).form == "torch"


@pytest.mark.parametrize("layout", ["qwen3", "llama"])
def test_greedy_tokens_of_a_batch_equal_transformers_one_by_one(layout: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    shape = replace(QWEN3, layout=layout, n_heads=4)  # type: ignore[arg-type]
    save_model(random_model(shape), tmp_path / "model")
    peer = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    prompts = [make_ids(QWEN3, length) for length in (1, 9, 40, 23)]
    expected = [
        peer.generate(torch.tensor([ids]), max_new_tokens=60, do_sample=False, eos_token_id=None, pad_token_id=0)
        for ids in prompts
    ]
    found = greedy(Engine(load_model(tmp_path / "model"), slots=4, weights="float32"), prompts, 60)
    assert found == [row[0, len(ids) :].tolist() for row, ids in zip(expected, prompts, strict=True)]


@torch.inference_mode()
def greedy(engine: Engine, prompts: list[list[int]], count: int) -> list[list[int]]:
    slots = list(range(len(prompts)))
    last = [int(engine.prefill(slot, ids).argmax()) for slot, ids in zip(slots, prompts, strict=True)]
    found = [[token] for token in last]
    for _ in range(count - 1):
        last = engine.decode(slots, last).argmax(-1).tolist()
        for row, token in zip(found, last, strict=True):
            row.append(token)
    return found
