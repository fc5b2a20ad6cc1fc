"""Many small Huber fits of the additive law at once: the arithmetic under `fit`.

Symbols: K fits (starts or resamples), n runs; x = ln N - mean, y = ln D - mean, l = ln L;
theta = (a, b, e, alpha, beta) with L = exp(a - alpha x) + exp(b - beta y) + exp(e); r = ln L(theta) - l.
Minimised is S = sum_i w_i Huber_delta(r_i) + 1/2 sum_j precision_j (theta_j - mean_j)^2.
Centring x and y takes the condition number of the problem from 1e11 (raw constants) to about 1e3.
It knows nothing of files, statuses or intervals, and never draws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from chinchilla_lm.laws.forms.additive import AdditiveLaw
from chinchilla_lm.laws.forms.law import Floats

# The box of theta. Outside it a term is nothing (below 1e-4 of a loss) or the exponent means nothing: published
# exponents lie in [.05, .6] (LAWS table: Kaplan .076, Besiroglu .37). A fit that ends on the box says so (`at_bound`).
EXPONENT_RANGE = (0.005, 3.0)
TERM_FLOOR = 1e-4
_MAX_STEPS = 300
# Resamples start beside their end and are only counted: 1e-6 of the scale of the gradient moves an exponent by 1e-5.
_RESAMPLE_STEPS, _RESAMPLE_TOLERANCE = 100, 1e-6
_CHUNK = 256  # resamples solved at once: 256 x 240 runs x 5 doubles is 2.5 MB


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Runs in centred logs, and what is minimised over them.

    Attributes:
        x_n: ln N minus its mean.
        y_n: ln D minus its mean.
        l_kn: ln L, shape (n,) or (K, n).
        weight_kn: how often each run counts, shape (1, n) or (K, n).
        delta: where the Huber loss turns from square to straight, in ln L, > 0.
        prior_mean: of theta, shape (5,).
        prior_precision: of theta in units of S, shape (5,); 0 where there is no prior.
    """

    x_n: Floats
    y_n: Floats
    l_kn: Floats
    weight_kn: Floats
    delta: float
    prior_mean: Floats
    prior_precision: Floats

    def bounds(self) -> tuple[Floats, Floats]:
        """Return the lowest and the highest theta, each of shape (5,)."""
        floor, ceiling = float(self.l_kn.min()), float(self.l_kn.max())
        nothing = floor + np.log(TERM_FLOOR)
        low = np.array([nothing, nothing, nothing, EXPONENT_RANGE[0], EXPONENT_RANGE[0]])
        high = np.array([ceiling, ceiling, ceiling, EXPONENT_RANGE[1], EXPONENT_RANGE[1]])
        return low, high


@dataclass(frozen=True, kw_only=True)
class Solution:
    """Where K fits ended.

    Attributes:
        theta_k5: the parameters.
        objective_k: S, prior included.
        gradient_k: the largest absolute component of the gradient along directions that the box leaves free.
        at_bound_k5: which parameters sit on the box.
        hessian_k55: the exact second derivatives of S.
    """

    theta_k5: Floats
    objective_k: Floats
    gradient_k: Floats
    at_bound_k5: np.ndarray
    hessian_k55: Floats


