"""The figures of a fit, from its record (`laws.findings.find`) alone.

Each function takes the record and answers with a chart, or None where the record does not hold what it shows. Losses
are nats per token, compute is FLOPs, sizes are parameters in the law's own convention.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from chinchilla_lm.core.units import format_count, format_flops
from chinchilla_lm.laws.forms.allocation import AllocationLaw
from chinchilla_lm.laws.forms.record import LossForm, law_from_dict
from chinchilla_lm.report.chart import (
    RAMP_STEPS,
    Band,
    Chart,
    Layer,
    Line,
    Marks,
    Point,
    axis_over,
    ramp_colour,
    tick_text,
)
from chinchilla_lm.report.points import loss_axis
from chinchilla_lm.report.rundir import is_number

Record = Mapping[str, Any]

COMPUTE = "compute (FLOPs)"
_MOST_VALLEYS = 6  # in one figure; more are chosen evenly, first and last among them
_CURVE_STEPS = 49
_WIDEST_SIZES = 1e4  # an interval of sizes that is wider says nothing, and would flatten the figure
_CONVENTIONS = {"matmul": "matmul", "total": "total", "non_embedding": "non-embedding"}


def fit_charts(record: Record) -> list[Chart]:
    """Return every figure that the record holds, in the page's order."""
    # Where they stand: the three of the fit here, those that doubt it in `doubt_charts`.
    drawn = (loss_chart(record), sizes_chart(record), valleys_chart(record))
    return [chart for chart in drawn if chart is not None]


def loss_chart(record: Record) -> Chart | None:
    """Loss against compute: the runs by size, the frontier with its band, and the calibrated forecast beyond."""
    frontier = record.get("frontier")
    if not frontier:
        return None
    shown, layers = run_layers(record, "flops", "loss")
    summary = f"{record['n_runs']} runs, and the least loss that the law gives to each compute."
    edge = float(record["largest_flops"])
    # Beyond a hundred times the runs nothing was tested, and the figure would show little else.
    farthest = max(100 * edge, *(one["flops"] for one in record.get("optima") or [] if one["flops"] < 1e4 * edge), edge)
    kept = [place for place, flops in enumerate(frontier["flops"]) if flops <= farthest * 1.001]
    flops = [frontier["flops"][place] for place in kept]

    def column(name: str) -> list[float] | None:
        return None if frontier.get(name) is None else [frontier[name][place] for place in kept]

    aside: list[Layer] = []
    low, high = column("low"), column("high")
    if low and high:
        points = _finite_band(zip(flops, low, high, strict=True))
        aside.append(Band(label="95 % by the runs' scatter (raw)", colour="law", points=points))
    calibrated, low, high = column("calibrated_loss"), column("calibrated_low"), column("calibrated_high")
    if calibrated and low and high:
        beyond = [place for place, at in enumerate(flops) if at >= edge * 0.999]
        points = tuple((flops[place], low[place], high[place]) for place in beyond)
        aside.append(Band(label="90 % as such forecasts err (calibrated)", colour="predicted", points=points))
        line = tuple((flops[place], calibrated[place]) for place in beyond)
        aside.append(Line(label="calibrated forecast", colour="predicted", points=line, is_dashed=True))
        shown += [Point(x=x, y=y, low=y, high=upper) for x, y, upper in points]
    curve = tuple(zip(flops, column("loss") or [], strict=True))
    aside.append(Line(label="the law at its best size", colour="law", points=curve, width=2.2))
    shown += [Point(x=x, y=y) for x, y in curve]
    ahead = record.get("forecast")
    if ahead:
        text = f"forecast {ahead['loss']:.4f} ({ahead['low']:.4f} to {ahead['high']:.4f})"
        point = Point(x=ahead["flops"], y=ahead["loss"], low=ahead["low"], high=ahead["high"], text=text)
        aside.append(Marks(label="forecast", colour="actual", marker="dash", size=7.0, points=(point,)))
        shown.append(point)
        summary += f" At {format_flops(ahead['flops'])} the forecast is {text.removeprefix('forecast ')}."
    return Chart(
        name="loss",
        title="Loss against compute",
        summary=summary,
        x=axis_over((point.x for point in shown), COMPUTE, is_log=True, unit="flops", margin=0.03),
        y=loss_axis(shown, is_log=True),
        layers=(*layers, *aside),
    )


