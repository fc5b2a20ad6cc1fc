"""JSON from strangers: what Python's parser lets pass and no JSON document may hold is refused.

Refused: bytes that are not UTF-8, NaN and Infinity, numbers beyond float64, whole numbers of more than 31
digits, a name twice in one object, half surrogate pairs, nesting deeper than 64, more than 400,000 values.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from chinchilla_lm.core.errors import DataError

MOST_DIGITS = 31  # transformers writes int(1e30) as the model_max_length of a tokenizer that has none
DEEPEST = 64
"""Levels of nesting; a request has 4, a JSON schema rarely 20. Python's parser stops at about 1,000."""
MOST_VALUES = 400_000
"""Commas of a document. A value costs Python up to 100 bytes: 400,000 are 40 MB, and no context is so long."""
_AFTER_STRINGS = (b",", b":", b"]", b"}")


class JsonRefused(DataError):  # noqa: N818 - it says what happened
    """A document that is not strict JSON."""


def parse_json(content: bytes) -> Any:
    """Return the value of a JSON document.

    Args:
        content: UTF-8, of a length that the caller has bounded.

    Raises:
        JsonRefused: with the reason.
    """
    if content.count(b",") > MOST_VALUES:
        raise _bad(f"it has more than {MOST_VALUES} values")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _bad(f"its byte {error.start} is not UTF-8") from None
    try:
        value = json.loads(
            text, parse_constant=_refuse, parse_float=_finite, parse_int=_whole, object_pairs_hook=_unique
        )
        if text.count("[") + text.count("{") > DEEPEST:
            _check_depth(value)
        if "\\ud" in text or "\\uD" in text:  # only so can half a surrogate pair come, which has no UTF-8
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise _bad(f"it is nested deeper than {DEEPEST} levels") from None
    except UnicodeEncodeError:
        raise _bad("it has half of a surrogate pair (\\ud800 to \\udfff), which is no character") from None
    except json.JSONDecodeError as error:
        raise _bad(f"it is not JSON: {error.msg} at character {error.pos}") from None
    return value


def longest_gap(content: bytes, least: int) -> bytes:
    """Return the longest part of a document that certainly lies within one string, as it stands there.

    Looks at quotes only, without parsing: where text follows a quote that cannot follow the end of a string, a string
    has begun.

    Args:
        content: UTF-8.
        least: bytes; shorter parts do not count, >= 1.

    Returns:
        b"" if there is none of that length.
    """
    longest, quote = (0, 0), content.find(b'"')
    while 0 <= quote < len(content) - least:
        following = content.rfind(b'"', quote + 1, quote + 1 + least)
        if following < 0:  # no quote for `least` bytes
            end = content.find(b'"', quote + 1 + least)
            following = len(content) if end < 0 else end
            begins_string = content[quote + 1 : quote + 1 + least].lstrip(b" \t\r\n")[:1] not in (*_AFTER_STRINGS, b"")
            if begins_string and following - quote > longest[1] - longest[0]:
                longest = (quote + 1, following)
        quote = following
    return content[slice(*longest)]


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST):
        inner = [child for one in level for child in (one.values() if isinstance(one, dict) else one)]
        level = [child for child in inner if isinstance(child, (dict, list))]
        if not level:
            return
    raise _bad(f"it is nested deeper than {DEEPEST} levels")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise _bad("it names a field twice in one object")
    return table


def _refuse(word: str) -> NoReturn:
    raise _bad(f"it holds {word}, which is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _bad(f"the number {text[:30]} is too large")
    return number


def _whole(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise _bad(f"a whole number of {len(text)} digits is too large")
    return int(text)


def _bad(message: str) -> JsonRefused:
    return JsonRefused(f"{message}; it must be one strict JSON document in UTF-8")
