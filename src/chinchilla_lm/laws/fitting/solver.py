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

from chinchilla_lm.laws.fitting.noise import huber
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
_GRID = np.geomspace(0.03, 1.5, 28)  # exponents screened: every published one, with a factor 2 to spare
_LOW_VALLEY = 4.0  # a second valley of the screened grid is worth a start up to this multiple of the lowest value
_GOOD_STEP = 0.3  # a Newton step that gains this share of what its parabola promises is taken without trying others


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
        held_floor: e = ln E where E is given, else None.
    """

    x_n: Floats
    y_n: Floats
    l_kn: Floats
    weight_kn: Floats
    delta: float
    prior_mean: Floats
    prior_precision: Floats
    held_floor: float | None = None

    def bounds(self) -> tuple[Floats, Floats]:
        """Return the lowest and the highest theta, each of shape (5,)."""
        floor, ceiling = float(self.l_kn.min()), float(self.l_kn.max())
        nothing = floor + np.log(TERM_FLOOR)
        low = np.array([nothing, nothing, nothing, EXPONENT_RANGE[0], EXPONENT_RANGE[0]])
        high = np.array([ceiling, ceiling, ceiling, EXPONENT_RANGE[1], EXPONENT_RANGE[1]])
        if self.held_floor is not None:
            low[2] = high[2] = self.held_floor
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
    size_gn, tokens_gn = np.exp(-_GRID[:, None] * problem.x_n), np.exp(-_GRID[:, None] * problem.y_n)
    log_loss = problem.l_kn.reshape(-1)
    weight = problem.weight_kn.reshape(-1)
    terms_g3 = _screened_terms(size_gn, tokens_gn, np.exp(-log_loss), weight)
    smallest = 0.02 * float(np.exp(log_loss.min()))  # a negative term restarts at 2 % of the loss
    alpha_g, beta_g = (axis.ravel() for axis in np.meshgrid(_GRID, _GRID, indexing="ij"))
    low, high = problem.bounds()
    theta_g5 = np.column_stack([np.log(np.maximum(terms_g3, smallest)), alpha_g, beta_g])
    theta_g5 = np.clip(theta_g5, low, high)
    size_term, data_term, floor = np.exp(theta_g5[:, :3].T)
    rows, columns = np.divmod(np.arange(len(alpha_g)), len(_GRID))
    predicted = size_term[:, None] * size_gn[rows]
    predicted += data_term[:, None] * tokens_gn[columns]
    predicted += floor[:, None]
    value_g = huber(np.log(predicted) - log_loss, problem.delta) @ weight + _penalty(theta_g5, problem)
    return theta_g5[_valleys_first(value_g)[:keep]]


def minimise(theta_k5: Floats, problem: Problem, *, most_steps: int = _MAX_STEPS, tolerance: float = 1e-9) -> Solution:
    """Walk each start to its minimum.

    Each step tries a Newton step with the exact second derivatives; where it gains too little it also tries a
    Levenberg-Marquardt step on the reweighted squares (safe far away: the square majorises Huber) and shorter Newton
    steps, and takes the best. A start stops when its gradient is below tolerance * delta * (sum of weights), or when no
    step at any damping lowers S (the limit of doubles).

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
    damping = np.full(len(theta), 1e-3)
    smallest_k = tolerance * problem.delta * np.broadcast_to(problem.weight_kn.sum(1), len(theta))
    active = np.arange(len(theta))
    part = problem
    objective_k = objective(theta, problem)
    for _ in range(most_steps):
        gradient, reweighted, hessian = derivatives(theta[active], part)
        gradient, fixed = _free(gradient, theta[active], low, high)
        busy = (np.abs(gradient).max(1) > smallest_k[active]) & (damping[active] < 1e9)
        if not busy.any():
            break
        if not busy.all():
            gradient, reweighted, hessian, fixed = gradient[busy], reweighted[busy], hessian[busy], fixed[busy]
            active = active[busy]
            part = _rows(problem, active)
        if fixed.any():
            reweighted, hessian = _pin(reweighted, fixed), _pin(hessian, fixed)
        theta[active], objective_k[active], damping[active] = _step(
            theta[active], objective_k[active], damping[active], (gradient, reweighted, hessian), part
        )
    gradient, _, hessian = derivatives(theta, problem)
    return Solution(
        theta_k5=theta,
        objective_k=objective_k,
        gradient_k=np.abs(_free(gradient, theta, low, high)[0]).max(1),
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
    residual = log_loss_shares(theta_k5, problem)[0] - problem.l_kn
    misfit = huber(residual, problem.delta)
    if len(problem.weight_kn) == 1:
        return misfit @ problem.weight_kn[0] + _penalty(theta_k5, problem)
    return np.einsum("kn,kn->k", problem.weight_kn, misfit) + _penalty(theta_k5, problem)


def derivatives(theta_k5: Floats, problem: Problem) -> tuple[Floats, Floats, Floats]:
    """Return the gradient (K, 5), the reweighted Gauss-Newton matrix (K, 5, 5) and the Hessian (K, 5, 5) of S.

    With shares s of the three terms in L: dr/dtheta = (s1, s2, s3, -s1 x, -s2 y).
    """
    log_loss, shares_3kn = log_loss_shares(theta_k5, problem)
    residual = log_loss - problem.l_kn
    delta, weight, x, y = problem.delta, problem.weight_kn, problem.x_n, problem.y_n
    clipped = np.clip(residual, -delta, delta)
    pull = weight * clipped
    jacobian = np.empty((len(theta_k5), 5, len(x)))
    jacobian[:, :3] = shares_3kn.swapaxes(0, 1)
    np.multiply(shares_3kn[0], -x, out=jacobian[:, 3])
    np.multiply(shares_3kn[1], -y, out=jacobian[:, 4])
    across = jacobian.swapaxes(1, 2)
    gradient = (jacobian @ pull[..., None])[..., 0] + (theta_k5 - problem.prior_mean) * problem.prior_precision
    inside = clipped == residual
    # Huber's weight: 1 inside, delta / |r| outside, where the clipped residual is +-delta.
    reweight = weight * np.divide(clipped, residual, out=np.ones_like(residual), where=~inside)
    reweighted = (jacobian * reweight[:, None, :]) @ across
    # Second derivatives: Huber'' J J^T + Huber' (sum_t s_t u_t u_t^T - J J^T), u_t the gradient of term t's exponent.
    hessian = (jacobian * (weight * inside - pull)[:, None, :]) @ across
    for term, exponent, axis in ((0, 3, x), (1, 4, y)):
        pulled = pull * shares_3kn[term]
        hessian[:, term, term] += pulled.sum(1)
        cross = pulled @ -axis
        hessian[:, term, exponent] += cross
        hessian[:, exponent, term] += cross
        hessian[:, exponent, exponent] += pulled @ axis**2
    hessian[:, 2, 2] += np.einsum("kn,kn->k", pull, shares_3kn[2])
    diagonal = np.arange(5)
    reweighted[:, diagonal, diagonal] += problem.prior_precision
    hessian[:, diagonal, diagonal] += problem.prior_precision
    return gradient, reweighted, hessian


def log_loss_shares(theta_k5: Floats, problem: Problem) -> tuple[Floats, Floats]:
    """Return ln L (K, n) and the shares of the size, data and floor terms in L (3, K, n).

    Within the box no term exceeds another by more than about e^60: no maximum need be taken out.
    """
    a, b, e, alpha, beta = (column[:, None] for column in theta_k5.T)
    shares = np.empty((3, len(theta_k5), len(problem.x_n)))
    np.exp(a - e - alpha * problem.x_n, out=shares[0])
    np.exp(b - e - beta * problem.y_n, out=shares[1])
    total = shares[0] + shares[1]
    total += 1.0
    np.divide(1.0, total, out=shares[2])
    shares[:2] *= shares[2]
    return e + np.log(total), shares


def _screened_terms(size_gn: Floats, tokens_gn: Floats, inverse_loss: Floats, weight: Floats) -> Floats:
    """Solve the weighted least squares of (A, B, E) for every pair of exponents from shared sums, shape (G * G, 3)."""
    count = len(size_gn)
    square = weight * inverse_loss**2
    gram: Floats = np.empty((count, count, 3, 3))
    moment: Floats = np.empty((count, count, 3))
    gram[..., 0, 0] = (size_gn**2 @ square)[:, None]
    gram[..., 1, 1] = tokens_gn**2 @ square
    gram[..., 2, 2] = square.sum()
    gram[..., 0, 1] = gram[..., 1, 0] = (size_gn * square) @ tokens_gn.T
    gram[..., 0, 2] = gram[..., 2, 0] = (size_gn @ square)[:, None]
    gram[..., 1, 2] = gram[..., 2, 1] = tokens_gn @ square
    moment[..., 0] = (size_gn @ (weight * inverse_loss))[:, None]
    moment[..., 1] = tokens_gn @ (weight * inverse_loss)
    moment[..., 2] = weight @ inverse_loss
    ridge = 1e-12 * np.trace(gram, axis1=2, axis2=3)
    gram += ridge[..., None, None] * np.eye(3)
    flat_gram: Floats = gram.reshape((-1, 3, 3))
    flat_moment: Floats = moment.reshape((-1, 3, 1))
    return np.asarray(np.linalg.solve(flat_gram, flat_moment)[..., 0], dtype=np.float64)


def _valleys_first(value_g: Floats) -> np.ndarray:
    """Order the grid by value, its low local minima before all others, so that starts lie in different valleys."""
    count = len(_GRID)
    around = np.pad(value_g.reshape(count, count), 1, constant_values=np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(around, (3, 3))
    is_valley = (windows.min((2, 3)).ravel() == value_g) & (value_g <= _LOW_VALLEY * value_g.min())
    return np.lexsort((value_g, ~is_valley))


def _step(
    theta: Floats, objective_k: Floats, damping: Floats, slopes: tuple[Floats, Floats, Floats], part: Problem
) -> tuple[Floats, Floats, Floats]:
    """Take one step of each fit; `slopes` are the gradient and the two matrices. Return theta, S and the damping."""
    gradient, reweighted, hessian = slopes
    low, high = part.bounds()
    newton = _newton_steps(gradient, reweighted, hessian)
    trial = np.clip(theta + newton, low, high)
    value = np.nan_to_num(objective(trial, part), nan=np.inf)
    promised = -0.5 * (gradient * newton).sum(1)
    good = value < objective_k - _GOOD_STEP * promised
    if good.all():
        return trial, value, np.maximum(damping * 0.3, 1e-12)
    poor = np.flatnonzero(~good)
    rest = _rows(part, poor)
    safe = _damped_steps(gradient[poor], reweighted[poor], damping[poor])
    others = [np.clip(theta[poor] + step, low, high) for step in (safe, 0.3 * newton[poor], 0.1 * newton[poor])]
    values = np.stack([value[poor], *(np.nan_to_num(objective(other, rest), nan=np.inf) for other in others)])
    best, columns = values.argmin(0), np.arange(len(poor))
    lowest = values[best, columns]
    lowers = lowest < objective_k[poor]
    chosen = np.stack([trial[poor], *others])[best, columns]
    trial[poor] = np.where(lowers[:, None], chosen, theta[poor])
    value[poor] = np.where(lowers, lowest, objective_k[poor])
    factor = np.full(len(theta), 0.3)
    factor[poor] = np.where(values[1] < objective_k[poor], 0.3, 4.0)
    return trial, value, np.maximum(damping * factor, 1e-12)


def _newton_steps(gradient: Floats, reweighted: Floats, hessian: Floats) -> Floats:
    scale, scaled_gradient = _scaled(gradient, reweighted)
    values, vectors = np.linalg.eigh(hessian * scale[:, :, None] * scale[:, None, :])
    values = np.maximum(np.abs(values), 1e-12)  # a saddle is left downhill (Dauphin et al. 2014)
    return -scale * (vectors @ ((vectors.swapaxes(1, 2) @ scaled_gradient) / values[..., None]))[..., 0]


def _damped_steps(gradient: Floats, reweighted: Floats, damping: Floats) -> Floats:
    scale, scaled_gradient = _scaled(gradient, reweighted)
    damped: Floats = reweighted * scale[:, :, None] * scale[:, None, :] + (damping + 1e-14)[:, None, None] * np.eye(5)
    return -scale * np.linalg.solve(damped, scaled_gradient)[..., 0]


def _scaled(gradient: Floats, reweighted: Floats) -> tuple[Floats, Floats]:
    """Return the scale (K, 5) that gives the reweighted matrix a unit diagonal, and the gradient (K, 5, 1) in it."""
    diagonal: Floats = np.maximum(np.einsum("kii->ki", reweighted), 1e-300)
    scale = 1 / np.sqrt(diagonal)
    return scale, (scale * gradient)[..., None]


def _penalty(theta_k5: Floats, problem: Problem) -> Floats:
    return 0.5 * ((theta_k5 - problem.prior_mean) ** 2 @ problem.prior_precision)


def _free(gradient: Floats, theta: Floats, low: Floats, high: Floats) -> tuple[Floats, np.ndarray]:
    """Zero the gradient of parameters that the box holds, and say which those are."""
    fixed = ((theta <= low) & (gradient > 0)) | ((theta >= high) & (gradient < 0)) | (low == high)
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
