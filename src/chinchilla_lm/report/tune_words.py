"""What a tuning says in plain sentences: numbers with their units, the verdict, tiles, how to load it, the words.

From the records that `tune_record` reads, alone. Sentences are plain text; whoever prints them escapes them.
A metric between 0 and 1 is written in per cent, a difference of two of them in points (of a hundred).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from chinchilla_lm.core.units import format_bytes, format_count, format_seconds
from chinchilla_lm.report.rundir import is_number
from chinchilla_lm.report.tune_record import TuneRun

Verdict = Literal["better", "worse", "open", "alone"]

_NAMES = {
    "f1": "F1",
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "example_f1": "F1 of a row",
    "partial_f1": "partial F1",
    "type_f1": "type F1",
    "exact_f1": "boundary F1",
    "bleu": "BLEU",
    "chrf": "chrF",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "rouge_l": "ROUGE-L",
    "rouge_lsum": "ROUGE-Lsum",
    "mcc": "Matthews correlation",
    "ece": "calibration error",
    "nll": "log loss",
    "brier": "Brier score",
}
# Metrics that are no share of a whole, even where a value happens to lie between 0 and 1.
_OWN_UNIT = ("bleu", "chrf", "ter", "perplexity", "loss", "nll", "brier", "bits_per_byte", "mcc", "length")
_METHODS = {
    "full": "full fine-tuning",
    "head": "training only its head",
    "top-k": "training its top blocks",
    "gradual": "gradual unfreezing",
    "pattern": "training chosen parameters",
    "lora": "LoRA",
    "prompt": "prompt tuning",
    "prefix": "prefix tuning",
    "ia3": "IA3",
    "peft": "a tuner of peft",
    "bitfit": "BitFit",
}
GLOSSARY: tuple[tuple[str, str], ...] = (
    (
        "Before",
        "The untouched model on the same rows, asked by a prompt, without an example. Where a task has no such form "
        "(a head must be trained first), there is no before, and the page says so instead of inventing one.",
    ),
    (
        "Interval",
        "How far the number would move if other rows of the same kind had been drawn: the rows are drawn again with "
        "replacement, thousands of times. It knows nothing of other seeds, other prompts or other kinds of text.",
    ),
    (
        "Paired test",
        "Before and after are measured on the same rows, so the rows are drawn again together. p is how often a "
        "difference this large would appear if tuning had changed nothing. McNemar's test asks the same of the rows "
        "that only one of the two gets right.",
    ),
    (
        "Best step",
        "The checkpoint with the best metric on the validation rows is the one that is kept and measured on the test "
        "rows. The test rows choose nothing.",
    ),
    (
        "Calibration error",
        "How far the stated probability of the answer is from how often it is right, averaged over rows: 0 is honest.",
    ),
    ("F1", "The harmonic mean of precision (what share of the answers is right) and recall (what share is found)."),
    ("Macro F1", "The mean of the classes' F1: every class counts the same, however rare."),
)


@dataclass(frozen=True, kw_only=True)
class Headline:
    """The tuning in at most four sentences, and what may be claimed of it."""

    sentences: tuple[str, ...]
    verdict: Verdict


def headline(run: TuneRun) -> Headline:
    """Say what was done, the metric before and after, and whether the rows can tell the two apart."""
    metric, after, before = run.metric, run.value("after"), run.value("before")
    rows = run.rows("train")
    done = f"{model_name(run)} after {method_words(run)} on {rows:,} rows" if rows else f"{model_name(run)}, tuned"
    where = f"{metric_name(metric)} on {tested_words(run)}"
    if after is None:
        return Headline(sentences=(f"{done}: {where} is not recorded.",), verdict="alone")
    if before is None:
        spread = _spread(run, "after")
        why = run.word("before_reason") or "The untouched model has no answer to this task by prompt."
        return Headline(sentences=(f"{done}: {where} is {write(metric, after)}{spread}.", why), verdict="alone")
    verdict = verdict_of(run)
    first = f"{done}: {where} went from {write(metric, before)} to {write(metric, after)}."
    goes_on = (before_sentence(run),) if run.table("continual") else ()
    return Headline(sentences=(first, _difference_sentence(run, verdict), *goes_on), verdict=verdict)


def before_sentence(run: TuneRun) -> str:
    """Say what "before" is; empty where there is none."""
    if run.value("before") is None:
        return ""
    if run.table("continual"):
        return "Before is the tuned model that this run goes on from, on the same rows."
    return f"Before is the untouched {model_name(run)} on the same rows, asked by a prompt."


def verdict_of(run: TuneRun) -> Verdict:
    """Say better or worse only where the interval of the paired difference leaves out 0."""
    difference = difference_of(run)
    if difference is None:
        return "alone"
    paired = run.table("paired")
    low, high = paired.get("low"), paired.get("high")
    if not (is_number(low) and is_number(high)) or low <= 0 <= high:
        return "open"
    is_up = difference > 0
    return "better" if is_up == higher_is_better(run) else "worse"


def difference_of(run: TuneRun) -> float | None:
    """Return after less before of the primary metric."""
    before, after = run.value("before"), run.value("after")
    return None if before is None or after is None else after - before


def higher_is_better(run: TuneRun) -> bool:
    """Say which way the primary metric improves."""
    return run.record.get("higher_is_better") is not False


def is_share(metric: str, *values: float | None) -> bool:
    """Say whether a metric is written in per cent."""
    name = metric.lower()
    if any(name == own or name.startswith(own + "_") or name.endswith("_" + own) for own in _OWN_UNIT):
        return False
    return all(value is None or -1e-9 <= value <= 1 + 1e-9 for value in values)


def write(metric: str, value: float | None) -> str:
    """Write a metric's value for people: `78.0 %`, or the library's own number."""
    if value is None:
        return "–"
    return f"{100 * value:.1f} %" if is_share(metric, value) else _plain(value)


def write_change(metric: str, change: float | None) -> str:
    """Write a difference of a metric: `+12.3 points` of a hundred, or in the library's own unit."""
    if change is None:
        return "–"
    return f"{100 * change:+.1f} points" if is_share(metric) else f"{change:+.2f}"


