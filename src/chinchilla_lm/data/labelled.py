"""Labelled rows from wherever the user keeps them, in one canonical form a task.

    read_rows("train.jsonl.gz") -> list of dicts as they are in the file
    rows_for_task("text-classification", rows) -> list of dicts with the fields below
    split_rows(rows, fraction, seed) -> (the larger part, the smaller part), by label where there is one

Canonical rows (also the forms that are understood are listed in `chinchilla_lm.data.task_rows`):
    text-classification   {text, text_pair?, label: str | list[str]}
    token-classification  {tokens: [str], tags: [str] in IOB2}
    relation-extraction   {text, head: [start, end), tail: [start, end) in characters, head_type?, tail_type?, label?}
    question-answering    {question, context?, answers: [{text, start?}]} (no answers: the question has none)
    multiple-choice       {question, choices: [str], label: int}
    translation           {source, target}
    summarization         {document, summary: str | [str]}
    dialogue              {messages: [{role, content}]}
    text-generation       {prompt?, completion} or {text}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TASKS = (
    "text-classification",
    "token-classification",
    "relation-extraction",
    "question-answering",
    "multiple-choice",
    "translation",
    "summarization",
    "dialogue",
    "text-generation",
)

Row = dict[str, Any]


def read_rows(source: str | Path) -> list[Row]:
    """Read every row of a file as it is: .csv .tsv .jsonl .json (also .gz .zst), .parquet, .conll, or hf:NAME[:CONFIG][:SPLIT]."""
    raise NotImplementedError


def rows_for_task(task: str, rows: Sequence[Row], columns: Mapping[str, str] = {}) -> list[Row]:  # noqa: B006
    """Return the rows in the task's canonical form; `columns` maps a canonical field to the name it has in the rows."""
    raise NotImplementedError


def split_rows(rows: Sequence[Row], fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Divide rows into (1 - fraction, fraction), stratified by label where rows have one; the order is kept in each."""
    raise NotImplementedError
