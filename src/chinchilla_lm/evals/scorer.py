"""How probable is a continuation after a text: what every prompt, choice and cloze is scored by.

Axes: w continuation tokens, v vocabulary. A `Scorer` reads each distinct text once, into a slot that may hold its
beginning already (the demonstrations that all questions share). The logits after the text price the first token of
each of its continuations; only those of two tokens or more are read, from there on, and never their last token: k
choices cost little more than one, where a batch of whole sequences reads the text k times. What neighbouring texts
begin with is read once and copied from slot to slot. It never renders prompts or judges them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer

from chinchilla_lm.core.errors import DataError
from chinchilla_lm.generate.engine import Engine, shared_prefix
from chinchilla_lm.model.transformer import Transformer

SLOTS = 16
"""Texts read in one pass: about 500 new tokens, where a pass is bound by arithmetic and not by reading the weights."""
LEAST_SHARED = 16
"""Tokens that neighbouring texts must begin with alike to be read once and copied: below it a pass of its own, of
so few tokens, costs as much as it saves."""
MOST_LOGITS = 1 << 25
"""Logits held at once: 128 MB of float32, 680 continuation tokens of a vocabulary of 49,152."""


Ids = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Score:
    """A continuation's price.

    Attributes:
        logprob: ln p(continuation | text), the sum over its tokens, nats.
        tokens: that it has.
        is_greedy: every token of it is the most probable one.
        cut_tokens: of the text, left out at its beginning because the context is full; 0: none.
    """

    logprob: float
    tokens: int
    is_greedy: bool
    cut_tokens: int = 0


@dataclass(frozen=True)
class TokenPair:
    """Token ids of a text and of a continuation, neither empty, that fit the context; `cut` tokens were left out."""

    text: Ids
    continuation: Ids
    cut: int


@dataclass(frozen=True)
class _Priced:
    """A continuation of a text, and the price of its first token or of all of them."""

    text: Ids
    continuation: Ids
    logprob: float
    is_greedy: bool


@dataclass(frozen=True, eq=False)
class _Beginning:
    """What follows a text: logits, the logarithm of the sum of their exponentials, the most probable token."""

    logits_v: torch.Tensor
    normaliser: float
    best: int

    def logprob(self, token: int) -> float:
        return float(self.logits_v[token]) - self.normaliser


class Scorer:
    """Prices continuations with one model.

    Attributes: `engine`, `tokenizer`, `start_id` (token of an empty text), `stop_ids` (tokens that end a written text;
    None: the tokenizer's end-of-text token).
    """

    def __init__(
        self,
        model: Transformer | Engine,
        tokenizer: Tokenizer,
        *,
        start_id: int,
        stop_ids: Sequence[int] | None = None,
        weights: str = "auto",
        slots: int = SLOTS,
    ) -> None:
        """Prepare an engine.

        Args:
            model: of any layout, or an engine over it.
            tokenizer: the model's own; its special tokens are not added, as in `data.encode`.
            start_id: the token that an empty text stands for: the beginning-of-text token, else the end-of-text token.
            stop_ids: tokens that end a text, for those who let the model write; None: the tokenizer's own.
            weights: the engine's: "auto", "float32", "bfloat16", "int8".
            slots: texts in one pass, >= 1.
        """
        self.engine = model if isinstance(model, Engine) else Engine(model, slots=slots, weights=weights)  # type: ignore[arg-type]
        self.tokenizer = tokenizer
        self.start_id = start_id
        self.stop_ids = None if stop_ids is None else tuple(stop_ids)
        self._beginnings: dict[Ids, _Beginning] = {}  # of the texts that were read last

    def score(self, pairs: Sequence[tuple[str, str]], progress: Callable[[int], None] | None = None) -> list[Score]:
        """Price (text, continuation) pairs; equal pairs are priced once, pairs of one text share its reading.

        The two are tokenised together, and the boundary is the longest common beginning of the joint tokens and the
        text's own: where a token crosses it, that token belongs to the continuation. A text that does not fit is cut
        at its beginning.

        Args:
            pairs: texts may be empty, continuations not.
            progress: told how many more pairs are done, after each pass.

        Returns:
            A score for each pair, in order.

        Raises:
            DataError: a continuation is empty, or longer than the context.
        """
        encoded = self.encode(pairs)
        return self.score_ids(encoded, progress)

    def score_ids(self, pairs: Sequence[TokenPair], progress: Callable[[int], None] | None = None) -> list[Score]:
        """As `score`, for token ids that `encode` made."""
        by_text: dict[Ids, dict[Ids, list[int]]] = {}
        for number, pair in enumerate(pairs):
            by_text.setdefault(pair.text, {}).setdefault(pair.continuation, []).append(number)
        scores: list[Score | None] = [None] * len(pairs)
        texts = sorted(by_text)  # neighbours share most of their beginning, which a slot then holds already
        for first in range(0, len(texts), self.engine.slots):
            for priced in self._price_texts({text: by_text[text] for text in texts[first : first + self.engine.slots]}):
                done = 0
                for one in priced:
                    for number in by_text[one.text][one.continuation]:
                        scores[number] = Score(
                            logprob=one.logprob,
                            tokens=len(one.continuation),
                            is_greedy=one.is_greedy,
                            cut_tokens=pairs[number].cut,
                        )
                        done += 1
                if progress is not None and done:
                    progress(done)
        assert all(score is not None for score in scores)
        return scores  # type: ignore[return-value]

    def encode(self, pairs: Sequence[tuple[str, str]]) -> list[TokenPair]:
        """Tokenise pairs, as `score` says."""
        empty = next((number for number, (_, continuation) in enumerate(pairs) if not continuation), None)
        if empty is not None:
            raise DataError(f"pair {empty + 1} has an empty continuation; give at least one character to price")
        texts = list(dict.fromkeys(text for text, _ in pairs))
        own = dict(zip(texts, self._ids(texts), strict=True))
        joint = self._ids([text + continuation for text, continuation in pairs])
        return [
            self._split(own[text], ids, number)
            for number, ((text, _), ids) in enumerate(zip(pairs, joint, strict=True))
        ]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def _split(self, text: Sequence[int], joint: Sequence[int], number: int) -> TokenPair:
        boundary = min(shared_prefix(text, joint), len(joint) - 1)
        return self._fit(joint[:boundary] or [self.start_id], joint[boundary:], number)

    def _fit(self, text: Sequence[int], continuation: Sequence[int], number: int) -> TokenPair:
        room = self.engine.capacity - (len(continuation) - 1)
        if room < 1:
            raise DataError(
                f"pair {number + 1}: a continuation of {len(continuation)} tokens does not fit the context of "
                f"{self.engine.capacity}; score a long text with `chinchilla eval --corpus`"
            )
        cut = max(0, len(text) - room)
        return TokenPair(tuple(text[cut:]), tuple(continuation), cut)

    def _price_texts(self, asked: Mapping[Ids, Iterable[Ids]]) -> Iterator[list[_Priced]]:
        """Price the continuations of at most as many texts as there are slots; a list for each pass over the weights.

        The first token of every continuation is priced by the logits after its text: one pass for all texts.
        """
        beginnings, slots = self._read(list(asked))
        begun: list[_Priced] = []
        for text, continuations in asked.items():
            after = beginnings[text]
            begun += [
                _Priced(text, tokens, after.logprob(tokens[0]), after.best == tokens[0]) for tokens in continuations
            ]
        yield [one for one in begun if len(one.continuation) == 1]
        waiting: dict[Ids, list[_Priced]] = {}
        for one in begun:
            if len(one.continuation) > 1:
                waiting.setdefault(one.text, []).append(one)
        while waiting:
            lanes = self._next_lanes(slots, waiting)
            for part in _parts(lanes, MOST_LOGITS // self.engine.vocab):
                yield self._price_rest(part)

    def _read(self, texts: Sequence[Ids]) -> tuple[dict[Ids, _Beginning], dict[int, Ids]]:
        """Make each text the content of a slot: (what follows each text, the text of each slot)."""
        slots = self._slots_that_hold(texts)
        held = set(slots.values())
        unread = [text for text in texts if text not in held]
        free = [slot for slot in range(self.engine.slots) if slot not in slots][: len(unread)]
        for slot in slots:
            self.engine.truncate(slot, len(slots[slot]))
        for first, end in _runs(unread):
            self._share_beginning(free[first:end], unread[first], unread[end - 1])
        if unread:
            logits_bv = self.engine.prefill_many(free, unread)
            normalisers_b = log_sum_exp(logits_bv, logits_bv.amax(dim=-1))
            read = zip(unread, logits_bv, normalisers_b, logits_bv.argmax(dim=-1), strict=True)
            for text, logits_v, normaliser, best in read:
                self._beginnings[text] = _Beginning(logits_v, float(normaliser), int(best))
        self._beginnings = {text: self._beginnings[text] for text in texts}  # the latest: 16 rows of logits
        return self._beginnings, slots | dict(zip(free, unread, strict=True))

    def _slots_that_hold(self, texts: Sequence[Ids]) -> dict[int, Ids]:
        """Slots that begin with a whole text of the last call, whose next token's logits are known."""
        found: dict[int, Ids] = {}
        for text in texts:
            if text in self._beginnings:
                slots = (slot for slot in range(self.engine.slots) if slot not in found)
                place = next((slot for slot in slots if self.engine.tokens(slot)[: len(text)] == text), None)
                if place is not None:
                    found[place] = text
        return found

    def _share_beginning(self, slots: Sequence[int], text: Ids, last_text: Ids) -> None:
        """Make slots hold what sorted texts, from `text` to `last_text`, begin with alike: read once, or copied."""
        beginning = text[: shared_prefix(text, last_text)]  # sorted: all between begin so too
        held = [shared_prefix(self.engine.tokens(slot), beginning) for slot in range(self.engine.slots)]
        first, best = slots[0], max(range(self.engine.slots), key=held.__getitem__)
        if best != first and held[best] > held[first]:
            self.engine.copy(best, first, held[best])
        if max(held) < len(beginning):
            self.engine.prefill(first, beginning)
        for slot in slots[1:]:
            if held[slot] < len(beginning):
                self.engine.copy(first, slot, len(beginning))

    def _next_lanes(self, slots: dict[int, Ids], waiting: dict[Ids, list[_Priced]]) -> list[tuple[int, _Priced]]:
        """Take one waiting continuation for each slot; slots without work copy the text that has most of it left."""
        lanes: list[tuple[int, _Priced]] = []

        def take(slot: int, text: Ids) -> None:
            lanes.append((slot, waiting[text].pop()))
            if not waiting[text]:
                del waiting[text]

        idle = []
        for slot in range(self.engine.slots):
            text = slots.get(slot)
            if text in waiting:
                take(slot, text)
            else:
                idle.append(slot)
        sources = {text: slot for slot, text in slots.items()}
        for slot in idle:
            if not waiting:
                break
            text = max(waiting, key=lambda text: len(waiting[text]))
            self.engine.copy(sources[text], slot, len(text))
            slots[slot] = text
            take(slot, text)
        return lanes

    def _price_rest(self, lanes: Sequence[tuple[int, _Priced]]) -> list[_Priced]:
        """Price all tokens but the first of one continuation a slot, in one pass; the last is never read."""
        continuations = [one.continuation for _, one in lanes]
        logits_wv = self.engine.extend_many([slot for slot, _ in lanes], [tokens[:-1] for tokens in continuations])
        targets_w = torch.tensor([token for tokens in continuations for token in tokens[1:]])
        chosen_w, top_w = logits_wv.gather(1, targets_w[:, None]).squeeze(1), logits_wv.amax(dim=-1)
        logprobs_w = chosen_w.double() - log_sum_exp(logits_wv, top_w)
        greedy_w = chosen_w == top_w
        equals = greedy_w.nonzero().squeeze(1)  # few; of equal logits the first counts, and argmax of all takes long
        greedy_w[equals] = logits_wv[equals].argmax(dim=-1) == targets_w[equals]
        lengths = [len(tokens) - 1 for tokens in continuations]
        priced = []
        parts = zip(lanes, logprobs_w.split(lengths), greedy_w.split(lengths), strict=True)
        for (slot, one), logprobs, is_greedy in parts:
            self.engine.truncate(slot, len(one.text))
            logprob = math.fsum([one.logprob, *logprobs.tolist()])
            priced.append(_Priced(one.text, one.continuation, logprob, one.is_greedy and bool(is_greedy.all())))
        return priced


def log_sum_exp(logits_wv: torch.Tensor, top_w: torch.Tensor) -> torch.Tensor:
    """Return ln sum_v exp(logits), (w) float64, from float32 logits and the largest of each row.

    Of all that a float32 pass rounds, torch's own log-softmax over 49,152 entries costs an answer most (SmolLM2-135M,
    16 answers of ARC-easy: 2.2e-5 nats, root of the mean square; all matmuls together 1.0e-5), because it adds the
    exponentials one after the other. `sum` adds them in pairs: 3e-7 at most, and no slower.
    """
    sum_w = (logits_wv - top_w[:, None]).exp_().sum(dim=-1)
    return top_w.double() + sum_w.double().log()


def _runs(texts: Sequence[Ids]) -> Iterator[tuple[int, int]]:
    """Runs of two or more sorted texts, each of which begins as its neighbour does: (first, end)."""
    first = 0
    for place in range(1, len(texts) + 1):
        if place == len(texts) or shared_prefix(texts[place - 1], texts[place]) < LEAST_SHARED:
            if place - first > 1:
                yield first, place
            first = place


def _parts(lanes: Sequence[tuple[int, _Priced]], most_tokens: int) -> Iterator[list[tuple[int, _Priced]]]:
    """Cut a pass so that its logits fit; a single continuation always goes."""
    part, tokens = [], 0
    for lane in lanes:
        if part and tokens + len(lane[1].continuation) > most_tokens:
            yield part
            part, tokens = [], 0
        part.append(lane)
        tokens += len(lane[1].continuation)
    if part:
        yield part
