"""Rows of any common form to the one canonical form of a task; what does not fit is refused by row and field.

Canonical rows (an "id" is kept, other fields are left out):
    text-classification   {text, text_pair?, label: str | list[str]}
    token-classification  {tokens: [str], tags: [str] in IOB2}
    relation-extraction   {text, head: [start, end), tail: [start, end) in characters, head_type?, tail_type?, label}
    question-answering    {question, context?, answers: [{text, start?}]} (no answers: the question has none)
    multiple-choice       {question, choices: [str], label: int}; of partial evaluation also {contexts, continuation}
    translation           {source, target}
    summarization         {document, summary: str | [str]}
    dialogue              {messages: [{role, content}]}
    text-generation       {prompt?, completion}, joined as they are, or {text}; controls?: {name: value} or text

Fields are found by their usual names. `columns` says what a canonical field is called here: {"text": "body"}, or
{"text": "title+body"} for several, joined by line ends.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from chinchilla_lm.core.errors import DataError
from chinchilla_lm.data import conversation_rows, span_rows
from chinchilla_lm.data.row_fields import Fields, Row
from chinchilla_lm.data.tags import to_iob2

__all__ = ["TASKS", "Row", "rows_for_task"]

_TEXT = ("text", "sentence", "content", "review", "query", "utterance", "tweet", "comment", "body", "document", "title")
_LABEL = ("label_text", "label", "labels", "category", "class", "intent", "sentiment", "topic", "target", "emotion")
# The two fields of published pair sets: NLI, RTE and paraphrases, QQP, QNLI, and what spreadsheets call them.
_PAIRS = (
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("question", "sentence"),
    ("question", "passage"),
    ("query", "passage"),
    ("text", "text_pair"),
)
_DOCUMENT = ("document", "article", "text", "dialogue", "body", "content", "source", "input")
_SUMMARY = ("summary", "summaries", "highlights", "headline", "abstract", "tldr", "title", "target", "output")
_SOURCE = ("source", "src", "source_text", "input")
_TARGET = ("target", "tgt", "target_text", "reference", "output")
# Prompt and completion of published sets: TRL, Alpaca and Dolly, LAMBADA, HumanEval, trivia.
_COMPLETIONS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("instruction", "response"),
    ("instruction", "output"),
    ("context", "target"),
    ("prompt", "canonical_solution"),
    ("input", "output"),
    ("source", "target"),
    ("question", "answer"),
)


def rows_for_task(
    task: str,
    rows: Sequence[Row],
    columns: Mapping[str, str] | None = None,
    *,
    is_labelled: bool = True,
    where: str = "",
) -> list[Row]:
    """Bring rows to a task's canonical form.

    Args:
        task: one of `TASKS`.
        rows: as a file has them (`chinchilla_lm.data.labelled.read_rows`).
        columns: the name in the rows of canonical fields that are called otherwise.
        is_labelled: False for rows to predict, which need no label, tags, answers, target or summary.
        where: the file's name, for messages.

    Returns:
        New dicts, as many and in the same order.

    Raises:
        DataError: an unknown task, or a row that does not fit; the message names the row, the field and what is there.
    """
    if task not in _CONVERTERS:
        raise DataError(f"{task!r} is no task; choose one of {', '.join(TASKS)}")
    convert = _CONVERTERS[task]
    found = []
    filled = {name for row in rows for name, value in row.items() if value is not None}
    for number, row in enumerate(rows, start=1):
        place = f"{where}: row {number}" if where else f"row {number}"
        fields = Fields(row, columns or {}, place, is_labelled, filled)
        canonical = convert(fields)
        found.append({"id": row["id"], **canonical} if "id" in row else canonical)
    if task == "token-classification" and is_labelled:
        for row, tags in zip(found, to_iob2([row["tags"] for row in found]), strict=True):
            row["tags"] = tags
    return found


def _classification(fields: Fields) -> Row:
    row: Row = {}
    pair = next((pair for pair in _PAIRS if fields.has(*pair)), None)
    if pair and not fields.is_mapped("text"):
        row["text"], row["text_pair"] = fields.text(pair[0]), fields.text(pair[1])
    else:
        row["text"] = fields.text("text", *_TEXT)
        if fields.is_mapped("text_pair"):
            row["text_pair"] = fields.text("text_pair")
    if fields.is_labelled:
        row["label"] = _label(fields)
    return row


def _label(fields: Fields) -> str | list[str]:
    value = fields.value("label", *_LABEL)
    if isinstance(value, str) and value.startswith("["):
        value = fields.parse_list(value, "label")
    if isinstance(value, list):
        return [fields.as_label(entry, "label") for entry in value]
    return fields.as_label(value, "label")


def _translation(fields: Fields) -> Row:
    inner = fields.row.get("translation")
    if isinstance(inner, dict):
        fields = Fields(inner, fields.columns, fields.place, fields.is_labelled, fields.filled)
    if not fields.is_mapped("source") and not any(name in fields.row for name in _SOURCE):
        languages = [name for name in fields.row if len(name) in (2, 5) and isinstance(fields.row[name], str)]
        if len(languages) > 1:
            raise DataError(
                f"{fields.place} has texts in {', '.join(map(repr, languages))}; say which is which: the columns"
                f" source={languages[0]} and target={languages[1]}"
            )
    row: Row = {"source": fields.text("source", *_SOURCE)}
    if fields.is_labelled:
        row["target"] = fields.text("target", *_TARGET)
    return row


def _summarization(fields: Fields) -> Row:
    row: Row = {"document": fields.text("document", *_DOCUMENT)}
    if not fields.is_labelled:
        return row
    names = [name for name in _SUMMARY if not (name == "title" and "summary" in fields.row)]
    value = fields.value("summary", *names)
    if isinstance(value, list):
        texts = [fields.as_text(entry, "summary") for entry in value]
        if not texts:
            raise DataError(f"{fields.place} has an empty list as 'summary'; give at least one, or delete the row")
        row["summary"] = texts[0] if len(texts) == 1 else texts
    else:
        row["summary"] = fields.as_text(value, "summary")
    return row


def _text_generation(fields: Fields) -> Row:
    row = _written(fields)
    if not fields.is_mapped("controls") and not fields.has("controls"):
        return row
    controls = fields.value("controls")
    if isinstance(controls, str) and controls.lstrip().startswith("{"):  # perhaps a table's cell
        with suppress(ValueError, RecursionError):
            controls = json.loads(controls)
    return row | {"controls": controls if isinstance(controls, Mapping) else fields.as_text(controls, "controls")}


def _written(fields: Fields) -> Row:
    if fields.is_mapped("completion"):
        prompt = {"prompt": fields.text("prompt")} if fields.is_mapped("prompt") or "prompt" in fields.row else {}
        return {**prompt, "completion": fields.text("completion")}
    if fields.is_mapped("prompt") or fields.is_mapped("text"):
        name = "prompt" if fields.is_mapped("prompt") else "text"
        if name == "prompt" and fields.is_labelled:
            return {"prompt": fields.text("prompt"), "completion": fields.text("completion")}
        return {name: fields.text(name)}
    for prompt_name, completion_name in _COMPLETIONS:
        if fields.has(prompt_name, completion_name):
            prompt, completion = fields.text(prompt_name), fields.text(completion_name)
            if prompt_name == "instruction" and str(fields.row.get("input") or "").strip():
                prompt = f"{prompt}\n{fields.text('input')}"
            if completion_name == "target" and not completion.startswith((" ", "\n")):
                completion = " " + completion  # LAMBADA's last word follows a blank
            return {"prompt": prompt, "completion": completion}
    if not fields.is_labelled and "prompt" in fields.row:
        return {"prompt": fields.text("prompt")}
    return {"text": fields.text("text", *_TEXT, "completion", "code")}


_CONVERTERS: dict[str, Callable[[Fields], dict[str, Any]]] = {
    "text-classification": _classification,
    "token-classification": span_rows.token_row,
    "relation-extraction": span_rows.relation_row,
    "question-answering": span_rows.question_row,
    "multiple-choice": conversation_rows.choice_row,
    "translation": _translation,
    "summarization": _summarization,
    "dialogue": conversation_rows.dialogue_row,
    "text-generation": _text_generation,
}
TASKS = tuple(_CONVERTERS)
