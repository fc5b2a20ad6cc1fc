"""Runs -> law: fit L(N, D) = E + A / N^alpha + B / D^beta to finished runs, and say whether they determine it.

Symbols: n runs with N `params`, D `tokens`, L `loss` (nats per token); r = ln L(N, D) - ln L(observed).
Minimised is the SUM over runs of Huber_delta(r) (Hoffmann et al. 2022, eq. 3). A mean instead of a sum stops optimisers
early and gave the published constants of that paper (Besiroglu et al. 2024, arXiv 2404.10102).

The paper's delta of 1e-3 is far below the noise of most sweeps, which makes its fit one of least absolute deviations:
on Gaussian noise it wastes a third of the runs. By default delta is 1.345 times the robust scale of the residuals,
found together with the fit; give delta=1e-3 for the paper's objective.

The prior, when one is given, is a Gaussian on alpha and beta, weighed as a log-posterior. The Huber sum is the negative
log-likelihood of p(r) = exp(-Huber_delta(r) / s^2) / Z(s) up to the factor s^2, so the sum minimised is
    sum_i Huber_delta(r_i) + s^2 [(alpha - m)^2 + (beta - m)^2] / (2 sd^2),
where s is the noise scale: fitted to the residuals by maximum likelihood (with n - 5 degrees of freedom), never below
the prior's `noise_sd`. For delta >> s it is the plain Gaussian posterior with noise sd s; many runs outweigh the prior.

It refuses runs that are not numbers, and it never reads files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from chinchilla_lm.core.errors import FitError
from chinchilla_lm.laws.fitting.noise import huber, noise_scale, scaled_delta
from chinchilla_lm.laws.fitting.solver import (
    Problem,
    Solution,
    centred_problem,
    derivatives,
    minimise,
    natural_constants,
    refit,
    screen,
)
from chinchilla_lm.laws.forms.additive import AdditiveLaw
from chinchilla_lm.laws.forms.law import Floats

Status = Literal["converged", "at_bound", "unidentified", "not_converged"]

INTERVAL_LEVEL = 0.95  # as in Besiroglu et al. 2024, so that the two can be compared
_PILOT_DELTA = (
    0.01  # least squares for the noise of most sweeps (.1 to 1 %); the scaled delta starts from its residuals
)
_LARGEST_CONTINUED_DELTA = 1e-3  # below it the valley is too sharp for a cold start; delta is divided by 4 from here
# Smallest eigenvalue of J^T J with unit diagonal. Measured 2026-11-21: Epoch's 240 runs 1e-3, a 3 x 3 ladder 3e-4, ten
# runs all at D = 20 N 6e-8.
_SINGULAR = 1e-6


@dataclass(frozen=True, kw_only=True)
class Prior:
    """What is believed before any run: alpha, beta ~ N(mean, sd^2), and E where it is known.

    Attributes:
        mean: of alpha and of beta. .35: the published fits (Besiroglu .348/.366, Muennighoff .353, Hoffmann .34/.28).
        sd: of each, > 0; .15 holds all of them within one sd. math.inf believes nothing of the exponents.
        noise_sd: the least noise of ln L that the runs are credited with (seed noise .2 to .5 % for tiny models).
        E: the floor, nats per token; None believes nothing of it.
        E_sd: relative sd of E; 0 holds E at the value given.
    """

    mean: float = 0.35
    sd: float = 0.15
    noise_sd: float = 0.003
    E: float | None = None
    E_sd: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A range of a constant.

    Attributes:
        low: lower end.
        high: upper end.
        se: standard error.
    """

    low: float
    high: float
    se: float

    def to_dict(self) -> dict[str, float]:
        """Return the range as JSON values."""
        return {"low": self.low, "high": self.high, "se": self.se}


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A law and how it was found.

    Attributes:
        law: the constants.
        status: "converged"; "at_bound": a constant ended on the edge of the search; "not_converged": the search ended
            on a slope; "unidentified": the runs allow a whole line of constants equally well.
        objective: sum over runs of Huber_delta(r), without the prior's share.
        gradient: largest absolute component of the gradient of what was minimised.
        n_runs: runs used.
        delta: of the Huber loss.
        noise_sd: robust scale s of the residuals in ln L.
        residuals: ln L(observed) - ln L(law), in the order of the runs.
        prior: that it was fitted with, else None.
        intervals: 95 % pairs-bootstrap intervals of E, A, B, alpha, beta and a; empty without bootstrap. The better
            intervals are those of `intervals.parameter_intervals`.
        warnings: what a reader must know, one sentence each.
    """

    law: AdditiveLaw
    status: Status
    objective: float
    gradient: float
    n_runs: int
    delta: float
    noise_sd: float
    residuals: tuple[float, ...]
    prior: Prior | None = None
    intervals: Mapping[str, Interval] = field(default_factory=lambda: MappingProxyType({}))
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields of law.json (schema law/1) that a fit knows."""
        return {
            "schema": "law/1",
            **self.law.to_dict(),
            "status": self.status,
            "objective": self.objective,
            "n_runs": self.n_runs,
            "delta": self.delta,
            "noise_sd": self.noise_sd,
            "interval_level": INTERVAL_LEVEL,
            "intervals": {name: interval.to_dict() for name, interval in self.intervals.items()},
            "warnings": list(self.warnings),
            "hash": self.law.hash(),
        }


