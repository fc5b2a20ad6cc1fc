"""The best size: where a further FLOP buys as much loss through size as through data, for K laws at once.

All questions meet on one line, the ridge: with x = ln N, y = ln D and I tokens of serving in units of training cost,

    h(x, y) = ln(gain by data) + ln(1 + I / 3D) - ln(gain by size) = 0

is the condition of least loss for a total cost N (6 D + 2 I), of least cost for a loss (Sardana et al. 2024,
arXiv 2401.00448, where it has no closed form), of the size that suits D, and of the tokens that suit N. They differ in
the path on which the ridge is met, no more. h rises along each path, so Newton's steps inside a bracket always arrive.
It knows no devices, prices or shapes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from chinchilla_lm.core.errors import PlanError
from chinchilla_lm.laws.forms.law import Floats
from chinchilla_lm.laws.planning.surface import Surface

# A path maps its parameter t to x, y, dx/dt and dy/dt.
Path = Callable[[Floats], tuple[Floats, Floats, Floats, Floats]]

_REACH = 60.0  # a factor e^60 either way of where text without end would put the answer
_TOLERANCE = 1e-12  # in ln N; the loss is flat to its last digit within 1e-8
_OFF_THE_END = 0.5  # of a bracket in ln N, where tokens are endless or none
_MOST_CAUTION = 2.0  # in ln N
_MOST_STEPS = 200  # Newton takes 6 to 15; half steps over e^120 to the tolerance 60 + 40


def least_loss(surface: Surface, flops: Floats, served: float = 0.0) -> tuple[Floats, Floats]:
    """Find size and tokens of least loss when N (6 D + 2 I) may be spent.

    Args:
        surface: K laws.
        flops: what training and serving may cost together, > 0, broadcasts with (K,).
        served: I >= 0, tokens served in units of training cost (see `demand`).

    Returns:
        (ln N, ln D), shape (K,).
    """
    flops = np.broadcast_to(np.asarray(flops, dtype=np.float64), surface.E.shape)
    start = surface.fresh_optimum(np.log(flops / 6))
    low, high = start - _REACH, start + _REACH
    if served > 0:
        high = np.minimum(high, np.log(flops / (2 * served)))
        low = np.minimum(low, high - _REACH)
    x = _ridge_crossing(surface, lambda t: _along_budget(t, flops, served), low, high, start, served)
    return x, _along_budget(x, flops, served)[1]


def least_cost(surface: Surface, loss: Floats, served: float = 0.0) -> tuple[Floats, Floats]:
    """Find size and tokens of least N (6 D + 2 I) that reach a loss.

    Args:
        surface: K laws.
        loss: to reach, nats per token, broadcasts with (K,).
        served: I >= 0.

    Returns:
        (ln N, ln D), shape (K,); nan where a law never reaches the loss.

    Source: Sardana et al. 2024; they too take Newton's steps in N.
    """
    loss = np.broadcast_to(np.asarray(loss, dtype=np.float64), surface.E.shape)
    is_reached = loss > surface.least_loss()
    safe = np.where(is_reached, loss, surface.least_loss() * 1.5)
    # Without serving or repeats alpha A / N^alpha = beta B / D^beta, so the size term has this share of the sum.
    share = surface.beta / (surface.alpha + surface.beta)
    left = (safe - surface.E) ** (1 / surface.kappa) * share
    start = np.log(surface.A / left) / surface.alpha
    low = surface.log_params_for(safe, np.full_like(start, np.inf))  # endless text: no smaller model gets there
    high = np.maximum(start, low) + _REACH
    x = _ridge_crossing(surface, lambda t: _along_loss(surface, t, safe), low, high, start, served)
    y = surface.log_tokens_for(safe, x)
    return np.where(is_reached, x, np.nan), np.where(is_reached, y, np.nan)


def tokens_that_suit(surface: Surface, x: Floats, served: float = 0.0) -> Floats:
    """Return the ln D for which a size is the best one: the ridge at a given ln N."""
    x = np.broadcast_to(x, surface.E.shape)

    def along_size(t: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        return x, -t, np.zeros_like(t), -np.ones_like(t)

    size_over_data = np.log(surface.alpha * surface.A / (surface.beta * surface.B))
    start = -(surface.alpha * x - size_over_data) / surface.beta
    return -_ridge_crossing(surface, along_size, start - _REACH, start + _REACH, start, served)


def params_that_suit(surface: Surface, y: Floats, served: float = 0.0) -> Floats:
    """Return the ln N that is best for a number of tokens: the ridge at a given ln D."""
    y = np.broadcast_to(y, surface.E.shape)

    def along_tokens(t: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        return t, y, np.ones_like(t), np.zeros_like(t)

    size_over_data = np.log(surface.alpha * surface.A / (surface.beta * surface.B))
    start = (size_over_data + surface.beta * y) / surface.alpha
    return _ridge_crossing(surface, along_tokens, start - _REACH, start + _REACH, start, served)


def total_flops(x: Floats, y: Floats, served: float = 0.0) -> Floats:
    """Return N (6 D + 2 I): training and serving, in FLOPs of training."""
    return np.exp(x) * (6 * np.exp(y) + 2 * served)


def overhead(surface: Surface, x: Floats, y: Floats) -> Floats:
    """Return how much more training compute a plan spends than the least that reaches its loss, as a share.

    For the additive form without repeats this is k_N k_D - 1 of de Vries 2023, "Go smol or go home".
    """
    best_x, best_y = least_cost(surface, surface.loss(x, y))
    return total_flops(x, y) / total_flops(best_x, best_y) - 1


def flat_band(surface: Surface, flops: float, served: float, penalty: float) -> tuple[Floats, Floats]:
    """Find how far the size may go either way before the loss of the same total cost rises by a share.

    Args:
        surface: K laws.
        flops: total cost.
        served: I >= 0.
        penalty: share of the least loss, > 0.

    Returns:
        (ln of the smallest size, ln of the largest), shape (K,).
    """
    spent = np.broadcast_to(np.float64(flops), surface.E.shape)
    x, y = least_loss(surface, spent, served)
    limit = surface.loss(x, y) * (1 + penalty)

    def is_within(t: Floats) -> np.ndarray:
        return surface.loss(t, _along_budget(t, spent, served)[1]) <= limit

    most = np.log(spent / (2 * served)) if served > 0 else x + _REACH
    return _last_within(is_within, x, x - _REACH), _last_within(is_within, x, np.minimum(most, x + _REACH))


def _along_budget(x: Floats, flops: Floats, served: float) -> tuple[Floats, Floats, Floats, Floats]:
    """Spend the whole budget at each size: D = (C / N - 2 I) / 6."""
    left = np.maximum(flops * np.exp(-x) - 2 * served, np.finfo(np.float64).tiny)
    return x, np.log(left / 6), np.ones_like(x), -flops * np.exp(-x) / left


def _along_loss(surface: Surface, x: Floats, loss: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Reach the loss at each size."""
    y = surface.log_tokens_for(loss, x)
    by_x = np.exp(surface.params_gain(x)[0] - surface.tokens_gain(y)[0])
    return x, y, np.ones_like(x), -by_x


