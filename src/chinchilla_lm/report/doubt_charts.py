"""The figures that doubt a fit: its residuals, the drift of its exponent, its back-test, and the exponent by every way.

Each function takes the record of a fit and answers with a chart, or None where the record does not hold what it shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from chinchilla_lm.core.units import format_flops
from chinchilla_lm.report.chart import Axis, Band, Chart, Layer, Line, Marks, Point, axis_over
from chinchilla_lm.report.fit_charts import COMPUTE, Record, run_layers
from chinchilla_lm.report.points import Z90
from chinchilla_lm.report.rundir import is_number

_BINS = 8  # of a back-test's band
_FEWEST_IN_BIN = 3
_WIDEST = 6.0  # noises; a run farther off is outside the figure, and named by the diagnosis


def doubt_charts(record: Record) -> list[Chart]:
    """Return every figure that the record holds, in the page's order."""
    drawn = (
        residual_chart(record, "flops"),
        residual_chart(record, "tokens_per_param"),
        drift_chart(record),
        backtest_chart(record),
        exponents_chart(record),
    )
    return [chart for chart in drawn if chart is not None]


def residual_chart(record: Record, against: str) -> Chart | None:
    """What the law leaves of each run, per cent of its loss, against compute or tokens per parameter."""
    if "residual_percent" not in record["runs"]:
        return None
    shown, layers = run_layers(record, against, "residual_percent")
    is_compute = against == "flops"
    label = COMPUTE if is_compute else "tokens per parameter"
    x = axis_over((point.x for point in shown), label, is_log=True, unit="flops" if is_compute else "plain")
    noise = 100 * float(record.get("noise_sd") or 0.0)
    reach = max(_WIDEST * noise, 1e-3)
    inside = [point for point in shown if abs(point.y) <= reach]
    back: list[Layer] = [Line(label="", colour="quiet", points=((x.low, 0.0), (x.high, 0.0)), width=1.0)]
    if noise:
        ends = ((x.low, -2 * noise, 2 * noise), (x.high, -2 * noise, 2 * noise))
        back.append(Band(label="twice the noise", colour="quiet", points=ends))
    n_out = len(shown) - len(inside)
    far = f" {n_out} runs lie farther off than the figure reaches." if n_out else ""
    return Chart(
        name="residuals" if is_compute else "residuals-ratio",
        title=f"What the law leaves, against {'compute' if is_compute else 'tokens per parameter'}",
        summary=f"Observed over fitted loss; above 0 a run is worse than the law. A trend is a wrong form.{far}",
        x=x,
        y=axis_over([*(point.y for point in inside), -2 * noise, 2 * noise], "loss off the law (%)"),
        layers=(*back, *_clipped(layers, reach)),
    )


def drift_chart(record: Record) -> Chart | None:
    """The exponent a of the runs up to each compute."""
    drift = (record.get("diagnosis") or {}).get("drift")
    if not drift:
        return None
    points = tuple(_drift_point(one) for one in drift["points"])
    last = points[-1]
    x = axis_over((point.x for point in points), "largest compute kept (FLOPs)", is_log=True, unit="flops", margin=0.1)
    ends = [value for point in points for value in (point.low, point.high) if value is not None]
    layers: list[Layer] = []
    if last.low is not None and last.high is not None:
        band = ((x.low, last.low, last.high), (x.high, last.low, last.high))
        layers.append(Band(label="all runs", colour="law", points=band))
    layers.append(Marks(label="90 % of the runs so far", colour="actual", points=points, size=5.0))
    return Chart(
        name="drift",
        title="Drift of the exponent a as larger runs join",
        summary=_sentence(str(drift["sentence"])),
        x=x,
        y=axis_over(ends, "a: best size grows as compute^a", margin=0.08),
        layers=tuple(layers),
    )


def backtest_chart(record: Record) -> Chart | None:
    """The error of predictions against how far beyond their runs they reach, with both bands."""
    rolling = (record.get("backtest") or {}).get("rolling")
    if not rolling or not rolling["cases"]:
        return None
    cases = sorted(rolling["cases"], key=lambda case: case["decades"])
    points = _errors(cases, "error_percent", "calibrated")
    raw_points = _errors(cases, "raw_error_percent", "raw")
    calibrated = _binned(cases, "low_percent", "high_percent")
    raw = _binned([{**case, "raw_low": -case["raw_half_percent"]} for case in cases], "raw_low", "raw_half_percent")
    x = axis_over((point.x for point in points), "compute over the largest run that was seen", is_log=True)
    layers: list[Layer] = [
        Band(label="90 % calibrated", colour="predicted", points=calibrated),
        Band(label="90 % raw", colour="actual", points=raw),
        Line(label="", colour="quiet", points=((x.low, 0.0), (x.high, 0.0)), width=1.0),
        Marks(label="error of the raw forecast", colour="actual", points=raw_points, marker="diamond", size=1.6),
        Marks(label="error of the calibrated one", colour="predicted", points=points, size=2.5),
    ]
    ends = [end for _, low, high in calibrated for end in (low, high)]
    return Chart(
        name="backtest",
        title="Back-test: what smaller runs would have said of larger ones",
        summary=(
            f"{rolling['n_cases']} predictions from {rolling['n_cuts']} cuts. The textbook's 90 % intervals held "
            f"{100 * rolling['covered_raw']:.0f} % of the runs, the calibrated ones {100 * rolling['covered']:.0f} %."
        ),
        x=x,
        y=axis_over([*(point.y for point in (*points, *raw_points)), *ends], "predicted over actual loss (%)"),
        layers=tuple(layers),
    )


