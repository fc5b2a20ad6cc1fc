"""Words to sub-tokens and back: which positions of the model's input speak for which word.

A sentence of words is read as one text (joined by spaces, or by nothing in a language without them) and cut by the
model's own tokenizer, so that a deployed model sees the same tokens. A *unit* is what gets one tag: a word, or a part
of it where `pooling` is "mean" and the tokenizer's deployment counts parts. A sentence longer than the model's window
becomes several overlapping windows, in which each word is scored exactly once; nothing is cut off.

Axes: t positions, w words, u units. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Pooling = Literal["last", "first", "mean"]
"""Which sub-tokens speak for a word: its last (a causal model has then read the whole word), its first, or all, whose
probabilities are averaged as transformers' pipeline does with aggregation_strategy="average"."""

# Share of a window that repeats the end of the one before, so that no word lacks its context (SQuAD practice: 128/384).
_OVERLAP = 0.25
# Han, kana, Thai: scripts written without spaces between words.
_UNSPACED = (("\u3040", "\u30ff"), ("\u3400", "\u9fff"), ("\u0e00", "\u0e7f"), ("\U00020000", "\U0003ffff"))


@dataclass(frozen=True, kw_only=True, eq=False)
class Window:
    """A part of a sentence as the model reads it.

    Attributes:
        ids_t: token ids, special tokens included, int64.
        unit_t: the unit for which a position speaks, numbered from 0 in this window; -1: none (special tokens,
            repeated context, unread sub-tokens).
        word_u: the sentence's word of each unit, ascending.
        is_first_u: bool; False: a later part of the word of the unit before.
    """

    ids_t: np.ndarray[Any, Any]
    unit_t: np.ndarray[Any, Any]
    word_u: np.ndarray[Any, Any]
    is_first_u: np.ndarray[Any, Any]


def encode_words(
    tokenizer: PreTrainedTokenizerFast,
    words: Sequence[str],
    *,
    joiner: str,
    pooling: Pooling,
    max_tokens: int,
    is_causal: bool,
) -> list[Window]:
    """Cut a sentence into windows of sub-tokens and say which speak for which word.

    Args:
        tokenizer: a fast one.
        words: of one sentence.
        joiner: " ", or "" for a language without spaces; then every word is cut for itself, so that no sub-token
            spans two words.
        pooling: see `Pooling`.
        max_tokens: longest window, special tokens included.
        is_causal: a word has seen nothing to its right: the overlap only serves as context on the left.

    Returns:
        Windows in order. Every word that has a sub-token has units in exactly one of them. A word longer than a window
        is read as far as it goes.
    """
    text, body, affixes = _tokenize(tokenizer, words, joiner)
    word_t = _words_of_tokens(body, words, joiner)
    starts_unit_t = _starts_of_units(tokenizer, text, body, word_t, joiner)
    ids_t = np.array([token[0] for token in body], np.int64)
    room = max(1, max_tokens - len(affixes[0]) - len(affixes[1]))
    sizes_w = np.bincount(word_t, minlength=len(words)) if len(word_t) else np.zeros(len(words), np.int64)
    bounds_w = np.concatenate(([0], np.cumsum(sizes_w)))
    windows = []
    for first, end, scored_first, scored_end in plan_windows(sizes_w.tolist(), room, is_causal=is_causal):
        low, high = bounds_w[first], min(bounds_w[end], bounds_w[first] + room)
        is_scored_t = (word_t[low:high] >= scored_first) & (word_t[low:high] < scored_end)
        unit_t, word_u, is_first_u = _units(word_t[low:high], starts_unit_t[low:high], is_scored_t, pooling)
        prefix, suffix = affixes
        windows.append(
            Window(
                ids_t=np.concatenate((prefix, ids_t[low:high], suffix)).astype(np.int64),
                unit_t=np.concatenate((np.full(len(prefix), -1), unit_t, np.full(len(suffix), -1))).astype(np.int64),
                word_u=word_u,
                is_first_u=is_first_u,
            )
        )
    return windows


def plan_windows(sizes_w: Sequence[int], room: int, *, is_causal: bool) -> list[tuple[int, int, int, int]]:
    """Divide words over windows of at most `room` sub-tokens.

    Args:
        sizes_w: sub-tokens of each word, >= 0.
        room: sub-tokens of a window, >= 1.
        is_causal: see `encode_words`; else the overlap of two windows is scored half in each.

    Returns:
        (first, end, scored_first, scored_end), half-open ranges of words. The scored ranges divide all words in
        order; a window holds more than `room` only if it is a single word.
    """
    count, overlap = len(sizes_w), int(room * _OVERLAP)
    spans: list[tuple[int, int]] = []
    first = 0
    while first < count:
        end, used = first, 0
        while end < count and (end == first or used + sizes_w[end] <= room):
            used += sizes_w[end]
            end += 1
        spans.append((first, end))
        if end == count:
            break
        following, repeated = end, 0  # step back over words that fit the overlap, but always go forward
        while following - 1 > first and repeated + sizes_w[following - 1] <= overlap:
            following -= 1
            repeated += sizes_w[following]
        # With the next word, which must be new, the window has to hold what it repeats.
        while following < end and repeated + sizes_w[end] > room:
            repeated -= sizes_w[following]
            following += 1
        first = following
    plan, scored = [], 0
    for number, (first, end) in enumerate(spans):
        is_last = number + 1 == len(spans)
        scored_end = end if is_last or is_causal else (spans[number + 1][0] + end + 1) // 2
        plan.append((first, end, scored, scored_end))
        scored = scored_end
    return plan


