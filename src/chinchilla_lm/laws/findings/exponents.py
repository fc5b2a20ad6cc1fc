"""The exponent a by every way: approaches, kinds of interval, objectives and forms, as rows of a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from chinchilla_lm.laws.findings.fitted import Fitted, exponent_of_size
from chinchilla_lm.laws.findings.request import FitRequest
from chinchilla_lm.laws.fitting.additive import INTERVAL_LEVEL, Fit, Interval
from chinchilla_lm.laws.fitting.intervals import parameter_intervals
from chinchilla_lm.laws.table import RunTable
from chinchilla_lm.laws.trust.selection import Comparison

_NUMBERS = {"envelope": "1", "isoflop": "2", "parametric": "3"}
_MEANINGS = {
    "envelope": "approach 1, the envelope of training curves",
    "isoflop": "approach 2, parabolas at equal compute",
    "parametric": "approach 3, the parametric law",
}


def exponent_rows(
    runs: RunTable,
    fitted: Fitted,
    request: FitRequest,
    *,
    comparison: Comparison | None,
    record: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Return a row for each way: name (short), meaning, kind, a, low and high (95 %; None without).

    Args:
        runs: that were fitted.
        fitted: approach 3.
        request: what was asked.
        comparison: of the forms, or None.
        record: holds approaches and diagnosis, where they were made.
    """
    approaches: Mapping[str, Any] = record.get("approaches") or {}
    answers: Sequence[Mapping[str, Any]] = approaches.get("answers") or ()
    rows = [
        _row(_NUMBERS[one["approach"]], _MEANINGS[one["approach"]], "approach", one["a"], one["a_interval"])
        for one in answers
        if one["approach"] != "parametric"
    ]
    own = fitted.intervals.get("a")
    meaning = f"{_MEANINGS['parametric']} ({fitted.law.form}), {fitted.interval_method}"
    rows.append(_row("3", meaning, "approach", exponent_of_size(fitted.law), own))
    rows += _interval_rows(runs, fitted, request)
    diagnosis: Mapping[str, Any] = record.get("diagnosis") or {}
    known: Mapping[str, Any] = diagnosis.get("identifiability") or {}
    by_objective: Mapping[str, float] = known.get("a_by_objective") or {}
    rows += [_row(_short(name), f"approach 3 by {name}", "objective", a, None) for name, a in by_objective.items()]
    if comparison is not None:
        rows += [
            _row(_SHORT_FORMS[form], f"the {form} form", "form", exponent_of_size(found.law), None)
            for form, found in comparison.fits.items()
            if form != fitted.law.form
        ]
    return rows


_SHORT_FORMS = {"additive": "add.", "coupled": "coup.", "kaplan": "kapl.", "overtraining": "over."}


def _interval_rows(runs: RunTable, fitted: Fitted, request: FitRequest) -> list[dict[str, Any]]:
    """Return the other intervals of the additive fit: delta method, and the resamples already made."""
    if not isinstance(fitted.fit, Fit):
        return []
    rows: list[dict[str, Any]] = []
    if request.interval_method != "delta":
        made = parameter_intervals(runs, fitted.fit, method="delta", level=INTERVAL_LEVEL)
        rows.append(_row("delta", "approach 3, delta method", "interval", fitted.fit.law.a, made.ranges["a"]))
    if request.interval_method in ("profile", "delta") and len(fitted.draws_k6) >= 2:
        alpha, beta = fitted.draws_k6[:, 3], fitted.draws_k6[:, 4]
        low, high = np.quantile(beta / (alpha + beta), [(1 - INTERVAL_LEVEL) / 2, (1 + INTERVAL_LEVEL) / 2])
        spread = Interval(low=float(low), high=float(high), se=float((beta / (alpha + beta)).std(ddof=1)))
        rows.append(_row("pairs", "approach 3, pairs bootstrap", "interval", fitted.fit.law.a, spread))
    return rows


def _row(
    name: str, meaning: str, kind: str, a: float, interval: Interval | Mapping[str, float] | None
) -> dict[str, Any]:
    ends: Mapping[str, float] = interval.to_dict() if isinstance(interval, Interval) else interval or {}
    return {"name": name, "meaning": meaning, "kind": kind, "a": a, "low": ends.get("low"), "high": ends.get("high")}


def _short(objective: str) -> str:
    return {"lad": "LAD", "huber 1e-3": "1e-3", "huber scaled": "Huber", "least squares": "LS"}.get(
        objective, objective
    )
