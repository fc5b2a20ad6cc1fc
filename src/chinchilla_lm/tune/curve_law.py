"""The learning curve of a task: error = e + a n^-b over n labelled rows, and what twice the rows would buy.

Symbols: m points (tunings on different numbers of rows), d draws; error = 1 - metric, 100 - BLEU, or the loss itself.
A point is uncertain twice: the test rows are a sample (the same for all points, so that their errors move together),
and training is a draw. Both are drawn again for the intervals. Few points hold three constants badly: b has a prior.
It knows no model and never reads files.

Source of the form: Hestness et al. 2017 and Rosenfeld et al. 2020; solved by `chinchilla_lm.laws.fitting.form_solver`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chinchilla_lm.core.errors import FitError
from chinchilla_lm.laws.fitting.form_solver import Misfit, descend, descend_resamples
from chinchilla_lm.laws.forms.law import Floats
from chinchilla_lm.metrics.measures import Measures
from chinchilla_lm.metrics.resampling import draw_sums

# Exponents of learning curves: Hestness et al. 2017 report 0.07 to 0.35 from scratch, table 1; fine-tuning falls faster
# at first (Hernandez et al. 2021). A prior of 0.4 +- 0.3 covers both.
_EXPONENT = (0.4, 0.3)
_LEAST_EXPONENT, _MOST_EXPONENT = 0.02, 3.0
# Training noise before any is seen: 5 % of the error (half a point at 90 % accuracy; Dodge et al. 2020 see such a
# spread over seeds), believed as much as three residuals would be.
_NOISE, _NOISE_ROWS = 0.05, 3.0
_LEAST_NOISE = 0.02
# Small parts are luckier, and bend away from the law (Hestness et al. 2017's "small data region"): their noise grows as
# rows^-1/4. On nine real doublings (bench/learning_curves.py) this takes the mean error from 1.5 to 1.2 points.
_NOISE_EXPONENT = 0.25
_LEAST_POINTS = 3
# No error is below half a wrong row of some thousand; a logarithm must not meet 0.
_LEAST_ERROR = 1e-4
_LEAST_SQUARES = 5.0  # Huber's delta in ln error: no residual is as large, so this is least squares
_LEVEL = 0.9
_PRIOR_DRAWS = 40


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """One tuning: how many rows it saw, and its measures on the test rows, the same rows for all points."""

    rows: int
    measures: Measures


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The metric at a number of rows, with its interval."""

    rows: int
    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class CurveLaw:
    """error = floor + scale * rows^-exponent, and what follows.

    Attributes:
        metric: name of the measure.
        floor, scale, exponent: e, a, b.
        noise: standard deviation of training in ln error, at the most rows.
        level: of all intervals.
        points: (rows, value, low, high) of each tuning; the interval is that of the test rows alone.
        curve: the law from the fewest rows to twice the most.
        doubled: at twice the most rows.
        gain: doubled minus the law at the most rows, in the metric's unit; below 0 where the metric falls.
        gain_low, gain_high: its interval.
        warnings: one sentence each.
    """

    metric: str
    floor: float
    scale: float
    exponent: float
    noise: float
    level: float
    points: tuple[Forecast, ...]
    curve: tuple[Forecast, ...]
    doubled: Forecast
    gain: float
    gain_low: float
    gain_high: float
    warnings: tuple[str, ...]

    def sentence(self) -> str:
        """Say what twice the rows would buy."""
        rows = self.doubled.rows // 2
        level = f"{100 * self.level:.0f} % interval"
        return (
            f"Twice the rows ({rows} more) should move {self.metric} by {self.gain:+.3g} ({level} {self.gain_low:+.3g}"
            f" to {self.gain_high:+.3g}), to {self.doubled.value:.4g} ({self.doubled.low:.4g} to"
            f" {self.doubled.high:.4g})."
        )

    def as_record(self) -> dict[str, Any]:
        """Return the fields of "learning_curve" in tune.json."""
        return {
            "metric": self.metric,
            "form": "error = floor + scale * rows^-exponent",
            "constants": {"floor": self.floor, "scale": self.scale, "exponent": self.exponent},
            "training_noise": self.noise,
            "level": self.level,
            "points": [vars(point) for point in self.points],
            "curve": [vars(point) for point in self.curve],
            "doubled": vars(self.doubled),
            "gain": {"value": self.gain, "low": self.gain_low, "high": self.gain_high},
            "warnings": list(self.warnings),
            "sentence": self.sentence(),
        }


