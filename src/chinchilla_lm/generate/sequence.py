"""One choice of a request: logits in, tokens and text out, until it is finished.

Symbols: logits_v = (vocab,) float32. `TokenChooser` applies the rules of choice to one text; `TextSequence` adds what a
reader sees: whole characters, stop strings, log-probabilities, the reason of the end. Neither runs a model, and neither
knows what else is in a batch. Choice happens on the CPU, so that a seed means the same on every device.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from tokenizers import Tokenizer

from chinchilla_lm.core.errors import ConfigError, ModelError
from chinchilla_lm.generate.constraint import Matcher, compile_constraint
from chinchilla_lm.generate.penalties import Penalties
from chinchilla_lm.generate.request import Event, FinishReason, Request, TokenLogprob
from chinchilla_lm.generate.sampling import Sampling, choose_tokens
from chinchilla_lm.generate.stops import StopStrings
from chinchilla_lm.generate.text import TextStream

_SEED_STEP = 0x9E3779B97F4A7C15  # 2**64 / golden ratio, the step of SplitMix64 (Steele et al. 2014): no small seed


class TextSequence:
    """One choice in progress.

    Attributes:
        request, index: what it is.
        token_ids: tokens of the text so far.
        finish_reason: None while it runs.
        mean_logprob: of the chosen tokens, the ending one included; kept if the request asks for log-probabilities or
            for the best of several.
    """

    def __init__(
        self, request: Request, index: int, tokenizer: Tokenizer, *, vocab: int, room: int, stop_ids: Sequence[int]
    ) -> None:
        """Start a choice.

        Args:
            request: the wish.
            index: which choice, in [0, request.choices).
            tokenizer: of the model.
            vocab: number of logits.
            room: tokens that fit after the prompt.
            stop_ids: tokens that end the text if the request names none.

        Raises:
            ConfigError: the constraint cannot be enforced, or a token is outside the vocabulary.
        """
        self.request, self.index = request, index
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self._tokenizer = tokenizer
        self._stop_ids = tuple(stop_ids if request.stop_ids is None else request.stop_ids)
        self._limit = min(request.max_tokens, room)
        self._matcher: Matcher | None = None
        if request.constraint is not None:
            self._matcher = compile_constraint(request.constraint, tokenizer, vocab, self._stop_ids)
        penalties = Penalties(request.sampling, request.prompt_ids, request.bad_words, vocab)
        self._chooser = TokenChooser(request.sampling, penalties, self._matcher, choice=index)
        self._text_stream = TextStream(tokenizer, request.prompt_ids)
        self._stops = StopStrings(request.stop)
        self._characters = 0  # of the text so far, held ones included
        self._released = 0
        self._pending: list[tuple[int, TokenLogprob | None]] = []  # where a token's text starts, and the token
        self._pending_ids: list[int] = []
        self._keeps_logprobs = request.logprobs is not None or request.choices > request.n
        self._logprob_sum, self._logprob_count = 0.0, 0

    @property
    def mean_logprob(self) -> float:
        """Mean log-probability of the chosen tokens, nats; 0 before the first."""
        return self._logprob_sum / max(1, self._logprob_count)

    @property
    def tokens_left(self) -> int:
        """How many more tokens it may get."""
        return self._limit - len(self.token_ids)

    def copy_chooser(self) -> TokenChooser | None:
        """Return its rules of choice as they stand now, to be pushed on by themselves; None if a constraint is one."""
        return self._chooser.copy() if self._matcher is None else None

    @property
    def needs_prompt_logprobs(self) -> bool:
        """The prompt's logits are wanted at every position."""
        return self.request.echo and self.request.logprobs is not None

    def start(self, prompt_logprobs: Sequence[TokenLogprob] = ()) -> Event | None:
        """Return the first event of an echo (which is the last too if no tokens are wanted), else nothing."""
        if not self.request.echo:
            return None
        if self._limit == 0:
            self.finish_reason = "length"
        prompt_ids = self.request.prompt_ids
        return Event(
            index=self.index,
            text=self._tokenizer.decode(list(prompt_ids)),
            token_ids=prompt_ids,
            logprobs=tuple(prompt_logprobs),
            finish_reason=self.finish_reason,
            is_echo=True,
        )

    def advance(self, logits_v: torch.Tensor, steered_v: torch.Tensor | None = None) -> Event | None:
        """Choose the next token.

        Args:
            logits_v: the model's own logits.
            steered_v: those to choose from, if guidance changed them.

        Returns:
            New text, or nothing while it is held back.

        Raises:
            ModelError: the logits are nan or infinite.
            ConfigError: the constraint and the bad words leave no token.
        """
        logits_v = logits_v.float().cpu()
        token = self._chooser.choose(logits_v if steered_v is None else steered_v.float().cpu())
        logprob = self._note_logprob(logits_v, token)
        if token in self._stop_ids:
            return self._finish("stop", "")
        self.token_ids.append(token)
        self._pending.append((self._characters, logprob))
        self._pending_ids.append(token)
        piece = self._text_stream.push(token)
        self._characters += len(piece)
        text = self._stops.push(piece)
        if self._stops.found is not None or (self._matcher is not None and self._matcher.is_complete):
            return self._finish("stop", text)
        if len(self.token_ids) >= self._limit:
            return self._finish("length", text)
        return self._emit(text) if text else None

    def cancel(self) -> Event:
        """End it now; return the last event, with what was held back."""
        return self._finish("cancelled", "")

    def _note_logprob(self, logits_v: torch.Tensor, token: int) -> TokenLogprob | None:
        if not self._keeps_logprobs:
            return None
        logprob = token_logprobs(logits_v[None], [token], self.request.logprobs or 0)[0]
        assert logprob.logprob is not None
        self._logprob_sum += logprob.logprob
        self._logprob_count += 1
        return logprob if self.request.logprobs is not None else None

    def _finish(self, reason: FinishReason, text: str) -> Event:
        if self._stops.found is None:
            text += self._stops.push(self._text_stream.finish()) + self._stops.finish()
        if self._stops.found is not None and reason == "length":
            reason = "stop"
        self.finish_reason = reason
        return self._emit(text)

    def _emit(self, text: str) -> Event:
        """Release text and the tokens that begin in it; at the end all tokens, but none that begins in a stop."""
        self._released += len(text)
        if self.finish_reason is not None and self._stops.found is None:
            count = len(self._pending)
        else:
            count = sum(start < self._released for start, _ in self._pending)
        token_ids = tuple(self._pending_ids[:count])
        logprobs = tuple(logprob for _, logprob in self._pending[:count] if logprob is not None)
        del self._pending[:count], self._pending_ids[:count]
        return Event(
            index=self.index, text=text, token_ids=token_ids, logprobs=logprobs, finish_reason=self.finish_reason
        )