def screen(problem: Problem, keep: int = 5) -> Floats:
    """Find good starts: for each (alpha, beta) of a grid the best (E, A, B) solves a linear problem.

    Args:
        problem: one problem (K = 1).
        keep: how many starts to return, > 0.

    Returns:
        theta of the best starts, shape (keep, 5), best first.

    Source: variable projection, Golub and Pereyra 1973; for this law Czech et al. 2026 (arXiv 2603.22339).
    Differs: relative residuals (weights 1/L^2) stand in for the Huber loss of logs, which then ranks the starts.
    """
    grid = np.geomspace(0.03, 1.5, 28)  # .03 to 1.5 holds every published exponent with a factor 2 to spare
    alpha_g, beta_g = (axis.ravel() for axis in np.meshgrid(grid, grid, indexing="ij"))
    columns = [np.exp(-alpha_g[:, None] * problem.x_n), np.exp(-beta_g[:, None] * problem.y_n)]
    inverse_loss = np.exp(-problem.l_kn.reshape(1, -1))
    design_gn3 = np.stack([*columns, np.ones_like(columns[0])], axis=-1) * inverse_loss[..., None]
    weight = np.broadcast_to(problem.weight_kn.reshape(1, -1), inverse_loss.shape)
    gram: Floats = np.einsum("gni,gnj->gij", design_gn3 * weight[..., None], design_gn3)
    moment: Floats = np.einsum("gni,gn->gi", design_gn3, np.broadcast_to(weight, design_gn3.shape[:2]))
    ridge: Floats = 1e-12 * np.einsum("gii->gi", gram).sum(1)
    terms_g3 = np.linalg.solve(gram + ridge[:, None, None] * np.eye(3), moment[..., None])[..., 0]
    smallest = 0.02 * float(np.exp(problem.l_kn.min()))  # a negative term restarts at 2 % of the loss
    terms_g3 = np.log(np.maximum(terms_g3, smallest))
    theta_g5 = np.column_stack([terms_g3, alpha_g, beta_g])
    low, high = problem.bounds()
    theta_g5 = np.clip(theta_g5, low, high)
    order = np.argsort(objective(theta_g5, problem))
    return theta_g5[order[:keep]]


def minimise(theta_k5: Floats, problem: Problem, *, most_steps: int = _MAX_STEPS, tolerance: float = 1e-9) -> Solution:
    """Walk each start to its minimum.

    Each step tries a Levenberg-Marquardt step on the reweighted squares (safe far away: the square majorises Huber) and
    a Newton step with the exact second derivatives (fast nearby), and takes the better. A start stops when its gradient
    is below tolerance * delta * (sum of weights), or when no step at any damping lowers S (the limit of doubles).

    Args:
        theta_k5: starts, shape (K, 5).
        problem: what to minimise.
        most_steps: where a start is left as it is, > 0.
        tolerance: of the gradient, relative to its largest possible value.

    Returns:
        The ends, in the order of the starts.
    """
    low, high = problem.bounds()
    theta = np.clip(theta_k5, low, high)
    objective_k = objective(theta, problem)
    damping = np.full(len(theta), 1e-3)
    smallest_k = tolerance * problem.delta * np.broadcast_to(problem.weight_kn.sum(1), len(theta))
    active = np.arange(len(theta))
    for _ in range(most_steps):
        part = _rows(problem, active)
        gradient, reweighted, hessian = derivatives(theta[active], part)
        gradient, fixed = _free(gradient, theta[active], low, high)
        busy = (np.abs(gradient).max(1) > smallest_k[active]) & (damping[active] < 1e9)
        if not busy.any():
            break
        gradient, reweighted, hessian, fixed = gradient[busy], reweighted[busy], hessian[busy], fixed[busy]
        active = active[busy]
        part = _rows(problem, active)
        steps = _trial_steps(gradient, _pin(reweighted, fixed), _pin(hessian, fixed), damping[active])
        trials = [np.clip(theta[active] + step, low, high) for step in steps]
        values = np.stack([objective(trial, part) for trial in trials])
        values = np.where(np.isfinite(values), values, np.inf)
        best = values.argmin(0)
        columns = np.arange(len(active))
        lowers = values[best, columns] < objective_k[active]
        damping[active] = np.where(
            values[0] < objective_k[active], np.maximum(damping[active] * 0.3, 1e-12), damping[active] * 4
        )
        chosen = np.stack(trials)[best, columns]
        theta[active] = np.where(lowers[:, None], chosen, theta[active])
        objective_k[active] = np.where(lowers, values[best, columns], objective_k[active])
    gradient, _, hessian = derivatives(theta, problem)
    gradient, _ = _free(gradient, theta, low, high)
    return Solution(
        theta_k5=theta,
        objective_k=objective_k,
        gradient_k=np.abs(gradient).max(1),
        at_bound_k5=(theta <= low) | (theta >= high),
        hessian_k55=hessian,
    )


