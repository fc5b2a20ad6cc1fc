"""The figures of a tuning: before and after on one line, the two learning curves, reliability, and how much data.

Each function takes the run and answers with a chart, or None where the records do not hold what it shows. Shares are
drawn in per cent. `dumbbell` is the small picture in a table's row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from chinchilla_lm.report.chart import Axis, Band, Chart, Layer, Line, Marks, Point, axis_over, bin_means
from chinchilla_lm.report.rundir import is_number
from chinchilla_lm.report.tune_record import TuneRun
from chinchilla_lm.report.tune_words import evaluated_on, is_share, level_of, metric_name, write

CURVE_BINS = 200
_DUMBBELL_PIXELS = (150, 16)
_LINES = {"before": ("quiet", 0.53, 0.95), "after": ("actual", 0.05, 0.47)}


def tune_charts(run: TuneRun) -> list[Chart]:
    """Return every figure that the records hold, in the page's order."""
    drawn = (strip_chart(run), loss_chart(run), validation_chart(run), reliability_chart(run), data_chart(run))
    return [chart for chart in drawn if chart is not None]


def strip_chart(run: TuneRun) -> Chart | None:
    """Before and after, with their intervals, on one line of the metric."""
    metric = run.metric
    factor = _factor(run)
    layers: list[Layer] = []
    shown: list[float] = []
    said: list[str] = []
    for stage, (colour, bottom, top) in _LINES.items():
        value, ends = run.value(stage), run.interval(stage)
        if value is None:
            continue
        if ends is not None:
            low, high = (factor * end for end in ends)
            name = f"{stage}, {level_of(run.table('intervals', stage))} interval"
            layers.append(Band(label=name, colour=colour, points=((low, bottom, top), (high, bottom, top))))
            shown += [low, high]
        point = Point(x=factor * value, y=(bottom + top) / 2, text=f"{stage}: {write(metric, value)}")
        layers.append(Marks(label=stage, colour=colour, points=(point,), size=6.0, is_hollow=stage == "before"))
        shown.append(factor * value)
        said.append(f"{stage} {write(metric, value)}")
    if not shown:
        return None
    label = f"{metric_name(metric)}, {evaluated_on(run)} rows" + (" (%)" if factor == 100 else "")
    x_axis = _within_shares(axis_over(shown, label, margin=0.15), factor)
    y_axis = Axis(label="", low=0.0, high=1.0, is_hidden=True)
    summary = f"{metric_name(metric)}: {', '.join(said)}."
    title = "Before and after"
    return Chart(name="strip", title=title, summary=summary, x=x_axis, y=y_axis, layers=tuple(layers))


def loss_chart(run: TuneRun) -> Chart | None:
    """Training loss over updates, with the best step marked."""
    curve = bin_means(run.steps, bins=CURVE_BINS, is_log=False)
    if len(curve) < 2:
        return None
    y_axis = axis_over((y for _, y in curve), "loss (nats a target)", margin=0.08)
    layers: list[Layer] = [Line(label="training", colour="actual", points=curve, width=2.0)]
    layers += _best_line(run, y_axis)
    return Chart(
        name="tune-loss",
        title="Training loss",
        summary=f"From {curve[0][1]:.3f} to {curve[-1][1]:.3f} nats a target over {curve[-1][0]:,.0f} updates.",
        x=axis_over((x for x, _ in curve), "updates", margin=0.02),
        y=y_axis,
        layers=tuple(layers),
    )


