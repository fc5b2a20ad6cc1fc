"""Profile-likelihood intervals: how far a quantity can be pushed before even the best refit grows clearly worse.

Symbols: q one quantity on its working scale, q^ its estimate; S(q) the least sum over all theta with that q;
z = +-sqrt(2 (S(q) - S(q^)) / deviance scale), which is Student's t where the law holds. The ends are where |z| reaches
t's quantile. Unlike q^ +- t se they follow a valley that bends, and they say when one side has no end.

A refit minimises S + stiffness / 2 (q(theta) - goal)^2. Its minimum has the least S among all theta with its own q, so
that (q, S) is a point of the profile exactly, however soft the pull.
"""

from __future__ import annotations

import numpy as np

from chinchilla_lm.laws.fitting.quantities import Quantities
from chinchilla_lm.laws.fitting.solver import Problem, derivatives, objective
from chinchilla_lm.laws.forms.law import Floats

_PULL = 20.0  # stiffness of the pull over the profile's own curvature: refits land within 5 % of the goal
_ROUNDS = 16  # of moving the goal; two or three suffice where the valley is regular
_CLOSE = 0.03  # of |z|: what is left is interpolated between two points, which is then exact to 1e-3
_STEPS = 40  # of one refit
_ENOUGH = 1e-7  # of the sum: a refit that can gain no more moves |z| by less than 1e-4
_FAR = 30.0  # standard errors; a side whose end lies beyond has none


def profile_ends(
    theta: Floats, problem: Problem, quantities: Quantities, errors_q: Floats, deviance_scale: float, quantile: float
) -> tuple[Floats, Floats]:
    """Find where each quantity's profile reaches the quantile, on the working scales.

    Args:
        theta: the fit, shape (5,).
        problem: of the fit.
        quantities: Q of them.
        errors_q: standard errors, shape (Q,); they set the first guess.
        deviance_scale: of `covariance.Spread`.
        quantile: of |t| at the wanted level, > 0.

    Returns:
        (low, high), each of shape (Q,); -inf and inf where a side has no end.
    """
    count = len(errors_q)
    which_k, side_k = np.tile(np.arange(count), 2), np.repeat([-1.0, 1.0], count)
    error_k = np.maximum(errors_q[which_k], 1e-12)
    estimate_k = quantities.values(theta[None])[0][which_k]
    least = float(objective(theta[None], problem)[0])
    stiffness_k = _PULL * deviance_scale / error_k**2
    theta_k5 = np.tile(theta, (2 * count, 1))
    goal_k = np.full(2 * count, quantile * (1 + 1 / _PULL))  # in standard errors from the estimate
    # The nearest points known on either side of the quantile: goal, offset reached (both in se), z.
    inner, outer = np.zeros((3, 2 * count)), np.full((3, 2 * count), np.inf)
    busy = np.arange(2 * count)
    for _ in range(_ROUNDS):
        pull = (quantities, which_k[busy], (estimate_k + side_k * error_k * goal_k)[busy], stiffness_k[busy])
        theta_k5[busy] = _pulled(theta_k5[busy], problem, pull)
        reached = quantities.values(theta_k5[busy])[np.arange(len(busy)), which_k[busy]]
        rise = np.maximum(objective(theta_k5[busy], problem) - least, 0.0)
        offset = side_k[busy] * (reached - estimate_k[busy]) / error_k[busy]
        point = np.stack([goal_k[busy], offset, np.sqrt(2 * rise / deviance_scale)])
        beyond = point[2] >= quantile
        inner[:, busy[~beyond]], outer[:, busy[beyond]] = point[:, ~beyond], point[:, beyond]
        goal_k[busy] = _next_goal(inner[:, busy], outer[:, busy], quantile)
        done = (np.abs(point[2] - quantile) < _CLOSE * quantile) | (offset > _FAR)
        busy = busy[~done]
        if not len(busy):
            break
    ends = np.where(_is_open(inner, outer, quantile), np.inf, _end(inner, outer, quantile))
    ends = estimate_k + side_k * error_k * ends
    return ends[:count], ends[count:]


