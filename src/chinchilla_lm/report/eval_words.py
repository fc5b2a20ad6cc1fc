"""An evaluation in words, and its figures: what a model knows, against a guess and against a second model."""

from __future__ import annotations

from collections.abc import Sequence

from chinchilla_lm.report.chart import Chart
from chinchilla_lm.report.dots import Dot, Series, Words, dots_chart
from chinchilla_lm.report.eval_rows import (
    PairRow,
    SuiteRow,
    TextRow,
    contamination_rows,
    harness_rows,
    model_name,
    other_name,
    pair_rows,
    suite_rows,
    text_rows,
)
from chinchilla_lm.report.points import counted
from chinchilla_lm.report.record_parts import Record

_MOST_NAMED = 4
"""Suites that a sentence names; more are counted, and the table names them."""
_GLOSSARY: tuple[tuple[str, str, str], ...] = (
    (
        "suites",
        "acc, acc_norm, acc_bytes",
        "Which share of the items the model has right, when the likeliest choice counts as its answer. acc takes the "
        "probability of the whole choice, acc_norm its logarithm per character, acc_bytes per byte, so that long "
        "choices are not at a disadvantage. Which one is quoted is what the field quotes for that suite.",
    ),
    (
        "suites",
        "Chance",
        "What a guess among the choices has right. A suite without choices, such as a word to be written, has none.",
    ),
    (
        "intervals",
        "95 % interval",
        "The value ± 1.96 standard errors over items or documents: where it would lie on others of the same kind. It "
        "does not hold what another wording would change.",
    ),
    (
        "pairs",
        "Paired difference, p",
        "Both models answered the same items, so that items which are hard for both cancel. p is McNemar's: how often "
        "two equal models would part as far on the items that only one of them has right. Each suite is tested for "
        "itself; of twenty suites without any difference, one has p < 0.05.",
    ),
    (
        "contamination",
        "Contamination",
        "Items of which a run of tokens stands in the training text. Those may have been learned by heart. Items "
        "too short for such a run are not known to be clean.",
    ),
    (
        "texts",
        "Bits per byte",
        "How surprised the model is by text, shared out over its bytes. Lower is better, 8 is no compression, and it "
        "can be compared across tokenizers, which loss per token cannot.",
    ),
)


def headline(record: Record) -> list[str]:
    """Return the reading of the record, the model against a guess first, then against the second model, then text."""
    model, suites = model_name(record), suite_rows(record)
    said = [_suites_sentence(model, suites)] if suites else []
    pairs = pair_rows(record)
    if pairs:
        said.append(_pairs_sentence(other_name(record), pairs))
    found = [(name, number) for name, number, _, _, _ in contamination_rows(record) if number]
    if found:
        named = ", ".join(f"{number} of {name}" for name, number in found)
        said.append(f"Items that may have been learned by heart: {named}.")
    texts = text_rows(record)
    if texts:
        said.append(_text_sentence(model, texts))
    tasks = harness_rows(record)
    if not said and tasks:
        task, metric, value, _, _ = tasks[0]
        said.append(f"{model} reaches {value:.4g} in {metric} of {task}, by lm-evaluation-harness.")
    return said


def glossary(record: Record) -> list[tuple[str, str]]:
    """Return the words that this record's page uses, with their meanings."""
    found = {
        "intervals": any(row.interval for row in (*suite_rows(record), *pair_rows(record), *text_rows(record))),
        "suites": bool(suite_rows(record)),
        "pairs": bool(pair_rows(record)),
        "contamination": bool(contamination_rows(record)),
        "texts": bool(text_rows(record)),
    }
    return [(word, meaning) for part, word, meaning in _GLOSSARY if found[part]]


def eval_charts(record: Record) -> list[Chart]:
    """Return every figure that the record holds, in the page's order."""
    drawn = (suites_chart(record), differences_chart(record), text_chart(record))
    return [chart for chart in drawn if chart is not None]


def suites_chart(record: Record) -> Chart | None:
    """Draw each suite's value with its interval, a guess, and the second model."""
    rows, model, other = suite_rows(record), model_name(record), other_name(record)
    second = {pair.name: pair.value for pair in pair_rows(record)}
    own, guesses, others = [], [], []
    for place, row in enumerate(rows):
        low, high = (100 * end for end in row.interval) if row.interval else (None, None)
        text = f"{model} on {row.name}: {percent(row.value)}"
        own.append(Dot(row=place, value=100 * row.value, low=low, high=high, text=text))
        if row.chance is not None:
            guesses.append(Dot(row=place, value=100 * row.chance, text=f"a guess on {row.name}: {percent(row.chance)}"))
        value = second.get(row.name)
        if value is not None:
            others.append(Dot(row=place, value=100 * value, text=f"{other} on {row.name}: {percent(value)}"))
    above = sum(row.is_above_chance is True for row in rows)
    known = sum(row.is_above_chance is not None for row in rows)
    summary = f"{counted(len(rows), 'suite')}." + (f" Above a guess: {above} of {known}." if known else "")
    series = (
        Series(label="a guess", colour="quiet", dots=tuple(guesses), marker="diamond", is_hollow=True, size=4.0),
        Series(label=other, colour="predicted", dots=tuple(others), marker="square", shift=-0.2, size=4.5),
        Series(label=f"{model}, 95 % interval", colour="actual", dots=tuple(own), shift=0.2 if others else 0.0),
    )
    words = Words(name="suites", title="Right answers", summary=summary)
    return dots_chart(words, [row.name for row in rows], series, "right answers (%)", is_percent=True)


