"""The record of a prompted evaluation, "prompt/1", and the folder of its answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chinchilla_lm.core.files import write_json, write_text
from chinchilla_lm.evals.prompted import DrawResult, PromptResult, PromptRows
from chinchilla_lm.evals.written import WrittenDraw, WrittenResult
from chinchilla_lm.metrics.resampling import interval
from chinchilla_lm.prompt.template import Template

SCHEMA = "prompt/1"


def prompt_record(
    template: Template,
    result: PromptResult | WrittenResult,
    *,
    model: str,
    rows: PromptRows | None = None,
    searched: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the record: metrics (means over draws), spread, interval over rows, per_draw, template, scoring, labels.

    An answer by choice is a number from 0: of `labels` for a closed set, else of the row's own choices. With `rows`,
    which were asked, `first_prompt` holds what the first of them became: text, and choices where they are scored.
    """
    first = result.draws[0].measures
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "task": template.task,
        "language": template.language,
        "model": model,
        "template": result.template,
        "shots": result.shots,
        "rows": result.rows,
        "metric": first.primary,
        "metrics": result.mean,
        "spread": result.spread,
        "interval": {first.primary: list(_row_interval(result))} if first.counts_nk is not None else {},
        "per_draw": [_draw_record(draw) for draw in result.draws],
        "cut_rows": result.cut_rows,
    }
    if isinstance(result, PromptResult):
        record["refused"] = result.refused
        record["scoring"] = sorted({draw.rule for draw in result.draws})
    else:
        record["scoring"] = ["written"]
    per_class = _per_class([draw.measures.as_record()["per_class"] for draw in result.draws])
    if per_class:
        record["per_class"] = per_class
    if rows is not None:
        record["first_prompt"] = _first_prompt(template, result, rows)
    if template.labels:
        record["labels"] = list(template.labels)
    if searched is not None:
        record["search"] = dict(searched)
    return record


def write_prompt_folder(
    folder: Path, record: Mapping[str, Any], result: PromptResult | WrittenResult, rows: PromptRows
) -> None:
    """Write prompt.json and answers-<draw>.jsonl: one line a test row; its own field `answer` is `given_answer` there.

    Raises:
        DataError: the folder cannot be written.
    """
    for draw in result.draws:
        lines = [
            json.dumps(_beside(row, answer), ensure_ascii=False, default=str)
            for row, answer in zip(rows.tests, _answers(draw), strict=True)
        ]
        write_text(folder / f"answers-{draw.draw}.jsonl", "\n".join(lines) + "\n")
    write_json(folder / "prompt.json", dict(record))


def _per_class(drawn: list[dict[str, dict[str, float | None]]]) -> dict[str, dict[str, float | None]]:
    """The measures of each class, averaged over draws; None where a draw has none."""
    means: dict[str, dict[str, float | None]] = {}
    for label, first in drawn[0].items():
        columns = {name: [one[label].get(name) for one in drawn if label in one] for name in first}
        means[label] = {
            name: None if None in values else sum(filter(None, values)) / len(values)
            for name, values in columns.items()
        }
    return means


def _first_prompt(template: Template, result: PromptResult | WrittenResult, rows: PromptRows) -> dict[str, Any]:
    """The first test row as the model was asked it in the first draw, before it was cut to any context."""
    shown: tuple[Any, ...] = result.draws[0].demonstrations
    if shown and not isinstance(shown[0], int):
        shown = tuple(shown[0])  # of the first row: each has its own
    parts = template.render(rows.tests[0], [rows.pool[number] for number in shown])
    return {"text": parts.prefix, "choices": list(parts.choices)}


def _row_interval(result: PromptResult | WrittenResult) -> tuple[float, float]:
    """The interval over rows, averaged over draws: what other rows of this kind would move the figure by."""
    ends = [interval(draw.measures) for draw in result.draws]
    return sum(low for low, _ in ends) / len(ends), sum(high for _, high in ends) / len(ends)


def _draw_record(draw: DrawResult | WrittenDraw) -> dict[str, Any]:
    record: dict[str, Any] = {"draw": draw.draw, "metrics": draw.measures.values, "demonstrations": _plain(draw)}
    if isinstance(draw, DrawResult):
        record |= {"rule": draw.rule, "reason": draw.reason, "by_rule": draw.by_rule}
    return record


def _plain(draw: DrawResult | WrittenDraw) -> list[Any]:
    """Numbers of the solved rows; with a choice of its own for each row they would fill the record and are left out."""
    return [int(one) for one in draw.demonstrations] if all(isinstance(one, int) for one in draw.demonstrations) else []


def _beside(row: Mapping[str, Any], answer: Mapping[str, Any]) -> dict[str, Any]:
    """Join a row and its answer; a row may have a field `answer` too, mostly the right one."""
    return {**{f"given_{name}" if name in answer else name: value for name, value in row.items()}, **answer}


def _answers(draw: DrawResult | WrittenDraw) -> list[dict[str, Any]]:
    """Of each row: the answer; where it was written also the texts, and which share of them agree with the answer."""
    if isinstance(draw, DrawResult):
        return [{"answer": answer} for answer in draw.predicted]
    written = zip(draw.answers, draw.texts, draw.shares, strict=True)
    return [{"answer": answer, "texts": list(texts), "share": share} for answer, texts, share in written]
