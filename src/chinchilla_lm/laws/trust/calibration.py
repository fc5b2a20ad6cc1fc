"""Predict the loss of any run beyond a table of finished ones, with an interval that public sweeps have calibrated.

`predict` answers for one run, `extrapolate` prepares a table to be asked many times. The point and the error model are
explained in `cuts` and `inflation`. Beside the calibrated interval stands the raw one: what the textbook (additive law,
delta method, residual noise) would have printed.

Symbols: N `params`, D `tokens`, C `flops`, L `loss` in the table's unit; widths in ln L.
It never trains, reads files or prints. Where the table does not carry the answer it says so (`established` is False,
with `warnings`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np

from chinchilla_lm.core.errors import FitError, PlanError
from chinchilla_lm.laws.forms.law import Floats, require_positive
from chinchilla_lm.laws.table import RunTable
from chinchilla_lm.laws.trust.bracket import Run, fit_bracket, sort_ladder, steepens
from chinchilla_lm.laws.trust.cuts import Answers, CutFits, choose_cuts, fit_cuts
from chinchilla_lm.laws.trust.form_family import SEED_NOISE
from chinchilla_lm.laws.trust.inflation import LEARNT, Inflation, OwnErrors, own_errors

_FARTHEST_DECADES = 2.0  # the public sets test 3x to 100x beyond the runs
_FAILED_SQUARE = 4.0  # own errors twice as large as the public sets': the table does not follow a law
_FEWEST_ON_RUNG = 3  # a half-decade of fewer runs says nothing of its optimum
_OFF_PATH = 3.0  # tokens per param outside those of the runs by more than this factor


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The loss of one run, said before it is made.

    Attributes:
        params: N asked for.
        tokens: D asked for.
        flops: C asked for.
        loss: the point, in the table's unit.
        low: lower end of the calibrated interval.
        high: upper end.
        level: chance that it is meant to hold the truth.
        raw_loss: what the additive law alone says.
        raw_low: lower end of its textbook interval.
        raw_high: upper end.
        decades: log10 of C over the highest compute of the runs.
        sources: loss by each form.
        own_ratio: the table's own errors, when its upper runs were hidden, over those of the public sets.
        n_backtests: cuts behind `own_ratio`.
        established: no warning speaks against the answer.
        warnings: why not, each with the way out.
    """

    params: float
    tokens: float
    flops: float
    loss: float
    low: float
    high: float
    level: float
    raw_loss: float
    raw_low: float
    raw_high: float
    decades: float
    sources: dict[str, float]
    own_ratio: float
    n_backtests: int
    established: bool
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        record = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**record, "sources": dict(self.sources), "warnings": list(self.warnings)}


@dataclass(frozen=True, kw_only=True)
class Extrapolation:
    """A table prepared for questions.

    Attributes:
        fits: three forms below each cut; the last cut sees all runs.
        own: what the table's own back-tests say at each cut.
        inflation: the error model.
        flops_per_param_token: k of the highest runs, C = k N D.
    """

    fits: CutFits
    own: OwnErrors
    inflation: Inflation
    flops_per_param_token: float

    def predict(self, params: float, tokens: float, flops: float | None = None, level: float = 0.9) -> Prediction:
        """Predict one run.

        Args:
            params: N > 0, counted as in the table.
            tokens: D > 0; for repeated text what it is worth in fresh tokens (`plan.effective_tokens`).
            flops: C > 0, counted as in the table; None: k N D with the k of the table's highest runs.
            level: of the intervals, in (0, 1). Calibrated at .9; other levels lean on the Student t.

        Returns:
            The prediction.

        Raises:
            PlanError: a number that is not finite and > 0, or a level outside (0, 1).
        """
        require_positive(params, "params")
        require_positive(tokens, "tokens")
        flops = self.flops_per_param_token * params * tokens if flops is None else flops
        require_positive(flops, "flops")
        if not 0 < level < 1:
            raise PlanError(f"level={level!r} must lie between 0 and 1; write .9 for 90 %")
        answers = self.fits.ask(np.array([params]), np.array([tokens]), np.array([flops]))
        half = self.half_widths(answers, level)
        raw_half = NormalDist().inv_cdf(0.5 + level / 2) * float(answers.raw_sd[-1, 0])
        point, raw, decades = (float(column[-1, 0]) for column in (answers.point, answers.raw, answers.decades))
        warnings = _warnings(self, params, tokens, decades)
        return Prediction(
            params=params,
            tokens=tokens,
            flops=flops,
            loss=math.exp(point),
            low=math.exp(point - half[-1, 0]),
            high=math.exp(point + half[-1, 0]),
            level=level,
            raw_loss=math.exp(raw),
            raw_low=math.exp(raw - raw_half),
            raw_high=math.exp(raw + raw_half),
            decades=decades,
            sources={form: math.exp(float(column[-1, 0])) for form, column in answers.sources.items()},
            own_ratio=float(self.own.ratio_k[-1]),
            n_backtests=int(self.own.n_tests_k[-1]),
            established=not warnings,
            warnings=warnings,
        )

    def under(self, inflation: Inflation) -> Extrapolation:
        """Return the same fits under other constants of the error model."""
        return replace(self, inflation=inflation, own=_own(self.fits, inflation))

    def half_widths(self, answers: Answers, level: float = 0.9) -> Floats:
        """Return half the calibrated interval in ln L of each answer, shape (K, M)."""
        noise = np.broadcast_to(self.fits.noise_k[:, None], answers.drop.shape)
        scale = self.inflation.scale(answers.drop, answers.spread, noise)
        return scale * self.own.ratio_k[:, None] * self.inflation.quantile(level)


