"""Methods that the classes of generative tasks share word for word; each takes them over by name.

    class CompletionTask:
        make_head = no_head
        predict = predict_texts      # tasks of `AnswerTexts`: CompletionTask, Seq2SeqTask
        validate = validate_answers

They are functions, not a base class: what a class does is read in it, and nothing is overridden.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from chinchilla_lm.metrics.measures import Measures
from chinchilla_lm.tune.generative import (
    AnswerRequest,
    AnswerTexts,
    choice_of,
    choose_rows,
    predict_answers,
    validation_written,
)
from chinchilla_lm.tune.task import Item, Prediction, Progress, Row, TunedModel
from chinchilla_lm.tune.writing import Writing

if TYPE_CHECKING:
    from chinchilla_lm.tune.backbone import Backbone


class TextTask(Protocol):
    """What `predict_texts` needs of a task: its texts, how they are encoded, and how answers are written."""

    texts: AnswerTexts
    writing: Writing

    def encode(self, rows: Sequence[Row], *, is_training: bool) -> list[Item]:
        """Items with targets "targets" (t)."""
        ...

    def prompt_ids(self, row: Row) -> list[int]:
        """Tokens after which the model writes its answer."""
        ...

    def losses_of(self, backbone: Backbone, items: Sequence[Item]) -> np.ndarray[Any, Any]:
        """Summed loss of each item, nats, float64 (b), without gradient."""
        ...


def no_head(task: Any, backbone: Backbone) -> None:
    """None: the model's own output matrix writes."""
    del task, backbone


def predict_texts(
    task: TextTask,
    model: TunedModel,
    rows: Sequence[Row],
    progress: Progress | None = None,
    *,
    most_written: int | None = None,
) -> list[Prediction]:
    """Price the given answers of all rows, and write the model's own to `most_written` of them (None: all).

    Returns:
        For each row "text" (None where none was written), and of the given answer "loss" (nats, summed), "tokens",
        "bytes".
    """
    request = AnswerRequest(
        given=[task.texts.answers(row)[0] for row in rows],
        items=task.encode(rows, is_training=False),
        losses_of=lambda batch: task.losses_of(model.backbone, batch),
        prompts={index: task.prompt_ids(rows[index]) for index in choose_rows(len(rows), most_written)},
        stops=task.texts.stops,
        read=lambda index, text: task.texts.read(text, rows[index]),
    )
    return predict_answers(model.backbone, request, task.writing, progress)


def measure_texts(task: TextTask, predictions: Sequence[Prediction], rows: Sequence[Row]) -> Measures:
    """The task's measures of what was written, and loss, perplexity and bits per byte of the given answers."""
    return task.texts.measure(predictions, rows)


def predict_untouched(task: Any, backbone: Backbone, rows: Sequence[Row]) -> list[Prediction] | None:
    """The untouched model by the same prompt, stops and length."""
    return task.predict(TunedModel(backbone, None), rows)


def validate_answers(task: Any, model: TunedModel, rows: Sequence[Row]) -> Measures:
    """What chooses the best checkpoint: losses of all rows, and written answers to some of them."""
    predictions = task.predict(model, rows, most_written=validation_written(task.name))
    return choice_of(task.measure(predictions, rows))
