"""Which form to believe: how each predicts runs that were hidden from it, and how much of each to take.

Forms are compared by what they say of runs beyond their cut (rolling origin), of budgets left out of the middle, and
by AICc within the data. Stacking takes the weights, none negative and together 1, that would have predicted the hidden
runs best; its own error is measured on cuts that its weights have not seen.

Symbols: n runs with N `params`, D `tokens`, C `flops`, L `loss` (nats per token); an error is
ln(predicted) - ln(actual) of a `case`, one hidden run at one cut. It never reads files or draws.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from chinchilla_lm.core.errors import FitError
from chinchilla_lm.laws.fitting.form_fits import FittedForm, FormFit, FormOptions, fit_form
from chinchilla_lm.laws.fitting.noise import huber
from chinchilla_lm.laws.forms.law import Floats
from chinchilla_lm.laws.table import RunTable
from chinchilla_lm.laws.trust.groups import budget_groups

Predictor = Callable[[Floats, Floats], Floats]
Fitter = Callable[[RunTable], Predictor]

FORMS: tuple[FittedForm, ...] = ("additive", "coupled", "kaplan", "overtraining")
FEWEST_FITTED = 8  # runs below a cut; below it five constants are guesses
# Published exponents (.28 to .37) with room to spare; in units of the loss, so alpha is kappa times the coupled
# form's own. On six public sweeps they take the coupled form's error from 1.93 to 1.21 % and the additive form's from
# 1.76 to 1.45 % (bench/forms.py): alone, the sixth constant makes the additive form worse. Kaplan's exponents are none
# of these.
_EXPONENTS = {"alpha": (0.35, 0.07), "beta": (0.37, 0.07)}
WEAK_PRIORS: Mapping[FittedForm, Mapping[str, tuple[float, float]]] = {
    "additive": _EXPONENTS,
    "coupled": _EXPONENTS,
    "overtraining": {"alpha": (0.36, 0.07)},
}
_CUT_RATIOS = (3.0, 10.0, 30.0, 100.0)  # of the largest compute; bench/forms.py measures at 10, 30 and 100
# Ridge of the stacking weights toward equal shares, relative to the mean squared error: with a handful of cuts the
# unshrunk weights jump to one form (Stock and Watson 2004 on forecast combinations). Not tuned.
_TOWARD_EQUAL = 0.1


@dataclass(frozen=True, kw_only=True, eq=False)
class RollingOrigin:
    """Runs hidden above each cut and what every fitter said of them, one row a case.

    Attributes:
        cut_flops: the cut of each case; runs above it were hidden.
        row: which run of the table.
        decades: log10 of the run's compute over the largest compute fitted, > 0.
        actual: loss observed.
        predicted: loss by each fitter; nan where it could not fit.
    """

    cut_flops: Floats
    row: npt.NDArray[np.int64]
    decades: Floats
    actual: Floats
    predicted: Mapping[str, Floats]

    def errors(self, name: str) -> Floats:
        """Return ln(predicted) - ln(actual) of a fitter, one a case."""
        return np.log(self.predicted[name]) - np.log(self.actual)

    @property
    def cuts(self) -> tuple[float, ...]:
        """The cuts that left a case, ascending."""
        return tuple(float(cut) for cut in np.unique(self.cut_flops))


@dataclass(frozen=True, kw_only=True)
class FormScore:
    """How one form did.

    Attributes:
        form: its name.
        n_free: constants.
        status: of its fit to all runs.
        noise_sd: robust sd of its residuals in ln L.
        aicc: small-sample Akaike criterion from the Huber sum at one delta for all; lower is better.
        left_out_percent: mean |error| on budgets left out of the fit one at a time.
        backtest_percent: mean |error| on runs beyond the cuts, each cut counting the same; None without a cut.
        weight: its share in the stack.
    """

    form: FittedForm
    n_free: int
    status: str
    noise_sd: float
    aicc: float
    left_out_percent: float
    backtest_percent: float | None
    weight: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """The forms side by side.

    Attributes:
        scores: best back-test first (best AICc where there is none).
        fits: of each form to all runs.
        stacked_percent: mean |error| of the stack, its weights learnt on the other cuts; None with fewer than two cuts.
        backtest: the cases.
    """

    scores: tuple[FormScore, ...]
    fits: Mapping[FittedForm, FormFit]
    stacked_percent: float | None
    backtest: RollingOrigin

    @property
    def weights(self) -> dict[FittedForm, float]:
        """Share of each form in the stack."""
        return {score.form: score.weight for score in self.scores}

    def stacked_loss(self, params: Floats, tokens: Floats) -> Floats:
        """Return the stack's loss: the weighted mean of ln L over the forms."""
        logs = [weight * np.log(self.fits[form].law.loss(params, tokens)) for form, weight in self.weights.items()]
        return np.exp(np.sum(logs, axis=0))

    def to_dict(self) -> dict[str, Any]:
        """Return the scores as JSON values."""
        return {
            "forms": [score.to_dict() for score in self.scores],
            "stacked_percent": self.stacked_percent,
            "cuts": list(self.backtest.cuts),
        }


