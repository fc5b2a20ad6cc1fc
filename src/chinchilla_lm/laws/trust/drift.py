"""Do the exponents move as larger runs join the fit? The diagnostic that no other tool gives.

A law that holds everywhere gives the same exponents whether fitted below 3e19 FLOPs or to all runs. Where they move by
more than their errors, the form bends beyond the data too, and no interval of one fit knows it.

Symbols: C `flops`; a the exponent of the optimal size; standard errors are robust (`trust.robust`), and so is that of
the difference between a part of the runs and all: each run moves both. It never draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from chinchilla_lm.core.errors import FitError
from chinchilla_lm.laws.fitting.additive import fit_additive
from chinchilla_lm.laws.fitting.intervals import fitted_problem
from chinchilla_lm.laws.fitting.quantities import name_quantities
from chinchilla_lm.laws.forms.law import Floats
from chinchilla_lm.laws.table import RunTable
from chinchilla_lm.laws.trust.robust import contributions, errors_from
from chinchilla_lm.laws.trust.selection import take

_FEWEST = 12  # runs in a fit whose standard error means something: five constants and as many to spare
_STEP = math.sqrt(10.0)  # between default cuts
_MOST_CUTS = 5
_VAGUE = 0.1  # standard error of a beyond which any drift of the size ever seen (.15) would hide
_DOUBT = 0.05  # chance that a law that holds is said to drift, over all cuts together


@dataclass(frozen=True, kw_only=True)
class DriftPoint:
    """The law of the runs up to one cut.

    Attributes:
        cut_flops: the largest compute kept.
        n_runs: runs kept.
        a: exponent of the optimal size.
        a_se: its standard error.
        E: floor, nats per token.
        E_se: its standard error.
        loss: forecast of the least loss at the drift's target compute, nats per token.
        loss_se: its standard error, nats per token.
        status: of the fit.
    """

    cut_flops: float
    n_runs: int
    a: float
    a_se: float
    E: float
    E_se: float
    loss: float
    loss_se: float
    status: str


@dataclass(frozen=True, kw_only=True)
class Drift:
    """The fits by cut.

    Attributes:
        points: lowest cut first; the last holds all runs.
        target_flops: the compute that `loss` is asked for.
        a_sigmas: largest |a at a cut - a of all runs| in standard errors of the difference.
        loss_sigmas: the same of ln of the forecast.
        is_drifting: one of the two is more than chance explains.
        sentence: what a reader must know.
    """

    points: tuple[DriftPoint, ...]
    target_flops: float
    a_sigmas: float
    loss_sigmas: float
    is_drifting: bool
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        points = [{name: getattr(point, name) for name in point.__dataclass_fields__} for point in self.points]
        names = ("target_flops", "a_sigmas", "loss_sigmas", "is_drifting", "sentence")
        return {"points": points, **{name: getattr(self, name) for name in names}}


def exponent_drift(
    table: RunTable,
    *,
    cuts: Sequence[float] | None = None,
    target_flops: float | None = None,
    delta: float | None = None,
) -> Drift | None:
    """Refit on the runs up to each of several cuts.

    Args:
        table: finished runs.
        cuts: compute C, ascending or not; None: half-decades below the largest run.
        target_flops: whose least loss is forecast from each; None: ten times the largest run.
        delta: of the Huber loss; None scales it to the noise; 1e-3 gives the published figures of Epoch's runs.

    Returns:
        The drift; None where no cut leaves twelve runs below and one above.
    """
    largest = float(table.flops.max())
    target = 10 * largest if target_flops is None else target_flops
    if cuts is None:
        cuts = [largest / _STEP**step for step in range(1, _MOST_CUTS + 1)]
    points: list[DriftPoint] = []
    parts: list[Floats] = []
    for cut in (*sorted(cut for cut in cuts if cut < largest), largest):
        kept = table.flops <= cut * (1 + 1e-9)
        is_new = not points or int(kept.sum()) > points[-1].n_runs
        found = _fitted(table, kept, (cut, target), delta) if kept.sum() >= _FEWEST and is_new else None
        if found is not None:
            points.append(found[0])
            parts.append(found[1])
    if len(points) < 2:
        return None
    sigmas = np.array(
        [_sigmas(points[place], points[-1], parts[place] - parts[-1]) for place in range(len(points) - 1)]
    )
    # Bonferroni over the cuts and the two questions.
    limit = NormalDist().inv_cdf(1 - _DOUBT / (2 * sigmas.size))
    is_drifting = bool(sigmas.max() > limit)
    return Drift(
        points=tuple(points),
        target_flops=target,
        a_sigmas=float(sigmas[:, 0].max()),
        loss_sigmas=float(sigmas[:, 1].max()),
        is_drifting=is_drifting,
        sentence=_sentence(points, points[int(sigmas.max(1).argmax())], target, is_drifting),
    )


def _fitted(
    table: RunTable, kept: npt.NDArray[np.bool_], cut_and_target: tuple[float, float], delta: float | None
) -> tuple[DriftPoint, Floats] | None:
    """Fit the kept runs; return the point, and what each run of the table adds to the errors of a and ln L*, (n, 2)."""
    cut, target = cut_and_target
    below = take(table, kept)
    try:
        fit = fit_additive(below.params, below.tokens, below.loss, delta=delta)
    except FitError:
        return None
    theta, problem = fitted_problem(below, fit)
    asked = name_quantities(below.params, below.tokens, [target])
    a, floor, loss = asked.names.index("a"), asked.names.index("E"), len(asked.names) - 1
    natural = asked.natural(asked.values(theta[None]))[0]
    moved = contributions(theta, problem, asked)
    errors = errors_from(moved)
    parts = np.zeros((len(table.loss), 2))
    parts[kept] = moved[:, [a, loss]]
    point = DriftPoint(
        cut_flops=cut,
        n_runs=fit.n_runs,
        a=float(natural[a]),
        a_se=float(errors[a]),
        E=float(natural[floor]),
        E_se=float(errors[floor] * natural[floor]),
        loss=float(natural[loss]),
        loss_se=float(errors[loss] * natural[loss]),
        status=fit.status,
    )
    return point, parts


def _sigmas(part: DriftPoint, whole: DriftPoint, moved_n2: Floats) -> list[float]:
    """Return how many standard errors of their difference lie between a, and ln L*, of a part and of all runs."""
    errors = np.maximum(errors_from(moved_n2), 1e-12)
    return [abs(part.a - whole.a) / float(errors[0]), abs(math.log(part.loss / whole.loss)) / float(errors[1])]


def _sentence(points: Sequence[DriftPoint], furthest: DriftPoint, target: float, is_drifting: bool) -> str:
    last = points[-1]
    is_vague = last.a_se > _VAGUE
    found = (
        f"a is {furthest.a:.3f} +- {furthest.a_se:.3f} from the {furthest.n_runs} runs up to {furthest.cut_flops:.2g} "
        f"FLOPs and {last.a:.3f} +- {last.a_se:.3f} from all {last.n_runs}"
    )
    forecasts = np.array([point.loss for point in points])
    moved = f"the forecast at {target:.2g} FLOPs moved between {forecasts.min():.3f} and {forecasts.max():.3f}"
    if is_drifting:
        return (
            f"the law drifts beyond its errors as larger runs join: {found}; {moved}; take the calibrated interval, "
            "compare the coupled form, or fit the largest budgets alone"
        )
    if is_vague:
        return f"too few runs to tell whether the exponents drift: {found}; {moved}; add runs, or give a prior"
    return f"the law holds as larger runs join: {found}; {moved}"