class TokenChooser:
    """The rules of choice for one text: its penalties, its constraint, its random numbers."""

    def __init__(
        self, sampling: Sampling, penalties: Penalties, matcher: Matcher | None = None, *, choice: int = 0
    ) -> None:
        """Args: choice: which of a request's texts; each has its own random numbers, choice 0 those of the seed."""
        self._sampling, self._penalties, self._matcher = sampling, penalties, matcher
        self._generator = torch.Generator().manual_seed(choice_seed(sampling, choice))

    def copy(self) -> TokenChooser:
        """Return a chooser with the same past and the same random numbers to come; there must be no constraint."""
        assert self._matcher is None
        other = copy.copy(self)
        other._penalties = self._penalties.copy()
        if self._sampling.temperature != 0:
            other._generator = torch.Generator()
            other._generator.set_state(self._generator.get_state())
        return other

    def choose(self, logits_v: torch.Tensor) -> int:
        """Choose a token from float32 logits on the CPU, and note it.

        Raises:
            ModelError: the logits are nan or infinite.
            ConfigError: no token may come.
        """
        refuse_diverged(logits_v)
        logits_v = self._penalties.apply(logits_v)
        if self._matcher is not None:
            logits_v = self._matcher.mask(logits_v)
        if (self._matcher is not None or self._penalties.can_ban) and float(logits_v.max()) == -math.inf:
            raise ConfigError("no token may come next: bad_words forbid all that the constraint allows; relax one")
        if self._sampling.temperature == 0:
            token = int(logits_v.numpy().argmax())  # a tenth of torch's time at a vocabulary of 49,152
        else:
            token = int(choose_tokens(logits_v[None], self._sampling, self._generator)[0])
        self._penalties.push(token)
        if self._matcher is not None:
            self._matcher.push(token)
        return token


def choice_seed(sampling: Sampling, choice: int) -> int:
    """Return the seed of one of a request's texts; that of the first is the request's."""
    return (sampling.seed + choice * _SEED_STEP) % 2**63


def refuse_diverged(logits_v: torch.Tensor) -> None:
    """Refuse logits that no distribution can be made of.

    Raises:
        ModelError: some are nan or infinite.
    """
    if not math.isfinite(float(logits_v.sum())):  # one nan or infinity makes the sum one; finite logits cannot
        raise ModelError("the model's logits are nan or infinite; its training diverged: use an earlier checkpoint")


def token_logprobs(logits_tv: torch.Tensor, token_ids: Sequence[int], count: int) -> list[TokenLogprob]:
    """Return the log-probability of each token, and of the likeliest ones at its place.

    Args:
        logits_tv: (t, vocab), the logits from which each token was to be predicted.
        token_ids: t tokens.
        count: how many of the likeliest, >= 0; no more than the vocabulary has are given.

    Returns:
        t records.
    """
    logprobs_tv = logits_tv.float().log_softmax(dim=-1)
    chosen_t = logprobs_tv.gather(1, torch.tensor(token_ids, device=logprobs_tv.device)[:, None])[:, 0].tolist()
    top = logprobs_tv.topk(min(count, logprobs_tv.shape[1]), dim=-1) if count else None
    values = top.values.tolist() if top is not None else [[]] * len(chosen_t)
    indices = top.indices.tolist() if top is not None else [[]] * len(chosen_t)
    return [
        TokenLogprob(token=token, logprob=logprob, top=tuple(zip(ids, logprobs, strict=True)))
        for token, logprob, ids, logprobs in zip(token_ids, chosen_t, indices, values, strict=True)
    ]
