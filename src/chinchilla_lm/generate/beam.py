"""Beam search: the most likely whole texts, not the most likely next token each time.

Symbols: logits_bv = (beams, vocab) float32. A beam is a running text with the sum of its tokens' log-probabilities;
each lives in its own slot of the engine. The rules (which candidates run on, when a text counts as finished, when to
stop) are those of `transformers`' `generate(num_beams=...)`, and so is the result. Needs an engine for itself.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from chinchilla_lm.core.errors import ConfigError
from chinchilla_lm.generate.engine import Engine


@dataclass(frozen=True, kw_only=True)
class BeamSearch:
    """The settings, with the names and meanings of `transformers`.

    Attributes:
        beams: texts that run side by side, 1 to the engine's slots.
        length_penalty: a finished text's score is its log-probability over its length to this power; > 0 favours long.
        early_stopping: True stops at `beams` finished texts; False when the best running text, at its present length,
            would not beat the worst finished one; "never" when no running text can, at any length.
    """

    beams: int = 4
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False

    def __post_init__(self) -> None:
        if self.beams < 1:
            raise ConfigError(f"beams must be >= 1, got {self.beams}; 4 is usual")


@dataclass(frozen=True, kw_only=True)
class Beam:
    """A finished text.

    Attributes:
        token_ids: without the stop token.
        score: log-probability (the stop token's included) over length to the power of the length penalty, nats.
        finish_reason: "stop" or "length".
    """

    token_ids: tuple[int, ...]
    score: float
    finish_reason: Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True)
class _Running:
    token_ids: tuple[int, ...]
    logprob: float
    slot: int


def search_beams(
    engine: Engine,
    prompt_ids: Sequence[int],
    settings: BeamSearch,
    *,
    max_tokens: int,
    stop_ids: Collection[int] = (),
) -> list[Beam]:
    """Return the best finished texts, best first: `settings.beams` of them, or fewer if no more finished.

    Args:
        engine: with as many slots as beams, or more; all may be used.
        prompt_ids: 1 to capacity - 1 tokens.
        settings: how to search.
        max_tokens: most tokens of a text, >= 1, the stop token included; the engine's capacity may end it earlier.
        stop_ids: tokens that end a text.

    Raises:
        ConfigError: more beams than slots, or max_tokens < 1.
        ModelError: the prompt does not fit, or the model's logits are not finite.

    Source: Graves 2012 (arXiv 1211.3711), section 3; `_beam_search` of transformers 5.23.
    """
    if settings.beams > engine.slots:
        raise ConfigError(f"{settings.beams} beams need as many slots, and the engine has {engine.slots}; take fewer")
    if max_tokens < 1:
        raise ConfigError(f"max_tokens must be >= 1, got {max_tokens}; ask for at least one token")
    prompt_ids = list(prompt_ids)
    limit = min(max_tokens, engine.capacity - len(prompt_ids))
    kept = max(2, 1 + len(set(stop_ids))) * settings.beams
    running = [_Running(token_ids=(), logprob=0.0, slot=0)]
    logits_bv = engine.prefill(0, prompt_ids)[None]
    finished: list[Beam] = []
    for length in range(1, limit + 1):
        candidates = _best_candidates(running, logits_bv, kept)
        has_ended = [length == limit or ids[-1] in stop_ids for _, ids, _ in candidates]
        for (_, ids, logprob), ended in list(zip(candidates, has_ended, strict=True))[: settings.beams]:
            if ended:
                finished.append(_finish(ids, logprob / length**settings.length_penalty, stop_ids))
        finished = sorted(finished, key=lambda beam: -beam.score)[: settings.beams]
        open_ones = [candidate for candidate, ended in zip(candidates, has_ended, strict=True) if not ended]
        if not open_ones or _is_decided(finished, open_ones[0][2], settings, length, limit):
            break
        running, logits_bv = _continue(engine, prompt_ids, running, open_ones[: settings.beams])
    return finished


def _best_candidates(
    running: list[_Running], logits_bv: torch.Tensor, count: int
) -> list[tuple[int, tuple[int, ...], float]]:
    """The likeliest continuations by one token of all beams: (beam, tokens, log-probability), best first."""
    sums_bv = logits_bv.float().log_softmax(-1)
    sums_bv = sums_bv + torch.tensor([[beam.logprob] for beam in running], device=sums_bv.device)
    vocab = sums_bv.shape[1]
    best = sums_bv.flatten().topk(min(count, sums_bv.numel()))
    return [
        (index // vocab, (*running[index // vocab].token_ids, index % vocab), logprob)
        for index, logprob in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def _finish(token_ids: tuple[int, ...], score: float, stop_ids: Collection[int]) -> Beam:
    if token_ids[-1] in stop_ids:
        return Beam(token_ids=token_ids[:-1], score=score, finish_reason="stop")
    return Beam(token_ids=token_ids, score=score, finish_reason="length")


def _is_decided(finished: list[Beam], best_running: float, settings: BeamSearch, length: int, limit: int) -> bool:
    """Whether no running text is worth going on with."""
    if len(finished) < settings.beams:
        return False
    if settings.early_stopping is True:
        return True
    # With a positive penalty on a negative sum the greatest length gives the highest score that a text can reach.
    reach = limit if settings.early_stopping == "never" and settings.length_penalty > 0 else length
    return best_running / reach**settings.length_penalty <= finished[-1].score


def _continue(
    engine: Engine,
    prompt_ids: list[int],
    running: list[_Running],
    chosen: list[tuple[int, tuple[int, ...], float]],
) -> tuple[list[_Running], torch.Tensor]:
    """Give each chosen text a slot and read its last token.

    The first child of a beam stays in its slot; a further child takes a slot that no child stays in, where only what
    differs from that slot's text is read again.
    """
    staying: dict[int, int] = {}
    for place, (parent, _, _) in enumerate(chosen):
        staying.setdefault(parent, place)
    places = set(staying.values())
    kept_slots = {running[parent].slot for parent in staying}
    free_slots = [slot for slot in range(engine.slots) if slot not in kept_slots]
    slots = [
        running[parent].slot if place in places else free_slots.pop() for place, (parent, _, _) in enumerate(chosen)
    ]
    logits: dict[int, torch.Tensor] = {}
    for place, (_, token_ids, _) in enumerate(chosen):
        if place not in places:
            logits[place] = engine.prefill(slots[place], [*prompt_ids, *token_ids])
    stayers = sorted(places)
    rows = engine.decode([slots[place] for place in stayers], [chosen[place][1][-1] for place in stayers])
    logits |= dict(zip(stayers, rows, strict=True))
    beams = [
        _Running(token_ids=token_ids, logprob=logprob, slot=slot)
        for (_, token_ids, logprob), slot in zip(chosen, slots, strict=True)
    ]
    return beams, torch.stack([logits[place] for place in range(len(chosen))])
