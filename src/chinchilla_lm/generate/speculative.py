"""Speculative decoding: a small sibling guesses several tokens, the model checks them in one pass. Exact.

Symbols: p_v the model's distribution at a place, q_v the draft's, both after penalties, temperature and cuts. A guess x
drawn from q is kept with probability min(1, p(x) / q(x)); the first that is not is replaced by a draw from
max(0, p - q), normalised. The text then has exactly the model's distribution, and with temperature 0 exactly its greedy
text (with a seed: other tokens than without a draft, from the same distribution). One text at a time: with a full batch
the model's pass costs more for each guess, and nothing is won.

A draft pays where a token costs the reading of many weights. The model's own copy with int8 weights is one that is
always at hand: SmolLM2-135M on one core makes the same greedy text in 22.7 instead of 35.4 ms a token (float32) and
17.2 instead of 24.3 (bfloat16) with 4 guesses, of which 0.94 and 0.90 are kept (2026-11-22). A model of 4 million
parameters, whose token takes 1 ms, was slower with a sibling a tenth its size than alone at most settings: 0.35 to
0.50 of single guesses were kept, 0.14 to 0.21 of four.

Source: Leviathan et al. 2023 (arXiv 2211.17192), algorithm 1 and appendix A.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer

from chinchilla_lm.core.errors import ConfigError
from chinchilla_lm.generate.engine import Engine
from chinchilla_lm.generate.penalties import Penalties
from chinchilla_lm.generate.request import Event, Request
from chinchilla_lm.generate.sampling import Sampling, choose_tokens, draw_tokens, token_probabilities
from chinchilla_lm.generate.sequence import TextSequence, choice_seed, refuse_diverged
from chinchilla_lm.generate.slots import room_after
from chinchilla_lm.generate.text import end_of_text_ids


@dataclass(frozen=True, kw_only=True)
class Acceptance:
    """What the draft was worth.

    Attributes:
        proposed, accepted: guesses made, and kept.
        passes: passes of the model after the prompt's; without a draft there would be one a token.
        tokens: tokens made.
    """

    proposed: int = 0
    accepted: int = 0
    passes: int = 0
    tokens: int = 0

    @property
    def rate(self) -> float:
        """Kept guesses over guesses, in [0, 1]; 0 before the first."""
        return self.accepted / max(1, self.proposed)


class Speculator:
    """A model and its draft, each in slot 0 of its own engine.

    Attributes:
        acceptance: counts since the start.
    """

    def __init__(self, target: Engine, draft: Engine, *, guesses: int = 4) -> None:
        """Pair two engines.

        Args:
            target: the model.
            draft: a smaller one with the same tokenizer (a sweep's trials are siblings), so with as many logits.
            guesses: tokens guessed before each check, >= 1.

        Raises:
            ConfigError: the vocabularies differ, or guesses < 1.
        """
        if draft.vocab != target.vocab:
            raise ConfigError(
                f"the draft's vocabulary of {draft.vocab} must be the model's of {target.vocab}; take a model of the "
                "same sweep"
            )
        if guesses < 1:
            raise ConfigError(f"guesses must be >= 1, got {guesses}; 4 is usual")
        self.acceptance = Acceptance()
        self._target, self._draft, self._guesses = target, draft, guesses

    def complete(
        self, tokenizer: Tokenizer, request: Request, *, stop_ids: Sequence[int] | None = None
    ) -> Iterator[Event]:
        """Answer a request of one choice; arguments, events and errors as of `completion.complete`.

        Raises:
            ConfigError: also for several choices, a constraint, guidance or an echo with log-probabilities.
        """
        is_plain = request.choices == 1 and request.constraint is None and request.guidance is None
        if not is_plain or (request.echo and request.logprobs is not None):
            raise ConfigError(
                "a draft serves one choice without constraint, guidance or log-probabilities of the prompt; leave the "
                "draft out"
            )
        sequence = TextSequence(
            request,
            0,
            tokenizer,
            vocab=self._target.vocab,
            room=room_after(request, self._target),
            stop_ids=end_of_text_ids(tokenizer) if stop_ids is None else stop_ids,
        )
        if (echo := sequence.start()) is not None:
            yield echo
        if sequence.finish_reason is not None:
            return
        penalties = Penalties(request.sampling, request.prompt_ids, request.bad_words, self._target.vocab)
        for token, logits_v in self.decode(request.prompt_ids, request.sampling, penalties):
            event = sequence.accept(token, logits_v)
            if event is not None:
                yield event
            if sequence.finish_reason is not None:
                return

    def decode(
        self, prompt_ids: Sequence[int], sampling: Sampling, penalties: Penalties | None = None
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield tokens, each with the model's logits (vocab,) float32 that it was chosen from; ends with the context.

        Args:
            prompt_ids: 1 to capacity - 1 tokens.
            sampling: how a token is chosen.
            penalties: the text's; None makes them from `sampling`.
        """
        if penalties is None:
            penalties = Penalties(sampling, prompt_ids, (), self._target.vocab)
        generator = torch.Generator().manual_seed(choice_seed(sampling, 0))
        ids = list(prompt_ids)
        logits_v = self._target.prefill(0, ids).cpu()
        refuse_diverged(logits_v)
        token = int(choose_tokens(penalties.apply(logits_v)[None], sampling, generator)[0])
        round_ = [(token, logits_v)]
        while True:
            for token, logits_v in round_:
                ids.append(token)
                penalties.push(token)
                self._count(tokens=1)
                yield token, logits_v
            # The model has read all but the last token: a check reads it and the guesses.
            if len(ids) == self._target.capacity:
                return
            round_ = self._round(ids, sampling, penalties, generator)

    def _round(
        self, ids: list[int], sampling: Sampling, penalties: Penalties, generator: torch.Generator
    ) -> list[tuple[int, torch.Tensor]]:
        """Guess, check; return the tokens that follow, 1 or more."""
        count = min(self._guesses, self._target.capacity - len(ids) - 1, self._draft.capacity - len(ids))
        guesses = self._guess(ids, count, sampling, penalties.copy(), generator) if count > 0 else []
        self._target.truncate(0, len(ids) - 1)
        logits_tv = self._target.extend(0, [ids[-1], *(token for token, _ in guesses)]).cpu()
        self._count(passes=1, proposed=len(guesses))
        past = penalties.copy()
        chosen: list[tuple[int, torch.Tensor]] = []
        for (token, q_v), logits_v in zip(guesses, logits_tv, strict=False):
            refuse_diverged(logits_v)
            p_v = token_probabilities(past.apply(logits_v)[None], sampling)[0]
            # A guess had q > 0. Greedy: both are 0 or 1, and the comparison is certain.
            is_kept = float(torch.rand((), generator=generator)) * float(q_v[token]) < float(p_v[token])
            if not is_kept:
                rest_v = (p_v - q_v).clamp_min(0)  # all 0 only if p and q differ by rounding
                token = int(draw_tokens((rest_v if bool(rest_v.any()) else p_v)[None], generator)[0])
            chosen.append((token, logits_v))
            past.push(token)
            if not is_kept:
                return chosen
            self._count(accepted=1)
        refuse_diverged(logits_tv[-1])
        token = int(choose_tokens(past.apply(logits_tv[-1])[None], sampling, generator)[0])
        return [*chosen, (token, logits_tv[-1])]

    def _guess(
        self, ids: list[int], count: int, sampling: Sampling, past: Penalties, generator: torch.Generator
    ) -> list[tuple[int, torch.Tensor]]:
        """Tokens that the draft draws, each with the distribution it was drawn from."""
        guesses: list[tuple[int, torch.Tensor]] = []
        logits_v = self._draft.prefill(0, ids)
        while True:
            q_v = token_probabilities(past.apply(logits_v.cpu())[None], sampling)[0]
            token = int(draw_tokens(q_v[None], generator)[0])
            guesses.append((token, q_v))
            if len(guesses) == count:
                return guesses
            past.push(token)
            logits_v = self._draft.decode([0], [token])[0]

    def _count(self, **more: int) -> None:
        old = self.acceptance
        self.acceptance = Acceptance(
            proposed=old.proposed + more.get("proposed", 0),
            accepted=old.accepted + more.get("accepted", 0),
            passes=old.passes + more.get("passes", 0),
            tokens=old.tokens + more.get("tokens", 0),
        )