def validation_chart(run: TuneRun) -> Chart | None:
    """The task's metric on the validation rows over updates, with the best step marked."""
    if not run.checks:
        return None
    factor, name = _factor(run), metric_name(run.metric)
    points = tuple(
        Point(x=step, y=factor * value, text=f"after {step:,.0f} updates: {write(run.metric, value)}")
        for step, value in run.checks
    )
    label = f"{name}, validation" + (" (%)" if factor == 100 else "")
    y_axis = _within_shares(axis_over((point.y for point in points), label, margin=0.15), factor)
    layers: list[Layer] = [
        Line(label="", colour="predicted", points=tuple((point.x, point.y) for point in points), width=2.0),
        Marks(label=f"{name} on the validation rows", colour="predicted", points=points),
    ]
    best = _best_step(run)
    kept = next((point for point in points if point.x == best), None)
    plural = "s" if len(points) > 1 else ""
    summary = f"{len(points)} measurement{plural} on rows that nothing was trained on."
    if kept is not None:
        layers.append(Marks(label="kept", colour="actual", marker="star", size=7.0, points=(kept,)))
        summary += f" The best, {write(run.metric, kept.y / factor)} after {kept.x:,.0f} updates, was kept."
    return Chart(
        name="tune-validation",
        title=f"{name[:1].upper()}{name[1:]} on the validation rows",
        summary=summary,
        x=axis_over([*(point.x for point in points), *(x for x, _ in run.steps[-1:])], "updates", margin=0.03),
        y=y_axis,
        layers=tuple(layers),
    )


def reliability_chart(run: TuneRun) -> Chart | None:
    """How often answers of a stated probability were right, before and after."""
    layers: list[Layer] = [
        Line(label="honest", colour="quiet", points=((0.0, 0.0), (100.0, 100.0)), width=1.2, is_dashed=True)
    ]
    said: list[str] = []
    for stage, (colour, _, _) in _LINES.items():
        found = run.table("calibration", stage)
        points = tuple(_reliability_point(each) for each in found.get("bins") or () if _is_filled_bin(each))
        if not points:
            continue
        layers.append(Line(label="", colour=colour, points=tuple((point.x, point.y) for point in points), width=1.4))
        layers.append(Marks(label=stage, colour=colour, points=points, is_hollow=stage == "before"))
        if is_number(found.get("error")):
            said.append(f"{stage} the calibration error is {100 * found['error']:.1f} %")
    if len(layers) == 1:
        return None
    return Chart(
        name="reliability",
        title="Is it as sure as it is right?",
        summary=("; ".join(said).capitalize() + ". " if said else "") + "Below the dashed line it claims too much.",
        x=Axis(label="stated probability (%)", low=0.0, high=100.0),
        y=Axis(label="right (%)", low=0.0, high=100.0),
        layers=tuple(layers),
    )


def data_chart(run: TuneRun) -> Chart | None:
    """The metric over the number of training rows, the power law through it, and what twice the rows would give."""
    law = run.table("learning_curve")
    points = tuple(_rows_point(run, each) for each in law.get("points") or () if _has_rows(each))
    if len(points) < 2:
        return None
    factor, name = _factor(run), metric_name(run.metric)
    layers: list[Layer] = [Marks(label="tuned on that many rows", colour="predicted", points=points)]
    shown = list(points)
    curve = [each for each in law.get("curve") or () if _has_rows(each)]
    if curve:
        line = tuple((float(each["rows"]), factor * float(each["value"])) for each in curve)
        layers.insert(0, Line(label="power law", colour="law", points=line, width=2.0))
        band = tuple(
            (float(each["rows"]), factor * float(each["low"]), factor * float(each["high"]))
            for each in curve
            if is_number(each.get("low")) and is_number(each.get("high"))
        )
        if band:
            layers.insert(0, Band(label=f"its {level_of(law)} interval", colour="law", points=band))
        shown += [Point(x=x, y=y) for x, y in line]
    ahead = law.get("doubled")
    summary = f"{len(points)} tunings on nested parts of the rows."
    if isinstance(ahead, Mapping) and _has_rows(ahead):
        point = _rows_point(run, ahead)
        layers.append(
            Marks(label="twice the rows, forecast", colour="actual", marker="star", size=7.0, points=(point,))
        )
        shown.append(point)
        summary += f" Twice the rows should give {write(run.metric, float(ahead['value']))}."
    values = [value for point in shown for value in (point.y, point.low, point.high) if value is not None]
    label = name + (" (%)" if factor == 100 else "")
    return Chart(
        name="rows-law",
        title="How much would more rows help?",
        summary=summary,
        x=axis_over((point.x for point in shown), "training rows", is_log=True, unit="count"),
        y=axis_over(values, label, margin=0.1),
        layers=tuple(layers),
    )


