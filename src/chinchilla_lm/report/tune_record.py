"""The run directory of `chinchilla tune`, read for people: tune.json, the training curve, and what was predicted.

This is the border of the page, the model card and the terminal's summary: what passes has the fields and finite numbers
that they rely on; what does not is named in `TuneRun.problems`. It writes nothing and measures nothing.

tune.json, schema "tune/1" (everything but `task` may be absent, and the page then says so):

    task, model, method, backbone, mask, head, hub_class   words
    metric, higher_is_better, evaluated_on                 the primary metric's name; "test" or "validation"
    metrics_before{}, metrics_after{}                      name -> number; metrics_before null: no zero-shot exists
    intervals{before: {low, high, level}, after: {...}}    of the primary metric
    paired{difference, low, high, level, p_value, method, mcnemar{fixed, broken, p_value} | null}
    per_class{before: {label: {...}}, after: {label: {f1, precision, recall, support}}}
    rows{train: {used, available, file}, validation: {...}, test: {...}}
    settings{name: value}, reasons{name: why}
    best{step, value}, curve "records.jsonl"               of the metric on the validation rows
    examples_changed[{row, text, gold, before, after, kind}], changed_counts{fixed, broken}
    calibration{before: {...}, after: {error, bins[{confidence, accuracy, count}]}}
    cost{seconds, train_seconds, tokens, targets, updates, peak_rss_bytes, ...}, warnings[], describe{}
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chinchilla_lm.core.errors import ChinchillaError, DataError
from chinchilla_lm.core.files import read_json
from chinchilla_lm.core.records import read_records
from chinchilla_lm.report.rundir import is_number

Record = Mapping[str, Any]

SCHEMA = "tune/1"
SPLITS = ("train", "validation", "test")
_STAGES = ("before", "after")
_MOST_PREDICTIONS = 50_000
"""Rows of a predictions file that are read; a page shows a few dozen of them."""


@dataclass(frozen=True, kw_only=True)
class TuneRun:
    """The records of one tuning.

    Attributes:
        folder: the run directory.
        record: tune.json.
        steps: (step, training loss a target), in order.
        checks: (step, the primary metric on the validation rows), in order.
        before, after: predictions/before.jsonl and after.jsonl, in order; empty when absent.
        problems: one sentence for each record that is there but cannot be used.
    """

    folder: Path
    record: Record
    steps: tuple[tuple[float, float], ...]
    checks: tuple[tuple[float, float], ...]
    before: tuple[Record, ...]
    after: tuple[Record, ...]
    problems: tuple[str, ...]

    @property
    def name(self) -> str:
        """The run directory's own name."""
        return self.folder.resolve().name

    @property
    def metric(self) -> str:
        """The primary metric's name."""
        return self.word("metric") or next(iter(self.metrics("after")), "loss")

    def word(self, name: str) -> str:
        """Return a field as text, "" where it is absent or no plain value."""
        value = self.record.get(name)
        return str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else ""

    def table(self, *names: str) -> Record:
        """Return a nested table, empty where it is absent."""
        found: Any = self.record
        for name in names:
            found = found.get(name) if isinstance(found, Mapping) else None
        return found if isinstance(found, Mapping) else {}

    def metrics(self, stage: str) -> dict[str, float]:
        """Return the finite metrics of "before" or "after", by name."""
        return {name: float(value) for name, value in self.table(f"metrics_{stage}").items() if is_number(value)}

    def value(self, stage: str) -> float | None:
        """Return the primary metric of "before" or "after"."""
        return self.metrics(stage).get(self.metric)

    def interval(self, stage: str) -> tuple[float, float] | None:
        """Return the ends of the primary metric's interval."""
        found = self.table("intervals", stage)
        low, high = found.get("low"), found.get("high")
        return (float(low), float(high)) if is_number(low) and is_number(high) else None

    def rows(self, split: str) -> int | None:
        """Return how many rows of a split were used."""
        count = self.table("rows", split).get("used")
        return int(count) if is_number(count) else None


def read_tune_run(run_dir: Path | str) -> TuneRun:
    """Read every record of a tuning's run directory.

    Args:
        run_dir: the folder that `chinchilla tune --out` wrote; curves and predictions may be missing.

    Returns:
        The run.

    Raises:
        DataError: no such folder, or no usable tune.json in it.
    """
    folder = Path(run_dir)
    if not (folder / "tune.json").is_file():
        raise DataError(f"{folder} holds no tune.json; give a folder that `chinchilla tune --out` finished")
    record = read_json(folder / "tune.json")
    if not isinstance(record, Mapping) or not isinstance(record.get("task"), str):
        raise DataError(f"{folder / 'tune.json'} is no record of a tuning (no task); tune into another folder")
    schema = str(record.get("schema", SCHEMA))
    if schema != SCHEMA:
        raise DataError(f"{folder / 'tune.json'} has schema {schema!r}, not {SCHEMA!r}; upgrade chinchilla-lm")
    problems: list[str] = []
    steps, checks = _curves(folder, str(record.get("metric")), problems)
    stages = {stage: tuple(_predictions(folder / "predictions" / f"{stage}.jsonl", problems)) for stage in _STAGES}
    return TuneRun(folder=folder, record=record, steps=steps, checks=checks, **stages, problems=tuple(problems))


def _curves(folder: Path, metric: str, problems: list[str]) -> tuple[tuple[tuple[float, float], ...], ...]:
    path = folder / "records.jsonl"
    if not path.is_file():
        return (), ()
    try:
        steps, evaluations = read_records(path, "step/1"), read_records(path, "evaluation/1")
    except ChinchillaError as error:
        problems.append(f"{path.name} cannot be read: {error}")
        return (), ()
    losses = [(record.get("step"), record.get("loss")) for record in steps]
    # "value" is what chose the best weights, which may be more than the metric
    values = [(each.get("step"), (each.get("metrics") or {}).get(metric, each.get("value"))) for each in evaluations]
    return _by_step(losses), _by_step(values)


def _by_step(pairs: list[tuple[Any, Any]]) -> tuple[tuple[float, float], ...]:
    # A resumed job may repeat the steps since its last checkpoint: the last record of a step counts.
    latest = {float(step): float(value) for step, value in pairs if is_number(step) and is_number(value)}
    return tuple(sorted(latest.items()))


def _predictions(path: Path, problems: list[str]) -> Iterator[Record]:
    if not path.is_file():
        return
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines):
                if number >= _MOST_PREDICTIONS:
                    problems.append(f"Of {path.name} the first {_MOST_PREDICTIONS:,} rows were read.")
                    return
                row = json.loads(line)
                if isinstance(row, Mapping):
                    yield row
    except (OSError, ValueError) as error:
        problems.append(f"predictions/{path.name} cannot be read whole: {error}")
