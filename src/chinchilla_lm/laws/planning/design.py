"""Which runs next: those that tell most about the answer for what they cost, and what each further unit buys.

Symbols as in `precision` (K draws of the law, G answers, s noise) and `costs` (trunks, f). Runs are added one
at a time by what they tell for their cost, then exchanged (`search`; Fedorov 1972), on top of a floor that is made
whatever the law says (`candidates`). It refits nothing and trains nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from chinchilla_lm.core.errors import PlanError
from chinchilla_lm.core.units import format_flops, format_seconds
from chinchilla_lm.laws.forms.law import Floats, require_positive
from chinchilla_lm.laws.planning.candidates import Space, core_runs, count_repeats, without_made
from chinchilla_lm.laws.planning.costs import CostModel
from chinchilla_lm.laws.planning.precision import Belief, Goal, Runs, linearise, size_regret, sums_of
from chinchilla_lm.laws.planning.search import Pool, Stop, best_set, grow, order_by_gain

Role = Literal["floor", "repeat", "chosen"]

_BEYOND_BUDGET, _BEYOND_RUNS = 4.0, 12  # how far the curve is drawn past the budget
_REPEATED = (1, 4, 0, 3, 2, 5)  # which floor runs are repeated, in turn: the middle sizes of the two cheap levels first


@dataclass(frozen=True, kw_only=True)
class Made:
    """Runs that are done.

    Attributes:
        params: N of each of m runs.
        tokens: D of each.
        trunks: horizon D that a trunk still on disk serves, by its params; only branches use it.
    """

    params: Floats
    tokens: Floats
    trunks: Mapping[float, float] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a design keeps to besides its budget.

    Attributes:
        most_runs: new runs at most, > 0.
        floor_share: part of the budget that the floor may take, in [0, 1); 0 leaves it out.
        repeats: runs made again with another seed, >= 0, where made runs hold fewer.
        most_seeds: how often one size and length may be chosen, > 0; spread runs tell as much, and show a wrong form.
            Branches of one trunk are chosen once.
        trunk_share: part of the noise variance that branches of one trunk share, in [0, 1). Unmeasured: half is a
            guess between seeds that share their data order and runs that share nothing.
        least_elasticity: stop where no run lowers the error by this many per cent for a per cent more compute; .5 is
            noise alone, 0 never stops.
    """

    most_runs: int = 40
    floor_share: float = 0.25
    repeats: int = 2
    most_seeds: int = 2
    trunk_share: float = 0.5
    least_elasticity: float = 0.05

    def __post_init__(self) -> None:
        for name in ("most_runs", "most_seeds"):
            if getattr(self, name) < 1:
                raise PlanError(f"{name}={getattr(self, name)} must be 1 or more")
        for name in ("floor_share", "trunk_share", "least_elasticity"):
            if not 0 <= getattr(self, name) < 1:
                raise PlanError(f"{name}={getattr(self, name)!r} must be in [0, 1)")
        if self.repeats < 0:
            raise PlanError(f"repeats={self.repeats} must be >= 0; 2 is common")


@dataclass(frozen=True, kw_only=True)
class Error:
    """How far an answer is expected to be off, in nats (ln N* or ln L); .1 is about 10 %.

    Attributes:
        noise: sd over seeds if the form holds.
        misfit: root mean square of what a wrong form adds; see `precision.Misfit`.
    """

    noise: float
    misfit: float

    @property
    def total(self) -> float:
        """Root mean square of both."""
        return math.hypot(self.noise, self.misfit)

    def to_dict(self) -> dict[str, float]:
        """Return the parts and their sum as JSON values."""
        return {"noise": self.noise, "misfit": self.misfit, "total": self.total}


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A run to make.

    Attributes:
        params: N.
        tokens: D, its horizon.
        flops: 6 N D, as if it ran alone.
        cost: what it adds in the order given, in the cost model's unit.
        role: "floor" and "repeat" are made whatever the law says; "chosen" tells most for its cost.
    """

    params: float
    tokens: float
    flops: float
    cost: float
    role: Role


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """What has been paid and what is known then.

    Attributes:
        cost: of all new runs so far.
        n_runs: new runs so far.
        errors: of each answer.
        is_planned: False beyond the budget.
    """

    cost: float
    n_runs: int
    errors: Mapping[str, Error]
    is_planned: bool


@dataclass(frozen=True, kw_only=True)
class Design:
    """Runs to make, what they cost and what they buy.

    Attributes:
        runs: in an order that can be stopped at any point: floor, repeats, then the most telling first.
        cost: of all, in `unit`.
        unit: "flops" or "seconds".
        budget: what could be spent.
        sd_before: error of each answer from the runs already made (or from what was believed without any).
        sd_after: with these runs.
        curve: error against cost, at first before any new run, at last beyond the budget.
        stopped: why no further run is planned.
        reasons: what a reader must know, one sentence each.
    """

    runs: tuple[PlannedRun, ...]
    cost: float
    unit: str
    budget: float
    sd_before: Mapping[str, Error]
    sd_after: Mapping[str, Error]
    curve: tuple[CurvePoint, ...]
    stopped: Stop
    reasons: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values (schema design/1)."""
        return {
            "schema": "design/1",
            "runs": [vars(run) for run in self.runs],
            "cost": self.cost,
            "unit": self.unit,
            "budget": self.budget,
            "sd_before": _errors_dict(self.sd_before),
            "sd_after": _errors_dict(self.sd_after),
            "curve": [{**vars(point), "errors": _errors_dict(point.errors)} for point in self.curve],
            "stopped": self.stopped,
            "reasons": list(self.reasons),
        }


