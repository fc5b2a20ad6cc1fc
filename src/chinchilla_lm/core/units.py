"""Budgets, counts and amounts between text and numbers.

A budget is written with its unit: `5m` (minutes), `90s`, `2h`, `1d`, `1e18` or `1e18 FLOPs`, `8 H100-hours`, `$50`.
A count may carry k, K, M, B or T (powers of a thousand): `3M`, `20B`, `1e9`.
In a budget `m` is minutes and `M` is refused; FLOPs take no suffix. In a count, `m` and `M` are millions.
It never converts one kind of budget into another; that takes a machine's speed or a price.
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass
from typing import Literal

from chinchilla_lm.core.errors import UnitError

BudgetKind = Literal["seconds", "flops", "device_hours", "dollars"]

BUDGET_EXAMPLES = "5m, 2h, 1e18, 8 H100-hours or $50"

_SECONDS = {
    1.0: ("s", "sec", "secs", "second", "seconds"),
    60.0: ("m", "min", "mins", "minute", "minutes"),
    3600.0: ("h", "hr", "hrs", "hour", "hours"),
    86400.0: ("d", "day", "days"),
}
_SECONDS_PER_UNIT = {name: seconds for seconds, names in _SECONDS.items() for name in names}
_FLOP_UNITS = ("", "flop", "flops")
_DOLLAR_UNITS = ("$", "usd", "dollar", "dollars")
_COUNT_SCALES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}

# A comma only between groups of three digits: "1,5h" is refused instead of read as fifteen hours.
_NUMBER = r"[+-]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?|[+-]?(?:nan|inf(?:inity)?)"
_NUMBER_AND_UNIT = re.compile(rf"\s*({_NUMBER})\s*(.*?)\s*", re.IGNORECASE | re.DOTALL)
_DEVICE_HOURS = re.compile(r"([a-z][\w.-]*(?: [\w.-]+)*)[-_ ](?:hours?|hrs?|h)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What may be spent.

    Attributes:
        kind: what `amount` counts.
        amount: seconds, FLOPs, device-hours or US dollars; finite and > 0.
        device: the device's name for kind "device_hours" (as written, e.g. "H100"), else None.
        text: the budget as it was written.
    """

    kind: BudgetKind
    amount: float
    device: str | None = None
    text: str = ""


def parse_budget(text: str) -> Budget:
    """Read a budget such as `5m`, `2h`, `1e18`, `8 H100-hours` or `$50`.

    Args:
        text: a number and its unit; a bare number is FLOPs. `m` is minutes.

    Returns:
        The budget, with its amount in seconds, FLOPs, device-hours or dollars.

    Raises:
        UnitError: no number, an unknown unit, or an amount that is not a finite number > 0.
    """
    written = text.strip()
    is_dollars = written.startswith("$")
    match = _NUMBER_AND_UNIT.fullmatch(written.removeprefix("$"))
    if match is None:
        raise UnitError(f"budget {text!r} has no number; write a number and its unit: {BUDGET_EXAMPLES}")
    unit = match[2]
    amount = _positive(match[1], text, _SECONDS_PER_UNIT.get(unit.lower(), 1.0))
    if is_dollars and unit:
        raise UnitError(f"budget {text!r} has two units, $ and {unit!r}; write one of {BUDGET_EXAMPLES}")
    if is_dollars or unit.lower() in _DOLLAR_UNITS:
        return Budget(kind="dollars", amount=amount, text=written)
    if unit.lower() in _FLOP_UNITS:
        return Budget(kind="flops", amount=_flops_not_seconds(amount, unit, text), text=written)
    if unit.lower() in _SECONDS_PER_UNIT and unit != "M":
        return Budget(kind="seconds", amount=amount, text=written)
    if device := _DEVICE_HOURS.fullmatch(unit):
        return Budget(kind="device_hours", amount=amount, device=device[1], text=written)
    raise UnitError(f"budget {text!r} has the unknown unit {unit!r}; {_unit_hint(unit)}")


