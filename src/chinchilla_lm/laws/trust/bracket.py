"""The two laws that bracket a forecast, fitted to one ladder of runs.

`additive` is the five-parameter law with a weak prior on its exponents; `line` is a straight line in ln L against ln C
through the optima of the last rungs. A rung's optimum is the additive law's least loss at that compute, shifted by how
far the rung's own runs lie off the law: three sizes are too few for a parabola, and enough for one shift.

Symbols: n runs, R rungs (lowest compute first), K resamples; constants_k5 are (E, A, B, alpha, beta);
N `params`, D `tokens`, C `flops`, k = C / (N D) flops per param and token.
It never judges whether the laws may be trusted (see `forecast`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from chinchilla_lm.core.errors import FitError
from chinchilla_lm.laws.fitting.additive import Fit, Prior, fit_additive, with_prior
from chinchilla_lm.laws.fitting.solver import centred_problem, centred_theta, natural_constants, refit
from chinchilla_lm.laws.forms.allocation import PowerLine
from chinchilla_lm.laws.forms.law import Floats

FORECAST_DELTA = 0.003  # Huber's turn in ln L: the seed noise of tiny models is .0024 to .008 (recipe v1)
# The line passes through the last rungs whose compute spans at least this factor. 5 for 2.5 took the 90th percentile
# of the point's error 3x above from .96 to .70 % on six IsoFLOP sweeps (dev/LOG.md 2026-11-21).
LINE_SPAN = 5.0
# A run this far (in ln L) above its rung's optimum counts half in the rung's shift: far from the optimum the law's
# curvature, not its level, is what the run measures.
_HALF_WEIGHT_EXCESS = 0.02
_ONE_SIDED_95 = 1.645  # sd of a normal


@dataclass(frozen=True, kw_only=True)
class Run:
    """One finished run of a ladder.

    Attributes:
        params: N > 0, one convention for all runs and the target.
        tokens: D > 0 trained on.
        flops: C > 0 of training, one convention for all.
        loss: held-out loss, nats per token, > 0.
        rung: label of the runs of equal compute it belongs to.
    """

    params: float
    tokens: float
    flops: float
    loss: float
    rung: int | str


@dataclass(frozen=True, kw_only=True)
class Target:
    """The run whose loss is asked for.

    Attributes:
        params: N > 0, as in `Run`.
        tokens: D > 0 trained on, repeats included.
        flops: C > 0 of training.
        effective_tokens: how many fresh tokens the D are worth where text repeats (`plan.effective_tokens`); None: all.
    """

    params: float
    tokens: float
    flops: float
    effective_tokens: float | None = None


@dataclass(frozen=True, kw_only=True)
class RungOptimum:
    """The best that one compute reaches.

    Attributes:
        flops: geometric mean of the rung's runs.
        params: N* of the additive law at that compute.
        tokens: D* there.
        loss: of the law at (N*, D*), shifted by the rung's own residuals.
        n_runs: runs on the rung.
    """

    flops: float
    params: float
    tokens: float
    loss: float
    n_runs: int


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """Runs as columns, sorted into rungs.

    Attributes:
        params: N of each run.
        tokens: D of each run.
        flops: C of each run.
        loss: L of each run.
        rung_n: rung of each run, 0 the lowest compute.
    """

    params: Floats
    tokens: Floats
    flops: Floats
    loss: Floats
    rung_n: npt.NDArray[np.int64]

    @property
    def n_rungs(self) -> int:
        """How many rungs there are."""
        return int(self.rung_n.max()) + 1

    def rung_flops(self) -> Floats:
        """Return the geometric mean of C of each rung, shape (R,)."""
        return np.array([np.exp(np.log(self.flops[self.rung_n == rung]).mean()) for rung in range(self.n_rungs)])

    def flops_per_param_token(self) -> Floats:
        """Return the geometric mean of k = C / (N D) of each rung, shape (R,)."""
        log_k = np.log(self.flops / (self.params * self.tokens))
        return np.array([np.exp(log_k[self.rung_n == rung].mean()) for rung in range(self.n_rungs)])

    def keep(self, first: int, end: int) -> Ladder:
        """Return rungs first .. end - 1, counted anew from 0."""
        kept = (self.rung_n >= first) & (self.rung_n < end)
        columns = (self.params[kept], self.tokens[kept], self.flops[kept], self.loss[kept])
        return Ladder(
            params=columns[0],
            tokens=columns[1],
            flops=columns[2],
            loss=columns[3],
            rung_n=self.rung_n[kept] - first,
        )


@dataclass(frozen=True, kw_only=True)
class Bracket:
    """Both laws on one ladder.

    Attributes:
        ladder: the runs they were fitted to.
        fit: the additive law.
        line: through the optima of the last rungs.
        rungs: the optimum of each rung, lowest compute first.
    """

    ladder: Ladder
    fit: Fit
    line: PowerLine
    rungs: tuple[RungOptimum, ...]

    def losses(self, target: Target) -> tuple[float, float]:
        """Return what the two laws say of a target.

        Args:
            target: anywhere; off the optimum the line's loss gets the additive law's excess over its own optimum.

        Returns:
            (additive, line), nats per token.
        """
        law = self.fit.law
        constants = np.array([[law.E, law.A, law.B, law.alpha, law.beta]])
        additive, excess = _target_losses(constants, target)
        return float(additive[0]), self.line.loss(target.flops) + float(excess[0])


@dataclass(frozen=True, kw_only=True)
class Resamples:
    """Both laws refitted to K resamples of the residuals.

    Attributes:
        constants_k5: (E, A, B, alpha, beta) of each additive law.
        intercept_k: of each line.
        slope_k: of each line.
    """

    constants_k5: Floats
    intercept_k: Floats
    slope_k: Floats

    def point_sd(self, target: Target, weight: float) -> float:
        """Return the sd of ln L of the point: `weight` of the additive law, the rest of the line, in ln L."""
        additive, excess = _target_losses(self.constants_k5, target)
        line = np.exp(self.intercept_k + self.slope_k * math.log(target.flops)) + excess
        return float((weight * np.log(additive) + (1 - weight) * np.log(line)).std(ddof=1))


def sort_ladder(runs: Sequence[Run]) -> Ladder:
    """Sort runs into rungs by their labels, lowest compute first.

    Args:
        runs: finished runs, none diverged.

    Returns:
        The ladder.

    Raises:
        FitError: fewer than three runs, or a number that is not finite and > 0.
    """
    if len(runs) < 3:
        raise FitError(f"{len(runs)} runs are too few for a forecast; finish at least 3, better 3 on each of 3 rungs")
    for number, run in enumerate(runs, start=1):
        for name in ("params", "tokens", "flops", "loss"):
            value = float(getattr(run, name))
            if not (math.isfinite(value) and value > 0):
                raise FitError(f"{name}={value} of run {number} must be finite and > 0; leave diverged runs out")
    labels = {run.rung for run in runs}
    level = {label: np.mean([math.log(run.flops) for run in runs if run.rung == label]) for label in labels}
    order = {label: place for place, label in enumerate(sorted(labels, key=lambda label: float(level[label])))}
    return Ladder(
        params=np.array([run.params for run in runs], dtype=np.float64),
        tokens=np.array([run.tokens for run in runs], dtype=np.float64),
        flops=np.array([run.flops for run in runs], dtype=np.float64),
        loss=np.array([run.loss for run in runs], dtype=np.float64),
        rung_n=np.array([order[run.rung] for run in runs], dtype=np.int64),
    )


def fit_bracket(ladder: Ladder, *, seed_sd: float) -> Bracket:
    """Fit the additive law and the line.

    Args:
        ladder: at least three runs.
        seed_sd: sd of ln L between seeds; the least noise that weighs the prior.

    Returns:
        Both laws and the rungs' optima.

    Raises:
        FitError: too few runs.
    """
    fit = fit_additive(
        ladder.params, ladder.tokens, ladder.loss, delta=FORECAST_DELTA, prior=Prior(noise_sd=max(seed_sd, 1e-4))
    )
    law = fit.law
    constants = np.array([[law.E, law.A, law.B, law.alpha, law.beta]])
    log_optima, log_params = _rung_optima(constants, ladder, np.log(ladder.loss)[None, :])
    intercept, slope = _line(constants, log_optima, ladder)
    flops, k = ladder.rung_flops(), ladder.flops_per_param_token()
    rungs = tuple(
        RungOptimum(
            flops=float(flops[rung]),
            params=math.exp(log_params[0, rung]),
            tokens=float(flops[rung] / k[rung]) / math.exp(log_params[0, rung]),
            loss=math.exp(log_optima[0, rung]),
            n_runs=int((ladder.rung_n == rung).sum()),
        )
        for rung in range(ladder.n_rungs)
    )
    return Bracket(
        ladder=ladder, fit=fit, line=PowerLine(intercept=float(intercept[0]), slope=float(slope[0])), rungs=rungs
    )


def resample(bracket: Bracket, *, seed_sd: float, draws: int = 200, seed: int = 0) -> Resamples:
    """Refit both laws to resampled residuals, to see how far their answers scatter.

    Residuals are drawn with replacement, centred, and stretched by sqrt(n / (n - 5)) for the five fitted constants.
    Where they are smaller than the seed noise (few runs, five constants) normal noise of `seed_sd` takes their place.

    Args:
        bracket: the laws.
        seed_sd: sd of ln L between seeds.
        draws: resamples, > 1.
        seed: of the resampling.

    Returns:
        Both laws of each resample.
    """
    ladder, law = bracket.ladder, bracket.fit.law
    rng = np.random.default_rng(seed)
    residuals = np.array(bracket.fit.residuals)
    residuals = residuals - residuals.mean()
    count = len(residuals)
    residual_sd = math.sqrt(float((residuals**2).sum()) / max(count - 5, 1))
    if residual_sd > seed_sd:
        stretch = residual_sd / math.sqrt(float((residuals**2).mean()))
        noise = rng.choice(residuals * stretch, size=(draws, count))
    else:
        noise = rng.normal(0.0, seed_sd, size=(draws, count))
    loss_kn = law.loss(ladder.params, ladder.tokens) * np.exp(noise)
    problem = centred_problem(ladder.params, ladder.tokens, ladder.loss, delta=FORECAST_DELTA)
    problem = with_prior(problem, Prior(noise_sd=max(seed_sd, 1e-4)), bracket.fit.noise_sd)
    start = centred_theta(law, ladder.params, ladder.tokens)
    constants = natural_constants(refit(start, problem, loss_kn=loss_kn), ladder.params, ladder.tokens)
    log_optima, _ = _rung_optima(constants, ladder, np.log(loss_kn))
    intercept, slope = _line(constants, log_optima, ladder)
    return Resamples(constants_k5=constants, intercept_k=intercept, slope_k=slope)


def rung_slopes(rungs: Sequence[RungOptimum]) -> list[float]:
    """Return -dlnL/dlnC between neighbouring rungs."""
    pairs = zip(rungs[:-1], rungs[1:], strict=True)
    return [-math.log(above.loss / below.loss) / math.log(above.flops / below.flops) for below, above in pairs]


def steepens(rungs: Sequence[RungOptimum], at: int, seed_sd: float) -> bool:
    """Say whether the slope above rung `at` + 1 is steeper than below it, beyond what noise does in 19 of 20 ladders.

    The additive law only ever flattens, so steepening is the mark of runs too small for the law.
    """
    slopes = rung_slopes(rungs)
    below, middle, above = rungs[at : at + 3]
    first_gap, second_gap = math.log(middle.flops / below.flops), math.log(above.flops / middle.flops)
    parts = (
        (1 / first_gap) ** 2 / below.n_runs,
        (1 / first_gap + 1 / second_gap) ** 2 / middle.n_runs,
        (1 / second_gap) ** 2 / above.n_runs,
    )
    return slopes[at + 1] - slopes[at] > _ONE_SIDED_95 * seed_sd * math.sqrt(sum(parts))


def _rung_optima(constants_k5: Floats, ladder: Ladder, log_loss_kn: Floats) -> tuple[Floats, Floats]:
    """Return ln L* and ln N* of each rung, both of shape (K, R)."""
    rung_flops, rung_k = ladder.rung_flops(), ladder.flops_per_param_token()
    log_product = np.log(rung_flops / rung_k)
    log_params = _log_optimal_params(constants_k5, log_product)
    log_best = np.log(_losses(constants_k5, np.exp(log_params), np.exp(log_product - log_params)))
    # A run's own compute differs a little from its rung's: its excess is taken at its own compute.
    own_product = np.log(ladder.params * ladder.tokens)
    own_params = _log_optimal_params(constants_k5, own_product)
    own_best = np.log(_losses(constants_k5, np.exp(own_params), np.exp(own_product - own_params)))
    log_law = np.log(_losses(constants_k5, ladder.params, ladder.tokens))
    weight = 1 / (1 + ((log_law - own_best) / _HALF_WEIGHT_EXCESS) ** 2)
    shifts: list[Floats] = []
    for rung in range(ladder.n_rungs):
        members = ladder.rung_n == rung
        share = weight[:, members] / weight[:, members].sum(1, keepdims=True)
        shifts.append((share * (log_loss_kn - log_law)[:, members]).sum(1))
    return log_best + np.stack(shifts, axis=1), log_params


def _line(constants_k5: Floats, log_optima: Floats, ladder: Ladder) -> tuple[Floats, Floats]:
    """Return intercept and slope, each (K,), of the line through the last rungs; one rung borrows the law's slope."""
    log_flops = np.log(ladder.rung_flops())
    if len(log_flops) == 1:
        E, A, _, alpha, beta = constants_k5.T  # noqa: N806 - the paper's letters
        log_product = log_flops - np.log(ladder.flops_per_param_token())
        log_params = _log_optimal_params(constants_k5, log_product)[:, 0]
        size_term = A * np.exp(-alpha * log_params)
        # At the optimum alpha A/N^alpha = beta B/D^beta, so dL/dlnC = -alpha beta / (alpha + beta) (both terms).
        both = size_term * (1 + alpha / beta)
        slope = -(alpha * beta / (alpha + beta)) * both / (E + both)
        return log_optima[:, 0] - slope * log_flops[0], slope
    last = _line_rungs(log_flops)
    centre = log_flops[last:].mean()
    offsets = log_flops[last:] - centre
    slope = (log_optima[:, last:] * offsets).sum(1) / (offsets**2).sum()
    return log_optima[:, last:].mean(1) - slope * centre, slope


