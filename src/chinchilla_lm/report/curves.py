"""The figures of the final model: how its size was chosen, and how the loss fell.

Each function takes the run and answers with a chart, or None where the records do not hold what it shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chinchilla_lm.core.units import format_count, format_flops, format_seconds
from chinchilla_lm.report.chart import Band, Chart, Layer, Line, Marks, Point, Span, axis_over, bin_means, ramp_colour
from chinchilla_lm.report.points import LOSS_LABEL, counted, interval_label, loss_axis, loss_bounds, rungs_of
from chinchilla_lm.report.rundir import Record, Run, is_number

SWEEP_CURVE_BINS = 80
FINAL_CURVE_BINS = 220


def allocation_chart(run: Run) -> Chart | None:
    """Predicted loss over size for the time that was left, the flat band, and the size that was chosen."""
    forecast = run.forecast or {}
    needed = ("params_matmul", "loss")
    candidates = [each for each in forecast.get("candidates", ()) if all(is_number(each.get(key)) for key in needed)]
    if not candidates:
        return None
    candidates.sort(key=lambda each: each["params_matmul"])
    points = tuple(Point(x=float(c["params_matmul"]), y=float(c["loss"]), text=_candidate_text(c)) for c in candidates)
    chosen = Point(x=float(forecast["params_matmul"]), y=float(forecast["loss"]), text="the chosen size")
    band = forecast.get("flat_band") or {}
    layers: list[Layer] = []
    if all(is_number(band.get(key)) for key in ("params_low", "params_high")):
        layers.append(Span(label="flat band", colour="predicted", low=band["params_low"], high=band["params_high"]))
    layers.append(Line(label="", colour="law", points=tuple((point.x, point.y) for point in points)))
    layers.append(Marks(label="sizes considered", colour="law", points=points))
    # The forecast's point mixes two extrapolations; it is set on the curve of candidates, which shares its law.
    nearest = min(points, key=lambda point: abs(point.x / chosen.x - 1))
    layers.append(
        Marks(
            label="chosen",
            colour="actual",
            marker="star",
            size=7.0,
            points=(Point(x=chosen.x, y=nearest.y, text="chosen"),),
        )
    )
    ends = [band[key] for key in ("params_low", "params_high") if is_number(band.get(key))]
    return Chart(
        name="allocation",
        title="Which size to train with what is left of the budget",
        summary=_allocation_summary(candidates, forecast),
        x=axis_over(
            [*(point.x for point in points), chosen.x, *ends], "parameters (matmul)", is_log=True, unit="count"
        ),
        y=loss_axis(points, label="predicted " + LOSS_LABEL),
        layers=tuple(layers),
    )


def training_chart(run: Run) -> Chart | None:
    """The training losses of the sweep (thin) and of the final model (thick), with held-out evaluations."""
    layers: list[Layer] = []
    groups = rungs_of(run)
    for index, (flops, trials) in enumerate(groups):
        for trial in trials:
            curve = bin_means(_pairs(trial.get("curve", ())), bins=SWEEP_CURVE_BINS)
            if len(curve) > 1:
                label = f"sweep, {format_flops(flops)}"
                colour = ramp_colour(index, len(groups))
                layers.append(Line(label=label, colour=colour, points=curve, width=1.0, is_faint=True))
    final = bin_means([(float(step["tokens"]), float(step["loss"])) for step in run.steps], bins=FINAL_CURVE_BINS)
    if len(final) > 1:  # after the first update there is no curve yet
        layers += _interval_at_the_end(run)
        layers.append(Line(label="final model, training", colour="actual", points=final, width=2.4))
    held_out = tuple(_evaluation_point(record) for record in run.evaluations if record["tokens"] > 0)
    if held_out:
        layers.append(Marks(label="final model, held out", colour="predicted", points=held_out, size=3.4))
    if not layers:
        return None
    points = [point for layer in layers if isinstance(layer, Line) for point in layer.points]
    points += [(point.x, point.y) for point in held_out]
    # Three decades: before that every curve sits on the same plateau, and the end is what matters.
    first = max(x for x, _ in points) / 1e3
    shown = [(x, y) for x, y in points if x >= first]
    curves = counted(sum(isinstance(layer, Line) for layer in layers), "loss curve")
    return Chart(
        name="training",
        title="Loss during training",
        summary=f"{curves} over the tokens trained on; the first thousandth is cut off. Lower is better.",
        x=axis_over((x for x, _ in shown), "tokens", is_log=True, unit="count", margin=0.03),
        y=axis_over((y for _, y in shown), LOSS_LABEL, is_log=True),
        layers=tuple(layers),
    )


def _interval_at_the_end(run: Run) -> list[Layer]:
    if run.forecast is None:
        return []
    tokens, low, high = (float(run.forecast[key]) for key in ("tokens", "low", "high"))
    # Half an octave on either side of the last token is wide enough to see and claims no more than the end.
    ends = ((tokens / 1.4, low, high), (tokens * 1.05, low, high))
    return [Band(label=f"forecast, {interval_label(run.forecast)}", colour="predicted", points=ends)]


def _evaluation_point(record: Record) -> Point:
    low, high = loss_bounds(record)
    text = f"held out after {format_count(record['tokens'])} tokens: {record['loss']:.4f}"
    return Point(x=float(record["tokens"]), y=float(record["loss"]), text=text, low=low, high=high)


def _pairs(curve: Any) -> list[tuple[float, float]]:
    curve = curve if isinstance(curve, list | tuple) else ()
    entries = [each for each in curve if isinstance(each, list | tuple) and len(each) >= 2]
    pairs = [(each[0], each[1]) for each in entries if is_number(each[0]) and is_number(each[1])]
    return sorted((float(x), float(y)) for x, y in pairs)


def _candidate_text(candidate: Record) -> str:
    parts = [f"{format_count(candidate['params_matmul'])} parameters"]
    parts += [f"width {candidate['d_model']}"] if is_number(candidate.get("d_model")) else []
    parts += [f"{format_count(candidate['tokens'])} tokens"] if is_number(candidate.get("tokens")) else []
    parts += [format_seconds(candidate["seconds"])] if is_number(candidate.get("seconds")) else []
    return ", ".join([*parts, f"predicted loss {candidate['loss']:.4f}"])


def _allocation_summary(candidates: Sequence[Record], forecast: Record) -> str:
    chosen = format_count(forecast["params_matmul"])
    words = f"{len(candidates)} sizes that fit what was left of the budget; {chosen} parameters were chosen."
    band = forecast.get("flat_band") or {}
    if all(is_number(band.get(key)) for key in ("params_low", "params_high", "loss_penalty")):
        words += (
            f" Anywhere between {format_count(band['params_low'])} and {format_count(band['params_high'])} "
            f"the predicted loss is at most {100 * band['loss_penalty']:.3g} % worse: the valley is flat."
        )
    return words
