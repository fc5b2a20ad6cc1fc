"""The figures of a design: where its runs lie, and what error each unit of compute leaves. It computes no design."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from chinchilla_lm.core.units import format_flops
from chinchilla_lm.laws.planning.design import Design
from chinchilla_lm.report import picture
from chinchilla_lm.report.chart import Chart, Layer, Line, Marker, Marks, Point, axis_over

_ROLES: tuple[tuple[str, str, Marker], ...] = (
    ("repeat", "line", "diamond"),  # first and larger: what it repeats is drawn on it
    ("chosen", "actual", "circle"),
    ("floor", "law", "square"),
)
_COLOURS = {"size": "predicted", "loss": "actual"}
_KNOWN = 1.0  # an answer with a larger expected error, in nats, is not known, and would flatten the curve


def save_design_picture(made: Design, already: Sequence[tuple[float, float]], target_flops: float, path: Path) -> Path:
    """Save the pictures of a design side by side.

    Args:
        made: the design.
        already: (params, tokens) of the runs made before.
        target_flops: of the model in question.
        path: .png or .svg.

    Returns:
        The file written.

    Raises:
        DataError: another kind of file, or one that cannot be written.
    """
    return picture.save_charts([runs_chart(made, already), error_chart(made, target_flops)], path, run_name="design")


def runs_chart(made: Design, already: Sequence[tuple[float, float]]) -> Chart:
    """Draw the runs over size and length.

    Args:
        made: the design.
        already: (params, tokens) of the runs made before.

    Returns:
        The chart.
    """
    layers: list[Layer] = []
    if already:
        points = tuple(Point(x=float(params), y=float(tokens)) for params, tokens in already)
        layers.append(Marks(label="already made", colour="quiet", points=points, is_hollow=True))
    for role, colour, marker in _ROLES:
        points = tuple(Point(x=run.params, y=run.tokens) for run in made.runs if run.role == role)
        if points:
            size = 6.5 if role == "repeat" else 4.0
            marks = Marks(
                label=role, colour=colour, marker=marker, points=points, size=size, is_hollow=role == "repeat"
            )
            layers.append(marks)
    xs = [run.params for run in made.runs] + [float(params) for params, _ in already]
    ys = [run.tokens for run in made.runs] + [float(tokens) for _, tokens in already]
    return Chart(
        name="design-runs",
        title=f"{len(made.runs)} runs to make",
        summary="Sizes and lengths of the runs that tell most for their cost.",
        x=axis_over(xs, "parameters", is_log=True, unit="count"),
        y=axis_over(ys, "training tokens", is_log=True, unit="count"),
        layers=tuple(layers),
    )


def error_chart(made: Design, target_flops: float) -> Chart:
    """Draw the expected error of each answer over what was paid.

    Args:
        made: the design.
        target_flops: of the model in question.

    Returns:
        The chart.
    """
    layers: list[Layer] = []
    xs: list[float] = []
    ys: list[float] = []
    for answer in made.sd_after:
        known = [point for point in made.curve if point.cost > 0 and point.errors[answer].total < _KNOWN]
        ends = [(point.cost, 100 * math.expm1(point.errors[answer].total), point.is_planned) for point in known]
        planned = tuple((x, y) for x, y, is_planned in ends if is_planned)
        beyond = tuple((x, y) for x, y, is_planned in ends if not is_planned)
        if len(planned) > 1:
            layers.append(Line(label=f"{answer}, planned", colour=_COLOURS[answer], points=planned))
        if planned and beyond:
            points = (planned[-1], *beyond)
            label = f"{answer}, beyond the budget"
            layers.append(Line(label=label, colour=_COLOURS[answer], points=points, is_dashed=True))
        xs += [x for x, _, _ in ends]
        ys += [y for _, y, _ in ends]
    unit = "FLOPs" if made.unit == "flops" else "seconds"
    return Chart(
        name="design-error",
        title=f"What the runs buy at {format_flops(target_flops)}",
        summary="Expected error of the best size and its loss against the cost of the new runs.",
        x=axis_over(xs or [made.cost], f"cost of the new runs ({unit})", is_log=True, unit="flops"),
        y=axis_over(ys or [1.0], "expected error (per cent)", is_log=True),
        layers=tuple(layers),
    )
