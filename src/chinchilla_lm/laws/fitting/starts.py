"""Approach 3 exactly as the paper describes it: from each of its 4,500 starts, and how many of them arrive.

`additive.fit_additive` reaches the same minimum from five starts; this is the proof, and the check on other sweeps.
Symbols: K starts; theta_k5 are (ln A, ln B, ln E, alpha, beta), the paper's (a, b, e, alpha, beta), not centred.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from chinchilla_lm.core.errors import FitError
from chinchilla_lm.laws.fitting.additive import checked_columns
from chinchilla_lm.laws.fitting.solver import Solution, centred_problem, minimise, natural_constants
from chinchilla_lm.laws.forms.additive import AdditiveLaw
from chinchilla_lm.laws.forms.law import Floats

PAPER_DELTA = 1e-3
_REACHED = 1e-6  # relative, above the least objective: what counts as arrived
_CHUNK = 500  # starts solved at once: 500 x 240 runs x 5 doubles is 5 MB


@dataclass(frozen=True, kw_only=True)
class StartsReport:
    """Where the starts ended.

    Attributes:
        law: of the lowest end.
        objective: there, sum over runs of Huber's loss.
        n_starts: K.
        n_reached: starts that ended within 1e-6 of it.
        objective_k: of every end, in the order of the starts.
    """

    law: AdditiveLaw
    objective: float
    n_starts: int
    n_reached: int
    objective_k: Floats


def paper_starts() -> Floats:
    """Return the paper's grid of starts, shape (4500, 5).

    Source: Hoffmann et al. 2022, appendix D.3: alpha and beta in {0, .5, ..., 2}, e in {-1, -.5, ..., 1}, a and b in
        {0, 5, ..., 25}.
    """
    sizes, floors, exponents = np.arange(0, 26, 5), np.arange(-1, 1.01, 0.5), np.arange(0, 2.01, 0.5)
    return np.array(list(itertools.product(sizes, sizes, floors, exponents, exponents)), dtype=np.float64)


def fit_from_starts(
    params: Floats, tokens: Floats, loss: Floats, *, delta: float = PAPER_DELTA, starts_k5: Floats | None = None
) -> StartsReport:
    """Minimise the paper's objective from every start.

    Args:
        params: N of each run, > 0.
        tokens: D of each run, > 0.
        loss: L of each run in nats per token, > 0.
        delta: of the Huber loss, in ln L.
        starts_k5: see the module; None takes the paper's.

    Returns:
        The report.

    Raises:
        FitError: runs that are no numbers, too few runs, or starts of another shape.

    Differs: the minimiser is this package's (the paper's was L-BFGS), and a start outside its box (a term larger than
        any loss, or below 1e-4 of the least) begins on the box: at alpha = 0 at the least exponent, .005.
    """
    columns = checked_columns(params, tokens, loss, has_prior=False)
    starts = paper_starts() if starts_k5 is None else np.asarray(starts_k5, dtype=np.float64)
    if starts.ndim != 2 or starts.shape[1] != 5 or not len(starts):
        raise FitError(f"starts have shape {starts.shape}; give rows of ln A, ln B, ln E, alpha, beta")
    problem = centred_problem(*columns, delta=delta)
    centred = starts.copy()
    centred[:, 0] -= starts[:, 3] * float(np.log(columns[0]).mean())
    centred[:, 1] -= starts[:, 4] * float(np.log(columns[1]).mean())
    ends: list[Solution] = [
        minimise(centred[first : first + _CHUNK], problem) for first in range(0, len(centred), _CHUNK)
    ]
    theta = np.concatenate([end.theta_k5 for end in ends])
    objective_k = np.concatenate([end.objective_k for end in ends])
    best = int(objective_k.argmin())
    constants = natural_constants(theta[best : best + 1], columns[0], columns[1])[0]
    return StartsReport(
        law=AdditiveLaw(**dict(zip(("E", "A", "B", "alpha", "beta"), map(float, constants), strict=True))),
        objective=float(objective_k[best]),
        n_starts=len(starts),
        n_reached=int((objective_k <= objective_k[best] * (1 + _REACHED)).sum()),
        objective_k=objective_k,
    )
