"""Approach 1: the lowest loss that any training curve shows at each compute, and a power law through who held it.

Symbols: N `params`, D `tokens` so far, C = 6 N D `flops` so far, L `loss` in nats per token; R runs, G computes.
Each curve is smoothed, made to fall, and interpolated in ln C; at each of G log-spaced computes the lowest curve gives
N* and D*. Where the smallest or the largest size is lowest, a still smaller or larger one might have been lower: those
ends bend the power law (on noise-free curves of a law with a = .513 they give a = .41) and are left out by default.
A point in the middle of a decaying learning rate is no finished run: its loss is too high, so the envelope of such
curves is only right where runs of several lengths end (Hoffmann et al. 2022, figure A1), and it warns.
It refuses curves that never cross, and never extrapolates a curve.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from chinchilla_lm.core.errors import FitError
from chinchilla_lm.laws.count import ParamsConvention
from chinchilla_lm.laws.fitting.additive import Interval
from chinchilla_lm.laws.fitting.noise import quantile_sd
from chinchilla_lm.laws.forms.allocation import AllocationLaw, PowerLine
from chinchilla_lm.laws.forms.law import Floats

Schedule = Literal["constant", "cosine"]

_POINTS = 1500  # Hoffmann et al. 2022, section 3.1
_FLOPS_PER_PARAM_TOKEN = 6.0
_FEWEST_SIZES = 3  # on the envelope; two give a line through one crossing
_LATE = 0.8  # a cosine run 25 % longer than what was read of it is clearly worse (Hoffmann et al. 2022, figure A1)
_TOLERATED_EARLY = 0.1  # share of the envelope
_DRAWS, _LEVEL = 200, 0.95


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The losses of one run while it trains.

    Attributes:
        params: N > 0.
        tokens: D at each point, > 0, rising.
        loss: L at each point, > 0; training loss, or held-out loss at checkpoints.
        horizon_tokens: D at which its learning rate was planned to end; None: at the last point.
    """

    params: float
    tokens: Floats
    loss: Floats
    horizon_tokens: float | None = None


@dataclass(frozen=True, kw_only=True)
class EnvelopeFit:
    """A power law through the sizes that hold the envelope.

    Attributes:
        law: N* = coefficient * C^a, with the line of the least losses.
        flops: of each point of the envelope, shape (G,).
        params: N of the run that holds it.
        tokens: D of that run there.
        loss: L there.
        n_runs: curves used.
        n_sizes: different N on the envelope.
        intervals: 95 % interval of a and b over runs drawn with replacement; empty with fewer than six runs.
        warnings: what a reader must know, one sentence each.
        lines_k2: (a, ln coefficient) of each resample, shape (K, 2).
    """

    law: AllocationLaw
    flops: Floats
    params: Floats
    tokens: Floats
    loss: Floats
    n_runs: int
    n_sizes: int
    intervals: dict[str, Interval] = field(default_factory=lambda: {})
    warnings: tuple[str, ...] = ()
    lines_k2: Floats = field(default_factory=lambda: np.zeros((0, 2)), repr=False)

    def params_interval(self, flops: float, level: float = _LEVEL) -> Interval | None:
        """Return the interval of N* at a compute > 0; None where `intervals` is empty."""
        if len(self.lines_k2) < 2:
            return None
        log_params = self.lines_k2[:, 1] + self.lines_k2[:, 0] * math.log(flops)
        low, high = np.exp(np.quantile(log_params, [0.5 - level / 2, 0.5 + level / 2]))
        return Interval(low=float(low), high=float(high), se=self.law.optimum(flops)[0] * quantile_sd(log_params))

    def to_dict(self) -> dict[str, Any]:
        """Return the law and the envelope's extent as JSON values."""
        assert self.law.line is not None
        return {
            "method": "envelope",
            "params_convention": self.law.params_convention,
            "a": self.law.a,
            "b": self.law.b,
            "coefficient": self.law.coefficient,
            "line": {"intercept": self.law.line.intercept, "slope": self.law.line.slope},
            "n_runs": self.n_runs,
            "n_sizes": self.n_sizes,
            "smallest_flops": float(self.flops[0]),
            "largest_flops": float(self.flops[-1]),
            "interval_level": _LEVEL,
            "intervals": {name: interval.to_dict() for name, interval in self.intervals.items()},
            "warnings": list(self.warnings),
        }