def exponents_chart(record: Record) -> Chart | None:
    """The exponent a by every approach, interval and objective that was made, side by side."""
    rows = record.get("exponents") or []
    if len(rows) < 2:
        return None
    layers: list[Layer] = []
    kinds = {"approach": "law", "interval": "predicted", "objective": "past", "form": "line"}
    labels = {
        "approach": "the paper's approaches, 95 %",
        "interval": "other intervals of approach 3, 95 %",
        "objective": "approach 3, other objectives",
        "form": "other forms",
    }
    for kind, colour in kinds.items():
        points = tuple(
            Point(x=float(place), y=row["a"], low=row["low"], high=row["high"], text=_exponent_text(row))
            for place, row in enumerate(rows, start=1)
            if row["kind"] == kind
        )
        if points:
            layers.append(Marks(label=labels[kind], colour=colour, points=points, size=5.0))
    names = tuple((float(place), str(row["name"])) for place, row in enumerate(rows, start=1))
    values = [value for row in rows for value in (row["a"], row["low"], row["high"]) if is_number(value)]
    low, high = min(row["a"] for row in rows), max(row["a"] for row in rows)
    return Chart(
        name="exponents",
        title="The exponent a by every way",
        summary=f"The same runs give a between {low:.3f} and {high:.3f}, according to approach, objective and form.",
        x=Axis(label="", low=0.4, high=len(rows) + 0.6, names=names),
        y=axis_over(values, "a: best size grows as compute^a", margin=0.08),
        layers=tuple(layers),
    )


def _errors(cases: Sequence[Record], name: str, kind: str) -> tuple[Point, ...]:
    """Return the error of every hidden run; above 0 the forecast was too pessimistic."""
    return tuple(
        Point(
            x=10 ** case["decades"],
            y=case[name],
            text=f"{kind}: runs up to {format_flops(case['cut_flops'])} said {case[name]:+.2f} % of a loss at "
            f"{format_flops(case['flops'])}",
        )
        for case in cases
    )


def _clipped(layers: Sequence[Layer], reach: float) -> tuple[Layer, ...]:
    """Leave out the marks beyond the figure, which would be drawn over its words."""
    kept: list[Layer] = []
    for layer in layers:
        assert isinstance(layer, Marks)
        points = tuple(point for point in layer.points if abs(point.y) <= reach)
        if points:
            kept.append(Marks(label=layer.label, colour=layer.colour, points=points, size=layer.size))
    return tuple(kept)


def _drift_point(one: dict[str, Any]) -> Point:
    half = Z90 * one["a_se"] if is_number(one["a_se"]) else None
    low, high = (None, None) if half is None else (one["a"] - half, one["a"] + half)
    text = f"{one['n_runs']} runs up to {format_flops(one['cut_flops'])}: a = {one['a']:.3f}"
    return Point(x=one["cut_flops"], y=one["a"], low=low, high=high, text=text)


def _binned(cases: Sequence[Record], low: str, high: str) -> tuple[tuple[float, float, float], ...]:
    """Return the median band over equal stretches of log compute, each of three cases or more."""
    first, last = cases[0]["decades"], cases[-1]["decades"]
    bins: dict[int, list[Record]] = {}
    for case in cases:
        share = (case["decades"] - first) / (last - first) if last > first else 0.0
        bins.setdefault(min(_BINS - 1, int(share * _BINS)), []).append(case)
    kept = [group for _, group in sorted(bins.items()) if len(group) >= _FEWEST_IN_BIN]
    return tuple((10 ** _median(group, "decades"), _median(group, low), _median(group, high)) for group in kept)


def _median(cases: Sequence[Record], name: str) -> float:
    ordered = sorted(float(case[name]) for case in cases)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else math.fsum(ordered[middle - 1 : middle + 1]) / 2


def _exponent_text(row: Record) -> str:
    spread = f" ({row['low']:.3f} to {row['high']:.3f})" if is_number(row["low"]) and is_number(row["high"]) else ""
    return f"{row['meaning']}: a = {row['a']:.4f}{spread}"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
