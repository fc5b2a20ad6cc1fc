"""The figure of named rows with dots and intervals: one row a suite, a rule or a domain, values to the right.

A row's name stands at the left, where names of any length have room on a phone too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from chinchilla_lm.report.chart import Axis, Chart, Layer, Line, Marker, Marks, Point, axis_over
from chinchilla_lm.report.svg import letters_of

Z95 = 1.96
"""Half-width of a 95 % interval in standard errors of a normal distribution."""
_LONGEST_NAME = 16  # letters: a third of a phone


@dataclass(frozen=True, kw_only=True)
class Dot:
    """One value of row `row` (from 0, at the top), its interval where it has one, and `text` for whoever points."""

    row: int
    value: float
    text: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Series:
    """Dots of one meaning; `shift` moves them off their row's middle, upwards, as a part of a row's height."""

    label: str
    colour: str
    dots: tuple[Dot, ...]
    marker: Marker = "circle"
    is_hollow: bool = False
    size: float = 5.0
    shift: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Words:
    """What a figure says of itself; `name` is unique on its page."""

    name: str
    title: str
    summary: str


def dots_chart(
    words: Words,
    rows: Sequence[str],
    series: Sequence[Series],
    label: str,
    *,
    is_percent: bool = False,
    at: float | None = None,
) -> Chart | None:
    """Draw rows of dots.

    Args:
        words: of the figure.
        rows: names, from the top.
        series: what to draw, the first below the others.
        label: of the axis, with its unit.
        is_percent: the axis ends at 0 and 100.
        at: a value that a thin line is drawn at, such as no difference.

    Returns:
        The chart; None without a dot.
    """
    dots = [dot for each in series for dot in each.dots]
    if not dots:
        return None
    values = [value for dot in dots for value in (dot.value, dot.low, dot.high) if value is not None]
    x_axis = axis_over(values if at is None else [*values, at], label, margin=0.08)
    if is_percent:
        low, high = max(0.0, x_axis.low), min(100.0, x_axis.high)
        x_axis = Axis(label=label, low=low, high=high) if high > low else Axis(label=label, low=0.0, high=100.0)
    places = [float(len(rows) - row) for row in range(len(rows))]
    bottom, top = 0.4, len(rows) + 0.6
    layers: list[Layer] = []
    if at is not None:
        layers.append(Line(label="", colour="quiet", points=((at, bottom), (at, top)), width=1.2, is_dashed=True))
    for each in series:
        layers += _layers(each, places)
    names = tuple((place, shortened(name)) for place, name in zip(places, rows, strict=True))
    return Chart(
        name=words.name,
        title=words.title,
        summary=words.summary,
        x=x_axis,
        y=Axis(label="", low=bottom, high=top, names=names),
        layers=tuple(layers),
    )


def shortened(name: str) -> str:
    """Return a name that has room beside a figure or in the head of a table."""
    kept = name
    while letters_of(kept) > _LONGEST_NAME:
        kept = kept.removesuffix("…")[:-1] + "…"
    return kept


def _layers(series: Series, places: Sequence[float]) -> list[Layer]:
    points, layers = [], []
    for dot in series.dots:
        y = places[dot.row] + series.shift
        if dot.low is not None and dot.high is not None:
            layers.append(Line(label="", colour=series.colour, points=((dot.low, y), (dot.high, y)), width=2.2))
        points.append(Point(x=dot.value, y=y, text=dot.text))
    marks = Marks(
        label=series.label, colour=series.colour, points=tuple(points), marker=series.marker,
        is_hollow=series.is_hollow, size=series.size,
    )  # fmt: skip
    return [*layers, marks] if points else []