def fit_envelope(
    curves: Sequence[Curve],
    *,
    schedule: Schedule = "cosine",
    smoothing: int = 0,
    trim_ends: bool = True,
    params_convention: ParamsConvention = "total",
) -> EnvelopeFit:
    """Fit a power law through the sizes that reach the lowest loss at each compute.

    Args:
        curves: of runs of several sizes; where the learning rate decays, several lengths of each size.
        schedule: "cosine" (or any decay over the whole run) or "constant" (every point counts as finished).
        smoothing: sd, in points of a curve, of the Gaussian window of a local line through ln L; 0 for none. The
            paper's is 10 points of a training log.
        trim_ends: leave out the computes where the smallest or the largest size holds the envelope.
        params_convention: which weights `params` counts.

    Returns:
        The fit.

    Raises:
        FitError: curves that are no numbers, or fewer than three sizes on the envelope.

    Source: Hoffmann et al. 2022, section 3.1.
    Differs: the paper does not say how it interpolates, nor that it trims; here a running minimum is interpolated
        linearly in ln C and ln L.
    """
    _check_all(curves, schedule)
    sizes, log_c, log_l = _on_one_grid(curves, smoothing)
    holder_g = log_l.argmin(0)
    kept = _kept(holder_g, sizes, trim_ends)
    n_sizes = len(np.unique(sizes[holder_g[kept]]))
    if n_sizes < _FEWEST_SIZES:
        raise FitError(
            f"{n_sizes} sizes hold the envelope and {_FEWEST_SIZES} are needed; give curves that cross: "
            "sizes farther apart, or longer runs of the small and shorter ones of the large"
        )
    log_n = np.log(sizes[holder_g])
    best = log_l[holder_g, np.arange(_POINTS)]
    lines_k2 = _resampled_lines(log_c, log_l, sizes, trim_ends)
    law = _law_through(log_c[kept], log_n[kept], best[kept], params_convention)
    flops, params = np.exp(log_c[kept]), sizes[holder_g[kept]]
    tokens = flops / _FLOPS_PER_PARAM_TOKEN / params
    warnings = (*_schedule_warnings(curves, schedule, holder_g[kept], tokens), *_shape_warnings(params, lines_k2))
    return EnvelopeFit(
        law=law,
        flops=flops,
        params=params,
        tokens=tokens,
        loss=np.exp(best[kept]),
        n_runs=len(curves),
        n_sizes=n_sizes,
        intervals=_exponent_intervals(lines_k2),
        warnings=warnings,
        lines_k2=lines_k2,
    )


def _check_all(curves: Sequence[Curve], schedule: Schedule) -> None:
    if schedule not in get_args(Schedule):
        raise FitError(f"schedule {schedule!r} is unknown; choose from {', '.join(get_args(Schedule))}")
    if len(curves) < _FEWEST_SIZES:
        raise FitError(f"{len(curves)} curves are too few for an envelope; give {_FEWEST_SIZES} or more sizes")
    for number, curve in enumerate(curves, start=1):
        _check(curve, number)


def _check(curve: Curve, number: int) -> None:
    tokens, loss = np.asarray(curve.tokens, dtype=np.float64), np.asarray(curve.loss, dtype=np.float64)
    if tokens.ndim != 1 or tokens.shape != loss.shape or len(tokens) < 2:
        raise FitError(f"curve {number} has {tokens.shape} tokens and {loss.shape} losses; give two or more of each")
    numbers = np.concatenate([[curve.params], tokens, loss])
    if not bool(np.all(np.isfinite(numbers) & (numbers > 0))):
        raise FitError(f"curve {number} holds a number that is not finite and > 0; cut it there, or leave it out")
    if not bool(np.all(np.diff(tokens) > 0)):
        raise FitError(f"the tokens of curve {number} do not rise; sort its points and drop repeated ones")


def _on_one_grid(curves: Sequence[Curve], smoothing: int) -> tuple[Floats, Floats, Floats]:
    """Return N of each curve (R,), ln of the computes (G,) and ln L of each curve there (R, G)."""
    sizes = np.array([curve.params for curve in curves])
    starts = np.array([float(np.min(curve.tokens)) * curve.params for curve in curves])
    ends = np.array([float(np.max(curve.tokens)) * curve.params for curve in curves])
    log_c = np.log(_FLOPS_PER_PARAM_TOKEN) + np.linspace(math.log(starts.min()), math.log(ends.max()), _POINTS)
    return sizes, log_c, np.stack([_interpolated(curve, smoothing, log_c) for curve in curves])


def _interpolated(curve: Curve, smoothing: int, log_c: Floats) -> Floats:
    """Return ln L of one curve at each compute, made to fall; inf outside the curve."""
    own_c = np.log(_FLOPS_PER_PARAM_TOKEN * curve.params) + np.log(np.asarray(curve.tokens, dtype=np.float64))
    log_loss = np.log(np.asarray(curve.loss, dtype=np.float64))
    if smoothing > 0:
        log_loss = _smoothed(log_loss, smoothing)
    falling = np.minimum.accumulate(log_loss)
    inside = np.interp(log_c, own_c, falling)
    rounding = 1e-9  # the outermost computes are the ends of curves themselves
    return np.where((log_c >= own_c[0] - rounding) & (log_c <= own_c[-1] + rounding), inside, np.inf)


