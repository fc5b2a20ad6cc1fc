"""Effective compute: how much less compute recipe B needs than recipe A for the same loss, with an interval.

Symbols as in `frontiers`: m(C) = C / C_B(L*_A(C)) at a compute C of recipe A; m = 2 says that B reaches with C / 2
what A reaches with C. The interval holds the noise (draws), widened for few runs, and the lack of fit: how far the
other way to a frontier disagrees with the one reported. Losses must be on the same held-out text with the same
tokenizer; a table cannot show that. It refuses tables whose losses do not overlap: both would be extrapolated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from scipy.special import stdtrit  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType] - no stubs

from chinchilla_lm.core.errors import FitError
from chinchilla_lm.laws.forms.law import Floats, require_positive
from chinchilla_lm.laws.table import RunTable
from chinchilla_lm.laws.trust.frontiers import (
    FEWEST_RUNS,
    Frontiers,
    law_frontiers,
    line_frontiers,
    shared_frontiers,
    shared_groups,
)

Method = Literal["laws", "shared", "lines"]

LEVEL = 0.9
_POINTS = 5  # computes in the common range that are reported
_FINE = 200  # computes at which the common range is sought
_NORMAL_95 = 1.6448536  # the normal's 95th percentile: half of what is outside 90 %
_DECADE = math.log(10.0)


@dataclass(frozen=True, kw_only=True)
class MultiplierPoint:
    """The multiplier at one compute.

    Attributes:
        flops: C of recipe A.
        loss: L*_A(C), nats per token.
        multiplier: m, > 0; above 1 B is better.
        low: lower end of the 90 % interval.
        high: upper end.
        is_extrapolated: outside what both tables cover.
    """

    flops: float
    loss: float
    multiplier: float
    low: float
    high: float
    is_extrapolated: bool = False


@dataclass(frozen=True, kw_only=True)
class Trend:
    """By what factor the multiplier changes over a decade of compute, with its 90 % interval."""

    per_decade: float
    low: float
    high: float

    @property
    def is_seen(self) -> bool:
        """Whether the interval leaves out 1, no change."""
        return self.low > 1 or self.high < 1


@dataclass(frozen=True, kw_only=True)
class Multiplier:
    """What is said of two recipes.

    Attributes:
        method: "laws", "shared" or "lines".
        point: at the compute asked for, or in the middle of the common range.
        points: across the common range.
        trend: with scale, or None where the common range is too short or the method holds it at 1.
        common_flops: computes of A at which both recipes have runs of that loss and on both sides.
        noise_sd: of ln m at `point`, from the draws.
        form_sd: of ln m at `point`, from how far other methods disagree.
        n_a: runs of A.
        n_b: runs of B.
        is_paired: both tables hold the same sizes and lengths (or sizes, where clustered), drawn together.
        warnings: what a reader must know, one sentence each.
    """

    method: Method
    point: MultiplierPoint
    points: tuple[MultiplierPoint, ...]
    trend: Trend | None
    common_flops: tuple[float, float]
    noise_sd: float
    form_sd: float
    n_a: int
    n_b: int
    is_paired: bool
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values (schema multiplier/1)."""
        return {
            "schema": "multiplier/1",
            "method": self.method,
            "interval_level": LEVEL,
            **vars(self.point),
            "points": [vars(point) for point in self.points],
            "trend": None if self.trend is None else vars(self.trend),
            "common_flops": list(self.common_flops),
            "noise_sd": self.noise_sd,
            "form_sd": self.form_sd,
            "n_a": self.n_a,
            "n_b": self.n_b,
            "is_paired": self.is_paired,
            "warnings": list(self.warnings),
        }


