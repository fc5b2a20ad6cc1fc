from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from chinchilla_lm.core.errors import ConfigError, ModelError
from chinchilla_lm.generate.completion import decode_tokens, generate, stream
from chinchilla_lm.generate.request import Request
from chinchilla_lm.generate.sampling import GREEDY, Sampling
from chinchilla_lm.generate.sequence import TextSequence
from chinchilla_lm.generate.text import end_of_text_ids
from chinchilla_lm.model.transformer import Transformer

PROMPT = "The captain 说: 你好 🚀"
SEEDED = Sampling(temperature=1.0, seed=5)


def _greedy_without_cache(model: Transformer, token_ids: list[int], count: int) -> list[int]:
    token_ids = list(token_ids)
    with torch.no_grad():
        for _ in range(count):
            token_ids.append(int(model(torch.tensor([token_ids]))[0, -1].argmax()))
    return token_ids[-count:]


@pytest.mark.parametrize("layout", ["qwen3", "llama", "chinchilla", "textbook"])
def test_the_cache_changes_nothing(layout: str, random_model: Callable[..., Transformer]) -> None:
    model = random_model(layout)
    prompt_ids = [5, 77, 200, 31, 9]
    cached = list(decode_tokens(model, prompt_ids, max_tokens=40, sampling=GREEDY))
    assert cached == _greedy_without_cache(model, prompt_ids, 40)


@pytest.mark.parametrize("layout", ["qwen3", "llama"])
def test_greedy_equals_transformers_token_by_token(
    layout: str, tokenizer: Tokenizer, random_model: Callable[..., Transformer], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    from chinchilla_lm.model.huggingface import load_model, save_model

    save_model(random_model(layout), tmp_path / "model")
    peer = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    prompt_ids = tokenizer.encode(PROMPT).ids
    expected = peer.generate(
        torch.tensor([prompt_ids]), max_new_tokens=50, do_sample=False, eos_token_id=None, pad_token_id=0
    )[0, len(prompt_ids) :].tolist()
    actual = generate(load_model(tmp_path / "model"), tokenizer, PROMPT, max_tokens=50, sampling=GREEDY, stop_ids=())
    assert list(actual.token_ids) == expected
    assert actual.text == tokenizer.decode(expected)


def test_streamed_pieces_join_to_the_text(model: Transformer, tokenizer: Tokenizer) -> None:
    pieces = list(stream(model, tokenizer, PROMPT, max_tokens=60, sampling=SEEDED))
    whole = generate(model, tokenizer, PROMPT, max_tokens=60, sampling=SEEDED)
    assert "".join(pieces) == whole.text == tokenizer.decode(list(whole.token_ids))
    assert all(pieces)


def test_a_text_of_chinese_and_emoji_comes_in_whole_characters(tokenizer: Tokenizer) -> None:
    request = Request(prompt_ids=(5,), max_tokens=60, sampling=GREEDY)
    sequence = TextSequence(request, 0, tokenizer, vocab=257, room=90, stop_ids=[0])
    events = [sequence.advance(torch.eye(257)[token]) for token in [*tokenizer.encode(PROMPT).ids, 0]]
    assert [event.text for event in events if event is not None] == [*PROMPT, ""]
    assert sequence.finish_reason == "stop"
    assert len(sequence.token_ids) == len(PROMPT.encode())


def test_the_seed_decides_and_the_global_generator_is_left_alone(model: Transformer, tokenizer: Tokenizer) -> None:
    before = torch.get_rng_state()
    first, again = (generate(model, tokenizer, "a", max_tokens=30, sampling=SEEDED) for _ in range(2))
    other = generate(model, tokenizer, "a", max_tokens=30, sampling=Sampling(temperature=1.0, seed=6))
    assert first.token_ids == again.token_ids != other.token_ids
    assert torch.equal(torch.get_rng_state(), before)


def test_tokens_are_drawn_from_the_exact_distribution(model: Transformer, tokenizer: Tokenizer) -> None:
    """First token over many seeds against the softmax of the uncached model: the likeliest tokens, and the rest."""
    from scipy import stats

    prompt_ids = tokenizer.encode("once").ids
    draws = 3000
    counts = torch.zeros(257)
    for seed in range(draws):
        sampling = Sampling(temperature=0.8, seed=seed)
        counts[next(decode_tokens(model, prompt_ids, max_tokens=1, sampling=sampling))] += 1
    with torch.no_grad():
        exact = (model.eval()(torch.tensor([prompt_ids]))[0, -1].double() / 0.8).softmax(-1)
    common = exact * draws >= 5  # the usual rule for the chi-square approximation
    expected = [*(exact[common] * draws).tolist(), float(exact[~common].sum()) * draws]
    actual = [*counts[common].tolist(), float(counts[~common].sum())]
    assert stats.chisquare(actual, [x * sum(actual) / sum(expected) for x in expected]).pvalue > 0.001


def test_the_end_of_text_token_stops_and_is_not_shown(model: Transformer, tokenizer: Tokenizer) -> None:
    free = generate(model, tokenizer, "a", max_tokens=20, sampling=GREEDY, stop_ids=())
    fourth = free.token_ids[3]
    stopped = generate(model, tokenizer, "a", max_tokens=20, sampling=GREEDY, stop_ids={fourth})
    assert stopped.token_ids == free.token_ids[: free.token_ids.index(fourth)]
    assert (stopped.finish_reason, free.finish_reason) == ("stop", "length")
    assert stopped.tokens == len(stopped.token_ids)


def test_generation_ends_with_the_context(model: Transformer, tokenizer: Tokenizer) -> None:
    prompt = "x" * 90
    record = generate(model, tokenizer, prompt, max_tokens=1000, sampling=GREEDY, stop_ids=())
    assert (record.tokens, record.finish_reason) == (6, "length")


def test_a_prompt_that_fills_the_context_is_refused(model: Transformer, tokenizer: Tokenizer) -> None:
    with pytest.raises(ModelError, match="97 tokens and the model's context is 96: shorten the prompt to at most 95"):
        generate(model, tokenizer, "x" * 97)


def test_an_empty_prompt_starts_a_new_text(model: Transformer, tokenizer: Tokenizer) -> None:
    record = generate(model, tokenizer, "", max_tokens=5, sampling=GREEDY, stop_ids=())
    expected = _greedy_without_cache(model.eval(), [*end_of_text_ids(tokenizer)], 5)
    assert list(record.token_ids) == expected


def test_zero_tokens_are_refused(model: Transformer, tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="max_tokens must be >= 1, got 0"):
        generate(model, tokenizer, "a", max_tokens=0)


def test_a_diverged_model_is_named_as_such(tokenizer: Tokenizer, random_model: Callable[..., Transformer]) -> None:
    model = random_model("qwen3")
    with torch.no_grad():
        model.embedding.fill_(float("nan"))
    with pytest.raises(ModelError, match="training diverged"):
        generate(model, tokenizer, "a")


def test_the_mode_of_the_model_is_restored(model: Transformer, tokenizer: Tokenizer) -> None:
    for is_training in (True, False):
        model.train(is_training)
        generate(model, tokenizer, "a", max_tokens=2)
        assert model.training is is_training
    model.eval()
