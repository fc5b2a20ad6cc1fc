from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer

from chinchilla_lm.core.errors import ConfigError, ModelError
from chinchilla_lm.generate.completion import complete
from chinchilla_lm.generate.engine import Engine
from chinchilla_lm.generate.request import Event, Guidance, Request, join_events
from chinchilla_lm.generate.sampling import GREEDY, Sampling
from chinchilla_lm.generate.sequence import TextSequence
from chinchilla_lm.model.transformer import Transformer

VOCAB = 257


def _events(tokenizer: Tokenizer, text: str, *, ends: bool = True, room: int = 500, **wish: object) -> list[Event]:
    """The events of a model that says `text`, whatever it is asked, and then ends."""
    request = Request(prompt_ids=(5,), sampling=GREEDY, **{"max_tokens": 500, **wish})  # type: ignore[arg-type]
    sequence = TextSequence(request, 0, tokenizer, vocab=VOCAB, room=room, stop_ids=[0])
    events = []
    for token in [*tokenizer.encode(text).ids, *([0] if ends else [])]:
        events.append(sequence.advance(torch.eye(VOCAB)[token]))
        if sequence.finish_reason is not None:
            break
    return [event for event in events if event is not None]


def test_a_stop_string_over_several_tokens_is_no_part_of_the_text(tokenizer: Tokenizer) -> None:
    events = _events(tokenizer, "Yes\nUsually\nUser: no", stop=("\nUser:",))
    assert [event.text for event in events] == ["Y", "e", "s", "\nUs" + "u", *"ally", ""]
    assert events[-1].finish_reason == "stop"
    token_ids = [token for event in events for token in event.token_ids]
    assert tokenizer.decode(token_ids) == "Yes\nUsually"


def test_each_token_comes_with_its_text_and_its_logprob(tokenizer: Tokenizer) -> None:
    for event in _events(tokenizer, "a你🚀b", logprobs=1):
        assert tokenizer.decode(list(event.token_ids)) == event.text
        assert [logprob.token for logprob in event.logprobs] == list(event.token_ids)
        assert all(logprob.top[0][0] == logprob.token for logprob in event.logprobs)


def test_a_stop_that_begins_within_a_held_text_keeps_the_tokens_before_it(tokenizer: Tokenizer) -> None:
    events = _events(tokenizer, "abcabd", stop=("abd", "zzz"), logprobs=0)
    choice = join_events(events)[0]
    assert (choice.text, tokenizer.decode(list(choice.token_ids)), len(choice.logprobs)) == ("abc", "abc", 3)


def test_the_reasons_of_the_end(tokenizer: Tokenizer) -> None:
    def reason(events: list[Event]) -> tuple[str, str | None]:
        return "".join(event.text for event in events), events[-1].finish_reason

    assert reason(_events(tokenizer, "hello")) == ("hello", "stop")
    assert reason(_events(tokenizer, "hello", max_tokens=3)) == ("hel", "length")
    assert reason(_events(tokenizer, "hello", room=2)) == ("he", "length")
    assert reason(_events(tokenizer, "hello", stop_ids=(tokenizer.encode("l").ids[0],))) == ("he", "stop")
    assert reason(_events(tokenizer, "hello\nU", stop=("\nUser",))) == ("hello\nU", "stop")
    assert reason(_events(tokenizer, "hello\nU", stop=("\nUser",), max_tokens=7)) == ("hello\nU", "length")
    assert reason(_events(tokenizer, "你", max_tokens=2)) == ("\ufffd", "length")


def test_logprobs_and_the_echo_are_those_of_the_model(model: Transformer, tokenizer: Tokenizer) -> None:
    prompt_ids = tuple(tokenizer.encode("once upon").ids)
    request = Request(
        prompt_ids=prompt_ids,
        max_tokens=6,
        sampling=Sampling(temperature=0.7, top_k=4, repetition_penalty=1.5),
        logprobs=3,
        echo=True,
        stop_ids=(),
    )
    choice = join_events(complete(Engine(model, slots=1), tokenizer, request))[0]
    assert choice.text.startswith("once upon")
    assert choice.token_ids[: len(prompt_ids)] == prompt_ids
    with torch.no_grad():
        exact_tv = model(torch.tensor([choice.token_ids]))[0].log_softmax(-1)
    assert choice.logprobs[0].logprob is None
    for place, logprob in enumerate(choice.logprobs[1:]):
        assert logprob.logprob == pytest.approx(float(exact_tv[place, choice.token_ids[place + 1]]), abs=1e-4)
        best = exact_tv[place].topk(3)
        assert [token for token, _ in logprob.top] == best.indices.tolist()
        assert [value for _, value in logprob.top] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_a_prompt_is_scored_without_new_tokens(model: Transformer, tokenizer: Tokenizer) -> None:
    request = Request(prompt_ids=tuple(tokenizer.encode("ab").ids), max_tokens=0, echo=True, logprobs=0)
    events = list(complete(Engine(model, slots=1), tokenizer, request))
    assert [(event.text, event.finish_reason, len(event.logprobs)) for event in events] == [("ab", "length", 2)]


