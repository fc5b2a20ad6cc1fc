"""Text from a model, one request at a time and without threads.

`complete` answers a request on an engine that is kept (a chat's next turn reads only what is new); `decode_tokens`
yields token ids, `stream` text at complete characters, `generate` the whole text as a record. Randomness comes only
from `Sampling.seed`. For several requests at once see batching.py. Never prints, trains or loads files.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from tokenizers import Tokenizer

from chinchilla_lm.core.errors import ConfigError, ModelError
from chinchilla_lm.data.tokenizer import END_OF_TEXT
from chinchilla_lm.generate.engine import Engine
from chinchilla_lm.generate.penalties import Penalties
from chinchilla_lm.generate.request import Event, Request
from chinchilla_lm.generate.sampling import Sampling
from chinchilla_lm.generate.sequence import TextSequence, TokenChooser
from chinchilla_lm.generate.slots import Lane, Running, prompts_of, room_after
from chinchilla_lm.generate.speculative import Speculator, take_tokens
from chinchilla_lm.generate.text import encode_prompt, end_of_text_ids
from chinchilla_lm.generate.ticket import Ticket
from chinchilla_lm.model.transformer import Transformer

DEFAULT_SAMPLING = Sampling()


@dataclass(frozen=True, kw_only=True)
class Generation:
    """A finished text.

    Attributes:
        text: the continuation, without the prompt and without the end-of-text token.
        tokens: number of tokens in `token_ids`.
        token_ids: the chosen tokens, without the end-of-text token.
        finish_reason: "stop" when the model ended the text, "length" at `max_tokens` or at the end of the context.
        tokens_per_s: tokens over wall seconds, the prompt's prefill included.
        draft_guesses, draft_kept: tokens that a draft guessed, and those that were right.
    """

    text: str
    tokens: int
    token_ids: tuple[int, ...]
    finish_reason: Literal["stop", "length"]
    tokens_per_s: float
    draft_guesses: int = 0
    draft_kept: int = 0


def generate(
    model: Transformer,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    max_tokens: int = 128,
    sampling: Sampling = DEFAULT_SAMPLING,
    stop_ids: Collection[int] | None = None,
    draft: Engine | None = None,
) -> Generation:
    """Continue a prompt and return the whole text.

    Args:
        model: on any device; not changed.
        tokenizer: of the same vocabulary; its own rule decides whether a start token is put before the prompt.
        prompt: any text; "" starts a new text.
        max_tokens: most tokens to add, >= 1; the end of the context may come first.
        sampling: how a token is chosen.
        stop_ids: tokens that end the text; None takes the tokenizer's end-of-text token.
        draft: of a smaller model that guesses tokens; the text stays the same.

    Returns:
        The text and its record.

    Raises:
        ModelError: the prompt fills the context, or the model's logits are not finite.
        ConfigError: max_tokens < 1.
    """
    pieces = stream(model, tokenizer, prompt, max_tokens=max_tokens, sampling=sampling, stop_ids=stop_ids, draft=draft)
    while True:
        try:
            next(pieces)
        except StopIteration as finished:
            return finished.value


def stream(
    model: Transformer,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    max_tokens: int = 128,
    sampling: Sampling = DEFAULT_SAMPLING,
    stop_ids: Collection[int] | None = None,
    draft: Engine | None = None,
) -> Generator[str, None, Generation]:
    """Continue a prompt; yield non-empty pieces of text as their characters complete, and return the record.

    Args and errors are those of `generate`; errors come with the first piece. The pieces joined are `Generation.text`.
    """
    started = time.perf_counter()
    prompt_ids = encode_prompt(tokenizer, prompt)
    room = _room_after(prompt_ids, model.shape.context)
    engine = _engine_for(model, len(prompt_ids) + max(1, min(max_tokens, room)))
    request = Request(
        prompt_ids=tuple(prompt_ids),
        max_tokens=max_tokens,
        sampling=sampling,
        stop_ids=None if stop_ids is None else tuple(stop_ids),
    )
    speculator = None if draft is None else Speculator(engine, draft)
    token_ids: list[int] = []
    pieces: list[str] = []
    finish_reason: Literal["stop", "length"] = "length"
    for event in complete(engine, tokenizer, request, speculator=speculator):
        token_ids += event.token_ids
        if event.finish_reason == "stop":
            finish_reason = "stop"
        if event.text:
            pieces.append(event.text)
            yield event.text
    return Generation(
        text="".join(pieces),
        tokens=len(token_ids),
        token_ids=tuple(token_ids),
        finish_reason=finish_reason,
        tokens_per_s=len(token_ids) / (time.perf_counter() - started),
        draft_guesses=0 if speculator is None else speculator.acceptance.proposed,
        draft_kept=0 if speculator is None else speculator.acceptance.kept,
    )


def complete(
    engine: Engine,
    tokenizer: Tokenizer,
    request: Request,
    *,
    stop_ids: Sequence[int] | None = None,
    speculator: Speculator | None = None,
) -> Iterator[Event]:
    """Answer one request in the calling thread, its choices one after the other.

    Args:
        engine: its slot 0 is used (and 1 with guidance); what it holds of the prompt already is not read again.
        tokenizer: of the engine's model.
        request: the wish.
        stop_ids: tokens that end a text if the request names none; None takes the tokenizer's end-of-text token.
        speculator: the engine with a draft that guesses tokens; the text stays the same.

    Yields:
        Events as a scheduler would give them.

    Raises:
        ModelError: a prompt does not fit, or the model's logits are not finite.
        ConfigError: a token is outside the vocabulary, or the constraint cannot be enforced.
    """
    room = room_after(request, engine)
    stop_ids = end_of_text_ids(tokenizer) if stop_ids is None else stop_ids
    sequences = [
        TextSequence(request, index, tokenizer, vocab=engine.vocab, room=room, stop_ids=stop_ids)
        for index in range(request.choices)
    ]
    ticket = Ticket(request, sequences, lambda: None)
    for sequence in sequences:
        lanes = [Lane(slot, prompt_ids) for slot, prompt_ids in enumerate(prompts_of(request))]
        running = Running(ticket, sequence, lanes)
        while not running.is_prefilled:
            running.prefill(engine, engine.capacity)
        event = running.begin()
        if event is not None:
            ticket.publish(sequence, event)
        if sequence.finish_reason is None:
            _advance(running)
        yield from ticket.take()
        while sequence.finish_reason is None:
            guesses = [] if speculator is None else speculator.guess([running]).get(running, [])
            running.decode(engine, guesses)
            kept = take_tokens(engine, running, guesses, partial(_advance, running))
            if speculator is not None:
                speculator.note(len(guesses), kept)
            yield from ticket.take()


def _advance(running: Running) -> None:
    event = running.advance()
    if event is not None:
        running.ticket.publish(running.sequence, event)


def decode_tokens(
    model: Transformer, prompt_ids: Sequence[int], *, max_tokens: int, sampling: Sampling
) -> Iterator[int]:
    """Yield the tokens that follow a prompt, one forward pass a token; knows nothing of text or of where it ends.

    Args:
        model: any layout.
        prompt_ids: 1 to context - 1 token ids.
        max_tokens: most tokens to yield, >= 1; fewer when the context ends.
        sampling: how a token is chosen.

    Yields:
        Token ids.

    Raises:
        ModelError: the prompt fills the context, or the model's logits are not finite.
        ConfigError: max_tokens < 1.
    """
    if max_tokens < 1:
        raise ConfigError(f"max_tokens must be >= 1, got {max_tokens}; ask for at least one token")
    count = min(max_tokens, _room_after(prompt_ids, model.shape.context))
    engine = _engine_for(model, len(prompt_ids) + count)
    chooser = TokenChooser(sampling, Penalties(sampling, prompt_ids, (), engine.vocab))
    logits_v = engine.prefill(0, prompt_ids)
    for place in range(count):
        token = chooser.choose(logits_v.float().cpu())
        yield token
        if place + 1 < count:
            logits_v = engine.decode([0], [token])[0]


def _engine_for(model: Transformer, capacity: int) -> Engine:
    """One slot whose weights have the type that the model computes in: the text is the model's own."""
    is_half = model.compute_dtype == torch.bfloat16
    return Engine(model, slots=1, capacity=capacity, weights="bfloat16" if is_half else "float32")


def _room_after(prompt_ids: Sequence[int], context: int) -> int:
    """Return how many positions the context has after the prompt, >= 1."""
    if not prompt_ids:
        raise ModelError(f"an empty prompt needs the token {END_OF_TEXT}, which this vocabulary lacks; write a prompt")
    if len(prompt_ids) >= context:
        raise ModelError(
            f"the prompt has {len(prompt_ids)} tokens and the model's context is {context}: shorten the prompt to at "
            f"most {context - 1} tokens, or train a model with a longer context"
        )
    return context - len(prompt_ids)
