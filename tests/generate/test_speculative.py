from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from tests.random_models import add_noise
from tokenizers import Tokenizer

from chinchilla_lm.core.errors import ConfigError, ModelError
from chinchilla_lm.generate.batching import Scheduler
from chinchilla_lm.generate.completion import complete
from chinchilla_lm.generate.constraint import LabelConstraint
from chinchilla_lm.generate.engine import Engine
from chinchilla_lm.generate.request import Guidance, Request, join_events
from chinchilla_lm.generate.sampling import GREEDY, Sampling
from chinchilla_lm.generate.speculative import Speculator
from chinchilla_lm.model.transformer import Transformer

SAMPLINGS = {
    "greedy": GREEDY,
    "penalised": Sampling(temperature=0.0, repetition_penalty=1.3, frequency_penalty=0.4, logit_bias={3: 0.5}),
    "sampled": Sampling(temperature=0.8, top_p=0.9, repetition_penalty=1.1, seed=5),
}


@pytest.fixture(scope="module")
def sibling(model: Transformer, random_model: Callable[..., Transformer]) -> Transformer:
    """The model with noise: it agrees now and then."""
    return add_noise(random_model(), spread=0.03, seed=9)


@pytest.mark.parametrize("guesses", [1, 3, 6])
@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS.keys())
def test_a_text_is_the_same_with_a_draft(
    model: Transformer, sibling: Transformer, tokenizer: Tokenizer, guesses: int, sampling: Sampling
) -> None:
    request = Request(
        prompt_ids=(5, 77, 200), max_tokens=500, sampling=sampling, stop_ids=(), stop=("zzzz",), logprobs=2
    )
    expected = join_events(complete(Engine(model, slots=1), tokenizer, request))
    engine = Engine(model, slots=1)
    speculator = Speculator(engine, Engine(sibling, slots=1), guesses=guesses)
    actual = join_events(complete(engine, tokenizer, request, speculator=speculator))
    assert actual == expected
    assert len(actual[0].token_ids) == 93  # to the end of the context
    assert 0 < speculator.acceptance.rate < 1


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS.keys())
def test_a_draft_that_is_the_model_is_always_right(
    model: Transformer, tokenizer: Tokenizer, sampling: Sampling
) -> None:
    engine = Engine(model, slots=1)
    speculator = Speculator(engine, Engine(model, slots=1), guesses=4)
    request = Request(prompt_ids=(5, 6), max_tokens=60, sampling=sampling, stop_ids=())
    list(complete(engine, tokenizer, request, speculator=speculator))
    assert speculator.acceptance.rate == 1
    assert speculator.acceptance.proposed == 47  # 59 after the first, in 12 passes that make one of their own


def test_a_draft_with_a_shorter_context_only_helps_less(
    model: Transformer, tokenizer: Tokenizer, random_model: Callable[..., Transformer]
) -> None:
    engine, request = Engine(model, slots=1), Request(prompt_ids=(5, 6), max_tokens=94, stop_ids=())
    speculator = Speculator(engine, Engine(random_model(context=20), slots=1))
    actual = list(complete(engine, tokenizer, request, speculator=speculator))
    assert join_events(actual) == join_events(complete(Engine(model, slots=1), tokenizer, request))
    assert 0 < speculator.acceptance.proposed < 80


def test_a_draft_that_diverged_is_left_aside(
    model: Transformer, tokenizer: Tokenizer, random_model: Callable[..., Transformer]
) -> None:
    broken = random_model()
    with torch.no_grad():
        broken.embedding[:] = torch.nan
    engine, request = Engine(model, slots=1), Request(prompt_ids=(5, 6), max_tokens=20, stop_ids=())
    speculator = Speculator(engine, Engine(broken, slots=1))
    actual = list(complete(engine, tokenizer, request, speculator=speculator))
    assert join_events(actual) == join_events(complete(Engine(model, slots=1), tokenizer, request))


