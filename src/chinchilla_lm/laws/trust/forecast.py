"""THE forecast: what loss the final run will reach, said before it is trained, from a ladder of smaller runs.

Two laws bracket the truth. The five-parameter law (`additive`) keeps a floor E and is nearly always too pessimistic; a
straight line in ln L against ln C through the last rungs (`line`) has no floor and is nearly always too optimistic.
The point lies between them. The band is `inflation`'s, whose constants were learnt on public tables of another shape
(bench/calibration.py), not on ladders: its width grows with the noise, with how far the loss still has to fall, with
the distance between the two laws, and with the errors of the same procedure when the top rungs are hidden from it.

Words: a `rung` is the runs of one compute; its optimum is the least loss that this compute reaches. N `params`,
D `tokens`, C `flops`, L `loss` in nats per token; everything scatters and widens in ln L.
It never trains, reads files or prints. Where the ladder does not carry a forecast it says so (`established` is False,
with the reasons).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from chinchilla_lm.laws.fitting.additive import Fit, intervals_of
from chinchilla_lm.laws.forms.additive import AdditiveLaw
from chinchilla_lm.laws.forms.allocation import PowerLine
from chinchilla_lm.laws.trust.bracket import (
    Bracket,
    Ladder,
    Run,
    RungOptimum,
    Target,
    fit_bracket,
    resample,
    rung_slopes,
    sort_ladder,
    steepens,
)
from chinchilla_lm.laws.trust.inflation import LEARNT

__all__ = ["BackTest", "Forecast", "Run", "RungOptimum", "Target", "forecast"]

LEVEL = 0.9
ADDITIVE_WEIGHT = (
    0.5  # of the point between line (0) and additive (1), in ln L; dev/LOG.md 2026-11-21, bench/backtest.py
)
# The same where the slope does not flatten, and for ladders of tiny runs, whose loss falls longer than the additive law
# lets it: with .5 eight such ladders of our own were missed by 1.5 % (median, seven of eight too high), with .25 by
# 1.2 % (four high, three low); chosen on those eight (dev/LOG.md 2026-11-22, "Sixty minutes").
YOUNG_WEIGHT = 0.25
_YOUNG_FLOPS = 1e15  # of the top rung; the public sweeps, where .5 was better, begin at 1e17
# Two rungs, or three whose slope still grows, do not show how the slope will change, and below 1e13 FLOPs it grows:
# nine such ladders of our own missed by .04 to .82 of the predicted fall of ln L, rms .35, three times what public
# tables teach (bench/RESULTS.md, 20, 10 and 5 minutes; dev/LOG.md 2026-11-22 "A ladder on the plateau").
UNTESTED_DROP = 3.0
# Of ladders that end below 1e12 FLOPs, on the plateau before models copy and agree, three of our own missed by .01, .45
# and 1.23 of the fall, rms .76 (dev/LOG.md 2026-11-22 "A ladder on the plateau"): six and a half times the public ones.
PLATEAU_DROP = 6.5
_PLATEAU_FLOPS = 1e12
_CUT_WEIGHT = 0.5  # of one own back-test beside the public ones, as in `inflation`
_LARGEST_SQUARE = 16.0  # of error / scale
_SAID_RATIO = 1.1  # a smaller widening is not worth a sentence
_FAILED_SQUARE = 4.0  # a ladder that errs twice as much as public tables does not carry a forecast
_LARGEST_STEP = 100.0  # from the top rung to the target; beyond it nobody has shown a forecast from small rungs


@dataclass(frozen=True, kw_only=True)
class BackTest:
    """The same procedure on the lower rungs, asked for a rung that was hidden from it.

    Attributes:
        kind: "optimum" of the hidden rung (these widen the band) or one of its single "run"s (for the reader).
        params: N asked for.
        flops: C asked for.
        step: C asked for over the C of the highest rung it saw.
        predicted: point, nats per token.
        low: lower end of its own band.
        high: upper end of its own band.
        actual: what the hidden rung showed.
    """

    kind: str
    params: float
    flops: float
    step: float
    predicted: float
    low: float
    high: float
    actual: float

    @property
    def miss(self) -> float:
        """How far the truth lies outside its own band, in ln L; 0 inside."""
        return max(0.0, math.log(self.actual / self.high), math.log(self.low / self.actual))


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """A loss said before training.

    Attributes:
        loss: the point, nats per token.
        low: lower end of the band.
        high: upper end of the band.
        level: chance that the band is meant to hold the truth.
        target: the run it speaks of.
        sources: loss of the two laws, keys "additive" and "line".
        backtests: hidden rungs and how well they were predicted.
        established: the ladder carries a forecast.
        reasons: why not, each with the way out; and what was left out of the fit.
        fit: the additive fit, with bootstrap intervals.
        line: the power line.
        rungs: optimum of each rung used, lowest compute first.
        sd_fit: scatter of ln L of the point between resamples, seed noise included.
        own_ratio: errors of the back-tests over those of public tables, shrunk towards 1; the band widens by it.
    """

    loss: float
    low: float
    high: float
    level: float = LEVEL
    target: Target
    sources: dict[str, float]
    backtests: tuple[BackTest, ...]
    established: bool
    reasons: tuple[str, ...]
    fit: Fit
    line: PowerLine
    rungs: tuple[RungOptimum, ...]
    sd_fit: float
    own_ratio: float

    @property
    def law(self) -> AdditiveLaw:
        """The additive law, which also chooses sizes."""
        return self.fit.law

    def to_dict(self) -> dict[str, Any]:
        """Return the fields of forecast.json (schema forecast/1) that a law knows."""
        return {
            "schema": "forecast/1",
            "law_hash": self.law.hash(),
            "tokens": self.target.tokens,
            "flops": self.target.flops,
            "loss": self.loss,
            "low": self.low,
            "high": self.high,
            "level": self.level,
            "sources": dict(self.sources),
            "backtests": [
                {
                    name: getattr(test, name)
                    for name in ("kind", "params", "flops", "predicted", "low", "high", "actual")
                }
                for test in self.backtests
            ],
            "established": self.established,
            "reasons": list(self.reasons),
            "sd_fit": self.sd_fit,
            "own_ratio": self.own_ratio,
            "unit": "nats per token",
        }

    def law_record(self) -> dict[str, Any]:
        """Return the whole of law.json (schema law/1): the fit with its line and rungs."""
        names = ("flops", "params", "tokens", "loss")
        return {
            **self.fit.to_dict(),
            "line": {"intercept": self.line.intercept, "slope": self.line.slope},
            "rungs": [{name: getattr(rung, name) for name in names} for rung in self.rungs],
        }


def forecast(
    runs: Sequence[Run], target: Target, *, seed_sd: float = 0.003, draws: int = 200, seed: int = 0
) -> Forecast:
    """Forecast the loss of a run from a ladder of smaller ones.

    Args:
        runs: finished runs, three or more, best three sizes on each of three or more rungs; none diverged.
        target: the run to forecast, same conventions of N and C.
        seed_sd: sd of ln L between seeds, > 0; .003 is typical of models below 1e7 params.
        draws: residual resamples for the scatter.
        seed: of the resampling.

    Returns:
        The forecast, established or not.

    Raises:
        FitError: fewer than three runs, or a number that is not finite and > 0.
    """
    whole = sort_ladder(runs)
    all_rungs = fit_bracket(whole, seed_sd=seed_sd).rungs
    first = _pre_asymptotic(all_rungs, seed_sd)
    bracket = fit_bracket(whole.keep(first, whole.n_rungs), seed_sd=seed_sd)
    resamples = resample(bracket, seed_sd=seed_sd, draws=draws, seed=seed)
    weight = _additive_weight(all_rungs)
    point, scale = _point(bracket, target, seed_sd, weight, is_tested=_is_tested(all_rungs, first, seed_sd))
    tests, squares = _back_tests(bracket, seed_sd=seed_sd)
    ratio = math.sqrt((LEARNT.freedom + _CUT_WEIGHT * sum(squares)) / (LEARNT.freedom + _CUT_WEIGHT * len(squares)))
    half = LEARNT.quantile(LEVEL) * ratio * scale
    doubts = _doubts(bracket, all_rungs, target, squares, seed_sd)
    additive, line = bracket.losses(target)
    return Forecast(
        loss=math.exp(point),
        low=math.exp(point - half),
        high=math.exp(point + half),
        target=target,
        sources={"additive": additive, "line": line},
        backtests=tests,
        established=not doubts,
        reasons=(*doubts, *_remarks(whole, first, tests, ratio)),
        fit=replace(bracket.fit, intervals=intervals_of(resamples.constants_k5)),
        line=bracket.line,
        rungs=bracket.rungs,
        sd_fit=math.hypot(resamples.point_sd(target, weight), seed_sd),
        own_ratio=ratio,
    )


def _additive_weight(rungs: Sequence[RungOptimum]) -> float:
    """Weigh the additive law, which only ever flattens, by whether the ladder does so and its runs are of some size."""
    slopes = rung_slopes(rungs)
    is_flattening = len(slopes) < 2 or slopes[-1] < slopes[-2]
    return ADDITIVE_WEIGHT if is_flattening and rungs[-1].flops >= _YOUNG_FLOPS else YOUNG_WEIGHT


def _point(bracket: Bracket, target: Target, seed_sd: float, weight: float, *, is_tested: bool) -> tuple[float, float]:
    """Return ln L of the point and the scale of its error."""
    additive, line = (math.log(loss) for loss in bracket.losses(target))
    point = weight * additive + (1 - weight) * line
    top = bracket.rungs[-1]
    drop = max(math.log(top.loss) - point, 0.0) * (1.0 if is_tested else _untested_drop(top.flops))
    spread = abs(additive - line) * math.sqrt(weight * (1 - weight))
    noise = max(seed_sd, bracket.fit.noise_sd)
    return point, float(LEARNT.scale(*(np.array(part) for part in (drop, spread, noise))))


def _untested_drop(top_flops: float) -> float:
    return PLATEAU_DROP if top_flops < _PLATEAU_FLOPS else UNTESTED_DROP


def _is_tested(all_rungs: Sequence[RungOptimum], first: int, seed_sd: float) -> bool:
    """Say whether the slope was seen to hold or to flatten at the top of three rungs or more."""
    return len(all_rungs) - first >= 3 and not steepens(all_rungs, len(all_rungs) - 3, seed_sd)


def _back_tests(bracket: Bracket, *, seed_sd: float) -> tuple[tuple[BackTest, ...], list[float]]:
    """Hide the top rung (and the top two of four or more) and predict its optimum and each of its runs.

    Returns:
        The tests, and the square of error / scale of each optimum.
    """
    ladder = bracket.ladder
    top = bracket.rungs[-1]
    asked = [("optimum", Target(params=top.params, tokens=top.tokens, flops=top.flops), top.loss)]
    for run in np.flatnonzero(ladder.rung_n == ladder.n_rungs - 1):
        at = Target(params=float(ladder.params[run]), tokens=float(ladder.tokens[run]), flops=float(ladder.flops[run]))
        asked.append(("run", at, float(ladder.loss[run])))
    tests: list[BackTest] = []
    squares: list[float] = []
    for hidden in (1, 2) if ladder.n_rungs >= 4 else (1,):
        seen = ladder.n_rungs - hidden
        if seen < 2:
            break
        lower = fit_bracket(ladder.keep(0, seen), seed_sd=seed_sd)
        for kind, at, actual in asked:
            point, scale = _point(
                lower, at, seed_sd, _additive_weight(lower.rungs), is_tested=_is_tested(lower.rungs, 0, seed_sd)
            )
            half = LEARNT.quantile(LEVEL) * scale
            tests.append(
                BackTest(
                    kind=kind,
                    params=at.params,
                    flops=at.flops,
                    step=at.flops / lower.rungs[-1].flops,
                    predicted=math.exp(point),
                    low=math.exp(point - half),
                    high=math.exp(point + half),
                    actual=actual,
                )
            )
            if kind == "optimum":
                squares.append(min(((point - math.log(actual)) / scale) ** 2, _LARGEST_SQUARE))
    return tuple(tests), squares


def _pre_asymptotic(rungs: Sequence[RungOptimum], seed_sd: float) -> int:
    """Count the bottom rungs to leave out: those whose slope is still shallower than the next one's; two rungs stay."""
    first = 0
    while len(rungs) - first > 2 and steepens(rungs, first, seed_sd):
        first += 1
    return first


