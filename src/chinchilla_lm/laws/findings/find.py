"""`find_law`: everything that a table of finished runs says, as one record: THE API between `fit` and its page.

The record is law.json (schema law/1): `chinchilla plan` reads its law and resamples, the page draws from it alone.
Parts that the runs do not carry (a diagnosis of five runs) are null, and a warning says why. It reads no file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from chinchilla_lm.core.errors import FitError
from chinchilla_lm.laws.findings.curves import runs_and_curves
from chinchilla_lm.laws.findings.exponents import exponent_rows
from chinchilla_lm.laws.findings.fitted import Fitted, additive_fit, fit_law
from chinchilla_lm.laws.findings.outlook import (
    back_test,
    budgets_ahead,
    forecast_of,
    frontier,
    optimum_rows,
    spread_evenly,
)
from chinchilla_lm.laws.findings.repeats import repetition_warnings, worth_of
from chinchilla_lm.laws.findings.request import FitRequest
from chinchilla_lm.laws.findings.valleys import envelope_record, isoflop_record, three_approaches
from chinchilla_lm.laws.fitting.additive import Fit
from chinchilla_lm.laws.fitting.envelope import Curve
from chinchilla_lm.laws.fitting.form_fits import FittedForm
from chinchilla_lm.laws.table import RunTable
from chinchilla_lm.laws.task_columns import fit_task_columns
from chinchilla_lm.laws.trust.calibration import Extrapolation, extrapolate
from chinchilla_lm.laws.trust.cuts import thin
from chinchilla_lm.laws.trust.diagnosis import diagnose
from chinchilla_lm.laws.trust.selection import Comparison, compare_forms

_KEPT_DRAWS = 400  # of the resamples, in the record: enough for the planner's 90 % intervals
_SHOWN_RUNS = 600  # of a table, in the record: what a figure can show
_DIAGNOSED_RUNS = 1000  # beyond, single runs no longer move a law, and a leave-one-out of each takes minutes


def find_law(table: RunTable, request: FitRequest | None = None) -> dict[str, Any]:
    """Fit the runs and say what they do and do not tell.

    Args:
        table: finished runs, or lines of training curves (see `curves`).
        request: what is asked; None: the additive form with intervals, diagnosis and back-tests.

    Returns:
        The record, JSON values throughout (no nan, no infinity).

    Raises:
        FitError: runs that determine no law, or a request that conflicts with them.
    """
    request = request or FitRequest()
    with np.errstate(over="ignore"):  # of an end that the runs set no limit to; it becomes null
        return cast(dict[str, Any], _finite(_record(table, request)))


def _record(table: RunTable, request: FitRequest) -> dict[str, Any]:
    runs, curves = runs_and_curves(table, request)
    if request.method == "isoflop":
        record = isoflop_record(runs, request)
    elif request.method == "envelope":
        record = envelope_record(curves, request)
    else:
        record = _parametric_record(runs, curves, request)
    record["method"] = request.method
    tasks, task_notes = fit_task_columns(runs.tasks, runs.loss)
    record["tasks"] = {name: law.to_dict() for name, law in tasks.items()}
    record["warnings"] = list(dict.fromkeys([*runs.warnings, *record["warnings"], *task_notes]))
    record["objective_loss"] = request.objective
    record["smallest_flops"] = float(runs.flops.min())
    record["largest_flops"] = float(runs.flops.max())
    record.setdefault("n_runs", len(runs.loss))
    record["runs"] = _shown_runs(runs, record.pop("residuals", None))
    return record


def _parametric_record(runs: RunTable, curves: Sequence[Curve], request: FitRequest) -> dict[str, Any]:
    warnings: list[str] = []
    comparison = None if request.form == "repetition" else _comparison(runs, request, warnings)
    budgets = budgets_ahead(runs, request.target)
    fitted = fit_law(runs, _chosen_form(request, comparison), request, budgets)
    residuals = list(fitted.fit.residuals)
    warnings += repetition_warnings(runs, fitted)
    runs = worth_of(runs, fitted)  # as itself, unless the law says what repeated text is worth
    if request.form == "repetition":
        comparison = _comparison(runs, request, warnings)
    additive = fitted.fit if isinstance(fitted.fit, Fit) else additive_fit(runs, request)
    ahead = _extrapolation(runs, warnings)
    record: dict[str, Any] = {
        **fitted.to_dict(),
        "optima": optimum_rows(fitted, budgets, ahead),
        "target": _target_record(request),
        "forecast": None,
        "frontier": frontier(fitted, runs, ahead, max(budgets)),
        "backtest": back_test(runs, additive.delta),
        "diagnosis": None,
        "comparison": None if comparison is None else comparison.to_dict(),
        "draws": _kept_draws(fitted),
        "residuals": residuals,
    }
    warnings = [*fitted.warnings, *warnings]
    if request.target is not None:
        if ahead is None:
            raise FitError(f"{len(runs.loss)} runs carry no forecast; add runs, or leave the target out")
        record["forecast"] = forecast_of(fitted, runs, ahead, request.target)
        warnings += [f"forecast: {reason}" for reason in record["forecast"]["reasons"]]
    if request.diagnosis:
        record["diagnosis"] = _diagnosis(runs, additive, request, warnings)
    record["warnings"] = [*warnings, *_form_warnings(fitted, comparison)]
    if request.method == "all":
        compared = three_approaches(runs, curves, request)
        record["warnings"] += compared.pop("warnings")
        record |= compared
    record["exponents"] = exponent_rows(runs, fitted, request, comparison=comparison, record=record)
    return record


def _comparison(runs: RunTable, request: FitRequest, warnings: list[str]) -> Comparison | None:
    if not request.diagnosis and request.form != "best":
        return None
    try:
        return compare_forms(thin(runs, _DIAGNOSED_RUNS), delta=request.huber_delta)
    except FitError as error:
        if request.form == "best":
            raise
        warnings.append(f"the forms were not compared: {error}")
        return None


def _chosen_form(request: FitRequest, comparison: Comparison | None) -> FittedForm:
    if request.form != "best":
        return request.form
    assert comparison is not None
    usable = [score for score in comparison.scores if score.status == "converged"]
    if not usable:
        raise FitError("--form best: no form converged on these runs; give one, such as --form additive, or add runs")
    return usable[0].form


def _extrapolation(runs: RunTable, warnings: list[str]) -> Extrapolation | None:
    try:
        return extrapolate(runs)
    except FitError as error:
        warnings.append(f"no calibrated intervals: {error}")
        return None


def _diagnosis(runs: RunTable, additive: Fit, request: FitRequest, warnings: list[str]) -> dict[str, Any] | None:
    """Diagnose the additive fit, on an even part of a long table."""
    part, fit = runs, additive
    if len(runs.loss) > _DIAGNOSED_RUNS:
        order = np.lexsort((runs.tokens, runs.params))
        places = np.sort(order[spread_evenly(len(order), _DIAGNOSED_RUNS)])
        part = runs.take(places)
        fit = additive_fit(part, request)
        warnings.append(
            f"the diagnosis looked at {len(part.loss)} of {len(runs.loss)} runs, evenly spread; the fit used all"
        )
    target = None if request.target is None else request.target.flops
    try:
        found = diagnose(part, fit, target_flops=target, lines=part.lines or None)
    except FitError as error:
        warnings.append(f"no diagnosis: {error}")
        return None
    warnings += found.warnings
    return {**found.to_dict(), "n_runs": len(part.loss)}


def _form_warnings(fitted: Fitted, comparison: Comparison | None) -> list[str]:
    """Say where another form predicts hidden runs clearly better than the one fitted."""
    if comparison is None:
        return []
    errors = {score.form: score.backtest_percent for score in comparison.scores}
    best = comparison.scores[0]
    own = errors.get(fitted.law.form)  # pyright: ignore[reportArgumentType] - repetition is not compared
    if own is None or best.backtest_percent is None or best.backtest_percent > _CLEARLY_BETTER * own:
        return []
    return [
        f"form {best.form} misses hidden runs by {best.backtest_percent:.2g} % and {fitted.law.form} by {own:.2g} %; "
        f"fit it too (--form {best.form}), and plan for both"
    ]


_CLEARLY_BETTER = 0.8  # as in `trust.diagnosis`


def _target_record(request: FitRequest) -> dict[str, float | None] | None:
    target = request.target
    return None if target is None else {name: getattr(target, name) for name in ("flops", "params", "tokens")}


def _kept_draws(fitted: Fitted) -> list[list[float]] | None:
    """Return an even part of the resamples for the planner: five constants, and kappa where the form has it."""
    if not len(fitted.draws_k6):
        return None
    kept = fitted.draws_k6[spread_evenly(len(fitted.draws_k6), _KEPT_DRAWS)]
    has_kappa = fitted.law.form in ("coupled", "kaplan")
    return kept[:, : 6 if has_kappa else 5].tolist()


def _shown_runs(runs: RunTable, residuals: Sequence[float] | None) -> dict[str, Any]:
    """Return the runs as columns, an even part of a long table: each with its line and residual in per cent."""
    order = np.lexsort((runs.tokens, runs.params))
    places = order[spread_evenly(len(order), _SHOWN_RUNS)]
    columns: dict[str, Any] = {
        name: getattr(runs, name)[places].tolist() for name in ("params", "tokens", "flops", "loss")
    }
    if runs.lines:
        columns["lines"] = [runs.lines[place] for place in places.tolist()]
    if residuals is not None:
        columns["residual_percent"] = (100 * np.array(residuals)[places]).tolist()
    if runs.unique_tokens is not None:
        columns["unique_tokens"] = runs.unique_tokens[places].tolist()
    return {"n": len(runs.loss), "n_shown": len(places), **columns}


def _finite(value: Any) -> Any:
    """Return the value with null for every nan and infinity, which JSON cannot hold."""
    if isinstance(value, Mapping):
        pairs = cast(Mapping[object, Any], value)
        return {str(key): _finite(each) for key, each in pairs.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in cast(Sequence[Any], value)]
    if isinstance(value, np.generic):
        return _finite(cast(Any, value).item())
    return None if isinstance(value, float) and not math.isfinite(value) else value
