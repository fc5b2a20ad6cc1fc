"""One table of runs cut at many computes: what each lower part says of any run, by three forms at once.

The point is a quarter of the additive law, half of the coupled one and a quarter of the form without a floor, in ln L:
on the public sets the first is mostly too pessimistic, the last too optimistic (bench/calibration.py). Runs weigh as
the square root of their compute, because the runs near the target say most about it.

Symbols: K cuts, n runs, M points asked for; N `params`, D `tokens`, C `flops`, L `loss`; everything in ln L.
It knows nothing of intervals (see `inflation`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from chinchilla_lm.core.errors import FitError
from chinchilla_lm.laws.forms.law import Floats
from chinchilla_lm.laws.table import RunTable
from chinchilla_lm.laws.trust.form_family import FormName, Members, fit_members, log_losses, prediction_sd

# In ln L. The three together err less than any one: mean |error| 3-6x, 6-20x, 20-100x above the runs 1.82, 2.33,
# 3.70 % against 1.92, 2.42, 4.14 (coupled), 2.21, 3.12, 4.56 (additive), 2.40, 4.06, 6.40 % (floorless); 8 families.
FORM_WEIGHTS: dict[FormName, float] = {"additive": 0.25, "coupled": 0.5, "floorless": 0.25}
# Exponent of a run's weight in C. 0, .25, .5, .75, 1: the coupled form errs by 2.90, 2.71, 2.42, 2.35, 2.44 % at 6-20x.
COMPUTE_WEIGHT = 0.5
CUT_STEP = 10**0.25  # between two cuts
FEWEST_RUNS = 5  # the priors carry the sixth constant; fewer determine nothing
_FEWEST_BELOW_CUT, _FEWEST_SIZES = 8, 3
_LEAST_SPAN = 4.0  # of compute below a cut; the shortest and longest runs must also differ by a factor 2
_MOST_RUNS = 300  # larger tables (checkpoints) are thinned evenly over sizes and tokens before the fits
_ROUND = 1.0001  # computes that differ by less are one


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What K cuts say of M points; all in ln, shape (K, M).

    Attributes:
        point: ln L of the weighted mean of the forms.
        sources: ln L of each form.
        spread: weighted sd of the forms around the point.
        drop: how far ln L falls from the edge of the cut's runs to the point, on the straight way back in ln N, ln D.
        decades: log10 of C over the compute of the cut; <= 0 inside.
        raw: ln L of the additive law fitted with equal weights.
        raw_sd: its textbook standard error for a new run.
    """

    point: Floats
    sources: dict[FormName, Floats]
    spread: Floats
    drop: Floats
    decades: Floats
    raw: Floats
    raw_sd: Floats


@dataclass(frozen=True, kw_only=True)
class CutFits:
    """Three forms fitted below each of K cuts of one table.

    Attributes:
        table: the runs (thinned).
        cut_flops_k: compute of the highest run that each fit saw, ascending.
        noise_k: robust sd of ln L around the coupled form below each cut.
    """

    table: RunTable
    cut_flops_k: Floats
    noise_k: Floats
    members: dict[FormName, Members]
    raw_members: Members
    raw_sd: Callable[[Floats, Floats], Floats]

    def ask(self, params_m: Floats, tokens_m: Floats, flops_m: Floats) -> Answers:
        """Return what each cut says of each point.

        Args:
            params_m: N > 0 of each point, shape (M,).
            tokens_m: D > 0.
            flops_m: C > 0, counted as the table's.

        Returns:
            The answers, shape (K, M) each.
        """
        x, y = np.log(params_m)[None, :], np.log(tokens_m)[None, :]
        log_ratio = np.log(flops_m[None, :] / self.cut_flops_k[:, None])
        back = np.maximum(log_ratio, 0.0) / 2
        point = np.zeros(log_ratio.shape)
        edge = np.zeros(log_ratio.shape)
        sources: dict[FormName, Floats] = {}
        for form, weight in FORM_WEIGHTS.items():
            theta = self.members[form].theta_k6
            sources[form] = log_losses(theta, x, y)
            point += weight * sources[form]
            edge += weight * log_losses(theta, x - back, y - back)
        squares = [weight * (sources[form] - point) ** 2 for form, weight in FORM_WEIGHTS.items()]
        return Answers(
            point=point,
            sources=sources,
            spread=np.sqrt(np.sum(squares, axis=0)),
            drop=np.maximum(edge - point, 0.0),
            decades=log_ratio / math.log(10),
            raw=log_losses(self.raw_members.theta_k6, x, y),
            raw_sd=self.raw_sd(x, y),
        )


