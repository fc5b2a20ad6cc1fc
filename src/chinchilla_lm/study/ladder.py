"""The design of the sweep: which budgets (rungs), which sizes on each, what they cost.

A ladder, not a slab: rungs a factor sqrt(10) apart in compute, a few sizes around the running optimum on each, the top
rung at most a tenth of the final run, nothing below the floor where runs are off the law. The same forecast accuracy
as a 4 x 7 grid took 1/3 to 1/8 of its compute in a replay on 404 public runs (dev/LOG.md).

Symbols: C `flops` of one run, N `params` (matmul convention), D `tokens`. Pure arithmetic: it trains nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from chinchilla_lm.core.errors import BudgetError
from chinchilla_lm.core.shapes import ModelShape
from chinchilla_lm.core.units import format_seconds
from chinchilla_lm.laws.count import count_parameters, training_flops_per_token
from chinchilla_lm.laws.shapes import path
from chinchilla_lm.study.request import Allowance
from chinchilla_lm.study.speeds import MachineSpeeds

RUNG_SPACING = math.sqrt(10)
TOP_FRACTION = 0.1  # of the final run's compute; nearer rungs cost more than they tell (the design of the sweep, above)
TRUSTED_RUNG_FLOPS = 1e12  # below it the slope still steepens: a rung there serves the probe, not the law
MOST_RUNGS = 5
LEAST_TOKENS_PER_PARAM, MOST_TOKENS_PER_PARAM = 1.0, 150.0  # outside this corridor the law's form is extrapolated
MOST_EPOCHS = 4.0  # repeated data is nearly as good as fresh up to four epochs (Muennighoff et al. 2023)
SIZE_RATIO = RUNG_SPACING**0.5  # N* grows as C^.5: the optimum of a rung is the next size of the rung below
# Of block and head parameters. Fewer than the 16 that were best for equal FLOPs at 1e12..1e13 with 512 entries: tokens
# of a larger vocabulary hold more text, and wide models do more FLOPs a second: for equal seconds the optimum is wider.
_PRIOR_TOKENS_PER_PARAM = 8.0
_SIZES_PER_RUNG = 3
LEAST_WIDTH = 16  # of a trial; with a head_dim of 32 it still is a Transformer
_EXTRA_BOTTOM_RUNS = 3  # the learning-rate probes at half and twice the rate, and the repeat with another seed


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """A designed sweep.

    Attributes:
        rung_flops: compute of each rung's runs, rising.
        sizes_per_rung: runs on each rung; the bottom one has two probes and a repeat more.
        final_flops: compute that is left for the final run, estimated.
        sweep_cost: of the whole ladder in the allowance's unit, estimated.
        notes: what the budget did not allow, in plain words.
    """

    rung_flops: tuple[float, ...]
    sizes_per_rung: int
    final_flops: float
    sweep_cost: float
    notes: tuple[str, ...] = field(default=())


def prior_params(flops: float) -> float:
    """Guess N* before any run: 8 tokens per parameter, C = 6 N D."""
    return math.sqrt(flops / (6 * _PRIOR_TOKENS_PER_PARAM))


def optimal_tokens(params: float) -> float:
    """Guess D* of a size before any run: 8 tokens per parameter."""
    return _PRIOR_TOKENS_PER_PARAM * params


def tokens_for(shape: ModelShape, flops: float) -> float:
    """Give the tokens D that a run of this compute trains a shape on (exact FLOPs, not 6ND)."""
    return flops / training_flops_per_token(shape)


def design_ladder(
    allowance: Allowance,
    spent: float,
    speeds: MachineSpeeds,
    *,
    sweep_share: float,
    least_rung_flops: float,
    shape_near: Callable[[float], ModelShape],
    asking_tokens: float = 0.0,
) -> Ladder:
    """Choose the rungs that a share of the budget pays for.

    Args:
        allowance: the whole budget.
        spent: of it already, and what evaluation and report will take.
        speeds: of this machine.
        sweep_share: part of what is left that the sweep may take.
        least_rung_flops: the cheapest rung wanted; a slow machine or a small budget may have one down to a tenth of it.
        shape_near: the shape of about so many matmul parameters.
        asking_tokens: what asking a ladder model the suites costs, in tokens of its training.

    Returns:
        The ladder; its notes say what is missing for a sharp forecast.

    Raises:
        BudgetError: not even two of the cheapest rungs fit.
    """
    left = allowance.amount - spent
    if left <= 0:
        raise BudgetError(_too_small(allowance, 3 * spent, least_rung_flops))
    sizes = math.ceil(_SIZES_PER_RUNG / speeds.n_workers) * speeds.n_workers if speeds.n_workers < 8 else 8
    final_flops = _final_flops(allowance, left * (1 - sweep_share), speeds, shape_near)
    least = least_rung_flops
    top = max(final_flops * TOP_FRACTION, least * RUNG_SPACING)

    def cost_of(rungs: Sequence[float]) -> float:
        training = _cost(rungs, sizes, allowance, speeds, shape_near)
        return training + asking_cost(rungs, sizes, allowance, speeds, shape_near, asking_tokens)

    while (cost := cost_of(_rungs(top, least))) > sweep_share * left:
        top *= 0.95
        least = min(least, top / RUNG_SPACING)
        if least < least_rung_flops / 10:
            raise BudgetError(_too_small(allowance, spent + cost / sweep_share, least))
    rungs = _rungs(top, least)
    trusted = sum(flops >= TRUSTED_RUNG_FLOPS for flops in rungs)
    notes = ()
    if trusted < 2:
        notes = (
            f"only {trusted} of {len(rungs)} rungs reach 1e12 FLOPs, where the law begins: the forecast is rough; "
            "a longer budget makes it sharp",
        )
    return Ladder(rung_flops=rungs, sizes_per_rung=sizes, final_flops=final_flops, sweep_cost=cost, notes=notes)


def asking_cost(
    rungs: Sequence[float],
    sizes: int,
    allowance: Allowance,
    speeds: MachineSpeeds,
    shape_near: Callable[[float], ModelShape],
    tokens: float,
) -> float:
    """Estimate what asking the ladder's models the suites takes, in the allowance's unit.

    Args:
        rungs: compute of each rung's runs.
        sizes: models on each.
        allowance: the budget.
        speeds: of this machine.
        shape_near: the shape of about so many matmul parameters.
        tokens: of training, that asking one model costs as much as.
    """
    shapes = [shape_near(prior_params(flops)) for flops in rungs]
    if allowance.kind == "flops":
        return sum(sizes * tokens * training_flops_per_token(shape) for shape in shapes)
    rounds = math.ceil(sizes / speeds.n_workers)
    return sum(rounds * tokens / speeds.worker.tokens_per_s_of(shape) for shape in shapes)


def asking_share(
    ladder: Ladder,
    allowance: Allowance,
    speeds: MachineSpeeds,
    shape_near: Callable[[float], ModelShape],
    tokens: float,
) -> float:
    """Estimate the part of the budget that asking the ladder's models and the final one takes; see `asking_cost`."""
    cost = asking_cost(ladder.rung_flops, ladder.sizes_per_rung, allowance, speeds, shape_near, tokens)
    final = shape_near(prior_params(ladder.final_flops))
    if allowance.kind == "flops":
        return (cost + tokens * training_flops_per_token(final)) / allowance.amount
    return (cost + tokens / speeds.whole.tokens_per_s_of(final)) / allowance.amount


