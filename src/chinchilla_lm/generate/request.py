"""What one asks of the generator, and what comes back: frozen values.

A request is a prompt and the rules of its continuation; its answer is a series of `Event`s for each of its `n` choices.
Never runs a model.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from chinchilla_lm.core.errors import ChinchillaError, ConfigError
from chinchilla_lm.generate.sampling import Sampling

if TYPE_CHECKING:
    from chinchilla_lm.generate.constraint import Constraint

LARGEST_SCALE = 100.0  # of guidance, of either sign: far beyond use (papers: 1 to 5)
FinishReason = Literal["stop", "length", "cancelled"]


class QueueFull(ChinchillaError):  # noqa: N818 - it says what is so; the caller may try again
    """The waiting line is at its limit, or the scheduler is closing."""


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Steering by a second prompt: logits = second + scale * (first - second), both as log-probabilities.

    Attributes:
        prompt_ids: what to steer away from ("" or a contrary instruction), 1 or more tokens.
        scale: 1 ignores the second prompt, more pushes away from it, 0 is the second prompt alone.

    Source: Sanchez et al. 2023, eq. 7; `UnbatchedClassifierFreeGuidanceLogitsProcessor` of `transformers`.
    """

    prompt_ids: tuple[int, ...]
    scale: float

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise ConfigError("guidance needs a second prompt of 1 or more tokens, got 0; give the end-of-text token")
        if not abs(self.scale) <= LARGEST_SCALE:  # also refuses nan
            raise ConfigError(f"guidance scale must be in [-100, 100], got {self.scale!r}; 1.5 is a usual value")


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt and the rules of its continuation.

    Attributes:
        prompt_ids: 1 to context - 1 tokens.
        max_tokens: most tokens of each choice, >= 0 (0 with `echo` scores the prompt); the context may end it earlier.
        sampling: how a token is chosen. Choice 0 draws with `sampling.seed`, the others with seeds derived from it.
        stop: strings that end the text and are no part of it; they may straddle tokens.
        stop_ids: tokens that end the text; None takes the scheduler's.
        logprobs: None for none; k for the log-probability of each token and of the k likeliest ones instead of it.
            They are the model's own: before temperature, penalties, bias, constraint and guidance.
        echo: the first event of each choice carries the prompt, with its log-probabilities if `logprobs` is set.
        n: choices wanted.
        best_of: choices made, of which the n with the highest mean log-probability are returned; None makes n.
            With more than n nothing is streamed: each choice comes in one event.
        bad_words: token sequences that may not come (`penalties.bad_word_ids` makes them from words).
        constraint: a form that the text must have (constraint.py).
        guidance: a second prompt to steer away from.
    """

    prompt_ids: tuple[int, ...]
    max_tokens: int = 128
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] | None = None
    logprobs: int | None = None
    echo: bool = False
    n: int = 1
    best_of: int | None = None
    bad_words: tuple[tuple[int, ...], ...] = ()
    constraint: Constraint | None = None
    guidance: Guidance | None = None

    def __post_init__(self) -> None:
        for name in ("prompt_ids", "stop", "bad_words"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.prompt_ids:
            raise ConfigError("the prompt has no tokens and needs 1; give the end-of-text token to start a new text")
        if self.max_tokens < (0 if self.echo else 1):
            raise ConfigError(f"max_tokens must be >= 1, got {self.max_tokens}; ask for at least one token")
        if self.n < 1:
            raise ConfigError(f"n must be >= 1, got {self.n}; ask for one choice")
        if self.best_of is not None and self.best_of < self.n:
            raise ConfigError(f"best_of must be >= n = {self.n}, got {self.best_of}; make at least n choices")
        if self.logprobs is not None and self.logprobs < 0:
            raise ConfigError(f"logprobs must be >= 0, got {self.logprobs}; 0 gives the chosen tokens' only")
        if not all(isinstance(stop, str) and stop for stop in self.stop):
            raise ConfigError(f"stop must be strings of 1 or more characters, got {self.stop!r}; leave out empty ones")
        if not all(self.bad_words):
            raise ConfigError("bad_words must be sequences of 1 or more tokens, got an empty one; leave it out")

    @property
    def choices(self) -> int:
        """Number of texts that are made: best_of, or n."""
        return self.best_of or self.n


@dataclass(frozen=True, kw_only=True)
class TokenLogprob:
    """A token of a text and how likely the model found it.

    Attributes:
        token: its id.
        logprob: natural logarithm of its probability; None for the first token of a prompt, which nothing precedes.
        top: (token, logprob) of the likeliest tokens at its place, best first; as many as asked for.
    """

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Event:
    """A piece of a choice.

    Attributes:
        index: of the choice, in [0, n).
        text: new whole characters; "" only in a choice's last event.
        token_ids: the tokens of this text (the prompt's in an echo), without end-of-text tokens.
        logprobs: one for each token if asked for, else empty.
        finish_reason: None until the choice's last event. "stop": a stop token, a stop string, or the constraint is
            fulfilled; "length": max_tokens or the end of the context; "cancelled".
        is_echo: the event repeats the prompt.
    """

    index: int
    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    is_echo: bool = False


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A finished choice: its events joined; the prompt is included if it was echoed."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    finish_reason: FinishReason


def join_events(events: Iterable[Event]) -> list[Choice]:
    """Return the choices of a finished series of events, in the order of their indices."""
    by_index: dict[int, list[Event]] = {}
    for event in events:
        by_index.setdefault(event.index, []).append(event)
    choices: list[Choice] = []
    for index, parts in sorted(by_index.items()):
        assert parts[-1].finish_reason is not None, f"choice {index} is not finished"
        choices.append(
            Choice(
                index=index,
                text="".join(part.text for part in parts),
                token_ids=tuple(token for part in parts for token in part.token_ids),
                logprobs=tuple(logprob for part in parts for logprob in part.logprobs),
                finish_reason=parts[-1].finish_reason,
            )
        )
    return choices