def differences_chart(record: Record) -> Chart | None:
    """Draw the second model's values less the first's, with their paired intervals."""
    pairs, other = pair_rows(record), other_name(record)
    dots = []
    for place, pair in enumerate(pairs):
        low, high = (100 * end for end in pair.interval) if pair.interval else (None, None)
        text = f"{pair.name}: {other} {points(pair.difference)} points"
        dots.append(Dot(row=place, value=100 * pair.difference, low=low, high=high, text=text))
    summary = f"Right of the line {other} is better, left of it {model_name(record)}, on the same items."
    words = Words(name="differences", title=f"{other} less {model_name(record)}", summary=summary)
    series = Series(label="difference, paired 95 % interval", colour="predicted", dots=tuple(dots))
    return dots_chart(words, [pair.name for pair in pairs], (series,), "points of a hundred", at=0.0)


def text_chart(record: Record) -> Chart | None:
    """Draw bits per byte by domain; None for one alone."""
    rows = text_rows(record)
    if len(rows) < 2:
        return None
    dots = []
    for place, row in enumerate(rows):
        low, high = row.interval or (None, None)
        text = f"{row.label}: {row.bits_per_byte:.4f} bits per byte"
        dots.append(Dot(row=place, value=row.bits_per_byte, low=low, high=high, text=text))
    words = Words(name="domains", title="Bits per byte by source", summary="Lower is better.")
    series = Series(label="95 % interval over documents", colour="law", dots=tuple(dots))
    return dots_chart(words, [row.label for row in rows], (series,), "bits per byte")


def percent(share: float) -> str:
    """Write a share: `63.2 %`."""
    return f"{100 * share:.1f} %"


def points(difference: float) -> str:
    """Write a difference of shares in points of a hundred: `+1.5`."""
    return f"{100 * difference:+.1f}"


def _suites_sentence(model: str, rows: Sequence[SuiteRow]) -> str:
    if len(rows) == 1:
        row = rows[0]
        items = f" of {counted(row.items, 'item')}" if row.items is not None else ""
        ends = f" (95 % interval {100 * row.interval[0]:.1f} to {100 * row.interval[1]:.1f})" if row.interval else ""
        said = f"{model} has {percent(row.value)}{items} of {row.name} right{ends}"
        if row.chance is None or row.is_above_chance is None:
            return said + "."
        sure = "more" if row.is_above_chance else "not clearly more"
        return f"{said}, {sure} than the {percent(row.chance)} of a guess."
    groups = {True: "above a guess on", False: "not clearly above a guess on", None: "without a verdict on"}
    said = [f"{words} {_listed([row.name for row in rows if row.is_above_chance is state])}"
            for state, words in groups.items() if any(row.is_above_chance is state for row in rows)]  # fmt: skip
    return f"{model} is {'; '.join(said)}."


def _pairs_sentence(other: str, pairs: Sequence[PairRow]) -> str:
    groups = {"better": "better on", "worse": "worse on", "open": "not to be told apart on"}
    said = [f"{words} {_listed([pair.name for pair in pairs if pair.verdict == verdict])}"
            for verdict, words in groups.items() if any(pair.verdict == verdict for pair in pairs)]  # fmt: skip
    return f"{other} is {'; '.join(said)}."


def _text_sentence(model: str, rows: Sequence[TextRow]) -> str:
    first = next((row for row in rows if row.is_whole), rows[0])
    spread = f" ± {first.error:.4f}" if first.error is not None else ""
    where = "the text" if first.is_whole else first.label
    said = f"{model} needs {first.bits_per_byte:.4f}{spread} bits for a byte of {where}"
    parts = sorted((row for row in rows if not row.is_whole), key=lambda row: row.bits_per_byte)
    if len(parts) > 1:
        said += f": least in {parts[0].label}, most in {parts[-1].label}"
    return said + "."


def _listed(names: Sequence[str]) -> str:
    if len(names) > _MOST_NAMED:
        return f"{len(names)} suites"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