def form_fitter(form: FittedForm, delta: float | None = None, options: FormOptions | None = None) -> Fitter:
    """Return the fitter of a form, for `rolling_origin`."""

    def fitter(table: RunTable) -> Predictor:
        fit = fit_form(form, table.params, table.tokens, table.loss, delta=delta, options=options)
        return fit.law.loss

    return fitter


def stacked_fitter(fitters: Mapping[str, Fitter]) -> Fitter:
    """Return the fitter of the stack: it learns its weights by back-tests within the runs that it is given."""

    def fitter(table: RunTable) -> Predictor:
        weights = stack(rolling_origin(table, fitters), list(fitters))
        predictors = {name: fitters[name](table) for name, weight in weights.items() if weight > 0}

        def predict(params: Floats, tokens: Floats) -> Floats:
            logs = [weights[name] * np.log(predictor(params, tokens)) for name, predictor in predictors.items()]
            return np.exp(np.sum(logs, axis=0))

        return predict

    return fitter


def rolling_origin(
    table: RunTable, fitters: Mapping[str, Fitter], cuts: Sequence[float] | None = None
) -> RollingOrigin:
    """Refit below each cut and predict every run above it.

    Args:
        table: finished runs.
        fitters: by name; each takes the runs up to a cut and returns what predicts a loss from params and tokens.
        cuts: compute C; None: a third, a tenth, a thirtieth and a hundredth of the largest. A cut with fewer than
            eight runs below, or none above, is passed over.

    Returns:
        The cases, cut by cut.
    """
    if cuts is None:
        cuts = [float(table.flops.max()) / ratio for ratio in _CUT_RATIOS]
    columns: list[tuple[Floats, npt.NDArray[np.int64], Floats]] = []
    predicted: dict[str, list[Floats]] = {name: [] for name in fitters}
    for cut in sorted(cuts):
        seen = table.flops <= cut * (1 + 1e-9)
        hidden = np.flatnonzero(~seen)
        if seen.sum() < FEWEST_FITTED or not len(hidden):
            continue
        below = take(table, seen)
        columns.append((np.full(len(hidden), cut), hidden, np.log10(table.flops[hidden] / below.flops.max())))
        for name, fitter in fitters.items():
            predicted[name].append(_predict(fitter, below, table.params[hidden], table.tokens[hidden]))
    if not columns:
        nothing = np.zeros(0)
        return RollingOrigin(
            cut_flops=nothing,
            row=nothing.astype(np.int64),
            decades=nothing,
            actual=nothing,
            predicted=dict.fromkeys(fitters, nothing),
        )
    row = np.concatenate([hidden for _, hidden, _ in columns])
    return RollingOrigin(
        cut_flops=np.concatenate([cut for cut, _, _ in columns]),
        row=row,
        decades=np.concatenate([decades for _, _, decades in columns]),
        actual=table.loss[row],
        predicted={name: np.concatenate(parts) for name, parts in predicted.items()},
    )


