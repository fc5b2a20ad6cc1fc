"""Approach 2: the best size of each compute from a parabola, and a power law through the best sizes.

Symbols: N `params`, C `flops`, L `loss` in nats per token; the parabola is L against ln N; K draws, R budgets.
A parabola is not the valley's true shape: on noise-free runs of the additive law with sizes 16 times to either side
the tokens at a far optimum come out 5 % low, and 23 % where alpha and beta differ (Czech et al. 2026, 2603.22339).
How far each vertex is off is computed from the additive law of the same runs and reported; `remedy` takes it out.
`additive.fit_additive` is the better estimate; this one is the check that needs no form for the loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from chinchilla_lm.core.errors import FitError
from chinchilla_lm.laws.count import ParamsConvention
from chinchilla_lm.laws.fitting.additive import Interval, fit_additive
from chinchilla_lm.laws.fitting.noise import quantile_sd
from chinchilla_lm.laws.forms.additive import AdditiveLaw
from chinchilla_lm.laws.forms.allocation import AllocationLaw, PowerLine
from chinchilla_lm.laws.forms.law import Floats

Remedy = Literal["none", "law", "cubic", "local"]

_SAME_BUDGET = 0.1  # runs within 10 % of a budget share it; digitised and rounded runs miss theirs by a few per cent
_WINDOW = math.log(4.0)  # "local" keeps sizes within this of the parabola's vertex: there it is 1.3 % off, not 5 %
_FEWEST_FOR_LAW = 8  # runs; below, five constants leave too little to judge a parabola by
_REPORTED_BIAS = 0.02  # of ln N*; smaller shifts are below what any sweep resolves
_DRAWS, _LEVEL = 400, 0.95
_FEWEST_RESIDUALS = 3  # degrees of freedom over all budgets; fewer say nothing of the noise


@dataclass(frozen=True, kw_only=True)
class Valley:
    """The best size of one compute.

    Attributes:
        flops: the compute.
        params: N at the lowest point, after the remedy.
        tokens: C / (6 N) there.
        loss: at the lowest point, nats per token.
        n_runs: runs behind it.
        is_inside: the lowest point lies between the sizes tried.
        bias: how far (in ln N) this shape would miss on noise-free runs of the additive law at the same sizes; None
            where the runs do not determine that law. Already taken out where the remedy is "law".
    """

    flops: float
    params: float
    tokens: float
    loss: float
    n_runs: int
    is_inside: bool
    bias: float | None = None


@dataclass(frozen=True, kw_only=True)
class IsoflopFit:
    """A power law through the best sizes.

    Attributes:
        law: N* = coefficient * C^a, with the line of the least losses.
        valleys: of each usable budget, lowest compute first.
        n_runs: runs used.
        remedy: against the parabola's bias.
        intervals: 95 % residual-bootstrap interval of a and b; empty where too few runs are left to judge noise by.
        warnings: what a reader must know, one sentence each.
        lines_k2: (a, ln coefficient) of each resample, shape (K, 2).
    """

    law: AllocationLaw
    valleys: tuple[Valley, ...]
    n_runs: int
    remedy: Remedy = "none"
    intervals: dict[str, Interval] = field(default_factory=lambda: {})
    warnings: tuple[str, ...] = ()
    lines_k2: Floats = field(default_factory=lambda: np.zeros((0, 2)), repr=False, compare=False)

    def params_interval(self, flops: float, level: float = _LEVEL) -> Interval | None:
        """Return the interval of N* at a compute > 0; None where `intervals` is empty."""
        if len(self.lines_k2) < 2:
            return None
        log_params = self.lines_k2[:, 1] + self.lines_k2[:, 0] * math.log(flops)
        low, high = np.exp(np.quantile(log_params, [0.5 - level / 2, 0.5 + level / 2]))
        return Interval(low=float(low), high=float(high), se=self.law.optimum(flops)[0] * quantile_sd(log_params))

    def to_dict(self) -> dict[str, Any]:
        """Return the law and its valleys as JSON values."""
        names = ("flops", "params", "tokens", "loss", "n_runs", "bias")
        assert self.law.line is not None
        return {
            "method": "isoflop",
            "params_convention": self.law.params_convention,
            "a": self.law.a,
            "b": self.law.b,
            "coefficient": self.law.coefficient,
            "line": {"intercept": self.law.line.intercept, "slope": self.law.line.slope},
            "budgets": [{name: getattr(valley, name) for name in names} for valley in self.valleys],
            "n_runs": self.n_runs,
            "remedy": self.remedy,
            "interval_level": _LEVEL,
            "intervals": {name: interval.to_dict() for name, interval in self.intervals.items()},
            "warnings": list(self.warnings),
        }


def fit_isoflop(
    params: Floats,
    flops: Floats,
    loss: Floats,
    *,
    budgets: Sequence[float] | None = None,
    params_convention: ParamsConvention = "total",
    remedy: Remedy = "none",
) -> IsoflopFit:
    """Fit a parabola in ln N to each budget and a power law through the lowest points.

    Args:
        params: N of each run, > 0.
        flops: C of each run, > 0.
        loss: L of each run, > 0.
        budgets: the computes of the sweep; runs farther than 10 % from all of them are left out. None finds them: runs
            sorted by compute, where one lies over 20 % above the first of its group a new group begins.
        params_convention: which weights `params` counts.
        remedy: "none": the paper's parabola. "law": less the shift that the additive law of the same runs gives a
            parabola at these sizes. "cubic": a cubic, where a budget has five sizes. "local": a parabola through the
            sizes within a factor 4 of the first one's vertex, where there are four.

    Returns:
        The fit.

    Raises:
        FitError: fewer than two budgets with three sizes and a valley, or an unknown remedy.

    Source: Hoffmann et al. 2022, section 3.2; the shift: Czech et al. 2026 (arXiv 2603.22339).
    """
    if remedy not in get_args(Remedy):
        raise FitError(f"remedy {remedy!r} is unknown; choose from {', '.join(get_args(Remedy))}")
    group_n = _group(flops, budgets)
    law = _additive_law(params[group_n >= 0], flops[group_n >= 0], loss[group_n >= 0])
    curves, warnings = _fit_curves((params, flops, loss), group_n, budgets, law, remedy)
    if len(curves) < 2:
        raise FitError(
            f"{len(curves)} budgets have a valley over three or more sizes, and two are needed; "
            "add sizes at equal compute, or use the parametric method"
        )
    valleys = tuple(curve.valley for curve in curves)
    lines_k2 = _resampled_lines(curves)
    if not len(lines_k2):
        warnings.append("three sizes a budget leave no scatter to judge the noise by, so a has no interval; add sizes")
    return IsoflopFit(
        law=_law_through(valleys, params_convention),
        valleys=valleys,
        n_runs=sum(valley.n_runs for valley in valleys),
        remedy=remedy,
        intervals=_exponent_intervals(lines_k2),
        warnings=(*warnings, *_bias_warnings(valleys, law, remedy)),
        lines_k2=lines_k2,
    )


def vertex_shift(alpha: float, beta: float, log_offsets: Floats) -> float:
    """Return how far (in ln N) a least-squares parabola's vertex lies from the additive law's optimum.

    At one compute L - E is proportional to exp(-alpha w) / alpha + exp(beta w) / beta with w = ln(N / N*), so that the
    shift depends on the exponents and the sizes alone.

    Args:
        alpha: exponent of the size term, > 0.
        beta: exponent of the data term, > 0.
        log_offsets: w of each size, at least three.

    Returns:
        The shift, > 0 for too large sizes; 0 for alpha = beta and symmetric sizes; nan where there is no valley.

    Source: Czech et al. 2026 (arXiv 2603.22339), whose numbers it reproduces with 15 sizes a budget.
    """
    valley = np.exp(-alpha * log_offsets) / alpha + np.exp(beta * log_offsets) / beta
    centre = float(log_offsets.mean())
    coefficients = _pseudo_inverse(np.vander(log_offsets - centre, 3, increasing=True)) @ valley
    return centre + float(_vertices(coefficients[None])[0])


@dataclass(frozen=True, kw_only=True)
class _Curve:
    """A polynomial through one budget: its design (n, order + 1) and weights (pinv), its residuals, its valley."""

    valley: Valley
    offset: float
    design: Floats
    inverse: Floats
    loss: Floats
    correction: float


def _fit_curves(
    columns: tuple[Floats, Floats, Floats],
    group_n: npt.NDArray[np.int64],
    budgets: Sequence[float] | None,
    law: AdditiveLaw | None,
    remedy: Remedy,
) -> tuple[list[_Curve], list[str]]:
    """Fit each budget of three sizes or more; say which have no valley, or one beyond the sizes tried."""
    params, flops, loss = columns
    curves: list[_Curve] = []
    warnings: list[str] = []
    for group in range(int(group_n.max(initial=-1)) + 1):
        members = group_n == group
        if len(np.unique(params[members])) < 3:
            continue
        compute = math.exp(float(np.log(flops[members]).mean())) if budgets is None else float(sorted(budgets)[group])
        curve = _fit_curve(params[members], loss[members], compute, law, remedy)
        if curve is None:
            warnings.append(
                f"the runs at {compute:.2g} FLOPs have no valley and were left out; try sizes farther apart"
            )
            continue
        if not curve.valley.is_inside:
            warnings.append(
                f"the best size at {compute:.2g} FLOPs lies outside the sizes tried; add a "
                f"{'smaller' if curve.valley.params < params[members].min() else 'larger'} one"
            )
        curves.append(curve)
    return curves, warnings


def _fit_curve(params: Floats, loss: Floats, flops: float, law: AdditiveLaw | None, remedy: Remedy) -> _Curve | None:
    x = np.log(params)
    order = 3 if remedy == "cubic" and len(np.unique(params)) >= 5 else 2
    if remedy == "local":
        first = _fit_curve(params, loss, flops, None, "none")
        near = np.abs(x - (math.log(first.valley.params) if first else math.inf)) <= _WINDOW
        if len(np.unique(params[near])) >= 4:
            params, loss, x = params[near], loss[near], x[near]
    centre = float(x.mean())
    design = np.vander(x - centre, order + 1, increasing=True)
    inverse = _pseudo_inverse(design)
    coefficients = inverse @ loss
    vertex = float(_vertices(coefficients[None])[0])
    if not math.isfinite(vertex):
        return None
    bias = loss_bias = None
    if law is not None:
        best, tokens = law.optimum(flops)
        of_law = inverse @ law.loss(params, flops / 6 / params)
        law_vertex = float(_vertices(of_law[None])[0])
        if math.isfinite(law_vertex):
            bias = centre + law_vertex - math.log(best)
            loss_bias = float(np.polynomial.polynomial.polyval(law_vertex, of_law)) - law.loss(best, tokens)
    applied = bias if remedy == "law" and bias is not None else 0.0
    lowest = float(np.polynomial.polynomial.polyval(vertex, coefficients))
    lowest -= loss_bias if remedy == "law" and loss_bias is not None else 0.0
    best_params = math.exp(centre + vertex - applied)
    valley = Valley(
        flops=flops,
        params=best_params,
        tokens=flops / (6 * best_params),
        loss=lowest,
        n_runs=len(params),
        is_inside=bool(params.min() <= best_params <= params.max()),
        bias=bias,
    )
    return _Curve(valley=valley, offset=centre, design=design, inverse=inverse, loss=loss, correction=applied)


def _pseudo_inverse(design: Floats) -> Floats:
    return np.asarray(np.linalg.pinv(design), dtype=np.float64)


def _vertices(coefficients: Floats) -> Floats:
    """Return where parabolas or cubics (rows of c0, c1, c2[, c3]) are least; nan where they have no valley."""
    slope, bend = coefficients[:, 1], 2 * coefficients[:, 2]
    twist = 3 * coefficients[:, 3] if coefficients.shape[1] == 4 else np.zeros_like(slope)
    # The root of slope + bend x + twist x^2 that a parabola's vertex turns into as the cubic term grows.
    square = bend**2 - 4 * twist * slope
    root = bend + np.sqrt(np.maximum(square, 0.0))
    is_valley = (square > 0) & (root > 0)
    return np.where(is_valley, -2 * slope / np.where(is_valley, root, 1.0), np.nan)


def _law_through(valleys: Sequence[Valley], params_convention: ParamsConvention) -> AllocationLaw:
    log_flops = np.log([valley.flops for valley in valleys])
    exponent, log_coefficient = np.polyfit(log_flops, np.log([valley.params for valley in valleys]), 1)
    slope, intercept = np.polyfit(log_flops, np.log([valley.loss for valley in valleys]), 1)
    return AllocationLaw(
        coefficient=math.exp(float(log_coefficient)),
        exponent=float(exponent),
        params_convention=params_convention,
        line=PowerLine(intercept=float(intercept), slope=float(slope)),
    )


def _resampled_lines(curves: Sequence[_Curve]) -> Floats:
    """Refit curves and line to resampled relative residuals; (a, ln coefficient) of each draw, or none."""
    pool: list[Floats] = []
    freedom = 0
    for curve in curves:
        fitted = curve.design @ (curve.inverse @ curve.loss)
        leverage = np.minimum(np.einsum("ni,in->n", curve.design, curve.inverse), 1.0)
        spare = leverage < 1 - 1e-6
        pool.append((curve.loss / fitted - 1)[spare] / np.sqrt(1 - leverage[spare]))
        freedom += len(curve.loss) - curve.design.shape[1]
    if freedom < _FEWEST_RESIDUALS:
        return np.zeros((0, 2))
    errors = np.concatenate(pool)
    rng = np.random.default_rng(0)
    log_params: list[Floats] = []
    for curve in curves:
        fitted = curve.design @ (curve.inverse @ curve.loss)
        drawn = fitted * (1 + rng.choice(errors, size=(_DRAWS, len(fitted))))
        log_params.append(curve.offset - curve.correction + _vertices(drawn @ curve.inverse.T))
    y = np.stack(log_params, axis=1)
    x = np.broadcast_to(np.log([curve.valley.flops for curve in curves]), y.shape)
    known = np.isfinite(y).astype(np.float64)  # a draw without a valley at some budget goes on without it
    count = known.sum(1)
    enough = count >= 2
    y, x, known, count = np.nan_to_num(y[enough]), x[enough], known[enough], count[enough]
    x_mean, y_mean = (known * x).sum(1) / count, (known * y).sum(1) / count
    gaps = known * (x - x_mean[:, None])
    slope = (gaps * y).sum(1) / (gaps**2).sum(1)
    return np.stack([slope, y_mean - slope * x_mean], axis=1)


def _exponent_intervals(lines_k2: Floats) -> dict[str, Interval]:
    if len(lines_k2) < 2:
        return {}
    tails = [0.5 - _LEVEL / 2, 0.5 + _LEVEL / 2]
    low, high = (float(end) for end in np.quantile(lines_k2[:, 0], tails))
    se = quantile_sd(lines_k2[:, 0])
    return {"a": Interval(low=low, high=high, se=se), "b": Interval(low=1 - high, high=1 - low, se=se)}


def _additive_law(params: Floats, flops: Floats, loss: Floats) -> AdditiveLaw | None:
    if len(params) < _FEWEST_FOR_LAW:
        return None
    try:
        fit = fit_additive(params, flops / 6 / params, loss)
    except FitError:
        return None
    return fit.law if fit.status == "converged" else None


def _bias_warnings(valleys: Sequence[Valley], law: AdditiveLaw | None, remedy: Remedy) -> tuple[str, ...]:
    if law is None:
        return ("the runs do not determine an additive law, so the parabola's own bias is not known; add runs",)
    if remedy == "law":
        return ()
    worst = max((valley.bias for valley in valleys if valley.bias is not None), key=abs, default=0.0)
    if abs(worst) < _REPORTED_BIAS:
        return ()
    way_out = 'take remedy "law", or the parametric method' if remedy == "none" else "take the parametric method"
    return (
        f"a {'parabola' if remedy != 'cubic' else 'cubic'} is not the valley's shape: at these sizes it puts the best "
        f"one up to {100 * (math.exp(abs(worst)) - 1):.0f} % too {'large' if worst > 0 else 'small'}; {way_out}",
    )


def _group(flops: Floats, budgets: Sequence[float] | None) -> npt.NDArray[np.int64]:
    """Return the group of each run, lowest compute first; -1 for none."""
    log_flops = np.log(flops)
    if budgets is not None:
        log_budgets = np.log(np.sort(np.asarray(budgets, dtype=np.float64)))
        distance = np.abs(log_flops[:, None] - log_budgets[None, :])
        return np.where(distance.min(1) < _SAME_BUDGET, distance.argmin(1), -1).astype(np.int64)
    group_n = np.zeros(len(flops), dtype=np.int64)
    group, first = -1, -math.inf
    for run in np.argsort(log_flops, kind="stable"):
        if log_flops[run] > first + 2 * _SAME_BUDGET:
            group, first = group + 1, float(log_flops[run])
        group_n[run] = group
    return group_n
