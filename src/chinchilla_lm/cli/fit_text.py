"""What `chinchilla fit` prints for people: the record of `laws.findings.find` in aligned lines, computing nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from chinchilla_lm.core.units import format_count, format_flops

_FORMULAS = {
    "additive": "L = E + A/N^alpha + B/D^beta",
    "coupled": "L = E + (A/N^alpha + B/D^beta)^kappa",
    "kaplan": "L = ((N_c/N)^(alpha_N/alpha_D) + D_c/D)^alpha_D",
    "overtraining": "L = E + (size_scale M^eta + tokens_scale M^-eta) C^-eta, with M = D/N",
    "repetition": "L = E + A/N'^alpha + B/D'^beta, with N' and D' what repeated text leaves of N and D",
    "allocation": "N* = coefficient C^a",
}
_APPROACHES = {"envelope": "1 envelope", "isoflop": "2 IsoFLOP", "parametric": "3 parametric"}
_SHOWN_WARNINGS = 12


def fit_lines(record: Mapping[str, Any]) -> list[str]:
    """Return the lines; those that begin with "warning: " are warnings.

    Args:
        record: of `find_law`, with `source`.
    """
    lines = [*_pairs(_heading(record)), "", *_constants(record)]
    for part in (_optima(record), _approaches(record), _forms(record), _pairs(_checks(record)), _pairs(_tasks(record))):
        if part:
            lines += ["", *part]
    warnings = record.get("warnings") or []
    shown = [f"warning: {text}" for text in warnings[:_SHOWN_WARNINGS]]
    if len(warnings) > _SHOWN_WARNINGS:
        shown.append(f"warning: and {len(warnings) - _SHOWN_WARNINGS} more; --json and --report list all")
    return lines + (["", *shown] if shown else [])


def constants_of(record: Mapping[str, Any]) -> list[str]:
    """Return the names of the law's constants in the record's order, a and b last."""
    from chinchilla_lm.report.fit_words import is_constant  # cost: numpy

    first = [name for name, value in record.items() if is_constant(name, value) and name not in ("a", "b")]
    return [*first, *(name for name in ("a", "b") if isinstance(record.get(name), float))]


def _heading(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    span = f"{_flops(record['smallest_flops'])} to {_flops(record['largest_flops'])}"
    yield "runs", f"{record['n_runs']} of {record['source']}, {span} FLOPs"
    yield "law", f"{_FORMULAS[record['form']]}  ({record['form']}; N: {record['params_convention']} parameters)"
    if "objective" in record:
        loss = {"huber": "Huber", "lad": "absolute", "ls": "squared"}[record["objective_loss"]]
        turn = f" at delta {record['delta']:.3g}" if record["objective_loss"] == "huber" else ""
        noise = f"; noise of a run {_percent(record['noise_sd'])}" if record["noise_sd"] else ""
        yield "fit", f"{record['status'].replace('_', ' ')}; {loss} sum {record['objective']:.6e}{turn}{noise}"


def _tasks(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The laws of suites whose columns the table has."""
    for name, law in (record.get("tasks") or {}).items():
        best = min(law["runs"], key=lambda run: run["loss"])
        yield (
            f"task {name}",
            f"a law of {len(law['runs'])} runs of loss {law['lowest_loss']:.3f} to {law['highest_loss']:.3f}; the best "
            f"is right in {100 * best['accuracy']:.1f} %, chance {100 * law['chance']:.1f}: plan --law forecasts it",
        )


def _constants(record: Mapping[str, Any]) -> list[str]:
    intervals = record.get("intervals") or {}
    how = record.get("interval_method", "bootstrap")
    level = f"{100 * record.get('interval_level', 0.95):.3g} %"
    rows = [("constant", "value", f"{level} ({how})" if intervals else "", "error" if intervals else "")]
    for name in constants_of(record):
        interval = intervals.get(name)
        spread, error = "", ""
        if interval is not None and interval["low"] == interval["high"]:
            spread = "fixed by the form"
        elif interval is not None:
            spread = f"{_end(interval['low'], _digits)} to {_end(interval['high'], _digits)}"
            error = _error(interval["se"], record[name])
        rows.append((name, f"{record[name]:.6g}", spread, error))
    return _columns(rows)


