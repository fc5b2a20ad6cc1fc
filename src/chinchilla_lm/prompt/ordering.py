"""In which order? Entropy probing chooses among the orders of one set of demonstrations, without labels.

A bad order makes the model answer one label for everything. With p(y | x_i) over k labels for each of p probe texts:

    GlobalE = entropy of the shares with which each label is the most probable         (high: all labels are used)
    LocalE  = mean over the probes of the entropy of p(y | x_i)                        (high: no overconfidence)

Source: Lu et al. 2022, "Fantastically Ordered Prompts", section 3.2. Differs: the paper samples its probes from the
model; here they are given (unlabelled inputs do, and cost nothing).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from chinchilla_lm.core.errors import DataError

Row = TypeVar("Row")
# Lu et al. 2022, section 4: all 24 orders of four demonstrations.
MAX_ORDERS = 24


@dataclass(frozen=True, kw_only=True)
class OrderChoice:
    """The orders tried and their entropies.

    Attributes:
        order: places in the given set, best order.
        orders: every order tried, best first.
        entropies: of each, in nats, by the chosen measure.
    """

    order: tuple[int, ...]
    orders: tuple[tuple[int, ...], ...]
    entropies: tuple[float, ...]


def order_by_entropy(
    demonstrations: Sequence[Row],
    probabilities_of: Callable[[Sequence[Row]], np.ndarray],
    measure: Literal["global", "local"] = "global",
    max_orders: int = MAX_ORDERS,
    seed: int = 0,
) -> OrderChoice:
    """Choose the order under which a model's answers to probe texts have the highest entropy.

    Args:
        demonstrations: d solved rows.
        probabilities_of: the model's p(label | probe), [p, k], rows summing to 1, with demonstrations in that order.
        measure: "global" or "local"; ties are broken by the other one.
        max_orders: orders tried, >= 1: all of them when d! is no more, else a random sample.
        seed: of the sample.

    Returns:
        The best order, and all with their entropies.

    Raises:
        DataError: the probabilities are no such table.
    """
    measured = []
    for order in _orders(len(demonstrations), max_orders, seed):
        probabilities_pk = np.asarray(probabilities_of([demonstrations[place] for place in order]), dtype=np.float64)
        if probabilities_pk.ndim != 2 or not np.allclose(probabilities_pk.sum(axis=1), 1, atol=1e-4):
            raise DataError(
                f"probabilities of shape {probabilities_pk.shape} whose rows do not sum to 1; normalise them"
            )
        both = global_entropy(probabilities_pk), local_entropy(probabilities_pk)
        measured.append((both if measure == "global" else both[::-1], order))
    measured.sort(key=lambda pair: (-pair[0][0], -pair[0][1], pair[1]))
    return OrderChoice(
        order=measured[0][1],
        orders=tuple(order for _, order in measured),
        entropies=tuple(float(entropies[0]) for entropies, _ in measured),
    )


def global_entropy(probabilities_pk: np.ndarray) -> float:
    """Return the entropy in nats of how often each label is the most probable, in [0, ln k]."""
    shares_k = np.bincount(probabilities_pk.argmax(axis=1), minlength=probabilities_pk.shape[1]) / len(probabilities_pk)
    return float(_entropy(shares_k))


def local_entropy(probabilities_pk: np.ndarray) -> float:
    """Return the mean entropy in nats of the probes' label distributions, in [0, ln k]."""
    return float(_entropy(probabilities_pk).mean())


def _entropy(shares: np.ndarray) -> np.ndarray:
    return -(shares * np.log(np.where(shares > 0, shares, 1.0))).sum(axis=-1)


def _orders(size: int, max_orders: int, seed: int) -> list[tuple[int, ...]]:
    if math.factorial(min(size, 12)) <= max_orders:
        return list(itertools.permutations(range(size)))
    rng = np.random.default_rng(seed)
    orders: set[tuple[int, ...]] = set()
    while len(orders) < max_orders:
        orders.add(tuple(int(place) for place in rng.permutation(size)))
    return sorted(orders)
