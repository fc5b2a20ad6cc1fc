"""How fast this machine trains each shape: measured at a few, interpolated between them.

One number per shape is enough: seconds per token against FLOPs per token is nearly a power law on one machine, so it is
interpolated in logarithms. `worker`: one sweep worker while the others work too; `whole`: the final run on all threads.
A value; it measures nothing (see `chinchilla_lm.train.speed`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chinchilla_lm.core.shapes import ModelShape
from chinchilla_lm.laws.count import training_flops_per_token


@dataclass(frozen=True, kw_only=True)
class SpeedTable:
    """Measured speeds of one kind.

    Attributes:
        flops_per_token: of the shapes measured, rising.
        tokens_per_s: measured for each.
    """

    flops_per_token: tuple[float, ...]
    tokens_per_s: tuple[float, ...]

    def tokens_per_s_of(self, shape: ModelShape) -> float:
        """Interpolate the speed of a shape, tokens per second; outside the table the end segment is continued."""
        x = np.log(np.asarray(self.flops_per_token))
        y = np.log(np.asarray(self.tokens_per_s))
        at = np.log(training_flops_per_token(shape))
        if len(x) == 1:  # the same FLOPs a second
            return float(np.exp(y[0] + x[0] - at))
        left = int(np.clip(np.searchsorted(x, at) - 1, 0, len(x) - 2))
        slope = (y[left + 1] - y[left]) / (x[left + 1] - x[left])
        return float(np.exp(y[left] + slope * (at - x[left])))

    def scaled(self, factor: float) -> SpeedTable:
        """The table of a machine that is `factor` times as fast."""
        return SpeedTable(
            flops_per_token=self.flops_per_token, tokens_per_s=tuple(speed * factor for speed in self.tokens_per_s)
        )


@dataclass(frozen=True, kw_only=True)
class MachineSpeeds:
    """What the planner knows of the machine.

    Attributes:
        worker: one sweep worker, all of them busy.
        whole: one process on all threads.
        n_workers: how many sweep workers run side by side.
    """

    worker: SpeedTable
    whole: SpeedTable
    n_workers: int


def speed_table(points: Sequence[Mapping[str, Any]]) -> SpeedTable:
    """Build a table from env.json's speeds (flops_per_token, tokens_per_s) in any order; equal shapes are averaged."""
    by_cost: dict[float, list[float]] = {}
    for point in points:
        by_cost.setdefault(float(point["flops_per_token"]), []).append(float(point["tokens_per_s"]))
    costs = sorted(by_cost)
    return SpeedTable(flops_per_token=tuple(costs), tokens_per_s=tuple(float(np.mean(by_cost[cost])) for cost in costs))