def fit_additive(
    params: Floats,
    tokens: Floats,
    loss: Floats,
    *,
    delta: float | None = None,
    prior: Prior | None = None,
    bootstrap: int = 0,
    seed: int = 0,
) -> Fit:
    """Fit the five constants of the additive law.

    Args:
        params: N of each run, > 0, one convention throughout.
        tokens: D of each run, > 0.
        loss: L of each run in nats per token, > 0.
        delta: where Huber turns from square to straight, in ln L; None scales it to the noise of the runs. 1e-3 is the
            paper's, small values (1e-8) are least absolute deviations, large ones (1) least squares.
        prior: on the exponents, and E; None lets the runs speak alone. With fewer than about 12 runs give one.
        bootstrap: resamples of the runs (with replacement) for the intervals; 0 for none.
        seed: of the resampling.

    Returns:
        The fit. Its law has params_convention "matmul"; replace it where the runs count otherwise.

    Raises:
        FitError: runs that are no numbers, or too few runs.

    Source: Hoffmann et al. 2022, section 3.3.

    Differs: starts from a variable-projection screen instead of 4,500 starts, and stops on the gradient; on the paper's
        digitised runs it finds a slightly lower sum.
    """
    columns = checked_columns(params, tokens, loss, has_prior=prior is not None)
    if delta is not None and not (math.isfinite(delta) and delta > 0):
        raise FitError(f"delta={delta!r} must be finite and > 0; the paper's is 1e-3, None scales it to the noise")
    best, problem = _best(columns, delta, prior)
    names_at_bound = [name for name, is_held in zip(_THETA_NAMES, best.at_bound_k5[0], strict=True) if is_held]
    names_at_bound = [name for name in names_at_bound if name != "E" or problem.held_floor is None]
    status = _status(best, problem, names_at_bound)
    # Relative to the largest gradient that the objective can have: 1e-4 of it moves an exponent in the fourth digit.
    if best.gradient_k[0] > 1e-4 * problem.delta * len(columns[0]) and status == "converged":
        status = "not_converged"
    constants = map(float, natural_constants(best.theta_k5, columns[0], columns[1])[0])
    law = AdditiveLaw(**dict(zip(("E", "A", "B", "alpha", "beta"), constants, strict=True)))
    residuals = np.log(columns[2]) - np.log(law.loss(columns[0], columns[1]))
    return Fit(
        law=law,
        status=status,
        objective=float(huber(residuals, problem.delta).sum()),
        gradient=float(best.gradient_k[0]),
        n_runs=len(residuals),
        delta=problem.delta,
        noise_sd=noise_scale(residuals, problem.delta),
        residuals=tuple(map(float, residuals)),
        prior=prior,
        intervals=_pairs_intervals(best.theta_k5[0], problem, columns, bootstrap, seed),
        warnings=_warnings(status, names_at_bound, law),
    )


