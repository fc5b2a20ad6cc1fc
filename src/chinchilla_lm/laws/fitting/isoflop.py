"""Approach 2: the best size of each compute from a parabola, and a power law through the best sizes.

Symbols: N `params`, C `flops`, L `loss` in nats per token; the parabola is L against ln N.
A parabola is not the valley's true shape: on noise-free runs of the additive law with sizes 16 times to either side
the tokens at a far optimum come out 5 % low, and 23 % where alpha and beta differ (Czech et al. 2026, 2603.22339).
`fit.fit_additive` is the better estimate; this one is the check that needs no form for the loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from chinchilla_lm.core.errors import FitError
from chinchilla_lm.laws.count import ParamsConvention
from chinchilla_lm.laws.forms.allocation import AllocationLaw, PowerLine
from chinchilla_lm.laws.forms.law import Floats

_SAME_BUDGET = 0.1  # runs within 10 % of a budget share it; digitised and rounded runs miss theirs by a few per cent


@dataclass(frozen=True, kw_only=True)
class Valley:
    """The best size of one compute.

    Attributes:
        flops: the compute.
        params: N at the parabola's lowest point.
        tokens: C / (6 N) there.
        loss: at the lowest point, nats per token.
        n_runs: runs behind it.
        is_inside: the lowest point lies between the sizes tried.
    """

    flops: float
    params: float
    tokens: float
    loss: float
    n_runs: int
    is_inside: bool


@dataclass(frozen=True, kw_only=True)
class IsoflopFit:
    """A power law through the best sizes.

    Attributes:
        law: N* = coefficient * C^a, with the line of the least losses.
        valleys: of each usable budget, lowest compute first.
        n_runs: runs used.
        warnings: what a reader must know, one sentence each.
    """

    law: AllocationLaw
    valleys: tuple[Valley, ...]
    n_runs: int
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the law and its valleys as JSON values."""
        names = ("flops", "params", "tokens", "loss", "n_runs")
        assert self.law.line is not None
        return {
            "method": "isoflop",
            "params_convention": self.law.params_convention,
            "a": self.law.a,
            "b": self.law.b,
            "coefficient": self.law.coefficient,
            "line": {"intercept": self.law.line.intercept, "slope": self.law.line.slope},
            "budgets": [{name: getattr(valley, name) for name in names} for valley in self.valleys],
            "n_runs": self.n_runs,
            "warnings": list(self.warnings),
        }


def fit_isoflop(
    params: Floats,
    flops: Floats,
    loss: Floats,
    *,
    budgets: Sequence[float] | None = None,
    params_convention: ParamsConvention = "total",
) -> IsoflopFit:
    """Fit a parabola in ln N to each budget and a power law through the lowest points.

    Args:
        params: N of each run, > 0.
        flops: C of each run, > 0.
        loss: L of each run, > 0.
        budgets: the computes of the sweep; runs farther than 10 % from all of them are left out. None finds them: runs
            sorted by compute, where one lies over 20 % above the first of its group a new group begins.
        params_convention: which weights `params` counts.

    Returns:
        The fit.

    Raises:
        FitError: fewer than two budgets with three sizes and a valley.

    Source: Hoffmann et al. 2022, section 3.2.
    """
    group_n = _group(flops, budgets)
    valleys: list[Valley] = []
    warnings: list[str] = []
    for group in range(int(group_n.max(initial=-1)) + 1):
        members = group_n == group
        if len(np.unique(params[members])) < 3:
            continue
        compute = math.exp(float(np.log(flops[members]).mean())) if budgets is None else float(sorted(budgets)[group])
        valley = _valley(params[members], loss[members], compute)
        if valley is None:
            warnings.append(
                f"the runs at {compute:.2g} FLOPs have no valley and were left out; try sizes farther apart"
            )
            continue
        if not valley.is_inside:
            warnings.append(
                f"the best size at {compute:.2g} FLOPs lies outside the sizes tried; add a "
                f"{'smaller' if valley.params < params[members].min() else 'larger'} one"
            )
        valleys.append(valley)
    if len(valleys) < 2:
        raise FitError(
            f"{len(valleys)} budgets have a valley over three or more sizes, and two are needed; "
            "add sizes at equal compute, or use the parametric method"
        )
    log_flops = np.log([valley.flops for valley in valleys])
    exponent, log_coefficient = np.polyfit(log_flops, np.log([valley.params for valley in valleys]), 1)
    slope, intercept = np.polyfit(log_flops, np.log([valley.loss for valley in valleys]), 1)
    law = AllocationLaw(
        coefficient=math.exp(float(log_coefficient)),
        exponent=float(exponent),
        params_convention=params_convention,
        line=PowerLine(intercept=float(intercept), slope=float(slope)),
    )
    used = sum(valley.n_runs for valley in valleys)
    return IsoflopFit(law=law, valleys=tuple(valleys), n_runs=used, warnings=tuple(warnings))


def _group(flops: Floats, budgets: Sequence[float] | None) -> npt.NDArray[np.int64]:
    """Return the group of each run, lowest compute first; -1 for none."""
    log_flops = np.log(flops)
    if budgets is not None:
        log_budgets = np.log(np.sort(np.asarray(budgets, dtype=np.float64)))
        distance = np.abs(log_flops[:, None] - log_budgets[None, :])
        return np.where(distance.min(1) < _SAME_BUDGET, distance.argmin(1), -1).astype(np.int64)
    group_n = np.zeros(len(flops), dtype=np.int64)
    group, first = -1, -math.inf
    for run in np.argsort(log_flops, kind="stable"):
        if log_flops[run] > first + 2 * _SAME_BUDGET:
            group, first = group + 1, float(log_flops[run])
        group_n[run] = group
    return group_n


def _valley(params: Floats, loss: Floats, flops: float) -> Valley | None:
    x = np.log(params)
    centre = float(x.mean())
    curvature, tilt, level = (float(c) for c in np.polyfit(x - centre, loss, 2))
    if curvature <= 0:
        return None
    offset = -tilt / (2 * curvature)
    best = math.exp(centre + offset)
    return Valley(
        flops=flops,
        params=best,
        tokens=flops / (6 * best),
        loss=level + tilt * offset + curvature * offset**2,
        n_runs=len(params),
        is_inside=bool(params.min() <= best <= params.max()),
    )
