"""Speculative decoding: a small sibling guesses tokens, the model checks several in one pass; the text is the same.

A guess is chosen from the draft's logits by a copy of the text's own rules: its penalties, its cuts, its next random
numbers. The model then chooses every token from its own logits as it would without a draft; a guess that equals its
choice spares the pass that would have followed. So a text is token for token the one without a draft, sampled ones
included, and a batch may hold texts with and without guesses. A pass of the tile units costs nearly the same for 1 and
for 16 rows: the guesses of all texts together fill no more.

Differs: Leviathan et al. 2023 (arXiv 2211.17192), algorithm 1, keep a guess with probability min(1, p / q) and draw
again from what remains, which keeps somewhat more sampled guesses and gives another text of the same distribution.

A draft pays where a token costs the reading of many weights. SmolLM2-135M on one core with its own copy in int8 as a
draft: 22.7 instead of 35.4 ms a token (float32), 17.2 instead of 24.3 (bfloat16), 0.94 and 0.90 of 4 guesses kept
(2026-11-22). A model of 4 million parameters, whose token takes 1 ms, was slower with a sibling a tenth its size than
alone: 0.35 to 0.50 of single guesses were kept, 0.14 to 0.21 of four.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from chinchilla_lm.core.errors import ConfigError, ModelError
from chinchilla_lm.generate.engine import Engine, shared_prefix
from chinchilla_lm.generate.prefilling import PREFILL_TOKENS
from chinchilla_lm.generate.sequence import TokenChooser
from chinchilla_lm.generate.slots import Running

GUESSES = 4
PASS_ROWS = 16  # of a tile of tokens


@dataclass(frozen=True, kw_only=True)
class Acceptance:
    """What the draft was worth: guesses made, and kept. Each that was kept spared a pass of the model."""

    proposed: int = 0
    kept: int = 0

    @property
    def rate(self) -> float:
        """Kept guesses over guesses, in [0, 1]; 0 before the first."""
        return self.kept / max(1, self.proposed)


class Speculator:
    """A model's draft. What slot i of the model holds, slot i of the draft follows.

    Attributes:
        acceptance: counts since the start.
    """

    def __init__(self, target: Engine, draft: Engine, *, guesses: int = GUESSES) -> None:
        """Pair two engines.

        Args:
            target: the model.
            draft: a smaller one with the same tokenizer (a sweep's trials are siblings), and as many slots.
            guesses: most tokens guessed for a text before each check, >= 1.

        Raises:
            ConfigError: the vocabularies differ, the draft has fewer slots, or guesses < 1.
        """
        if draft.vocab != target.vocab:
            raise ConfigError(
                f"the draft's vocabulary of {draft.vocab} must be the model's of {target.vocab}; take a model of the "
                "same sweep"
            )
        if draft.slots < target.slots:
            raise ConfigError(
                f"the draft has {draft.slots} slots and needs the model's {target.slots}; give it as many"
            )
        if guesses < 1:
            raise ConfigError(f"guesses must be >= 1, got {guesses}; 4 is usual")
        self.acceptance = Acceptance()
        self._target, self._draft, self._guesses = target, draft, guesses

    def guess(self, ready: Sequence[Running]) -> dict[Running, list[int]]:
        """Guess what follows in each text, before the pass that reads its last token.

        Texts with a constraint or guidance, and those near the end of a context, get no guesses.
        """
        lanes = sum(len(running.lanes) for running in ready)
        most = min(self._guesses, PASS_ROWS // max(1, lanes) - 1)
        choosers: dict[Running, TokenChooser] = {}
        counts: dict[Running, int] = {}
        for running in ready if most > 0 else ():
            count, chooser = self._room(running, most), running.sequence.copy_chooser()
            if count > 0 and len(running.lanes) == 1 and chooser is not None:
                counts[running], choosers[running] = count, chooser
        try:
            return self._choose(choosers, counts)
        except (ConfigError, ModelError):  # its logits are not finite, or bad words let nothing follow what it guessed
            return {}

    def note(self, proposed: int, kept: int) -> None:
        """Count the guesses of one text in one pass."""
        old = self.acceptance
        self.acceptance = Acceptance(proposed=old.proposed + proposed, kept=old.kept + kept)

    def _room(self, running: Running, most: int) -> int:
        length = len(running.lanes[0].prompt_ids) + len(running.sequence.token_ids)
        fits = min(self._target.capacity - length, self._draft.capacity - length + 1)
        return min(most, fits, running.sequence.tokens_left - 1)

    def _choose(self, choosers: dict[Running, TokenChooser], counts: dict[Running, int]) -> dict[Running, list[int]]:
        guesses: dict[Running, list[int]] = {}
        ready = [running for running in choosers if self._catch_up(running)]
        if not ready:
            return guesses
        texts = [[*running.lanes[0].prompt_ids, *running.sequence.token_ids] for running in ready]
        logits_bv = self._draft.prefill_many([running.lanes[0].slot for running in ready], texts)
        while True:
            for running, logits_v in zip(ready, logits_bv, strict=True):
                guesses.setdefault(running, []).append(choosers[running].choose(logits_v.float().cpu()))
            ready = [running for running in ready if len(guesses[running]) < counts[running]]
            if not ready:
                return guesses
            slots = [running.lanes[0].slot for running in ready]
            logits_bv = self._draft.decode(slots, [guesses[running][-1] for running in ready])

    def _catch_up(self, running: Running) -> bool:
        """Whether the draft has read all but a little of a text; if not, it reads a part, so that no pass is long."""
        text = [*running.lanes[0].prompt_ids, *running.sequence.token_ids]
        slot = running.lanes[0].slot
        known = shared_prefix(self._draft.tokens(slot), text)
        if len(text) - known <= PREFILL_TOKENS:
            return True
        self._draft.prefill(slot, text[: known + PREFILL_TOKENS])
        return False


def take_tokens(engine: Engine, running: Running, guesses: Sequence[int], advance: Callable[[], None]) -> int:
    """After a pass that read a text's last token and its guesses: choose tokens as long as the guesses were right.

    Args:
        engine: what was guessed wrong is taken out of its slot again.
        running: its lanes have the logits of every row.
        guesses: as they were read.
        advance: chooses the text's next token from `Lane.logits_v`.

    Returns:
        How many guesses were right.
    """
    kept = 0
    for place in range(len(guesses) + 1):
        for lane in running.lanes:
            assert lane.rows_tv is not None
            lane.logits_v = lane.rows_tv[place]
        before = len(running.sequence.token_ids)
        advance()
        is_ended = running.sequence.finish_reason is not None or running.ticket.is_finished
        if is_ended or len(running.sequence.token_ids) == before:
            return kept  # it ended or failed: its slots are another's
        if place < len(guesses) and running.sequence.token_ids[-1] != guesses[place]:
            break
        kept += int(place < len(guesses))
    for lane in running.lanes:
        engine.truncate(lane.slot, engine.length(lane.slot) - (len(guesses) - kept))
    return kept
