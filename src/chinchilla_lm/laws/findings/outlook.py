"""What a fitted law says beyond its runs: the optimum of a few budgets, the frontier, a forecast, and its back-tests.

Every loss is given twice: raw, as the textbook has it (how well the runs determine the law), and calibrated, as wide
as public sweeps and the table's own back-tests say that such a forecast errs (`trust.calibration`).
Symbols: C `flops`, L `loss`; intervals of the calibrated kind hold 90 %, those of constants and optima 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from chinchilla_lm.core.errors import FitError
from chinchilla_lm.laws.findings.fitted import FLOPS_PER_PARAM_TOKEN, Fitted
from chinchilla_lm.laws.findings.request import Target
from chinchilla_lm.laws.fitting.additive import Interval
from chinchilla_lm.laws.forms.additive import AdditiveLaw
from chinchilla_lm.laws.table import RunTable
from chinchilla_lm.laws.trust.calibration import Extrapolation
from chinchilla_lm.laws.trust.rolling import Hindcast, forecast_optimum, predict_largest, rolling_origin

FORECAST_LEVEL = 0.9
_AHEAD = 100.0  # times the largest run: the farthest that calibration was tested
_STEPS = 61  # of the frontier
_SHOWN_CASES = 400  # of a back-test, for the figure


def budgets_ahead(table: RunTable, target: Target | None) -> tuple[float, ...]:
    """Return the computes whose optimum is said: about the largest run's, ten and a hundred times it, the target's."""
    largest = float(table.flops.max())
    rounded = float(f"{largest:.0e}")
    budgets = {rounded, 10 * rounded, _AHEAD * rounded}
    if target is not None and target.flops is not None:
        budgets.add(target.flops)
    by_name = {f"{flops:.6g}": flops for flops in sorted(budgets)}
    return tuple(by_name.values())


def optimum_rows(fitted: Fitted, budgets: Sequence[float], ahead: Extrapolation | None) -> list[dict[str, Any]]:
    """Return for each budget the best size, its tokens and its loss, with intervals; JSON values."""
    rows: list[dict[str, Any]] = []
    for flops in budgets:
        params, tokens = fitted.law.optimum(flops)
        intervals = fitted.optima.get(flops, {})
        row: dict[str, Any] = {
            "flops": flops,
            "params": params,
            "tokens": tokens,
            "tokens_per_param": tokens / params,
            "loss": fitted.law.optimal_loss(flops),
            "intervals": {name: interval.to_dict() for name, interval in intervals.items()},
            "calibrated": None,
        }
        if ahead is not None:
            said = ahead.predict(params, tokens, flops, FORECAST_LEVEL)
            row["calibrated"] = {"loss": said.loss, "low": said.low, "high": said.high}
        rows.append(row)
    return rows


def frontier(fitted: Fitted, table: RunTable, ahead: Extrapolation | None, farthest: float) -> dict[str, Any]:
    """Return the least loss over compute, from the smallest run to beyond the largest, raw and calibrated.

    Args:
        fitted: the law and its resamples.
        table: the runs.
        ahead: calibrated predictions, or None.
        farthest: compute that must be on it.

    Returns:
        Lists of one length: flops, params, loss; low and high (95 %, over resamples; None without); calibrated_loss,
        calibrated_low and calibrated_high (90 %; None without).
    """
    largest = float(table.flops.max())
    flops = np.geomspace(float(table.flops.min()), max(_AHEAD * largest, farthest), _STEPS)
    params, tokens = fitted.law.optimum(flops)
    found: dict[str, Any] = {
        "level": 0.95,
        "calibrated_level": FORECAST_LEVEL,
        "flops": flops.tolist(),
        "params": params.tolist(),
        "loss": fitted.law.optimal_loss(flops).tolist(),
        **dict.fromkeys(("low", "high", "calibrated_loss", "calibrated_low", "calibrated_high")),
    }
    if len(fitted.draws_k6) >= 2:
        low, high = np.exp(np.quantile(fitted.optimal_losses(flops), [0.025, 0.975], axis=0))
        found["low"], found["high"] = low.tolist(), high.tolist()
    if ahead is not None:
        answers = ahead.fits.ask(params, tokens, flops)
        point, half = answers.point[-1], ahead.half_widths(answers, FORECAST_LEVEL)[-1]
        found["calibrated_loss"] = np.exp(point).tolist()
        found["calibrated_low"] = np.exp(point - half).tolist()
        found["calibrated_high"] = np.exp(point + half).tolist()
    return found


def forecast_of(fitted: Fitted, table: RunTable, ahead: Extrapolation, target: Target) -> dict[str, Any]:
    """Forecast the loss of one run, raw and calibrated.

    Args:
        fitted: the law, which chooses the size where the target does not.
        table: the runs.
        ahead: calibrated predictions.
        target: the run.

    Returns:
        JSON values: params, tokens, flops, loss, low, high (calibrated), level, raw {loss, low, high}, law_loss,
        decades, established, reasons; for a compute alone also the intervals of the size, and the bracket.
    """
    params, tokens, flops = _run_of(fitted, ahead, target)
    said = ahead.predict(params, tokens, flops, FORECAST_LEVEL)
    record = said.to_dict()
    raw = {name.removeprefix("raw_"): record.pop(name) for name in ("raw_loss", "raw_low", "raw_high")}
    record["reasons"] = record.pop("warnings")
    intervals: dict[str, Interval] = {}
    if target.flops is not None and target.params is None and target.tokens is None:
        intervals = {name: one for name, one in fitted.optima.get(flops, {}).items() if name != "loss"}
    return {
        **record,
        "tokens_per_param": tokens / params,
        "raw": raw,
        "law_loss": fitted.law.loss(params, tokens),
        "intervals": {name: interval.to_dict() for name, interval in intervals.items()},
        "bracket": _bracket(fitted, table, flops) if target.params is None and target.tokens is None else None,
    }


def back_test(table: RunTable, delta: float) -> dict[str, Any] | None:
    """Hide the larger runs at several cuts and predict them; JSON values, None where too few runs are left.

    Args:
        table: the runs.
        delta: of the Huber loss of the plain test.

    Returns:
        The plain test of the largest runs (cut_flops, n_fitted, n_predicted, median_error_percent, bias_percent), and
        `rolling`: how often raw and calibrated intervals held at 3 to 100 times the compute of their cut.
    """
    plain = predict_largest(table, delta=delta)
    cases = rolling_origin(table, level=FORECAST_LEVEL)
    if plain is None and not cases:
        return None
    return {**({} if plain is None else plain.to_dict()), "rolling": _summary(cases) if cases else None}


def _run_of(fitted: Fitted, ahead: Extrapolation, target: Target) -> tuple[float, float, float]:
    """Complete a target to (params, tokens, flops)."""
    k = ahead.flops_per_param_token
    if target.params is not None and target.tokens is not None:
        flops = k * target.params * target.tokens
        if target.flops is not None and not 0.5 < target.flops / flops < 2:
            raise FitError(
                f"the target's {target.flops:.3g} FLOPs are not the {flops:.3g} of its size and tokens; leave out one "
                "of --target-flops, --target-params and --target-tokens"
            )
        return target.params, target.tokens, flops if target.flops is None else target.flops
    assert target.flops is not None
    if target.params is not None:
        return target.params, target.flops / k / target.params, target.flops
    if target.tokens is not None:
        return target.flops / k / target.tokens, target.tokens, target.flops
    params, tokens = fitted.law.optimum(target.flops, FLOPS_PER_PARAM_TOKEN)
    return params, tokens, target.flops


def _bracket(fitted: Fitted, table: RunTable, flops: float) -> dict[str, Any] | None:
    """Return the bracket of the study's own forecast (law with a floor above, straight line below)."""
    if not isinstance(fitted.law, AdditiveLaw):
        return None
    try:
        made = forecast_optimum(table, fitted.law, flops)
    except FitError:  # too few runs on its rungs; the calibrated forecast stands without it
        return None
    return {name: getattr(made, name) for name in ("loss", "low", "high", "established")} | {
        "sources": dict(made.sources),
        "reasons": list(made.reasons),
    }


