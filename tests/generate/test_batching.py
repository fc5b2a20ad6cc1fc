from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable

import pytest
import torch
from tokenizers import Tokenizer

from chinchilla_lm.core.errors import ConfigError, ModelError
from chinchilla_lm.generate.batching import Scheduler
from chinchilla_lm.generate.completion import complete
from chinchilla_lm.generate.constraint import LabelConstraint
from chinchilla_lm.generate.engine import Engine
from chinchilla_lm.generate.request import Guidance, QueueFull, Request, join_events
from chinchilla_lm.generate.sampling import GREEDY, Sampling
from chinchilla_lm.generate.ticket import Ticket
from chinchilla_lm.model.transformer import Transformer

POISON = 13  # a token that makes every later logit of its text nan

StartScheduler = Callable[..., Scheduler]


def _random_request(draw: random.Random) -> Request:
    """Greedy or seeded, plain or with penalties, stops, several choices, a constraint, guidance."""
    prompts = [tuple(draw.choices(range(1, 257), k=draw.randint(1, 40))) for _ in range(2)]
    shared = (9, 8, 7, 6, 5) if draw.random() < 0.3 else ()  # a common beginning, to be reused
    sampling = Sampling(
        temperature=draw.choice([0.0, 0.0, 0.7, 1.0]),
        top_p=draw.choice([1.0, 0.9]),
        top_k=draw.choice([0, 20]),
        repetition_penalty=draw.choice([1.0, 1.2]),
        frequency_penalty=draw.choice([0.0, 0.5]),
        seed=draw.randrange(2**40),
    )
    choices = draw.choice([1, 1, 1, 2])
    return Request(
        prompt_ids=(*shared, *prompts[0]),
        max_tokens=draw.randint(1, 24),
        sampling=sampling,
        stop=draw.choice([(), (), ("a", "\x00"), ("q",)]),
        logprobs=draw.choice([None, 0, 2]),
        echo=draw.random() < 0.2,
        n=choices,
        best_of=draw.choice([None, choices + 1]) if draw.random() < 0.2 else None,
        bad_words=draw.choice([(), ((5,), (6, 7))]),
        constraint=LabelConstraint(labels=(" yes", " no", " maybe")) if draw.random() < 0.1 else None,
        guidance=Guidance(prompt_ids=prompts[1], scale=1.5) if draw.random() < 0.1 else None,
    )


def test_200_requests_16_at_a_time_equal_the_same_ones_alone(
    model: Transformer, tokenizer: Tokenizer, start_scheduler: StartScheduler
) -> None:
    draw = random.Random(0)
    requests = [_random_request(draw) for _ in range(200)]
    scheduler = start_scheduler(slots=16)
    tickets = [scheduler.submit(request) for request in requests]
    together = [ticket.result() for ticket in tickets]
    engine = Engine(model, slots=2)
    for request, choices in zip(requests, together, strict=True):
        engine.clear(0)
        engine.clear(1)
        alone = join_events(complete(engine, tokenizer, request))
        assert [choice.token_ids for choice in choices] == [choice.token_ids for choice in alone]
        assert [choice.text for choice in choices] == [choice.text for choice in alone]
        assert [choice.finish_reason for choice in choices] == [choice.finish_reason for choice in alone]
    counts = scheduler.statistics()
    assert (counts.accepted, counts.finished, counts.running, counts.waiting, counts.slots_busy) == (200, 200, 0, 0, 0)
    assert counts.decode_rows / counts.decode_steps > 8  # they did run together
    assert 0 < counts.prompt_tokens_reused < counts.prompt_tokens


def test_events_come_while_the_text_is_made(start_scheduler: StartScheduler) -> None:
    ticket = start_scheduler().submit(Request(prompt_ids=(5,), max_tokens=60, sampling=GREEDY, stop_ids=()))
    events = list(ticket.events())
    assert len(events) > 20
    assert [event.finish_reason for event in events] == [None] * (len(events) - 1) + ["length"]
    assert sum(len(event.token_ids) for event in events) == 60


def _poisoned(random_model: Callable[..., Transformer]) -> Transformer:
    model = random_model()
    with torch.no_grad():
        model.embedding[POISON] = torch.nan
    return model


