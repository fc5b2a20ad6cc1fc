"""Dialogues on a decoder: the assistant's turns are learnt, all others are read.

The model's own chat template decides the form (`dialogue_tokens`); a model without one gets a plain one, which is saved
with it, so that `pipeline("text-generation")` and `chinchilla chat` take messages. All assistant turns are targets. For
what the model writes itself one turn of each dialogue is taken, by a checksum of the dialogue: openings, middles and
goodbyes all come, the same ones before and after tuning. Axes: b rows, t positions.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from chinchilla_lm.core.errors import ConfigError, DataError
from chinchilla_lm.metrics.measures import Measures
from chinchilla_lm.tune.completion import check_packing, collate_completions, completion_objective, item_losses
from chinchilla_lm.tune.config import TuneConfig
from chinchilla_lm.tune.dialogue_tokens import encode_dialogue, ensure_chat_template, reply_prompt
from chinchilla_lm.tune.generative import (
    MAX_TOKENS,
    PRIMARY,
    AnswerRequest,
    choose_rows,
    measure_answers_written,
    predict_answers,
    settle_writing,
)
from chinchilla_lm.tune.generative_methods import no_head, predict_untouched, validate_answers
from chinchilla_lm.tune.prompts_generative import script_of
from chinchilla_lm.tune.task import Item, Prediction, Progress, Row, TunedModel, refuse_unusable

if TYPE_CHECKING:
    from chinchilla_lm.tune.backbone import Backbone


def make_dialogue(config: TuneConfig, train_rows: Sequence[Row], backbone: Backbone) -> DialogueTask:
    """Make the task; a tokenizer without a chat template gets the plain one.

    Raises:
        ConfigError: the model is no decoder, or a template was written in the config.
    """
    if backbone.kind != "causal":
        raise ConfigError(
            f"task 'dialogue' needs a decoder, and {config.model} is none; choose a causal language model"
        )
    if config.template is not None:
        raise ConfigError(
            "template is not used by dialogue, whose form is the model's chat template; remove it, or put a "
            "chat_template.jinja into the model's folder"
        )
    return DialogueTask(config, train_rows, backbone)


class DialogueTask:
    """Multi-turn dialogue; see `tune.task.Task`."""

    name = "dialogue"
    hub_class = "AutoModelForCausalLM"
    primary = PRIMARY["dialogue"]
    labels: tuple[str, ...] = ()
    make_head = no_head
    validate = validate_answers
    zero_shot = predict_untouched

    def __init__(self, config: TuneConfig, train_rows: Sequence[Row], backbone: Backbone) -> None:
        """Gives the tokenizer a template if it has none, and measures the training replies."""
        self.tokenizer = backbone.tokenizer
        self.has_own_template = ensure_chat_template(self.tokenizer)
        self.is_packed = check_packing(config, backbone)
        self.max_tokens = config.max_tokens or min(MAX_TOKENS, backbone.context)
        replies = [reply for row in train_rows[:300] for reply in _replies(row)]
        self.language = config.language or ("zh" if script_of(replies[:100]) == "zh" else "en")
        tokens = [len(self.tokenizer(reply, add_special_tokens=False)["input_ids"]) for reply in replies]
        self.writing = settle_writing(config, backbone, self.max_tokens, tokens)
        self.turn_counts = {"turns_lost": 0, "rows_refused": 0, "rows_split": 0}

    def encode(self, rows: Sequence[Row], *, is_training: bool) -> list[Item]:
        """One item a dialogue, or several where it is too long; dialogues without a usable reply are left out."""
        items, refused, turns_lost, rows_split = [], [], 0, 0
        for index, row in enumerate(rows):
            windows, lost = encode_dialogue(self.tokenizer, _messages(row), self.max_tokens)
            turns_lost += lost
            rows_split += len(windows) > 1
            if not windows:
                refused.append(index)
            for one in windows:
                targets = {"targets": one.targets, "turns": np.asarray(one.turns)}
                items.append(Item(row=index, ids=one.inputs, targets=targets))
        if is_training:
            self.turn_counts = {"turns_lost": turns_lost, "rows_refused": len(refused), "rows_split": rows_split}
            reason = f"no assistant turn fits max_tokens = {self.max_tokens} with the message before it; raise it"
            refuse_unusable(items, refused, reason)
        return items

    def collate(self, items: Sequence[Item]) -> tuple[np.ndarray[Any, Any], ...]:
        """(ids_bt, lengths_b, targets_bt); packed: also documents_bt, and fewer rows."""
        return collate_completions(items, self.max_tokens if self.is_packed else None)

    def objective(self, model: nn.Module, batch: tuple[Tensor, ...], /) -> tuple[Tensor, int]:
        """Sum of the assistant's tokens' losses, nats, and their number."""
        return completion_objective(model, batch)

    def predict(
        self,
        model: TunedModel,
        rows: Sequence[Row],
        progress: Progress | None = None,
        *,
        most_written: int | None = None,
    ) -> list[Prediction]:
        """Price all assistant turns, and write one reply of `most_written` dialogues (None: of all).

        Returns:
            For each row "text", "turn" (index of the message replaced), "loss", "tokens" and "bytes".
        """
        turns = [chosen_turn(row) for row in rows]
        written = [index for index in choose_rows(len(rows), most_written) if turns[index] is not None]
        limit = self.max_tokens - min(self.writing.max_tokens, self.max_tokens - 1)
        items = self.encode(rows, is_training=False)
        request = AnswerRequest(
            given=_priced_replies(rows, items),
            items=items,
            losses_of=lambda batch: item_losses(model.backbone, batch),
            prompts={n: reply_prompt(self.tokenizer, _messages(rows[n])[: turns[n]], limit) for n in written},
            stops=(),
            read=lambda _, text: text.strip(),
        )
        predictions = predict_answers(model.backbone, request, self.writing, progress)
        return [{"text": one["text"], "turn": turn} | one for one, turn in zip(predictions, turns, strict=True)]

    def measure(self, predictions: Sequence[Prediction], rows: Sequence[Row]) -> Measures:
        """Loss of all assistant turns; chrF and BLEU of the written replies, and how varied they are."""
        gold = [
            [] if prediction["turn"] is None else [_messages(row)[prediction["turn"]]["content"]]
            for prediction, row in zip(predictions, rows, strict=True)
        ]
        return measure_answers_written(predictions, gold, self.name, self.language)

    def describe(self) -> dict[str, Any]:
        """The chat template and whose it is, lengths, and what was left out of the training rows."""
        return {
            "chat_template": self.tokenizer.chat_template,
            "chat_template_is_the_models_own": self.has_own_template,
            "language": self.language,
            "max_tokens": self.max_tokens,
            "is_packed": self.is_packed,
            "head": "generative",
        } | (self.writing.describe() | self.turn_counts)


def chosen_turn(row: Row) -> int | None:
    """The assistant turn that the model writes itself, by a checksum of the dialogue; None where there is none."""
    messages = _messages(row)
    turns = [n for n, message in enumerate(messages) if message["role"] == "assistant" and n > 0]
    if not turns:
        return None
    text = "\n".join(str(message["content"]) for message in messages)
    return turns[zlib.crc32(text.encode()) % len(turns)]


def _messages(row: Row) -> list[dict[str, Any]]:
    messages = row.get("messages")
    if not messages:
        raise DataError("a dialogue's row lacks 'messages', a list of {role, content}; name its column in columns")
    return messages


def _priced_replies(rows: Sequence[Row], items: Sequence[Item]) -> list[str]:
    """The assistant turns of each row that some item prices; one that does not fit max_tokens has no loss."""
    turns_n: list[set[int]] = [set() for _ in rows]
    for item in items:
        turns_n[item.row] |= {*item.targets["turns"].tolist()}
    return [
        "".join(str(_messages(row)[turn]["content"]) for turn in sorted(turns))
        for row, turns in zip(rows, turns_n, strict=True)
    ]


def _replies(row: Row) -> list[str]:
    return [str(message["content"]) for message in _messages(row) if message["role"] == "assistant"]