def rung_sizes(
    flops: float,
    best_params: float,
    count: int,
    *,
    vocab: int,
    context: int,
    unique_tokens: float,
) -> list[ModelShape]:
    """Choose a rung's sizes: `count` shapes of the path around the optimum, a factor 1.78 apart.

    Args:
        flops: compute of each run.
        best_params: N* by the running law, matmul convention.
        count: how many.
        vocab: of the tokenizer.
        context: tokens in a window.
        unique_tokens: in the training text; no run sees it more than four times.

    Returns:
        Different shapes, smallest first, each inside 1..150 tokens per parameter; fewer where the corridor is narrow.
    """
    allowed = []
    for shape in path(vocab=vocab, context=context, d_min=LEAST_WIDTH):
        tokens = tokens_for(shape, flops)
        ratio = tokens / count_parameters(shape).matmul
        if LEAST_TOKENS_PER_PARAM <= ratio <= MOST_TOKENS_PER_PARAM and tokens <= MOST_EPOCHS * unique_tokens:
            allowed.append(shape)
    if not allowed:
        return []
    chosen: list[ModelShape] = []
    for index in range(count):
        wanted = best_params * SIZE_RATIO ** (index - (count - 1) / 2)
        free = [shape for shape in allowed if shape not in chosen]
        if free:
            chosen.append(min(free, key=lambda shape: _distance(shape, wanted)))
    return sorted(chosen, key=lambda shape: count_parameters(shape).matmul)


