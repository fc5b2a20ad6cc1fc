"""Tags of tokens, in whichever scheme they come, to IOB2: B- begins a span, I- continues it, O is outside.

The scheme is decided over all rows, because a single row rarely shows it. It never guesses what a number means.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from chinchilla_lm.core.errors import DataError

OUTSIDE = "O"
_TAG = re.compile(r"([BIESLUM])[-_](.+)", re.DOTALL)
# BIOES and BMES, BILOU: S and U are spans of one token, E and L the last token, M one within.
_TO_IOB = {"B": "B", "I": "I", "S": "B", "U": "B", "E": "I", "L": "I", "M": "I"}


def to_iob2(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Bring the tags of all rows to IOB2.

    Understood: IOB2, IOB1 (I- begins a span unless it touches one of its type), BIOES, BILOU, BMES, types without
    prefix beside O (neighbours of one type are one span), and types without prefix or O (parts of speech: every token
    is a span of its own).

    Args:
        rows: the tags of each row.

    Returns:
        New lists of the same lengths.

    Raises:
        DataError: some tags have a prefix and others do not.
    """
    found = {tag for row in rows for tag in row if tag != OUTSIDE}
    plain = sorted(tag for tag in found if not _TAG.fullmatch(tag))
    if not plain:
        return [_begin_spans([_split(tag) for tag in row]) for row in rows]
    if len(plain) < len(found):
        example = sorted(found - set(plain))[0]
        raise DataError(f"the tags mix {example!r} and {plain[0]!r}; write every tag as B-TYPE, I-TYPE or O")
    if any(tag == OUTSIDE for row in rows for tag in row):
        return [_begin_spans([("" if tag == OUTSIDE else "I", tag) for tag in row]) for row in rows]
    return [[f"B-{tag}" for tag in row] for row in rows]


def _split(tag: str) -> tuple[str, str]:
    match = _TAG.fullmatch(tag)
    return ("", OUTSIDE) if match is None else (_TO_IOB[match[1]], match[2])


def _begin_spans(row: Sequence[tuple[str, str]]) -> list[str]:
    """Write IOB2; an I after another type or outside begins a span."""
    tags, previous = [], OUTSIDE
    for prefix, kind in row:
        if not prefix:
            tags.append(OUTSIDE)
            previous = OUTSIDE
            continue
        tags.append(f"{'B' if prefix == 'B' or kind != previous else 'I'}-{kind}")
        previous = kind
    return tags
