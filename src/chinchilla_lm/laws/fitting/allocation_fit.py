"""Finished optima -> allocation law: a straight line of ln N* on ln C, and of ln L* where the losses are known.

For optima that somebody else found (the rows of a paper's table, vertices of IsoFLOP curves). From raw runs take
`isoflop` or `envelope`, which find the optima and know how uncertain each is; here each counts the same.

Symbols: m optima with C `flops`, N* `params`, L* `loss`; N* = G C^a, ln L* = c + s ln C.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from chinchilla_lm.core.errors import FitError
from chinchilla_lm.laws.count import ParamsConvention
from chinchilla_lm.laws.fitting.additive import INTERVAL_LEVEL, Interval
from chinchilla_lm.laws.fitting.noise import t_quantile
from chinchilla_lm.laws.forms.allocation import AllocationLaw, PowerLine
from chinchilla_lm.laws.forms.law import Floats

_FEWEST = 3  # two points make a line and say nothing of its error


@dataclass(frozen=True, kw_only=True)
class AllocationFit:
    """A line through optima.

    Attributes:
        law: N* = G C^a; with the loss line where losses were given.
        n_optima: points of the line.
        exponent: 95 % interval of a, by Student's t.
        slope: 95 % interval of the slope of ln L*, or None without losses.
        residuals: ln N*(given) - ln N*(line), in the order given.
        warnings: what a reader must know, one sentence each.
    """

    law: AllocationLaw
    n_optima: int
    exponent: Interval
    slope: Interval | None
    residuals: tuple[float, ...]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            **self.law.to_dict(),
            "n_optima": self.n_optima,
            "intervals": {
                "a": self.exponent.to_dict(),
                **({} if self.slope is None else {"slope": self.slope.to_dict()}),
            },
            "interval_level": INTERVAL_LEVEL,
            "residuals": list(self.residuals),
            "warnings": list(self.warnings),
        }


def fit_allocation(
    flops: Floats, params: Floats, loss: Floats | None = None, *, params_convention: ParamsConvention = "total"
) -> AllocationFit:
    """Draw the line through optima.

    Args:
        flops: C of each optimum, > 0.
        params: N* of each, > 0, one convention throughout.
        loss: L* of each in nats per token, > 0, or None.
        params_convention: which weights N counts.

    Returns:
        The fit, by least squares of logarithms.

    Raises:
        FitError: fewer than three optima, numbers that are no amounts, one budget only, or a line that falls.
    """
    columns = [np.asarray(column, dtype=np.float64) for column in (flops, params, *([] if loss is None else [loss]))]
    for name, column in zip(("flops", "params", "loss"), columns, strict=False):
        if column.ndim != 1 or len(column) != len(columns[0]):
            raise FitError(f"{name} has shape {column.shape}; all columns must be lists of one length")
        if not (np.isfinite(column) & (column > 0)).all():
            raise FitError(f"{name} of an optimum is no number > 0; correct or remove it")
    if len(columns[0]) < _FEWEST or np.ptp(np.log(columns[0])) < np.log(2):
        factor = float(columns[0].max() / columns[0].min())
        raise FitError(
            f"{len(columns[0])} optima within a factor {factor:.3g} of compute carry no line; give three or more, over "
            "a factor 2"
        )
    x = np.log(columns[0])
    a, log_coefficient, exponent = _line(x, np.log(columns[1]))
    if not 0 < a < 1:
        raise FitError(f"the optima give a={a:.3g}, and it must lie in (0, 1); check how params and flops are counted")
    line, slope = None, None
    if loss is not None:
        fall, intercept, slope = _line(x, np.log(columns[2]))
        line = PowerLine(intercept=intercept, slope=fall)
    residuals = np.log(columns[1]) - log_coefficient - a * x
    width = exponent.high - exponent.low
    return AllocationFit(
        law=AllocationLaw(
            coefficient=float(np.exp(log_coefficient)), exponent=a, params_convention=params_convention, line=line
        ),
        n_optima=len(x),
        exponent=exponent,
        slope=slope,
        residuals=tuple(residuals.tolist()),
        warnings=(
            (f"a is known to +-{width / 2:.2f} from {len(x)} optima; add budgets further apart",) if width > 0.2 else ()
        ),
    )


def _line(x: Floats, y: Floats) -> tuple[float, float, Interval]:
    """Return slope, intercept and the slope's interval by Student's t with m - 2 degrees of freedom."""
    centred = x - x.mean()
    slope = float((centred * y).sum() / (centred**2).sum())
    intercept = float(y.mean() - slope * x.mean())
    left = y - intercept - slope * x
    error = float(np.sqrt((left**2).sum() / (len(x) - 2) / (centred**2).sum()))
    reach = t_quantile(INTERVAL_LEVEL, len(x) - 2) * error
    return slope, intercept, Interval(low=slope - reach, high=slope + reach, se=error)