def joiner_for(sentences: Sequence[Sequence[str]]) -> str:
    """Return "" where most letters belong to a script without spaces (Chinese, Japanese, Thai), else " "."""
    letters = [char for words in sentences[:1000] for word in words for char in word if char.isalpha()]
    unspaced = sum(any(low <= char <= high for low, high in _UNSPACED) for char in letters)
    return "" if 2 * unspaced > len(letters) else " "


def _tokenize(
    tokenizer: PreTrainedTokenizerFast, words: Sequence[str], joiner: str
) -> tuple[str, list[tuple[int, int, int]], tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """The text, its tokens (id, first character, end) without special ones, and the special ids before and after."""
    text = joiner.join(words)
    if joiner:
        encoding = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True)
        shifts_t = np.zeros(len(encoding["input_ids"]), np.int64)
    else:
        encoding = tokenizer(
            list(words), is_split_into_words=True, return_offsets_mapping=True, return_special_tokens_mask=True
        )
        starts_w = np.cumsum([0] + [len(word) for word in words])
        shifts_t = np.array([0 if word is None else starts_w[word] for word in encoding.word_ids()], np.int64)
    special_t = encoding["special_tokens_mask"]
    before = next((number for number, is_special in enumerate(special_t) if not is_special), len(special_t))
    after = len(special_t)
    while after > before and special_t[after - 1]:
        after -= 1
    ids = encoding["input_ids"]
    body = [
        (
            ids[t],
            encoding["offset_mapping"][t][0] + int(shifts_t[t]),
            encoding["offset_mapping"][t][1] + int(shifts_t[t]),
        )
        for t in range(before, after)
    ]
    return text, body, (np.array(ids[:before], np.int64), np.array(ids[after:], np.int64))


def _words_of_tokens(body: Sequence[tuple[int, int, int]], words: Sequence[str], joiner: str) -> np.ndarray[Any, Any]:
    """The word of each token, ascending: that of its first character that is no joiner; a lone space joins the next."""
    ends_w = np.cumsum([len(word) + len(joiner) for word in words]) - len(joiner)  # of each word's characters
    word_t = np.searchsorted(ends_w, [start for _, start, _ in body], side="right")
    return np.maximum.accumulate(np.minimum(word_t, len(words) - 1)) if len(body) else np.zeros(0, np.int64)


def _starts_of_units(
    tokenizer: PreTrainedTokenizerFast,
    text: str,
    body: Sequence[tuple[int, int, int]],
    word_t: np.ndarray[Any, Any],
    joiner: str,
) -> np.ndarray[Any, Any]:
    """Where a unit of pooling "mean" starts: at what transformers' TokenClassificationPipeline counts as a word.

    Source: transformers 5.23, TokenClassificationPipeline.gather_pre_entities. Without spaces every sub-token is one.
    """
    model = tokenizer.backend_tokenizer.model
    has_prefix = bool(getattr(model, "continuing_subword_prefix", None))
    starts_t = np.ones(len(body), bool)
    if not joiner:
        return starts_t
    pieces = tokenizer.convert_ids_to_tokens([token[0] for token in body])
    for number, (token, start, end) in enumerate(body):
        if token == tokenizer.unk_token_id:
            continue
        if has_prefix:
            starts_t[number] = len(pieces[number]) == end - start
        else:
            starts_t[number] = start == 0 or " " in text[start - 1 : start + 1]
    starts_t[1:] |= word_t[1:] != word_t[:-1]
    starts_t[:1] = True
    return starts_t


def _units(
    word_t: np.ndarray[Any, Any],
    starts_unit_t: np.ndarray[Any, Any],
    is_scored_t: np.ndarray[Any, Any],
    pooling: Pooling,
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(unit_t, word_u, is_first_u) of one window's body."""
    changes_t = np.ones(len(word_t), bool)
    changes_t[1:] = word_t[1:] != word_t[:-1]
    if pooling == "mean":
        begins_t, speaks_t = starts_unit_t | changes_t, is_scored_t
    else:
        ends_t = np.append(changes_t[1:], True)[: len(word_t)]
        begins_t, speaks_t = changes_t, is_scored_t & (changes_t if pooling == "first" else ends_t)
    begins_t = begins_t & is_scored_t
    unit_t = np.where(speaks_t, np.cumsum(begins_t) - 1, -1)
    return unit_t, word_t[begins_t], changes_t[begins_t]