def test_a_request_that_fails_takes_no_other_down(
    random_model: Callable[..., Transformer], start_scheduler: StartScheduler
) -> None:
    model = _poisoned(random_model)
    scheduler = start_scheduler(slots=4, of=model)
    wish = {"max_tokens": 40, "stop_ids": (), "bad_words": ((POISON,),)}
    good = [Request(prompt_ids=(seed + 20,), sampling=Sampling(seed=seed), **wish) for seed in range(12)]  # type: ignore[arg-type]
    bad = Request(prompt_ids=(3,), max_tokens=40, sampling=Sampling(temperature=0, logit_bias={POISON: 100.0}), n=2)
    tickets = [scheduler.submit(request) for pair in zip(good, [bad] * 12, strict=True) for request in pair]
    scheduler.submit(Request(prompt_ids=(POISON, 3), max_tokens=4))
    for good_one, bad_one in zip(tickets[::2], tickets[1::2], strict=True):
        with pytest.raises(ModelError, match="training diverged"):
            bad_one.result()
        assert len(good_one.result()[0].token_ids) == 40
    alone = start_scheduler(slots=1, of=model)
    assert alone.submit(good[0]).result() == scheduler.submit(good[0]).result()
    counts = scheduler.statistics()
    assert (counts.failed, counts.finished, counts.slots_busy) == (13, 13, 0)


def test_a_constraint_without_a_way_out_fails_alone(tokenizer: Tokenizer, start_scheduler: StartScheduler) -> None:
    scheduler = start_scheduler()
    label = LabelConstraint(labels=("x",))
    stuck = Request(prompt_ids=(5,), constraint=label, bad_words=(tuple(tokenizer.encode("x").ids),))
    with pytest.raises(ConfigError, match="no token may come next"):
        scheduler.submit(stuck).result()
    assert scheduler.submit(Request(prompt_ids=(5,), constraint=label)).result()[0].text == "x"


