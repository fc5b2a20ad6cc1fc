"""Searches in one dimension for forms without a closed form; over ln N or ln C, vectorised over budgets.

They find what is bracketed, to the last digits of a double, and never polish beyond that.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from chinchilla_lm.laws.forms.law import Floats

_SIZE_RANGE = math.log(1e4)  # sizes tried: 1e-4 to 1e4 times the start
_GRID = 401  # a step of 4.7 % in size; the losses of this folder bend over factors
_BISECTIONS = 54  # of 2 steps of the grid: below the spacing of doubles


def lowest_split(
    losses: Callable[[Floats, Floats], Floats],
    gradients: Callable[[Floats, Floats], tuple[Floats, Floats]],
    product: Floats,
    start: Floats,
) -> Floats:
    """Find the size of least loss along N D = product.

    Args:
        losses: (params, tokens) -> loss, arrays of one shape.
        gradients: (params, tokens) -> (dL/dN, dL/dD).
        product: C / k, one a budget.
        start: a size near each optimum.

    Returns:
        One size a budget: the stationary point beside the lowest of a grid of sizes (the smallest size where the loss
        is flat to its last digit).
    """
    offsets = np.linspace(-_SIZE_RANGE, _SIZE_RANGE, _GRID)
    sizes = start[:, None] * np.exp(offsets)[None, :]
    place = losses(sizes, product[:, None] / sizes).argmin(axis=1)
    low = np.log(start) + offsets[np.maximum(place - 1, 0)]
    high = np.log(start) + offsets[np.minimum(place + 1, _GRID - 1)]
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        size = np.exp(middle)
        tokens = product / size
        by_size, by_tokens = gradients(size, tokens)
        is_rising = size * by_size - tokens * by_tokens >= 0
        low, high = np.where(is_rising, low, middle), np.where(is_rising, middle, high)
    return np.exp((low + high) / 2)


def root_of_falling(excess: Callable[[float], float], start: float) -> float:
    """Return where a falling function meets zero: steps that double bracket it, bisection finds it.

    Args:
        excess: falls, and becomes negative somewhere above `start`.
        start: where it is not yet negative.

    Returns:
        The root, from above, to the last digits.
    """
    low, step = start, 1.0
    while excess(low + step) > 0:
        low, step = low + step, 2 * step
    high = low + step
    for _ in range(_BISECTIONS + 10):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return high
