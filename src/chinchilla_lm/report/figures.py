"""The figures of the forecast: its strip, IsoFLOP curves, and loss against compute; and the headline picture as a PNG.

Each function takes the run and answers with a chart, or None where the records do not hold what it shows.
Losses are nats per token, compute is FLOPs, sizes are parameters in the law's own convention.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from chinchilla_lm.core.units import format_count, format_flops
from chinchilla_lm.report import picture
from chinchilla_lm.report.chart import (
    Axis,
    Band,
    Chart,
    Layer,
    Line,
    Marker,
    Marks,
    Point,
    axis_over,
    ramp_colour,
    tick_text,
)
from chinchilla_lm.report.points import LOSS_LABEL, counted, interval_label, loss_axis, loss_bounds, rungs_of
from chinchilla_lm.report.rundir import Record, Run, is_number, read_run
from chinchilla_lm.report.surface import LawSurface, params_name, params_of

_PURPOSES: tuple[tuple[str, Marker, bool], ...] = (
    ("ladder", "circle", False),
    ("repeat", "diamond", True),
    ("probe", "square", True),
)


def save_png(run_dir: Path | str, path: Path | str) -> Path:
    """Save the headline picture (predicted and actual loss against compute) as a PNG for a README.

    Args:
        run_dir: a run directory with at least a sweep or a forecast.
        path: the file to write.

    Returns:
        The file written.

    Raises:
        ChinchillaError: no such folder, or its records hold nothing to draw.
    """
    run = read_run(run_dir)
    charts = [chart for chart in (isoflop_chart(run), compute_chart(run)) if chart is not None]
    return picture.save_charts(charts, Path(path), run_name=run.name)


def strip_chart(run: Run) -> Chart | None:
    """The forecast and the outcome on one line of losses."""
    forecast = run.forecast
    if forecast is None:
        return None
    loss, low, high = (float(forecast[key]) for key in ("loss", "low", "high"))
    layers: list[Layer] = [
        Band(label=interval_label(forecast), colour="predicted", points=((low, 0.2, 0.8), (high, 0.2, 0.8))),
        Line(label="predicted", colour="predicted", points=((loss, 0.08), (loss, 0.92)), width=2.6),
    ]
    shown = [low, high, loss]
    summary = f"The forecast was {loss:.4f}, between {low:.4f} and {high:.4f}."
    if run.evaluation is not None:
        actual = float(run.evaluation["loss"])
        shown.append(actual)
        layers.append(
            Marks(label="reached", colour="actual", marker="star", size=8.0, points=(Point(x=actual, y=0.5),))
        )
        summary += f" The model reached {actual:.4f}."
    x_axis = axis_over(shown, "held-out " + LOSS_LABEL, margin=0.35)
    y_axis = Axis(label="", low=0.0, high=1.0, is_hidden=True)
    title = "The forecast and the outcome"
    return Chart(name="strip", title=title, summary=summary, x=x_axis, y=y_axis, layers=tuple(layers))


def isoflop_chart(run: Run) -> Chart | None:
    """One curve for each rung: loss over size at equal compute, with the law's curve and its optimum."""
    groups = rungs_of(run)
    if not groups:
        return None
    surface = LawSurface.of(run)
    layers = _valley_layers(run, [flops for flops, _ in groups], surface)
    aside: list[Layer] = []  # probes and repeats come after the rungs in the legend
    for index, (flops, trials) in enumerate(groups):
        colour = ramp_colour(index, len(groups))
        sizes = [params_of(trial, run) for trial in trials]
        if surface is not None:
            curve = surface.isoflop(flops, min(sizes) / 1.6, max(sizes) * 1.6)
            layers.append(Line(label="", colour=colour, points=curve, end_label=tick_text(flops, "flops")))
        for purpose, marker, is_hollow in _PURPOSES:
            points = tuple(_trial_point(trial, run) for trial in trials if trial.get("purpose", "ladder") == purpose)
            # The legend shows a purpose once, in the colour of the first rung that has it.
            label = format_flops(flops) if purpose == "ladder" else f"{purpose} runs"
            if points:
                marks = Marks(label=label, colour=colour, marker=marker, is_hollow=is_hollow, points=points)
                (layers if purpose == "ladder" else aside).append(marks)
    layers += [*aside, *_target_layers(run, surface)]
    shown = [point for layer in layers if isinstance(layer, Marks) for point in layer.points]
    return Chart(
        name="isoflop",
        title="Loss over size at equal compute (IsoFLOP curves)",
        summary=_isoflop_summary(run, groups, surface),
        x=axis_over((point.x for point in shown), params_name(run), is_log=True, unit="count", margin=0.1),
        y=loss_axis(shown),
        layers=tuple(layers),
    )


