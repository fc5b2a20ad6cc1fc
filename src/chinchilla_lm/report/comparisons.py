"""The figures of a comparison: both recipes' losses, and the compute multiplier with its interval. It fits nothing."""

from __future__ import annotations

from pathlib import Path

from chinchilla_lm.laws.table import RunTable
from chinchilla_lm.laws.trust.multiplier import Multiplier
from chinchilla_lm.report import picture
from chinchilla_lm.report.chart import Band, Chart, Layer, Line, Marks, Point, axis_over
from chinchilla_lm.report.points import LOSS_LABEL

_COLOURS = ("predicted", "actual")


def save_comparison_picture(
    found: Multiplier, tables: tuple[RunTable, RunTable], names: tuple[str, str], path: Path
) -> Path:
    """Save the pictures of a comparison side by side.

    Args:
        found: the multiplier.
        tables: runs of A and of B.
        names: of A and of B.
        path: .png or .svg.

    Returns:
        The file written.

    Raises:
        DataError: another kind of file, or one that cannot be written.
    """
    charts = [losses_chart(found, tables, names), multiplier_chart(found, names)]
    return picture.save_charts(charts, path, run_name="comparison")


def losses_chart(found: Multiplier, tables: tuple[RunTable, RunTable], names: tuple[str, str]) -> Chart:
    """Draw both recipes' runs and their best losses where both are covered.

    Args:
        found: the multiplier.
        tables: runs of A and of B.
        names: of A and of B.

    Returns:
        The chart.
    """
    layers: list[Layer] = []
    curves = (
        tuple((point.flops, point.loss) for point in found.points),
        tuple((point.flops / point.multiplier, point.loss) for point in found.points),
    )
    for table, name, colour, curve in zip(tables, names, _COLOURS, curves, strict=True):
        runs = tuple(
            Point(x=float(flops), y=float(loss)) for flops, loss in zip(_flops(found, table), table.loss, strict=True)
        )
        layers.append(Marks(label=f"{name}, runs", colour=colour, points=runs, is_hollow=True, size=3.0))
        layers.append(Line(label=f"{name}, best for its compute", colour=colour, points=curve))
    flops = [float(each) for table in tables for each in _flops(found, table)]
    losses = [float(each) for table in tables for each in table.loss]
    return Chart(
        name="comparison-losses",
        title="Loss against compute",
        summary="Runs of both recipes and what each reaches at best.",
        x=axis_over(flops, "training compute (FLOPs)", is_log=True, unit="flops"),
        y=axis_over(losses, LOSS_LABEL, is_log=True),
        layers=tuple(layers),
    )


def multiplier_chart(found: Multiplier, names: tuple[str, str]) -> Chart:
    """Draw the multiplier over compute with its 90 % interval.

    Args:
        found: the multiplier.
        names: of A and of B.

    Returns:
        The chart.
    """
    band = tuple((point.flops, point.low, point.high) for point in found.points)
    line = tuple((point.flops, point.multiplier) for point in found.points)
    asked = found.point
    mark = Point(x=asked.flops, y=asked.multiplier, low=asked.low, high=asked.high)
    ends = (found.points[0].flops, found.points[-1].flops)
    layers: tuple[Layer, ...] = (
        Band(label="90 % interval", colour="law", points=band),
        Line(label="multiplier", colour="law", points=line),
        Line(label="no difference", colour="quiet", points=((ends[0], 1.0), (ends[1], 1.0)), is_dashed=True),
        Marks(label="at the compute asked for", colour="actual", marker="diamond", points=(mark,)),
    )
    values = [1.0, asked.low, asked.high, *(value for _, low, high in band for value in (low, high))]
    return Chart(
        name="comparison-multiplier",
        title=f"{names[1]} needs so many times less compute",
        summary="Compute multiplier against the compute of the first recipe.",
        x=axis_over([*ends, asked.flops], f"compute of {names[0]} (FLOPs)", is_log=True, unit="flops"),
        y=axis_over([value for value in values if value > 0], "times less compute", is_log=True),
        layers=layers,
    )


def _flops(found: Multiplier, table: RunTable) -> list[float]:
    """Return the compute by which the method counts."""
    own = table.flops if found.method == "lines" else 6 * table.params * table.tokens
    return [float(each) for each in own]
