"""Budget -> model: how large, on how many tokens, what loss, how flat the choice is, and what it costs.

The path a question takes: `question` (what is asked) -> `surface` (the law) -> `solving`, `optimum` (the best size) ->
`answer` (the plan), with `intervals`, `feasible` shapes and a `bill` added. Symbols: N `params`, D `tokens`,
U `unique_tokens`, C `flops` = 6 N D of training, L `loss` in nats per token. It never trains, reads files or prints.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from chinchilla_lm.core.errors import PlanError
from chinchilla_lm.laws.forms.allocation import AllocationLaw
from chinchilla_lm.laws.forms.law import Floats
from chinchilla_lm.laws.forms.record import AnyLaw, LossForm
from chinchilla_lm.laws.planning import optimum
from chinchilla_lm.laws.planning.answer import FlatBand, Interval, Plan, Serving, TextSupport
from chinchilla_lm.laws.planning.feasible import ShapeRequest, rank_shapes
from chinchilla_lm.laws.planning.intervals import intervals_of_draws, loss_band
from chinchilla_lm.laws.planning.question import Conditions, Evidence, Goal, check_together
from chinchilla_lm.laws.planning.solving import solve, why_unreachable
from chinchilla_lm.laws.planning.surface import Surface, surface_of, surface_of_draws

FLAT_PENALTY = 0.005  # the band of sizes that cost less than half a per cent of loss
_MANY_EPOCHS = 8.0  # beyond them repeats are worth less than half of fresh text (Muennighoff et al. 2023, eq. 5)
_FARTHEST_TESTED = 100.0  # times the compute of the runs (bench/planning.py --band)
_SPENT = 1e-6  # of the loss, above its floor: the compute behind it has lost its digits
_FAR_FROM_OPTIMAL = 10.0  # times the optimal tokens per param: Sardana et al. 2024 find laws too hopeful there


def make_plan(
    goal: Goal, law: AnyLaw, *, conditions: Conditions | None = None, evidence: Evidence | None = None
) -> Plan:
    """Answer a question about size, tokens, loss and compute.

    Args:
        goal: what is given: one or two of budget, loss, size and tokens.
        law: the law that answers; its N is the plan's N.
        conditions: limited text, over-training, serving; none of them by default.
        evidence: the law's name, reach and resamples; without them the plan has no bands, and says so.

    Returns:
        The plan, without shapes (`add_shapes`) and bill (`bill.add_bill`).

    Raises:
        PlanError: settings that conflict, a law that cannot answer, a loss out of reach, or a budget that serving
            alone spends.

    Source: Hoffmann et al. 2022, eq. 4; repetition: Muennighoff et al. 2023, eq. 5 and 6; serving: Sardana et al. 2024
        (arXiv 2401.00448); over-training as in Gadre et al. 2024 (arXiv 2403.08540).
    """
    conditions = conditions or Conditions()
    evidence = evidence or Evidence()
    check_together(goal, conditions)
    if isinstance(law, AllocationLaw):
        return _plan_allocation(goal, law, conditions, evidence)
    surface = surface_of(law, conditions.unique_tokens)
    x, y = solve(surface, goal, conditions)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise PlanError(why_unreachable(surface, goal))
    if min(float(x[0]), float(y[0])) < 0:
        raise PlanError(
            f"the best plan has {math.exp(x[0]):.2g} params and {math.exp(y[0]):.2g} tokens: under one is none; "
            "give a larger budget, more tokens, or fewer tokens to serve"
        )
    made = _bare_plan(float(x[0]), float(y[0]), float(surface.loss(x, y)[0]), law, goal, conditions)
    draws = None if evidence.draws is None else surface_of_draws(evidence.draws, law, conditions.unique_tokens)
    made = _add_uncertainty(made, surface, draws, evidence)
    made = replace(made, law=evidence.name, overhead=_overhead(surface, x, y))
    made = replace(made, flat_band=_flat_band(surface, made), serving=_serving(surface, made), text=_text(surface))
    return replace(made, notes=_notes(made, surface, evidence))


def add_shapes(plan: Plan, law: AnyLaw, *, context: int, vocab: int | None = None) -> Plan:
    """Return the plan with the feasible shapes around its size, best first.

    Args:
        plan: what to train.
        law: that made it.
        context: tokens in a sequence, > 0.
        vocab: words of the tokenizer; None takes what suits the budget.

    Returns:
        The plan with shapes, or with a note where none is near.
    """
    goal = plan.goal
    is_fixed = goal.has_fixed_size_or_tokens or plan.conditions.overtrain != 1
    request = ShapeRequest(
        params=plan.params,
        tokens=plan.tokens,
        flops=plan.flops,
        total_flops=None if goal.tokens is not None else goal.flops,
        loss=None if goal.tokens is not None else goal.loss,
        params_convention=plan.params_convention,
        is_fixed=is_fixed,
        demand=plan.conditions.demand,
    )
    surface = None if isinstance(law, AllocationLaw) else surface_of(law, plan.conditions.unique_tokens)
    shapes = rank_shapes(request, surface, context=context, vocab=vocab)
    if shapes:
        return replace(plan, shapes=shapes)
    note = f"no shape near {plan.params:.3g} params: the smallest is 16 wide, the largest 65536; size it by hand"
    return replace(plan, notes=(*plan.notes, note))


def _bare_plan(x: float, y: float, loss: float, law: LossForm, goal: Goal, conditions: Conditions) -> Plan:
    params, tokens = goal.params or math.exp(x), goal.tokens or math.exp(y)
    served = conditions.demand.training_equivalent
    return Plan(
        goal=goal,
        conditions=conditions,
        params=params,
        tokens=tokens,
        flops=6 * params * tokens,
        total_flops=params * (6 * tokens + 2 * served),
        loss=loss,
        loss_low=None,
        loss_high=None,
        tokens_per_param=tokens / params,
        epochs=1.0 if conditions.unique_tokens is None else max(1.0, tokens / conditions.unique_tokens),
        overhead=None,
        flat_band=None,
        law="",
        params_convention=law.params_convention,
    )


def _plan_allocation(goal: Goal, law: AllocationLaw, conditions: Conditions, evidence: Evidence) -> Plan:
    """Answer by a law that only splits a budget: size from budget, and back."""
    if conditions.demand.tokens or conditions.unique_tokens is not None:
        raise PlanError("this law states no loss away from the optimum, so it cannot weigh repeats or serving; "
                        "use a parametric law such as besiroglu2024")  # fmt: skip
    if len(goal.given) > 1:
        raise PlanError("this law states no loss away from the optimum, so it goes from one of budget, size and tokens "
                        "to the others; use a parametric law such as besiroglu2024")  # fmt: skip
    root = math.sqrt(conditions.overtrain)
    if goal.flops is not None:
        flops = goal.flops
    elif goal.params is not None:  # N sqrt(K) = c C^a
        flops = (goal.params * root / law.coefficient) ** (1 / law.exponent)
    elif goal.tokens is not None:  # 6 D / sqrt(K) = C^(1 - a) / c
        flops = (6 * goal.tokens / root * law.coefficient) ** (1 / (1 - law.exponent))
    else:
        assert goal.loss is not None
        if law.line is None or root != 1:
            raise PlanError(f"loss={goal.loss:g} is nothing that this law can aim at: it only splits a budget; "
                            "use a parametric law such as besiroglu2024")  # fmt: skip
        flops = law.line.flops_for_loss(goal.loss)
    params = law.optimum(flops)[0] / root
    loss = law.line.loss(flops) if law.line is not None and root == 1 else None
    low, high = (None, None) if loss is None else loss_band(loss, flops, evidence, None)
    notes = ("no loss and no flat band: this law only splits a budget",)
    if loss is not None:
        notes = ("no flat band: this law states no loss away from the optimum",)
        notes += () if low is not None else (_NO_BAND,)
    return Plan(
        goal=goal,
        conditions=conditions,
        params=params,
        tokens=flops / 6 / params,
        flops=flops,
        total_flops=flops,
        loss=loss,
        loss_low=low,
        loss_high=high,
        tokens_per_param=flops / 6 / params**2,
        epochs=1.0,
        overhead=None,
        flat_band=None,
        law=evidence.name,
        params_convention=law.params_convention,
        notes=(*notes, _NO_DRAWS),
    )


_NO_BAND = "no band for the loss: the compute of the runs behind this law is not known"
_NO_DRAWS = "no intervals for size and tokens: the resamples of this law's fit are not known"


def _add_uncertainty(made: Plan, surface: Surface, draws: Surface | None, evidence: Evidence) -> Plan:
    """Add the band of the loss and the intervals of what the goal leaves open."""
    goal, conditions = made.goal, made.conditions
    assert made.loss is not None
    x, y = np.log(np.array([made.params])), np.log(np.array([made.tokens]))
    low, high = loss_band(made.loss, made.flops, evidence, None if draws is None else draws.loss(x, y))
    intervals: Mapping[str, Interval] = {}
    served = conditions.demand.training_equivalent
    if draws is not None:
        intervals = intervals_of_draws(draws, lambda rows: solve(rows, goal, conditions), served)
    if goal.loss is not None and low is not None and high is not None:
        intervals = {**intervals, **_cost_of_band(surface, made, low, high)}
    return replace(made, loss_low=low, loss_high=high, intervals=intervals)


def _cost_of_band(surface: Surface, made: Plan, low: float, high: float) -> dict[str, Interval]:
    """Return the compute that reaches the loss if the law errs by its band: what it says of a loss so much off."""
    assert made.loss is not None
    served = made.conditions.demand.training_equivalent
    ends: list[tuple[float, float]] = []
    for loss in (made.loss**2 / low, made.loss**2 / high):  # the truth may be lower, or higher, by the band
        x, y = solve(surface, replace(made.goal, loss=loss), made.conditions)
        ends.append((float(6 * np.exp(x + y)[0]), float(optimum.total_flops(x, y, served)[0])))
    (flops_low, total_low), (flops_high, total_high) = ends
    return {
        "flops": Interval(low=flops_low, high=flops_high if math.isfinite(flops_high) else None),
        "total_flops": Interval(low=total_low, high=total_high if math.isfinite(total_high) else None),
    }


def _overhead(surface: Surface, x: Floats, y: Floats) -> float | None:
    """Return the compute beyond the least for the same loss, as a share; None where the text is spent."""
    return None if _is_spent(surface, surface.loss(x, y)) else max(0.0, float(optimum.overhead(surface, x, y)[0]))


def _is_spent(surface: Surface, loss: Floats) -> bool:
    """Say whether repeats have brought the loss to the floor of the text, where it says nothing of compute."""
    return bool((loss - surface.least_loss() < _SPENT * loss).all())


def _flat_band(surface: Surface, made: Plan) -> FlatBand:
    served = made.conditions.demand.training_equivalent
    low, high = optimum.flat_band(surface, made.total_flops, served, FLAT_PENALTY)
    return FlatBand(params_low=math.exp(low[0]), params_high=math.exp(high[0]), loss_penalty=FLAT_PENALTY)


def _serving(surface: Surface, made: Plan) -> Serving | None:
    """Compare with training for the loss alone, as Sardana et al. 2024 do."""
    demand = made.conditions.demand
    if not demand.tokens:
        return None
    served = demand.training_equivalent
    flops = demand.flops(made.params)
    if _is_spent(surface, np.array([made.loss])):
        return Serving(demand=demand, flops=flops, saving_flops=None, saving_share=None)
    alone = optimum.total_flops(*optimum.least_cost(surface, np.array([made.loss])), served)
    saving = float(alone[0]) - made.total_flops
    return Serving(demand=demand, flops=flops, saving_flops=saving, saving_share=saving / float(alone[0]))


def _text(surface: Surface) -> tuple[TextSupport, ...]:
    """Say how large a model a limited text supports in one pass and in four (nearly as good as fresh: Muennighoff)."""
    if math.isinf(surface.unique_tokens):
        return ()
    found: list[TextSupport] = []
    for epochs in (1.0, 4.0):
        tokens = epochs * surface.unique_tokens
        params = float(np.exp(optimum.params_that_suit(surface, np.log(np.array([tokens]))))[0])
        found.append(TextSupport(epochs=epochs, params=params, tokens=tokens, flops=6 * params * tokens))
    return tuple(found)


def _notes(made: Plan, surface: Surface, evidence: Evidence) -> tuple[str, ...]:
    """Say what a reader must know, each with the way out or the reason."""
    notes: list[str] = []
    if made.loss_low is None:
        notes.append(_NO_BAND)
    if evidence.draws is None:
        notes.append(_NO_DRAWS)
    if evidence.largest_flops is not None and made.flops > evidence.largest_flops * 1.5:
        ratio = made.flops / evidence.largest_flops
        untested = ", and bands are tested up to 100 times" if ratio > _FARTHEST_TESTED else ""
        notes.append(
            f"{ratio:,.3g} times the compute of the largest run behind this law{untested}: "
            "a run in between would narrow the band"
        )
    if made.loss_low is not None and made.epochs > 1:
        notes.append("the band of the loss is that of fresh text; how much repeats are worth is less well known")
    if made.epochs > _MANY_EPOCHS:
        notes.append(
            f"{made.epochs:.1f} epochs: beyond 8 the text is nearly spent; more text is worth more than compute"
        )
    x, y = optimum.least_loss(surface, np.array([made.flops]))
    if made.tokens_per_param > _FAR_FROM_OPTIMAL * float(np.exp(y - x)[0]):
        notes.append(
            f"{made.tokens_per_param:,.3g} tokens per param is over 10 times the optimal ratio, where laws fitted near "
            "it promise too much (Sardana et al. 2024)"
        )
    if made.serving is not None and made.conditions.demand.decode_cost == 1 and made.conditions.demand.decode_tokens:
        notes.append("serving is counted in FLOPs; written tokens take far more device time: name its MFU, about .01")
    return tuple(notes)
