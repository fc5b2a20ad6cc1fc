"""Do the runs determine the law, or could other constants say the same?

Four questions: how lopsided is the information (condition number), which constants hide behind each other (variance
inflation), do random starts end in one place, and does `a` stay where it is when the objective changes from least
absolute deviations to least squares. The last is the honest one: where `a` moves with the objective, the design does
not know it.

Symbols: J = dr/dtheta of the runs, theta = (a, b, e, alpha, beta) centred on them; N `params`, D `tokens`, L `loss`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from chinchilla_lm.core.errors import FitError
from chinchilla_lm.laws.fitting.additive import Fit, fit_additive
from chinchilla_lm.laws.fitting.intervals import fitted_problem
from chinchilla_lm.laws.fitting.quantities import name_quantities
from chinchilla_lm.laws.fitting.solver import Problem, minimise
from chinchilla_lm.laws.forms.law import Floats
from chinchilla_lm.laws.table import RunTable
from chinchilla_lm.laws.trust.robust import contributions, errors_from, slopes_of

OBJECTIVES: Mapping[str, float | None] = {"lad": 1e-5, "huber 1e-3": 1e-3, "huber scaled": None, "least squares": 1.0}
_NAMES = ("A", "B", "E", "alpha", "beta")
_STARTS, _STEPS = 32, 60
# Hoffmann et al. 2022, appendix D.3: the grid of starts, in natural logs of A, B and E.
_PAPER_STARTS = {"A": (0.0, 25.0), "B": (0.0, 25.0), "E": (-1.0, 1.0), "alpha": (0.0, 2.0), "beta": (0.0, 2.0)}
_SAME_END = 1e-4  # relative excess of the objective
_FLAT = 1e6  # as the status "unidentified" of the fit: its smallest eigenvalue is 1e-6
_FEW_ARRIVE = 0.5  # share of starts; 81 % arrive on Epoch's runs, 12 % on OLMo's ladder to 1B
# Beyond this a says little: at three decades past the runs .1 in a is a factor 2 in the best size.
_UNKNOWN_A = 0.1


@dataclass(frozen=True, kw_only=True)
class Identifiability:
    """How well the runs know the constants.

    Attributes:
        condition: largest over smallest eigenvalue of J^T J with unit diagonal, on centred constants. Measured
            2026-11-22: 1e3 on Epoch's 240 runs and on Gadre's 35, 4e5 on OLMo's ladder to 1B, which cannot tell a.
        condition_uncentred: the same with ln A and ln B at N = D = 1, as the paper writes the law.
        inflation: variance inflation of each constant, centred: 1 if no other constant can stand in for it.
        inflation_uncentred: the same as the paper writes the law: ln A against alpha, ln B against beta.
        starts_share: share of random starts of the paper's grid that reached the lowest end.
        ends: how many distinct minima the starts found.
        a_by_objective: a from least absolute deviations to least squares.
        a_se: robust standard error of a.
        is_a_known: a is known to better than .1 by its error and by every objective, and no line of constants is flat.
        warnings: what a reader must know, one sentence each.
    """

    condition: float
    condition_uncentred: float
    inflation: Mapping[str, float]
    inflation_uncentred: Mapping[str, float]
    starts_share: float
    ends: int
    a_by_objective: Mapping[str, float]
    a_se: float
    is_a_known: bool
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        maps = {name: dict(getattr(self, name)) for name in ("inflation", "inflation_uncentred", "a_by_objective")}
        names = ("condition", "condition_uncentred", "starts_share", "ends", "a_se", "is_a_known")
        return {**{name: getattr(self, name) for name in names}, **maps, "warnings": list(self.warnings)}


def identify(table: RunTable, fit: Fit, *, seed: int = 0) -> Identifiability:
    """Ask the four questions of a fit.

    Args:
        table: the runs that were fitted.
        fit: of `fit_additive` on them.
        seed: of the random starts.

    Returns:
        The answers.
    """
    theta, problem = fitted_problem(table, fit)
    _, slopes = slopes_of(theta, problem)
    x_mean, y_mean = float(np.log(table.params).mean()), float(np.log(table.tokens).mean())
    uncentred = slopes.copy()
    uncentred[:, 3] -= x_mean * slopes[:, 0]
    uncentred[:, 4] -= y_mean * slopes[:, 1]
    condition = _condition(slopes)
    share, ends = _starts_share(problem, theta, (x_mean, y_mean), seed)
    by_objective = {name: _a_of(table, delta) for name, delta in OBJECTIVES.items()}
    known = {name: a for name, a in by_objective.items() if a is not None}
    asked = name_quantities(table.params, table.tokens)
    error = float(errors_from(contributions(theta, problem, asked))[asked.names.index("a")])
    spread = max(known.values()) - min(known.values()) if known else math.inf
    return Identifiability(
        condition=condition,
        condition_uncentred=_condition(uncentred),
        inflation=_inflation(slopes),
        inflation_uncentred=_inflation(uncentred),
        starts_share=share,
        ends=ends,
        a_by_objective=known,
        a_se=error,
        is_a_known=max(error, spread) < _UNKNOWN_A and condition < _FLAT,
        warnings=_warnings(condition, known, error, (share, ends)),
    )


def _condition(slopes: Floats) -> float:
    scaled = slopes / np.sqrt(np.maximum((slopes**2).sum(0), 1e-300))
    values = np.linalg.svd(scaled, compute_uv=False)
    return float((values[0] / max(float(values[-1]), 1e-150)) ** 2)


def _inflation(slopes: Floats) -> dict[str, float]:
    """Return 1 / (1 - R^2) of each column on the others."""
    scaled = slopes / np.sqrt(np.maximum((slopes**2).sum(0), 1e-300))
    values, vectors = np.linalg.eigh(scaled.T @ scaled)
    inflation: Floats = (vectors**2 / np.maximum(values, 1e-15)).sum(1)
    return dict(zip(_NAMES, inflation.tolist(), strict=True))


def _starts_share(problem: Problem, theta: Floats, means: tuple[float, float], seed: int) -> tuple[float, int]:
    """Walk random starts of the paper's box to their ends; return the share at the lowest, and how many ends."""
    rng = np.random.default_rng(seed)
    low, high = (np.array([_PAPER_STARTS[name][end] for name in _NAMES]) for end in (0, 1))
    starts = rng.uniform(low, high, size=(_STARTS, 5))
    starts[:, 0] -= starts[:, 3] * means[0]
    starts[:, 1] -= starts[:, 4] * means[1]
    # A delta below the noise makes every valley sharp; what is asked here is how many valleys there are.
    smooth = replace(problem, delta=max(problem.delta, 1e-3))
    found = minimise(np.vstack([theta, starts]), smooth, most_steps=_STEPS, tolerance=1e-6)
    lowest = float(found.objective_k.min())
    is_lowest = found.objective_k <= lowest * (1 + _SAME_END) + 1e-15
    is_end = found.gradient_k <= 1e-4 * smooth.delta * len(problem.x_n)
    others = np.sort(found.objective_k[~is_lowest & is_end])
    is_new = np.diff(others, prepend=lowest) > 10 * _SAME_END * others
    return float(is_lowest[1:].mean()), 1 + int(is_new.sum())


