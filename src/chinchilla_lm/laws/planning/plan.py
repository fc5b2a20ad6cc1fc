"""Budget -> model: how large, on how many tokens, what loss, how flat the choice is, and what it costs.

Symbols: N `params`, D `tokens`, U `unique_tokens`, C `flops` = 6 N D of training, L `loss` in nats per token.
`overtrain` is D/N over the optimal D/N of the same budget. A plan is a value; it never trains, reads files or prints.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np

from chinchilla_lm.core.errors import PlanError
from chinchilla_lm.core.shapes import ModelShape
from chinchilla_lm.laws.count import ParamsConvention, count_parameters
from chinchilla_lm.laws.forms.additive import AdditiveLaw
from chinchilla_lm.laws.forms.allocation import AllocationLaw
from chinchilla_lm.laws.forms.law import Floats
from chinchilla_lm.laws.shapes import path, vocab_for

# Half-lives of repetition, Muennighoff et al. 2023 (arXiv 2305.16264), fitted constants of their repository.
REPEATED_TOKENS = 15.387756
EXCESS_PARAMS = 5.309743
FLAT_PENALTY = 0.005  # the band of sizes that cost less than half a per cent of loss
# 90 % of predictions by the additive law alone lie within this of the truth, in ln L: .01 + .052 per decade of compute
# beyond the fitted runs (median errors .9, 2.5, 3.9 % at about .3, .9, 1.6 decades on public
# sweeps; dev/LOG.md 2026-11-21).
_ERROR_AT_EDGE, _ERROR_PER_DECADE = 0.010, 0.052
_SIZE_RANGE = math.log(1e4)  # sizes tried: 1e-4 to 1e4 times the optimum for fresh text
_GRID = 2001


@dataclass(frozen=True, kw_only=True)
class FlatBand:
    """Sizes that cost nearly nothing.

    Attributes:
        params_low: smallest size.
        params_high: largest size.
        loss_penalty: what they may cost, relative to the least loss of the same budget.
    """

    params_low: float
    params_high: float
    loss_penalty: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to train.

    Attributes:
        params: N in the law's convention.
        tokens: D to train on, repeats included.
        flops: of training, 6 N D.
        loss: expected, nats per token; None where the law states none.
        loss_low: lower end of the 90 % band, or None.
        loss_high: upper end, or None.
        tokens_per_param: D / N.
        epochs: D / U, at least 1; 1 without a limit on text.
        flat_band: sizes of nearly the same loss, or None where the law states no loss.
        law: name of the law.
        params_convention: which weights N counts.
        gpu_hours: device-hours, where a device is named.
        cost: dollars, where a price is named.
        shape: a model of about this size, where one was asked for.
        notes: what a reader must know, one sentence each.
    """

    params: float
    tokens: float
    flops: float
    loss: float | None
    loss_low: float | None
    loss_high: float | None
    tokens_per_param: float
    epochs: float
    flat_band: FlatBand | None
    law: str
    params_convention: ParamsConvention
    gpu_hours: float | None = None
    cost: float | None = None
    shape: ModelShape | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        names = ("params", "tokens", "flops", "loss", "loss_low", "loss_high", "tokens_per_param", "epochs")
        band = self.flat_band
        return {
            **{name: getattr(self, name) for name in names},
            "gpu_hours": self.gpu_hours,
            "cost": self.cost,
            "flat_band": None
            if band is None
            else {
                "params_low": band.params_low,
                "params_high": band.params_high,
                "loss_penalty": band.loss_penalty,
            },
            "shape": None if self.shape is None else self.shape.to_dict(),
            "law": self.law,
            "params_convention": self.params_convention,
            "notes": list(self.notes),
        }


