"""How well the runs determine an additive law: an interval for each constant, optimum and loss, by any of the methods.

Methods: "profile" pushes each quantity until the best refit is clearly worse; "delta" takes the curvature at the fit
and Student's t; "pairs", "cluster", "wild", "residual" and "parametric" refit resampled runs (see `resampling`).
All hold if the additive form holds and errors are independent (of clusters: between clusters). None of them knows how
far a law may be trusted beyond its runs: see `trust`.

The default is "profile": on 35-run sweeps of a known law it covers what it promises (`bench/coverage.py`). It and
"delta", "residual" and "parametric" take one noise for all runs. Where that fails (`trust.residuals` says so) take the
wild bootstrap, or pairs where runs are many: on the 240 digitised Chinchilla runs they give E a standard error of .021
and .023, where the curvature gives .012.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from chinchilla_lm.core.errors import FitError
from chinchilla_lm.laws.fitting.additive import Fit, Interval, with_prior
from chinchilla_lm.laws.fitting.covariance import Spread, spread_of, standard_errors
from chinchilla_lm.laws.fitting.noise import t_quantile
from chinchilla_lm.laws.fitting.profile import profile_ends
from chinchilla_lm.laws.fitting.quantities import Quantities, name_quantities
from chinchilla_lm.laws.fitting.resampling import Drawn, Resampling, draw_refits
from chinchilla_lm.laws.fitting.solver import Problem, centred_problem, centred_theta
from chinchilla_lm.laws.forms.law import Floats
from chinchilla_lm.laws.table import RunTable

Method = Literal["profile", "delta", "bootstrap"]
Correction = Literal["percentile", "expanded", "t"]

_FEWEST_INSIDE = 10  # runs within delta; fewer leave the curvature of the sum to chance


@dataclass(frozen=True, kw_only=True)
class ParameterIntervals:
    """An interval for each quantity.

    Attributes:
        method: that made them; of a bootstrap its scheme and correction.
        level: chance that each is meant to hold the truth if the form is right.
        estimates: of each quantity: E, A, B, alpha, beta, a, b, and params@C, tokens@C, loss@C for each compute asked.
        ranges: interval and standard error of each. An end at infinity, at 0 or (of a and b) at 1 says that the runs
            set no limit there.
        warnings: what a reader must know, one sentence each.
    """

    method: str
    level: float
    estimates: Mapping[str, float]
    ranges: Mapping[str, Interval]
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the intervals as JSON values; an end without limit is null."""
        return {
            "method": self.method,
            "level": self.level,
            "intervals": {
                name: {
                    "estimate": self.estimates[name],
                    **{end: value if math.isfinite(value) else None for end, value in interval.to_dict().items()},
                }
                for name, interval in self.ranges.items()
            },
            "warnings": list(self.warnings),
        }


