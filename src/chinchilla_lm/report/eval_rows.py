"""What a record of `chinchilla eval` holds, as rows: suites, a second model, contamination, the harness, text.

Records (every part may be absent): "suites/1" {model, seed, suites[{suite, metric, value, standard_error, items,
chance, values, errors, parts, cut_items}], against{model, suites{name: {value, difference, standard_error,
p_value, only_first, only_second}}}, contamination{name: {checked, short, found, window}}, harness{task:
{"metric,filter": value}}}, "domains/1" {model, domains[{domain, documents, tokens, bytes, bits_per_byte,
bits_per_byte_se, loss}]}, and "eval/1" {model, loss, loss_se, bits_per_byte, tokens, bytes}.
"""

from __future__ import annotations

from dataclasses import dataclass

from chinchilla_lm.report.dots import Z95
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

_SURE = 0.05
"""A paired test below this is called a difference; one in twenty is so by chance."""
_WHOLE = "all"


@dataclass(frozen=True, kw_only=True)
class SuiteRow:
    """A suite: the quoted value with its 95 % interval, and what a guess has right; None where that is unknown."""

    name: str
    metric: str
    value: float
    error: float | None
    items: int | None
    chance: float | None
    others: tuple[tuple[str, float, float | None], ...]
    parts: tuple[tuple[str, float], ...]
    cut_items: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """Value ± 1.96 standard errors within 0 and 1; None for an error of 0, which tells no spread."""
        band = _band(self.value, self.error)
        return None if band is None else (max(0.0, band[0]), min(1.0, band[1]))

    @property
    def is_above_chance(self) -> bool | None:
        """Whether the interval lies above a guess; None where either is unknown."""
        return None if self.chance is None or self.interval is None else self.interval[0] > self.chance


@dataclass(frozen=True, kw_only=True)
class PairRow:
    """A second model on a suite's items: its value, its value less the first's, and what each alone has right."""

    name: str
    value: float | None
    difference: float
    error: float | None
    p_value: float | None
    only_first: int | None
    only_second: int | None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Difference ± 1.96 standard errors; None where no error is recorded, or 0."""
        return _band(self.difference, self.error)

    @property
    def verdict(self) -> str:
        """Whether the second is "better", "worse" or "open" by the paired test."""
        if self.p_value is None or self.p_value >= _SURE or not self.difference:
            return "open"
        return "better" if self.difference > 0 else "worse"


@dataclass(frozen=True, kw_only=True)
class TextRow:
    """The price of a domain's text; `name` is the source, `label` its last part where that tells it apart."""

    name: str
    label: str
    bits_per_byte: float
    error: float | None
    documents: int | None
    tokens: int | None
    bytes: int | None
    loss: float | None
    loss_error: float | None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Bits per byte ± 1.96 standard errors; None where no error is recorded."""
        return _band(self.bits_per_byte, self.error)

    @property
    def is_whole(self) -> bool:
        """Whether this is all domains together."""
        return self.name == _WHOLE


def suite_rows(record: Record) -> list[SuiteRow]:
    """Return the suites in the record's order, without those that lack a value."""
    rows = []
    for each in tables_of(record, "suites"):
        value, metric = number_of(each, "value"), word_of(each, "metric")
        if value is None:
            continue
        errors = numbers_of(each, "errors")
        others = tuple((name, own, errors.get(name)) for name, own in numbers_of(each, "values").items())
        rows.append(
            SuiteRow(
                name=word_of(each, "suite") or "unnamed",
                metric=metric,
                value=value,
                error=number_of(each, "standard_error"),
                items=_count(each, "items"),
                chance=number_of(each, "chance") or None,  # 0: nothing to guess from
                others=tuple(other for other in others if other[0] != metric),
                parts=tuple(sorted(numbers_of(each, "parts").items(), key=lambda part: part[1])),
                cut_items=_count(each, "cut_items") or 0,
            )
        )
    return rows


def pair_rows(record: Record) -> list[PairRow]:
    """Return the comparison with a second model, suite by suite."""
    rows = []
    for name, each in named_tables(table_of(record, "against"), "suites").items():
        difference = number_of(each, "difference")
        if difference is None:
            continue
        rows.append(
            PairRow(
                name=name,
                value=number_of(each, "value"),
                difference=difference,
                error=number_of(each, "standard_error"),
                p_value=number_of(each, "p_value"),
                only_first=_count(each, "only_first"),
                only_second=_count(each, "only_second"),
            )
        )
    return rows


def harness_rows(record: Record) -> list[tuple[str, str, float, float | None, int | None]]:
    """Return the harness's values: (task, metric, value, standard error, items)."""
    rows = []
    for task, values in named_tables(record, "harness").items():
        found = numbers_of({"values": values}, "values")
        items = next((int(count) for name, count in found.items() if name.startswith("samples")), None)
        for name, value in found.items():
            metric, _, chosen = name.partition(",")
            if metric.startswith("samples") or metric.endswith("_stderr"):
                continue
            shown = metric if chosen in ("", "none") else f"{metric} ({chosen})"
            rows.append((task, shown, value, found.get(f"{metric}_stderr,{chosen}"), items))
    return rows


def contamination_rows(record: Record) -> list[tuple[str, int, int, int | None, int | None]]:
    """Return what of each suite stands in training text: (suite, found, checked, short, window)."""
    rows = []
    for name, each in named_tables(record, "contamination").items():
        found, checked = _count(each, "found"), _count(each, "checked")
        if found is not None and checked is not None:
            rows.append((name, found, checked, _count(each, "short"), _count(each, "window")))
    return rows


def text_rows(record: Record) -> list[TextRow]:
    """Return the domains, or the held-out text as one; without those that lack their bits per byte."""
    held_out = [{**record, "domain": _WHOLE, "bits_per_byte_se": None}]
    found = tables_of(record, "domains") or held_out
    ends = [path_name(word_of(each, "domain"), "unnamed") for each in found]
    rows = []
    for each, end in zip(found, ends, strict=True):
        bits, name = number_of(each, "bits_per_byte"), word_of(each, "domain") or "unnamed"
        if bits is None:
            continue
        rows.append(
            TextRow(
                name=name,
                label="all together" if name == _WHOLE else end if ends.count(end) == 1 else name,
                bits_per_byte=bits,
                error=number_of(each, "bits_per_byte_se"),
                documents=_count(each, "documents"),
                tokens=_count(each, "tokens"),
                bytes=_count(each, "bytes"),
                loss=number_of(each, "loss"),
                loss_error=number_of(each, "loss_se"),
            )
        )
    return rows


def model_name(record: Record) -> str:
    """Return the last part of the model's path."""
    return path_name(word_of(record, "model"), "the model")


def other_name(record: Record) -> str:
    """Return the last part of the second model's path; its whole path where both would be called the same."""
    path = word_of(table_of(record, "against"), "model")
    name = path_name(path, "the other model")
    return path if path and name == model_name(record) else name


def _band(value: float, error: float | None) -> tuple[float, float] | None:
    """Value ± 1.96 standard errors; an error of 0 is of one item, or of items all alike, and says nothing."""
    return (value - Z95 * error, value + Z95 * error) if error is not None and error > 0 else None


def _count(record: Record, name: str) -> int | None:
    found = number_of(record, name)
    return None if found is None else int(found)