@dataclass(frozen=True, kw_only=True)
class SpeedOption:
    """A model that could be trained, and how fast this machine trains it: measured tokens per second, > 0."""

    shape: ModelShape
    params: float
    tokens_per_s: float


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What an option reaches in a given time.

    Attributes:
        shape: the model.
        params: its N, in the convention of the loss.
        tokens: D trained on in that time, repeats included.
        epochs: D / U, at least 1.
        seconds: the time.
        loss: expected, nats per token.
    """

    shape: ModelShape
    params: float
    tokens: float
    epochs: float
    seconds: float
    loss: float


def plan_budget(
    budget_flops: float,
    law: AdditiveLaw | AllocationLaw,
    *,
    unique_tokens: float | None = None,
    overtrain: float = 1.0,
    inference_tokens: float = 0.0,
    largest_flops: float | None = None,
    law_name: str = "",
) -> Plan:
    """Choose size and tokens for a budget.

    Args:
        budget_flops: what training may spend, > 0; with `inference_tokens` what training and serving may together.
        law: the law that chooses; its N is the plan's N.
        unique_tokens: distinct tokens there are; beyond them text repeats and is worth less. None: no limit.
        overtrain: tokens per param over the optimal ones, > 0; 4 halves the size and doubles the tokens.
        inference_tokens: tokens to be served later at 2 N FLOPs each, >= 0; they make smaller models better.
        largest_flops: compute of the largest run behind the law, for the band of the loss; None: no band.
        law_name: for the record.

    Returns:
        The plan, without device, cost and shape.

    Raises:
        PlanError: a number out of range, settings that conflict, or a law that cannot answer.

    Source: Hoffmann et al. 2022, eq. 4; repetition: Muennighoff et al. 2023, eq. 6; serving: Sardana et al. 2024
        (arXiv 2401.00448), here as least loss for a total cost, the dual of their least cost for a loss.
    """
    _check_request(budget_flops, law, unique_tokens, overtrain, inference_tokens)
    notes: list[str] = []
    if isinstance(law, AllocationLaw):
        params, _ = law.optimum(budget_flops)
        band, losses_at = None, None
        loss = law.line.loss(budget_flops) if law.line is not None and overtrain == 1 else None
        if loss is None:
            notes.append("no loss: this law only splits a budget")
    else:
        losses_at = _losses_along(law, budget_flops, unique_tokens, inference_tokens)
        params = _lowest(losses_at, math.log(law.optimum(budget_flops)[0]))
        band = _flat_band(losses_at, params)
        loss = None
    params /= math.sqrt(overtrain)
    tokens = budget_flops / (6 * params) - inference_tokens / 3
    if losses_at is not None:
        loss = float(losses_at(np.array([math.log(params)]))[0])
    epochs = 1.0 if unique_tokens is None else max(1.0, tokens / unique_tokens)
    low, high = _loss_band(loss, budget_flops, largest_flops)
    if loss is not None and low is None:
        notes.append("no band for the loss: the compute of the runs behind this law is not known")
    if low is not None and epochs > 1:
        notes.append("the band of the loss is that of fresh text; how much repeats are worth is less well known")
    if epochs > 8:
        notes.append(f"{epochs:.1f} epochs: beyond 8 the text is nearly spent; more text is worth more than compute")
    return Plan(
        params=params,
        tokens=tokens,
        flops=6 * params * tokens,
        loss=loss,
        loss_low=low,
        loss_high=high,
        tokens_per_param=tokens / params,
        epochs=epochs,
        flat_band=band,
        law=law_name,
        params_convention=law.params_convention,
        notes=tuple(notes),
    )


def repeated_loss(law: AdditiveLaw, params: Floats, tokens: Floats, unique_tokens: float) -> Floats:
    """Return the loss when text repeats: both N and D saturate.

    Args:
        law: for fresh text.
        params: N > 0.
        tokens: D > 0, repeats included.
        unique_tokens: U > 0 distinct tokens.

    Returns:
        L = E + A / N'^alpha + B / D'^beta.

    Source: Muennighoff et al. 2023, eq. 6 and section 3.1, with their half-lives and this law's constants.
    """
    # The size whose optimal number of tokens is U: more params than that only fit the repeats.
    ratio = (law.alpha * law.A / (law.beta * law.B)) ** (1 / law.alpha)
    enough = np.minimum(params, ratio * unique_tokens ** (law.beta / law.alpha))
    excess = params / enough - 1
    params_worth = enough * (1 + EXCESS_PARAMS * (1 - np.exp(-excess / EXCESS_PARAMS)))
    tokens_worth = effective_tokens(tokens, unique_tokens)
    return law.E + law.A / params_worth**law.alpha + law.B / tokens_worth**law.beta


@overload
def effective_tokens(tokens: float, unique_tokens: float) -> float: ...
@overload
def effective_tokens(tokens: Floats, unique_tokens: float) -> Floats: ...
def effective_tokens(tokens: float | Floats, unique_tokens: float) -> float | Floats:
    """Return D': how many fresh tokens `tokens` are worth when only `unique_tokens` are distinct.

    Args:
        tokens: D > 0, repeats included; number or array.
        unique_tokens: U > 0.

    Returns:
        D' <= D of the same kind; D itself up to U, and never over 16.4 U.

    Source: Muennighoff et al. 2023, eq. 5.
    """
    fresh = np.minimum(tokens, unique_tokens)
    repeats = tokens / fresh - 1
    worth = fresh * (1 + REPEATED_TOKENS * (1 - np.exp(-repeats / REPEATED_TOKENS)))
    return worth if isinstance(tokens, np.ndarray) else float(worth)


def best_for_seconds(
    loss: Callable[[float, float], float],
    options: Sequence[SpeedOption],
    *,
    seconds: float,
    unique_tokens: float | None = None,
) -> tuple[Candidate, ...]:
    """Rank what each option reaches in a time.

    Args:
        loss: (params, tokens) -> loss in nats per token, for fresh text.
        options: models with their measured speeds, one or more.
        seconds: of training, > 0.
        unique_tokens: distinct tokens there are; repeats count as Muennighoff's D'. None: no limit.

    Returns:
        One candidate an option, the least loss first.

    Raises:
        PlanError: no option, or no time.
    """
    if not options:
        raise PlanError("no model to choose from; measure the speed of at least one")
    if not (math.isfinite(seconds) and seconds > 0):
        raise PlanError(f"seconds={seconds!r} must be finite and > 0; write for example 300")
    candidates: list[Candidate] = []
    for option in options:
        tokens = option.tokens_per_s * seconds
        worth = tokens if unique_tokens is None else effective_tokens(tokens, unique_tokens)
        candidates.append(
            Candidate(
                shape=option.shape,
                params=option.params,
                tokens=tokens,
                epochs=1.0 if unique_tokens is None else max(1.0, tokens / unique_tokens),
                seconds=seconds,
                loss=loss(option.params, worth),
            )
        )
    return tuple(sorted(candidates, key=lambda candidate: candidate.loss))


def add_shape(plan: Plan, *, context: int, vocab: int | None = None) -> Plan:
    """Return the plan with the path's shape whose size is nearest, as a ratio, in the plan's own convention of N.

    Args:
        plan: what to train.
        context: tokens in a sequence, > 0.
        vocab: words of the tokenizer; None takes what suits the budget.

    Returns:
        The plan with a shape, or with a note where no shape comes within a factor 2.
    """
    words = vocab
    shape: ModelShape | None = None
    for _ in range(1 if vocab is not None else 3):  # vocabulary and width settle on each other in two rounds
        words = words or 32768
        shapes = path(vocab=words, context=context, d_min=16, d_max=65536)
        sizes = [count_parameters(each).by(plan.params_convention) for each in shapes]
        nearest = min(range(len(shapes)), key=lambda place: abs(math.log(sizes[place] / plan.params)))
        shape = shapes[nearest] if 0.5 <= sizes[nearest] / plan.params <= 2 else None
        if vocab is None:
            words = vocab_for(plan.flops, shapes[nearest].d_model)
    if shape is None:
        return replace(plan, notes=(*plan.notes, f"no shape on the path is near {plan.params:.3g} params"))
    return replace(plan, shape=shape)


def _check_request(
    budget_flops: float,
    law: AdditiveLaw | AllocationLaw,
    unique_tokens: float | None,
    overtrain: float,
    inference_tokens: float,
) -> None:
    for name, number in (("budget", budget_flops), ("unique_tokens", unique_tokens), ("overtrain", overtrain)):
        if number is not None and not (math.isfinite(number) and number > 0):
            raise PlanError(f"{name}={number!r} must be finite and > 0; write for example 1e20")
    if not (math.isfinite(inference_tokens) and inference_tokens >= 0):
        raise PlanError(f"inference_tokens={inference_tokens!r} must be finite and >= 0; leave it out for none")
    if inference_tokens and overtrain != 1:
        raise PlanError("inference_tokens and overtrain both move the size; give one of them")
    if isinstance(law, AllocationLaw) and (inference_tokens or unique_tokens is not None):
        raise PlanError("this law states no loss away from the optimum, so it cannot weigh repeats or serving; "
                        "use a parametric law such as besiroglu2024")  # fmt: skip


def _losses_along(
    law: AdditiveLaw, budget_flops: float, unique_tokens: float | None, inference_tokens: float
) -> Callable[[Floats], Floats]:
    """Return ln N -> loss along the sizes that spend the budget; inf where serving alone spends it."""

    def losses(log_params: Floats) -> Floats:
        params = np.exp(log_params)
        tokens = budget_flops / (6 * params) - inference_tokens / 3
        safe = np.where(tokens > 0, tokens, 1.0)
        fresh = law.loss(params, safe) if unique_tokens is None else repeated_loss(law, params, safe, unique_tokens)
        return np.where(tokens > 0, fresh, np.inf)

    return losses


def _lowest(losses_at: Callable[[Floats], Floats], centre: float) -> float:
    """Return the size of least loss: a grid over 1e-4 to 1e4 times the centre, narrowed until doubles end it."""
    half = _SIZE_RANGE
    while half > 1e-7:  # the loss is flat to its last digit within about 1e-8 of the optimum
        grid = np.linspace(centre - half, centre + half, _GRID)
        centre = float(grid[int(losses_at(grid).argmin())])
        half *= 4 / _GRID
    return math.exp(centre)


def _flat_band(losses_at: Callable[[Floats], Floats], params: float) -> FlatBand:
    """Find how far the size may go either way before the loss rises by FLAT_PENALTY."""
    centre = math.log(params)
    limit = float(losses_at(np.array([centre]))[0]) * (1 + FLAT_PENALTY)
    ends: list[float] = []
    for direction in (-1.0, 1.0):
        inside, outside = 0.0, _SIZE_RANGE
        for _ in range(40):  # bisection: the loss rises on either side of the optimum
            middle = (inside + outside) / 2
            within = float(losses_at(np.array([centre + direction * middle]))[0]) <= limit
            inside, outside = (middle, outside) if within else (inside, middle)
        ends.append(math.exp(centre + direction * inside))
    return FlatBand(params_low=ends[0], params_high=ends[1], loss_penalty=FLAT_PENALTY)


def _loss_band(
    loss: float | None, flops: float, largest_flops: float | None
) -> tuple[float, float] | tuple[None, None]:
    if loss is None or largest_flops is None:
        return None, None
    decades = max(0.0, math.log10(flops / largest_flops))
    width = _ERROR_AT_EDGE + _ERROR_PER_DECADE * decades
    return loss * math.exp(-width), loss * math.exp(width)