def dumbbell(before: float | None, after: float | None, low: float, high: float) -> Markup:
    """Draw a row's before (hollow) and after (filled) between the ends of the table's scale.

    Args:
        before: value, or None.
        after: value, or None.
        low: value at the left end.
        high: value at the right end, > low.
    """
    width, height = _DUMBBELL_PIXELS

    def place(value: float) -> float:
        return 6 + (width - 12) * min(1.0, max(0.0, (value - low) / (high - low)))

    middle = height / 2
    parts = [f'<path class="grid" d="M6 {middle:.0f}H{width - 6}"/>']
    if before is not None and after is not None:
        parts.append(f'<path class="stroke c-actual" stroke-width="2" d="M{place(before):.1f} 8H{place(after):.1f}"/>')
    if before is not None:
        parts.append(f'<circle class="hollow c-quiet" cx="{place(before):.1f}" cy="{middle:.0f}" r="4"/>')
    if after is not None:
        parts.append(f'<circle class="dot c-actual" cx="{place(after):.1f}" cy="{middle:.0f}" r="4.5"/>')
    box = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return Markup(f'<svg class="bar" {box} aria-hidden="true">{"".join(parts)}</svg>')


def _factor(run: TuneRun) -> float:
    """100 where the primary metric is drawn in per cent, else 1."""
    return 100.0 if is_share(run.metric, run.value("before"), run.value("after")) else 1.0


def _within_shares(axis: Axis, factor: float) -> Axis:
    """Cut an axis of shares at 0 and 100, so that a margin does not claim what cannot be."""
    if factor != 100.0:
        return axis
    low, high = max(0.0, axis.low), min(100.0, axis.high)
    # All shares alike at an end (0 or 100 everywhere) still need an axis with a length.
    return Axis(label=axis.label, low=low, high=high) if high > low else Axis(label=axis.label, low=0.0, high=100.0)


def _best_step(run: TuneRun) -> float | None:
    step = run.table("best").get("step")
    return float(step) if is_number(step) else None


def _best_line(run: TuneRun, axis: Axis) -> list[Layer]:
    step = _best_step(run)
    if step is None:
        return []
    points = ((step, axis.low), (step, axis.high))
    return [Line(label="kept step", colour="predicted", points=points, width=1.4, is_dashed=True)]


def _is_filled_bin(each: Any) -> bool:
    names = ("confidence", "accuracy", "count")
    return isinstance(each, Mapping) and all(is_number(each.get(name)) for name in names) and each["count"] > 0


def _reliability_point(each: Mapping[str, Any]) -> Point:
    right, count = 100 * float(each["accuracy"]), int(each["count"])
    # Normal approximation of a share's standard error; rows are few in most bins, and the bar says so.
    error = 100 * 1.96 * math.sqrt(each["accuracy"] * (1 - each["accuracy"]) / count)
    text = f"{count:,} rows that it gave {100 * each['confidence']:.0f} %: {right:.0f} % right"
    low, high = max(0.0, right - error), min(100.0, right + error)
    return Point(x=100 * float(each["confidence"]), y=right, low=low, high=high, text=text)


def _has_rows(each: Any) -> bool:
    return (
        isinstance(each, Mapping) and is_number(each.get("rows")) and each["rows"] > 0 and is_number(each.get("value"))
    )


def _rows_point(run: TuneRun, each: Mapping[str, Any]) -> Point:
    factor = _factor(run)
    ends: Sequence[Any] = (each.get("low"), each.get("high"))
    low, high = (factor * float(end) if is_number(end) else None for end in ends)
    text = f"{each['rows']:,} rows: {write(run.metric, float(each['value']))}"
    return Point(x=float(each["rows"]), y=factor * float(each["value"]), low=low, high=high, text=text)