def _next_goal(inner: Floats, outer: Floats, quantile: float) -> Floats:
    """Aim between the two points, or beyond the inner one where no point lies beyond the quantile yet."""
    known = np.isfinite(outer[2])
    rise: Floats = np.where(known, outer[2] - inner[2], 1.0)
    share: Floats = np.clip((quantile - inner[2]) / np.where(rise > 0, rise, 1.0), 0.1, 0.9)
    between: Floats = inner[0] + share * (np.where(known, outer[0], 0.0) - inner[0])
    further: Floats = inner[0] * np.clip(1.05 * quantile / np.maximum(inner[2], 1e-9), 1.1, 4.0)
    return np.where(known, between, further)


def _is_open(inner: Floats, outer: Floats, quantile: float) -> np.ndarray:
    """Say which sides were never seen to rise to the quantile, or only beyond every reasonable distance."""
    reached = np.isfinite(outer[2]) | (inner[2] > (1 - _CLOSE) * quantile)
    return ~reached | (inner[1] > _FAR)


def _end(inner: Floats, outer: Floats, quantile: float) -> Floats:
    """Interpolate the offset at z = quantile between the two points; with the inner one alone go on in proportion."""
    known = np.isfinite(outer[2])
    rise: Floats = np.where(known, outer[2] - inner[2], 1.0)
    share: Floats = np.where(rise > 0, (quantile - inner[2]) / np.where(rise > 0, rise, 1.0), 1.0)
    between: Floats = inner[1] + share * (np.where(known, outer[1], 0.0) - inner[1])
    return np.where(known, between, inner[1] * quantile / np.maximum(inner[2], 1e-9))


def _pulled(theta_k5: Floats, problem: Problem, pull: tuple[Quantities, np.ndarray, Floats, Floats]) -> Floats:
    """Minimise S plus each row's pull by damped Gauss-Newton steps."""
    quantities, which_k, goal_k, stiffness_k = pull
    rows = np.arange(len(theta_k5))
    low, high = problem.bounds()
    damping = np.full(len(theta_k5), 1e-6)

    def total(at: Floats) -> Floats:
        gap = quantities.values(at)[rows, which_k] - goal_k
        return np.nan_to_num(objective(at, problem) + 0.5 * stiffness_k * gap**2, nan=np.inf)

    value = total(theta_k5)
    for _ in range(_STEPS):
        gradient, reweighted, hessian = derivatives(theta_k5, problem)
        # Newton where the sum is convex (a few steps), reweighted squares elsewhere (safe, and slow).
        matrix = np.where((np.linalg.eigvalsh(hessian)[:, 0] > 0)[:, None, None], hessian, reweighted)
        slope = quantities.slopes(theta_k5)[rows, which_k]
        gap = quantities.values(theta_k5)[rows, which_k] - goal_k
        gradient = gradient + (stiffness_k * gap)[:, None] * slope
        matrix = matrix + stiffness_k[:, None, None] * slope[:, :, None] * slope[:, None, :]
        held = ((theta_k5 <= low) & (gradient > 0)) | ((theta_k5 >= high) & (gradient < 0)) | (low == high)
        gradient = np.where(held, 0.0, gradient)
        matrix = np.where(held[:, :, None] | held[:, None, :], np.eye(5), matrix)
        scale: Floats = 1 / np.sqrt(np.maximum(np.einsum("kii->ki", matrix), 1e-300))
        unit: Floats = matrix * scale[:, :, None] * scale[:, None, :] + (damping + 1e-13)[:, None, None] * np.eye(5)
        downhill = np.linalg.solve(unit, (scale * gradient)[..., None])[..., 0]
        step = -scale * np.asarray(downhill, dtype=np.float64)
        trial = np.clip(theta_k5 + step, low, high)
        trial_value = total(trial)
        lowers = trial_value < value
        promised = -0.5 * (gradient * step).sum(1)
        theta_k5 = np.where(lowers[:, None], trial, theta_k5)
        value = np.where(lowers, trial_value, value)
        damping = np.where(lowers, np.maximum(damping * 0.1, 1e-12), np.minimum(damping * 10, 1e6))
        if np.all((promised < _ENOUGH * value) | (damping > 1e3)):
            break
    return theta_k5