def suggest_runs(
    belief: Belief,
    goal: Goal,
    budget: float,
    *,
    space: Space,
    made: Made | None = None,
    cost_model: CostModel | None = None,
    rules: Rules | None = None,
) -> Design:
    """Choose the runs that tell most about the goal for a budget.

    Args:
        belief: draws of the law, the noise, and how wrong the form may be.
        goal: the answers wanted.
        budget: FLOPs, or seconds where the cost model has speeds; > 0.
        space: the runs that may be made.
        made: runs already made; their cost is sunk.
        cost_model: separate runs paid in FLOPs by default.
        rules: floor, repeats, limits.

    Returns:
        The design.

    Raises:
        PlanError: no run can be paid.

    Source: c-optimal design by exchange, Fedorov 1972; misfit, Box and Draper 1959.
    """
    require_positive(budget, "budget")
    rules, cost_model = rules or Rules(), cost_model or CostModel()
    made = made or Made(params=np.zeros(0), tokens=np.zeros(0))
    pool, floor, n_repeats = _pool(belief, goal, budget, space=space, made=made, cost_model=cost_model, rules=rules)
    best, stopped = best_set(pool, floor, budget, most_runs=rules.most_runs, least_elasticity=rules.least_elasticity)
    if not best:
        cheapest = float(pool.step_costs([]).min())
        raise PlanError(
            f"a budget of {_amount(budget, cost_model)} pays no run worth making; the cheapest allowed costs "
            f"{_amount(cheapest, cost_model)}: give more, or allow smaller runs"
        )
    order = floor + order_by_gain(pool, floor, best[len(floor) :])
    roles = _roles(len(floor) - n_repeats, n_repeats, len(best) - len(floor))
    curve = _curve(pool, order, len(floor), goal, budget)
    planned = [point for point in curve if point.is_planned]
    return Design(
        runs=_planned_runs(pool, order, roles),
        cost=pool.cost(order),
        unit=cost_model.unit,
        budget=budget,
        sd_before=curve[0].errors,
        sd_after=planned[-1].errors,
        curve=tuple(curve),
        stopped=stopped,
        reasons=tuple(_reasons(belief, goal, planned, roles, stopped) + _budget_reasons(curve, budget, cost_model)),
    )


def _pool(  # noqa: PLR0913 - as `suggest_runs`
    belief: Belief, goal: Goal, budget: float, *, space: Space, made: Made, cost_model: CostModel, rules: Rules
) -> tuple[Pool, list[int], int]:
    """Return the candidates, the floor's places among them (repeats last), and how many of those are repeats."""
    shares = cost_model.cooldown_fraction < 1
    params, tokens = space.candidates(made.trunks if shares else ())
    floor: list[int] = []
    if rules.floor_share > 0:
        floor = core_runs(space, params, tokens, cost_model=cost_model, most_cost=rules.floor_share * budget)
    missing = max(rules.repeats - count_repeats(made.params, made.tokens), 0)
    copied = [floor[index] for index in _REPEATED if index < len(floor)][:missing]
    floor = without_made(floor, params, tokens, made.params, made.tokens)[: rules.most_runs]
    copied = copied[: max(rules.most_runs - len(floor), 0)]
    n_free = len(params)
    sizes = np.unique(params)
    trunk = np.searchsorted(sizes, params) if shares else np.arange(n_free)
    horizon = np.zeros(int(trunk.max()) + 1 + len(copied))
    if shares:
        horizon[: len(sizes)] = [made.trunks.get(float(size), 0.0) for size in sizes]
    trunk = np.append(trunk, np.arange(len(horizon) - len(copied), len(horizon))).astype(np.intp)
    params, tokens = np.append(params, params[copied]), np.append(tokens, tokens[copied])
    everything = Runs(
        params=np.append(params, made.params),
        tokens=np.append(tokens, made.tokens),
        trunk=np.append(trunk, len(horizon) + np.arange(len(made.params))).astype(np.intp),
    )
    linear = linearise(belief, everything, goal=goal, trunk_share=rules.trunk_share if shares else 0.0)
    pool = Pool(
        runs=Runs(params=params, tokens=tokens, trunk=trunk),
        n_free=n_free,
        linear=linear.rows(range(len(params))),
        made=sums_of(linear.rows(range(len(params), len(everything.params)))),
        cost_model=cost_model,
        horizon=horizon,
        most_copies=1 if shares else rules.most_seeds,
        sunk=float(cost_model.run_costs(made.params, made.tokens).sum()),
    )
    return pool, floor + list(range(n_free, n_free + len(copied))), len(copied)