def parameter_intervals(
    table: RunTable,
    fit: Fit,
    *,
    method: Method = "profile",
    level: float = 0.95,
    target_flops: Sequence[float] = (),
    resampling: Resampling | None = None,
    correction: Correction = "percentile",
) -> ParameterIntervals:
    """Say how well the runs determine the law.

    Args:
        table: the runs that were fitted.
        fit: of `fit_additive` on them; its delta and prior are kept.
        method: see the module.
        level: in (0, 1).
        target_flops: computes C = 6 N D whose best size, tokens and loss are asked for too.
        resampling: of method "bootstrap"; None draws pairs 1000 times.
        correction: of method "bootstrap". "percentile": quantiles of the refits. "expanded": the same at the levels
            that Student's t and n - 5 call for (Hesterberg 2015). "t": quantiles of (refit - fit) / its own standard
            error, which also follow skewness.

    Returns:
        The intervals.

    Raises:
        FitError: a level or compute that is no such thing, or runs that are not those of the fit.
    """
    if not 0 < level < 1:
        raise FitError(f"level={level!r} must lie between 0 and 1; 0.9 is nine in ten")
    theta, problem = fitted_problem(table, fit)
    quantities = name_quantities(table.params, table.tokens, target_flops)
    spread = spread_of(theta[None], problem)
    errors: Floats = standard_errors(quantities.slopes(theta[None]), spread)[0]
    centre = quantities.values(theta[None])[0]
    label: str = method
    if method == "bootstrap":
        drawn = draw_refits(theta, problem, spread, resampling := resampling or Resampling())
        label = f"{resampling.scheme} bootstrap, {correction}"
        errors = quantities.values(drawn.theta_k5).std(axis=0, ddof=1)
        low, high = bootstrap_ends((theta, problem, spread), drawn, quantities, (level, correction))
    elif method == "profile":
        quantile = t_quantile(level, spread.degrees)
        low, high = profile_ends(theta, problem, quantities, errors, float(spread.deviance_scale_k[0]), quantile)
    else:
        reach = t_quantile(level, spread.degrees) * errors
        low, high = centre - reach, centre + reach
    natural = quantities.natural(np.stack([centre, low, high]))
    errors = np.where(quantities.is_log_q, errors * natural[0], errors)
    rows = zip(quantities.names, *natural[1:].tolist(), errors.tolist(), strict=True)
    ranges = {name: Interval(low=low, high=high, se=error) for name, low, high, error in rows}
    return ParameterIntervals(
        method=label,
        level=level,
        estimates=dict(zip(quantities.names, natural[0].tolist(), strict=True)),
        ranges=ranges,
        warnings=_warnings(fit, spread, method, ranges),
    )


def prediction_intervals(
    table: RunTable,
    fit: Fit,
    points: tuple[Floats, Floats],
    *,
    level: float = 0.9,
    resampling: Resampling | None = None,
) -> tuple[Interval, ...]:
    """Say where the losses of single further runs would fall: the law's uncertainty and one run's noise together.

    Args:
        table: the runs that were fitted.
        fit: of `fit_additive` on them.
        points: (params, tokens) of the further runs, arrays of one length.
        level: in (0, 1).
        resampling: adds resampled residuals to resampled laws; None takes the curvature at the fit and Student's t.

    Returns:
        One interval of L a point, in their order; `se` is that of one run's loss. It assumes that the form holds
        out there: on public sweeps such intervals hold far too few of the runs ten times further out (see `trust`).

    Raises:
        FitError: a level outside (0, 1), or runs that are not those of the fit.
    """
    if not 0 < level < 1:
        raise FitError(f"level={level!r} must lie between 0 and 1; 0.9 is nine in ten")
    theta, problem = fitted_problem(table, fit)
    x = np.log(np.asarray(points[0], dtype=np.float64)) - np.log(table.params).mean()
    y = np.log(np.asarray(points[1], dtype=np.float64)) - np.log(table.tokens).mean()
    spread = spread_of(theta[None], problem)
    centre = _log_loss(theta[None], x, y)[0]
    residuals = np.array(fit.residuals) / np.sqrt(1 - np.minimum(spread.leverage_kn[0], 0.9))
    if resampling is None:
        terms = np.exp(np.stack([theta[0] - theta[3] * x, theta[1] - theta[4] * y, np.full_like(x, theta[2])]) - centre)
        slopes = np.stack([*terms, -terms[0] * x, -terms[1] * y], axis=1)
        variance = np.einsum("pi,ij,pj->p", slopes, spread.covariance_k55[0], slopes)
        noise = float((np.array(fit.residuals) ** 2).sum()) / spread.degrees
        errors = np.sqrt(variance + noise)
        reach = t_quantile(level, spread.degrees) * errors
        low, high = centre - reach, centre + reach
    else:
        drawn = draw_refits(theta, problem, spread, resampling)
        rng = np.random.default_rng(resampling.seed + 1)
        losses = _log_loss(drawn.theta_k5, x, y)
        losses = losses + rng.choice(residuals, size=losses.shape)
        low, high = np.quantile(losses, [0.5 - level / 2, 0.5 + level / 2], axis=0)
        errors = losses.std(axis=0, ddof=1)
    ends = np.exp(np.stack([low, high]))
    rows = zip(*ends.tolist(), (np.exp(centre) * errors).tolist(), strict=True)
    return tuple(Interval(low=low, high=high, se=error) for low, high, error in rows)