def write_points(metric: str, change: float | None) -> str:
    """Write a difference without its unit, for a column that names it: `+12.3`."""
    return write_change(metric, change).removesuffix(" points")


def write_p(value: Any) -> str:
    """Write a p-value: `p < 0.001`, `p = 0.034`."""
    if not is_number(value):
        return ""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}" if value < 0.1 else f"p = {value:.2f}"


def change_words(run: TuneRun) -> tuple[str, str]:
    """Return what rows turned: right and wrong where a row is one or the other, else better and worse."""
    return ("right", "wrong") if run.table("paired", "mcnemar") else ("better", "worse")


def metric_name(metric: str) -> str:
    """Return a metric's name as people write it."""
    return _NAMES.get(metric, metric.replace("_", " "))


def method_words(run: TuneRun) -> str:
    """Return the method as a noun."""
    method = run.word("method")
    return _METHODS.get(method, method or "tuning")


def model_name(run: TuneRun) -> str:
    """Return the last part of the model's path."""
    return run.word("model").rstrip("/").rpartition("/")[2] or "The model"


def tested_words(run: TuneRun) -> str:
    """Return which rows were measured: `300 test rows`."""
    split = evaluated_on(run)
    rows = run.rows(split)
    return f"{rows:,} {split} rows" if rows else f"the {split} rows"


def evaluated_on(run: TuneRun) -> str:
    """Return the split that before and after were measured on."""
    return run.word("evaluated_on") or ("test" if run.rows("test") else "validation")


def level_of(table: Mapping[str, Any]) -> str:
    """Return an interval's level: `95 %`."""
    level = table.get("level")
    return f"{100 * level:.3g} %" if is_number(level) else "95 %"


def tiles(run: TuneRun) -> list[tuple[str, str, str]]:
    """Return the numbers at a glance: (name, value, remark)."""
    metric, cost = run.metric, run.table("cost")
    found: list[tuple[str, str, str]] = []
    for stage in ("before", "after"):
        if run.value(stage) is not None:
            remark = _spread(run, stage).strip(" ()")
            found.append((f"{metric_name(metric)} {stage}", write(metric, run.value(stage)), remark))
    if difference_of(run) is not None:
        found.append(
            ("Difference", write_change(metric, difference_of(run)), write_p(run.table("paired").get("p_value")))
        )
    if run.rows("train"):
        available = run.table("rows", "train").get("available")
        remark = (
            f"of {available:,}" if is_number(available) and available > (run.rows("train") or 0) else "all there are"
        )
        found.append(("Rows trained on", f"{run.rows('train'):,}", remark))
    if is_number(cost.get("train_seconds")):
        counts = [f"{cost[name]:,} {name}" for name in ("updates", "tokens") if is_number(cost.get(name))]
        remark = ", ".join(counts)
        found.append(("Training time", format_seconds(float(cost["train_seconds"])), remark))
    if is_number(cost.get("peak_rss_bytes")):
        found.append(("Peak memory", format_bytes(int(cost["peak_rss_bytes"])), "of the process"))
    learned, total = cost.get("trainable_parameters"), cost.get("parameters")
    if is_number(learned):
        remark = f"{100 * learned / total:.3g} % of {format_count(total)}" if is_number(total) and total > 0 else ""
        found.append(("Parameters learned", format_count(learned), remark))
    return found