def _ridge_crossing(
    surface: Surface, path: Path, low: Floats, high: Floats, start: Floats, served: float
) -> Floats:  # fmt: skip
    """Find the t of a path at which h = 0 by Newton's steps; where one leaves the bracket, half the way to its end."""
    t = np.minimum(np.maximum(start, low + _OFF_THE_END), high - _OFF_THE_END)
    for _ in range(_MOST_STEPS):
        with np.errstate(all="ignore"):  # at the ends of a bracket the tokens may be endless or none
            h, slope = _height(surface, path, t, served)
            low, high = np.where(h < 0, t, low), np.where(h > 0, t, high)
            newton = t - h / slope
            close = _TOLERANCE * (1 + np.abs(t))
            is_there = (np.abs(newton - t) <= close) | (high - low <= close)
            is_inside = (newton > low) & (newton < high)
            cautious = t + np.clip(np.where(h < 0, high - t, low - t) / 2, -_MOST_CAUTION, _MOST_CAUTION)
            t = np.where(is_inside | is_there, newton, cautious)
        if is_there.all():
            return t
    worst = float(np.max(high - low))
    raise PlanError(f"no best size found for this law (bracket still e^{worst:.2g} wide); check its constants")


def _height(surface: Surface, path: Path, t: Floats, served: float) -> tuple[Floats, Floats]:
    """Return h and dh/dt; where tokens are endless h is minus infinity."""
    x, y, x_by_t, y_by_t = path(t)
    by_size, by_size_slope = surface.params_gain(x)
    by_data, by_data_slope = surface.tokens_gain(y)
    serving = served * np.exp(-y) / 3
    h = by_data + np.log1p(serving) - by_size
    slope = (by_data_slope - serving / (1 + serving)) * y_by_t - by_size_slope * x_by_t
    return np.where(np.isposinf(y), -np.inf, h), slope


def _last_within(is_within: Callable[[Floats], np.ndarray], inside: Floats, outside: Floats) -> Floats:
    """Bisect between a point that is within and one that may not be."""
    for _ in range(60):
        middle = (inside + outside) / 2
        within = is_within(middle)
        inside, outside = np.where(within, middle, inside), np.where(within, outside, middle)
    return inside
