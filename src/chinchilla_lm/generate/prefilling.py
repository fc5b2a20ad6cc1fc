"""Reading the prompts of several texts: which parts are read in one pass, and what another slot holds already.

A pass over the weights costs nearly the same for a few tokens as for one, so the unread prompts share it. Prompts that
begin alike (the choices of one request, a common system message) are read once: the second waits until the first has
read the common part, and copies it. Never chooses tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from chinchilla_lm.generate.engine import Engine, shared_prefix
from chinchilla_lm.generate.slots import Lane, Running, choose_slot

PREFILL_TOKENS = 128
"""Prompt tokens read between two tokens of the running texts. On SmolLM2-135M (bfloat16, one core, 2026-11-22) they
take 62 ms, a step of 8 texts 24 ms; a longer part reads no faster (512: 238 ms)."""
LEAST_PREFILL_TOKENS = 16
"""Smallest share of one prompt if several are being read: what one pass of the tile units takes at once."""
LEAST_SHARED_TOKENS = 16
"""A prompt does not wait for a shorter common part than this: reading it costs no more than the wait."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A stretch of a prompt to read now: `lane` of `running`, up to token `end`."""

    running: Running
    lane: Lane
    end: int


def choose_parts(engine: Engine, unread: Sequence[Running], turn: int) -> tuple[list[Part], int]:
    """Choose what is read in one round, at most PREFILL_TOKENS; what another slot holds is copied now.

    Args:
        engine: holds the caches.
        unread: texts with unread prompts, in the order they came.
        turn: whose prompt comes first, counted on from round to round.

    Returns:
        At least one part (the first text never waits), and the number of tokens that were copied.
    """
    share = max(LEAST_PREFILL_TOKENS, PREFILL_TOKENS // len(unread))
    in_turn = deque(enumerate(unread))
    in_turn.rotate(-(turn % len(unread)))
    parts: list[Part] = []
    budget, copied = PREFILL_TOKENS, 0
    for place, running in in_turn:
        if budget <= 0:
            break
        if any(_is_worth_waiting(running, earlier) for earlier in unread[:place]):
            continue
        lane = running.unfilled
        if not running.must_score:
            copied += _copy_known(engine, lane)
        end = min(lane.filled + min(share, budget), len(lane.prompt_ids))
        budget -= end - lane.filled
        parts.append(Part(running=running, lane=lane, end=end))
    return parts, copied


def read_together(engine: Engine, parts: Sequence[Part]) -> None:
    """Read parts of several prompts in one pass; none must be scored.

    Raises:
        ModelError: as `Engine.prefill_many`; then no lane has changed.
    """
    slots, prompts = [part.lane.slot for part in parts], [part.lane.prompt_ids[: part.end] for part in parts]
    logits_bv = engine.prefill_many(slots, prompts)
    for part, logits_v in zip(parts, logits_bv, strict=True):
        part.lane.logits_v, part.lane.filled = logits_v, part.end


def _is_worth_waiting(running: Running, earlier: Running) -> bool:
    """Whether an earlier text is about to read (or score) what this one needs."""
    mine, theirs = running.unfilled, earlier.unfilled
    if running.must_score:
        return running.ticket is earlier.ticket and earlier.must_score
    common = min(shared_prefix(mine.prompt_ids, theirs.prompt_ids), len(mine.prompt_ids) - 1)
    return common > theirs.filled and common - mine.filled >= LEAST_SHARED_TOKENS


def _copy_known(engine: Engine, lane: Lane) -> int:
    """Copy what another slot holds of a prompt beyond the lane's own part; return how many tokens more that is."""
    source, shared = choose_slot(engine, range(engine.slots), lane.prompt_ids)
    known = min(shared, len(lane.prompt_ids) - 1)  # the last token is read in any case: its logits are asked for
    if known <= lane.filled:
        return 0
    if source != lane.slot:
        engine.copy(source, lane.slot, known)
    more, lane.filled = known - lane.filled, known
    return more
