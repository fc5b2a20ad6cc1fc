"""Robust least squares of a smooth law from many starts at once, stopped by its gradient.

Symbols: K fits (starts or resamples), n runs, p free parameters; r residuals, in ln L (or in nats where asked);
J their derivatives. Minimised over a box is S = sum_i w_i Huber_delta(r_i) + 1/2 sum_j precision_j (free_j - mean_j)^2.
`solver` does the same for the additive law alone, with its second derivatives in closed form.
It knows no form (see `form_models`), and never draws.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from chinchilla_lm.laws.fitting.form_models import FormModel
from chinchilla_lm.laws.fitting.noise import huber as huber_of
from chinchilla_lm.laws.forms.law import Floats

_STEP = 1e-5  # of the differences that give second derivatives: half of the 15 digits, since p is of order 1
_SAFE_STEPS = 6  # Gauss-Newton alone at first; far from the end second derivatives cost more than they bring
_CHUNK = 128  # resamples solved at once


@dataclass(frozen=True, kw_only=True)
class Misfit:
    """What is minimised over a form's parameters.

    Attributes:
        log_loss_kn: ln L observed, shape (n,) or (K, n).
        weight_kn: how often each run counts, shape (1, n) or (K, n).
        delta: where the Huber loss turns from square to straight, > 0, in ln L or in nats.
        in_nats: residuals are differences of the loss itself, not of its logarithm.
        prior_mean: of the free parameters, shape (p,).
        prior_precision: in units of S, shape (p,); 0 where there is no prior.
    """

    log_loss_kn: Floats
    weight_kn: Floats
    delta: float
    prior_mean: Floats
    prior_precision: Floats
    in_nats: bool = False

    def rows(self, chosen: np.ndarray) -> Misfit:
        """Return the misfit of some of the K fits; what all share stays shared."""
        many_losses, many_weights = self.log_loss_kn.ndim == 2, len(self.weight_kn) > 1
        return replace(
            self,
            log_loss_kn=self.log_loss_kn[chosen] if many_losses else self.log_loss_kn,
            weight_kn=self.weight_kn[chosen] if many_weights else self.weight_kn,
        )


@dataclass(frozen=True, kw_only=True)
class Ends:
    """Where K fits ended.

    Attributes:
        free_kp: the free parameters.
        objective_k: S, prior included.
        gradient_k: the largest absolute component of the gradient of S along directions that the box leaves free.
        at_bound_kp: which parameters sit on the box.
    """

    free_kp: Floats
    objective_k: Floats
    gradient_k: Floats
    at_bound_kp: np.ndarray

    def best(self) -> Ends:
        """Keep the lowest."""
        lowest = slice(int(self.objective_k.argmin()), int(self.objective_k.argmin()) + 1)
        return Ends(
            free_kp=self.free_kp[lowest],
            objective_k=self.objective_k[lowest],
            gradient_k=self.gradient_k[lowest],
            at_bound_kp=self.at_bound_kp[lowest],
        )


def descend(
    model: FormModel, starts_kp: Floats, misfit: Misfit, *, most_steps: int = 200, tolerance: float = 1e-8
) -> Ends:
    """Walk each start to its minimum.

    Each step tries a Levenberg-Marquardt step on the reweighted squares, and after the first few a Newton step at two
    lengths. A start stops when its gradient is below tolerance * delta * (sum of weights), or when no step lowers S.

    Args:
        model: the form on its runs.
        starts_kp: where to begin, shape (K, p).
        misfit: what to minimise.
        most_steps: where a start is left as it is, > 0.
        tolerance: of the gradient, relative to its largest possible value.

    Returns:
        The ends, in the order of the starts.
    """
    free = np.clip(starts_kp, model.low, model.high)
    objective = objective_of(model, free, misfit)
    damping = np.full(len(free), 1e-3)
    stop_k = tolerance * misfit.delta * np.broadcast_to(misfit.weight_kn.sum(1), len(free))
    active = np.arange(len(free))
    for step in range(most_steps):
        part = misfit.rows(active)
        gradient, squares, pull = _first_order(model, free[active], part)
        held = _held(model, free[active], gradient)
        busy = (np.abs(np.where(held, 0.0, gradient)).max(1) > stop_k[active]) & (damping[active] < 1e9)
        if not busy.any():
            break
        active, part = active[busy], misfit.rows(active[busy])
        gradient, squares, pull, held = gradient[busy], squares[busy], pull[busy], held[busy]
        steps = [_solve(squares, gradient, held, damping[active])]
        if step >= _SAFE_STEPS:
            newton = _newton_step(_second_order(model, free[active], part, pull), gradient, held)
            steps += [newton, 0.3 * newton]
        trials = [np.clip(free[active] + step_kp, model.low, model.high) for step_kp in steps]
        values = np.stack([objective_of(model, trial, part) for trial in trials])
        values = np.where(np.isfinite(values), values, np.inf)
        best, columns = values.argmin(0), np.arange(len(active))
        is_lower = values[best, columns] < objective[active]
        is_safe_lower = values[0] < objective[active]
        damping[active] = np.where(is_safe_lower, np.maximum(damping[active] * 0.25, 1e-12), damping[active] * 5)
        free[active] = np.where(is_lower[:, None], np.stack(trials)[best, columns], free[active])
        objective[active] = np.where(is_lower, values[best, columns], objective[active])
    gradient, _, _ = _first_order(model, free, misfit)
    gradient = np.where(_held(model, free, gradient), 0.0, gradient)
    return Ends(
        free_kp=free,
        objective_k=objective,
        gradient_k=np.abs(gradient).max(1),
        at_bound_kp=(free <= model.low) | (free >= model.high),
    )


def descend_resamples(model: FormModel, start: Floats, misfit: Misfit, *, tolerance: float = 1e-7) -> Floats:
    """Fit K resamples (other weights or losses), each from one warm start of shape (p,); return shape (K, p)."""
    count = max(len(misfit.weight_kn), len(misfit.log_loss_kn) if misfit.log_loss_kn.ndim == 2 else 1)
    ends: list[Floats] = []
    for first in range(0, count, _CHUNK):
        chosen = np.arange(first, min(first + _CHUNK, count))
        starts = np.tile(start, (len(chosen), 1))
        ends.append(descend(model, starts, misfit.rows(chosen), most_steps=60, tolerance=tolerance).free_kp)
    return np.concatenate(ends)


def objective_of(model: FormModel, free_kp: Floats, misfit: Misfit) -> Floats:
    """Return S of each parameter set, shape (K,)."""
    log_loss = model.log_loss(free_kp)
    residual = log_loss - misfit.log_loss_kn
    if misfit.in_nats:
        residual = np.exp(log_loss) - np.exp(misfit.log_loss_kn)
    huber = huber_of(residual, misfit.delta)
    penalty = 0.5 * ((free_kp - misfit.prior_mean) ** 2 * misfit.prior_precision).sum(1)
    return (misfit.weight_kn * huber).sum(1) + penalty


def information(model: FormModel, free_kp: Floats, misfit: Misfit) -> Floats:
    """Return J^T W J plus the prior's precision, shape (K, p, p): what the runs say of the parameters."""
    _, jacobian = _residuals(model, free_kp, misfit)
    matrix = (jacobian * misfit.weight_kn[..., None]).swapaxes(1, 2) @ jacobian
    return matrix + np.diag(misfit.prior_precision)


