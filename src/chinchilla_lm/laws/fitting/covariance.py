"""How far a fit's theta may be from the truth, from the curvature of its sum: the delta method.

Symbols: K fits, n runs, p constants; J = dr/dtheta; psi the clipped residuals and psi' the share of runs within delta.
Cov(theta) = k^2 [sum psi^2 / (n - p)] / (mean psi')^2 (J^T W J)^-1, with k = 1 + p/n var(psi') / (mean psi')^2
(Huber 1981, section 7.6); for least squares that is the textbook's s^2 (J^T J)^-1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from chinchilla_lm.laws.fitting.solver import Problem, derivatives, log_loss_shares
from chinchilla_lm.laws.forms.law import Floats


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The sampling spread of K fits.

    Attributes:
        covariance_k55: of theta; 0 where theta is held.
        deviance_scale_k: what 2 (S - least S) of a constrained refit is divided by to be F(1, n - p)
            (Schrader and Hettmansperger 1980).
        inside_k: share of the runs within delta; the formulas are poor where it is near 0.
        leverage_kn: how much each run pulls its own prediction, in [0, 1].
        degrees: n - p.
    """

    covariance_k55: Floats
    deviance_scale_k: Floats
    inside_k: Floats
    leverage_kn: Floats
    degrees: int


def spread_of(theta_k5: Floats, problem: Problem) -> Spread:
    """Estimate the sampling spread of fits at their minima.

    Args:
        theta_k5: minima, shape (K, 5).
        problem: of the K fits, or the one that all share.

    Returns:
        The spread. A prior narrows it.
    """
    log_loss, shares = log_loss_shares(theta_k5, problem)
    residual = log_loss - problem.l_kn
    weight = np.broadcast_to(problem.weight_kn, residual.shape)
    count = len(problem.x_n)
    free = [0, 1, 3, 4] if problem.held_floor is not None else [0, 1, 2, 3, 4]
    degrees = max(count - len(free), 1)
    inside_k: Floats = (weight * (np.abs(residual) <= problem.delta)).sum(1) / weight.sum(1)
    share = np.maximum(inside_k, 1 / count)
    inflation = 1 + len(free) / count * (1 - share) / share
    square_k = (weight * np.clip(residual, -problem.delta, problem.delta) ** 2).sum(1) / degrees
    scale_k = inflation**2 * square_k / share
    # With an endless delta the reweighted matrix is J^T W J plus the prior; the prior is in units of S.
    _, information, _ = derivatives(theta_k5, replace(problem, delta=np.inf))
    prior: Floats = np.diag(problem.prior_precision)
    information = (information - prior + prior / share[:, None, None])[:, free][:, :, free]
    root: Floats = np.sqrt(np.maximum(np.einsum("kii->ki", information), 1e-300))
    unit = information / root[:, :, None] / root[:, None, :] + 1e-14 * np.eye(len(free))
    inverse: Floats = np.linalg.inv(unit) / root[:, :, None] / root[:, None, :]
    covariance = np.zeros((len(theta_k5), 5, 5))
    for row, place in enumerate(free):
        covariance[:, place, free] = inverse[:, row] * (scale_k / share)[:, None]
    slopes = np.stack([*shares, -shares[0] * problem.x_n, -shares[1] * problem.y_n], axis=1)[:, free]
    leverage: Floats = weight * np.einsum("kin,kij,kjn->kn", slopes, inverse, slopes)
    return Spread(
        covariance_k55=covariance,
        deviance_scale_k=scale_k,
        inside_k=inside_k,
        leverage_kn=np.clip(leverage, 0.0, 1.0),
        degrees=degrees,
    )


def standard_errors(slopes_kq5: Floats, spread: Spread) -> Floats:
    """Return the standard error of each quantity on its working scale, shape (K, Q)."""
    variance: Floats = np.einsum("kqi,kij,kqj->kq", slopes_kq5, spread.covariance_k55, slopes_kq5)
    return np.sqrt(np.maximum(variance, 0.0))
