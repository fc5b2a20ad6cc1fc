"""Which wording, demonstrations and scoring rule? Successive halving on a dev set, with a budget.

An arm is a template with one draw of demonstrations; every rule that shares its forward passes is scored from the same
numbers and costs nothing more. All arms answer a few dev items; the better half goes on with twice as many; and so on
until one is left or the budget of scored items is spent. Arms are compared on the same items, so item luck cancels.

The search is given dev items' numbers and a callable and nothing else: it cannot see a test item. The winner's dev
score is the best of many and therefore too good; the figure to report is the one on the test set.

Source: Karnin, Koren and Somekh 2013, "Almost Optimal Exploration in Multi-Armed Bandits" (sequential halving).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from chinchilla_lm.core.errors import BudgetError

# Fewer items in the first round drop good arms by luck: one standard error of a paired difference is 18 points at 16.
MIN_FIRST_ITEMS = 16


@dataclass(frozen=True, kw_only=True)
class PromptArm:
    """One candidate.

    Attributes:
        template: its name.
        draw: the number of the draw of demonstrations; -1 for none.
    """

    template: str
    draw: int = -1


@dataclass(frozen=True, kw_only=True)
class ArmRow:
    """What the search knows about one arm and rule at the end.

    Attributes:
        arm: the candidate.
        rule: its scoring rule.
        score: mean over the items it answered.
        standard_error: of that mean.
        items: how many it answered.
        rounds: how many rounds it survived, from 1.
    """

    arm: PromptArm
    rule: str
    score: float
    standard_error: float
    items: int
    rounds: int


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """The winner, and all that was tried.

    Attributes:
        best: the winner; its score is optimistic (the best of many).
        table: every arm and rule, those that survived longest first, then by score.
        items_scored: arms times items, the cost.
    """

    best: ArmRow
    table: tuple[ArmRow, ...]
    items_scored: int


Evaluate = Callable[[PromptArm, np.ndarray], Mapping[str, np.ndarray]]


def search_prompts(
    arms: Sequence[PromptArm], evaluate: Evaluate, dev_items: int, budget_items: int, seed: int = 0
) -> SearchResult:
    """Find the best arm and rule by successive halving.

    Args:
        arms: candidates, >= 1.
        evaluate: (arm, numbers of dev items) -> score of each item by rule, for instance 1.0 where the answer is right.
            A batch-calibrated rule takes its mean over those items or over fixed unlabelled ones.
        dev_items: how many dev items there are.
        budget_items: arms times items that may be scored.
        seed: of the items' order.

    Returns:
        The winner and the table.

    Raises:
        BudgetError: the budget is under `MIN_FIRST_ITEMS` items an arm, or there are too few dev items.
    """
    rounds = max(1, math.ceil(math.log2(len(arms))))
    first = budget_items // (rounds * len(arms))
    if min(first, dev_items) < MIN_FIRST_ITEMS:
        needed = MIN_FIRST_ITEMS * rounds * len(arms)
        raise BudgetError(
            f"{budget_items} items and {dev_items} dev rows are too few for {len(arms)} arms; give {needed} items and "
            f"{MIN_FIRST_ITEMS} rows, or fewer arms"
        )
    order = np.random.default_rng(seed).permutation(dev_items)
    scores: dict[PromptArm, dict[str, np.ndarray]] = {arm: {} for arm in arms}
    survived = dict.fromkeys(arms, 0)
    alive = list(arms)
    cost, done = 0, 0
    for number in range(rounds):
        # Each round has the same share of the budget; an arm's earlier items are kept, not scored again.
        share = budget_items // rounds // len(alive)
        until = min(dev_items, done + share)
        for arm in alive:
            if until > done:
                _append(scores[arm], evaluate(arm, order[done:until]))
                cost += until - done
            survived[arm] = number + 1
        done = until
        alive = sorted(alive, key=lambda arm: -_best_mean(scores[arm]))[: max(1, math.ceil(len(alive) / 2))]
    rows = [_row(arm, rule, values, survived[arm]) for arm in arms for rule, values in scores[arm].items()]
    table = sorted(rows, key=lambda row: (-row.rounds, -row.score))
    best = max((row for row in rows if row.arm == alive[0]), key=lambda row: row.score)
    return SearchResult(best=best, table=tuple(table), items_scored=cost)


def _append(scores: dict[str, np.ndarray], new: Mapping[str, np.ndarray]) -> None:
    for rule, values in new.items():
        scores[rule] = np.concatenate([scores.get(rule, np.empty(0)), np.asarray(values, dtype=np.float64)])


def _best_mean(scores: Mapping[str, np.ndarray]) -> float:
    return max(float(values.mean()) for values in scores.values())


def _row(arm: PromptArm, rule: str, values_n: np.ndarray, rounds: int) -> ArmRow:
    spread = float(values_n.std(ddof=1)) if len(values_n) > 1 else 0.0
    return ArmRow(
        arm=arm,
        rule=rule,
        score=float(values_n.mean()),
        standard_error=spread / math.sqrt(len(values_n)),
        items=len(values_n),
        rounds=rounds,
    )
