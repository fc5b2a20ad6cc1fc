"""From a question to size and tokens: which path leads to the ridge of `optimum`, for each way of asking.

Symbols: x = ln N, y = ln D, I tokens served in units of training cost; over-training by K moves along equal compute by
`shift` = ln(K) / 2: the size down, the tokens up. It adds no bands, prices or shapes.
"""

from __future__ import annotations

import math

import numpy as np

from chinchilla_lm.core.errors import PlanError
from chinchilla_lm.laws.forms.law import Floats
from chinchilla_lm.laws.planning import optimum
from chinchilla_lm.laws.planning.question import Conditions, Goal
from chinchilla_lm.laws.planning.surface import Surface


def solve(surface: Surface, goal: Goal, conditions: Conditions) -> tuple[Floats, Floats]:
    """Find size and tokens by each row of a surface.

    Args:
        surface: K laws.
        goal: what is given.
        conditions: over-training and serving; the surface already knows the text.

    Returns:
        (ln N, ln D), shape (K,); not finite where a law cannot meet the goal.

    Raises:
        PlanError: serving alone spends the budget at the size or tokens given.
    """
    served = conditions.demand.training_equivalent
    shift = math.log(conditions.overtrain) / 2
    ones = np.ones_like(surface.E)
    if goal.params is not None:
        x = math.log(goal.params) * ones
        return x, _tokens_at(surface, goal, x, served, shift)
    if goal.tokens is not None:
        y = math.log(goal.tokens) * ones
        return _params_at(surface, goal, y, served, shift), y
    if goal.flops is not None:
        return _move(*optimum.least_loss(surface, goal.flops * ones, served), shift)
    assert goal.loss is not None
    if shift == 0:
        return optimum.least_cost(surface, goal.loss * ones, served)
    return _overtrained_to(surface, goal.loss * ones, shift)


def _move(x: Floats, y: Floats, shift: float) -> tuple[Floats, Floats]:
    """Move along equal training compute: e^-shift times the size, e^shift times the tokens."""
    return x - shift, y + shift


def _tokens_at(surface: Surface, goal: Goal, x: Floats, served: float, shift: float) -> Floats:
    """Return ln D at a given size."""
    if goal.tokens is not None:
        return math.log(goal.tokens) * np.ones_like(x)
    if goal.loss is not None:
        return surface.log_tokens_for(goal.loss * np.ones_like(x), x)
    if goal.flops is None:
        return optimum.tokens_that_suit(surface, x + shift, served) + shift
    tokens = goal.flops / (6 * np.exp(x)) - served / 3
    if not (tokens > 0).all():
        raise PlanError(
            f"budget={goal.flops:.3g} FLOPs is spent by serving a model of {goal.params:.3g} params alone "
            f"({2 * float(np.exp(x[0])) * served:.3g}); give a larger budget or a smaller model"
        )
    return np.log(tokens)


def _params_at(surface: Surface, goal: Goal, y: Floats, served: float, shift: float) -> Floats:
    """Return ln N at a given number of tokens."""
    if goal.loss is not None:
        return surface.log_params_for(goal.loss * np.ones_like(y), y)
    if goal.flops is not None:
        return np.log(goal.flops / (6 * np.exp(y) + 2 * served))
    return optimum.params_that_suit(surface, y - shift, served) - shift


def _overtrained_to(surface: Surface, loss: Floats, shift: float) -> tuple[Floats, Floats]:
    """Find the budget whose over-trained plan reaches a loss, by bisection of ln C: the loss falls with compute."""
    x, y = optimum.least_cost(surface, loss)
    is_reached = np.isfinite(x)
    low = np.where(is_reached, x + y + math.log(6), 0.0)
    high = low + 60.0
    for _ in range(60):
        middle = (low + high) / 2
        is_enough = surface.loss(*_move(*optimum.least_loss(surface, np.exp(middle)), shift)) <= loss
        low, high = np.where(is_enough, low, middle), np.where(is_enough, middle, high)
    x, y = _move(*optimum.least_loss(surface, np.exp(high)), shift)
    return np.where(is_reached, x, np.nan), np.where(is_reached, y, np.nan)


def losses_by_size(surface: Surface, params: Floats, total_flops: float, served: float) -> Floats:
    """Return the loss of each size when training and serving spend the same in all.

    Args:
        surface: one row.
        params: N > 0, shape (M,).
        total_flops: N (6 D + 2 I).
        served: I >= 0.

    Returns:
        L, shape (M,); nan where serving alone spends it.
    """
    tokens = total_flops / (6 * params) - served / 3
    safe = np.where(tokens > 0, tokens, 1.0)
    return np.where(tokens > 0, surface.loss(np.log(params), np.log(safe)), np.nan)


def why_unreachable(surface: Surface, goal: Goal) -> str:
    """Say in one line why a law of one row cannot reach a goal's loss: value, rule, way out."""
    floor = float(surface.least_loss()[0])
    what, cure = "an endless model on endless text", "ask for more"
    if math.isfinite(surface.unique_tokens):
        what, cure = (
            f"an endless model on {surface.unique_tokens:.3g} distinct tokens",
            "ask for more, or bring more text",
        )
    end = np.array([math.inf])
    if goal.params is not None:
        floor = float(surface.loss(np.log(np.array([goal.params])), end)[0])
        what, cure = f"a model of {goal.params:.3g} params, however long it trains,", "allow a larger model"
    elif goal.tokens is not None:
        floor = float(surface.loss(end, np.log(np.array([goal.tokens])))[0])
        what, cure = f"a model of any size on {goal.tokens:.3g} tokens", "allow more tokens"
    return f"loss={goal.loss:g} cannot be reached: {what} stays above {floor:.4g} by this law; {cure}"