def with_prior(problem: Problem, prior: Prior, noise_sd: float = 0.0) -> Problem:
    """Return the problem with the prior weighed by a noise scale, at least the prior's own (the module says how).

    Args:
        problem: without a prior, or with one to be replaced.
        prior: what is believed.
        noise_sd: noise scale of ln L that the runs show.

    Returns:
        The problem with the prior's means and precisions; E held where the prior holds it.

    Raises:
        FitError: an sd or an E that is no amount.
    """
    scale = max(prior.noise_sd, noise_sd)
    if not prior.sd > 0 or prior.E_sd < 0 or (prior.E is not None and not prior.E > 0):
        raise FitError(f"a prior needs sd > 0, E > 0 and E_sd >= 0, got {prior}; sd=math.inf believes nothing")
    mean, precision = np.zeros(5), np.zeros(5)
    mean[3:], precision[3:] = prior.mean, (scale / prior.sd) ** 2
    held = None
    if prior.E is not None:
        mean[2] = math.log(prior.E)
        held = mean[2] if prior.E_sd == 0 else None
        precision[2] = 0.0 if prior.E_sd == 0 else (scale / prior.E_sd) ** 2
    return replace(problem, prior_mean=mean, prior_precision=precision, held_floor=held)


def intervals_of(constants_k5: Floats) -> dict[str, Interval]:
    """Return the 95 % percentile interval of E, A, B, alpha, beta and a from bootstrap draws of shape (K, 5)."""
    E, A, B, alpha, beta = constants_k5.T  # noqa: N806 - the paper's letters
    columns = {"E": E, "A": A, "B": B, "alpha": alpha, "beta": beta, "a": beta / (alpha + beta)}
    tail = (1 - INTERVAL_LEVEL) / 2
    ranges: dict[str, Interval] = {}
    for name, draws in columns.items():
        low, high = np.quantile(draws, [tail, 1 - tail])
        ranges[name] = Interval(
            low=float(low), high=float(high), se=float(draws.std(ddof=1)) if len(draws) > 1 else 0.0
        )
    return ranges


_THETA_NAMES = ("A", "B", "E", "alpha", "beta")


def _best(columns: tuple[Floats, Floats, Floats], delta: float | None, prior: Prior | None) -> tuple[Solution, Problem]:
    """Screen, polish, bring delta to where it belongs, and weigh the prior by the noise it leaves."""
    first = _PILOT_DELTA if delta is None else max(delta, _LARGEST_CONTINUED_DELTA)
    current = centred_problem(*columns, delta=first)
    current = current if prior is None else with_prior(current, prior)
    ends = minimise(screen(current), current)
    if delta is not None:
        ends, current = _follow(ends, current, delta)
    for _ in range(12 if delta is None else 0):  # the scaled delta settles to 1 % in two to five rounds
        n_constants = 5 if current.held_floor is None else 4
        least_sd = 0.0 if prior is None else prior.noise_sd
        target = scaled_delta(_solver_residuals(_only(ends), current), n_constants, least_sd)
        if abs(target / current.delta - 1) < 0.01:
            break
        ends, current = _follow(ends, current, target)
    for _ in range(0 if prior is None else 4):  # the noise settles to 1 % in two or three rounds
        assert prior is not None
        weighed = with_prior(current, prior, noise_scale(_solver_residuals(_only(ends), current), current.delta))
        if np.allclose(weighed.prior_precision, current.prior_precision, rtol=0.02, atol=0):
            break
        current = weighed
        ends = minimise(_only(ends).theta_k5, current)
    return _only(ends), current


def _pairs_intervals(
    theta: Floats, problem: Problem, columns: tuple[Floats, Floats, Floats], bootstrap: int, seed: int
) -> Mapping[str, Interval]:
    if not bootstrap:
        return MappingProxyType({})
    count = len(columns[0])
    weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=bootstrap)
    draws = refit(theta, problem, weight_kn=weights.astype(np.float64))
    return intervals_of(natural_constants(draws, columns[0], columns[1]))