def _doubts(
    bracket: Bracket, all_rungs: Sequence[RungOptimum], target: Target, squares: Sequence[float], seed_sd: float
) -> tuple[str, ...]:
    """Say why the ladder does not carry a forecast, each with the way out; empty where it does."""
    doubts: list[str] = []
    top = bracket.rungs[-1]
    if len(bracket.rungs) < 2:
        doubts.append("only one rung: a law needs at least two; give the sweep a larger budget")
    if len(all_rungs) >= 3 and steepens(all_rungs, len(all_rungs) - 3, seed_sd):
        doubts.append(
            "the loss falls ever faster with compute up to the top rung, so the runs are still too small for a law; "
            "add a rung above (each rung 1e12 FLOPs, 1000 steps and 1M tokens or more)"
        )
    edge = _edge(bracket.ladder, top, seed_sd)
    if edge:
        doubts.append(
            f"the best size of the top rung is at the {edge} edge of the sizes tried; add a {_BEYOND[edge]} size there"
        )
    if squares and sum(squares) > _FAILED_SQUARE * len(squares):
        doubts.append(
            f"with the top rungs hidden their loss is missed {math.sqrt(sum(squares) / len(squares)):.1f} times as far "
            "as in public sweeps; look for a badly trained rung, or add one nearer to the target"
        )
    if target.flops > _LARGEST_STEP * top.flops:
        doubts.append(
            f"the target has {target.flops / top.flops:.0f} times the compute of the top rung, and {_LARGEST_STEP:.0f} "
            "is the most; add a higher rung"
        )
    if bracket.fit.status != "converged":
        doubts.extend(bracket.fit.warnings[:1])
    return tuple(doubts)


