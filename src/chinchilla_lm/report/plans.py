"""The figure of a plan: loss against size at equal cost, the flat band, and the shapes that can be built.

It draws a plan and computes none. Losses are nats per token, sizes parameters in the law's own convention.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from chinchilla_lm.core.units import format_count, format_flops
from chinchilla_lm.laws.forms.record import LossForm
from chinchilla_lm.laws.planning.answer import Plan
from chinchilla_lm.laws.planning.solving import losses_by_size
from chinchilla_lm.laws.planning.surface import surface_of
from chinchilla_lm.report import picture
from chinchilla_lm.report.chart import Chart, Layer, Line, Marks, Point, Span, axis_over
from chinchilla_lm.report.points import LOSS_LABEL, loss_axis

_STEPS = 241
_HIGHEST = 1.06  # of the least loss
_ROOM = 4.0  # sizes drawn beyond the flat band, as a factor


def save_plan_picture(made: Plan, law: LossForm, path: Path) -> Path:
    """Save the picture of a plan.

    Args:
        made: by a law that states losses.
        law: that made it.
        path: .png or .svg.

    Returns:
        The file written.

    Raises:
        DataError: another kind of file, or one that cannot be written.
    """
    return picture.save_charts([plan_chart(made, law)], path, run_name=made.law)


def plan_chart(made: Plan, law: LossForm) -> Chart:
    """Draw loss over size for what the plan costs in all.

    Args:
        made: by a law that states losses.
        law: that made it.

    Returns:
        The chart.
    """
    assert made.flat_band is not None
    assert made.loss is not None
    band = made.flat_band
    low, high = min(band.params_low, made.params) / _ROOM, max(band.params_high, made.params) * _ROOM
    sizes = np.geomspace(low, high, _STEPS)
    served = made.conditions.demand.training_equivalent
    losses = losses_by_size(surface_of(law, made.conditions.unique_tokens), sizes, made.total_flops, served)
    most = float(np.nanmin(losses)) * _HIGHEST  # where serving eats the budget the curve is a wall
    curve = tuple((float(x), float(y)) for x, y in zip(sizes, losses, strict=True) if y <= most)
    chosen = Point(x=made.params, y=made.loss, text=_words(made))
    built = tuple(
        Point(x=option.params, y=option.loss, text=f"d_model {option.shape.d_model}, {option.shape.n_layers} layers")
        for option in made.shapes
        if option.loss is not None
    )
    flat_label = f"costs < {100 * band.loss_penalty:g} % of loss"
    layers: list[Layer] = [
        Span(label=flat_label, colour="law", low=band.params_low, high=band.params_high),
        Line(label=f"loss for {format_flops(made.total_flops)}", colour="predicted", points=curve),
    ]
    if built:
        label = "shapes at their exact FLOPs"
        layers.append(Marks(label=label, colour="past", marker="square", is_hollow=True, points=built))
    layers.append(Marks(label=_plan_label(made), colour="actual", marker="star", size=5.5, points=(chosen,)))
    # The band of the loss is words, not a bar: all sizes share it, and it would flatten the valley out of sight.
    shown = [chosen, *built, *(Point(x=x, y=y) for x, y in curve)]
    return Chart(
        name="plan",
        title="Loss against size for the same cost",
        summary=_words(made),
        x=axis_over(
            (x for x, _ in curve), f"parameters ({made.params_convention})", is_log=True, unit="count", margin=0.0
        ),
        y=loss_axis(shown, label=LOSS_LABEL),
        layers=tuple(layers),
    )


def _plan_label(made: Plan) -> str:
    band = "" if made.loss_low is None else f", 90 %: {made.loss_low:.3f} to {made.loss_high:.3f}"
    return f"the plan: {made.loss:.3f}{band}"


def _words(made: Plan) -> str:
    assert made.flat_band is not None
    low, high = format_count(made.flat_band.params_low), format_count(made.flat_band.params_high)
    return (
        f"{format_count(made.params)} parameters on {format_count(made.tokens)} tokens reach {made.loss:.3f}; any size "
        f"from {low} to {high} costs less than {100 * made.flat_band.loss_penalty:g} % of loss."
    )