def compute_chart(run: Run) -> Chart | None:
    """The best loss against compute: rungs, both extrapolations, back-tests, forecast and outcome."""
    recorded = [
        rung
        for rung in (run.law or {}).get("rungs", ())
        if is_number(rung.get("flops")) and is_number(rung.get("loss"))
    ]
    found = [Point(x=float(rung["flops"]), y=float(rung["loss"]), text=_rung_text(rung)) for rung in recorded]
    if not found:
        found = [_best_point(trials) for _, trials in rungs_of(run)]
    outcome = [layer for layer in _outcome_layers(run, on="flops") if isinstance(layer, Marks)]
    if not found and not outcome:
        return None
    backtests = _backtest_layers(run)
    marks = [*found, *(point for layer in (*outcome, *backtests) for point in layer.points)]
    x_axis = axis_over((point.x for point in marks), "compute (FLOPs)", is_log=True, unit="flops", margin=0.08)
    layers: list[Layer] = _extrapolations(run, x_axis)
    layers.append(Marks(label="best of a rung", colour="r4", points=tuple(found)))
    layers += [*backtests, *outcome]
    return Chart(
        name="compute",
        title="Best loss against compute",
        summary=_compute_summary(run, found),
        x=x_axis,
        y=loss_axis(marks, is_log=True),
        layers=tuple(layers),
    )


def _trial_point(trial: Record, run: Run) -> Point:
    size = params_of(trial, run)
    low, high = loss_bounds(trial)
    amounts = f"{format_count(size)} parameters, {format_count(trial['tokens'])} tokens"
    text = f"{trial.get('trial', 'trial')}: {amounts}, loss {trial['loss']:.4f}"
    return Point(x=size, y=float(trial["loss"]), text=text, low=low, high=high)


def _best_point(trials: Sequence[Record]) -> Point:
    ladder = [trial for trial in trials if trial.get("purpose", "ladder") == "ladder"]
    best = min(ladder or trials, key=lambda trial: trial["loss"])
    return Point(x=float(best["flops"]), y=float(best["loss"]), text=f"best trial: loss {best['loss']:.4f}")


def _valley_layers(run: Run, rung_flops: Sequence[float], surface: LawSurface | None) -> list[Layer]:
    """The law's optimum of every rung and of the final run, joined: the floor of the valley."""
    if surface is None:
        return []
    points = []
    for flops in [*rung_flops, *([float(run.forecast["flops"])] if run.forecast is not None else [])]:
        params, loss = surface.optimum(flops)
        text = f"optimum at {format_flops(flops)}: {format_count(params)} parameters, loss {loss:.4f}"
        points.append(Point(x=params, y=loss, text=text))
    valley = tuple((point.x, point.y) for point in points)
    ring = Marks(label="optimum by the law", colour="quiet", is_hollow=True, size=7.0, points=tuple(points))
    return [Line(label="", colour="quiet", points=valley, width=1.2, is_dashed=True), ring]


def _target_layers(run: Run, surface: LawSurface | None) -> list[Layer]:
    forecast = run.forecast
    if forecast is None:
        return []
    layers: list[Layer] = []
    if surface is not None:
        size, flops = params_of(forecast, run), float(forecast["flops"])
        curve = surface.isoflop(flops, size / 3, size * 3)
        name = tick_text(float(f"{flops:.1e}"), "flops")
        layers.append(
            Line(label="law at the final run", colour="predicted", points=curve, is_dashed=True, end_label=name)
        )
    return [*layers, *_outcome_layers(run, on="params")]