def refit(theta: Floats, problem: Problem, *, weight_kn: Floats | None = None, loss_kn: Floats | None = None) -> Floats:
    """Fit K resamples, each from one warm start.

    Args:
        theta: the start, shape (5,), centred on the problem's runs.
        problem: the fit whose resamples these are.
        weight_kn: how often each run counts in each resample (pairs bootstrap), or None.
        loss_kn: the losses of each resample (residual bootstrap), or None.

    Returns:
        theta of each resample, shape (K, 5).
    """
    resamples = problem
    if loss_kn is not None:
        resamples = replace(resamples, l_kn=np.log(loss_kn))
    if weight_kn is not None:
        resamples = replace(resamples, weight_kn=weight_kn)
    count = max(len(resamples.weight_kn), len(resamples.l_kn) if resamples.l_kn.ndim == 2 else 1)
    ends: list[Floats] = []
    for first in range(0, count, _CHUNK):
        rows = np.arange(first, min(first + _CHUNK, count))
        starts = np.tile(theta, (len(rows), 1))
        part = _rows(resamples, rows)
        ends.append(minimise(starts, part, most_steps=_RESAMPLE_STEPS, tolerance=_RESAMPLE_TOLERANCE).theta_k5)
    return np.concatenate(ends)


def centred_problem(params: Floats, tokens: Floats, loss: Floats, *, delta: float) -> Problem:
    """Return the problem of some runs: centred logs, one weight a run, no prior.

    Args:
        params: N > 0 of each run.
        tokens: D > 0 of each run.
        loss: L > 0 of each run.
        delta: of the Huber loss, in ln L.

    Returns:
        The problem.
    """
    x, y = np.log(params), np.log(tokens)
    return Problem(
        x_n=x - x.mean(),
        y_n=y - y.mean(),
        l_kn=np.log(loss),
        weight_kn=np.ones((1, len(x))),
        delta=delta,
        prior_mean=np.zeros(5),
        prior_precision=np.zeros(5),
    )


def natural_constants(theta_k5: Floats, params: Floats, tokens: Floats) -> Floats:
    """Turn the solver's theta into (E, A, B, alpha, beta), shape (K, 5), undoing the centring on these runs."""
    x_mean, y_mean = float(np.log(params).mean()), float(np.log(tokens).mean())
    a, b, e, alpha, beta = theta_k5.T
    return np.column_stack([np.exp(e), np.exp(a + alpha * x_mean), np.exp(b + beta * y_mean), alpha, beta])


def centred_theta(law: AdditiveLaw, params: Floats, tokens: Floats) -> Floats:
    """Turn a law into the solver's theta, shape (5,), centred on these runs; the inverse of `natural_constants`."""
    x_mean, y_mean = float(np.log(params).mean()), float(np.log(tokens).mean())
    a, b = math.log(law.A) - law.alpha * x_mean, math.log(law.B) - law.beta * y_mean
    return np.array([a, b, math.log(law.E), law.alpha, law.beta])


def objective(theta_k5: Floats, problem: Problem) -> Floats:
    """Return S of each theta, shape (K,)."""
    log_loss, _ = _log_loss(theta_k5, problem)
    residual = log_loss - problem.l_kn
    size = np.abs(residual)
    huber = np.where(size <= problem.delta, 0.5 * residual**2, problem.delta * (size - 0.5 * problem.delta))
    penalty = 0.5 * ((theta_k5 - problem.prior_mean) ** 2 * problem.prior_precision).sum(1)
    return (problem.weight_kn * huber).sum(1) + penalty