def compare_recipes(  # noqa: PLR0913 - two tables, the question and how it is answered
    a: RunTable,
    b: RunTable,
    *,
    method: Method | None = None,
    at_flops: float | None = None,
    is_clustered: bool = False,
    draws: int = 400,
    seed: int = 0,
) -> Multiplier:
    """Say with how much less compute recipe B reaches recipe A's loss.

    Args:
        a: runs of recipe A, the one that is compared with.
        b: runs of recipe B.
        method: see `frontiers`; None takes separate laws from 12 runs each, a shared law from 4, else lines.
        at_flops: a compute of A; None takes the middle of the common range.
        is_clustered: runs of one size are checkpoints or branches of one run, whose errors go together.
        draws: of the interval, >= 100.
        seed: of the draws.

    Returns:
        The multiplier, its interval, and its trend with scale.

    Raises:
        FitError: too few runs, losses that do not overlap, or an unknown method.
    """
    _require_request(method, draws, at_flops)
    _require_overlap(a, b)
    chosen = method or _method_for(a, b)
    groups_a, groups_b, is_paired = shared_groups(a, b, is_clustered=is_clustered)
    made: dict[Method, Frontiers] = {
        each: _frontiers(each, a, b, (groups_a, groups_b), draws=draws, seed=seed)
        for each in (chosen, *_others(chosen, a, b))
    }
    main = made[chosen]
    common = _common_range(main, a, b, use_own_flops=chosen == "lines")
    shown = np.linspace(math.log(common[0]), math.log(common[1]), _POINTS)
    asked = float(shown.mean()) if at_flops is None else math.log(at_flops)
    at = np.append(shown, asked)
    form_sd = _form_sd({name: found.log_multiplier(at) for name, found in made.items()}, chosen)
    points, noise_sd = _points(main, at, form_sd)
    is_outside = not math.log(common[0]) - 1e-9 <= asked <= math.log(common[1]) + 1e-9
    point = replace(points[-1], is_extrapolated=is_outside)
    warnings = _warnings(a, b, point, common, form_sd=float(form_sd[-1]), noise_sd=float(noise_sd[-1]))
    return Multiplier(
        method=chosen,
        point=point,
        points=tuple(points[:-1]),
        trend=_trend(made, chosen, shown),
        common_flops=common,
        noise_sd=float(noise_sd[-1]),
        form_sd=float(form_sd[-1]),
        n_a=len(a.loss),
        n_b=len(b.loss),
        is_paired=is_paired and chosen != "lines",
        warnings=tuple(warnings),
    )


def _require_request(method: Method | None, draws: int, at_flops: float | None) -> None:
    if method is not None and method not in get_args(Method):
        raise FitError(f"method {method!r} is unknown; choose from {', '.join(get_args(Method))}")
    if draws < 100:
        raise FitError(f"draws={draws} are too few for an interval; give 100 or more")
    if at_flops is not None:
        require_positive(at_flops, "at_flops")


def _require_overlap(a: RunTable, b: RunTable) -> None:
    low, high = max(a.loss.min(), b.loss.min()), min(a.loss.max(), b.loss.max())
    if not low < high:
        raise FitError(
            f"the losses of A ({a.loss.min():.4g} to {a.loss.max():.4g}) and B ({b.loss.min():.4g} to "
            f"{b.loss.max():.4g}) do not overlap, so no loss is reached by both; add larger runs of the worse recipe "
            "or smaller ones of the better"
        )


def _method_for(a: RunTable, b: RunTable) -> Method:
    fewest = min(len(a.loss), len(b.loss))
    if fewest >= 2 * FEWEST_RUNS["laws"]:
        return "laws"
    return "shared" if fewest >= FEWEST_RUNS["shared"] else "lines"


def _others(chosen: Method, a: RunTable, b: RunTable) -> list[Method]:
    """Return the methods whose answers the chosen one is compared with."""
    if chosen == "lines":
        return []
    other: Method = "shared" if chosen == "laws" else "laws"
    return [other] if min(len(a.loss), len(b.loss)) >= FEWEST_RUNS[other] else []


def _frontiers(
    method: Method, a: RunTable, b: RunTable, groups: tuple[Any, Any], *, draws: int, seed: int
) -> Frontiers:
    if method == "laws":
        return law_frontiers(a, b, groups, draws=draws, seed=seed)
    if method == "shared":
        return shared_frontiers(a, b, groups, draws=draws, seed=seed)
    return line_frontiers(a, b, draws=draws, seed=seed)


def _common_range(main: Frontiers, a: RunTable, b: RunTable, *, use_own_flops: bool) -> tuple[float, float]:
    """Return the computes of A whose loss both tables hold, and that B's runs reach on both sides."""
    flops_a, flops_b = (table.flops if use_own_flops else 6 * table.params * table.tokens for table in (a, b))
    grid = np.linspace(math.log(float(flops_a.min())), math.log(float(flops_a.max())), _FINE)
    needed = grid - main.log_multiplier(grid)[0]
    low, high = math.log(float(flops_b.min())), math.log(float(flops_b.max()))
    inside = grid[(needed >= low) & (needed <= high)]
    if len(inside) < 2:
        raise FitError(
            f"B would need {math.exp(float(needed.min())):.2g} to {math.exp(float(needed.max())):.2g} FLOPs for the "
            f"losses of A, and has runs of {flops_b.min():.2g} to {flops_b.max():.2g}; add runs of B of that compute"
        )
    return math.exp(float(inside[0])), math.exp(float(inside[-1]))


