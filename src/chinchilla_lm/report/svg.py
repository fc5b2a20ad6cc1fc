"""Charts as inline SVG text: crisp at any size, coloured by the page's CSS variables, readable without scripts.

A chart is drawn once for each width it is shown at (phone and desk) instead of being scaled, so that its words keep the
size of the words around it. Coordinates are pixels of the view box, y downwards. Every text goes through `escape`.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable
from dataclasses import replace

from markupsafe import Markup, escape

from chinchilla_lm.report.chart import Axis, Band, Chart, Layer, Line, Marker, Marks, Point, Span, ticks

TICK_PIXELS_X = 72.0
"""Room that a tick's text takes on the x axis; the widest, `3×10¹²`, is about 50 pixels at 12 pixels a letter."""
TICK_PIXELS_Y = 34.0
NAME_PIXELS = 40.0
"""Room for a name of six letters on an axis of names, or for a short number."""
LETTER_PIXELS = 7.4
"""Room for a letter of a name beside the y axis at 12 pixels: DejaVu Sans, the widest of the page's fonts."""
END_LABEL_PIXELS = 54.0
WIDE = 500.0
"""From this width on, curves carry their names at their right end."""


def draw(chart: Chart, *, width: float, height: float) -> Markup:
    """Draw a chart.

    Args:
        chart: what to draw; points outside its axes are cut at the frame.
        width: of the view box, in pixels.
        height: of the view box, in pixels.

    Returns:
        One `<svg>` element, labelled by the elements `{chart.name}-title` and `{chart.name}-summary` of the page.
    """
    frame = _Frame(chart, width, height)
    clip = f"{chart.name}-clip-{width:.0f}"
    box = f'x="{frame.left:.1f}" y="{frame.top:.1f}" width="{frame.inner_width:.1f}" height="{frame.inner_height:.1f}"'
    parts = [
        f'<svg class="chart" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" '
        f'role="img" aria-labelledby="{chart.name}-title {chart.name}-summary" {frame.hover_attributes()}>',
        f'<clipPath id="{clip}"><rect {box}/></clipPath>',
        *_grid(frame),
        f'<g clip-path="url(#{clip})">',
        *(_shape(layer, frame) for layer in chart.layers if not isinstance(layer, Marks)),
        "</g>",
        *(_marks(layer, frame) for layer in chart.layers if isinstance(layer, Marks)),
        *(_end_labels(frame) if frame.has_end_labels else ()),
        "</svg>",
    ]
    return Markup("".join(parts))