def derivatives(theta_k5: Floats, problem: Problem) -> tuple[Floats, Floats, Floats]:
    """Return the gradient (K, 5), the reweighted Gauss-Newton matrix (K, 5, 5) and the Hessian (K, 5, 5) of S.

    With shares s of the three terms in L: dr/dtheta = (s1, s2, s3, -s1 x, -s2 y).
    """
    log_loss, shares = _log_loss(theta_k5, problem)
    residual = log_loss - problem.l_kn
    size = np.abs(residual)
    pull = problem.weight_kn * np.clip(residual, -problem.delta, problem.delta)
    x, y = problem.x_n, problem.y_n
    jacobian = np.stack([shares[0], shares[1], shares[2], -shares[0] * x, -shares[1] * y], axis=-1)
    gradient = np.einsum("kn,kni->ki", pull, jacobian) + (theta_k5 - problem.prior_mean) * problem.prior_precision
    reweight = problem.weight_kn * np.where(size <= problem.delta, 1.0, problem.delta / np.maximum(size, 1e-300))
    reweighted = (jacobian * reweight[..., None]).swapaxes(1, 2) @ jacobian
    # Second derivatives: Huber'' J J^T + Huber' (sum_t s_t u_t u_t^T - J J^T), u_t the gradient of term t's exponent.
    curvature = problem.weight_kn * (size <= problem.delta) - pull
    hessian = (jacobian * curvature[..., None]).swapaxes(1, 2) @ jacobian
    for term, exponent, axis in ((0, 3, x), (1, 4, y)):
        pulled = pull * shares[term]
        hessian[:, term, term] += pulled.sum(1)
        cross = -(pulled * axis).sum(1)
        hessian[:, term, exponent] += cross
        hessian[:, exponent, term] += cross
        hessian[:, exponent, exponent] += (pulled * axis**2).sum(1)
    hessian[:, 2, 2] += (pull * shares[2]).sum(1)
    diagonal = np.arange(5)
    reweighted[:, diagonal, diagonal] += problem.prior_precision
    hessian[:, diagonal, diagonal] += problem.prior_precision
    return gradient, reweighted, hessian


def _log_loss(theta_k5: Floats, problem: Problem) -> tuple[Floats, Floats]:
    """Return ln L (K, n) and the terms' shares of L (3, K, n)."""
    size_term = theta_k5[:, 0:1] - theta_k5[:, 3:4] * problem.x_n
    data_term = theta_k5[:, 1:2] - theta_k5[:, 4:5] * problem.y_n
    floor_term = np.broadcast_to(theta_k5[:, 2:3], size_term.shape)
    terms = np.stack([size_term, data_term, floor_term])
    top = terms.max(0)
    powers = np.exp(terms - top)
    total = powers.sum(0)
    return top + np.log(total), powers / total


def _trial_steps(gradient: Floats, reweighted: Floats, hessian: Floats, damping: Floats) -> list[Floats]:
    """Return the Levenberg-Marquardt step, and the Newton step at three lengths."""
    diagonal: Floats = np.maximum(np.einsum("kii->ki", reweighted), 1e-300)
    scale = 1 / np.sqrt(diagonal)
    scaled_gradient = (scale * gradient)[..., None]
    damped: Floats = reweighted * scale[:, :, None] * scale[:, None, :] + (damping + 1e-14)[:, None, None] * np.eye(5)
    safe = -scale * np.linalg.solve(damped, scaled_gradient)[..., 0]
    values, vectors = np.linalg.eigh(hessian * scale[:, :, None] * scale[:, None, :])
    values = np.maximum(np.abs(values), 1e-12)  # a saddle is left downhill (Dauphin et al. 2014)
    newton = -scale * (vectors @ ((vectors.swapaxes(1, 2) @ scaled_gradient) / values[..., None]))[..., 0]
    return [safe, newton, 0.3 * newton, 0.1 * newton]


def _free(gradient: Floats, theta: Floats, low: Floats, high: Floats) -> tuple[Floats, np.ndarray]:
    """Zero the gradient of parameters that the box holds, and say which those are."""
    fixed = ((theta <= low) & (gradient > 0)) | ((theta >= high) & (gradient < 0))
    return np.where(fixed, 0.0, gradient), fixed


def _pin(matrix: Floats, fixed: np.ndarray) -> Floats:
    """Cut the rows and columns of held parameters out of a matrix, so that the others step without them."""
    either = fixed[:, :, None] | fixed[:, None, :]
    return np.where(either, np.eye(5), matrix)


def _rows(problem: Problem, active: np.ndarray) -> Problem:
    """Return the problem of some of the K fits; what all K share stays shared."""
    many_losses, many_weights = problem.l_kn.ndim == 2, len(problem.weight_kn) > 1
    if not (many_losses or many_weights):
        return problem
    return replace(
        problem,
        l_kn=problem.l_kn[active] if many_losses else problem.l_kn,
        weight_kn=problem.weight_kn[active] if many_weights else problem.weight_kn,
    )
