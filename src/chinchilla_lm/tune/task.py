"""What a task is to the tuning run: rows in, items, batches, a loss, predictions, a measure.

    rows -> encode -> items -> collate -> arrays -> objective -> (loss_sum, target_count)     training
    rows -> predict -> predictions -> measure -> Measures                                     validation and test

A task knows its rows, its prompt and its labels. It never trains, saves or prints; `tune.tuning` does.
Axes: b rows, t positions, d width, k labels or choices.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from torch import Tensor, nn

from chinchilla_lm.core.errors import DataError
from chinchilla_lm.tune.config import TuneConfig

if TYPE_CHECKING:
    from chinchilla_lm.metrics.measures import Measures
    from chinchilla_lm.tune.backbone import Backbone

Row = Mapping[str, Any]
"""One labelled example with the canonical fields of `data.labelled.rows_for_task`."""
Prediction = dict[str, Any]
"""What the model says of one row: plain JSON values."""
Progress = Callable[[int, int], None]
"""Called with (rows done, rows in all)."""

IGNORED = -100
"""Target of a position without one; the value that Hugging Face and torch use."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One example as the model reads it.

    Attributes:
        row: index of the row it comes from.
        ids: ids_t, int64, without padding.
        targets: named arrays that the task's `collate` knows, such as "label" () or "tags" (t).
    """

    row: int
    ids: np.ndarray[Any, Any]
    targets: Mapping[str, np.ndarray[Any, Any]] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Tokens read."""
        return int(self.ids.size)


class TunedModel(nn.Module):
    """A backbone and the head of one task. Attributes: `backbone`, `head` (None: the backbone's own unembedding)."""

    backbone: Backbone
    head: nn.Module | None

    def __init__(self, backbone: Backbone, head: nn.Module | None) -> None:
        """Both are kept as they are; nothing is copied or initialised."""
        super().__init__()
        assert isinstance(backbone, nn.Module), backbone
        self.backbone = backbone
        self.head = head


class Task(Protocol):
    """One task on one set of rows; see the top of the file.

    Attributes:
        name: one of `core.tasks.TaskName`.
        hub_class: class of the saved folder, such as "AutoModelForSequenceClassification".
        primary: name of the measure that early stopping and the report go by.
        labels: names in the order of the head's outputs; empty without labels.
        tokenizer: as it is saved with the model, the prompt in its post-processor where there is one.
        hub_settings: further keys of the saved config.json, such as problem_type.
    """

    name: str
    hub_class: str
    primary: str
    labels: tuple[str, ...]

    def encode(self, rows: Sequence[Row], *, is_training: bool) -> list[Item]:
        """Make items of rows. In training, rows without any target are left out (`refuse_unusable` counts them)."""
        ...

    def collate(self, items: Sequence[Item]) -> tuple[np.ndarray[Any, Any], ...]:
        """Make one batch: arrays with the items on axis 0, the first ids (b, t) or (b, k, t), the second lengths."""
        ...

    def objective(self, model: nn.Module, batch: tuple[Tensor, ...], /) -> tuple[Tensor, int]:
        """The sum of losses over the batch's targets, nats, and how many there are (as `train.objective`)."""
        ...

    def make_head(self, backbone: Backbone) -> nn.Module | None:
        """Make the head as it is before the first step; draws come from torch's global generator."""
        ...

    def predict(self, model: TunedModel, rows: Sequence[Row], progress: Progress | None = None) -> list[Prediction]:
        """Predict every row, in the rows' order; batches by length, no logits kept. The model is in eval mode."""
        ...

    def measure(self, predictions: Sequence[Prediction], rows: Sequence[Row]) -> Measures:
        """Measure predictions against the rows' own labels."""
        ...

    def zero_shot(self, backbone: Backbone, rows: Sequence[Row]) -> list[Prediction] | None:
        """What the untouched model says by prompt alone; None where the task has no such form."""
        ...

    def describe(self) -> dict[str, Any]:
        """What the record and the model card say of the task: template, label words, head, ...; plain JSON values."""
        ...


MakeTask = Callable[[TuneConfig, Sequence[Row], "Backbone"], Task]
"""What each family's module exports: (config, training rows, backbone) -> Task."""

# module and function of each family; a module is imported only when its task is asked for, for some need optional
# packages
_FAMILIES: Mapping[str, tuple[str, str]] = {
    "text-classification": ("classification", "make_classification"),
    "multiple-choice": ("choices", "make_choices"),
    "token-classification": ("tagging", "make_tagging"),
    "relation-extraction": ("relation", "make_relation"),
    "question-answering": ("spans", "make_spans"),
    "question-answering/generative": ("completion", "make_completion"),
    "translation": ("completion", "make_completion"),
    "summarization": ("completion", "make_completion"),
    "text-generation": ("completion", "make_completion"),
    "dialogue": ("dialogue", "make_dialogue"),
}


def make_task(config: TuneConfig, train_rows: Sequence[Row], backbone: Backbone) -> Task:
    """Make the task that a config names, from its training rows (labels, languages) and the model.

    question-answering is answered by spans on encoders and with head = "span", else by generating.

    Raises:
        DataError, ConfigError: the rows or settings do not fit the task.
    """
    name: str = config.task
    if name == "question-answering" and config.head != "span" and backbone.kind != "encoder":
        name = "question-answering/generative"
    module, function = _FAMILIES[name]
    make: MakeTask = getattr(importlib.import_module(f"chinchilla_lm.tune.{module}"), function)
    return make(config, train_rows, backbone)


def refuse_unusable(items: list[Item], unusable: Sequence[int], reason: str) -> list[Item]:
    """Leave rows without a target out of training, but never all of them: a loss of 0 would look like success.

    Args:
        items: the usable ones.
        unusable: row indices that were left out.
        reason: why, and the way out, such as "the answer was cut off; raise max_tokens".

    Returns:
        `items`.

    Raises:
        DataError: nothing is left.
    """
    if unusable and not items:
        raise DataError(f"all {len(unusable)} training rows have no target left: {reason}")
    return items