def fit_cuts(table: RunTable, cut_flops: Floats) -> CutFits:
    """Fit the three forms to the runs at or below each cut.

    Args:
        table: finished runs.
        cut_flops: compute of the highest run to see in each fit, ascending, shape (K,).

    Returns:
        The fits.

    Raises:
        FitError: fewer than five runs below the lowest cut.
    """
    table = thin(table)
    is_fitted = table.flops[None, :] <= cut_flops[:, None] * _ROUND
    fewest = int(is_fitted.sum(1).min())
    if fewest < FEWEST_RUNS:
        raise FitError(f"{fewest} runs are too few to extrapolate from, which takes {FEWEST_RUNS} or more; add runs")
    x, y, log_loss = np.log(table.params), np.log(table.tokens), np.log(table.loss)
    weight = np.where(is_fitted, (table.flops[None, :] / cut_flops[:, None]) ** COMPUTE_WEIGHT, 0.0)
    members: dict[FormName, Members] = {form: fit_members(form, x, y, log_loss, weight) for form in FORM_WEIGHTS}
    raw_members = fit_members("additive", x, y, log_loss, is_fitted.astype(np.float64))
    return CutFits(
        table=table,
        cut_flops_k=cut_flops,
        noise_k=members["coupled"].noise_k,
        members=members,
        raw_members=raw_members,
        raw_sd=prediction_sd(raw_members, x, y, log_loss, is_fitted),
    )


def choose_cuts(table: RunTable, highest: float) -> Floats:
    """Step down from a compute by quarters of a decade while the runs below can carry a fit.

    Args:
        table: finished runs.
        highest: compute of the highest cut.

    Returns:
        Compute of the highest run below each cut, ascending; empty where even the highest cut leaves too little: fewer
        than eight runs of three sizes, less than a factor 4 of compute, or a factor 2 of tokens.
    """
    table = thin(table)
    cuts: list[float] = []
    wanted = highest
    while wanted * _ROUND >= table.flops.min():
        seen = table.flops <= wanted * _ROUND
        if not _carries_fit(table, seen):
            break
        top = float(table.flops[seen].max())
        if not cuts or top < cuts[-1] / _ROUND:
            cuts.append(top)
        wanted /= CUT_STEP
    return np.array(cuts[::-1])


def thin(table: RunTable, most: int = _MOST_RUNS) -> RunTable:
    """Return at most so many of the runs, spread evenly over sizes and tokens."""
    if len(table.loss) <= most:
        return table
    order = np.lexsort((table.tokens, table.params))
    kept = order[np.unique(np.round(np.linspace(0, len(order) - 1, most)).astype(np.int64))]
    return RunTable(
        params=table.params[kept], tokens=table.tokens[kept], flops=table.flops[kept], loss=table.loss[kept]
    )


def _carries_fit(table: RunTable, seen: npt.NDArray[np.bool_]) -> bool:
    if int(seen.sum()) < _FEWEST_BELOW_CUT:
        return False
    flops, tokens = table.flops[seen], table.tokens[seen]
    n_sizes = len(np.unique(np.round(np.log(table.params[seen]), 3)))
    return bool(
        n_sizes >= _FEWEST_SIZES and flops.max() > _LEAST_SPAN * flops.min() and tokens.max() > 2 * tokens.min()
    )