def _outcome_layers(run: Run, *, on: str) -> list[Layer]:
    """The forecast with its interval and the loss reached, over compute or over size."""
    forecast = run.forecast
    if forecast is None:
        return []
    x = float(forecast["flops"]) if on == "flops" else params_of(forecast, run)
    loss, low, high = (float(forecast[key]) for key in ("loss", "low", "high"))
    text = f"forecast {loss:.4f} ({low:.4f} to {high:.4f})"
    predicted = Point(x=x, y=loss, text=text, low=low, high=high)
    label = f"forecast, {interval_label(forecast)}"
    # The dash is wider than the star, so that both are seen where the forecast was right.
    layers: list[Layer] = [Marks(label=label, colour="predicted", marker="dash", size=8.5, points=(predicted,))]
    if run.evaluation is not None:
        actual = float(run.evaluation["loss"])
        point = Point(x=x, y=actual, text=f"reached {actual:.4f}")
        layers.append(Marks(label="reached", colour="actual", marker="star", size=5.5, points=(point,)))
    return layers


def _backtest_layers(run: Run) -> list[Marks]:
    needed = ("flops", "predicted", "actual")
    # Back-tests of single runs lie off the best path, which this figure shows; the table has them all.
    tests = [t for t in (run.forecast or {}).get("backtests", ()) if t.get("kind", "optimum") == "optimum"]
    tests = [test for test in tests if all(is_number(test.get(key)) for key in needed)]
    if not tests:
        return []
    has_band = all(is_number(test.get(key)) for test in tests for key in ("low", "high"))
    predicted, actual = [], []
    for test in tests:
        text = (
            f"back-test at {format_flops(test['flops'])}: predicted {test['predicted']:.4f}, was {test['actual']:.4f}"
        )
        low, high = (float(test["low"]), float(test["high"])) if has_band else (None, None)
        predicted.append(Point(x=float(test["flops"]), y=float(test["predicted"]), text=text, low=low, high=high))
        actual.append(Point(x=float(test["flops"]), y=float(test["actual"]), text=text))
    return [
        Marks(
            label="back-test: predicted",
            colour="past",
            marker="diamond",
            is_hollow=True,
            points=tuple(predicted),
            size=4.5,
        ),
        Marks(label="back-test: was", colour="past", marker="diamond", points=tuple(actual), size=3.0),
    ]


def _extrapolations(run: Run, x_axis: Axis) -> list[Layer]:
    """The straight line and the law's curve, and the bracket between them."""
    surface, line = LawSurface.of(run), run.power_line
    steps = [x_axis.low * (x_axis.high / x_axis.low) ** (index / 60) for index in range(61)]
    curve = tuple((flops, surface.optimum(flops)[1]) for flops in steps) if surface is not None else ()
    straight = tuple((flops, float(line.loss(flops))) for flops in steps) if line is not None else ()
    layers: list[Layer] = []
    if curve and straight:
        both = zip(curve, straight, strict=True)
        points = tuple((x, min(one, other), max(one, other)) for (x, one), (_, other) in both)
        layers.append(Band(label="between the two", colour="quiet", points=points))
    if straight:
        layers.append(Line(label="straight line (optimistic)", colour="line", points=straight, is_dashed=True))
    if curve:
        layers.append(Line(label="law with a floor E (pessimistic)", colour="law", points=curve))
    return layers


def _rung_text(rung: Record) -> str:
    size = f", {format_count(rung['params'])} parameters" if is_number(rung.get("params")) else ""
    return f"{format_flops(rung['flops'])}{size}: loss {rung['loss']:.4f}"


def _isoflop_summary(run: Run, groups: Sequence[tuple[float, list[Record]]], surface: LawSurface | None) -> str:
    words = f"{counted(len(run.trials), 'run')} at {counted(len(groups), 'amount')} of compute."
    if surface is None:
        return words + " No law has been fitted to them yet."
    flops = groups[-1][0]
    params, loss = surface.optimum(flops)
    return words + (
        f" At {format_flops(flops)} the law puts the lowest loss, {loss:.3f}, at {format_count(params)} parameters; "
        "left of it the model is too small, right of it the model sees too little text."
    )


def _compute_summary(run: Run, found: Sequence[Point]) -> str:
    words = f"The best loss at {counted(len(found), 'amount')} of compute." if found else ""
    if run.forecast is not None:
        words += f" At {format_flops(run.forecast['flops'])} the forecast is {run.forecast['loss']:.4f}."
    if run.evaluation is not None:
        words += f" The model reached {run.evaluation['loss']:.4f}."
    return words.strip()
