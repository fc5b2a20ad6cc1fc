"""Successive halving: the budget holds, the best arm is found, and only dev items are seen."""

from __future__ import annotations

import numpy as np
import pytest

from chinchilla_lm.core.errors import BudgetError
from chinchilla_lm.prompt.search import PromptArm, search_prompts

ARMS = [PromptArm(template=f"t{number}", draw=draw) for number in range(4) for draw in range(3)]


class World:
    """Items of known difficulty; arm (t2, 1) with the rule bc is the best by 10 points."""

    def __init__(self, seed: int, items: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.luck_n = self.rng.random(items)
        self.asked: list[tuple[PromptArm, np.ndarray]] = []

    def evaluate(self, arm, items):
        self.asked.append((arm, items))
        skill = 0.85 if arm == PromptArm(template="t2", draw=1) else 0.60 + 0.01 * ARMS.index(arm)
        noise_n = np.random.default_rng([ARMS.index(arm), *items.tolist()]).random(len(items)) * 0.2 - 0.1
        return {
            "bc": (self.luck_n[items] + noise_n < skill).astype(float),
            "sum": (self.luck_n[items] + noise_n < skill - 0.2).astype(float),
        }


def test_the_best_arm_and_rule_are_found():
    found = [search_prompts(ARMS, World(seed, 300).evaluate, 300, 3000, seed).best for seed in range(20)]
    assert sum(best.arm == PromptArm(template="t2", draw=1) and best.rule == "bc" for best in found) >= 18


def test_the_budget_holds_and_items_are_asked_once():
    world = World(0, 300)
    result = search_prompts(ARMS, world.evaluate, 300, 2000)
    assert result.items_scored == sum(len(items) for _, items in world.asked) <= 2000
    for arm in ARMS:
        seen = [item for asked, items in world.asked if asked == arm for item in items]
        assert len(seen) == len(set(seen))
    assert max(int(items.max()) for _, items in world.asked if len(items)) < 300
    assert [row.rounds for row in result.table] == sorted((row.rounds for row in result.table), reverse=True)
    assert len(result.table) == 2 * len(ARMS)
    assert result.best.items == max(row.items for row in result.table)
    # Every arm of a round saw the same items.
    first_round = [tuple(items) for _, items in world.asked[: len(ARMS)]]
    assert len(set(first_round)) == 1


def test_a_small_dev_set_is_used_up_and_no_more():
    world = World(0, 20)
    result = search_prompts(ARMS, world.evaluate, 20, 10_000)
    assert result.best.items == 20
    assert result.items_scored == 12 * 20


def test_one_arm_is_scored_on_what_the_budget_buys():
    result = search_prompts(ARMS[:1], World(0, 300).evaluate, 300, 50)
    assert result.best.items == 50
    assert {row.rule for row in result.table} == {"bc", "sum"}


def test_too_small_a_budget_is_refused_with_the_number_needed():
    with pytest.raises(
        BudgetError, match="700 items and 300 dev rows are too few for 12 arms; give 768 items and 16 rows"
    ):
        search_prompts(ARMS, World(0, 300).evaluate, 300, 700)
    with pytest.raises(BudgetError, match="15 dev rows"):
        search_prompts(ARMS, World(0, 15).evaluate, 15, 10_000)