def _line_rungs(log_flops: Floats) -> int:
    """Return the first of the last rungs that span LINE_SPAN, at least two."""
    for first in range(len(log_flops) - 2, -1, -1):
        if log_flops[-1] - log_flops[first] >= math.log(LINE_SPAN) - 1e-6:
            return first
    return 0


def _target_losses(constants_k5: Floats, target: Target) -> tuple[Floats, Floats]:
    """Return the additive loss of a target and its excess over the optimum on fresh text at its compute, each (K,)."""
    log_product = np.array([math.log(target.params * target.tokens)])
    log_params = _log_optimal_params(constants_k5, log_product)
    best = _losses(constants_k5, np.exp(log_params), np.exp(log_product - log_params))[:, 0]
    worth = target.tokens if target.effective_tokens is None else target.effective_tokens
    loss = _losses(constants_k5, np.array([target.params]), np.array([worth]))[:, 0]
    return loss, loss - best


def _losses(constants_k5: Floats, params: Floats, tokens: Floats) -> Floats:
    E, A, B, alpha, beta = (column[:, None] for column in constants_k5.T)  # noqa: N806 - the paper's letters
    return E + A * np.exp(-alpha * np.log(params)) + B * np.exp(-beta * np.log(tokens))


def _log_optimal_params(constants_k5: Floats, log_product: Floats) -> Floats:
    """Return ln N* for N D = exp(log_product), shape (K, len(log_product)) (Hoffmann et al. 2022, eq. 4)."""
    _, A, B, alpha, beta = (column[:, None] for column in constants_k5.T)  # noqa: N806 - the paper's letters
    return (np.log(alpha * A / (beta * B)) + beta * log_product) / (alpha + beta)
