"""What a fit says in plain sentences: headline, tiles, the law's formula, its constants, and the words of its page.

From the record of `laws.findings.find` alone. Sentences are plain text; whoever prints them escapes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from chinchilla_lm.core.units import format_count, format_flops
from chinchilla_lm.report.glossary import GLOSSARY
from chinchilla_lm.report.rundir import is_number

Record = Mapping[str, Any]

FORMULAS = {
    "additive": Markup(
        "<var>L</var>(<var>N</var>, <var>D</var>) = <var>E</var> + <var>A</var> / <var>N</var><sup>α</sup> + "
        "<var>B</var> / <var>D</var><sup>β</sup>"
    ),
    "coupled": Markup(
        "<var>L</var>(<var>N</var>, <var>D</var>) = <var>E</var> + (<var>A</var> / <var>N</var><sup>α</sup> + "
        "<var>B</var> / <var>D</var><sup>β</sup>)<sup>κ</sup>"
    ),
    "kaplan": Markup(
        "<var>L</var>(<var>N</var>, <var>D</var>) = ((<var>N</var><sub>c</sub> / <var>N</var>)"
        "<sup>α<sub>N</sub>/α<sub>D</sub></sup> + <var>D</var><sub>c</sub> / <var>D</var>)<sup>α<sub>D</sub></sup>"
    ),
    "overtraining": Markup(
        "<var>L</var>(<var>C</var>, <var>M</var>) = <var>E</var> + (<var>s</var> <var>M</var><sup>η</sup> + "
        "<var>t</var> <var>M</var><sup>−η</sup>) <var>C</var><sup>−η</sup>, "
        "with <var>M</var> = <var>D</var>/<var>N</var>"
    ),
    "repetition": Markup(
        "<var>L</var> = <var>E</var> + <var>A</var> / <var>N′</var><sup>α</sup> + <var>B</var> / <var>D′</var>"
        "<sup>β</sup>, with what repeated text leaves of <var>N</var> and <var>D</var>"
    ),
    "allocation": Markup("<var>N</var>* = <var>c</var> <var>C</var><sup><var>a</var></sup>"),
}
_SYMBOLS = {"alpha": "α", "beta": "β", "kappa": "κ", "eta": "η", "size_scale": "s", "tokens_scale": "t"}
_MEANINGS = {
    "E": "the loss that endless size and endless text would leave",
    "A": "how much a finite size costs",
    "alpha": "how fast that falls with size",
    "B": "how much finite text costs",
    "beta": "how fast that falls with text",
    "kappa": "how the two costs combine; 1 adds them",
    "alpha_N": "how fast the loss falls with size alone",
    "alpha_D": "how fast it falls with text alone",
    "N_c": "the size at which the size's share would be one nat",
    "D_c": "the text at which the text's share would be one nat",
    "size_scale": "how much a finite size costs",
    "tokens_scale": "how much finite text costs",
    "eta": "how fast both fall with compute",
    "repeated_tokens": "after so many repeats a token taught 63 % of what repeats can",
    "excess_params": "the same for parameters beyond what the text fills",
    "coefficient": "the best size at one FLOP, by the line",
    "exponent": "its slope, the same as a",
    "a": "the best size grows as compute to this power",
    "b": "the best amount of text grows as compute to this power",
}
_NOT_CONSTANTS = ("objective", "delta", "noise_sd", "interval_level", "smallest_flops", "largest_flops", "exponent")
_SHARED_WORDS = ("Loss, nats per token", "N, parameters", "C, compute, FLOPs", "IsoFLOP curve", "E, A, B, alpha, beta")
FIT_GLOSSARY: tuple[tuple[str, str], ...] = (
    *(entry for entry in GLOSSARY if entry[0] in _SHARED_WORDS),
    (
        "Raw interval",
        "How far an answer moves when the noise of the runs is drawn anew: by profile likelihood, the delta method or "
        "a bootstrap. It takes the form of the law for granted, and on most public sweeps such intervals held far "
        "fewer of the losses ten times further out than they promised.",
    ),
    (
        "Calibrated interval",
        "As wide as forecasts of this kind have erred, learnt from public sweeps and from this table's own larger "
        "runs, hidden and predicted by its smaller ones. It widens with the distance from the runs.",
    ),
    (
        "Back-test",
        "The larger runs are hidden, the smaller ones fitted, and the hidden ones predicted. If that misses, a "
        "forecast beyond all runs may miss as well.",
    ),
    (
        "Drift",
        "A law that holds everywhere has the same exponents whether it is fitted to small runs or to all of them. "
        "Where they move by more than their errors, the form bends, beyond the runs too.",
    ),
    (
        "Approach 1, 2, 3",
        "The three ways of Hoffmann et al. 2022: the envelope of training curves, parabolas through runs of equal "
        "compute, and the parametric law. They share runs, so agreement proves little and disagreement much.",
    ),
)


def headline(record: Record) -> tuple[str, ...]:
    """Return the fit in at most four sentences."""
    a = record.get("a")
    interval = (record.get("intervals") or {}).get("a") or {}
    spread = ""
    if is_number(interval.get("low")) and is_number(interval.get("high")):
        spread = f" (95 %: {interval['low']:.3f} to {interval['high']:.3f})"
    sentences = [f"In {record['n_runs']} runs the best size grows as compute to the power {a:.3f}{spread}."]
    ahead = record.get("forecast")
    if ahead:
        sentences.append(
            f"A model of {format_count(ahead['params'])} parameters on {format_count(ahead['tokens'])} tokens should "
            f"reach a loss of {ahead['loss']:.3f}, with 90 % between {ahead['low']:.3f} and {ahead['high']:.3f}."
        )
    elif record.get("optima"):
        one = _next_optimum(record)
        said = f"For {format_flops(one['flops'])} it is {format_count(one['params'])} parameters"
        tokens = f"on {format_count(one['tokens'])} tokens"
        calibrated = one["calibrated"]
        loss = (
            f"{one['loss']:.3f}"
            if calibrated is None
            else f"{calibrated['loss']:.3f} ({calibrated['low']:.3f} to {calibrated['high']:.3f})"
        )
        sentences.append(f"{said} {tokens}, for a loss of {loss}.")
    count = len(record.get("warnings") or [])
    if count:
        sentences.append(f"{count} warning{'s' if count > 1 else ''} below.")
    return tuple(sentences)


def tiles(record: Record, write: Mapping[str, Any]) -> list[tuple[str, Markup, str]]:
    """Return the numbers at a glance: (name, value, remark).

    Args:
        record: of the fit.
        write: the filters of the page, by name.
    """
    found = [
        ("Runs", Markup("{}").format(record["n_runs"]), f"{_short(record['smallest_flops'])} to "
         f"{_short(record['largest_flops'])} FLOPs"),
        ("Exponent a", write["digits"](record.get("a")), f"method {record['method']}"),
    ]  # fmt: skip
    if is_number(record.get("E")):
        found.append(("Floor E", write["loss"](record["E"]), "nats per token"))
    if is_number(record.get("noise_sd")):
        found.append(("Noise of a run", write["percent"](100 * record["noise_sd"]), "of its loss"))
    if record.get("optima"):
        one = _next_optimum(record)
        remark = f"for {format_flops(one['flops'])}, {one['tokens_per_param']:.3g} tokens each"
        found.append(("Best size", write["count"](one["params"]), remark))
        calibrated = one["calibrated"]
        if calibrated is not None:
            remark = f"{calibrated['low']:.3f} to {calibrated['high']:.3f}"
            found.append(("Its loss", write["loss"](calibrated["loss"]), remark))
    rolling = (record.get("backtest") or {}).get("rolling")
    if rolling:
        held = f"raw {100 * rolling['covered_raw']:.0f} %, calibrated {100 * rolling['covered']:.0f} % held"
        found.append(("Back-test", write["percent"](rolling["mean_error_percent"]), held))
    form = next((s for s in (record.get("comparison") or {}).get("forms", ()) if s["form"] == record["form"]), None)
    if form is not None:
        missed = form["backtest_percent"]
        remark = f"misses hidden runs by {missed:.2g} %" if is_number(missed) else ""
        found.append(("Form", Markup("{}").format(form["form"]), remark))
    return found


def constants(record: Record) -> list[dict[str, Any]]:
    """Return the rows of the constants' table: symbol, value, ends and error where known, meaning."""
    names = [name for name, value in record.items() if is_constant(name, value)]
    intervals = record.get("intervals") or {}
    rows = []
    for name in [*(name for name in names if name not in "ab"), *(name for name in "ab" if name in names)]:
        interval = intervals.get(name)
        rows.append(
            {
                "symbol": _SYMBOLS.get(name, name),
                "value": record[name],
                "has_interval": interval is not None,
                **{key: (interval or {}).get(key) for key in ("low", "high", "se")},
                "meaning": _MEANINGS.get(name, ""),
            }
        )
    return rows


def is_constant(name: str, value: object) -> bool:
    """Say whether an entry of the record is a constant of the law."""
    return isinstance(value, float) and name not in _NOT_CONSTANTS


def _next_optimum(record: Record) -> Mapping[str, Any]:
    """Return the optimum of the first budget clearly above the runs, or the last one."""
    return next((one for one in record["optima"] if one["flops"] > 3 * record["largest_flops"]), record["optima"][-1])


def _short(flops: float) -> str:
    return format_flops(flops).removesuffix(" FLOPs")