def fit_curve(points: Sequence[CurvePoint], *, draws: int = 1000, seed: int = 0, level: float = _LEVEL) -> CurveLaw:
    """Fit the law through tunings on different numbers of rows.

    Args:
        points: at least three, of at least three different numbers of rows, measured on the same test rows.
        draws: for the intervals.
        seed: of the draws.
        level: of the intervals.

    Returns:
        The law with its forecast.

    Raises:
        FitError: too few points.
    """
    rows_m = np.array([point.rows for point in points], dtype=np.float64)
    if len(set(rows_m.tolist())) < _LEAST_POINTS:
        raise FitError(
            f"{len(set(rows_m.tolist()))} numbers of rows hold no learning curve; tune on at least {_LEAST_POINTS}"
        )
    unit = _Unit.of(points[0].measures)
    log_error_m = np.log(unit.error(np.array([point.measures.value for point in points])))
    sampled_dm = np.log(unit.error(_drawn_values([point.measures for point in points], draws, seed)))
    model = _ErrorModel(y_n=np.log(rows_m / rows_m.max()))
    moved_dm = sampled_dm - log_error_m
    # What all points share of the test rows' luck moves the level, not the shape; the rest is noise of each point.
    own_m = (moved_dm - moved_dm.mean(axis=1, keepdims=True)).std(axis=0)
    free_p, noise = _fit(model, log_error_m, own_m)
    free_dp = _refits(model, free_p, moved_dm, own_m, noise=noise, seed=seed)
    return _law(points, unit, model, (free_p, free_dp), sampled_dm, noise=noise, level=level)


@dataclass(frozen=True, kw_only=True)
class _Unit:
    """How a metric becomes an error and back."""

    best: float | None
    """The metric of a perfect model; None where the metric is an error itself."""

    @classmethod
    def of(cls, measures: Measures) -> _Unit:
        if not measures.higher_is_better:
            return cls(best=None)
        return cls(best=100.0 if measures.primary in ("bleu", "chrf") else 1.0)

    def error(self, value: Floats) -> Floats:
        scale = self.best or 1.0
        return np.maximum(value if self.best is None else self.best - value, _LEAST_ERROR * scale)

    def value(self, error: Floats) -> Floats:
        return error if self.best is None else self.best - error


@dataclass(frozen=True, kw_only=True)
class _ErrorModel:
    """ln error = ln(exp(e) + exp(a - b y)), y = ln rows below the most rows; a form for `form_solver`."""

    y_n: Floats
    names: tuple[str, ...] = ("e", "a", "b")

    @property
    def noise_n(self) -> Floats:
        """Training noise of each point over that of the largest."""
        return np.exp(-_NOISE_EXPONENT * self.y_n)

    @property
    def low(self) -> Floats:
        return np.array([-14.0, -14.0, _LEAST_EXPONENT])

    @property
    def high(self) -> Floats:
        return np.array([7.0, 7.0, _MOST_EXPONENT])

    def log_loss(self, free_kp: Floats) -> Floats:
        return np.logaddexp(free_kp[:, :1], free_kp[:, 1:2] - free_kp[:, 2:] * self.y_n)

    def evaluate(self, free_kp: Floats) -> tuple[Floats, Floats]:
        log_error = self.log_loss(free_kp)
        floor = np.exp(free_kp[:, :1] - log_error)
        return log_error, np.stack([floor, 1 - floor, -(1 - floor) * self.y_n], axis=-1)


def _fit(model: _ErrorModel, log_error_m: Floats, own_m: Floats) -> tuple[Floats, float]:
    """Return the constants and the training noise, each from the other, in a few rounds."""
    noise, low = _NOISE, float(log_error_m.min())
    starts = np.array(
        [
            [np.log(share) + low, np.log1p(-share) + low, exponent]
            for share in (0.02, 0.3, 0.6, 0.9)
            for exponent in (0.1, 0.3, 0.7, 1.5)
        ]
    )
    free_p = starts[0]
    for _ in range(4):
        misfit = _misfit(log_error_m, noise**2 * model.noise_n**2 + own_m**2, _EXPONENT[0])
        free_p = descend(model, starts, misfit).best().free_kp[0]
        residual = log_error_m - model.log_loss(free_p[None])[0]
        own = float(np.mean((own_m / model.noise_n) ** 2))
        seen = float(np.sum((residual / model.noise_n) ** 2)) + _NOISE_ROWS * (_NOISE**2 + own)
        # The residuals hold the test rows' luck too; what is left is training's.
        noise = float(np.sqrt(max(seen / _degrees(len(residual)) - own, _LEAST_NOISE**2)))
    return free_p, noise


def _refits(model: _ErrorModel, free_p: Floats, moved_dm: Floats, own_m: Floats, *, noise: float, seed: int) -> Floats:
    """Fit again with other test rows, other luck in training and another prior, (d, 3)."""
    generator = np.random.default_rng(seed)
    draws, points = moved_dm.shape
    degrees = _degrees(points)
    # The noise is itself known from few residuals: scaled inverse chi-square draws give Student's tails.
    noise_d = noise * np.sqrt(degrees / generator.chisquare(degrees, size=draws))
    luck_dm = noise_d[:, None] * model.noise_n * generator.standard_normal((draws, points))
    drawn_dm = model.log_loss(free_p[None]) + moved_dm + luck_dm
    variance_m = noise**2 * model.noise_n**2 + own_m**2
    # The prior's mean is drawn from the prior, so that what only the prior knows stays uncertain (randomised MAP).
    groups = np.array_split(np.arange(draws), min(_PRIOR_DRAWS, draws))
    exponents = np.clip(generator.normal(*_EXPONENT, size=len(groups)), _LEAST_EXPONENT, _MOST_EXPONENT)
    return np.concatenate(
        [
            descend_resamples(model, free_p, _misfit(drawn_dm[group], variance_m, float(exponent)))
            for group, exponent in zip(groups, exponents, strict=True)
        ]
    )


