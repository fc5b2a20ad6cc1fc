"""All three of the paper's approaches on one table of runs, side by side, and whether they agree.

Approach 1 reads training curves (`envelope`), approach 2 equal-compute groups (`isoflop`), approach 3 any runs
(`additive`). They share runs, so that they agree says little; that they disagree beyond their noise says that one of
their assumptions fails here. Symbols: N* and D* the best size and tokens at a compute C.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from chinchilla_lm.core.errors import FitError
from chinchilla_lm.core.units import format_count
from chinchilla_lm.laws.count import ParamsConvention
from chinchilla_lm.laws.fitting.additive import Fit, Interval, Prior, fit_additive
from chinchilla_lm.laws.fitting.envelope import Curve, EnvelopeFit, Schedule, fit_envelope
from chinchilla_lm.laws.fitting.intervals import ParameterIntervals, parameter_intervals
from chinchilla_lm.laws.fitting.isoflop import IsoflopFit, fit_isoflop
from chinchilla_lm.laws.table import RunTable

_AHEAD = 10.0  # the approaches are compared at this multiple of the largest compute: there the exponents tell
_BEYOND_NOISE = 2.0  # standard errors of the difference
_MATTERS = math.log(1.1)  # of N*: a size 10 % off its optimum costs about 1e-4 of the loss
_MATTERS_UNSURE = math.log(1.25)  # where one side has no interval


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one approach says.

    Attributes:
        approach: "envelope" (1), "isoflop" (2) or "parametric" (3).
        a: exponent of N*.
        params: N* at the compute of the comparison.
        interval: 95 % interval of N*; None where the approach has none, as its warnings say.
    """

    approach: str
    a: float
    params: float
    interval: Interval | None


