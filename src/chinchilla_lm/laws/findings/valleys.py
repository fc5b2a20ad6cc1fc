"""Approaches 1 and 2 as parts of the record, with the curves that a figure needs, and all three side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from chinchilla_lm.laws.findings.request import FitRequest
from chinchilla_lm.laws.fitting.approaches import ThreeApproaches, fit_all
from chinchilla_lm.laws.fitting.envelope import Curve, EnvelopeFit, fit_envelope
from chinchilla_lm.laws.fitting.isoflop import IsoflopFit, Valley, fit_isoflop
from chinchilla_lm.laws.forms.law import Floats
from chinchilla_lm.laws.table import RunTable

_SAME_BUDGET = 0.2  # in ln C, from the lowest run of a budget to its highest; as in `fitting.isoflop`
_PARABOLA_POINTS = 25
_SHOWN_POINTS = 60  # of an envelope


def isoflop_record(runs: RunTable, request: FitRequest) -> dict[str, Any]:
    """Fit approach 2 alone.

    Raises:
        FitError: fewer than two budgets with a valley.
    """
    found = fit_isoflop(
        runs.params, runs.flops, runs.loss, params_convention=request.params_convention, remedy=request.remedy
    )
    return {
        "schema": "law/1",
        **found.law.to_dict(),
        **_without_law(found.to_dict()),
        "isoflop": {**found.to_dict(), "valleys": _drawn_valleys(found, runs)},
        "hash": found.law.hash(),
    }


def envelope_record(curves: Sequence[Curve], request: FitRequest) -> dict[str, Any]:
    """Fit approach 1 alone.

    Raises:
        FitError: too few curves, or curves that never cross.
    """
    found = fit_envelope(curves, schedule=request.schedule, params_convention=request.params_convention)
    return {
        "schema": "law/1",
        **found.law.to_dict(),
        **_without_law(found.to_dict()),
        "envelope": {**found.to_dict(), "points": _drawn_envelope(found)},
        "hash": found.law.hash(),
    }


def three_approaches(runs: RunTable, curves: Sequence[Curve], request: FitRequest) -> dict[str, Any]:
    """Fit every approach that the runs allow.

    Returns:
        Keys isoflop, envelope (each null where it could not be fitted), approaches (what each says of the best size at
        one compute, and whether they agree) and warnings.

    Raises:
        FitError: runs that approach 3 cannot be fitted to.
    """
    target = None if request.target is None else request.target.flops
    found = fit_all(
        runs,
        curves=curves,
        schedule=request.schedule,
        target_flops=target,
        delta=request.huber_delta,
        prior=request.prior,
        params_convention=request.params_convention,
    )
    warnings = list(found.warnings)
    isoflop = envelope = None
    if found.isoflop is not None:
        isoflop = {**found.isoflop.to_dict(), "valleys": _drawn_valleys(found.isoflop, runs)}
        warnings += [f"approach 2: {text}" for text in found.isoflop.warnings]
    if found.envelope is not None:
        envelope = {**found.envelope.to_dict(), "points": _drawn_envelope(found.envelope)}
        warnings += [f"approach 1: {text}" for text in found.envelope.warnings]
    return {"isoflop": isoflop, "envelope": envelope, "approaches": _side_by_side(found), "warnings": warnings}


def _without_law(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in ("method", "budgets", "line", "coefficient")}


def _side_by_side(found: ThreeApproaches) -> dict[str, Any]:
    answers: list[dict[str, Any]] = []
    fits = {"envelope": found.envelope, "isoflop": found.isoflop}
    for answer in found.answers:
        fit = fits.get(answer.approach)
        ranges = found.parametric_intervals.ranges if fit is None else fit.intervals
        a_range = ranges.get("a")
        answers.append(
            {
                "approach": answer.approach,
                "a": answer.a,
                "a_interval": None if a_range is None else a_range.to_dict(),
                "params": answer.params,
                "interval": None if answer.interval is None else answer.interval.to_dict(),
            }
        )
    return {"flops": found.flops, "agree": found.agree, "answers": answers}


def _drawn_valleys(found: IsoflopFit, runs: RunTable) -> list[dict[str, Any]]:
    """Return the runs of each budget and the parabola through them."""
    groups = _budgets(np.log(runs.flops))
    middles = np.array([float(np.log(runs.flops[members]).mean()) for members in groups])
    return [
        _drawn(valley, runs, groups[int(np.abs(middles - math.log(valley.flops)).argmin())]) for valley in found.valleys
    ]


def _budgets(log_flops: Floats) -> list[npt.NDArray[np.int64]]:
    """Return the runs of each budget, as `fitting.isoflop` groups them."""
    order = np.argsort(log_flops, kind="stable")
    groups: list[list[int]] = []
    for place in order.tolist():
        if not groups or log_flops[place] > log_flops[groups[-1][0]] + _SAME_BUDGET:
            groups.append([])
        groups[-1].append(place)
    return [np.array(group, dtype=np.int64) for group in groups]


def _drawn(valley: Valley, runs: RunTable, members: npt.NDArray[np.int64]) -> dict[str, Any]:
    params, loss = runs.params[members], runs.loss[members]
    drawn: dict[str, Any] = {
        "flops": valley.flops,
        "best": {"params": valley.params, "loss": valley.loss, "is_inside": valley.is_inside},
        "params": params.tolist(),
        "loss": loss.tolist(),
        "parabola": None,
    }
    if len(params) == valley.n_runs:  # the remedy "local" leaves runs out, and its parabola is not this one
        drawn["parabola"] = _parabola(np.log(params), loss)
    return drawn


def _parabola(x: Floats, loss: Floats) -> dict[str, list[float]]:
    centre = float(x.mean())
    coefficients = np.polyfit(x - centre, loss, 2)
    room = 0.1 * float(np.ptp(x))
    grid = np.linspace(float(x.min()) - room, float(x.max()) + room, _PARABOLA_POINTS)
    return {"params": np.exp(grid).tolist(), "loss": np.polyval(coefficients, grid - centre).tolist()}


def _drawn_envelope(found: EnvelopeFit) -> dict[str, list[float]]:
    places = np.unique(np.round(np.linspace(0, len(found.flops) - 1, _SHOWN_POINTS)).astype(np.int64))
    return {name: getattr(found, name)[places].tolist() for name in ("flops", "params", "tokens", "loss")}