def _smoothed(values: Floats, width: int) -> Floats:
    """Replace each value by a local line's, so that the steep start of a curve is not pulled towards its middle."""
    reach = np.arange(-3 * width, 3 * width + 1, dtype=np.float64)
    window = np.exp(-0.5 * (reach / width) ** 2)

    def summed(weights: Floats, column: Floats) -> Floats:
        whole = np.convolve(column, weights[::-1], mode="full")
        return whole[3 * width : 3 * width + len(column)]

    ones = np.ones_like(values)
    first, second = window * reach, window * reach**2
    level, tilt, bend = summed(window, ones), summed(first, ones), summed(second, ones)
    return (bend * summed(window, values) - tilt * summed(first, values)) / (level * bend - tilt**2)


def _kept(holder_g: np.ndarray, sizes: Floats, trim_ends: bool) -> np.ndarray:
    held = sizes[holder_g]
    if not trim_ends:
        return np.ones(len(held), dtype=bool)
    return (held > sizes.min()) & (held < sizes.max())


def _law_through(log_c: Floats, log_n: Floats, log_l: Floats, params_convention: ParamsConvention) -> AllocationLaw:
    exponent, log_coefficient = _line(log_c, log_n)
    slope, intercept = _line(log_c, log_l)
    return AllocationLaw(
        coefficient=math.exp(log_coefficient),
        exponent=exponent,
        params_convention=params_convention,
        line=PowerLine(intercept=intercept, slope=slope),
    )


def _line(x: Floats, y: Floats) -> tuple[float, float]:
    """Return slope and intercept of the least-squares line; a slope of nan where x has no spread."""
    centre = float(x.mean())
    spread = float(((x - centre) ** 2).sum())
    slope = float(((x - centre) * y).sum()) / spread if spread > 0 else math.nan
    return slope, float(y.mean()) - slope * centre


def _resampled_lines(log_c: Floats, log_l: Floats, sizes: Floats, trim_ends: bool) -> Floats:
    """Draw whole runs with replacement and redraw the envelope; (a, ln coefficient) of each draw, or none."""
    if len(sizes) < 6:
        return np.zeros((0, 2))
    rng = np.random.default_rng(0)
    lines: list[tuple[float, float]] = []
    for _ in range(_DRAWS):
        runs = np.unique(rng.integers(len(sizes), size=len(sizes)))
        part = log_l[runs]
        covered = np.isfinite(part.min(0))  # an end of the range may be covered by runs that were not drawn
        holder = part[:, covered].argmin(0)
        kept = _kept(holder, sizes[runs], trim_ends)
        held = sizes[runs][holder[kept]]
        if len(np.unique(held)) >= _FEWEST_SIZES:
            lines.append(_line(log_c[covered][kept], np.log(held)))
    return np.array(lines) if len(lines) > _DRAWS / 2 else np.zeros((0, 2))


def _exponent_intervals(lines_k2: Floats) -> dict[str, Interval]:
    if len(lines_k2) < 2:
        return {}
    low, high = (float(end) for end in np.quantile(lines_k2[:, 0], [0.5 - _LEVEL / 2, 0.5 + _LEVEL / 2]))
    se = quantile_sd(lines_k2[:, 0])
    return {"a": Interval(low=low, high=high, se=se), "b": Interval(low=1 - high, high=1 - low, se=se)}


def _schedule_warnings(
    curves: Sequence[Curve], schedule: Schedule, holder_g: np.ndarray, tokens: Floats
) -> tuple[str, ...]:
    if schedule == "constant":
        return ()
    horizons = np.array([curve.horizon_tokens or float(curve.tokens[-1]) for curve in curves])
    early = float((tokens < _LATE * horizons[holder_g]).mean())
    if early <= _TOLERATED_EARLY:
        return ()
    return (
        f"{100 * early:.0f} % of the envelope is read before {100 * _LATE:.0f} % of a decaying schedule, where losses "
        "are too high; add shorter runs of each size, train with a constant rate and cooldowns, or use finished runs "
        "with the parametric method",
    )


def _shape_warnings(params: Floats, lines_k2: Floats) -> tuple[str, ...]:
    warnings: list[str] = []
    turns = int((np.diff(params) < 0).sum())
    if turns > 0:
        warnings.append(
            f"the envelope falls back to a smaller size {turns} times as compute grows: noise decides; "
            "smooth the curves"
        )
    if not len(lines_k2):
        warnings.append("too few sizes to draw from, so a has no interval; give curves of eight or more sizes")
    return tuple(warnings)