def _optima(record: Mapping[str, Any]) -> list[str]:
    optima = record.get("optima") or []
    if not optima:
        return []
    rows = [
        (
            "best for",
            "parameters",
            "95 %",
            "tokens",
            "95 %",
            "a param.",
            "law's loss",
            "95 %",
            "forecast",
            "calibrated 90 %",
        )
    ]
    for one in optima:
        ranges = one["intervals"]
        calibrated = one["calibrated"]
        rows.append(
            (
                f"{_flops(one['flops'])} FLOPs",
                format_count(one["params"]),
                _range(ranges.get("params"), format_count),
                format_count(one["tokens"]),
                _range(ranges.get("tokens"), format_count),
                f"{one['tokens_per_param']:.3g}",
                f"{one['loss']:.3f}",
                _range(ranges.get("loss"), lambda loss: f"{loss:.3f}"),
                "" if calibrated is None else f"{calibrated['loss']:.3f}",
                "" if calibrated is None else f"{calibrated['low']:.3f} to {calibrated['high']:.3f}",
            )
        )
    return _columns(rows)


def _approaches(record: Mapping[str, Any]) -> list[str]:
    found = record.get("approaches")
    if not found:
        return []
    verdict = {True: "agree", False: "DISAGREE", None: ""}[found["agree"]]
    rows = [("approach", "a", "95 %", f"best size at {_flops(found['flops'])}", "95 %", verdict)]
    for answer in found["answers"]:
        rows.append(
            (
                _APPROACHES[answer["approach"]],
                f"{answer['a']:.4f}",
                _range(answer["a_interval"], _digits),
                format_count(answer["params"]),
                _range(answer["interval"], format_count),
                "",
            )
        )
    return _columns(rows)


def _forms(record: Mapping[str, Any]) -> list[str]:
    comparison = record.get("comparison")
    if not comparison:
        return []
    rows = [("form", "hidden runs missed by", "left-out budgets by", "AICc", "share")]
    for score in comparison["forms"]:
        rows.append(
            (
                score["form"] + (" *" if score["form"] == record["form"] else ""),
                _shown(score["backtest_percent"], "{:.2f} %"),
                _shown(score["left_out_percent"], "{:.2f} %"),
                _shown(score["aicc"], "{:.0f}"),
                _shown(score["weight"], "{:.2f}"),
            )
        )
    return _columns(rows)


def _checks(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if record["form"] == "allocation":
        part = record.get("isoflop") or record["envelope"]
        yield ("budgets", str(len(part["budgets"]))) if "budgets" in part else ("sizes", str(part["n_sizes"]))
    tested = record.get("backtest") or {}
    if "cut_flops" in tested:
        yield (
            "back-test",
            f"the {tested['n_predicted']} runs above {_flops(tested['cut_flops'])} FLOPs, hidden, are missed by "
            f"{tested['median_error_percent']:.2f} % (median), bias {tested['bias_percent']:+.2f} %",
        )
    rolling = tested.get("rolling")
    if rolling:
        yield (
            "",
            f"{rolling['n_cases']} predictions 3 to 100 times beyond their runs: 90 % intervals held "
            f"{100 * rolling['covered_raw']:.0f} % raw, {100 * rolling['covered']:.0f} % calibrated",
        )
    ahead = record.get("forecast")
    if ahead:
        sure = "" if ahead["established"] else ", not established: see the warnings"
        yield (
            "forecast",
            f"{ahead['loss']:.4f}, 90 %: {ahead['low']:.4f} to {ahead['high']:.4f} (calibrated), with "
            f"{format_count(ahead['params'])} parameters on {format_count(ahead['tokens'])} tokens, "
            f"{format_flops(ahead['flops'])}{sure}",
        )
        raw = ahead["raw"]
        yield "", f"{raw['loss']:.4f}, 90 %: {raw['low']:.4f} to {raw['high']:.4f} by the textbook (raw)"


def _pairs(pairs: Iterator[tuple[str, str]]) -> list[str]:
    listed = list(pairs)
    width = max((len(name) for name, _ in listed), default=0)
    return [f"{name:<{width}}  {text}" for name, text in listed]


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Align rows; columns that are empty throughout go."""
    kept = [place for place in range(len(rows[0])) if any(row[place] for row in rows)]
    widths = {place: max(len(row[place]) for row in rows) for place in kept}
    return ["  ".join(f"{row[place]:<{widths[place]}}" for place in kept).rstrip() for row in rows]


def _range(interval: Mapping[str, Any] | None, write: Callable[[float], str]) -> str:
    return "" if interval is None else f"{_end(interval['low'], write)} to {_end(interval['high'], write)}"


def _end(value: float | None, write: Callable[[float], str]) -> str:
    return "no limit" if value is None else write(value)


def _shown(value: float | None, pattern: str) -> str:
    return "-" if value is None else pattern.format(value)


def _digits(value: float) -> str:
    return f"{value:.4g}"


def _error(error: float | None, value: float) -> str:
    if error is None or not value:
        return ""
    return _percent(error / abs(value)) if error < 10 * abs(value) else "> 1000 %"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"


def _flops(flops: float) -> str:
    return format_flops(flops).removesuffix(" FLOPs")
