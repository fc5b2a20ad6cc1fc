"""The search under `design`: sets of candidate runs, what they cost and tell, grown and exchanged.

A set is a list of places among the candidates. Its score is the mean over draws of the law and over answers of
ln(root mean squared error); lower is better, and .1 is ten per cent of error. It knows nothing of floors or reasons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from chinchilla_lm.laws.forms.law import Floats
from chinchilla_lm.laws.planning.costs import CostModel
from chinchilla_lm.laws.planning.precision import (
    Linearised,
    Runs,
    Sums,
    squared_errors,
    squared_errors_with_each,
)

Stop = Literal["budget", "most_runs", "pays_no_more"]

POWERS = (0.25, 0.5, 0.75, 1.0)  # of cost, in gain / cost^power; none is best on every question
_ROUNDS = 3  # of exchange; a fourth changes nothing in bench/design.py
_REBUILDS, _TAKEN_OUT = 80, (2, 6)  # 80 times 2 to 5 runs: 1 to 3 % less error in half a second (dev/LOG.md 2026-11-22)
_ENOUGH = 1e-4  # gain of an exchange, in ln error


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Candidate runs.

    Attributes:
        runs: n candidates; the first `n_free` may be chosen, the others only be put in by hand.
        n_free: see above.
        linear: their derivatives.
        made: sums of the runs already made, prior included.
        cost_model: how runs are paid for.
        horizon: what each trunk already serves, tokens, (T,).
        most_copies: how often a candidate may be in a set; 1 for branches, where the same cooldown of the same trunk
            is no new run.
        sunk: cost of the runs already made, which counts in what a further per cent of compute is.
    """

    runs: Runs
    n_free: int
    linear: Linearised
    made: Sums
    cost_model: CostModel
    horizon: Floats
    most_copies: int = 1
    sunk: float = 0.0

    def cost(self, places: Sequence[int]) -> float:
        """Return what a set costs."""
        at = np.asarray(places, dtype=np.intp)
        runs = self.runs
        return self.cost_model.grouped_cost(runs.params[at], runs.tokens[at], runs.trunk[at], self.horizon)

    def step_costs(self, places: Sequence[int]) -> Floats:
        """Return what each free candidate would add to a set's cost, (n_free,); what is not allowed costs inf."""
        at = np.asarray(places, dtype=np.intp)
        runs, free = self.runs, slice(0, self.n_free)
        horizon = self.horizon.copy()
        np.maximum.at(horizon, runs.trunk[at], runs.tokens[at])
        costs = self.cost_model.run_costs(runs.params[free], runs.tokens[free], horizon[runs.trunk[free]])
        costs[np.bincount(at[at < self.n_free], minlength=self.n_free) >= self.most_copies] = np.inf
        return costs

    def sums(self, places: Sequence[int]) -> Sums:
        """Return the sums over the runs made and a set."""
        new = self.linear.rows(places)
        return Sums(
            matrix_k55=self.made.matrix_k55 + new.jacobian_kn5.swapaxes(1, 2) @ new.jacobian_kn5,
            moment_k5q=self.made.moment_k5q + new.moment(),
        )

    def errors(self, places: Sequence[int]) -> tuple[Floats, Floats]:
        """Return noise and misfit of each answer with a set, (G,): root mean squares, the middle of the draws."""
        noise, misfit = squared_errors(self.linear, self.sums(places))
        return np.sqrt(np.median(noise, axis=0)), np.sqrt(np.median(misfit, axis=0))

    def score(self, places: Sequence[int]) -> float:
        """Return a set's score."""
        noise, misfit = squared_errors(self.linear, self.sums(places))
        return 0.5 * float(np.log(noise + misfit).mean())

    def scores_with_each(self, places: Sequence[int]) -> Floats:
        """Return the score of a set with each free candidate added, (n_free,)."""
        errors = squared_errors_with_each(self.linear, self.sums(places), self.n_free)
        return 0.5 * np.log(errors).mean(axis=(0, 2))


def best_set(
    pool: Pool, start: Sequence[int], budget: float, *, most_runs: int, least_elasticity: float
) -> tuple[list[int], Stop]:
    """Fill a budget.

    Args:
        pool: the candidates.
        start: runs that stay, affordable together.
        budget: what all may cost.
        most_runs: of all.
        least_elasticity: see `grow`.

    Returns:
        The set, `start` first, and why it ended.
    """
    ends: list[tuple[float, list[int], Stop]] = []
    for power in POWERS:
        grown, stop = grow(pool, start, budget, power=power, most_runs=most_runs, least_elasticity=least_elasticity)
        grown = exchange(pool, grown, len(start), budget)
        ends.append((pool.score(grown), grown, stop))
    _, best, stop = min(ends, key=lambda end: end[0])
    best = rebuild(pool, best, len(start), budget, most_runs=max(most_runs, len(best)))
    return best, "budget" if stop == "most_runs" and len(best) < most_runs else stop


