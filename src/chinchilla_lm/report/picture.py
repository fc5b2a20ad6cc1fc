"""Charts as a PNG or SVG through matplotlib, for places that show pictures but no page (a README, a slide).

The same charts as on the page, on white paper. matplotlib is imported on use: the page does not need it.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from chinchilla_lm.core.errors import DataError
from chinchilla_lm.core.files import write_bytes
from chinchilla_lm.report.chart import PALETTE, Axis, Band, Chart, Layer, Line, Marks, Span, ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = {"circle": "o", "square": "s", "diamond": "D", "star": "*", "dash": "_"}
_INK, _SOFT, _GRID = "#22211f", "#5d5a54", "#e7e4de"
DOTS_PER_INCH = 200
_MOST_IN_ROW = 3


def save_charts(charts: Sequence[Chart], path: Path, *, run_name: str) -> Path:
    """Save charts side by side; more than three in rows of two.

    Args:
        charts: one or more.
        path: the file to write, .png or .svg.
        run_name: for the error.

    Raises:
        DataError: no charts, another kind of file, or one that cannot be written.
    """
    if not charts:
        raise DataError(f"run {run_name!r} has no sweep and no forecast to draw; run `chinchilla run` further first")
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("png", "svg"):
        raise DataError(f"{path} has no kind of picture; name it .png or .svg")
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # cost: 0.3 s, and only pictures need it
    from matplotlib.figure import Figure

    columns = len(charts) if len(charts) <= _MOST_IN_ROW else 2
    rows = math.ceil(len(charts) / columns)
    figure = Figure(figsize=(6.4 * columns, 5.0 * rows), dpi=DOTS_PER_INCH, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    places = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, chart in zip(places, charts, strict=False):
        _draw(chart, axes)
    for axes in places[len(charts) :]:
        axes.set_axis_off()
    content = io.BytesIO()
    # Without a date, a version and random names the same records give the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": path.stem}):
        figure.savefig(content, format=kind, metadata={"Software": None} if kind == "png" else {"Date": None})
    write_bytes(path, content.getvalue())
    return path


def _draw(chart: Chart, axes: Axes) -> None:
    for layer in chart.layers:
        _layer(layer, axes, label="_" + layer.label)
    for layer in chart.legend():
        _layer(layer, axes, label=layer.label, is_key=True)
    for axis, ends, is_x in (
        (chart.x, (chart.x.low, chart.x.high), True),
        (chart.y, (chart.y.low, chart.y.high), False),
    ):
        target = axes.xaxis if is_x else axes.yaxis
        (axes.set_xscale if is_x else axes.set_yscale)("log" if axis.is_log else "linear")
        (axes.set_xlim if is_x else axes.set_ylim)(*ends)
        shown = ticks(axis, 7)
        target.set_ticks([value for value, _ in shown], [text for _, text in shown])
        target.set_ticks([], minor=True)
        target.set_label_text(_axis_label(axis), color=_SOFT, fontsize=9)
    axes.set_title(chart.title, loc="left", fontsize=10.5, color=_INK, fontweight="bold")
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_SOFT, labelsize=8.5, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_SOFT)
    axes.legend(fontsize=8, frameon=True, framealpha=0.9, edgecolor="none", labelcolor=_INK)


def _axis_label(axis: Axis) -> str:
    return f"{axis.label}, log scale" if axis.is_log else axis.label


def _layer(layer: Layer, axes: Axes, *, label: str, is_key: bool = False) -> None:
    """Draw a layer; `is_key` draws nothing but its entry in the legend."""
    colour = PALETTE[layer.colour][0]
    if isinstance(layer, Line):
        xs, ys = ([], []) if is_key else zip(*layer.points, strict=True)
        dash = (0, (4, 3)) if layer.is_dashed else "solid"
        axes.plot(xs, ys, color=colour, lw=layer.width, ls=dash, alpha=0.5 if layer.is_faint else 1.0, label=label)
    elif isinstance(layer, Band):
        xs, lows, highs = ([], [], []) if is_key else zip(*layer.points, strict=True)
        axes.fill_between(xs, lows, highs, color=colour, alpha=0.15, lw=0, label=label)
    elif isinstance(layer, Span):
        if is_key:
            axes.fill_between([], [], [], color=colour, alpha=0.15, lw=0, label=label)
        else:
            axes.axvspan(layer.low, layer.high, color=colour, alpha=0.15, lw=0)
    else:
        _marks(layer, axes, colour, label=label, is_key=is_key)


def _marks(layer: Marks, axes: Axes, colour: str, *, label: str, is_key: bool) -> None:
    face = "white" if layer.is_hollow else colour
    size = layer.size * {"star": 2.4, "dash": 2.6}.get(layer.marker, 1.4)
    shown = () if is_key else layer.points
    for point in shown:
        if point.low is not None and point.high is not None:
            axes.plot([point.x, point.x], [point.low, point.high], color=colour, lw=1.4, label="_bar")
    xs, ys = [point.x for point in shown], [point.y for point in shown]
    axes.plot(
        xs,
        ys,
        ls="none",
        marker=_MARKERS[layer.marker],
        color=colour,
        mfc=face,
        ms=size,
        mew=2.4 if layer.marker == "dash" else 1.2,
        zorder=5,
        label=label,
    )