def predict(
    table: RunTable,
    params: float,
    tokens: float,
    *,
    flops: float | None = None,
    level: float = 0.9,
    inflation: Inflation = LEARNT,
) -> Prediction:
    """Predict the loss of one run from a table of finished ones; see `Extrapolation.predict`.

    Args:
        table: finished runs, five or more, none diverged.
        params: N > 0 of the run asked for.
        tokens: D > 0.
        flops: C > 0, counted as in the table; None: in proportion to N D.
        level: of the intervals.
        inflation: the error model.

    Returns:
        The prediction.

    Raises:
        FitError: too few runs, or runs that are no numbers.
        PlanError: an impossible question.
    """
    return extrapolate(table, inflation=inflation).predict(params, tokens, flops, level)


def extrapolate(
    table: RunTable, *, cut_flops: Sequence[float] | None = None, inflation: Inflation = LEARNT
) -> Extrapolation:
    """Fit the forms to a table and to its lower parts, and let it test itself.

    Args:
        table: finished runs, five or more, none diverged.
        cut_flops: the cuts; None: the whole table, and steps of a quarter decade below.
        inflation: the error model.

    Returns:
        The table, ready for questions.

    Raises:
        FitError: too few runs, or runs that are no numbers.
    """
    for name in ("params", "tokens", "flops", "loss"):
        column = getattr(table, name)
        if not bool(np.all(np.isfinite(column) & (column > 0))):
            raise FitError(f"a {name} of the runs is not finite and > 0; leave diverged and broken runs out")
    top = float(table.flops.max())
    cuts = choose_cuts(table, top) if cut_flops is None else np.array(cut_flops, dtype=np.float64)
    fits = fit_cuts(table, cuts if len(cuts) else np.array([top]))
    runs = fits.table
    highest = np.argsort(runs.flops)[-max(len(runs.flops) // 4, 1) :]
    k = np.median(runs.flops[highest] / (runs.params[highest] * runs.tokens[highest]))
    return Extrapolation(
        fits=fits,
        own=_own(fits, inflation),
        inflation=inflation,
        flops_per_param_token=float(k),
    )


def _own(fits: CutFits, inflation: Inflation) -> OwnErrors:
    runs = fits.table
    answers = fits.ask(runs.params, runs.tokens, runs.flops)
    return own_errors(inflation, answers, fits.noise_k, fits.cut_flops_k, runs.flops, np.log(runs.loss))


def _warnings(made: Extrapolation, params: float, tokens: float, decades: float) -> tuple[str, ...]:
    warnings: list[str] = []
    runs = made.fits.table
    if decades > _FARTHEST_DECADES + 1e-6:
        warnings.append(
            f"the run has {10**decades:.0f} times the compute of the largest finished one, and the intervals were "
            "tested up to 100 times; add larger runs"
        )
    if not int(made.own.n_tests_k[-1]):
        warnings.append(
            "the runs are too few, or too alike, to test the law on themselves: the width is that of the public sets "
            "alone; add runs of other sizes and computes (eight or more below a third of the largest)"
        )
    elif float(made.own.mean_square_k[-1]) > _FAILED_SQUARE:
        warnings.append(
            "with its upper runs hidden the table misses them by "
            f"{math.sqrt(float(made.own.mean_square_k[-1])):.1f} times what public sets do; look for badly trained "
            "runs, or leave out the smallest"
        )
    per_param = runs.tokens / runs.params
    if not per_param.min() / _OFF_PATH <= tokens / params <= per_param.max() * _OFF_PATH:
        warnings.append(
            f"{tokens / params:.3g} tokens per param lie far outside the runs' {per_param.min():.3g} to "
            f"{per_param.max():.3g}; add runs of that kind"
        )
    if _still_steepens(runs):
        warnings.append(
            "the loss falls ever faster with compute up to the largest runs, so they are still too small for a law; "
            "add larger runs"
        )
    return tuple(warnings)


def _still_steepens(runs: RunTable) -> bool:
    """Cut the table into half-decades of compute and ask whether the optima of the top three fall ever faster."""
    label = np.round(2 * np.log10(runs.flops)).astype(np.int64)
    names, counts = np.unique(label, return_counts=True)
    kept = np.flatnonzero(np.isin(label, names[counts >= _FEWEST_ON_RUNG])).tolist()
    if len({int(label[run]) for run in kept}) < 3:
        return False
    columns = ("params", "tokens", "flops", "loss")
    ladder = sort_ladder(
        [Run(**{name: float(getattr(runs, name)[run]) for name in columns}, rung=int(label[run])) for run in kept]
    )
    bracket = fit_bracket(ladder, seed_sd=SEED_NOISE)
    residuals = np.array(bracket.fit.residuals)
    level = np.bincount(ladder.rung_n, residuals) / np.bincount(ladder.rung_n)
    # Scatter within the rungs: about the law itself it would be large for the very tables that bend away from it.
    scatter = 1.4826 * float(np.median(np.abs(residuals - level[ladder.rung_n])))
    return steepens(bracket.rungs, len(bracket.rungs) - 3, max(scatter, SEED_NOISE))
