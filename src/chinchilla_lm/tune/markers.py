"""Entity markers: how a relation's two entities are shown to a model that reads text.

    typed      The @ * person * fire @ was caused by a # ^ product ^ cigarette #.
    untyped    The @ fire @ was caused by a # cigarette #.

Punctuation marks stand for themselves in every tokenizer, so that nothing is added to the vocabulary. The head entity
is between "@", the tail between "#".

Source: Zhou & Chen 2022 (arXiv 2102.01373), section 3.2, "typed entity marker (punct)".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from chinchilla_lm.core.errors import DataError
from chinchilla_lm.tune.task import Row


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