def _form_sd(logs: Mapping[Method, Floats], chosen: Method) -> Floats:
    """Return how far the other method's ln m lies off beyond what noise explains: the lack of fit.

    Args:
        logs: ln m of each method, (draws, points), row 0 the fit.
        chosen: the method reported.

    Returns:
        sd at each point; 0 without another method.

    Source: of two estimates of which one is efficient, the difference varies by the difference of their variances
        (Hausman 1978).
    """
    squares = np.zeros(logs[chosen].shape[1])
    for other in logs.values():
        gap = other[0] - logs[chosen][0]
        noise = np.abs(other[1:].var(axis=0) - logs[chosen][1:].var(axis=0))
        squares = squares + np.maximum(gap**2 - noise, 0.0)
    return np.sqrt(squares)


def _widening(freedom: float) -> float:
    """Return how much wider Student's interval is than the normal's."""
    return float(stdtrit(freedom, 0.5 + LEVEL / 2)) / _NORMAL_95


def _interval(point: Floats, drawn: Floats, form_sd: Floats, freedom: float) -> tuple[Floats, Floats, Floats]:
    """Return low, high and sd of a logarithm: the draws' percentiles, widened, and the form's part in squares."""
    low, middle, high = np.quantile(drawn, [0.5 - LEVEL / 2, 0.5, 0.5 + LEVEL / 2], axis=0)
    wide, form = _widening(freedom), _NORMAL_95 * form_sd
    below, above = wide * np.maximum(middle - low, 0.0), wide * np.maximum(high - middle, 0.0)
    sd = (high - low) / (2 * _NORMAL_95)
    return point - np.hypot(below, form), point + np.hypot(above, form), sd


def _points(main: Frontiers, at: Floats, form_sd: Floats) -> tuple[list[MultiplierPoint], Floats]:
    logs = main.log_multiplier(at)
    low, high, sd = _interval(logs[0], logs[1:], form_sd, main.freedom)
    losses = main.losses(at)[0]
    points = [
        MultiplierPoint(
            flops=math.exp(float(at[index])),
            loss=float(losses[index]),
            multiplier=math.exp(float(logs[0, index])),
            low=math.exp(float(low[index])),
            high=math.exp(float(high[index])),
        )
        for index in range(len(at))
    ]
    return points, sd


def _trend(made: Mapping[Method, Frontiers], chosen: Method, shown: Floats) -> Trend | None:
    """Return the change over a decade from the ends of the common range; None below a third of a decade."""
    span = float(shown[-1] - shown[0]) / _DECADE
    if chosen == "lines" or span < 1 / 3:
        return None
    ends = shown[[0, -1]]
    slopes: dict[Method, Floats] = {
        method: np.diff(found.log_multiplier(ends), axis=1) / span for method, found in made.items()
    }
    slope = slopes[chosen]
    form_sd = _form_sd(slopes, chosen)
    low, high, _ = _interval(slope[0], slope[1:], form_sd, made[chosen].freedom)
    return Trend(per_decade=math.exp(float(slope[0, 0])), low=math.exp(float(low[0])), high=math.exp(float(high[0])))


def _warnings(
    a: RunTable, b: RunTable, point: MultiplierPoint, common: tuple[float, float], *, form_sd: float, noise_sd: float
) -> Sequence[str]:
    said = [f"recipe {name}: {warning}" for name, table in (("A", a), ("B", b)) for warning in table.warnings]
    if point.is_extrapolated:
        said.append(
            f"{point.flops:.2g} FLOPs lie outside {common[0]:.2g} to {common[1]:.2g}, where both recipes have runs; "
            "the interval does not hold what an extrapolation errs, so add runs there"
        )
    if form_sd > 2 * noise_sd:
        said.append(
            f"one law for both recipes and a law for each disagree by {100 * math.expm1(form_sd):.0f} %, more than the "
            "noise explains; the recipes differ in more than compute, so compare them at each scale"
        )
    if common[1] / common[0] < 3:
        said.append(
            f"both recipes have runs of the same losses only from {common[0]:.2g} to {common[1]:.2g} FLOPs; "
            "add runs to see a trend"
        )
    return said
