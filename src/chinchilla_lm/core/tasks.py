"""The tasks that labelled rows may ask, by Hugging Face's own names where it has one."""

from __future__ import annotations

from typing import Literal, get_args

TaskName = Literal[
    "text-classification",
    "token-classification",
    "relation-extraction",
    "question-answering",
    "multiple-choice",
    "translation",
    "summarization",
    "dialogue",
    "text-generation",
]
TASKS: tuple[TaskName, ...] = get_args(TaskName)
