"""Bootstraps: the same runs drawn anew, and the law refitted to each draw, all at once.

Symbols: K draws, n runs, r residuals in ln L. "pairs" draws runs with replacement; "cluster" draws whole groups of
runs, such as the checkpoints of one run or the runs of one size, whose errors go together; "wild" keeps the runs and
multiplies each residual (of a cluster: all of them) by a random weight, which keeps unequal noise where it is;
"residual" draws residuals anywhere; "parametric" draws Gaussian noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from chinchilla_lm.core.errors import FitError
from chinchilla_lm.laws.fitting.covariance import Spread
from chinchilla_lm.laws.fitting.solver import Problem, log_loss_shares, refit
from chinchilla_lm.laws.forms.law import Floats

Scheme = Literal["pairs", "cluster", "wild", "residual", "parametric"]

# Six points with mean 0 and variance 1: with few clusters two points would repeat the same draws (Webb 2014).
_WEBB = np.array([-math.sqrt(1.5), -1.0, -math.sqrt(0.5), math.sqrt(0.5), 1.0, math.sqrt(1.5)])


@dataclass(frozen=True, kw_only=True)
class Resampling:
    """How runs are drawn anew.

    Attributes:
        scheme: one of the module's five.
        draws: K, > 1.
        seed: of the drawing.
        clusters: a label for each run, for "cluster", and for "wild" where residuals go together.
    """

    scheme: Scheme = "pairs"
    draws: int = 1000
    seed: int = 0
    clusters: Sequence[int | str] | None = None


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """The refits.

    Attributes:
        theta_k5: of each draw.
        weight_kn: how often each draw counts each run, or None where it counts all once.
        loss_kn: the losses of each draw, or None where they are the runs' own.
    """

    theta_k5: Floats
    weight_kn: Floats | None
    loss_kn: Floats | None


def draw_refits(theta: Floats, problem: Problem, spread: Spread, resampling: Resampling) -> Drawn:
    """Draw the runs anew and refit.

    Args:
        theta: the fit, shape (5,).
        problem: of the fit.
        spread: of the fit; its leverages undo that residuals are smaller than errors.
        resampling: how.

    Returns:
        The refits.

    Raises:
        FitError: an unknown scheme, fewer than two draws, or clusters that are missing or too few.
    """
    count = len(problem.x_n)
    groups = _checked_groups(resampling, count)
    rng = np.random.default_rng(resampling.seed)
    draws = resampling.draws
    if resampling.scheme in ("pairs", "cluster"):
        n_groups = int(groups.max()) + 1
        chosen = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=draws)
        weight_kn = chosen[:, groups].astype(np.float64)
        return Drawn(theta_k5=refit(theta, problem, weight_kn=weight_kn), weight_kn=weight_kn, loss_kn=None)
    log_law = log_loss_shares(theta[None], problem)[0][0]
    residual = problem.l_kn.reshape(-1) - log_law
    if resampling.scheme == "wild":
        errors = residual / (1 - np.minimum(spread.leverage_kn[0], 0.9))  # as HC3: MacKinnon and White 1985
        noise = errors * rng.choice(_WEBB, size=(draws, int(groups.max()) + 1))[:, groups]
    else:
        errors = residual / np.sqrt(1 - np.minimum(spread.leverage_kn[0], 0.9))
        errors = errors - errors.mean()
        noise = rng.choice(errors, size=(draws, count))
        if resampling.scheme == "parametric":
            sd = math.sqrt(float((residual**2).sum()) / spread.degrees)
            noise = rng.normal(0.0, sd, size=(draws, count))
    loss_kn = np.exp(log_law + noise)
    return Drawn(theta_k5=refit(theta, problem, loss_kn=loss_kn), weight_kn=None, loss_kn=loss_kn)


def _checked_groups(resampling: Resampling, count: int) -> np.ndarray:
    """Return the group of each run, counted from 0; each run its own where none are given."""
    if resampling.scheme not in get_args(Scheme):
        raise FitError(f"scheme {resampling.scheme!r} is unknown; choose from {', '.join(get_args(Scheme))}")
    if resampling.draws < 2:
        raise FitError(f"draws={resampling.draws} say nothing; take 200 or more")
    if resampling.clusters is None or resampling.scheme in ("pairs", "residual", "parametric"):
        if resampling.scheme == "cluster":
            raise FitError('scheme "cluster" needs a label for each run; give clusters, or take scheme "pairs"')
        return np.arange(count)
    labels = list(resampling.clusters)
    if len(labels) != count:
        raise FitError(f"{len(labels)} cluster labels for {count} runs; give one label a run")
    groups = np.unique(np.array([str(label) for label in labels]), return_inverse=True)[1]
    if resampling.scheme == "cluster" and groups.max() + 1 < 6:
        raise FitError(f'{groups.max() + 1} clusters are too few to draw five constants from; take scheme "wild"')
    return groups