def letters_of(name: str) -> int:
    """Return a name's width in Latin letters; those of wide scripts count twice."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in name)


def legend_key(layer: Layer) -> Markup:
    """The little picture of a layer that stands before its label in a legend."""
    colour = f"c-{layer.colour}"
    if isinstance(layer, Line):
        body = f'<path class="stroke {colour}{_line_class(layer)}" d="M1 7H23" stroke-width="{layer.width:.1f}"/>'
    elif isinstance(layer, Marks):
        # Bars of filled points are mostly shorter than the points; only the wide ones of dashes are worth a key.
        has_bars = layer.marker == "dash" and any(point.low is not None for point in layer.points)
        bar = f'<path class="stroke {colour}" d="M12 1V13M9 1h6M9 13h6"/>' if has_bars else ""
        body = bar + _marker(replace(layer, size=min(layer.size, 5.0)), 12, 7)
    else:
        body = f'<rect class="area {colour}" x="1" y="1" width="22" height="12"/>'
    return Markup(f'<svg class="key" viewBox="0 0 24 14" width="24" height="14" aria-hidden="true">{body}</svg>')


class _Frame:
    """The plot area of one drawing: where values of the axes fall, in pixels."""

    def __init__(self, chart: Chart, width: float, height: float) -> None:
        self.chart = chart
        self.has_end_labels = width >= WIDE and any(isinstance(each, Line) and each.end_label for each in chart.layers)
        self.left = 8.0 if chart.y.is_hidden else max(46.0, 12.0 + _names_pixels(chart.y))
        self.top = 10.0 if chart.y.is_hidden else 26.0
        self.right = width - (END_LABEL_PIXELS if self.has_end_labels else 12.0)
        self.bottom = height - 42.0
        self.inner_width = self.right - self.left
        self.inner_height = self.bottom - self.top

    def x(self, value: float) -> float:
        # Values far outside the axis stay within reach of every renderer's number format.
        return self.left + self.inner_width * min(9.0, max(-9.0, self.chart.x.fraction(value)))

    def y(self, value: float) -> float:
        return self.bottom - self.inner_height * min(9.0, max(-9.0, self.chart.y.fraction(value)))

    def can_show(self, x: float, y: float) -> bool:
        return (x > 0 or not self.chart.x.is_log) and (y > 0 or not self.chart.y.is_log)

    def is_inside(self, x: float, y: float) -> bool:
        return self.can_show(x, y) and 0 <= self.chart.x.fraction(x) <= 1 and 0 <= self.chart.y.fraction(y) <= 1

    def hover_attributes(self) -> str:
        """The frame and the axes, for the script that reads values out; without it they do nothing."""
        frame = f"{self.left:.1f},{self.right:.1f},{self.top:.1f},{self.bottom:.1f}"
        axes = ",".join(f"{axis.low!r},{axis.high!r},{int(axis.is_log)}" for axis in (self.chart.x, self.chart.y))
        return f'data-chart="{self.chart.name}" data-frame="{frame}" data-axes="{axes}"'


def _names_pixels(axis: Axis) -> float:
    """Return the room that the longest name of an axis takes; 0 without names."""
    return LETTER_PIXELS * max((letters_of(name) for _, name in axis.names), default=0)


def _grid(frame: _Frame) -> Iterable[str]:
    x_axis, y_axis = frame.chart.x, frame.chart.y
    if not y_axis.is_hidden:
        for value, text in ticks(y_axis, max(2, int(frame.inner_height / TICK_PIXELS_Y))):
            y = frame.y(value)
            yield f'<path class="grid" d="M{frame.left:.1f} {y:.1f}H{frame.right:.1f}"/>'
            yield _text(text, frame.left - 6, y + 4, "tick end")
        yield _text(_axis_label(y_axis), 0, 13, "axis-label")
    # Names that would touch stand in two rows, the second where an axis of names has no label.
    lower = 14.0 if len(x_axis.names) * NAME_PIXELS > frame.inner_width else 0.0
    # Beside names the frame is narrow, and its values are shares and bits: short ones.
    room = NAME_PIXELS if y_axis.names else TICK_PIXELS_X
    for place, (value, text) in enumerate(ticks(x_axis, max(2, int(frame.inner_width / room)))):
        x = frame.x(value)
        yield f'<path class="grid" d="M{x:.1f} {frame.top:.1f}V{frame.bottom:.1f}"/>'
        yield _text(text, x, frame.bottom + 17 + lower * (place % 2), "tick middle")
    yield f'<path class="axis" d="M{frame.left:.1f} {frame.bottom:.1f}H{frame.right:.1f}"/>'
    yield _text(_axis_label(x_axis), frame.right, frame.bottom + 36, "axis-label end")


def _axis_label(axis: Axis) -> str:
    return f"{axis.label}, log scale" if axis.is_log else axis.label


def _text(text: str, x: float, y: float, css: str) -> str:
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _shape(layer: Layer, frame: _Frame) -> str:
    if isinstance(layer, Line):
        path = _path((frame.x(x), frame.y(y)) for x, y in layer.points if frame.can_show(x, y))
        return (
            f'<path class="stroke c-{layer.colour}{_line_class(layer)}" d="{path}" stroke-width="{layer.width:.1f}"/>'
        )
    if isinstance(layer, Band):
        shown = [point for point in layer.points if frame.can_show(point[0], min(point[1:]))]
        upper = [(frame.x(x), frame.y(high)) for x, _, high in shown]
        lower = [(frame.x(x), frame.y(low)) for x, low, _ in reversed(shown)]
        return f'<path class="area c-{layer.colour}" d="{_path([*upper, *lower])}Z"/>' if shown else ""
    assert isinstance(layer, Span)
    left, right = frame.x(layer.low), frame.x(layer.high)
    return (
        f'<rect class="area c-{layer.colour}" x="{left:.1f}" y="{frame.top:.1f}" '
        f'width="{right - left:.1f}" height="{frame.inner_height:.1f}"/>'
    )


def _line_class(layer: Line) -> str:
    return (" dashed" if layer.is_dashed else "") + (" faint" if layer.is_faint else "")


def _path(points: Iterable[tuple[float, float]]) -> str:
    return "".join(f"{'L' if index else 'M'}{x:.1f} {y:.1f}" for index, (x, y) in enumerate(points))


def _marks(layer: Marks, frame: _Frame) -> str:
    shown = [point for point in layer.points if frame.can_show(point.x, point.y)]
    parts = [f"<g>{_error_bar(point, layer, frame)}{_one_mark(point, layer, frame)}</g>" for point in shown]
    return "".join(parts)


def _error_bar(point: Point, layer: Marks, frame: _Frame) -> str:
    if point.low is None or point.high is None or not frame.can_show(point.x, point.low):
        return ""
    x, low, high = frame.x(point.x), frame.y(point.low), frame.y(point.high)
    caps = f"M{x - 4:.1f} {low:.1f}h8M{x - 4:.1f} {high:.1f}h8"
    return f'<path class="stroke c-{layer.colour}" d="M{x:.1f} {low:.1f}V{high:.1f}{caps}"/>'


def _one_mark(point: Point, layer: Marks, frame: _Frame) -> str:
    return _marker(
        layer, frame.x(point.x), frame.y(point.y), f"<title>{escape(point.text)}</title>" if point.text else ""
    )


def _marker(layer: Marks, x: float, y: float, title: str = "") -> str:
    css = f'class="{"hollow" if layer.is_hollow else "dot"} c-{layer.colour}"'
    if layer.marker == "circle":
        return f'<circle {css} cx="{x:.1f}" cy="{y:.1f}" r="{layer.size:.1f}">{title}</circle>'
    return f'<path {css} d="{_path(_corners(layer.marker, x, y, layer.size))}Z">{title}</path>'


def _corners(marker: Marker, x: float, y: float, size: float) -> list[tuple[float, float]]:
    """A marker's outline; sizes are balanced so that all markers of one size carry about the same ink."""
    if marker in ("square", "dash"):
        across, down = (size * 0.9, size * 0.9) if marker == "square" else (size * 1.5, 1.3)
        return [(x + dx * across, y + dy * down) for dx, dy in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    if marker == "diamond":
        return [(x + dx * size * 1.25, y + dy * size * 1.25) for dx, dy in ((0, -1), (1, 0), (0, 1), (-1, 0))]
    assert marker == "star", marker
    radii = [size * 1.5 * (0.45 if index % 2 else 1.0) for index in range(10)]
    angles = [math.pi * (index / 5 - 0.5) for index in range(10)]
    return [
        (x + radius * math.cos(angle), y + radius * math.sin(angle))
        for radius, angle in zip(radii, angles, strict=True)
    ]


def _end_labels(frame: _Frame) -> Iterable[str]:
    """Names at the right ends of the curves, pushed apart where two would overlap."""
    wanted = []
    for layer in frame.chart.layers:
        if (
            isinstance(layer, Line)
            and layer.end_label
            and (visible := [p for p in layer.points if frame.is_inside(*p)])
        ):
            x, y = visible[-1]
            rest = layer.points[layer.points.index((x, y)) + 1 :]
            # A curve that leaves at the right is drawn on to the frame, and its name must not lie on it.
            leaves = bool(rest) and frame.chart.x.fraction(rest[0][0]) > 1
            wanted.append((frame.y(y), frame.right if leaves else frame.x(x), layer))
    previous = -math.inf
    for y, x, layer in sorted(wanted, key=lambda each: each[0]):
        previous = max(y, previous + 13.0)
        yield _text(layer.end_label, min(x, frame.right) + 4, previous + 4, f"end-label c-{layer.colour}")