def _roles(n_floor: int, n_repeats: int, n_chosen: int) -> list[Role]:
    parts: tuple[tuple[Role, int], ...] = (("floor", n_floor), ("repeat", n_repeats), ("chosen", n_chosen))
    return [role for role, count in parts for _ in range(count)]


def _planned_runs(pool: Pool, order: Sequence[int], roles: Sequence[Role]) -> tuple[PlannedRun, ...]:
    runs: list[PlannedRun] = []
    for count, (place, role) in enumerate(zip(order, roles, strict=True)):
        params, tokens = float(pool.runs.params[place]), float(pool.runs.tokens[place])
        cost = pool.cost(order[: count + 1]) - pool.cost(order[:count])
        runs.append(PlannedRun(params=params, tokens=tokens, flops=6 * params * tokens, cost=cost, role=role))
    return tuple(runs)


def _curve(pool: Pool, order: Sequence[int], n_floor: int, goal: Goal, budget: float) -> list[CurvePoint]:
    """Return nothing made, the floor, each further run of the plan, and what would come after it."""
    beyond, _ = grow(pool, order, _BEYOND_BUDGET * budget, power=0.5, most_runs=len(order) + _BEYOND_RUNS)
    counts = sorted({0, *range(max(n_floor, 1), len(beyond) + 1)})
    points: list[CurvePoint] = []
    for count in counts:
        noise, misfit = pool.errors(beyond[:count])
        errors = {
            answer: Error(noise=float(noise[index]), misfit=float(misfit[index]))
            for index, answer in enumerate(goal.answers)
        }
        cost = pool.cost(beyond[:count])
        points.append(CurvePoint(cost=cost, n_runs=count, errors=errors, is_planned=count <= len(order)))
    return points


def _reasons(
    belief: Belief, goal: Goal, planned: Sequence[CurvePoint], roles: Sequence[Role], stopped: Stop
) -> list[str]:
    after = planned[-1].errors
    said: list[str] = []
    if stopped == "pays_no_more":
        said.append("no further run pays: what a wrong form leaves would stay; allow larger runs, or fit other forms")
    if stopped == "most_runs":
        said.append(f"{len(roles)} runs are as many as allowed; more and smaller ones would tell more for the budget")
    if "floor" not in roles:
        said.append(
            "no grid floor: the budget is too small for one or the runs made hold it; check the fit's residuals"
        )
    for answer, error in after.items():
        if error.misfit > error.noise:
            said.append(
                f"the {answer} depends more on the form ({_percent(error.misfit)}) than on the noise "
                f"({_percent(error.noise)}); fit other forms too before trusting it"
            )
    if "size" in after:
        cost = float(np.median([size_regret(law, goal.flops) for law in belief.laws])) * after["size"].total ** 2
        said.append(f"a size off by its expected error costs {100 * cost:.2g} % of loss at {format_flops(goal.flops)}")
    return said


def _budget_reasons(curve: Sequence[CurvePoint], budget: float, cost_model: CostModel) -> list[str]:
    """Say what twice the compute would buy."""
    planned = [point for point in curve if point.is_planned][-1]
    further = [point for point in curve if point.cost >= 2 * planned.cost]
    if not further:
        return []
    changes = [
        f"{answer} {_percent(error.total)} to {_percent(further[0].errors[answer].total)}"
        for answer, error in planned.errors.items()
    ]
    return [f"with {_amount(further[0].cost, cost_model)} the expected error would go from {' and '.join(changes)}"]


def _percent(error: float) -> str:
    """Write an error in nats as the per cent that it is off, upwards."""
    return f"{100 * math.expm1(error):.2g} %"


def _amount(cost: float, cost_model: CostModel) -> str:
    return format_flops(cost) if cost_model.unit == "flops" else format_seconds(cost)


def _errors_dict(errors: Mapping[str, Error]) -> dict[str, dict[str, float]]:
    return {answer: error.to_dict() for answer, error in errors.items()}
