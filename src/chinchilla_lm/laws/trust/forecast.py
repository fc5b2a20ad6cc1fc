"""THE forecast: what loss the final run will reach, said before it is trained, from a ladder of smaller runs.

Two laws bracket the truth. The five-parameter law (`additive`) keeps a floor E and is nearly always too pessimistic; a
straight line in ln L against ln C through the last rungs (`line`) has no floor and is nearly always too optimistic.
The point lies between them. The band is their range, widened by what is known to be uncertain: .25 %, the scatter of
the fit and of the final run's own seed, and the miss of the same procedure when the top rungs are hidden from it.

Words: a `rung` is the runs of one compute; its optimum is the least loss that this compute reaches. N `params`,
D `tokens`, C `flops`, L `loss` in nats per token; everything scatters and widens in ln L.
It never trains, reads files or prints. Where the ladder does not carry a forecast it says so (`established` is False,
with the reasons) and widens.
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
    Resamples,
    Run,
    RungOptimum,
    Target,
    fit_bracket,
    resample,
    rung_slopes,
    sort_ladder,
    steepens,
)

__all__ = ["BackTest", "Forecast", "Run", "RungOptimum", "Target", "forecast"]

LEVEL = 0.9
ADDITIVE_WEIGHT = (
    0.5  # of the point between line (0) and additive (1), in ln L; dev/LOG.md 2026-11-21, bench/backtest.py
)
STEEPENING_WEIGHT = 0.25  # the same where the slope does not flatten; dev/LOG.md 2026-11-21, "Steepening"
BAND_MARGIN = 0.0025  # each side of the bracket, in ln L: 31 of 33 published cases lay inside with it alone (recipe v1)
_NORMAL_90 = 1.645  # sd in half of a 90 % interval; one-sided, 95 %
_NOT_ESTABLISHED_HALF_WIDTH = 0.04  # rungs below 1e12 FLOPs missed by +4.8 % at 10x (recipe v1)
_NO_BACKTEST_HALF_WIDTH = 0.03  # what two rungs and a 13x step can promise (recipe v1)
_LARGEST_BACKTEST_WIDENING = 0.02  # a ladder whose own top rung it misses by more does not carry a forecast
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
    loss, low, high, sd_fit = _band(bracket, resamples, target, seed_sd, _additive_weight(all_rungs))
    tests = _back_tests(bracket, seed_sd=seed_sd, draws=draws, seed=seed)
    step = max(math.log(target.flops / bracket.rungs[-1].flops), 0.0)
    widening = max((test.miss * step / math.log(test.step) for test in tests if test.kind == "optimum"), default=0.0)
    low, high = low * math.exp(-widening), high * math.exp(widening)
    doubts = _doubts(bracket, all_rungs, target, widening, seed_sd)
    floor = 0.0 if tests else _NO_BACKTEST_HALF_WIDTH
    floor = _NOT_ESTABLISHED_HALF_WIDTH if doubts else floor
    additive, line = bracket.losses(target)
    return Forecast(
        loss=loss,
        low=min(low, loss * (1 - floor)),
        high=max(high, loss * (1 + floor)),
        target=target,
        sources={"additive": additive, "line": line},
        backtests=tests,
        established=not doubts,
        reasons=(*doubts, *_remarks(whole, first, tests, widening)),
        fit=replace(bracket.fit, intervals=intervals_of(resamples.constants_k5)),
        line=bracket.line,
        rungs=bracket.rungs,
        sd_fit=sd_fit,
    )


def _additive_weight(rungs: Sequence[RungOptimum]) -> float:
    """Weigh the additive law, which only ever flattens, by whether the ladder flattens between its last three rungs."""
    slopes = rung_slopes(rungs)
    return ADDITIVE_WEIGHT if len(slopes) < 2 or slopes[-1] < slopes[-2] else STEEPENING_WEIGHT


def _band(
    bracket: Bracket, resamples: Resamples, target: Target, seed_sd: float, weight: float
) -> tuple[float, float, float, float]:
    """Return the point, the band before back-tests (low, high) and the sd of ln L behind it."""
    additive, line = bracket.losses(target)
    point = math.exp(weight * math.log(additive) + (1 - weight) * math.log(line))
    sd_fit = math.hypot(resamples.point_sd(target, weight), seed_sd)
    margin = math.exp(BAND_MARGIN + _NORMAL_90 * sd_fit)
    return point, min(additive, line) / margin, max(additive, line) * margin, sd_fit


def _back_tests(bracket: Bracket, *, seed_sd: float, draws: int, seed: int) -> tuple[BackTest, ...]:
    """Hide the top rung (and the top two of four or more) and predict its optimum and each of its runs."""
    ladder = bracket.ladder
    top = bracket.rungs[-1]
    asked = [("optimum", Target(params=top.params, tokens=top.tokens, flops=top.flops), top.loss)]
    for run in np.flatnonzero(ladder.rung_n == ladder.n_rungs - 1):
        at = Target(params=float(ladder.params[run]), tokens=float(ladder.tokens[run]), flops=float(ladder.flops[run]))
        asked.append(("run", at, float(ladder.loss[run])))
    tests: list[BackTest] = []
    for hidden in (1, 2) if ladder.n_rungs >= 4 else (1,):
        seen = ladder.n_rungs - hidden
        if seen < 2:
            break
        lower = fit_bracket(ladder.keep(0, seen), seed_sd=seed_sd)
        resamples = resample(lower, seed_sd=seed_sd, draws=draws, seed=seed)
        for kind, at, actual in asked:
            point, low, high, _ = _band(lower, resamples, at, seed_sd, _additive_weight(lower.rungs))
            tests.append(
                BackTest(
                    kind=kind,
                    params=at.params,
                    flops=at.flops,
                    step=at.flops / lower.rungs[-1].flops,
                    predicted=point,
                    low=low,
                    high=high,
                    actual=actual,
                )
            )
    return tuple(tests)


def _pre_asymptotic(rungs: Sequence[RungOptimum], seed_sd: float) -> int:
    """Count the bottom rungs to leave out: those whose slope is still shallower than the next one's; two rungs stay."""
    first = 0
    while len(rungs) - first > 2 and steepens(rungs, first, seed_sd):
        first += 1
    return first


def _doubts(
    bracket: Bracket, all_rungs: Sequence[RungOptimum], target: Target, widening: float, seed_sd: float
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
    if widening > _LARGEST_BACKTEST_WIDENING:
        doubts.append(
            f"with the top rungs hidden their loss falls outside the band, by {100 * widening:.1f} % at the target's "
            "distance; look for a badly trained rung, or add one nearer to the target"
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


def _remarks(whole: Ladder, first: int, tests: Sequence[BackTest], widening: float) -> tuple[str, ...]:
    remarks: list[str] = []
    if first:
        remarks.append(
            f"{first} bottom rung{'s' if first > 1 else ''} up to {whole.rung_flops()[first - 1]:.2g} FLOPs left out: "
            "the loss-compute slope still steepens there"
        )
    if not tests:
        remarks.append(
            f"two rungs leave nothing to back-test; the band is at least {100 * _NO_BACKTEST_HALF_WIDTH:.0f} % each way"
        )
    if widening > 0:
        remarks.append(f"widened by {100 * widening:.2f} % each way: the back-test fell outside its own band")
    return tuple(remarks)