def bootstrap_ends(
    fitted: tuple[Floats, Problem, Spread],
    drawn: Drawn,
    quantities: Quantities,
    wanted: tuple[float, Correction],
) -> tuple[Floats, Floats]:
    """Turn refits into intervals on the working scales.

    Args:
        fitted: theta, the problem and the spread of the fit.
        drawn: its refits.
        quantities: Q of them.
        wanted: (level, correction).

    Returns:
        (low, high), each of shape (Q,).
    """
    theta, problem, spread = fitted
    level, correction = wanted
    tail = 0.5 - level / 2
    values = quantities.values(drawn.theta_k5)
    if correction == "t":
        own = problem if drawn.loss_kn is None else replace(problem, l_kn=np.log(drawn.loss_kn))
        own = own if drawn.weight_kn is None else replace(own, weight_kn=drawn.weight_kn)
        errors = standard_errors(quantities.slopes(drawn.theta_k5), spread_of(drawn.theta_k5, own))
        centre = quantities.values(theta[None])[0]
        low, high = np.quantile((values - centre) / np.maximum(errors, 1e-300), [tail, 1 - tail], axis=0)
        own_errors = standard_errors(quantities.slopes(theta[None]), spread)[0]
        return centre - high * own_errors, centre - low * own_errors
    if correction == "expanded":
        stretch = math.sqrt(len(problem.x_n) / spread.degrees)
        tail = NormalDist().cdf(-stretch * t_quantile(level, spread.degrees))
    low, high = np.quantile(values, [tail, 1 - tail], axis=0)
    return low, high


def fitted_problem(table: RunTable, fit: Fit) -> tuple[Floats, Problem]:
    """Return theta of a fit, shape (5,), and the problem that it solved.

    Raises:
        FitError: another number of runs than the fit's.
    """
    if len(table.params) != fit.n_runs:
        raise FitError(
            f"the table has {len(table.params)} runs and the fit {fit.n_runs}; give the table that was fitted"
        )
    problem = centred_problem(table.params, table.tokens, table.loss, delta=fit.delta)
    if fit.prior is not None:
        problem = with_prior(problem, fit.prior, fit.noise_sd)
    return centred_theta(fit.law, table.params, table.tokens), problem


def _log_loss(theta_k5: Floats, x: Floats, y: Floats) -> Floats:
    a, b, e, alpha, beta = (column[:, None] for column in theta_k5.T)
    return np.log(np.exp(a - alpha * x) + np.exp(b - beta * y) + np.exp(e))


def _warnings(fit: Fit, spread: Spread, method: Method, ranges: Mapping[str, Interval]) -> tuple[str, ...]:
    warnings: list[str] = []
    if fit.status != "converged":
        warnings.append(f"the fit is {fit.status}, so its intervals mean little; {_ways_out(fit)}")
    inside = float(spread.inside_k[0]) * fit.n_runs
    if method != "bootstrap" and inside < _FEWEST_INSIDE:
        warnings.append(
            f"only {inside:.0f} runs lie within delta={fit.delta:.2g} of the law, so the curvature there is a guess; "
            "let delta scale to the noise, or bootstrap"
        )
    endless = [
        name
        for name, range_ in ranges.items()
        if not math.isfinite(range_.high) or range_.low == 0 or (name in ("a", "b") and range_.high == 1)
    ]
    if endless:
        warnings.append(
            f"the runs set no limit to {', '.join(endless)} on one side; add runs of other sizes and lengths, "
            "or give a prior"
        )
    return tuple(warnings)


def _ways_out(fit: Fit) -> str:
    return fit.warnings[0].rsplit("; ", 1)[-1] if fit.warnings else "add runs, or give a prior"
