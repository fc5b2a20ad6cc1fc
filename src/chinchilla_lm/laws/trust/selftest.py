"""Would these intervals hold the truth, if the fitted law were it? A simulation on the user's own design.

Losses are drawn anew from the fitted law at the same sizes and tokens, with the runs' own noise or Gaussian noise of
the same width; each draw is refitted and its intervals are checked against the law that made it. This says whether the
method works on designs like this one when the form is right. It says nothing about a wrong form.

Symbols: K simulated tables of n runs; C `flops`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from chinchilla_lm.core.errors import FitError
from chinchilla_lm.laws.fitting.additive import Fit, fit_additive
from chinchilla_lm.laws.fitting.covariance import spread_of, standard_errors
from chinchilla_lm.laws.fitting.intervals import Method, fitted_problem, parameter_intervals
from chinchilla_lm.laws.fitting.noise import robust_sd, t_quantile
from chinchilla_lm.laws.fitting.quantities import Quantities, name_quantities
from chinchilla_lm.laws.fitting.solver import Problem, refit
from chinchilla_lm.laws.forms.law import Floats
from chinchilla_lm.laws.table import RunTable
from chinchilla_lm.laws.trust.robust import contributions, errors_from

Noise = Literal["own", "gaussian"]
Tested = Literal["robust", "delta", "profile", "bootstrap"]

_WATCHED = ("a", "E")
_SHORT = 0.05  # coverage further below its level than this, and than chance, is a warning


@dataclass(frozen=True, kw_only=True)
class SelfTest:
    """How often the intervals held.

    Attributes:
        method: of the intervals.
        noise: that was drawn.
        level: that was promised.
        repeats: simulated tables.
        covered: share that held the truth: of a, E, and the best size and least loss at the target.
        target_flops: that compute.
        sentence: what a reader must know.
        is_short: some interval held the truth less often than promised, by more than chance.
    """

    method: str
    noise: Noise
    level: float
    repeats: int
    covered: Mapping[str, float]
    target_flops: float
    sentence: str
    is_short: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        names = ("method", "noise", "level", "repeats", "target_flops", "sentence", "is_short")
        return {**{name: getattr(self, name) for name in names}, "covered": dict(self.covered)}


def coverage_selftest(
    table: RunTable,
    fit: Fit,
    *,
    method: Tested = "robust",
    noise: Noise = "own",
    level: float = 0.9,
    repeats: int = 200,
    target_flops: float | None = None,
) -> SelfTest:
    """Simulate tables from the fitted law, and count how often their intervals hold it.

    Args:
        table: the runs that were fitted.
        fit: of `fit_additive` on them.
        method: "robust" (`trust.robust`), or one of `parameter_intervals`; "profile" and "bootstrap" take as long as
            `repeats` fits with intervals.
        noise: "own": each run keeps the size of its residual and gets a random sign, so runs that scatter more do so
            in the simulation; "gaussian": one noise for all.
        level: promised, in (0, 1).
        repeats: simulated tables; 200 leave a standard error of two points at 90 %.
        target_flops: whose best size and least loss are asked for; None: ten times the largest run.

    Returns:
        The shares.

    Raises:
        FitError: a level that is none, or no repeats.
    """
    if not 0 < level < 1 or repeats < 1:
        raise FitError(f"level={level!r} must lie in (0, 1) and repeats={repeats!r} be > 0; 0.9 and 200 serve")
    target = 10 * float(table.flops.max()) if target_flops is None else target_flops
    theta, problem = fitted_problem(table, fit)
    asked = name_quantities(table.params, table.tokens, [target])
    losses = simulated_losses(table, fit, theta, problem, (noise, repeats))
    if method in ("delta", "robust"):
        held = _held_by_errors(theta, problem, asked, losses, (method, level))
    else:
        held = _held_one_by_one(table, fit, asked, losses, (method, level))
    shares = dict(zip(asked.names, held.mean(0).tolist(), strict=True))
    watched = (*_WATCHED, *asked.names[-3:])
    covered = {name.split("@")[0]: shares[name] for name in watched if not name.startswith("tokens")}
    worst = min(covered, key=covered.__getitem__)
    chance = 2.5 * math.sqrt(level * (1 - level) / repeats)
    is_short = covered[worst] < level - max(_SHORT, chance)
    return SelfTest(
        method=method,
        noise=noise,
        level=level,
        repeats=repeats,
        covered=covered,
        target_flops=target,
        sentence=_sentence((method, noise, level), covered, worst, is_short),
        is_short=is_short,
    )


def simulated_losses(table: RunTable, fit: Fit, theta: Floats, problem: Problem, wanted: tuple[Noise, int]) -> Floats:
    """Draw losses from the fitted law at the table's sizes and tokens.

    Args:
        table: the runs.
        fit: of them.
        theta: of the fit, shape (5,).
        problem: of the fit.
        wanted: (noise, K).

    Returns:
        Losses, shape (K, n). Residuals are divided by sqrt(1 - leverage), which the fit has taken from them.
    """
    noise, repeats = wanted
    rng = np.random.default_rng(0)
    residual = np.array(fit.residuals)
    if noise == "gaussian":
        errors = rng.normal(scale=robust_sd(residual), size=(repeats, len(residual)))
    else:
        leverage = np.minimum(spread_of(theta[None], problem).leverage_kn[0], 0.9)
        errors = residual / np.sqrt(1 - leverage) * rng.choice([-1.0, 1.0], size=(repeats, len(residual)))
    return fit.law.loss(table.params, table.tokens) * np.exp(errors)


def _held_by_errors(
    theta: Floats, problem: Problem, asked: Quantities, losses: Floats, wanted: tuple[Tested, float]
) -> Floats:
    method, level = wanted
    ends = refit(theta, problem, loss_kn=losses)
    drawn = replace(problem, l_kn=np.log(losses))
    if method == "robust":
        errors = np.array(
            [
                errors_from(contributions(end, replace(problem, l_kn=log_loss), asked))
                for end, log_loss in zip(ends, drawn.l_kn, strict=True)
            ]
        )
    else:
        errors = standard_errors(asked.slopes(ends), spread_of(ends, drawn))
    reach = t_quantile(level, len(problem.x_n) - 5) * errors
    return (np.abs(asked.values(ends) - asked.values(theta[None])) <= reach).astype(np.float64)


def _held_one_by_one(
    table: RunTable, fit: Fit, asked: Quantities, losses: Floats, wanted: tuple[Method, float]
) -> Floats:
    method, level = wanted
    target = [math.exp(product) * 6.0 for product in asked.log_products]
    theta, _ = fitted_problem(table, fit)
    truth = asked.natural(asked.values(theta[None]))[0]
    held: list[list[float]] = []
    for loss in losses:
        drawn = replace(table, loss=loss)
        again = fit_additive(drawn.params, drawn.tokens, drawn.loss, delta=fit.delta, prior=fit.prior)
        ranges = parameter_intervals(drawn, again, method=method, level=level, target_flops=target).ranges
        held.append([float(one.low <= value <= one.high) for one, value in zip(ranges.values(), truth, strict=True)])
    return np.array(held)


def _sentence(asked: tuple[str, Noise, float], covered: Mapping[str, float], worst: str, is_short: bool) -> str:
    method, noise, level = asked
    own = "the runs' own noise" if noise == "own" else "Gaussian noise"
    shown = ", ".join(f"{name} {share:.0%}" for name, share in covered.items())
    found = f"{level:.0%} {method} intervals on designs like this one, with {own}, hold the truth in: {shown}"
    if not is_short:
        return f"{found}, if the form is right"
    return f"{found}; those of {worst} are too narrow even if the form is right; take {_way_out(method)}"


def _way_out(method: str) -> str:
    return "bootstrap or calibrated ones" if method == "robust" else "robust or bootstrap ones"