def parse_count(text: str) -> float:
    """Read a count such as `3M`, `20B` or `1e9`.

    Args:
        text: a number, with k, M, B or T for powers of a thousand (either case).

    Returns:
        The count as a float > 0.

    Raises:
        UnitError: not a number, an unknown suffix, or not a finite number > 0.
    """
    match = _NUMBER_AND_UNIT.fullmatch(text)
    if match is None:
        raise UnitError(f"count {text!r} has no number; write a number such as 3M, 20B or 1e9")
    scale = _COUNT_SCALES.get(match[2].lower())
    if scale is None:
        raise UnitError(f"count {text!r} has the unknown suffix {match[2]!r}; write k, M, B or T, as in 3M or 20B")
    return _positive(match[1], text, scale)


def format_count(count: float) -> str:
    """Write a count with three digits and k, M, B or T: 73825280 is `73.8M`."""
    return _scaled(count, 1000.0, ("", "k", "M", "B", "T"), separator="")


def format_flops(flops: float) -> str:
    """Write an amount of computation in scientific notation: 5.76e23 is `5.76e23 FLOPs`."""
    if not math.isfinite(flops) or flops == 0:
        return f"{flops:g} FLOPs"
    mantissa, exponent = f"{flops:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)} FLOPs"


def format_seconds(seconds: float) -> str:
    """Write a duration with its two leading units: 3725 is `1 h 02 min`, 0.0042 is `4.2 ms`."""
    if not math.isfinite(seconds):
        return f"{seconds:g} s"
    if seconds < 0:
        return "-" + format_seconds(-seconds)
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 59.95:  # above it, three digits would round to 60.0 s
        return f"{seconds:.3g} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24:02d} h"


def format_bytes(size: float) -> str:
    """Write a size in powers of 1024 with three digits: 1536 is `1.5 KiB`."""
    return _scaled(size, 1024.0, ("B", "KiB", "MiB", "GiB", "TiB", "PiB"), separator=" ")


def _positive(number: str, text: str, scale: float = 1.0) -> float:
    amount = float(number.replace(",", "")) * scale
    if not math.isfinite(amount) or amount <= 0:
        raise UnitError(f"{text!r} is not a finite amount > 0; write a number > 0 such as 5 or 1e18")
    return amount


def _flops_not_seconds(amount: float, unit: str, text: str) -> float:
    # A budget under 1e6 FLOPs trains nothing (one step of the smallest shape costs more): a unit was forgotten.
    if not unit and amount < 1e6:
        raise UnitError(f"budget {text!r} has no unit; write {text.strip()}m for minutes, or FLOPs such as 1e18")
    return amount


def _unit_hint(unit: str) -> str:
    known = [*_SECONDS_PER_UNIT, "FLOPs", "H100-hours", "dollars"]
    if unit.lower() in _COUNT_SCALES:
        return f"write minutes as m and FLOPs without a suffix: {BUDGET_EXAMPLES}"
    lowered = {name.lower(): name for name in known}
    nearest = difflib.get_close_matches(unit.lower(), lowered, n=1)
    if nearest:
        return f"did you mean {lowered[nearest[0]]!r}? Write {BUDGET_EXAMPLES}"
    return f"write one of {BUDGET_EXAMPLES}"


def _scaled(amount: float, step: float, names: tuple[str, ...], *, separator: str) -> str:
    if not math.isfinite(amount):
        return f"{amount:g}"
    index = 0
    # 999.5 rounds to 1000 at three digits, so it already belongs to the next name.
    while abs(amount) >= step - 0.5 and index < len(names) - 1:
        amount /= step
        index += 1
    digits = f"{amount:.0f}" if 999.5 <= abs(amount) < 1e6 else f"{amount:.3g}"
    return f"{digits}{separator}{names[index]}".rstrip()
