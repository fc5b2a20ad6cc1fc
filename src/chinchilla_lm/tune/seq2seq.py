"""Generative tasks on encoder-decoders (T5, BART): the prompt is encoded, the answer is decoded.

Targets are the tokenizer's own form of the answer (T5: words and </s>; BART: <s>, words, </s>). The decoder reads them
shifted right behind its start token, which transformers does itself where it is given labels: the loss is its own.
The encoder's text is the task's template up to the answer; a template of your own may be "summarize: {document}", as T5
was trained. pipeline("translation") and its kin are gone from transformers 5: the saved folder loads with
AutoModelForSeq2SeqLM, and `generate` continues it. Axes: b rows, t positions of the prompt, u of the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from chinchilla_lm.core.errors import ConfigError
from chinchilla_lm.tune.completion_tokens import IGNORED, end_token_id
from chinchilla_lm.tune.config import TuneConfig
from chinchilla_lm.tune.generative import (
    MAX_TOKENS,
    PRIMARY,
    AnswerTexts,
    settle_writing,
)
from chinchilla_lm.tune.generative_methods import (
    measure_texts,
    no_head,
    predict_texts,
    predict_untouched,
    validate_answers,
)
from chinchilla_lm.tune.task import Item, Row, TunedModel, refuse_unusable

if TYPE_CHECKING:
    from chinchilla_lm.tune.backbone import Backbone


class Seq2SeqTask:
    """A generative task on an encoder-decoder; see `tune.task.Task`."""

    hub_class = "AutoModelForSeq2SeqLM"
    labels: tuple[str, ...] = ()
    make_head = no_head
    predict = predict_texts
    validate = validate_answers
    measure = measure_texts
    zero_shot = predict_untouched

    def __init__(self, config: TuneConfig, texts: AnswerTexts, train_rows: Sequence[Row], backbone: Backbone) -> None:
        """Measures the training answers to know how long a written one may become."""
        if config.is_packed:
            raise ConfigError("is_packed = true is for decoders, and this model has an encoder; remove it")
        self.name: str = config.task
        self.primary = PRIMARY[config.task]
        self.texts = texts
        self.tokenizer = backbone.tokenizer
        self._filler = int(cast(Any, self.tokenizer.pad_token_id))
        self.max_tokens = config.max_tokens or min(MAX_TOKENS, backbone.context)
        answers = [texts.answers(row)[0] for row in train_rows[:1000]]
        answer_tokens = [len(self.tokenizer(text_target=text, add_special_tokens=False).input_ids) for text in answers]
        self.writing = settle_writing(config, backbone, self.max_tokens, answer_tokens)
        self.cut_counts = {"prompts_cut": 0, "answers_cut": 0, "rows_refused": 0}

    def encode(self, rows: Sequence[Row], *, is_training: bool) -> list[Item]:
        """One item a row: ids of the prompt, targets of the answer; both lose their ends beyond max_tokens."""
        items, cut = [], {"prompts_cut": 0, "answers_cut": 0}
        refused = []
        for index, row in enumerate(rows):
            ids, is_prompt_cut = self._cut_prompt(row)
            answer = self._answer_ids(row)
            if not ids or not answer:
                refused.append(index)
                continue
            cut["prompts_cut"] += is_prompt_cut
            cut["answers_cut"] += len(answer) > self.max_tokens
            targets = np.asarray(answer[: self.max_tokens], dtype=np.int64)
            items.append(Item(row=index, ids=np.asarray(ids, dtype=np.int64), targets={"targets": targets}))
        if is_training:
            self.cut_counts = cut | {"rows_refused": len(refused)}
            refuse_unusable(items, refused, "their prompts or answers are empty; write both")
        return items

    def collate(self, items: Sequence[Item]) -> tuple[np.ndarray[Any, Any], ...]:
        """(ids_bt, lengths_b, targets_bu), int64, padded on the right with the padding token and -100."""
        return collate_pairs(items, self._filler)

    def objective(self, model: nn.Module, batch: tuple[Tensor, ...], /) -> tuple[Tensor, int]:
        """Sum of the answers' token losses, nats, and their number."""
        assert isinstance(model, TunedModel)
        ids_bt, lengths_b, targets_bu = batch
        ids_bt = ids_bt[:, : int(lengths_b.max())]
        targets_bu = targets_bu[:, : int((targets_bu != IGNORED).sum(1).max())]
        losses_bu = model.backbone.token_losses(ids_bt, targets_bu, lengths_b)
        return losses_bu.sum(dtype=torch.float32), int((targets_bu != IGNORED).sum())

    def describe(self) -> dict[str, Any]:
        """Template, lengths, and what was cut from the training rows."""
        limits = {"max_tokens": self.max_tokens} | self.writing.describe()
        return self.texts.describe() | limits | self.cut_counts

    def prompt_ids(self, row: Row) -> list[int]:
        """Tokens of the prompt, for the encoder."""
        return self._cut_prompt(row)[0]

    def losses_of(self, backbone: Backbone, items: Sequence[Item]) -> np.ndarray[Any, Any]:
        """Summed loss of each item, nats, float64 (b), without gradient."""
        ids_bt, lengths_b, targets_bu = (torch.from_numpy(array).to(backbone.device) for array in self.collate(items))
        with torch.no_grad():
            losses_bu = backbone.token_losses(ids_bt, targets_bu, lengths_b)
        return losses_bu.double().sum(1).cpu().numpy()

    def _cut_prompt(self, row: Row) -> tuple[list[int], bool]:
        """Tokens of the prompt and whether it was cut: the long field loses its end; without one, the prompt does."""
        template = self.texts.template
        ids = self._encoded(self.texts.prompt(row))
        field = str(row.get(template.cut_field) or "") if template.cut_field else ""
        kept, is_cut = len(field), len(ids) > self.max_tokens
        while len(ids) > self.max_tokens and kept:
            kept = int(kept * min(0.95, self.max_tokens / len(ids)))
            ids = self._encoded(template.prompt(row, shortened=field[:kept])[0])
        if len(ids) > self.max_tokens:
            ids = [*ids[: self.max_tokens - 1], ids[-1]]  # the last one closes an encoder's text
        return ids, is_cut

    def _answer_ids(self, row: Row) -> list[int]:
        text = self.texts.answers(row)[0]
        ids: list[int] = list(self.tokenizer(text_target=text)["input_ids"])  # type: ignore[arg-type]
        end = end_token_id(self.tokenizer)
        return ids if ids and ids[-1] == end else [*ids, end]

    def _encoded(self, text: str) -> list[int]:
        return list(self.tokenizer(text)["input_ids"])  # type: ignore[arg-type]


def collate_pairs(items: Sequence[Item], filler: int) -> tuple[np.ndarray[Any, Any], ...]:
    """(ids_bt, lengths_b, targets_bu): prompts padded with `filler`, answers with -100."""
    lengths_b = np.asarray([item.length for item in items], dtype=np.int64)
    answers = [item.targets["targets"] for item in items]
    ids_bt = np.full((len(items), int(lengths_b.max())), filler, dtype=np.int64)
    targets_bu = np.full((len(items), max(map(len, answers))), IGNORED, dtype=np.int64)
    for row, (item, answer) in enumerate(zip(items, answers, strict=True)):
        ids_bt[row, : item.length], targets_bu[row, : len(answer)] = item.ids, answer
    return ids_bt, lengths_b, targets_bu