def _degrees(points: int) -> float:
    """Count what the noise is known from: residuals beyond level and slope, and the prior's share."""
    return max(points - 2, 0) + _NOISE_ROWS


def _misfit(log_error_kn: Floats, variance_m: Floats, exponent: float) -> Misfit:
    """Weigh points by their noise; the prior holds b."""
    return Misfit(
        log_loss_kn=log_error_kn,
        weight_kn=(1 / variance_m)[None],
        delta=_LEAST_SQUARES,
        prior_mean=np.array([0.0, 0.0, exponent]),
        prior_precision=np.array([0.0, 0.0, 1 / _EXPONENT[1] ** 2]),
    )


def _drawn_values(measures_m: Sequence[Measures], draws: int, seed: int) -> Floats:
    """Return the metric of every point on the same drawn test rows, (d, m)."""
    columns, widths = [], []
    for measures in measures_m:
        formula = measures.from_counts
        assert formula is not None, f"{measures.primary} cannot be drawn again"
        assert measures.counts_nk is not None, measures.primary
        columns.append(measures.counts_nk[:, list(formula.columns)])
        widths.append(len(formula.columns))
    ends = np.cumsum([0, *widths])
    blocks = []
    for sums_dk in draw_sums(np.concatenate(columns, axis=1), draws, seed):
        formulas = [measures.from_counts for measures in measures_m]
        values = [
            formula.compute(sums_dk[:, ends[place] : ends[place + 1]])
            for place, formula in enumerate(formulas)
            if formula is not None
        ]
        blocks.append(np.stack(values, axis=1))
    return np.concatenate(blocks)


def _law(
    points: Sequence[CurvePoint],
    unit: _Unit,
    model: _ErrorModel,
    free: tuple[Floats, Floats],
    sampled_dm: Floats,
    *,
    noise: float,
    level: float,
) -> CurveLaw:
    free_p, free_dp = free
    tail = [(1 - level) / 2, (1 + level) / 2]
    rows = [point.rows for point in points]
    most = max(rows)
    shown = np.unique(np.round(np.geomspace(min(rows), 2 * most, 25)).astype(int))
    grid = _ErrorModel(y_n=np.log(shown / most))
    centre, drawn = unit.value(np.exp(grid.log_loss(free_p[None])[0])), unit.value(np.exp(grid.log_loss(free_dp)))
    low, high = np.quantile(drawn, tail, axis=0)
    curve = tuple(
        Forecast(rows=int(n), value=float(v), low=float(lo), high=float(hi))
        for n, v, lo, hi in zip(shown, centre, low, high, strict=True)
    )
    at_most = _ErrorModel(y_n=np.zeros(1))
    gain_d = drawn[:, -1] - unit.value(np.exp(at_most.log_loss(free_dp)[:, 0]))
    gain = curve[-1].value - float(unit.value(np.exp(at_most.log_loss(free_p[None])[0, 0])))
    gain_low, gain_high = np.quantile(gain_d, tail)
    ends = np.quantile(unit.value(np.exp(sampled_dm)), tail, axis=0)
    seen = tuple(
        Forecast(rows=point.rows, value=point.measures.value, low=float(ends[0, place]), high=float(ends[1, place]))
        for place, point in enumerate(points)
    )
    return CurveLaw(
        metric=points[0].measures.primary,
        floor=float(np.exp(free_p[0])),
        scale=float(np.exp(free_p[1]) * most ** free_p[2]),
        exponent=float(free_p[2]),
        noise=noise,
        level=level,
        points=seen,
        curve=curve,
        doubled=curve[-1],
        gain=gain,
        gain_low=float(gain_low),
        gain_high=float(gain_high),
        warnings=_warnings(rows, free_p, unit, points),
    )


def _warnings(rows: Sequence[int], free_p: Floats, unit: _Unit, points: Sequence[CurvePoint]) -> tuple[str, ...]:
    found = []
    if max(rows) < 4 * min(rows):
        found.append(f"The rows span a factor of only {max(rows) / min(rows):.1f}; the exponent is mostly the prior's.")
    if len(set(rows)) < 5:
        found.append(f"{len(set(rows))} numbers of rows for three constants: the interval leans on the prior.")
    ordered = sorted(points, key=lambda point: point.rows)
    first, last = (float(unit.error(np.array(point.measures.value))) for point in (ordered[0], ordered[-1]))
    if last >= first:
        found.append("The error does not fall with more rows: look at the settings before buying labels.")
    if free_p[2] <= _LEAST_EXPONENT * 1.01 or free_p[2] >= _MOST_EXPONENT * 0.99:
        found.append("The exponent ended on the edge of what is allowed.")
    return tuple(found)
