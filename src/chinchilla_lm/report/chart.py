"""A chart as a value: axes and layers in the units of the records, before anybody draws it.

`svg.draw` turns a chart into inline SVG for the page and `picture.save_charts` into a PNG through matplotlib, so that
both pictures show the same numbers. A chart holds finite numbers only; on a logarithmic axis, numbers above 0 only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Marker = Literal["circle", "square", "diamond", "star", "dash"]
Unit = Literal["plain", "count", "flops"]

# Colour names to (light, dark) pages. The ramp r0..r5 runs from pale to strong, so that more compute reads as more ink;
# its steps differ in lightness too, which survives colour blindness and a grey printer.
PALETTE: dict[str, tuple[str, str]] = {
    "r0": ("#45a37c", "#4d6bb3"),
    "r1": ("#2c9592", "#3f8fc9"),
    "r2": ("#2a7d9c", "#43b0c4"),
    "r3": ("#2f6196", "#5fcbb0"),
    "r4": ("#394384", "#9adf94"),
    "r5": ("#3a1f5f", "#e2ee94"),
    "predicted": ("#2563d9", "#7fb0ff"),
    "actual": ("#c9401a", "#ff8f63"),
    "line": ("#8a4fa3", "#cf9df0"),
    "law": ("#1f7a6d", "#5fd0bd"),
    "past": ("#8a6a00", "#e3bd4a"),
    "quiet": ("#85817a", "#8f8c86"),
}
RAMP_STEPS = 6

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_COUNT_NAMES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis: `label` with its unit, ends `low` < `high`, the scale, and how tick values are written.

    `names` are ticks of an axis that counts things instead of amounts: (place, text).
    """

    label: str
    low: float
    high: float
    is_log: bool = False
    unit: Unit = "plain"
    is_hidden: bool = False
    names: tuple[tuple[float, str], ...] = ()

    def fraction(self, value: float) -> float:
        """Where a value lies between the ends: 0 at `low`, 1 at `high`."""
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True, kw_only=True)
class Line:
    """A curve through `points` (x, y); `end_label` is written at its right end where there is room."""

    label: str
    colour: str
    points: tuple[tuple[float, float], ...]
    width: float = 1.8
    is_dashed: bool = False
    is_faint: bool = False
    end_label: str = ""


@dataclass(frozen=True, kw_only=True)
class Band:
    """The area between two curves: `points` are (x, low, high)."""

    label: str
    colour: str
    points: tuple[tuple[float, float, float], ...]


@dataclass(frozen=True, kw_only=True)
class Span:
    """A vertical strip over the stretch `low`..`high` of x."""

    label: str
    colour: str
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Point:
    """One mark at (x, y), with an error bar where `low` and `high` are given, and `text` for whoever points at it."""

    x: float
    y: float
    text: str = ""
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Marks:
    """Points that share a marker."""

    label: str
    colour: str
    points: tuple[Point, ...]
    marker: Marker = "circle"
    is_hollow: bool = False
    size: float = 4.0