def sizes_chart(record: Record) -> Chart | None:
    """The best size over compute, by the law and by whatever other approach was made."""
    law = _law_of(record)
    if law is None:
        return None
    marks: list[Marks] = []
    for name, colour, label, rows in (
        ("isoflop", "line", "approach 2: lowest points of the parabolas", _vertices(record)),
        ("envelope", "past", "approach 1: sizes on the envelope", _envelope_points(record)),
    ):
        points = tuple(
            Point(x=x, y=y, text=f"{name} at {format_flops(x)}: {format_count(y)} parameters") for x, y in rows
        )
        if points:
            marks.append(
                Marks(label=label, colour=colour, points=points, marker="diamond", is_hollow=name == "envelope")
            )
    sizes: list[tuple[float, float, float]] = []
    for one in record.get("optima") or []:
        interval = one["intervals"].get("params") or {}
        low, high = interval.get("low"), interval.get("high")
        if is_number(low) and is_number(high) and low > 0 and high / low < _WIDEST_SIZES:
            sizes.append((one["flops"], low, high))
    if not marks and not sizes:
        return None
    known = [point.x for layer in marks for point in layer.points] + [record["smallest_flops"], record["largest_flops"]]
    flops = np.geomspace(min(known), max([*known, *(x for x, _, _ in sizes)]), _CURVE_STEPS)
    curve = tuple(zip(flops.tolist(), np.asarray(law.optimum(flops)[0]).tolist(), strict=True))
    layers: list[Layer] = [Line(label="the law", colour="law", points=curve, width=2.2)]
    if sizes:
        bars = tuple(
            Point(
                x=x, y=float(law.optimum(x)[0]), low=low, high=high, text=f"{format_count(low)} to {format_count(high)}"
            )
            for x, low, high in sizes
        )
        layers.append(Marks(label="95 % of the best size", colour="law", marker="dash", points=bars, size=5.0))
    layers += marks
    shown = [*(y for _, y in curve), *(point.y for layer in marks for point in layer.points)]
    shown += [end for _, low, high in sizes for end in (low, high)]
    return Chart(
        name="sizes",
        title="Best size against compute",
        summary=f"The law lets the best size grow as compute to the power {record['a']:.3f}.",
        x=axis_over(flops.tolist(), COMPUTE, is_log=True, unit="flops", margin=0.03),
        y=axis_over(shown, _params_label(record), is_log=True, unit="count"),
        layers=tuple(layers),
    )


def valleys_chart(record: Record) -> Chart | None:
    """Loss over size at equal compute: runs, the parabola of approach 2, and the law's own valley."""
    valleys = (record.get("isoflop") or {}).get("valleys")
    if not valleys:
        return None
    law = _law_of(record)
    chosen = [valleys[place] for place in _evenly(len(valleys), _MOST_VALLEYS)]
    layers: list[Layer] = []
    shown: list[Point] = []
    has_key = False  # one parabola stands for all in the legend
    for index, valley in enumerate(chosen):
        colour = ramp_colour(index, len(chosen))
        parabola = valley.get("parabola")
        if parabola:
            points = tuple(zip(parabola["params"], parabola["loss"], strict=True))
            label = "" if has_key else "parabola"
            has_key = True
            layers.append(Line(label=label, colour=colour, points=points, width=1.4))
        if law is not None and not isinstance(law, AllocationLaw):
            curve = _law_valley(law, valley)
            name = tick_text(float(f"{valley['flops']:.1e}"), "flops")
            label = "the law" if index == 0 else ""
            layers.append(Line(label=label, colour=colour, points=curve, is_dashed=True, is_faint=True, end_label=name))
        runs = tuple(
            Point(x=x, y=y, text=f"{format_flops(valley['flops'])}, {format_count(x)} parameters: loss {y:.4f}")
            for x, y in zip(valley["params"], valley["loss"], strict=True)
        )
        layers.append(Marks(label=format_flops(valley["flops"]), colour=colour, points=runs, size=3.5))
        best = valley["best"]
        lowest = Point(
            x=best["params"], y=best["loss"], text=f"lowest point: {format_count(best['params'])} parameters"
        )
        layers.append(
            Marks(label="lowest point of a parabola", colour="quiet", points=(lowest,), is_hollow=True, size=6.5)
        )
        shown += [*runs, lowest]
    n_left = len(valleys) - len(chosen)
    more = f" {n_left} more budgets are not drawn." if n_left else ""
    return Chart(
        name="valleys",
        title="Loss over size at equal compute (IsoFLOP)",
        summary=f"{len(chosen)} of {len(valleys)} budgets, each with the parabola of approach 2.{more}",
        x=axis_over((point.x for point in shown), _params_label(record), is_log=True, unit="count", margin=0.08),
        y=loss_axis(shown),
        layers=tuple(layers),
    )