def _residuals(model: FormModel, free_kp: Floats, misfit: Misfit) -> tuple[Floats, Floats]:
    log_loss, jacobian = model.evaluate(free_kp)
    if not misfit.in_nats:
        return log_loss - misfit.log_loss_kn, jacobian
    loss = np.exp(log_loss)
    return loss - np.exp(misfit.log_loss_kn), jacobian * loss[..., None]


def _first_order(model: FormModel, free_kp: Floats, misfit: Misfit) -> tuple[Floats, Floats, Floats]:
    """Return the gradient (K, p), the reweighted squares (K, p, p) and Huber's pull of each run (K, n)."""
    residual, jacobian = _residuals(model, free_kp, misfit)
    pull = misfit.weight_kn * np.clip(residual, -misfit.delta, misfit.delta)
    gradient = (pull[:, None, :] @ jacobian)[:, 0] + (free_kp - misfit.prior_mean) * misfit.prior_precision
    size = np.maximum(np.abs(residual), 1e-300)
    reweight = misfit.weight_kn * np.minimum(1.0, misfit.delta / size)
    squares = (jacobian * reweight[..., None]).swapaxes(1, 2) @ jacobian + np.diag(misfit.prior_precision)
    return gradient, squares, pull


def _second_order(model: FormModel, free_kp: Floats, misfit: Misfit, pull_kn: Floats) -> Floats:
    """Return the Hessian of S, shape (K, p, p): squares of the runs inside delta, and the pull on each run's bend."""
    residual, jacobian = _residuals(model, free_kp, misfit)
    inside = misfit.weight_kn * (np.abs(residual) <= misfit.delta)
    hessian = (jacobian * inside[..., None]).swapaxes(1, 2) @ jacobian
    for column in range(free_kp.shape[1]):
        step = np.zeros(free_kp.shape[1])
        step[column] = _STEP
        _, moved = _residuals(model, free_kp + step, misfit)
        hessian[:, :, column] += (pull_kn[:, None, :] @ (moved - jacobian))[:, 0] / _STEP
    return 0.5 * (hessian + hessian.swapaxes(1, 2)) + np.diag(misfit.prior_precision)


