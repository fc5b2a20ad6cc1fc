"""One family of loss laws that holds three forms, and the arithmetic that fits many members of it at once.

    L = exp(e) + (exp((a - alpha x) / kappa) + exp((b - beta y) / kappa))^kappa,   x = ln N, y = ln D

kappa = 1 is the additive law (Hoffmann et al. 2022); kappa free is the coupled one (`forms.coupled`, with exponents
alpha / kappa there: divided so, alpha and beta keep their meaning and their prior); kappa = 1 without exp(e) has no
floor at all. Fitted by robust least squares of ln L with a Gaussian prior on the exponents
and on ln kappa, by Levenberg-Marquardt over K problems at once: a rolling back-test is K cuts of one table.

Symbols: theta = (a, b, e, alpha, beta, ln kappa); K problems, n runs; w weights; r = ln L(theta) - ln L(observed).
It never judges a fit, and never draws. `fitting` fits one table carefully; this fits forty cuts of it quickly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from chinchilla_lm.laws.forms.law import Floats

FormName = Literal["additive", "coupled", "floorless"]

SEED_NOISE = 0.003  # least sd of ln L that runs are credited with: seeds move tiny models by .2 to .5 % (recipe v1)
_EXPONENT_MEAN, _EXPONENT_SD = 0.35, 0.15  # as `fitting.additive.Prior`: it holds all published fits within one sd
# Without a floor the exponents must make up for it: local slopes of published sweeps are .05 to .12 in ln L per ln C/2.
_FLOORLESS_MEAN, _FLOORLESS_SD = 0.08, 0.08
_COUPLING_SD = 0.5  # of ln kappa around the additive law; .3 and 1 changed the back-tests by less than .1 % of loss
_HUBER_TURN = 1.345  # in noise sd: 95 % efficient on normal noise (Huber 1981)
_NO_FLOOR = -55.0  # e of a form without a floor: exp(-55) is nothing beside any loss
_BOX = 12.0  # terms may lie this far, in ln, from the lowest loss
_EXPONENT_BOX = (0.005, 3.0)
_COUPLING_BOX = 2.3  # |ln kappa|: kappa from .1 to 10
_STARTS = (
    # alpha, beta, share of the floor in the median loss: spread over what published sweeps show
    (0.35, 0.35, 0.6),
    (0.2, 0.2, 0.4),
    (0.5, 0.4, 0.75),
    (0.35, 0.6, 0.7),
    (0.15, 0.35, 0.5),
    (0.6, 0.25, 0.6),
)
_FLOORLESS_STARTS = ((0.05, 0.05, 0.0), (0.12, 0.12, 0.0))
_SCREEN_STEPS, _POLISH_STEPS, _NOISE_ROUNDS = 25, 40, 3


@dataclass(frozen=True, kw_only=True)
class Members:
    """K fitted members of the family.

    Attributes:
        theta_k6: their parameters.
        noise_k: robust sd of their weighted residuals in ln L, at least SEED_NOISE.
    """

    theta_k6: Floats
    noise_k: Floats


@dataclass(frozen=True, kw_only=True)
class _Problems:
    """K weighted robust least-squares problems on centred logs; see `fit_members` for the shapes."""

    x_kn: Floats
    y_kn: Floats
    l_kn: Floats
    weight_kn: Floats
    delta_k: Floats
    mean_k6: Floats
    precision_k6: Floats
    is_free_k6: npt.NDArray[np.bool_]
    low_k6: Floats
    high_k6: Floats

    def rows(self, chosen: npt.NDArray[np.int64]) -> _Problems:
        """Return some of the problems."""
        return _Problems(**{name: getattr(self, name)[chosen] for name in self.__dataclass_fields__})


def fit_members(form: FormName, x_n: Floats, y_n: Floats, log_loss_n: Floats, weight_kn: Floats) -> Members:
    """Fit one form to K weightings of the same runs.

    Args:
        form: which member.
        x_n: ln N of each run, shape (n,).
        y_n: ln D of each run, shape (n,).
        log_loss_n: ln L of each run, shape (n,).
        weight_kn: weight of each run in each problem, >= 0; 0 hides a run. Shape (K, n).

    Returns:
        The fits, in the order of the weightings.
    """
    weight_kn = weight_kn / weight_kn.max(1, keepdims=True)
    total = weight_kn.sum(1)
    x_mean, y_mean = (weight_kn * x_n).sum(1) / total, (weight_kn * y_n).sum(1) / total
    problems, starts = _problems(form, x_n - x_mean[:, None], y_n - y_mean[:, None], log_loss_n, weight_kn)
    count = len(weight_kn)
    many = problems.rows(np.tile(np.arange(count), len(starts)))
    theta, objective = _minimise(np.concatenate(starts), many, _SCREEN_STEPS)
    best = objective.reshape(-1, count).argmin(0)
    theta = theta.reshape(-1, count, 6)[best, np.arange(count)]
    noise = np.full(count, SEED_NOISE)
    for _ in range(_NOISE_ROUNDS):  # the noise weighs the prior and turns Huber; it settles in two or three rounds
        residual = np.abs(log_losses(theta, problems.x_kn, problems.y_kn) - problems.l_kn)
        noise = np.maximum(_robust_sd(residual, weight_kn), SEED_NOISE)
        problems = replace(
            problems, delta_k=_HUBER_TURN * noise, precision_k6=noise[:, None] ** 2 / _prior_sd(form)[None, :] ** 2
        )
        theta, _ = _minimise(theta, problems, _POLISH_STEPS)
    theta[:, 0] += theta[:, 3] * x_mean
    theta[:, 1] += theta[:, 4] * y_mean
    return Members(theta_k6=theta, noise_k=noise)


def log_losses(theta_k6: Floats, x_km: Floats, y_km: Floats) -> Floats:
    """Return ln L of K members at M points each.

    Args:
        theta_k6: the members, of `fit_members`.
        x_km: ln N, shape (K, M) or (1, M).
        y_km: ln D, of the same shape.

    Returns:
        ln L, shape (K, M).
    """
    a, b, e, alpha, beta, log_kappa = (theta_k6[:, i : i + 1] for i in range(6))
    kappa = np.exp(log_kappa)
    return np.logaddexp(kappa * np.logaddexp((a - alpha * x_km) / kappa, (b - beta * y_km) / kappa), e)


def prediction_sd(
    members: Members, x_n: Floats, y_n: Floats, log_loss_n: Floats, is_fitted_kn: npt.NDArray[np.bool_]
) -> Callable[[Floats, Floats], Floats]:
    """Return the textbook standard error of a new run's ln L under additive members (delta method).

    Args:
        members: additive members, fitted with equal weights.
        x_n: ln N of each run.
        y_n: ln D of each run.
        log_loss_n: ln L of each run.
        is_fitted_kn: which runs each member saw.

    Returns:
        A function of ln N and ln D, each (K, M) or (1, M), that returns sd of ln L, residual noise included, (K, M).
    """
    theta = members.theta_k6
    total, jacobian = _derivatives(theta, x_n[None, :], y_n[None, :])
    seen = is_fitted_kn.astype(np.float64)
    freedom = np.maximum(seen.sum(1) - 5, 1.0)
    variance_k = (seen * (total - log_loss_n) ** 2).sum(1) / freedom
    information = (jacobian * seen[..., None]).swapaxes(1, 2) @ jacobian / np.maximum(variance_k, 1e-12)[:, None, None]
    information[:, 3:5, 3:5] += np.eye(2) / _EXPONENT_SD**2
    covariance = np.asarray(np.linalg.pinv(information[:, :5, :5]), dtype=np.float64)

    def standard_error(x_km: Floats, y_km: Floats) -> Floats:
        at = _derivatives(theta, x_km, y_km)[1][..., :5]
        return np.sqrt(np.einsum("kmi,kij,kmj->km", at, covariance, at) + variance_k[:, None])

    return standard_error


def _problems(
    form: FormName, x_kn: Floats, y_kn: Floats, log_loss_n: Floats, weight_kn: Floats
) -> tuple[_Problems, list[Floats]]:
    """Return the problems with their boxes and priors, and the starts, each (K, 6)."""
    count = len(weight_kn)
    l_kn = np.broadcast_to(log_loss_n, weight_kn.shape)
    lowest = np.where(weight_kn > 0, l_kn, np.inf).min(1)
    middle = (weight_kn * l_kn).sum(1) / weight_kn.sum(1)
    has_floor = form != "floorless"
    low = np.tile([-_BOX, -_BOX, -_BOX, _EXPONENT_BOX[0], _EXPONENT_BOX[0], -_COUPLING_BOX], (count, 1))
    high = np.tile([_BOX, _BOX, 0.0, _EXPONENT_BOX[1], _EXPONENT_BOX[1], _COUPLING_BOX], (count, 1))
    low[:, :3] += lowest[:, None]
    high[:, :3] += lowest[:, None]
    if not has_floor:
        low[:, 2] = high[:, 2] = _NO_FLOOR
    mean = np.zeros((count, 6))
    mean[:, 3:5] = _EXPONENT_MEAN if has_floor else _FLOORLESS_MEAN
    problems = _Problems(
        x_kn=x_kn,
        y_kn=y_kn,
        l_kn=l_kn,
        weight_kn=weight_kn,
        delta_k=np.full(count, SEED_NOISE),
        mean_k6=mean,
        precision_k6=np.tile((SEED_NOISE / _prior_sd(form)) ** 2, (count, 1)),
        is_free_k6=np.tile([True, True, has_floor, True, True, form == "coupled"], (count, 1)),
        low_k6=low,
        high_k6=high,
    )
    starts: list[Floats] = []
    for alpha, beta, share in _STARTS if has_floor else _FLOORLESS_STARTS:
        start = np.tile([0.0, 0.0, 0.0, alpha, beta, 0.0], (count, 1))
        start[:, :2] = (middle + np.log((1 - share) / 2))[:, None]
        start[:, 2] = middle + np.log(share) if has_floor else _NO_FLOOR
        starts.append(start)
    return problems, starts


def _prior_sd(form: FormName) -> Floats:
    exponent = _FLOORLESS_SD if form == "floorless" else _EXPONENT_SD
    return np.array([np.inf, np.inf, np.inf, exponent, exponent, _COUPLING_SD])


def _derivatives(theta: Floats, x_kn: Floats, y_kn: Floats) -> tuple[Floats, Floats]:
    """Return ln L (K, n) and its derivatives (K, n, 6) by theta."""
    a, b, e, alpha, beta, log_kappa = (theta[:, i : i + 1] for i in range(6))
    kappa = np.exp(log_kappa)
    size, text = a - alpha * x_kn, b - beta * y_kn
    terms = kappa * np.logaddexp(size / kappa, text / kappa)
    total = np.logaddexp(terms, e)
    share = np.exp(terms - total)
    of_size = 1 / (1 + np.exp(np.clip((text - size) / kappa, -700.0, 700.0)))
    by_size, by_text = share * of_size, share * (1 - of_size)
    by_coupling = share * terms - by_size * size - by_text * text
    columns = [by_size, by_text, 1 - share, -by_size * x_kn, -by_text * y_kn, by_coupling]
    return total, np.stack(columns, axis=-1)


def _objective(theta: Floats, problems: _Problems) -> Floats:
    residual = np.abs(log_losses(theta, problems.x_kn, problems.y_kn) - problems.l_kn)
    delta = problems.delta_k[:, None]
    huber = np.where(residual <= delta, 0.5 * residual**2, delta * (residual - 0.5 * delta))
    prior = 0.5 * ((theta - problems.mean_k6) ** 2 * problems.precision_k6).sum(1)
    return (problems.weight_kn * huber).sum(1) + prior


def _minimise(theta: Floats, problems: _Problems, most_steps: int) -> tuple[Floats, Floats]:
    """Walk each start downhill by Levenberg-Marquardt on the reweighted squares; return ends and objective."""
    theta = np.clip(theta, problems.low_k6, problems.high_k6)
    objective = _objective(theta, problems)
    damping = np.full(len(theta), 1e-2)
    active = np.arange(len(theta))
    for _ in range(most_steps):
        part = problems.rows(active)
        step = _step(theta[active], part, damping[active])
        trial = np.clip(theta[active] + step, part.low_k6, part.high_k6)
        value = _objective(trial, part)
        lowers = value < objective[active]
        gain = np.where(lowers, (objective[active] - value) / np.maximum(objective[active], 1e-300), 0.0)
        theta[active] = np.where(lowers[:, None], trial, theta[active])
        objective[active] = np.where(lowers, value, objective[active])
        damping[active] = np.where(lowers, np.maximum(damping[active] * 0.2, 1e-10), damping[active] * 6)
        is_done = (lowers & (gain < 1e-7)) | (damping[active] > 1e8)
        active = active[~is_done]
        if not len(active):
            break
    return theta, objective


def _step(theta: Floats, problems: _Problems, damping: Floats) -> Floats:
    """Return the damped step of each problem; parameters that the box holds stay."""
    total, jacobian = _derivatives(theta, problems.x_kn, problems.y_kn)
    residual = total - problems.l_kn
    delta = problems.delta_k[:, None]
    pull = problems.weight_kn * np.clip(residual, -delta, delta)
    reweight = problems.weight_kn * np.minimum(1.0, delta / np.maximum(np.abs(residual), 1e-300))
    gradient = np.einsum("kn,kni->ki", pull, jacobian) + (theta - problems.mean_k6) * problems.precision_k6
    matrix = (jacobian * reweight[..., None]).swapaxes(1, 2) @ jacobian
    diagonal = np.arange(6)
    matrix[:, diagonal, diagonal] += problems.precision_k6
    is_held = (
        ~problems.is_free_k6
        | ((theta <= problems.low_k6) & (gradient > 0))
        | ((theta >= problems.high_k6) & (gradient < 0))
    )
    gradient = np.where(is_held, 0.0, gradient)
    matrix = np.where(is_held[:, :, None] | is_held[:, None, :], np.eye(6), matrix)
    scale = 1 / np.sqrt(np.maximum(matrix[:, diagonal, diagonal], 1e-12))
    damped = matrix * scale[:, :, None] * scale[:, None, :] + damping[:, None, None] * np.eye(6)
    return -scale * np.linalg.solve(damped, (scale * gradient)[..., None])[..., 0]


def _robust_sd(residual_kn: Floats, weight_kn: Floats) -> Floats:
    """Return 1.4826 times the weighted median of |r| of each problem."""
    order = residual_kn.argsort(1)
    sizes, weights = np.take_along_axis(residual_kn, order, 1), np.take_along_axis(weight_kn, order, 1)
    middle = (weights.cumsum(1) >= 0.5 * weights.sum(1, keepdims=True)).argmax(1)
    return 1.4826 * sizes[np.arange(len(sizes)), middle]