def _follow(ends: Solution, problem: Problem, delta: float) -> tuple[Solution, Problem]:
    """Bring the ends to the minima of another delta, downwards in steps of four."""
    while problem.delta != delta:
        problem = replace(problem, delta=max(problem.delta / 4, delta))
        # Few valleys survive the first polish; below the paper's delta only the lowest is followed.
        kept = ends if problem.delta >= _LARGEST_CONTINUED_DELTA else _only(ends)
        ends = minimise(kept.theta_k5, problem)
    return ends, problem


def _solver_residuals(solution: Solution, problem: Problem) -> Floats:
    a, b, e, alpha, beta = solution.theta_k5[0]
    predicted = np.exp(a - alpha * problem.x_n) + np.exp(b - beta * problem.y_n) + math.exp(e)
    return problem.l_kn.reshape(-1) - np.log(predicted)


def _only(solution: Solution) -> Solution:
    """Keep the lowest of several ends."""
    best = slice(int(solution.objective_k.argmin()), int(solution.objective_k.argmin()) + 1)
    return Solution(
        theta_k5=solution.theta_k5[best],
        objective_k=solution.objective_k[best],
        gradient_k=solution.gradient_k[best],
        at_bound_k5=solution.at_bound_k5[best],
        hessian_k55=solution.hessian_k55[best],
    )


def _status(best: Solution, problem: Problem, names_at_bound: list[str]) -> Status:
    if names_at_bound:
        return "at_bound"
    # With an endless delta the reweighted matrix is J^T J plus the prior: what the prior pins down is identified.
    _, information, _ = derivatives(best.theta_k5, replace(problem, delta=math.inf))
    free = [0, 1, 2, 3, 4] if problem.held_floor is None else [0, 1, 3, 4]
    information = information[0][np.ix_(free, free)]
    scale = 1 / np.sqrt(np.diag(information))
    smallest = float(np.linalg.eigvalsh(information * scale[:, None] * scale[None, :])[0])
    return "unidentified" if smallest < _SINGULAR else "converged"


def _warnings(status: Status, names_at_bound: list[str], law: AdditiveLaw) -> tuple[str, ...]:
    warnings: list[str] = []
    if status == "not_converged":
        warnings.append("the search ended on a slope, not in a minimum; remove runs that diverged, or give a prior")
    if status == "at_bound":
        warnings.append(
            f"{', '.join(names_at_bound)} ended at the edge of the search: the runs do not bend that way; "
            "add runs of other sizes and lengths, or give a prior"
        )
    if status == "unidentified":
        warnings.append(
            "the runs do not determine the five constants; vary params and tokens independently, or give a prior"
        )
    if not 0.2 <= law.a <= 0.8:
        warnings.append(f"a={law.a:.2f} is outside every published sweep (.27 to .73); check how params are counted")
    return tuple(warnings)


def checked_columns(params: Floats, tokens: Floats, loss: Floats, *, has_prior: bool) -> tuple[Floats, Floats, Floats]:
    """Return the runs as float columns.

    Raises:
        FitError: a number that is not finite and > 0, columns of unlike lengths, or too few runs.
    """
    columns: list[Floats] = []
    for name, column in (("params", params), ("tokens", tokens), ("loss", loss)):
        values = np.asarray(column, dtype=np.float64)  # floats: 6ND in int64 overflows above 9.2e18 without a word
        if values.ndim != 1 or len(values) != len(np.asarray(params)):
            raise FitError(f"{name} has shape {values.shape}; params, tokens and loss must be lists of one length")
        bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
        if len(bad):
            raise FitError(
                f"{name}={values[bad[0]]} of run {bad[0] + 1} must be finite and > 0; correct or remove that run"
            )
        columns.append(values)
    fewest = 3 if has_prior else 5
    if len(columns[0]) < fewest:
        way_out = "add runs" if has_prior else "add runs or give a prior on the exponents"
        raise FitError(f"{len(columns[0])} runs cannot determine the law, which takes {fewest} or more; {way_out}")
    for name, column, other in (("params", columns[0], "sizes"), ("tokens", columns[1], "numbers of tokens")):
        if column.min() == column.max():
            raise FitError(
                f"all {len(column)} runs have {name}={column[0]:g}, which hides its exponent; add other {other}"
            )
    return columns[0], columns[1], columns[2]
