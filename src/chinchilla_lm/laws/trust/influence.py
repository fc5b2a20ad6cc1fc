"""Which run, size or budget moves the answer most when it is left out.

Symbols: n runs; h the leverage (hat value) of a run, in [0, 1], p of them together; dfbeta the change of a in standard
errors of the others; C `flops`, a the exponent of the optimal size. Every run is left out to first order, and the ones
that matter most are then refitted in earnest, as is every size and every budget. It never draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chinchilla_lm.laws.fitting.additive import Fit
from chinchilla_lm.laws.fitting.covariance import spread_of
from chinchilla_lm.laws.fitting.intervals import fitted_problem
from chinchilla_lm.laws.fitting.quantities import Quantities, name_quantities
from chinchilla_lm.laws.fitting.solver import Problem, refit
from chinchilla_lm.laws.forms.law import Floats
from chinchilla_lm.laws.table import RunTable
from chinchilla_lm.laws.trust.groups import Labels, budget_groups, size_groups
from chinchilla_lm.laws.trust.robust import contributions

_REFITTED = 24  # runs refitted of each ranking; the first-order change misranks only near ties
_LARGE_SHIFT = 1.0  # standard errors: one run that moves the answer by as much as all the noise does


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """What changes without one run or one group.

    Attributes:
        name: "run 17", "size 1.1e+09 (12 runs)" or "budget 3e+20 (25 runs)".
        a_change: a without it minus a with it.
        a_dfbeta: the same in standard errors of a, as the other runs leave it.
        loss_change_percent: change of the forecast in per cent.
        loss_dfbeta: the same in standard errors.
        leverage: h of a run; the mean h of a group.
    """

    name: str
    a_change: float
    a_dfbeta: float
    loss_change_percent: float
    loss_dfbeta: float
    leverage: float

    @property
    def shift(self) -> float:
        """The larger of the two changes, in standard errors."""
        return max(abs(self.a_dfbeta), abs(self.loss_dfbeta))


@dataclass(frozen=True, kw_only=True)
class Influence:
    """Left out one at a time, most moving first.

    Attributes:
        target_flops: the compute whose least loss is forecast.
        runs: the most moving runs.
        sizes: every size.
        budgets: every budget.
        leverage: h of each run, in the order of the table.
        warnings: what a reader must know, one sentence each.
    """

    target_flops: float
    runs: tuple[LeftOut, ...]
    sizes: tuple[LeftOut, ...]
    budgets: tuple[LeftOut, ...]
    leverage: tuple[float, ...]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values, without the leverage of each run."""
        return {
            "target_flops": self.target_flops,
            "runs": [vars(run) for run in self.runs],
            "sizes": [vars(size) for size in self.sizes],
            "budgets": [vars(budget) for budget in self.budgets],
            "warnings": list(self.warnings),
        }


def leave_out(
    table: RunTable, fit: Fit, *, target_flops: float | None = None, lines: Sequence[int] | None = None
) -> Influence:
    """Leave out each run, each size and each budget.

    Args:
        table: the runs that were fitted.
        fit: of `fit_additive` on them.
        target_flops: whose forecast is watched; None: ten times the largest run.
        lines: line of each run in its file, to name it by; None: runs are counted from 1.

    Returns:
        The influence.
    """
    target = 10 * float(table.flops.max()) if target_flops is None else target_flops
    theta, problem = fitted_problem(table, fit)
    asked = name_quantities(table.params, table.tokens, [target])
    moved = contributions(theta, problem, asked)
    places = (asked.names.index("a"), len(asked.names) - 1)
    watched = _Watched(
        asked=asked,
        places=places,
        theta=theta,
        problem=problem,
        squares_n2=moved[:, list(places)] ** 2,
    )
    leverage = spread_of(theta[None], problem).leverage_kn[0]
    chosen = np.unique(np.argsort(-np.abs(moved[:, list(places)]), axis=0)[:_REFITTED])
    count = len(table.loss)
    names = [f"run {place + 1}" if lines is None else f"line {lines[place]}" for place in range(count)]
    ranked: list[int] = chosen.tolist()
    runs = watched.without(1 - np.eye(count)[ranked], [names[place] for place in ranked], leverage)
    sizes = watched.groups(size_groups(table.params), table.params, "size", leverage)
    budgets = watched.groups(budget_groups(table.flops), table.flops, "budget", leverage)
    return Influence(
        target_flops=target,
        runs=runs,
        sizes=sizes,
        budgets=budgets,
        leverage=tuple(leverage.tolist()),
        warnings=_warnings(runs, sizes, budgets, target),
    )


@dataclass(frozen=True, kw_only=True)
class _Watched:
    """The fit whose a and ln L* are watched, and what each run adds to their variances.

    A change is measured by the errors that the other runs leave (the sandwich of `trust.robust` without the ones left
    out): else one wild run would hide in the error that it causes.
    """

    asked: Quantities
    places: tuple[int, int]
    theta: Floats
    problem: Problem
    squares_n2: Floats

    def without(self, weight_kn: Floats, names: Sequence[str], leverage: Floats) -> tuple[LeftOut, ...]:
        """Refit with each row of weights, and return what changed, most moving first."""
        if not len(weight_kn):
            return ()
        ends = refit(self.theta, self.problem, weight_kn=weight_kn)
        changes = (self.asked.values(ends) - self.asked.values(self.theta[None]))[:, list(self.places)]
        errors = np.sqrt(np.maximum(weight_kn @ self.squares_n2, 1e-300))
        rows = zip(names, changes.tolist(), (changes / errors).tolist(), 1 - weight_kn, strict=True)
        found = [
            LeftOut(
                name=name,
                a_change=change[0],
                a_dfbeta=shift[0],
                loss_change_percent=100 * math.expm1(change[1]),
                loss_dfbeta=shift[1],
                leverage=float((gone * leverage).sum() / gone.sum()),
            )
            for name, change, shift, gone in rows
        ]
        return tuple(sorted(found, key=lambda one: -one.shift))

    def groups(self, labels: Labels, amount: Floats, word: str, leverage: Floats) -> tuple[LeftOut, ...]:
        """Leave out each group that leaves enough runs behind."""
        weights: list[Floats] = []
        names: list[str] = []
        for label in np.unique(labels):
            gone = labels == label
            if (~gone).sum() < 8:
                continue
            weights.append((~gone).astype(np.float64))
            names.append(f"{word} {float(np.exp(np.log(amount[gone]).mean())):.3g} ({int(gone.sum())} runs)")
        return self.without(np.array(weights), names, leverage) if weights else ()


def _warnings(
    runs: tuple[LeftOut, ...], sizes: tuple[LeftOut, ...], budgets: tuple[LeftOut, ...], target: float
) -> tuple[str, ...]:
    warnings: list[str] = []
    for found, limit, way_out in (
        (runs, _LARGE_SHIFT, "look at that run's curve, repeat it, or report the fit without it"),
        (sizes, 2 * _LARGE_SHIFT, "check that size's learning rate and shape, or add runs of its neighbours"),
        (budgets, 2 * _LARGE_SHIFT, "add runs at its neighbours' budgets, or report the fit without it"),
    ):
        if found and found[0].shift > limit:
            one = found[0]
            warnings.append(
                f"without {one.name} a changes by {one.a_change:+.3f} and the forecast at {target:.2g} FLOPs by "
                f"{one.loss_change_percent:+.2f} % ({one.shift:.1f} standard errors); {way_out}"
            )
    return tuple(warnings)