_BEYOND = {"small": "smaller", "large": "larger"}


def _edge(ladder: Ladder, top: RungOptimum, seed_sd: float) -> str | None:
    """Return "small" or "large" where the top rung's optimum is not between the sizes tried, else None."""
    members = ladder.rung_n == ladder.n_rungs - 1
    order = np.argsort(ladder.params[members])
    params, loss = ladder.params[members][order], ladder.loss[members][order]
    if top.params < params[0] * (1 - 1e-9):
        return "small"
    if top.params > params[-1] * (1 + 1e-9):
        return "large"
    clearly = 1 + 2 * seed_sd  # a lead over the neighbour that seeds seldom make
    if len(params) >= 3 and loss[0] * clearly < loss[1:].min():
        return "small"
    if len(params) >= 3 and loss[-1] * clearly < loss[:-1].min():
        return "large"
    return None


def _remarks(whole: Ladder, first: int, tests: Sequence[BackTest], ratio: float) -> tuple[str, ...]:
    remarks: list[str] = []
    if first:
        remarks.append(
            f"{first} bottom rung{'s' if first > 1 else ''} up to {whole.rung_flops()[first - 1]:.2g} FLOPs left out: "
            "the loss-compute slope still steepens there"
        )
    if not tests:
        remarks.append(
            "two rungs leave nothing to back-test and do not show how the slope changes: its share of the band is "
            f"{_untested_drop(float(whole.rung_flops()[-1])):g} times a tested one's; add a rung"
        )
    if ratio > _SAID_RATIO:
        remarks.append(f"widened by a factor {ratio:.2f}: the back-tests missed by more than those of public sweeps")
    return tuple(remarks)
