"""What a planner is asked: a goal, the conditions it must be met under, and what is known of the law that answers.

Of budget, loss, size and tokens, one or two are given and the others are the answer:

    budget             the least loss          loss              the least cost
    budget + params    its tokens and loss     loss + params     its tokens and cost
    budget + tokens    its size and loss       loss + tokens     its size and cost
    params             tokens that suit it     tokens            the size that suits them
    params + tokens    loss and cost

Values; they compute nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from chinchilla_lm.core.errors import PlanError
from chinchilla_lm.laws.planning.demand import Demand
from chinchilla_lm.laws.task_law import TaskLaw

_EXAMPLES = {"flops": "1e20", "loss": "2.5", "params": "1e9", "tokens": "2e10"}


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What is given; None is what is asked for.

    Attributes:
        flops: budget in FLOPs of training, > 0; where tokens are served, it pays for training and serving together.
        loss: to be reached, nats per token, > 0.
        params: N, > 0, in the law's convention.
        tokens: D, > 0, repeats included.
    """

    flops: float | None = None
    loss: float | None = None
    params: float | None = None
    tokens: float | None = None

    def __post_init__(self) -> None:
        """Refuse what is no question.

        Raises:
            PlanError: nothing or too much given, or a number that is not finite and > 0.
        """
        for name, example in _EXAMPLES.items():
            number = getattr(self, name)
            if number is not None and not (math.isfinite(number) and number > 0):
                raise PlanError(f"{_WORDS[name]}={number!r} must be finite and > 0; write for example {example}")
        if not self.given:
            raise PlanError("nothing to plan for; give a budget, a loss, a size or a number of tokens")
        if {"flops", "loss"} <= self.given:
            raise PlanError("a budget and a loss are two goals; give one of them and read the other off the plan")
        if len(self.given) > 2:
            names = ", ".join(_WORDS[name] for name in _EXAMPLES if name in self.given)
            raise PlanError(f"{names} leave nothing to plan; give one or two of them")

    @property
    def given(self) -> frozenset[str]:
        """Names of what is given."""
        return frozenset(name for name in _EXAMPLES if getattr(self, name) is not None)

    @property
    def has_fixed_size_or_tokens(self) -> bool:
        """Say whether the user, not the law, chose the size or the tokens."""
        return bool(self.given & {"params", "tokens"})


_WORDS = {"flops": "budget", "loss": "loss", "params": "params", "tokens": "tokens"}


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Under what the goal must be met.

    Attributes:
        unique_tokens: U > 0, distinct tokens there are; beyond them text repeats and is worth less. None: no limit.
        overtrain: tokens per param over the optimal ones of the same compute, > 0; 4 halves the size and doubles the
            tokens.
        demand: tokens to be served later; they make smaller models better.
    """

    unique_tokens: float | None = None
    overtrain: float = 1.0
    demand: Demand = field(default_factory=Demand)

    def __post_init__(self) -> None:
        """Refuse numbers out of range and settings that conflict.

        Raises:
            PlanError: see the message.
        """
        for name in ("unique_tokens", "overtrain"):
            number = getattr(self, name)
            if number is not None and not (math.isfinite(number) and number > 0):
                raise PlanError(f"{name}={number!r} must be finite and > 0; leave it out for the default")
        if self.overtrain != 1 and self.demand.tokens:
            raise PlanError("inference tokens and overtrain both move the size; give one of them")


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is known of the law that answers.

    Attributes:
        name: of the law, for the record.
        largest_flops: compute of the largest run behind it; None: unknown, and so no band for a loss.
        draws: resamples of its constants, shape (K, 5) of E, A, B, alpha, beta or (K, 6) with kappa; None: unknown, and
            so no intervals for size and tokens.
    """

    name: str = ""
    largest_flops: float | None = None
    draws: npt.NDArray[np.float64] | None = None
    tasks: Mapping[str, TaskLaw] = field(default_factory=dict[str, TaskLaw])


def check_together(goal: Goal, conditions: Conditions) -> None:
    """Refuse a goal that its conditions contradict.

    Raises:
        PlanError: over-training where size or tokens are fixed together with another goal.
    """
    if conditions.overtrain != 1 and len(goal.given) == 2:
        raise PlanError(
            f"overtrain={conditions.overtrain:g} chooses the tokens per param, which the goal already fixes; "
            "leave out one of overtrain, params and tokens"
        )
