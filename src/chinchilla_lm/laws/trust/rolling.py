"""What a fit would have said before its largest runs were made.

Symbols: C `flops`, L `loss` in nats per token. The law is refitted below a cut and asked for the runs above it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from chinchilla_lm.core.errors import FitError
from chinchilla_lm.laws.fitting.additive import fit_additive
from chinchilla_lm.laws.forms.additive import AdditiveLaw
from chinchilla_lm.laws.table import RunTable
from chinchilla_lm.laws.trust.bracket import Run, Target
from chinchilla_lm.laws.trust.forecast import Forecast, forecast

_RUNG = math.log(10) / 2  # a table without rungs is cut into half-decades of compute
_CUT = 3.0  # the runs within this factor of the largest compute are hidden


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