def _held(model: FormModel, free_kp: Floats, gradient_kp: Floats) -> np.ndarray:
    """Say which parameters the box holds against the descent."""
    return ((free_kp <= model.low) & (gradient_kp > 0)) | ((free_kp >= model.high) & (gradient_kp < 0))


def _solve(squares: Floats, gradient: Floats, held: np.ndarray, damping_k: Floats) -> Floats:
    """Return the damped step of the parameters that are not held, shape (K, p)."""
    matrix, gradient = _pinned(squares, held), np.where(held, 0.0, gradient)
    diagonal: Floats = np.einsum("kii->ki", matrix)
    scale = 1 / np.sqrt(np.maximum(diagonal, 1e-300))
    scaled = matrix * scale[:, :, None] * scale[:, None, :]
    scaled = scaled + (damping_k + 1e-14)[:, None, None] * np.eye(matrix.shape[1])
    return -scale * np.linalg.solve(scaled, (scale * gradient)[..., None])[..., 0]


def _newton_step(hessian: Floats, gradient: Floats, held: np.ndarray) -> Floats:
    """Return the Newton step, downhill also where the Hessian is a saddle (Dauphin et al. 2014), shape (K, p)."""
    matrix, gradient = _pinned(hessian, held), np.where(held, 0.0, gradient)
    diagonal: Floats = np.einsum("kii->ki", matrix)
    scale = 1 / np.sqrt(np.maximum(np.abs(diagonal), 1e-300))
    values, vectors = np.linalg.eigh(matrix * scale[:, :, None] * scale[:, None, :])
    values = np.maximum(np.abs(values), 1e-10)
    rotated = vectors.swapaxes(1, 2) @ (scale * gradient)[..., None]
    return -scale * (vectors @ (rotated / values[..., None]))[..., 0]


def _pinned(matrix: Floats, held: np.ndarray) -> Floats:
    """Cut held parameters out of a matrix, so that the others step without them."""
    either = held[:, :, None] | held[:, None, :]
    return np.where(either, np.eye(matrix.shape[1]), matrix)
