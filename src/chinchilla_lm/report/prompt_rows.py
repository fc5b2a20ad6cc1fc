"""What a record of `chinchilla prompt` holds, as rows: metrics, rules by draw, draws, classes, the search.

Record "prompt/1" (every part may be absent): {task, language, model, template, shots, rows, metric, metrics{},
spread{}, interval{metric: [low, high]}, per_draw[{draw, metrics{}, demonstrations[], rule, reason, by_rule{}}],
scoring[], labels[], per_class{label: {precision, recall, f1, support}}, first_prompt{text, choices[]}, cut_rows,
refused, search{items_scored, best, table[]}}.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from chinchilla_lm.report.record_parts import (
    Record,
    named_tables,
    number_of,
    numbers_of,
    path_name,
    table_of,
    tables_of,
    word_of,
)
from chinchilla_lm.report.rundir import is_number
from chinchilla_lm.report.tune_words import is_share

WRITTEN = "written"


@dataclass(frozen=True, kw_only=True)
class MetricRow:
    """A metric's mean over draws, its spread over them, and its interval over rows."""

    name: str
    mean: float
    spread: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True, kw_only=True)
class RuleRow:
    """A scoring rule: its accuracy in each draw (None where a draw lacks it), and the draws in which it answered."""

    name: str
    by_draw: tuple[float | None, ...]
    answered: tuple[int, ...]

    @property
    def values(self) -> list[float]:
        """The accuracies that there are."""
        return [value for value in self.by_draw if value is not None]

    @property
    def mean(self) -> float:
        """Over draws."""
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float | None:
        """Standard deviation over draws (n - 1); None for one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True, kw_only=True)
class DrawRow:
    """One draw: the rule that answered and why, the primary metric, and the numbers of its solved rows."""

    number: int
    rule: str
    value: float | None
    reason: str
    demonstrations: str


def primary(record: Record) -> str:
    """Return the primary metric's name, "" where no metric is recorded."""
    return word_of(record, "metric") or next(iter(numbers_of(record, "metrics")), "")


def metric_rows(record: Record) -> list[MetricRow]:
    """Return every metric, the primary first."""
    means, spreads = numbers_of(record, "metrics"), numbers_of(record, "spread")
    names = sorted(means, key=lambda name: name != primary(record))
    return [
        MetricRow(name=name, mean=means[name], spread=spreads.get(name), interval=_interval(record, name))
        for name in names
    ]


def rule_rows(record: Record) -> list[RuleRow]:
    """Return every rule that was scored, the best mean first."""
    draws = tables_of(record, "per_draw")
    scored = [numbers_of(draw, "by_rule") for draw in draws]
    names = dict.fromkeys(name for each in scored for name in each)
    rows = [
        RuleRow(
            name=name,
            by_draw=tuple(each.get(name) for each in scored),
            answered=tuple(place for place, draw in enumerate(draws) if word_of(draw, "rule") == name),
        )
        for name in names
    ]
    return sorted(rows, key=lambda row: -row.mean)


def draw_rows(record: Record) -> list[DrawRow]:
    """Return the draws in order."""
    rows, metric = [], primary(record)
    for place, draw in enumerate(tables_of(record, "per_draw")):
        shown = draw.get("demonstrations")
        number = number_of(draw, "draw")
        rows.append(
            DrawRow(
                number=place if number is None else int(number),
                rule=word_of(draw, "rule") or WRITTEN,
                value=numbers_of(draw, "metrics").get(metric),
                reason=word_of(draw, "reason"),
                demonstrations=", ".join(str(each) for each in shown) if isinstance(shown, list) else "",
            )
        )
    return rows


def class_rows(record: Record) -> list[tuple[str, dict[str, float]]]:
    """Return the classes by their number of rows, the commonest first: (name, numbers)."""
    rows = [(name, numbers_of({"of": each}, "of")) for name, each in named_tables(record, "per_class").items()]
    return sorted(rows, key=lambda row: -row[1].get("support", 0.0))


def search_rows(record: Record) -> list[tuple[str, str, str, float | None, int | None]]:
    """Return what the search compared: (wording, draw, rule, score on dev rows, items)."""
    rows = []
    for each in tables_of(table_of(record, "search"), "table"):
        items, draw = number_of(each, "items"), number_of(each, "draw")
        rows.append(
            (
                word_of(each, "template"),
                "" if draw is None else f"{draw:.0f}",
                word_of(each, "rule"),
                number_of(each, "score"),
                None if items is None else int(items),
            )
        )
    return rows


def guess(record: Record) -> float | None:
    """Return the accuracy of a guess among the labels; None for another metric or without labels."""
    labels = record.get("labels")
    return 1 / len(labels) if isinstance(labels, list) and labels and primary(record) == "accuracy" else None


def first_prompt(record: Record) -> tuple[str, list[str]]:
    """Return the first row as it was asked, and its choices with their spaces as JSON; ("", []) where not kept."""
    found = table_of(record, "first_prompt")
    choices = found.get("choices")
    written = [json.dumps(each, ensure_ascii=False) for each in choices] if isinstance(choices, list) else []
    return word_of(found, "text"), written


def count_of(record: Record, name: str) -> int | None:
    """Return a whole number of the record."""
    found = number_of(record, name)
    return None if found is None else int(found)


def model_name(record: Record) -> str:
    """Return the last part of the model's path."""
    return path_name(word_of(record, "model"), "the model")


def factor_of(metric: str, values: Sequence[float]) -> float:
    """Return 100 for a metric drawn in per cent, else 1."""
    return 100.0 if is_share(metric, *values) else 1.0


def _interval(record: Record, name: str) -> tuple[float, float] | None:
    ends = table_of(record, "interval").get(name)
    if not isinstance(ends, list | tuple) or len(ends) != 2 or not all(is_number(end) for end in ends):
        return None
    return float(ends[0]), float(ends[1])