Layer = Line | Band | Span | Marks


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A figure. `name` is unique on a page; `summary` says in words what it shows, for those who cannot see it."""

    name: str
    title: str
    summary: str
    x: Axis
    y: Axis
    layers: tuple[Layer, ...]

    def legend(self) -> tuple[Layer, ...]:
        """The layers to explain: one for each label, in drawing order."""
        first: dict[str, Layer] = {}
        for layer in self.layers:
            if layer.label:
                first.setdefault(layer.label, layer)
        return tuple(first.values())


def axis_over(
    values: Iterable[float], label: str, *, is_log: bool = False, unit: Unit = "plain", margin: float = 0.05
) -> Axis:
    """An axis that holds every value with a margin on both sides (a fraction of the span).

    Args:
        values: at least one finite number; on a logarithmic axis, numbers <= 0 are ignored.
        label: what the axis counts, with its unit.
        is_log: a logarithmic axis.
        unit: how tick values are written.
        margin: room on both sides, as a fraction of the span (of its logarithm on a logarithmic axis).
    """
    kept = [value for value in values if math.isfinite(value) and (value > 0 or not is_log)]
    low, high = min(kept), max(kept)
    if is_log:
        # A single value gets a factor of 2 of room, otherwise the axis would have no length.
        room = (high / low) ** margin if high > low else 2.0
        return Axis(label=label, low=low / room, high=high * room, is_log=True, unit=unit)
    room = (high - low) * margin if high > low else abs(high) * margin or 1.0
    return Axis(label=label, low=low - room, high=high + room, unit=unit)


def ticks(axis: Axis, at_most: int) -> list[tuple[float, str]]:
    """Round values inside an axis, with their text: at least 2 where it allows that, at most `at_most`; or names."""
    if axis.names:
        return list(axis.names)
    values = _log_ticks(axis, at_most) if axis.is_log else _linear_ticks(axis.low, axis.high, at_most)
    texts = [tick_text(value, axis.unit) for value in values]
    if axis.unit == "plain" and not any("e" in text for text in texts):
        # One number of decimals for the whole axis: 3.00 under 3.25, not 3.
        decimals = max((len(text.partition(".")[2]) for text in texts), default=0)
        texts = [f"{value:.{decimals}f}" for value in values]
    return list(zip(values, texts, strict=True))


def tick_text(value: float, unit: Unit) -> str:
    """A tick's text: 2000000 parameters are `2M`, 3e12 FLOPs `3×10¹²`."""
    if unit == "flops" and value > 0:
        mantissa, exponent = f"{value:.1e}".split("e")
        power = "10" + str(int(exponent)).translate(_SUPERSCRIPTS)
        digits = mantissa.removesuffix(".0")
        return power if digits == "1" else f"{digits}×{power}"
    if unit == "count":
        for size, name in _COUNT_NAMES:
            if abs(value) >= size * 0.9995:
                return f"{value / size:.3g}{name}"
    return f"{value:.6g}"


def bin_means(
    points: Sequence[tuple[float, float]], *, bins: int, is_log: bool = True
) -> tuple[tuple[float, float], ...]:
    """Average a long noisy curve over equal stretches of x, at most `bins` of them.

    Every point counts once, so unlike a moving average the result never lags behind the curve. Short curves stay.

    Args:
        points: (x, y) in order of x.
        bins: how many points may remain.
        is_log: stretches of equal ratio of x (x <= 0 is left out) instead of equal length.
    """
    kept = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y) and (x > 0 or not is_log)]
    if len(kept) <= bins:
        return tuple(kept)
    axis = axis_over((x for x, _ in kept), "", is_log=is_log, margin=0.0)
    sums: dict[int, tuple[float, float, int]] = {}
    for x, y in kept:
        index = min(bins - 1, int(axis.fraction(x) * bins))
        sum_x, sum_y, count = sums.get(index, (0.0, 0.0, 0))
        sums[index] = (sum_x + x, sum_y + y, count + 1)
    return tuple((sum_x / count, sum_y / count) for _, (sum_x, sum_y, count) in sorted(sums.items()))


def ramp_colour(index: int, count: int) -> str:
    """The colour of group `index` of `count` on the ramp from least to most compute."""
    if count <= 1:
        return f"r{RAMP_STEPS // 2}"
    return f"r{round(index * (RAMP_STEPS - 1) / (count - 1))}"


def _log_ticks(axis: Axis, at_most: int) -> list[float]:
    first, last = math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high))
    # The finest set of round multiples that still fits; a decade step wider than 1 for very long axes.
    for multiples in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        values = [m * 10.0**power for power in range(first, last + 1) for m in multiples]
        inside = [value for value in values if axis.low <= value <= axis.high]
        if len(inside) <= at_most:
            # With so few round multiples an axis below a decade is read like a linear one; a longer one is not.
            is_long = len(inside) >= 2 and axis.high >= 10 * axis.low
            return inside if is_long or len(inside) >= min(4, at_most) else _linear_ticks(axis.low, axis.high, at_most)
    stride = math.ceil((last - first + 1) / at_most)
    return [10.0**power for power in range(first, last + 1, stride) if axis.low <= 10.0**power <= axis.high]


def _linear_ticks(low: float, high: float, at_most: int) -> list[float]:
    rough = (high - low) / at_most
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(multiple * size for multiple in (1, 2, 2.5, 5, 10) if multiple * size >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]
