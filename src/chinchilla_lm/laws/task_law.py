"""What a task's accuracy will be at a loss: the second step from compute to a benchmark.

The first step, compute to loss, is the sweep's own law. The second is fitted here on the sweep's models, each with its
held-out loss L and its accuracy. Two forms with two free parameters each, between chance c and 1:

    logistic      accuracy = c + (1 - c) / (1 + exp(k (L - L0)))     Bhagia et al. 2024, eq. 3, with fixed ends
    exponential   accuracy = c + (1 - c) exp(-g (L - L0))            Gadre et al. 2024, eq. 5: error = eps - k exp(-g L)

They agree where there are models and part beyond: the forecast mixes them by how well each fits (Akaike weights), and
its interval holds the parameters' error, the scatter of models about the law (beyond that of finitely many items), the
distance of the forms and the forecast loss's own interval. Losses of one tokenizer on one held-out text only.

Sources: Bhagia et al. 2024 "Establishing Task Scaling Laws via Compute-Efficient Model Ladders" (arXiv 2412.04403);
Gadre et al. 2024 "Language models scale reliably with over-training and on downstream tasks" (arXiv 2403.08540).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
from scipy import optimize  # pyright: ignore[reportMissingTypeStubs] - it has no stubs

from chinchilla_lm.core.errors import FitError

Floats = npt.NDArray[np.float64]
_scipy = cast(Any, optimize)
Form = Literal["logistic", "exponential"]
FORMS: tuple[Form, ...] = ("logistic", "exponential")
SCHEMA = "task_law/1"
LEAST_RUNS = 4
"""Two parameters and a scatter."""
DRAWS = 20_000
MOST_SCATTER = 0.2
"""Of accuracy: models of one sweep that scatter more follow no law."""
STEEPEST = 6.0
"""Of k and g, per nat."""
PRIOR_SLOPE = (1.5, 1.5)
"""Mean and deviation of k and g, per nat: wide, so that runs at chance do not make a cliff of the law below them."""
PRIOR_MIDDLE = (-1.0, 3.0)
"""Mean and deviation of L0 about the lowest loss of the runs, nats."""


@dataclass(frozen=True, kw_only=True)
class TaskRun:
    """One model. Attributes: held-out `loss` (nats per token), `accuracy` and its `standard_error` over items."""

    loss: float
    accuracy: float
    standard_error: float


@dataclass(frozen=True, kw_only=True)
class TaskForecast:
    """A forecast accuracy.

    Attributes:
        accuracy: the median.
        low: lower end of the interval.
        high: upper end.
        level: of the interval.
        warnings: one line each.
    """

    accuracy: float
    low: float
    high: float
    level: float
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class FormFit:
    """One form, fitted. Attributes: `slope` (k or g) and `middle` (L0), their `covariance`, `scatter`, `weight`."""

    form: Form
    slope: float
    middle: float
    covariance: tuple[tuple[float, float], tuple[float, float]]
    scatter: float
    weight: float

    def accuracy(self, loss: float, chance: float) -> float:
        """Return the accuracy at a loss."""
        return float(_curve(self.form, np.array([self.slope, self.middle]), np.array([loss]), chance)[0])


@dataclass(frozen=True, kw_only=True)
class TaskLaw:
    """Accuracy as a function of loss.

    Attributes:
        chance: accuracy of a guess, the end at high loss.
        fits: one for each form, with weights that sum to 1.
        lowest_loss: of the runs; below it the law extrapolates.
        highest_loss: of the runs.
        runs: that it was fitted on.
        warnings: one line each: what the runs do not support.
    """

    chance: float
    fits: tuple[FormFit, ...]
    lowest_loss: float
    highest_loss: float
    runs: tuple[TaskRun, ...]
    warnings: tuple[str, ...]

    def accuracy(self, loss: float) -> float:
        """The forms' accuracies at a loss, mixed by their weights: the law's line in a figure."""
        return sum(fit.weight * fit.accuracy(loss, self.chance) for fit in self.fits)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values: schema task_law/1."""
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> TaskLaw:
        """Read what `to_dict` wrote.

        Raises:
            FitError: a field is missing or is no number.
        """
        try:
            return cls(
                chance=float(record["chance"]),
                fits=tuple(_form_fit(fit) for fit in record["fits"]),
                lowest_loss=float(record["lowest_loss"]),
                highest_loss=float(record["highest_loss"]),
                runs=tuple(TaskRun(**run) for run in record["runs"]),
                warnings=tuple(map(str, record["warnings"])),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FitError(f"the record holds no law of a task ({error!r}); fit it again") from None

    def forecast(
        self,
        loss: float,
        loss_interval: tuple[float, float] | None = None,
        *,
        standard_error: float = 0.0,
        level: float = 0.9,
        seed: int = 0,
    ) -> TaskForecast:
        """Forecast a model's accuracy.

        Args:
            loss: forecast or measured, nats per token.
            loss_interval: of the forecast loss, at the same level; None: the loss is known.
            standard_error: of the accuracy that will be measured, over its items; 0 forecasts all items' accuracy.
            level: of the interval, in (0, 1).
            seed: of the draws.

        Raises:
            FitError: the interval does not hold the loss, or the level is no probability.
        """
        if not 0 < level < 1:
            raise FitError(f"level must lie in (0, 1), got {level}; 0.9 is usual")
        low, high = loss_interval or (loss, loss)
        if not low <= loss <= high:
            raise FitError(
                f"the loss {loss:.4g} lies outside its interval {low:.4g} to {high:.4g}; give both of one forecast"
            )
        draws = np.random.default_rng(seed)
        losses = loss + _two_sided(draws, loss - low, high - loss, level)
        accuracies = np.concatenate([self._draw(fit, losses, draws) for fit in self.fits])
        accuracies = accuracies + draws.normal(0, standard_error, len(accuracies))
        ends = np.quantile(accuracies, [(1 - level) / 2, 0.5, (1 + level) / 2])
        least, median, most = (float(one) for one in np.clip(ends, 0, 1))
        return TaskForecast(accuracy=median, low=least, high=most, level=level, warnings=self._warnings_at(loss))

    def _draw(self, fit: FormFit, losses: Floats, draws: np.random.Generator) -> Floats:
        """Accuracies of new models: a part of the draws as large as the form's weight."""
        count = round(DRAWS * fit.weight)
        if count == 0:
            return np.empty(0)
        mode = np.array([fit.slope, fit.middle])
        # The scatter is known from few runs: a Student t with their degrees of freedom scales all errors of the fit.
        degrees = max(len(self.runs) - 2, 1)
        widening = np.sqrt(degrees / draws.chisquare(degrees, count))
        parameters = mode + (self._posterior(fit, draws, count) - mode) * widening[:, None]
        centre = _curve_rows(fit.form, parameters, draws.choice(losses, count), self.chance)
        return centre + fit.scatter * widening * draws.standard_normal(count)

    def _posterior(self, fit: FormFit, draws: np.random.Generator, count: int) -> Floats:
        """Parameters (count, 2) given the scatter: drawn from the normal about the mode, kept by how well they fit."""
        mode, root = np.array([fit.slope, fit.middle]), np.linalg.cholesky(np.array(fit.covariance))
        normal = draws.standard_normal((DRAWS, 2))
        proposed = mode + normal @ root.T
        loss_n, accuracy_n, error_n = _columns(self.runs)
        deviation_n = np.sqrt(error_n**2 + fit.scatter**2)
        log_weight = (normal**2).sum(axis=1) / 2 - _prior_residuals(proposed, self.lowest_loss) / 2
        for loss, accuracy, deviation in zip(loss_n, accuracy_n, deviation_n, strict=True):
            expected = _curve_rows(fit.form, proposed, np.full(DRAWS, loss), self.chance)
            log_weight -= ((expected - accuracy) / deviation) ** 2 / 2
        weight = np.exp(log_weight - log_weight.max())
        return proposed[draws.choice(DRAWS, count, p=weight / weight.sum())]

    def _warnings_at(self, loss: float) -> tuple[str, ...]:
        span = self.highest_loss - self.lowest_loss
        beyond = self.lowest_loss - loss
        if span > 0 and beyond > span:
            return (
                *self.warnings,
                f"loss {loss:.3f} lies {beyond / span:.1f} times the runs' own range below the lowest of them",
            )
        return self.warnings


def fit_task_law(runs: Sequence[TaskRun], *, chance: float) -> TaskLaw:
    """Fit both forms by weighted least squares; a run's variance is that of its items plus the scatter about the law.

    Args:
        runs: at least four, of one tokenizer, held-out text and suite.
        chance: accuracy of a guess, in [0, 1).

    Returns:
        The law; its warnings say where the runs do not rise above chance or have too little range.

    Raises:
        FitError: too few runs, values out of range, all losses equal, or no form can be fitted.
    """
    if len(runs) < LEAST_RUNS:
        raise FitError(f"{len(runs)} runs do not make a law of a task; give at least {LEAST_RUNS}")
    if not 0 <= chance < 1:
        raise FitError(f"chance must lie in [0, 1), got {chance}; 0.5 for pairs, 1/k for k choices")
    loss_n, accuracy_n, error_n = _columns(runs)
    if not (np.isfinite(loss_n).all() and ((accuracy_n >= 0) & (accuracy_n <= 1)).all() and (error_n >= 0).all()):
        raise FitError("losses must be finite, accuracies lie in [0, 1] and standard errors be >= 0; check the runs")
    if np.ptp(loss_n) <= 0:
        raise FitError("all runs have the same loss; a law needs models of different loss")
    fitted = [_fit_form(form, loss_n, accuracy_n, error_n, chance) for form in FORMS]
    best = min(deviance for _, deviance in fitted)
    weights = np.array([math.exp(-(deviance - best) / 2) for _, deviance in fitted])
    weights /= weights.sum()
    fits = tuple(
        FormFit(
            form=fit.form,
            slope=fit.slope,
            middle=fit.middle,
            covariance=fit.covariance,
            scatter=fit.scatter,
            weight=float(weight),
        )
        for (fit, _), weight in zip(fitted, weights, strict=True)
    )
    return TaskLaw(
        chance=chance,
        fits=fits,
        lowest_loss=float(loss_n.min()),
        highest_loss=float(loss_n.max()),
        runs=tuple(runs),
        warnings=_warnings(accuracy_n, error_n, fits, chance),
    )


def hold_out_best(runs: Sequence[TaskRun], *, chance: float, level: float = 0.9) -> tuple[TaskForecast, float]:
    """Fit without the run of lowest loss and forecast it from its own loss; return (forecast, what it measured)."""
    ordered = sorted(runs, key=lambda run: -run.loss)
    best = ordered[-1]
    law = fit_task_law(ordered[:-1], chance=chance)
    return law.forecast(best.loss, standard_error=best.standard_error, level=level), best.accuracy


def _form_fit(record: Mapping[str, Any]) -> FormFit:
    if record["form"] not in FORMS:
        raise ValueError(f"form {record['form']!r}")
    (slope_slope, slope_middle), (middle_slope, middle_middle) = record["covariance"]
    return FormFit(
        form=record["form"],
        slope=float(record["slope"]),
        middle=float(record["middle"]),
        covariance=((float(slope_slope), float(slope_middle)), (float(middle_slope), float(middle_middle))),
        scatter=float(record["scatter"]),
        weight=float(record["weight"]),
    )


def _two_sided(draws: np.random.Generator, below: float, above: float, level: float) -> Floats:
    """Errors of a loss whose interval reaches so far below and above: two half normals."""
    normal = draws.standard_normal(DRAWS)
    return normal * np.where(normal < 0, below, above) / NormalDist().inv_cdf((1 + level) / 2)


def _columns(runs: Sequence[TaskRun]) -> tuple[Floats, Floats, Floats]:
    """Losses, accuracies and standard errors; an accuracy of 0 or 1 has no binomial variance of its own."""
    table = np.array([(run.loss, run.accuracy, run.standard_error) for run in runs], dtype=np.float64)
    return table[:, 0], table[:, 1], np.where(table[:, 2] >= 0, np.maximum(table[:, 2], 1e-4), table[:, 2])


def _prior_scores(parameters: Floats, lowest_loss: float) -> Floats:
    """How many deviations slope and middle lie from the prior's means: (..., 2)."""
    means = np.array([PRIOR_SLOPE[0], lowest_loss + PRIOR_MIDDLE[0]])
    return (parameters - means) / np.array([PRIOR_SLOPE[1], PRIOR_MIDDLE[1]])


def _prior_residuals(parameters_n2: Floats, lowest_loss: float) -> Floats:
    return (_prior_scores(parameters_n2, lowest_loss) ** 2).sum(axis=1)


def _curve(form: Form, parameters: Floats, loss_n: Floats, chance: float) -> Floats:
    return _curve_rows(form, np.broadcast_to(parameters, (len(loss_n), 2)), loss_n, chance)


def _curve_rows(form: Form, parameters_n2: Floats, loss_n: Floats, chance: float) -> Floats:
    """Each row's own parameters at its own loss. Exponents are held where the value is at an end to 1e-13."""
    argument = np.clip(parameters_n2[:, 0] * (loss_n - parameters_n2[:, 1]), -30, 30)
    rise = 1 / (1 + np.exp(argument)) if form == "logistic" else np.minimum(np.exp(-argument), 1.0)
    return chance + (1 - chance) * rise


def _fit_form(form: Form, loss_n: Floats, accuracy_n: Floats, error_n: Floats, chance: float) -> tuple[FormFit, float]:
    """Return the fit and its deviance, -2 ln likelihood; the scatter is the one that makes it least."""
    middle = float(loss_n.min())

    def solve(scatter: float, start: Floats) -> tuple[Floats, Floats, float]:
        deviation_n = np.sqrt(error_n**2 + scatter**2)

        def residuals(parameters: Floats) -> Floats:
            fit_n = (_curve(form, parameters, loss_n, chance) - accuracy_n) / deviation_n
            return np.concatenate([fit_n, _prior_scores(parameters, middle)])

        bounds = ([-STEEPEST, -np.inf], [STEEPEST, np.inf])
        solution = _scipy.least_squares(residuals, start, bounds=bounds, max_nfev=200)
        jacobian: Floats = np.asarray(solution.jac, dtype=np.float64)
        found: Floats = np.asarray(solution.x, dtype=np.float64)
        return found, jacobian.T @ jacobian, float(2 * solution.cost + 2 * np.log(deviation_n).sum())

    def deviance_of(scatter: float) -> float:
        return solve(scatter, exact[0])[2]

    starts = [np.array([slope, middle - shift]) for slope in (0.5, 2.0) for shift in (0.0, 1.0)]
    exact = min((solve(0.0, start) for start in starts), key=lambda one: one[2])
    found = _scipy.minimize_scalar(deviance_of, bounds=(0.0, MOST_SCATTER), method="bounded", options={"xatol": 5e-4})
    scatter = float(found.x) if found.fun < exact[2] else 0.0
    # Maximum likelihood takes the two parameters as known: n / (n - 2) makes up for it.
    scatter *= math.sqrt(len(loss_n) / (len(loss_n) - 2))
    parameters, hessian, deviance = solve(scatter, exact[0])
    covariance = np.linalg.inv(hessian)
    if not (np.isfinite(parameters).all() and np.isfinite(covariance).all()):
        raise FitError(f"the {form} form cannot be fitted to these runs; give models of more different loss")
    return FormFit(
        form=form,
        slope=float(parameters[0]),
        middle=float(parameters[1]),
        covariance=(
            (float(covariance[0, 0]), float(covariance[0, 1])),
            (float(covariance[1, 0]), float(covariance[1, 1])),
        ),
        scatter=scatter,
        weight=1.0,
    ), deviance


def _warnings(accuracy_n: Floats, error_n: Floats, fits: Sequence[FormFit], chance: float) -> tuple[str, ...]:
    lines: list[str] = []
    above = (accuracy_n - chance) / error_n
    if (above > 2).sum() < 3:
        count = {0: "no run is", 1: "only 1 run is", 2: "only 2 runs are"}[int((above > 2).sum())]
        lines.append(f"{count} clearly above chance ({chance:.2f}): the law is not established")
    weighty = max(fits, key=lambda fit: fit.weight)
    if weighty.slope <= 2 * math.sqrt(weighty.covariance[0][0]):
        lines.append("accuracy does not clearly rise as the loss falls: the law is not established")
    return tuple(lines)