def edge_size(
    shapes: Sequence[ModelShape], best: ModelShape, flops: float, *, unique_tokens: float
) -> ModelShape | None:
    """Give the size beyond the edge where a rung's best run lies, or None if it lies inside or nothing is beyond."""
    ordered = sorted(shapes, key=lambda shape: count_parameters(shape).matmul)
    if best not in (ordered[0], ordered[-1]):
        return None
    is_small = best == ordered[0]
    wanted = count_parameters(best).matmul * (SIZE_RATIO ** (-1 if is_small else 1))
    found = rung_sizes(flops, wanted, 1, vocab=best.vocab, context=best.context, unique_tokens=unique_tokens)
    if not found or found[0] in ordered:
        return None
    is_beyond = (count_parameters(found[0]).matmul < count_parameters(best).matmul) == is_small
    return found[0] if is_beyond else None


def _rungs(top: float, least: float) -> tuple[float, ...]:
    """Step down from the top by sqrt(10) to the trusted floor, or to the least one while there are fewer than three."""
    rungs = [top]
    while len(rungs) < MOST_RUNGS:
        below = rungs[-1] / RUNG_SPACING
        is_needed = len(rungs) < 3
        if below < least * 0.999 or (below < TRUSTED_RUNG_FLOPS * 0.999 and not is_needed):
            break
        rungs.append(below)
    return tuple(reversed(rungs))


def _cost(
    rungs: Sequence[float],
    sizes: int,
    allowance: Allowance,
    speeds: MachineSpeeds,
    shape_near: Callable[[float], ModelShape],
) -> float:
    runs = [(flops, sizes + (_EXTRA_BOTTOM_RUNS if index == 0 else 0)) for index, flops in enumerate(rungs)]
    if allowance.kind == "flops":
        return sum(flops * count for flops, count in runs)
    seconds = 0.0
    for flops, count in runs:
        shape = shape_near(prior_params(flops))
        rounds = math.ceil(count / speeds.n_workers)
        seconds += rounds * tokens_for(shape, flops) / speeds.worker.tokens_per_s_of(shape)
    return seconds


def _final_flops(
    allowance: Allowance, left: float, speeds: MachineSpeeds, shape_near: Callable[[float], ModelShape]
) -> float:
    """Give the compute of a run that takes what is left, at about its own optimal size."""
    if allowance.kind == "flops":
        return left
    flops = 1e12
    for _ in range(4):  # the speed depends on the size and the size on the compute; this settles at once
        shape = shape_near(prior_params(flops))
        flops = left * speeds.whole.tokens_per_s_of(shape) * training_flops_per_token(shape)
    return flops


def _distance(shape: ModelShape, params: float) -> float:
    return abs(math.log(count_parameters(shape).matmul / params))


def _too_small(allowance: Allowance, needed: float, least: float) -> str:
    amount = format_seconds(allowance.amount) if allowance.kind == "seconds" else f"{allowance.amount:.2g} FLOPs"
    enough = format_seconds(needed) if allowance.kind == "seconds" else f"{needed:.2g} FLOPs"
    return (
        f"a budget of {amount} does not pay for a sweep of two rungs from {least:.0e} FLOPs on this machine; "
        f"give at least {enough}"
    )
