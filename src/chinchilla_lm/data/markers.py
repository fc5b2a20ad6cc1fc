"""Entity markers: how a relation's two entities are shown to a model that reads text.

    typed      The @ * person * fire @ was caused by a # ^ product ^ cigarette #.
    untyped    The @ fire @ was caused by a # cigarette #.

Punctuation marks stand for themselves in every tokenizer, so that nothing is added to the vocabulary. The head entity
is between "@", the tail between "#". Training and serving read a row by the same `encode_marked`. Axes: t tokens.

Source: Zhou & Chen 2022 (arXiv 2102.01373), section 3.2, "typed entity marker (punct)".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chinchilla_lm.core.errors import DataError

Row = Mapping[str, Any]
Encode = Callable[[str], tuple[list[int], Sequence[tuple[int, int]]]]
"""Text -> (ids with the special tokens, characters [start, end) of each)."""


@dataclass(frozen=True, kw_only=True)
class MarkedText:
    """A text with markers. Attributes: the text; character of the head's and of the tail's closing marker in it."""

    text: str
    head_close: int
    tail_close: int
    head_open: int
    tail_open: int


def mark_entities(row: Row) -> MarkedText:
    """Put markers around the two entities of a row.

    Args:
        row: {text, head: [start, end), tail: [start, end), head_type?, tail_type?}; types are shown where both are
            given. The entities may stand in any order, and one within the other, but not cross.

    Raises:
        DataError: a range outside the text, without a character, or that crosses the other.
    """
    text, ranges = row["text"], {"head": tuple(row["head"]), "tail": tuple(row["tail"])}
    for name, (start, end) in ranges.items():
        if not 0 <= start < end <= len(text):
            raise DataError(
                f"{name} = [{start}, {end}) must be characters of a text of {len(text)}: {text[:60]!r}; correct the row"
            )
    first, second = sorted(ranges.values(), key=lambda span: (span[0], -span[1]))
    if first[0] < second[0] < first[1] < second[1]:
        raise DataError(f"head and tail cross in {text[:60]!r}; let them lie apart, or one within the other")
    types = {name: row.get(f"{name}_type") for name in ranges}
    is_typed = all(types.values())
    opening = {"head": "@ ", "tail": "# "}
    if is_typed:
        opening = {
            "head": f"@ * {_in_words(types['head'])} * ",
            "tail": f"# ^ {_in_words(types['tail'])} ^ ",
        }
    return _insert(text, ranges, opening, {"head": " @", "tail": " #"})


@dataclass(frozen=True, kw_only=True)
class EncodedRelation:
    """A row as a model reads it.

    Attributes:
        ids_t: int64.
        places: (the head's marker, the tail's marker, the first token of an encoder or the last one of a decoder).
        fits: whether both entities are in `ids_t`.
    """

    ids_t: np.ndarray[Any, Any]
    places: tuple[int, int, int]
    fits: bool


def encode_marked(
    encode: Encode, row: Row, *, template: str, max_tokens: int, is_encoder: bool = False
) -> EncodedRelation:
    """Mark the entities of a row, put it into its prompt, and cut it into tokens.

    Args:
        encode: of the tokenizer.
        row: as `mark_entities`.
        template: prompt with {text} once, and {head} and {tail}.
        max_tokens: of a longer text the ends far from the entities are left out.
        is_encoder: the opening markers speak for the entities, and the first token for the text; of a decoder, which
            sees only what is left, the closing ones and the last.

    Raises:
        DataError: as `mark_entities`; a tokenizer that drops a marker.
    """
    text, marked, shift = fill_marked(row, template)
    ids, offsets = encode(text)
    markers = (marked.head_open, marked.tail_open) if is_encoder else (marked.head_close, marked.tail_close)
    places = [_token_at(offsets, shift + place) for place in markers]
    inside = [t for t, (low, high) in enumerate(offsets) if low < high and shift <= low < shift + len(marked.text)]
    low, high = _crop(len(ids), (inside[0], inside[-1] + 1), places, max_tokens)
    kept = np.concatenate((np.arange(inside[0]), np.arange(low, high), np.arange(inside[-1] + 1, len(ids))))
    head, tail = (inside[0] + min(max(place, low), high - 1) - low for place in places)
    return EncodedRelation(
        ids_t=np.array(ids, np.int64)[kept],
        places=(head, tail, 0 if is_encoder else len(kept) - 1),
        fits=all(low <= place < high for place in places),
    )


def fill_marked(row: Row, template: str) -> tuple[str, MarkedText, int]:
    """(the whole prompt, the marked text, where that begins in it)."""
    marked = mark_entities(row)
    named = {"{head}": entity_text(row, "head"), "{tail}": entity_text(row, "tail")}
    before, after = (name_entities(part, named) for part in template.split("{text}"))
    return before + marked.text + after, marked, len(before)


def entity_text(row: Row, name: str) -> str:
    """The characters of the head or of the tail."""
    start, end = row[name]
    return row["text"][start:end]


def name_entities(part: str, named: Mapping[str, str]) -> str:
    """Put the entities' texts in the places of {head} and {tail}."""
    return re.sub(r"\{head\}|\{tail\}", lambda match: named[match[0]], part)


def _crop(total: int, text: tuple[int, int], places: Sequence[int], max_tokens: int) -> tuple[int, int]:
    """The part of the text's tokens that is kept, around the marked ones, when `total` tokens are too many."""
    start, end = text
    room = max(1, max_tokens - (total - (end - start)))
    if end - start <= room:
        return start, end
    centre = (min(places) + max(places)) // 2
    low = min(max(start, centre - room // 2), end - room)
    return low, low + room


def _token_at(offsets: Sequence[tuple[int, int]], place: int) -> int:
    """The token that holds a character."""
    found = [t for t, (low, high) in enumerate(offsets) if low <= place < high]
    if not found:
        raise DataError("the tokenizer has no token for @ or #, which mark the entities; use another model")
    return found[0]


def _insert(
    text: str, ranges: dict[str, tuple[int, int]], opening: dict[str, str], closing: dict[str, str]
) -> MarkedText:
    """The text with both kinds of markers, and where they stand."""
    # (place, order at one place, name, marker): a closing comes before an opening; of two openings the outer one first.
    inserts: list[tuple[int, int, int, str, str]] = []
    for name, (start, end) in ranges.items():
        inserts.append((start, 1, -end, name, "open"))
        inserts.append((end, 0, -start, name, "close"))
    pieces, done, length, at = [], 0, 0, {}
    for place, _, _, name, which in sorted(inserts):
        marker = (opening if which == "open" else closing)[name]
        pieces += [text[done:place], marker]
        length += place - done
        at[name, which] = length + (marker.index("@") if name == "head" else marker.index("#"))
        length, done = length + len(marker), place
    return MarkedText(
        text="".join([*pieces, text[done:]]),
        head_close=at["head", "close"],
        tail_close=at["tail", "close"],
        head_open=at["head", "open"],
        tail_open=at["tail", "open"],
    )


def _in_words(kind: Any) -> str:
    return str(kind).replace("_", " ").replace("-", " ").lower()