@dataclass(frozen=True, kw_only=True)
class ThreeApproaches:
    """The fits and how they compare.

    Attributes:
        parametric: approach 3.
        parametric_intervals: of its constants, and of N*, D*, L* at `flops`.
        isoflop: approach 2, or None.
        envelope: approach 1, or None.
        flops: compute at which they are compared.
        answers: of each approach there, lowest number first.
        agree: whether no pair differs beyond its noise; None with one approach alone.
        warnings: disagreements, each with the way out, and why an approach is missing. The fits hold their own.
    """

    parametric: Fit
    parametric_intervals: ParameterIntervals
    isoflop: IsoflopFit | None
    envelope: EnvelopeFit | None
    flops: float
    answers: tuple[Answer, ...]
    agree: bool | None
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the fits and the comparison as JSON values."""
        return {
            "method": "all",
            **self.parametric.to_dict(),
            "parametric_intervals": self.parametric_intervals.to_dict(),
            "isoflop": None if self.isoflop is None else self.isoflop.to_dict(),
            "envelope": None if self.envelope is None else self.envelope.to_dict(),
            "comparison": {
                "flops": self.flops,
                "agree": self.agree,
                "answers": [
                    {
                        "approach": answer.approach,
                        "a": answer.a,
                        "params": answer.params,
                        "interval": None if answer.interval is None else answer.interval.to_dict(),
                    }
                    for answer in self.answers
                ],
                "warnings": list(self.warnings),
            },
        }


def fit_all(
    table: RunTable,
    *,
    curves: Sequence[Curve] = (),
    schedule: Schedule = "cosine",
    target_flops: float | None = None,
    delta: float | None = None,
    prior: Prior | None = None,
    params_convention: ParamsConvention = "total",
) -> ThreeApproaches:
    """Fit by every approach that the runs allow, and compare what they say of the best size.

    Args:
        table: finished runs.
        curves: their training curves, for approach 1.
        schedule: of the curves' learning rate.
        target_flops: compute of the comparison, > 0; None takes ten times the largest of the table.
        delta: of approach 3's Huber loss; None scales it to the noise.
        prior: of approach 3.
        params_convention: which weights `params` counts.

    Returns:
        The fits and the comparison.

    Raises:
        FitError: runs that approach 3 cannot be fitted to.

    Source: Hoffmann et al. 2022, section 3.
    """
    flops = _AHEAD * float(table.flops.max()) if target_flops is None else target_flops
    fit = fit_additive(table.params, table.tokens, table.loss, delta=delta, prior=prior)
    fit = replace(fit, law=replace(fit.law, params_convention=params_convention))
    intervals = parameter_intervals(table, fit, target_flops=(flops,))
    isoflop, envelope, missing = _first_two(table, curves, schedule, params_convention)
    answers = _answers(fit, intervals, isoflop, envelope, flops)
    clashes = tuple(
        _clash(first, second, flops, isoflop, envelope)
        for first, second in combinations(answers, 2)
        if _differ(first, second)
    )
    return ThreeApproaches(
        parametric=fit,
        parametric_intervals=intervals,
        isoflop=isoflop,
        envelope=envelope,
        flops=flops,
        answers=tuple(answers),
        agree=None if len(answers) < 2 else not clashes,
        warnings=(*clashes, *missing),
    )


def _first_two(
    table: RunTable, curves: Sequence[Curve], schedule: Schedule, params_convention: ParamsConvention
) -> tuple[IsoflopFit | None, EnvelopeFit | None, list[str]]:
    """Fit approaches 2 and 1, or say why not."""
    missing: list[str] = []
    isoflop = envelope = None
    try:
        isoflop = fit_isoflop(table.params, table.flops, table.loss, params_convention=params_convention)
    except FitError as error:
        missing.append(f"approach 2 was left out: {error}")
    if not curves:
        missing.append("approach 1 was left out: it needs training curves, and finished runs are one point each")
        return isoflop, None, missing
    try:
        envelope = fit_envelope(curves, schedule=schedule, params_convention=params_convention)
    except FitError as error:
        missing.append(f"approach 1 was left out: {error}")
    return isoflop, envelope, missing


def _answers(
    fit: Fit,
    intervals: ParameterIntervals,
    isoflop: IsoflopFit | None,
    envelope: EnvelopeFit | None,
    flops: float,
) -> list[Answer]:
    answers: list[Answer] = []
    for name, found in (("envelope", envelope), ("isoflop", isoflop)):
        if found is not None:
            params = found.law.optimum(flops)[0]
            interval = found.params_interval(flops)
            answers.append(Answer(approach=name, a=found.law.a, params=params, interval=interval))
    interval = next(interval for name, interval in intervals.ranges.items() if name.startswith("params@"))
    answers.append(Answer(approach="parametric", a=fit.law.a, params=fit.law.optimum(flops)[0], interval=interval))
    return answers


def _differ(first: Answer, second: Answer) -> bool:
    """Say whether two answers differ by more than their noise, and enough to matter."""
    gap = abs(math.log(first.params / second.params))
    errors = [answer.interval.se / answer.params for answer in (first, second) if answer.interval is not None]
    if len(errors) < 2 or not all(math.isfinite(error) for error in errors):
        return gap > _MATTERS_UNSURE
    return gap > _MATTERS and gap > _BEYOND_NOISE * math.hypot(*errors)


_NUMBERS = {"envelope": 1, "isoflop": 2, "parametric": 3}


def _clash(
    first: Answer, second: Answer, flops: float, isoflop: IsoflopFit | None, envelope: EnvelopeFit | None
) -> str:
    ratio = math.exp(abs(math.log(first.params / second.params)))
    said = " and ".join(
        f"approach {_NUMBERS[answer.approach]} says {format_count(answer.params)} params (a = {answer.a:.3f})"
        for answer in (first, second)
    )
    sure = "beyond their noise" if first.interval and second.interval else "and one of them has no interval"
    return f"at {flops:.2g} FLOPs {said}: {ratio:.2f} times apart, {sure}; {_way_out(first, isoflop, envelope)}"


def _way_out(first: Answer, isoflop: IsoflopFit | None, envelope: EnvelopeFit | None) -> str:
    if first.approach == "envelope":
        assert envelope is not None
        if any("decaying schedule" in warning for warning in envelope.warnings):
            return "the curves' points are not finished runs, so trust the finished ones and leave approach 1 out"
        return "trust finished runs over curves, and look for curves of one size with too high a loss"
    assert isoflop is not None
    worst = max((abs(valley.bias) for valley in isoflop.valleys if valley.bias is not None), default=0.0)
    if any(not valley.is_inside for valley in isoflop.valleys):
        return "some budgets have their best size outside the sizes tried; add sizes there before trusting approach 2"
    if worst > _MATTERS / 2:
        return 'the parabola is off by its own bias here; fit approach 2 with remedy "law", or trust approach 3'
    return (
        "the additive form may bend where the runs do not, or a budget is badly trained; look at its residuals and at "
        "a fitted without the lowest and the highest budget, and plan for both sizes"
    )