def _finite_band(points: Iterable[tuple[float, Any, Any]]) -> tuple[tuple[float, float, float], ...]:
    """Leave out where a band has no end: the resamples of runs that determine no law."""
    return tuple((x, low, high) for x, low, high in points if is_number(low) and is_number(high))


def run_layers(record: Record, x_name: str, y_name: str) -> tuple[list[Point], list[Layer]]:
    """Return all runs as points, and as marks in up to six groups of size.

    Args:
        record: of the fit.
        x_name: a column of the record's runs, or "tokens_per_param".
        y_name: another.
    """
    runs = record["runs"]
    columns = {**runs, "tokens_per_param": (np.array(runs["tokens"]) / np.array(runs["params"])).tolist()}
    order = np.argsort(runs["params"], kind="stable")
    sizes = np.array(runs["params"])[order]
    groups = _size_bins(sizes)
    everything: list[Point] = []
    layers: list[Layer] = []
    for group in range(int(groups.max()) + 1):
        places = order[groups == group]
        points = tuple(_run_point(runs, columns, int(place), (x_name, y_name)) for place in places)
        low, high = format_count(runs["params"][places[0]]), format_count(runs["params"][places[-1]])
        label = f"{low} parameters" if low == high else f"{low} to {high}"
        layers.append(Marks(label=label, colour=ramp_colour(group, int(groups.max()) + 1), points=points, size=3.0))
        everything += points
    return everything, layers


def _run_point(runs: Record, columns: Record, place: int, names: tuple[str, str]) -> Point:
    line = f"line {runs['lines'][place]}: " if "lines" in runs else ""
    text = (
        f"{line}{format_count(runs['params'][place])} parameters, {format_count(runs['tokens'][place])} tokens, "
        f"{format_flops(runs['flops'][place])}, loss {runs['loss'][place]:.4f}"
    )
    if "residual_percent" in runs:
        text += f", {runs['residual_percent'][place]:+.2f} % off the law"
    return Point(x=float(columns[names[0]][place]), y=float(columns[names[1]][place]), text=text)


def _size_bins(sizes: np.ndarray) -> np.ndarray:
    """Return the group of each of the ascending sizes: its own where there are few, else equal shares."""
    distinct = np.unique(np.round(np.log(sizes), 2))
    if len(distinct) <= RAMP_STEPS:
        return np.searchsorted(distinct, np.round(np.log(sizes), 2))
    edges = distinct[np.linspace(0, len(distinct), RAMP_STEPS + 1).astype(int)[1:-1]]
    return np.searchsorted(edges, np.round(np.log(sizes), 2), side="right")


def _law_of(record: Record) -> LossForm | AllocationLaw | None:
    return law_from_dict(record) if record.get("form") else None


def _law_valley(law: LossForm, valley: Record) -> tuple[tuple[float, float], ...]:
    sizes = np.geomspace(min(valley["params"]) / 1.2, max(valley["params"]) * 1.2, _CURVE_STEPS)
    losses = np.asarray(law.loss(sizes, valley["flops"] / 6 / sizes))
    return tuple(zip(sizes.tolist(), losses.tolist(), strict=True))


def _vertices(record: Record) -> list[tuple[float, float]]:
    found = record.get("isoflop") or {}
    return [(valley["flops"], valley["best"]["params"]) for valley in found.get("valleys", ())]


def _envelope_points(record: Record) -> list[tuple[float, float]]:
    points = (record.get("envelope") or {}).get("points")
    return [] if not points else list(zip(points["flops"], points["params"], strict=True))


def _params_label(record: Record) -> str:
    return f"parameters ({_CONVENTIONS.get(str(record.get('params_convention')), 'N')})"


def _evenly(count: int, most: int) -> Sequence[int]:
    return np.unique(np.round(np.linspace(0, count - 1, min(count, most))).astype(int)).tolist()