def notes(run: TuneRun) -> tuple[str, ...]:
    """Say what a reader must know before the numbers: problems of the records, and where the claim is weak."""
    said = [*run.problems, *(str(each) for each in _sequence(run.record.get("warnings")))]
    if run.table("continual").get("is_accepted") is False:
        said.append(str(run.table("continual").get("sentence") or "The gate rejected the model."))
    if run.table("best").get("step") == 0:
        said.append("No update was better on the validation rows than none, so the weights before the first were kept.")
    if evaluated_on(run) != "test":
        said.append(
            "There was no test file: the numbers are of the validation rows, which also chose the best step, so they "
            "flatter. Give --test to know."
        )
    if verdict_of(run) == "open":
        said.append(
            "The interval of the difference holds 0: these rows cannot tell before from after. More rows narrow it."
        )
    if verdict_of(run) == "worse":
        said.append("Tuning made it worse. Try a smaller learning rate, more rows, or keep the untouched model.")
    return tuple(said)


def data_sentence(run: TuneRun) -> str:
    """Say what twice the labels would bring; empty where no law was fitted."""
    law = run.table("learning_curve")
    gain, doubled = law.get("gain"), law.get("doubled")
    if not isinstance(gain, Mapping) or not isinstance(doubled, Mapping):
        return ""
    numbers = [gain.get(name) for name in ("value", "low", "high")]
    if not all(is_number(number) for number in numbers) or not is_number(doubled.get("rows")):
        return ""
    change, low, high = (float(number) for number in numbers if is_number(number))
    ends = f"{level_of(law)}: {write_points(run.metric, low)} to {write_points(run.metric, high)}"
    return f"Twice the rows ({doubled['rows']:,}) should bring {write_change(run.metric, change)} ({ends})."


def added_sentence(run: TuneRun) -> str:
    """Say which training rows were added to the real ones; empty where none were."""
    table = run.table("augmentation")
    added, real = table.get("added"), table.get("real")
    if not (is_number(added) and is_number(real)):
        return ""
    by_synonyms = " with slips and synonyms" if table.get("synonyms") else " with slips"
    how = {
        "perturb": f"are copies of them{by_synonyms}",
        "generate": "were written by the model for a label and kept where a classifier of the real rows agreed",
    }.get(str(table.get("kind")), "were added")
    offered = table.get("offered")
    out_of = f", of {offered:,} offered" if is_number(offered) and offered > added else ""
    return (
        f"Data used: {real:,} real training rows, and {added:,} that {how}{out_of}; validation and test rows are real."
    )


def _difference_sentence(run: TuneRun, verdict: Verdict) -> str:
    metric, paired = run.metric, run.table("paired")
    change = write_change(metric, difference_of(run))
    low, high = paired.get("low"), paired.get("high")
    if not (is_number(low) and is_number(high)):
        return f"That is {change}; no paired test was recorded."
    ends = f"{level_of(paired)}: {write_points(metric, low)} to {write_points(metric, high)}"
    p_text = write_p(paired.get("p_value"))
    said = {
        "better": "better than before.",
        "worse": "worse than before.",
        "open": "no difference that these rows can show.",
    }[verdict]
    return f"That is {change} ({ends}{', ' + p_text if p_text else ''}): {said}"


def _spread(run: TuneRun, stage: str) -> str:
    ends = run.interval(stage)
    if ends is None:
        return ""
    metric = run.metric
    low = write(metric, ends[0]).removesuffix(" %") if is_share(metric, *ends) else write(metric, ends[0])
    return f" ({level_of(run.table('intervals', stage))}: {low} to {write(metric, ends[1])})"


def _plain(value: float) -> str:
    return f"{value:.4g}" if abs(value) >= 1000 or 0 < abs(value) < 0.01 else f"{value:.2f}"


def _sequence(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []
