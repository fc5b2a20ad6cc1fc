"""What several figures share: the rungs of a sweep, the axis of losses, the name of an interval."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from chinchilla_lm.report.chart import Axis, Point, axis_over
from chinchilla_lm.report.rundir import Record, Run, is_number

LOSS_LABEL = "loss (nats per token)"
Z90 = 1.645
"""Half-width of a 90 % interval in standard errors of a normal distribution."""


def counted(count: int, noun: str) -> str:
    """A number with its noun: `1 run`, `1,000 runs`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def interval_label(forecast: Record) -> str:
    """The name of a forecast's interval: `90 % interval`."""
    level = forecast.get("level", 0.9)
    return f"{level * 100:.3g} % interval" if is_number(level) else "interval"


def rungs_of(run: Run) -> list[tuple[float, list[Record]]]:
    """The trials by rung, from least to most compute; a rung's compute is the median of its trials'."""
    groups: dict[str, list[Record]] = {}
    for trial in run.trials:
        groups.setdefault(str(trial.get("rung")), []).append(trial)
    # Probes of another length than their rung's ladder would bend the median.
    ladders = {rung: [t for t in trials if t.get("purpose") == "ladder"] or trials for rung, trials in groups.items()}
    sized = [(statistics.median(float(t["flops"]) for t in ladders[rung]), trials) for rung, trials in groups.items()]
    return sorted(sized, key=lambda each: each[0])


def loss_axis(points: Sequence[Point], *, is_log: bool = False, label: str = LOSS_LABEL) -> Axis:
    """The axis that holds every loss and every error bar."""
    values = [value for point in points for value in (point.y, point.low, point.high) if value is not None]
    return axis_over(values, label, is_log=is_log, margin=0.08)


def loss_bounds(record: Record) -> tuple[float, float] | tuple[None, None]:
    """The 90 % error bar of a record's loss by its held-out sample; (None, None) where its error is not recorded."""
    error = record.get("loss_se")
    if not is_number(error):
        return None, None
    return float(record["loss"]) - Z90 * float(error), float(record["loss"]) + Z90 * float(error)