def test_a_draft_that_guesses_into_a_dead_end_is_left_aside(
    model: Transformer, tokenizer: Tokenizer, random_model: Callable[..., Transformer]
) -> None:
    # After the first token the draft's choice is another than the model's, and bad words let nothing follow it.
    other = random_model(seed=7)
    plain = Request(prompt_ids=(5, 6), max_tokens=6, sampling=GREEDY)
    (text,) = join_events(complete(Engine(model, slots=1), tokenizer, plain))
    guess = int(Engine(other, slots=1).prefill(0, [5, 6, text.token_ids[0]]).argmax())
    assert guess not in text.token_ids
    bad_words = tuple((guess, token) for token in range(257))
    request = Request(prompt_ids=(5, 6), max_tokens=6, bad_words=bad_words, sampling=GREEDY)
    scheduler = Scheduler(Engine(model, slots=1), tokenizer, draft=Engine(other, slots=1))
    assert scheduler.submit(request).result()[0].finish_reason == "length"
    assert scheduler.is_alive
    assert scheduler.drain(10)


def _wishes() -> list[Request]:
    draw = random.Random(4)
    wishes = [
        Request(
            prompt_ids=tuple(draw.choices(range(1, 257), k=draw.choice([3, 20, 50]))),
            max_tokens=draw.randint(1, 40),
            sampling=Sampling(temperature=draw.choice([0.0, 0.8]), seed=draw.randrange(99)),
            logprobs=draw.choice([None, 2]),
            echo=draw.random() < 0.3,
            n=draw.choice([1, 1, 2]),
            stop=draw.choice([(), ("a",)]),
        )
        for _ in range(24)
    ]
    labels = LabelConstraint(labels=(" yes", " no"))
    return [
        *wishes,
        Request(prompt_ids=(4, 5), max_tokens=9, constraint=labels),
        Request(prompt_ids=(4, 5), max_tokens=9, guidance=Guidance(prompt_ids=(7, 8, 9), scale=1.5)),
    ]


@pytest.mark.parametrize("slots", [3, 8])
def test_a_batch_with_a_draft_has_the_texts_of_one_without(
    model: Transformer, sibling: Transformer, tokenizer: Tokenizer, slots: int
) -> None:
    found = []
    for draft in (None, Engine(sibling, slots=slots)):
        scheduler = Scheduler(Engine(model, slots=slots), tokenizer, draft=draft)
        tickets = [scheduler.submit(wish) for wish in _wishes()]
        found.append([ticket.result() for ticket in tickets])
        counts = scheduler.statistics()
        assert scheduler.drain(10)
    assert found[0] == found[1]
    assert 0 < counts.draft_kept < counts.draft_guesses
    assert counts.finished == 26


def test_a_request_that_fails_under_a_draft_takes_no_other_down(
    model: Transformer, tokenizer: Tokenizer, random_model: Callable[..., Transformer]
) -> None:
    poisoned, bad_token = random_model(), 13
    with torch.no_grad():
        poisoned.embedding[bad_token] = torch.nan
    scheduler = Scheduler(Engine(poisoned, slots=3), tokenizer, draft=Engine(model, slots=3))
    good = Request(prompt_ids=(5, 6), max_tokens=40, bad_words=((bad_token,),), stop_ids=())
    bad = Request(prompt_ids=(3,), max_tokens=40, sampling=Sampling(temperature=0, logit_bias={bad_token: 100.0}), n=2)
    tickets = [scheduler.submit(request) for request in (good, bad, good)]
    with pytest.raises(ModelError, match="training diverged"):
        tickets[1].result()
    assert tickets[0].result() == tickets[2].result()
    assert scheduler.drain(10)


def test_what_cannot_be_a_draft_is_refused(model: Transformer, random_model: Callable[..., Transformer]) -> None:
    with pytest.raises(ConfigError, match="vocabulary of 12 must be the model's of 257"):
        Speculator(Engine(model, slots=1), Engine(random_model(vocab=12), slots=1))
    with pytest.raises(ConfigError, match="1 slots and needs the model's 2"):
        Speculator(Engine(model, slots=2), Engine(model, slots=1))
    with pytest.raises(ConfigError, match="guesses must be >= 1"):
        Speculator(Engine(model, slots=1), Engine(model, slots=1), guesses=0)
