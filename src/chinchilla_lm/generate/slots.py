"""A sequence in slots of the engine: filling its prompt part by part, and decoding its next token.

A sequence has one lane (a prompt in a slot), or two if a second prompt steers it; all lanes get the same new tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch

from chinchilla_lm.core.errors import ConfigError, ModelError
from chinchilla_lm.generate.engine import Engine, shared_prefix
from chinchilla_lm.generate.request import Event, Guidance, Request, TokenLogprob
from chinchilla_lm.generate.sequence import TextSequence, token_logprobs
from chinchilla_lm.generate.ticket import Ticket

SCORED_TOKENS = 128
"""Prompt tokens whose logits exist at once when a prompt is scored: 25 MB at a vocabulary of 49,152."""


@dataclass(eq=False)
class Lane:
    """A prompt in a slot: `filled` of its tokens are in the cache; `logits_v` follow the last token.

    `rows_tv` are the logits of the last pass, which read the last token and the draft's guesses after it.
    """

    slot: int
    prompt_ids: tuple[int, ...]
    filled: int = 0
    logits_v: torch.Tensor | None = None
    rows_tv: torch.Tensor | None = None


@dataclass(eq=False)
class Running:
    """A sequence that holds slots."""

    ticket: Ticket
    sequence: TextSequence
    lanes: list[Lane]
    scored: list[TokenLogprob] = field(default_factory=list)

    @property
    def is_prefilled(self) -> bool:
        """Every prompt is in the cache: decoding may begin."""
        return all(lane.filled == len(lane.prompt_ids) for lane in self.lanes)

    @property
    def unfilled(self) -> Lane:
        """The first lane whose prompt is not in the cache."""
        return next(lane for lane in self.lanes if lane.filled < len(lane.prompt_ids))

    @property
    def must_score(self) -> bool:
        """The unfilled lane's logits are wanted at every position, and no choice of the request has had them yet."""
        is_first = self.unfilled is self.lanes[0]
        return is_first and self.sequence.needs_prompt_logprobs and not self.ticket.prompt_logprobs

    def prefill(self, engine: Engine, budget: int) -> None:
        """Fill at most `budget` more tokens of the first unfilled lane."""
        lane = self.unfilled
        if self.must_score:
            self._score_prompt(engine, lane, budget)
            return
        end = min(lane.filled + budget, len(lane.prompt_ids))
        lane.logits_v, lane.filled = engine.prefill(lane.slot, list(lane.prompt_ids[:end])), end

    def begin(self) -> Event | None:
        """Return the echo, if one is wanted."""
        return self.sequence.start(self.ticket.prompt_logprobs)

    def decode(self, engine: Engine, guesses: Sequence[int] = ()) -> None:
        """Read the last token (and guesses) in every lane, alone: for one text, or after a batch failed."""
        for lane in self.lanes:
            lane.rows_tv = engine.extend(lane.slot, [self.sequence.token_ids[-1], *guesses])

    def advance(self) -> Event | None:
        """Choose the next token from the lanes' logits."""
        logits_v = self.lanes[0].logits_v
        assert logits_v is not None
        guidance = self.sequence.request.guidance
        if guidance is None:
            return self.sequence.advance(logits_v)
        second_v = self.lanes[1].logits_v
        assert second_v is not None
        return self.sequence.advance(logits_v, steer(logits_v, second_v, guidance))

    def _score_prompt(self, engine: Engine, lane: Lane, budget: int) -> None:
        # Every position's logits are needed, so nothing of the cache is reused.
        if lane.filled == 0:
            engine.clear(lane.slot)
            self.scored.append(TokenLogprob(token=lane.prompt_ids[0], logprob=None))
        start, end = lane.filled, min(lane.filled + min(budget, SCORED_TOKENS), len(lane.prompt_ids))
        logits_tv = engine.extend(lane.slot, list(lane.prompt_ids[start:end]))
        targets = lane.prompt_ids[start + 1 : end + 1]
        count = self.sequence.request.logprobs or 0
        self.scored += token_logprobs(logits_tv[: len(targets)], targets, count)
        lane.filled, lane.logits_v = end, logits_tv[-1]
        if end == len(lane.prompt_ids):
            self.ticket.prompt_logprobs = self.scored


def prompts_of(request: Request) -> list[tuple[int, ...]]:
    """Return the prompts that need a slot each: the request's, and the second one of its guidance."""
    return [request.prompt_ids, *([request.guidance.prompt_ids] if request.guidance else [])]


def room_after(request: Request, engine: Engine) -> int:
    """Return how many tokens fit after the longest of a request's prompts.

    Raises:
        ModelError: a prompt does not fit.
        ConfigError: a token is outside the vocabulary, or the engine has too few slots.
    """
    prompts = prompts_of(request)
    if len(prompts) > engine.slots:
        raise ConfigError("guidance needs 2 slots and the engine has 1; start it with more, or leave guidance out")
    for token in (token for prompt in prompts for token in prompt):
        if not 0 <= token < engine.vocab:
            raise ConfigError(f"token {token} must be in [0, {engine.vocab}), the vocabulary; correct the id")
    longest = max(map(len, prompts))
    if longest > engine.capacity - min(1, request.max_tokens):
        raise ModelError(
            f"the prompt has {longest} tokens and the model's context is {engine.capacity}: shorten the prompt to at "
            f"most {engine.capacity - 1} tokens, or train a model with a longer context"
        )
    return engine.capacity - longest


def steer(logits_v: torch.Tensor, second_v: torch.Tensor, guidance: Guidance) -> torch.Tensor:
    """Return log-probabilities moved away from those of the second prompt; see `Guidance`."""
    first_v, second_v = logits_v.float().log_softmax(-1), second_v.float().log_softmax(-1)
    return guidance.scale * (first_v - second_v) + second_v


def choose_slot(engine: Engine, free: Iterable[int], prompt_ids: Sequence[int]) -> tuple[int, int]:
    """Choose the free slot whose cache shares the longest prefix; of equals, the first.

    Args:
        engine: holds the caches.
        free: slots, the longest unused first.
        prompt_ids: what is to be filled in.

    Returns:
        The slot, and the number of tokens shared.
    """
    shared = {slot: shared_prefix(engine.tokens(slot), prompt_ids) for slot in free}
    slot = max(shared, key=lambda slot: shared[slot])
    return slot, shared[slot]