def take(table: RunTable, chosen: npt.NDArray[np.bool_]) -> RunTable:
    """Return the chosen runs of a table."""
    return RunTable(
        params=table.params[chosen], tokens=table.tokens[chosen], flops=table.flops[chosen], loss=table.loss[chosen]
    )


def stack(backtest: RollingOrigin, names: Sequence[str]) -> dict[str, float]:
    """Return the weights, none negative and together 1, that predict the hidden runs best.

    Args:
        backtest: the cases; each cut counts the same, however many runs it hides.
        names: fitters to weigh; one that failed at any cut gets no weight.

    Returns:
        Weight by name. Equal shares without a case.

    Source: Breiman 1996, stacked regressions. Differs: hidden runs lie beyond the cut, as the forecast will.
    """
    usable = [name for name in names if bool(np.isfinite(backtest.predicted[name]).all())]
    if not len(backtest.actual) or not usable:
        return {name: 1 / len(names) for name in names}
    errors = np.stack([backtest.errors(name) for name in usable])
    share = _share_of_case(backtest)
    moments = (errors * share) @ errors.T
    ridge = _TOWARD_EQUAL * float(np.trace(moments)) / len(usable)
    weights = _simplex_minimum(moments + ridge * np.eye(len(usable)))
    found = dict(zip(usable, weights.tolist(), strict=True))
    return {name: found.get(name, 0.0) for name in names}


def stacked_errors(backtest: RollingOrigin, names: Sequence[str]) -> Floats | None:
    """Return the stack's error of each case, its weights learnt on the other cuts; None with fewer than two cuts."""
    if len(backtest.cuts) < 2:
        return None
    errors = np.stack([np.nan_to_num(backtest.errors(name)) for name in names])
    stacked = np.empty(len(backtest.actual))
    for cut in backtest.cuts:
        here = backtest.cut_flops == cut
        weights = stack(_cases(backtest, ~here), names)
        stacked[here] = np.array([weights[name] for name in names]) @ errors[:, here]
    return stacked


def compare_forms(
    table: RunTable,
    forms: Sequence[FittedForm] = FORMS,
    *,
    delta: float | None = None,
    cuts: Sequence[float] | None = None,
    priors: Mapping[FittedForm, Mapping[str, tuple[float, float]]] = WEAK_PRIORS,
) -> Comparison:
    """Fit the forms to all runs, hide runs from each, and weigh them by what they then said.

    Args:
        table: finished runs.
        forms: names of `fit_form`, without repetition (a table has no unique tokens).
        delta: of the Huber loss; None scales it to each form's noise.
        cuts: of the back-test, as in `rolling_origin`.
        priors: of each form, as in `FormOptions`; an empty mapping lets the runs speak alone.

    Returns:
        The comparison; forms with more constants than runs are left out.

    Raises:
        FitError: no form could be fitted.
    """
    fits: dict[FittedForm, FormFit] = {}
    options = {form: FormOptions(priors=priors.get(form, {})) for form in forms}
    for form in forms:
        try:
            fits[form] = fit_form(form, table.params, table.tokens, table.loss, delta=delta, options=options[form])
        except FitError:
            continue
    if not fits:
        raise FitError(f"{len(table.loss)} runs determine none of {', '.join(forms)}; add runs")
    names: list[FittedForm] = list(fits)
    backtest = rolling_origin(table, {form: form_fitter(form, delta, options[form]) for form in names}, cuts)
    weights = stack(backtest, names)
    common_delta = min(fit.delta for fit in fits.values())
    scores = [
        FormScore(
            form=form,
            n_free=fits[form].n_free,
            status=fits[form].status,
            noise_sd=fits[form].noise_sd,
            aicc=robust_aicc(np.array(fits[form].residuals), fits[form].n_free, common_delta),
            left_out_percent=leave_one_budget_out(table, fits[form]),
            backtest_percent=mean_percent(backtest, backtest.errors(form)),
            weight=weights[form],
        )
        for form in names
    ]
    scores.sort(key=lambda score: score.aicc if score.backtest_percent is None else score.backtest_percent)
    stacked = stacked_errors(backtest, names)
    return Comparison(
        scores=tuple(scores),
        fits=fits,
        stacked_percent=None if stacked is None else mean_percent(backtest, stacked),
        backtest=backtest,
    )


