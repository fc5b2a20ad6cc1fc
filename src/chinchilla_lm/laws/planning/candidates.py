"""Which runs could be made next: a grid of sizes and lengths, and a small grid in it that is made whatever is believed.

Symbols: N `params`, D `tokens`, C = 6 N D. The floor of a design is three levels of compute by three sizes, plus
repeats with another seed: without it a design made for one form would show neither that the form is wrong (lack of fit)
nor how large the noise is (pure error). It knows nothing of laws.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from chinchilla_lm.core.errors import PlanError
from chinchilla_lm.laws.forms.law import Floats, require_positive
from chinchilla_lm.laws.planning.costs import CostModel

# Where three sizes of one compute stand in the allowed range of tokens per parameter, as parts of its logarithm.
_CORE_PLACES = (1 / 6, 1 / 2, 5 / 6)
_CORE_LEVELS = 3
_CORE_TRIES = 24  # heights of the top level that are tried, from the largest run allowed downwards
_NEAR = 0.15 * math.log(10)  # a made run within .15 decades in N and in D stands in for a core run


@dataclass(frozen=True, kw_only=True)
class Space:
    """The runs that may be made.

    Attributes:
        flops_low: least C of a run, > 0.
        flops_high: largest C of a run, > flops_low.
        tokens_per_param_low: least D/N; below about 1 a run is all warm-up.
        tokens_per_param_high: largest D/N. Wide ratios tell most if the form holds, and mislead most if not.
        sizes: N of the models that can be made; empty takes `steps` sizes at equal ratios.
        steps: sizes, and lengths, tried; 40 of each make about 800 candidates.
    """

    flops_low: float
    flops_high: float
    tokens_per_param_low: float = 1.0
    tokens_per_param_high: float = 400.0
    sizes: tuple[float, ...] = ()
    steps: int = 40

    def __post_init__(self) -> None:
        for name in ("flops_low", "flops_high", "tokens_per_param_low", "tokens_per_param_high"):
            require_positive(getattr(self, name), name)
        for size in self.sizes:
            require_positive(size, "size")
        if not self.flops_low < self.flops_high:
            raise PlanError(f"flops_low={self.flops_low:g} must be below flops_high={self.flops_high:g}; widen them")
        if not self.tokens_per_param_low < self.tokens_per_param_high:
            raise PlanError(
                f"tokens_per_param from {self.tokens_per_param_low:g} to {self.tokens_per_param_high:g} holds no run; "
                "give a lower and a higher number"
            )
        if self.steps < 3:
            raise PlanError(f"steps={self.steps} must be 3 or more; 40 is common")

    def candidates(self, more_sizes: Iterable[float] = ()) -> tuple[Floats, Floats]:
        """Return (params, tokens) of every run allowed, each of shape (n,).

        Args:
            more_sizes: N of trunks that exist, tried besides.

        Returns:
            Sizes ascending, and lengths ascending within a size.

        Raises:
            PlanError: no run is allowed.
        """
        low, high = self.tokens_per_param_low, self.tokens_per_param_high
        steps = self.steps
        least, most = math.sqrt(self.flops_low / 6 / high), math.sqrt(self.flops_high / 6 / low)
        sizes = np.array(self.sizes) if self.sizes else np.geomspace(least, most, steps)
        lengths = np.geomspace(math.sqrt(self.flops_low * low / 6), math.sqrt(self.flops_high * high / 6), steps)
        params, tokens = (
            axis.ravel() for axis in np.meshgrid(np.unique([*sizes, *more_sizes]), lengths, indexing="ij")
        )
        slack = 1e-9  # the ends themselves are allowed
        flops, ratio = 6 * params * tokens, tokens / params
        is_allowed = (flops >= self.flops_low * (1 - slack)) & (flops <= self.flops_high * (1 + slack))
        is_allowed &= (ratio >= low * (1 - slack)) & (ratio <= high * (1 + slack))
        if not is_allowed.any():
            raise PlanError(
                f"no run of {self.flops_low:g} to {self.flops_high:g} FLOPs has {low:g} to {high:g} tokens per "
                "parameter at these sizes; widen one of them"
            )
        return params[is_allowed], tokens[is_allowed]


def core_runs(space: Space, params: Floats, tokens: Floats, *, cost_model: CostModel, most_cost: float) -> list[int]:
    """Choose the floor: three levels of compute by three sizes, as high as they can be paid.

    Args:
        space: what is allowed.
        params: N of the candidates.
        tokens: D of the candidates.
        cost_model: how runs are paid for.
        most_cost: what the floor may cost.

    Returns:
        Places among the candidates, cheapest level first; empty where even the cheapest floor costs too much.
    """
    ratio = math.log(space.tokens_per_param_high / space.tokens_per_param_low)
    wanted: list[float] = [math.log(space.tokens_per_param_low) + place * ratio for place in _CORE_PLACES]
    log_flops, log_ratio = np.log(6 * params * tokens), np.log(tokens / params)
    lowest, span = math.log(space.flops_low), math.log(space.flops_high / space.flops_low)
    for height in range(_CORE_TRIES, 0, -1):
        picked: list[int] = []
        for step in range(_CORE_LEVELS):
            level = lowest + span * height / _CORE_TRIES * step / (_CORE_LEVELS - 1)
            for place in wanted:
                nearest = int(np.argmin((log_flops - level) ** 2 + (log_ratio - place) ** 2))
                if nearest not in picked:
                    picked.append(nearest)
        if cost_model.sweep_cost(params[picked], tokens[picked]) <= most_cost:
            return picked
    return []


def without_made(
    picked: Sequence[int], params: Floats, tokens: Floats, made_params: Floats, made_tokens: Floats
) -> list[int]:
    """Return the core runs that no made run stands near."""
    kept: list[int] = []
    for index in picked:
        apart = np.maximum(np.abs(np.log(made_params / params[index])), np.abs(np.log(made_tokens / tokens[index])))
        if not (apart < _NEAR).any():
            kept.append(index)
    return kept


def count_repeats(params: Floats, tokens: Floats) -> int:
    """Return how many runs repeat another's (N, D): the degrees of freedom of pure error."""
    pairs = set(zip(params.tolist(), tokens.tolist(), strict=True))
    return len(params) - len(pairs)