def test_choices_have_their_own_random_numbers_and_the_first_those_of_the_seed(
    model: Transformer, tokenizer: Tokenizer
) -> None:
    engine = Engine(model, slots=1)
    request = Request(prompt_ids=(7, 8), max_tokens=12, sampling=Sampling(temperature=1.0, seed=4), n=4)
    four = [choice.token_ids for choice in join_events(complete(engine, tokenizer, request))]
    alone = Request(prompt_ids=(7, 8), max_tokens=12, sampling=Sampling(temperature=1.0, seed=4))
    assert len(set(four)) == 4
    assert four[0] == join_events(complete(engine, tokenizer, alone))[0].token_ids


def test_the_best_of_several_are_the_likeliest(model: Transformer, tokenizer: Tokenizer) -> None:
    engine = Engine(model, slots=1)
    wish = {"prompt_ids": (7, 8), "max_tokens": 6, "sampling": Sampling(temperature=1.0), "logprobs": 0, "stop_ids": ()}
    every = join_events(complete(engine, tokenizer, Request(**wish, n=6)))  # type: ignore[arg-type]
    best = list(complete(engine, tokenizer, Request(**wish, n=2, best_of=6)))  # type: ignore[arg-type]
    means = {choice.token_ids: sum(x.logprob for x in choice.logprobs) / 6 for choice in every}  # type: ignore[misc]
    assert [event.token_ids for event in best] == sorted(means, key=lambda ids: -means[ids])[:2]
    assert [(event.index, event.finish_reason) for event in best] == [(0, "length"), (1, "length")]


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_guidance_equals_transformers(model: Transformer, tokenizer: Tokenizer, tmp_path, scale: float) -> None:  # noqa: ANN001
    from transformers import AutoModelForCausalLM

    from chinchilla_lm.model.huggingface import save_model

    save_model(model, tmp_path / "model")
    peer = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    prompt_ids, second_ids = [5, 77, 200], [31, 9]
    expected = peer.generate(
        torch.tensor([prompt_ids]),
        max_new_tokens=20,
        do_sample=False,
        guidance_scale=scale,
        negative_prompt_ids=torch.tensor([second_ids]),
        eos_token_id=None,
        pad_token_id=0,
    )[0, 3:].tolist()
    request = Request(
        prompt_ids=tuple(prompt_ids),
        max_tokens=20,
        sampling=GREEDY,
        stop_ids=(),
        guidance=Guidance(prompt_ids=tuple(second_ids), scale=scale),
    )
    assert list(join_events(complete(Engine(model, slots=2), tokenizer, request))[0].token_ids) == expected


def test_a_kept_engine_reads_only_what_is_new(model: Transformer, tokenizer: Tokenizer) -> None:
    engine = Engine(model, slots=1)
    first = Request(prompt_ids=(7, 8, 9), max_tokens=5, sampling=GREEDY, stop_ids=())
    answer = join_events(complete(engine, tokenizer, first))[0].token_ids
    assert engine.tokens(0) == (7, 8, 9, *answer[:-1])
    second = Request(prompt_ids=(7, 8, 9, *answer, 11), max_tokens=5, sampling=GREEDY, stop_ids=())
    kept = join_events(complete(engine, tokenizer, second))[0].token_ids
    assert kept == join_events(complete(Engine(model, slots=1), tokenizer, second))[0].token_ids


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ({"prompt_ids": ()}, "the prompt has no tokens"),
        ({"max_tokens": 0}, "max_tokens must be >= 1, got 0"),
        ({"n": 0}, "n must be >= 1, got 0"),
        ({"n": 3, "best_of": 2}, "best_of must be >= n = 3, got 2"),
        ({"logprobs": -1}, "logprobs must be >= 0"),
        ({"stop": ("",)}, "stop must be strings"),
        ({"bad_words": ((),)}, "bad_words must be sequences"),
    ],
)
def test_a_wrong_request_is_refused_with_its_rule(wrong: dict[str, object], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        Request(**{"prompt_ids": (1,), **wrong})  # type: ignore[arg-type]


def test_what_does_not_fit_is_refused_with_its_rule(model: Transformer, tokenizer: Tokenizer) -> None:
    engine = Engine(model, slots=1)

    def ask(request: Request) -> None:
        list(complete(engine, tokenizer, request))

    with pytest.raises(ModelError, match="96 tokens and the model's context is 96: shorten the prompt to at most 95"):
        ask(Request(prompt_ids=(1,) * 96))
    with pytest.raises(ConfigError, match=r"token 257 must be in \[0, 257\)"):
        ask(Request(prompt_ids=(257,)))
    with pytest.raises(ConfigError, match="guidance needs 2 slots and the engine has 1"):
        ask(Request(prompt_ids=(1,), guidance=Guidance(prompt_ids=(1,), scale=2.0)))