def robust_aicc(residuals: Floats, n_free: int, delta: float) -> float:
    """Return Akaike's criterion with the small-sample term, the Huber sum in place of the sum of squares.

    Args:
        residuals: in ln L.
        n_free: constants fitted; the noise counts as one more.
        delta: of the Huber loss, one for all forms that are compared.

    Returns:
        n ln(2 S / n) + 2 k + 2 k (k + 1) / (n - k - 1), k = n_free + 1; infinity where runs are too few.

    Source: Hurvich and Tsai 1989; with a robust sum, Ronchetti 1985.
    """
    count, k = len(residuals), n_free + 1
    if count - k - 1 <= 0:
        return math.inf
    mean_square = max(2 * float(huber(residuals, delta).sum()) / count, 1e-300)
    return count * math.log(mean_square) + 2 * k + 2 * k * (k + 1) / (count - k - 1)


def leave_one_budget_out(table: RunTable, fit: FormFit) -> float:
    """Return the mean |error| in per cent on the runs of each budget, fitted without it."""
    groups = budget_groups(table.flops)
    labels = np.unique(groups)
    keep = (groups[None] != labels[:, None]).astype(np.float64)
    enough = keep.sum(1) > fit.n_free
    if not enough.any():
        return math.nan
    predicted = fit.predict(fit.refit(keep[enough]), table.params, table.tokens)
    errors = np.abs(np.log(predicted) - np.log(table.loss))
    return 100 * float(errors[keep[enough] == 0].mean())


def mean_percent(backtest: RollingOrigin, errors: Floats) -> float | None:
    """Return the mean |error| in per cent, each cut counting the same; None without a case or where a fit failed."""
    if not len(errors) or not np.isfinite(errors).all():
        return None
    return 100 * float((np.abs(errors) * _share_of_case(backtest)).sum())


def _predict(fitter: Fitter, below: RunTable, params: Floats, tokens: Floats) -> Floats:
    try:
        return fitter(below)(params, tokens)
    except FitError:
        return np.full(len(params), np.nan)


def _share_of_case(backtest: RollingOrigin) -> Floats:
    """Return a weight for each case, so that each cut sums to the same and all to 1."""
    _, place, counts = np.unique(backtest.cut_flops, return_inverse=True, return_counts=True)
    return 1 / (counts[place] * len(counts))


def _cases(backtest: RollingOrigin, chosen: npt.NDArray[np.bool_]) -> RollingOrigin:
    return RollingOrigin(
        cut_flops=backtest.cut_flops[chosen],
        row=backtest.row[chosen],
        decades=backtest.decades[chosen],
        actual=backtest.actual[chosen],
        predicted={name: values[chosen] for name, values in backtest.predicted.items()},
    )


def _simplex_minimum(moments: Floats) -> Floats:
    """Minimise w^T M w over w >= 0, sum w = 1, exactly: try every set of forms that may share (a handful of forms)."""
    count = len(moments)
    best, lowest = np.full(count, 1 / count), math.inf
    for size in range(1, count + 1):
        for chosen in itertools.combinations(range(count), size):
            part = moments[np.ix_(chosen, chosen)]
            solved = np.linalg.solve(part, np.ones(size))
            weights = solved / solved.sum()
            value = float(weights @ part @ weights)
            if (weights >= 0).all() and value < lowest:
                lowest = value
                best = np.zeros(count)
                best[list(chosen)] = weights
    return best