def grow(
    pool: Pool, start: Sequence[int], budget: float, *, power: float, most_runs: int, least_elasticity: float = 0.0
) -> tuple[list[int], Stop]:
    """Add runs one at a time, each the one of most gain over cost^power.

    Args:
        pool: the candidates.
        start: runs that stay.
        budget: what all may cost.
        power: 0 looks at gain alone, 1 at gain per unit of cost.
        most_runs: of all.
        least_elasticity: stop where the best run lowers ln error by less than this for each unit of ln cost.

    Returns:
        The set, `start` first, and why it ended.
    """
    places, spent, now = list(start), pool.cost(start), pool.score(start)
    while len(places) < most_runs:
        costs = pool.step_costs(places)
        is_payable = costs <= budget - spent
        if not is_payable.any():
            return places, "budget"
        scores = pool.scores_with_each(places)
        gain = np.where(is_payable, now - scores, -np.inf)
        costs = np.where(is_payable, costs, 1.0)
        elasticity = gain * (spent + pool.sunk + costs) / costs
        is_worth = is_payable & (elasticity > least_elasticity) & (gain > 0)
        if not is_worth.any():  # what the last tenth of a budget pays are only the smallest runs
            return places, "pays_no_more" if spent < 0.9 * budget else "budget"
        picked = int(np.where(is_worth, gain / costs**power, -np.inf).argmax())
        places.append(picked)
        spent, now = pool.cost(places), float(scores[picked])
    return places, "most_runs"


def exchange(pool: Pool, places: Sequence[int], n_fixed: int, budget: float) -> list[int]:
    """Replace runs one at a time by better ones that the budget pays, until nothing changes.

    Args:
        pool: the candidates.
        places: a set within the budget; its first `n_fixed` stay.
        n_fixed: see above.
        budget: what all may cost.

    Returns:
        The set, as long as before.
    """
    places = list(places)
    now = pool.score(places)
    for _ in range(_ROUNDS):
        before = now
        for position in range(n_fixed, len(places)):
            rest = places[:position] + places[position + 1 :]
            scores = pool.scores_with_each(rest)
            scores[pool.step_costs(rest) > budget - pool.cost(rest)] = np.inf
            picked = int(scores.argmin())
            if scores[picked] < now - _ENOUGH:
                places[position], now = picked, float(scores[picked])
        if now > before - _ENOUGH:
            break
    return places


def rebuild(pool: Pool, places: Sequence[int], n_fixed: int, budget: float, *, most_runs: int) -> list[int]:
    """Take a few runs out at random and grow the set again, many times; keep what is better.

    Args:
        pool: the candidates.
        places: a set within the budget; its first `n_fixed` stay.
        n_fixed: see above.
        budget: what all may cost.
        most_runs: of all.

    Returns:
        The set, and always the same one: the seed is fixed.

    Source: ruin and recreate, Schrimpf et al. 2000.
    """
    best, now = list(places), pool.score(places)
    rng = np.random.default_rng(0)
    for _ in range(_REBUILDS if len(places) > n_fixed else 0):
        n_free = len(best) - n_fixed
        count = min(int(rng.integers(*_TAKEN_OUT)), n_free)
        taken = set((n_fixed + rng.choice(n_free, size=count, replace=False)).tolist())
        rest = [place for position, place in enumerate(best) if position not in taken]
        grown, _ = grow(pool, rest, budget, power=float(rng.choice(POWERS)), most_runs=most_runs)
        score = pool.score(grown)
        if score < now:
            best, now = grown, score
    return exchange(pool, best, n_fixed, budget)


def order_by_gain(pool: Pool, start: Sequence[int], rest: Sequence[int]) -> list[int]:
    """Return `rest` in the order in which to make it after `start`: most gain per cost first."""
    left, done = list(rest), list(start)
    while left:
        # Copies of one place are one candidate here; each round takes one of them.
        now = pool.score(done)
        gains = [(now - pool.score([*done, place])) / (pool.cost([*done, place]) - pool.cost(done)) for place in left]
        done.append(left.pop(int(np.argmax(gains))))
    return done[len(start) :]