def _summary(cases: Sequence[Hindcast]) -> dict[str, Any]:
    errors = 100 * np.array([case.error for case in cases])
    raw_errors = np.array([100 * math.log(case.raw_predicted / case.actual) for case in cases])
    step = max(1, math.ceil(len(cases) / _SHOWN_CASES))
    shown = sorted(cases, key=lambda case: case.decades)[::step]
    return {
        "level": FORECAST_LEVEL,
        "n_cuts": len({case.cut_flops for case in cases}),
        "n_cases": len(cases),
        "covered": float(np.mean([case.is_inside for case in cases])),
        "covered_raw": float(np.mean([case.is_inside_raw for case in cases])),
        "mean_error_percent": float(np.abs(errors).mean()),
        "mean_error_percent_raw": float(np.abs(raw_errors).mean()),
        "bias_percent": float(np.median(errors)),
        "half_width_percent": float(np.median([50 * math.log(case.high / case.low) for case in cases])),
        "half_width_percent_raw": float(np.median([50 * math.log(case.raw_high / case.raw_low) for case in cases])),
        "cases": [
            {
                "decades": case.decades,
                "error_percent": 100 * case.error,
                "low_percent": 100 * math.log(case.low / case.predicted),
                "high_percent": 100 * math.log(case.high / case.predicted),
                "raw_error_percent": 100 * math.log(case.raw_predicted / case.actual),
                "raw_half_percent": 50 * math.log(case.raw_high / case.raw_low),
                "cut_flops": case.cut_flops,
                "flops": case.cut_flops * 10**case.decades,
                "params": case.params,
            }
            for case in shown
        ],
    }


def spread_evenly(count: int, most: int) -> npt.NDArray[np.int64]:
    """Return up to `most` places out of `count`, evenly spread, first and last among them."""
    return np.unique(np.round(np.linspace(0, count - 1, min(count, most))).astype(np.int64))