def test_a_cancelled_request_ends_soon_and_frees_its_slot(start_scheduler: StartScheduler) -> None:
    scheduler = start_scheduler(slots=1)
    endless = Request(prompt_ids=(5,), max_tokens=90, sampling=GREEDY, stop_ids=())
    running, waiting, third = (scheduler.submit(endless) for _ in range(3))
    iterator = running.events()
    next(iterator)
    waiting.cancel()
    running.cancel()
    rest = list(iterator)
    assert rest[-1].finish_reason == "cancelled"
    assert [choice.finish_reason for choice in waiting.result()] == ["cancelled"]
    assert len(third.result()[0].token_ids) == 90
    assert scheduler.statistics().cancelled == 2


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_cancelled_when_nothing_is_lost(
    random_model: Callable[..., Transformer], start_scheduler: StartScheduler, seed: int
) -> None:
    """Good, failing and cancelled requests of several choices from several threads: each ends, and once."""
    scheduler = start_scheduler(slots=3, of=_poisoned(random_model))
    tickets: list[Ticket] = []

    def ask(draw: random.Random) -> None:
        for _ in range(12):
            is_bad = draw.random() < 0.2
            sampling = Sampling(temperature=0.5, seed=draw.randrange(99), logit_bias={POISON: 100.0} if is_bad else {})
            choices = draw.randint(1, 3)
            wish = {"best_of": choices + 1} if draw.random() < 0.2 else {}
            ticket = scheduler.submit(
                Request(
                    prompt_ids=(5, draw.randrange(20, 90)),
                    max_tokens=draw.randint(1, 30),
                    sampling=sampling,
                    n=choices,
                    bad_words=() if is_bad else ((POISON,),),
                    **wish,
                )
            )
            tickets.append(ticket)
            if draw.random() < 0.4:
                draw.choice(tickets).cancel()

    threads = [threading.Thread(target=ask, args=(random.Random(10 * seed + place),)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ends = {"whole": 0, "cancelled": 0, "failed": 0}
    for ticket in tickets:
        try:
            choices = ticket.result()
        except ModelError:
            ends["failed"] += 1
        else:
            assert [choice.index for choice in choices] == list(range(ticket.request.n))
            ends["cancelled" if any(choice.finish_reason == "cancelled" for choice in choices) else "whole"] += 1
    assert scheduler.drain(60)
    counts = scheduler.statistics()
    assert (counts.failed, counts.slots_busy, counts.waiting, counts.accepted) == (ends["failed"], 0, 0, 48)
    # The last of several choices may have been whole when another was cancelled: such a request counts as finished.
    assert counts.finished + counts.cancelled == ends["whole"] + ends["cancelled"]


def test_leaving_the_events_cancels(start_scheduler: StartScheduler) -> None:
    scheduler = start_scheduler(slots=1)
    ticket = scheduler.submit(Request(prompt_ids=(5,), max_tokens=95, sampling=GREEDY, stop_ids=()))
    iterator = ticket.events()
    next(iterator)
    iterator.close()
    assert ticket.is_cancelled or ticket.is_finished
    assert scheduler.submit(Request(prompt_ids=(5,), max_tokens=1)).result()


def test_the_queue_has_a_limit(start_scheduler: StartScheduler) -> None:
    scheduler = start_scheduler(slots=2, queue_limit=3)
    long = Request(prompt_ids=(5,), max_tokens=90, sampling=GREEDY, stop_ids=())
    accepted: list[Ticket] = []

    def flood() -> None:
        for _ in range(200):
            accepted.append(scheduler.submit(long))

    with pytest.raises(QueueFull, match="wait already, which is the limit; try again later"):
        flood()
    assert len(accepted) >= 5
    assert all(len(ticket.result()[0].token_ids) == 90 for ticket in accepted)
    assert scheduler.statistics().rejected == 1
    assert scheduler.submit(long).result()


def test_draining_finishes_what_was_accepted_and_refuses_the_rest(start_scheduler: StartScheduler) -> None:
    scheduler = start_scheduler(slots=2)
    request = Request(prompt_ids=(5,), max_tokens=30, sampling=GREEDY, stop_ids=())
    tickets = [scheduler.submit(request) for _ in range(6)]
    assert scheduler.drain(60)
    assert [ticket.result()[0].finish_reason for ticket in tickets] == ["length"] * 6
    assert not scheduler.is_alive
    with pytest.raises(QueueFull, match="shutting down"):
        scheduler.submit(request)


def test_a_drain_out_of_time_cancels(start_scheduler: StartScheduler) -> None:
    scheduler = start_scheduler(slots=1)
    request = Request(prompt_ids=(5,), max_tokens=95, sampling=GREEDY, stop_ids=())
    tickets = [scheduler.submit(request) for _ in range(50)]
    assert not scheduler.drain(0)
    reasons = [ticket.result()[0].finish_reason for ticket in tickets]
    assert set(reasons) <= {"cancelled", "length"}
    assert "cancelled" in reasons


def test_a_request_of_many_choices_does_not_keep_others_waiting(start_scheduler: StartScheduler) -> None:
    scheduler = start_scheduler(slots=1)
    many = scheduler.submit(Request(prompt_ids=(5,), max_tokens=20, n=30, stop_ids=()))
    one = scheduler.submit(Request(prompt_ids=(6,), max_tokens=20, stop_ids=()))
    one.result()
    assert not many.is_finished
    assert len(many.result()) == 30


def test_the_slot_with_the_longest_shared_beginning_is_taken(start_scheduler: StartScheduler) -> None:
    scheduler = start_scheduler(slots=3)
    stems = [tuple(range(start, start + 30)) for start in (10, 50, 90)]
    for stem in stems:
        scheduler.submit(Request(prompt_ids=stem, max_tokens=1)).result()
    before = scheduler.statistics().prompt_tokens_reused
    for stem in reversed(stems):
        scheduler.submit(Request(prompt_ids=(*stem, 7), max_tokens=1)).result()
    assert scheduler.statistics().prompt_tokens_reused - before == 90


def _count_read(scheduler: Scheduler) -> list[int]:
    """The list that gets the number of tokens of every forward pass."""
    form, counts = scheduler._engine._form, []
    forward = form.forward

    def counting(slots, pasts, ids, last_only):
        counts.append(sum(map(len, ids)))
        return forward(slots, pasts, ids, last_only)

    form.forward = counting  # type: ignore[method-assign]
    return counts


@pytest.mark.parametrize("options", [{}, {"echo": True, "logprobs": 2}], ids=["plain", "scored"])
def test_the_choices_of_a_request_read_its_prompt_once(
    model: Transformer, tokenizer: Tokenizer, start_scheduler: StartScheduler, options: dict
) -> None:
    prompt = tuple(random.Random(1).choices(range(1, 257), k=90))
    request = Request(prompt_ids=prompt, max_tokens=5, n=6, sampling=Sampling(seed=3), stop_ids=(), **options)
    scheduler = start_scheduler(slots=4)
    read = _count_read(scheduler)
    found = scheduler.submit(request).result()
    assert sum(read) <= 90 + 6 * 5  # each choice reads the prompt's last token and those it makes but the last
    assert scheduler.statistics().prompt_tokens_reused == 5 * 89
    assert found == join_events(complete(Engine(model, slots=1), tokenizer, request))


def test_prompts_that_begin_alike_read_the_beginning_once(start_scheduler: StartScheduler) -> None:
    draw = random.Random(2)
    system = tuple(draw.choices(range(1, 257), k=80))
    requests = [Request(prompt_ids=(*system, 7 + i, 8), max_tokens=4, sampling=GREEDY) for i in range(4)]
    scheduler = start_scheduler(slots=4)
    read = _count_read(scheduler)
    tickets = [scheduler.submit(request) for request in requests]
    together = [ticket.result() for ticket in tickets]
    assert sum(read) <= 80 + 4 * (2 + 4)
    alone = start_scheduler(slots=1)
    assert [alone.submit(request).result() for request in requests] == together


def test_short_prompts_are_read_in_one_pass(start_scheduler: StartScheduler) -> None:
    scheduler = start_scheduler(slots=8)
    read = _count_read(scheduler)
    with scheduler._changed:  # the worker sees all of them at once
        tickets = [scheduler.submit(Request(prompt_ids=(i, i + 1, 3), max_tokens=1)) for i in range(1, 9)]
    for ticket in tickets:
        ticket.result()
    assert read == [24]


def test_a_long_prompt_is_read_in_parts_between_the_others_tokens(
    random_model: Callable[..., Transformer], start_scheduler: StartScheduler
) -> None:
    model = random_model(context=2048)
    scheduler = start_scheduler(slots=2, of=model)
    prompt_ids = tuple(random.Random(1).choices(range(1, 257), k=1500))
    ticket = scheduler.submit(Request(prompt_ids=(4,), max_tokens=500, sampling=GREEDY, stop_ids=()))
    iterator = ticket.events()
    next(iterator)
    long = scheduler.submit(Request(prompt_ids=prompt_ids, max_tokens=3, sampling=GREEDY, stop_ids=())).result()
    list(iterator)
    engine = Engine(model, slots=1)
    assert long[0].token_ids[0] == int(engine.prefill(0, prompt_ids).argmax())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_bug_of_ours_ends_in_errors_and_not_in_silence(start_scheduler: StartScheduler) -> None:
    scheduler = start_scheduler(slots=1)
    request = Request(prompt_ids=(5,), max_tokens=90, sampling=GREEDY, stop_ids=())
    first, second = scheduler.submit(request), scheduler.submit(request)
    iterator = first.events()
    next(iterator)
    scheduler._free = None  # type: ignore[assignment]
    for ticket in (second, first):
        with pytest.raises(ModelError, match="the scheduler stopped: .*; restart it and report this"):
            ticket.result()
    with pytest.raises(QueueFull, match="shutting down"):
        scheduler.submit(request)
    scheduler._thread.join(10)
    assert not scheduler.is_alive


def test_several_long_prompts_and_a_short_one_are_read_in_turn(
    random_model: Callable[..., Transformer], start_scheduler: StartScheduler
) -> None:
    scheduler = start_scheduler(slots=8, of=random_model(context=2048))
    prompts = [tuple(random.Random(seed).choices(range(1, 257), k=1500)) for seed in range(6)]
    long = [scheduler.submit(Request(prompt_ids=prompt, max_tokens=2, stop_ids=())) for prompt in prompts]
    scheduler.submit(Request(prompt_ids=(4, 5), max_tokens=2, stop_ids=())).result()
    assert not any(ticket.is_finished for ticket in long)
    assert all(len(ticket.result()[0].token_ids) == 2 for ticket in long)


def test_asyncio_reads_events_and_a_client_that_leaves_cancels(start_scheduler: StartScheduler) -> None:
    scheduler = start_scheduler(slots=2)
    request = Request(prompt_ids=(5,), max_tokens=80, sampling=GREEDY, stop_ids=())

    async def read_all() -> int:
        return sum([len(event.token_ids) async for event in scheduler.submit(request).aevents()])

    async def leave() -> Ticket:
        ticket = scheduler.submit(request)
        events = ticket.aevents()
        await anext(events)
        await events.aclose()  # type: ignore[attr-defined]
        return ticket

    async def both() -> tuple[list[int], Ticket]:
        return await asyncio.gather(*(read_all() for _ in range(8))), await leave()

    counts, left = asyncio.run(both())
    assert counts == [80] * 8
    assert left.is_cancelled or left.is_finished


def test_many_threads_may_submit_and_read(start_scheduler: StartScheduler) -> None:
    scheduler = start_scheduler(slots=4)
    texts: list[tuple[int, ...]] = []

    def ask() -> None:
        for _ in range(5):
            request = Request(prompt_ids=(5, 6), max_tokens=10, sampling=Sampling(seed=8), stop_ids=())
            texts.append(scheduler.submit(request).result()[0].token_ids)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(texts) == 40
    assert len(set(texts)) == 1


def test_requests_that_cannot_fit_are_refused_at_once(start_scheduler: StartScheduler) -> None:
    scheduler = start_scheduler(slots=1)
    with pytest.raises(ModelError, match="96 tokens and the model's context is 96"):
        scheduler.submit(Request(prompt_ids=(1,) * 96))
    with pytest.raises(ConfigError, match="queue_limit must be >= 0"):
        start_scheduler(queue_limit=-1)
