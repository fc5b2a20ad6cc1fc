"""What a template's work costs, counted: the meter and the filters that a prompt may use.

Every filter takes and gives plain values. What could grow (a join, a replacement, a printed value) asks the meter
before it is made; what repeats takes a step an item.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jinja2
from jinja2.runtime import Context

# About 50,000 tokens of English, above the context of any model this toolkit trains.
MAX_RENDERED_CHARACTERS = 200_000
# Parts of the template evaluated in one render: a loop's step counts the parts of its body. A prompt with 1,000 options
# uses about 10,000.
MAX_STEPS = 1_000_000
# Characters and list items made or searched on the way, by every operator together.
MAX_BUILT = 20 * MAX_RENDERED_CHARACTERS
MAX_RANGE = 1_000


class TooMuch(Exception):  # noqa: N818 - a bound, turned into a DataError at the border
    """A bound was reached; `sandbox` turns it into one line."""


class Meter:
    """The work of one render."""

    def __init__(self, caught: list[Any] | None = None) -> None:
        self.steps_left = MAX_STEPS
        self.built_left = MAX_BUILT
        self.caught = caught

    def step(self, parts: int = 1) -> None:
        """Count the evaluation of so many parts."""
        self.steps_left -= parts
        if self.steps_left < 0:
            raise TooMuch(f"the template takes more than {MAX_STEPS} steps")

    def build(self, size: int) -> None:
        """Allow a value of `size` characters or items, before it is made."""
        self.built_left -= size
        if size > MAX_RENDERED_CHARACTERS or self.built_left < 0:
            raise TooMuch(f"a value is longer than {MAX_RENDERED_CHARACTERS} characters or items")


# Of the render that is running; set by `sandbox`.
METER: contextvars.ContextVar[Meter] = contextvars.ContextVar("METER")


def metered_items(values: Iterable[Any], parts: int = 1) -> Iterator[Any]:
    """Iterate over what a loop with a body of so many parts reads, counting them at each item."""
    meter = METER.get()
    for value in values:
        meter.step(parts)
        yield value


def charged(value: Any) -> Any:
    """Count the length of a value that an operator is going to search, compare or copy."""
    if isinstance(value, (str, list, tuple, dict)):
        METER.get().build(len(value))
    return value


@jinja2.pass_context
def print_value(_context: Context, value: Any) -> str:
    """Print what stands between braces; taking the context keeps Jinja2 from printing constants while it compiles."""
    return print_text(value)


def print_text(value: Any) -> str:
    """Print one scalar; lists are joined or indexed by the template, never printed whole."""
    if isinstance(value, jinja2.Undefined):
        return str(value)  # Raises, naming the field.
    if value is not None and not isinstance(value, (str, int, float)):
        raise TypeError(f"a {type(value).__name__} cannot be printed (join it, or take one item)")
    text = "" if value is None else str(value)
    meter = METER.get()
    meter.step()
    meter.build(len(text))
    return text


def join_text(values: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
    """Join scalars, or one attribute of each item, with `d` between."""
    parts = []
    for value in metered_items(values):
        parts.append(print_text(value if attribute is None else value[attribute]))
        METER.get().build(len(d))
    return d.join(parts)


def replace_text(text: Any, old: str, new: str) -> str:
    """Replace every `old`; the size is known before the text is made."""
    shown = print_text(text)
    METER.get().build(len(shown) + shown.count(old) * max(0, len(new) - len(old)))
    return shown.replace(old, new)


def _items(values: Iterable[Any]) -> list[Any]:
    return list(metered_items(values))


def _default(value: Any, default_value: Any = "", boolean: bool = False) -> Any:
    return default_value if isinstance(value, jinja2.Undefined) or (boolean and not value) else value


def _whole_number(value: Any, default: int = 0) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        return default


def _catch(value: Any) -> str:
    caught = METER.get().caught
    assert caught is not None, "only `value` compiles this filter"
    if isinstance(value, jinja2.Undefined):
        str(value)  # Raises, naming the field.
    caught.append(value)
    return ""


FILTERS: dict[str, Callable[..., Any]] = {
    "join": join_text,
    "replace": replace_text,
    "trim": lambda text, chars=None: print_text(text).strip(chars),
    "lower": lambda text: print_text(text).lower(),
    "upper": lambda text: print_text(text).upper(),
    "title": lambda text: print_text(text).title(),
    "capitalize": lambda text: print_text(text).capitalize(),
    "string": print_text,
    "length": len,
    "count": len,
    "first": lambda values: values[0],
    "last": lambda values: values[-1],
    "list": _items,
    "sort": lambda values: sorted(print_text(value) for value in metered_items(values)),
    "default": _default,
    "d": _default,
    "int": _whole_number,
}


def _flat(value: Any) -> Any:
    """Let `set` name a scalar or a flat list, so that lists cannot double by naming."""
    charged(value)
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    if any(isinstance(part, (list, tuple, dict)) for part in parts):
        raise TypeError("set takes text, a number, or a list or mapping of them")
    return value


# Written into the tree by `sandbox`, which keeps them from templates.
OWN_FILTERS: dict[str, Callable[..., Any]] = {
    "_catch": _catch,
    "_charged": charged,
    "_flat": _flat,
    "_metered": metered_items,
}


def small_number(number: float) -> float:
    """Allow an operand up to 1e15, so that products stay short to print."""
    if abs(number) > 1e15:
        raise TooMuch("a number is larger than 1e15")
    return number


def bounded_range(*bounds: int) -> Sequence[int]:
    """Return range(...) of at most `MAX_RANGE` steps."""
    steps = range(*bounds)
    if len(steps) > MAX_RANGE:
        raise TooMuch(f"range() of {len(steps)} is longer than {MAX_RANGE}")
    return steps
