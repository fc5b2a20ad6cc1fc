"""How probable is a continuation after a text: what every prompt, choice and cloze is scored by.

Axes: w continuation tokens, v vocabulary. A `Scorer` reads each distinct text once, into a slot that may hold its
beginning already (the demonstrations that all questions share), and then its continuations from there: k choices cost
little more than one, where a batch of whole sequences reads the text k times; what neighbouring texts begin with is
read once and copied from slot to slot. It never renders prompts or judges them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
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

    text: tuple[int, ...]
    continuation: tuple[int, ...]
    cut: int


class Scorer:
    """Prices continuations with one model. Attributes: `engine`, `tokenizer`, `start_id` (token of an empty text)."""

    def __init__(
        self,
        model: Transformer | Engine,
        tokenizer: Tokenizer,
        *,
        start_id: int,
        weights: str = "auto",
        slots: int = SLOTS,
    ) -> None:
        """Prepare an engine.

        Args:
            model: of any layout, or an engine over it.
            tokenizer: the model's own; its special tokens are not added, as in `data.encode`.
            start_id: the token that an empty text stands for: the beginning-of-text token, else the end-of-text token.
            weights: the engine's: "auto", "float32", "bfloat16", "int8".
            slots: texts in one pass, >= 1.
        """
        self.engine = model if isinstance(model, Engine) else Engine(model, slots=slots, weights=weights)  # type: ignore[arg-type]
        self.tokenizer = tokenizer
        self.start_id = start_id

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
        by_text: dict[tuple[int, ...], dict[tuple[int, ...], list[int]]] = {}
        for number, pair in enumerate(pairs):
            by_text.setdefault(pair.text, {}).setdefault(pair.continuation, []).append(number)
        scores: list[Score | None] = [None] * len(pairs)
        readings = _share_out(by_text, self.engine.slots)
        for first in range(0, len(readings), self.engine.slots):
            chunk = readings[first : first + self.engine.slots]
            done = 0
            texts, continuations = [text for text, _ in chunk], [own for _, own in chunk]
            for text, continuation, logprob, is_greedy in self._score_texts(texts, continuations):
                for number in by_text[text][continuation]:
                    pair = pairs[number]
                    scores[number] = Score(
                        logprob=logprob, tokens=len(continuation), is_greedy=is_greedy, cut_tokens=pair.cut
                    )
                    done += 1
            if progress is not None:
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

    def _score_texts(
        self, texts: Sequence[tuple[int, ...]], continuations: Sequence[tuple[tuple[int, ...], ...]]
    ) -> Iterable[tuple[tuple[int, ...], tuple[int, ...], float, bool]]:
        """Price every continuation of a chunk of texts: yields (text, continuation, logprob, is_greedy)."""
        slots = range(len(texts))
        for first, end in _runs(texts):
            self._share_beginning(first, end, texts)
        first_wv = torch.log_softmax(self.engine.prefill_many(slots, texts), dim=-1)
        best_w = first_wv.argmax(dim=-1).tolist()
        for rank in range(max(map(len, continuations))):
            begun: list[tuple[int, tuple[int, ...], float, bool]] = []
            for slot in slots:
                if rank < len(continuations[slot]):
                    tokens = continuations[slot][rank]
                    begun.append((slot, tokens, float(first_wv[slot, tokens[0]]), best_w[slot] == tokens[0]))
            for slot, tokens, logprob, is_greedy in begun:
                if len(tokens) == 1:
                    yield texts[slot], tokens, logprob, is_greedy
            longer = [one for one in begun if len(one[1]) > 1]
            for part in _parts(longer, MOST_LOGITS // self.engine.vocab):
                rest = self._price_rest([slot for slot, *_ in part], [tokens for _, tokens, *_ in part])
                for (slot, tokens, logprob, is_greedy), (more, is_rest_greedy) in zip(part, rest, strict=True):
                    self.engine.truncate(slot, len(texts[slot]))
                    yield texts[slot], tokens, logprob + more, is_greedy and is_rest_greedy

    def _share_beginning(self, first: int, end: int, texts: Sequence[tuple[int, ...]]) -> None:
        """Make slots first ... end - 1 hold what their texts begin with alike: read once, or held, and copied."""
        beginning = texts[first][: shared_prefix(texts[first], texts[end - 1])]  # sorted: all between begin so too
        held = [shared_prefix(self.engine.tokens(slot), beginning) for slot in range(self.engine.slots)]
        best = max(range(self.engine.slots), key=held.__getitem__)
        if best != first and held[best] > held[first]:
            self.engine.copy(best, first, held[best])
        if max(held) < len(beginning):
            self.engine.prefill(first, beginning)
        for slot in range(first + 1, end):
            if held[slot] < len(beginning):
                self.engine.copy(first, slot, len(beginning))

    def _price_rest(self, slots: Sequence[int], continuations: Sequence[Sequence[int]]) -> list[tuple[float, bool]]:
        """Price all tokens but the first of one continuation a slot, in one pass."""
        logits_wv = self.engine.extend_many(slots, [tokens[:-1] for tokens in continuations])
        targets_w = torch.tensor([token for tokens in continuations for token in tokens[1:]])
        chosen_w = logits_wv.gather(1, targets_w[:, None]).squeeze(1)
        logprobs_w = (chosen_w - torch.logsumexp(logits_wv, dim=-1)).double()
        greedy_w = logits_wv.argmax(dim=-1) == targets_w
        lengths = [len(tokens) - 1 for tokens in continuations]
        return [
            (math.fsum(part.tolist()), bool(is_greedy.all()))
            for part, is_greedy in zip(logprobs_w.split(lengths), greedy_w.split(lengths), strict=True)
        ]


def _share_out(
    by_text: Mapping[tuple[int, ...], Iterable[tuple[int, ...]]], slots: int
) -> list[tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]]:
    """Texts in order with their continuations; few texts of many (minimal pairs: one, the empty) take several slots.

    Neighbours share most of their beginning, which a slot then holds already.
    """
    readings: list[tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]] = []
    for text in sorted(by_text):
        own = tuple(by_text[text])
        parts = min(max(1, slots // len(by_text)), len(own))
        readings += [(text, own[part::parts]) for part in range(parts)]
    return readings


def _runs(texts: Sequence[tuple[int, ...]]) -> Iterable[tuple[int, int]]:
    """Runs of two or more sorted texts, each of which begins as its neighbour does: (first, end)."""
    first = 0
    for place in range(1, len(texts) + 1):
        if place == len(texts) or shared_prefix(texts[place - 1], texts[place]) < LEAST_SHARED:
            if place - first > 1:
                yield first, place
            first = place


def _parts(items: Sequence[tuple[int, tuple[int, ...], float, bool]], most_tokens: int) -> Iterable[list]:
    """Cut a pass so that its logits fit; a single continuation always goes."""
    part, tokens = [], 0
    for item in items:
        if part and tokens + len(item[1]) > most_tokens:
            yield part
            part, tokens = [], 0
        part.append(item)
        tokens += len(item[1])
    if part:
        yield part