def _a_of(table: RunTable, delta: float | None) -> float | None:
    try:
        return fit_additive(table.params, table.tokens, table.loss, delta=delta).law.a
    except FitError:
        return None


def _warnings(
    condition: float, by_objective: Mapping[str, float], error: float, starts: tuple[float, int]
) -> tuple[str, ...]:
    share, ends = starts
    warnings: list[str] = []
    if condition >= _FLAT:
        warnings.append(
            f"a line of constants fits these runs alike (condition number {condition:.0e}); vary params and tokens "
            "independently, or give a prior"
        )
    if by_objective:
        low, high = min(by_objective, key=by_objective.__getitem__), max(by_objective, key=by_objective.__getitem__)
        if by_objective[high] - by_objective[low] >= _UNKNOWN_A:
            warnings.append(
                f"the runs do not identify a: it is {by_objective[low]:.2f} by {low} and {by_objective[high]:.2f} by "
                f"{high} on the same runs; add runs away from one ratio of tokens to params, or give a prior"
            )
    if error >= _UNKNOWN_A:
        warnings.append(
            f"a is known to +-{error:.2f} (one standard error) only; add sizes a factor 3 and more from the optimum at "
            "the largest budgets, or give a prior"
        )
    if ends > 1:
        warnings.append(
            f"random starts end in {ends} minima, {share:.0%} of them in the lowest; trust no fit from one start, and "
            "remove runs that diverged"
        )
    elif share < _FEW_ARRIVE:
        warnings.append(
            f"only {share:.0%} of random starts reach the minimum in {_STEPS} steps, so the valley is nearly flat; "
            "trust no fit from one start, and vary params and tokens independently"
        )
    return tuple(warnings)
