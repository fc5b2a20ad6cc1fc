"""Rolling-origin back-tests: what a table would have said of its larger runs before they were made.

`rolling_origin` hides everything above each of many cuts and predicts every hidden run, with the textbook interval and
the calibrated one; the latter may use only what lies below the same cut. `predict_largest` is the shortest such test.

Symbols: C `flops`, L `loss` in the table's unit; K cuts, n runs; errors in ln L.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from chinchilla_lm.core.errors import FitError
from chinchilla_lm.laws.fitting.additive import fit_additive
from chinchilla_lm.laws.forms.additive import AdditiveLaw
from chinchilla_lm.laws.table import RunTable
from chinchilla_lm.laws.trust.bracket import Run, Target
from chinchilla_lm.laws.trust.calibration import Extrapolation, extrapolate
from chinchilla_lm.laws.trust.cuts import choose_cuts
from chinchilla_lm.laws.trust.forecast import Forecast, forecast
from chinchilla_lm.laws.trust.inflation import LEARNT, Inflation

_RUNG = math.log(10) / 2  # a table without rungs is cut into half-decades of compute
_CUT = 3.0  # the runs within this factor of the largest compute are hidden
NEAREST, FARTHEST = 3.0, 100.0  # a hidden run's compute over its cut's


@dataclass(frozen=True, kw_only=True)
class Hindcast:
    """One hidden run and what was said of it.

    Attributes:
        cut_flops: largest compute that was seen.
        n_seen: runs at or below it.
        n_backtests: lower cuts that told the table's own errors.
        params: N of the hidden run.
        tokens: D of it.
        decades: log10 of its C over the cut.
        predicted: the point, in the table's unit.
        actual: its loss.
        low: lower end of the calibrated interval.
        high: upper end.
        raw_predicted: of the additive law alone.
        raw_low: lower end of its textbook interval.
        raw_high: upper end.
    """

    cut_flops: float
    n_seen: int
    n_backtests: int
    params: float
    tokens: float
    decades: float
    predicted: float
    actual: float
    low: float
    high: float
    raw_predicted: float
    raw_low: float
    raw_high: float

    @property
    def error(self) -> float:
        """ln(predicted / actual); > 0 is pessimistic."""
        return math.log(self.predicted / self.actual)

    @property
    def is_inside(self) -> bool:
        """The calibrated interval holds the truth."""
        return self.low <= self.actual <= self.high

    @property
    def is_inside_raw(self) -> bool:
        """The textbook interval holds it."""
        return self.raw_low <= self.actual <= self.raw_high


@dataclass(frozen=True, kw_only=True)
class RollingTest:
    """The hidden runs and how well they were predicted.

    Attributes:
        cut_flops: runs above it were hidden.
        n_fitted: runs below it.
        n_predicted: runs above it.
        median_error_percent: median of |predicted - observed| in per cent of the loss.
        bias_percent: median of predicted - observed; > 0 is pessimistic.
    """

    cut_flops: float
    n_fitted: int
    n_predicted: int
    median_error_percent: float
    bias_percent: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def rolling_origin(
    table: RunTable,
    *,
    cut_flops: Sequence[float] | None = None,
    level: float = 0.9,
    nearest: float = NEAREST,
    farthest: float = FARTHEST,
    inflation: Inflation = LEARNT,
) -> tuple[Hindcast, ...]:
    """Hide all runs above each cut and predict those of `nearest` to `farthest` times its compute.

    Args:
        table: finished runs; more than 300 are thinned evenly.
        cut_flops: the cuts, ascending, each with eight runs or more below; None: steps of a quarter decade down from a
            third of the largest compute.
        level: of both intervals, in (0, 1).
        nearest: least compute of a hidden run over its cut's.
        farthest: most.
        inflation: the error model; when it is itself on trial, one that was learnt without this table.

    Returns:
        The hindcasts, cut by cut; empty where no cut leaves enough below it.

    Raises:
        FitError: a given cut with fewer than five runs below, or runs that are no numbers.
    """
    cuts = choose_cuts(table, float(table.flops.max()) / nearest) if cut_flops is None else np.array(cut_flops)
    if not len(cuts):
        return ()
    made = extrapolate(table, cut_flops=cuts.tolist(), inflation=inflation)
    return hindcasts(made, level=level, nearest=nearest, farthest=farthest)


def hindcasts(
    made: Extrapolation, *, level: float = 0.9, nearest: float = NEAREST, farthest: float = FARTHEST
) -> tuple[Hindcast, ...]:
    """Let every cut of a prepared table predict the runs of `nearest` to `farthest` times its compute.

    Args:
        made: the table, with its cuts.
        level: of both intervals, in (0, 1).
        nearest: least compute of a hidden run over its cut's.
        farthest: most.

    Returns:
        The hindcasts, cut by cut.
    """
    runs = made.fits.table
    answers = made.fits.ask(runs.params, runs.tokens, runs.flops)
    half = made.half_widths(answers, level)
    raw_half = NormalDist().inv_cdf(0.5 + level / 2) * answers.raw_sd
    found: list[Hindcast] = []
    for cut, cut_flops in enumerate(made.fits.cut_flops_k.tolist()):
        n_seen = int((runs.flops <= cut_flops * 1.0001).sum())
        ratio = runs.flops / cut_flops
        for run in np.flatnonzero((ratio >= nearest * 0.99) & (ratio <= farthest * 1.01)).tolist():
            point, raw = float(answers.point[cut, run]), float(answers.raw[cut, run])
            width, raw_width = float(half[cut, run]), float(raw_half[cut, run])
            found.append(
                Hindcast(
                    cut_flops=cut_flops,
                    n_seen=n_seen,
                    n_backtests=int(made.own.n_tests_k[cut]),
                    params=float(runs.params[run]),
                    tokens=float(runs.tokens[run]),
                    decades=float(answers.decades[cut, run]),
                    predicted=math.exp(point),
                    actual=float(runs.loss[run]),
                    low=math.exp(point - width),
                    high=math.exp(point + width),
                    raw_predicted=math.exp(raw),
                    raw_low=math.exp(raw - raw_width),
                    raw_high=math.exp(raw + raw_width),
                )
            )
    return tuple(found)


def predict_largest(table: RunTable, *, delta: float = 1e-3) -> RollingTest | None:
    """Hide the runs of most compute, fit the rest, and predict them.

    Args:
        table: finished runs.
        delta: of the Huber loss.

    Returns:
        The test; None where fewer than eight runs or nothing would be left on one side.
    """
    cut = float(table.flops.max()) / _CUT
    seen = table.flops <= cut
    if seen.sum() < 8 or seen.all():
        return None
    try:
        law = fit_additive(table.params[seen], table.tokens[seen], table.loss[seen], delta=delta).law
    except FitError:
        return None
    predicted = law.loss(table.params[~seen], table.tokens[~seen])
    errors = 100 * np.log(predicted / table.loss[~seen])
    return RollingTest(
        cut_flops=cut,
        n_fitted=int(seen.sum()),
        n_predicted=int((~seen).sum()),
        median_error_percent=float(np.median(np.abs(errors))),
        bias_percent=float(np.median(errors)),
    )


def forecast_optimum(table: RunTable, law: AdditiveLaw, flops: float) -> Forecast:
    """Forecast the loss at the law's optimum for a budget from a table without rungs.

    Args:
        table: finished runs; each half-decade of compute becomes a rung.
        law: whose optimum is asked for.
        flops: of the run to forecast, > 0.

    Returns:
        The forecast.

    Raises:
        PlanError: flops is not finite and > 0.
        FitError: too few runs.
    """
    params, tokens = law.optimum(flops)
    runs = [
        Run(params=n, tokens=d, flops=c, loss=loss, rung=round(math.log(c) / _RUNG))
        for n, d, c, loss in zip(
            table.params.tolist(), table.tokens.tolist(), table.flops.tolist(), table.loss.tolist(), strict=True
        )
    ]
    return forecast(runs, Target(params=params, tokens=tokens, flops=flops))
