"""Extractive question answering: the answer is a slice of the context, or there is none.

Two logits a position, start and end, over the context's tokens and one "no answer" position: the last token of a causal
model's prompt, the first of an encoder. Starts and ends are searched jointly over all windows of a context. The saved
folder is the model's own ...ForQuestionAnswering (transformers 5.23 has it for Llama, Qwen3, GPT-2, BERT and others,
but no pipeline("question-answering") any more), whose logits `answer_rows` turns into slices.

Axes: b windows, t positions, d width, c context tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chinchilla_lm.core.errors import ConfigError, DataError
from chinchilla_lm.data.span_search import AnswerLengths, best_answers, choose_threshold, lengths_of
from chinchilla_lm.data.span_windows import (
    SpanWindow,
    check_template,
    encode_question,
    locate_answer,
    target_positions,
)
from chinchilla_lm.metrics.answers import answer_f1, measure_answers, order_by_agreement
from chinchilla_lm.metrics.measures import Measures
from chinchilla_lm.tune.backbone import Backbone, pad_rows, split_by_length
from chinchilla_lm.tune.batches import trim
from chinchilla_lm.tune.config import TuneConfig
from chinchilla_lm.tune.hub_backbone import HubHead
from chinchilla_lm.tune.tagging import HEAD_DROPOUT, LinearHead
from chinchilla_lm.tune.task import Item, Prediction, Progress, Row, TunedModel, refuse_unusable
from chinchilla_lm.tune.words import joiner_for

TEMPLATES = {
    "en": "Question: {question}\nContext: {context}\nAnswer:",
    "zh": "问题：{question}\n文章：{context}\n回答：",
}
# The untouched model is asked the usual way round: it has to generate from the end.
ZERO_SHOT_TEMPLATES = {
    "en": "Context: {context}\nQuestion: {question}\nAnswer:",
    "zh": "文章：{context}\n问题：{question}\n回答：",
}
MAX_TOKENS = 384  # with the stride, those of run_squad.py (Devlin et al. 2019)
STRIDE = 128
N_BEST = 5
# Tokens of an answer that the search considers: the longest of the training rows, within these bounds. SQuAD's script
# takes 30; Chinese answers in byte-level tokens are longer.
_SHORTEST_LIMIT, _LONGEST_LIMIT = 30, 128
_ZERO_SHOT_TOKENS = 24


class Spans:
    """See `tune.task.Task`. Attribute `threshold`: "no answer" is given where it leads by more than this."""

    name = "question-answering"
    hub_class = "AutoModelForQuestionAnswering"
    primary = "f1"
    labels: tuple[str, ...] = ()

    def __init__(
        self,
        backbone: Backbone,
        *,
        lengths: AnswerLengths,
        language: str = "en",
        template: str | None = None,
        has_unanswerable: bool = False,
        max_tokens: int = MAX_TOKENS,
        dropout: float = HEAD_DROPOUT,
    ) -> None:
        """Notes how a question is read.

        Args:
            backbone: whose tokenizer cuts the text.
            lengths: of answers.
            language: of the prompt and the measure, "en" or "zh".
            template: of a causal model, {question} before {context}; None: the language's own.
            has_unanswerable: whether some rows have no answer; else one is always given.
            max_tokens: longest window; a longer context becomes several.
            dropout: before the head of a decoder.
        """
        self.threshold = 0.0
        self._tokenizer = backbone.tokenizer
        self._language = language
        self._template = None if backbone.kind == "encoder" else template or TEMPLATES[language]
        if self._template is not None:
            check_template(self._template)
        self._has_unanswerable = has_unanswerable
        self._lengths = lengths
        self._max_tokens = min(max_tokens, backbone.context)
        self._stride = min(STRIDE, self._max_tokens // 3)
        self._dropout = dropout

    def encode(self, rows: Sequence[Row], *, is_training: bool) -> list[Item]:
        """Make one item of each window; a training window without the answer is one without an answer."""
        items: list[Item] = []
        unusable: list[int] = []
        for number, row in enumerate(rows):
            place = self._locate(row) if is_training else None
            if is_training and place is None and row["answers"]:
                unusable.append(number)
                continue
            for window in self._windows(row):
                targets = {
                    "span": np.array((window.first, window.first + window.count, window.null), np.int64),
                    "starts": window.starts_c,
                    "ends": window.ends_c,
                }
                if is_training:
                    found = None if place is None else target_positions(window, place)
                    targets["answer"] = np.array(found or (window.null, window.null), np.int64)
                items.append(Item(row=number, ids=window.ids_t, targets=targets))
        if not is_training:
            return items
        return refuse_unusable(items, unusable, "no answer stands in its context; check the columns")

    def collate(self, items: Sequence[Item]) -> tuple[np.ndarray[Any, Any], ...]:
        """(ids_bt, lengths_b, spans_b3, answers_b2): first context token, their end, null position; first, last."""
        ids_bt, lengths_b = pad_rows(
            [item.ids.tolist() for item in items], int(cast(int, self._tokenizer.pad_token_id))
        )
        arrays = [ids_bt, lengths_b, np.stack([item.targets["span"] for item in items])]
        if "answer" in items[0].targets:
            arrays.append(np.stack([item.targets["answer"] for item in items]))
        return tuple(arrays)

    def objective(self, model: nn.Module, batch: tuple[Tensor, ...]) -> tuple[Tensor, int]:
        """Mean of the cross-entropies of the start and of the end, summed over windows; and how many these are."""
        ids_bt, lengths_b, spans_b3, answers_b2 = batch
        (ids_bt,) = trim(lengths_b, ids_bt)
        logits_bt2 = span_logits(model, ids_bt, lengths_b, spans_b3)
        losses = F.cross_entropy(logits_bt2, answers_b2, reduction="sum")  # classes on axis 1: positions
        return losses / 2, len(ids_bt)

    def make_head(self, backbone: Backbone) -> nn.Module:
        """A decoder's own linear layer with two outputs; of an encoder the head of its class in transformers."""
        if backbone.kind == "encoder":
            return backbone.adopt_head(self.hub_class, self.labels)  # type: ignore[attr-defined]
        return LinearHead(backbone.width, 2, dropout=self._dropout)

    def predict(self, model: TunedModel, rows: Sequence[Row], progress: Progress | None = None) -> list[Prediction]:
        """{"text", "start", "end", "score", "margin", "n_best": [...]} a row; "" and None: no answer.

        `score` is start + end logit less the cost of the length; `margin` = score of "no answer" - score of the best.
        """
        items = self.encode(rows, is_training=False)
        left = np.bincount([item.row for item in items], minlength=len(rows))
        scored: dict[int, list[tuple[Item, np.ndarray[Any, Any]]]] = {}
        predictions: list[Prediction] = [_nothing() for _ in rows]
        done = int((left == 0).sum())
        for item, logits_t2 in _score(self, model, items):
            scored.setdefault(item.row, []).append((item, logits_t2))
            left[item.row] -= 1
            if left[item.row] == 0:
                predictions[item.row] = self._answer(scored.pop(item.row), rows[item.row]["context"])
                done += 1
                if progress is not None:
                    progress(done, len(rows))
        return predictions

    def calibrate(self, predictions: Sequence[Prediction], rows: Sequence[Row]) -> None:
        """Choose `threshold` on the validation rows' F1; without unanswerable rows there is nothing to choose."""
        if not self._has_unanswerable:
            return
        known = [(each, row) for each, row in zip(predictions, rows, strict=True) if each["margin"] is not None]
        answered = [self._row_f1(each["n_best"][0]["text"], row) for each, row in known]
        silent = [self._row_f1("", row) for _, row in known]
        self.threshold = choose_threshold([each["margin"] for each, _ in known], answered, silent)

    def measure(self, predictions: Sequence[Prediction], rows: Sequence[Row]) -> Measures:
        """SQuAD's exact match and F1 (CMRC's for Chinese)."""
        golds = [[answer["text"] for answer in row["answers"]] for row in rows]
        return measure_answers([each["text"] for each in predictions], golds, self._language)

    def zero_shot(self, backbone: Backbone, rows: Sequence[Row]) -> list[Prediction] | None:
        """Let the untouched decoder generate an answer, up to the end of its line; None for an encoder."""
        if backbone.kind != "causal":
            return None
        stops = [int(token) for token in [self._tokenizer.eos_token_id] if isinstance(token, int)]
        room = min(self._max_tokens, backbone.context - _ZERO_SHOT_TOKENS)
        prompts = [self._zero_shot_prompt(row, room) for row in rows]
        answers = backbone.generate(prompts, _ZERO_SHOT_TOKENS, stops)
        texts = [cast(str, self._tokenizer.decode(ids, skip_special_tokens=True)) for ids in answers]
        return [_nothing() | {"text": (text.strip().splitlines() or [""])[0].strip()} for text in texts]

    def describe(self) -> dict[str, Any]:
        """How questions are read and answers searched, and how to deploy it."""
        return {
            "head": "span",
            "template": self._template,
            "language": self._language,
            "max_tokens": self._max_tokens,
            "stride": self._stride,
            "longest_answer_tokens": self._lengths.longest,
            "token_cost": self._lengths.cost,
            "null_position": "first token" if self._template is None else "last token",
            "has_unanswerable": self._has_unanswerable,
            "threshold": self.threshold,
            "zero_shot": "generated: " + ZERO_SHOT_TEMPLATES[self._language],
            "pipeline": None,
        }

    def _windows(self, row: Row) -> list[SpanWindow]:
        return encode_question(
            self._tokenizer,
            row["question"],
            row["context"],
            template=self._template,
            max_tokens=self._max_tokens,
            stride=self._stride,
        )

    def _locate(self, row: Row) -> tuple[int, int] | None:
        """Where the answer to learn stands: of several, the one that people agree with most."""
        answers = row["answers"]
        order = order_by_agreement([answer["text"] for answer in answers], self._language)
        return locate_answer(row["context"], [answers[place] for place in order])

    def _answer(self, parts: Sequence[tuple[Item, np.ndarray[Any, Any]]], context: str) -> Prediction:
        windows = [_window_of(item) for item, _ in parts]
        scores = [(logits_t2[:, 0], logits_t2[:, 1]) for _, logits_t2 in parts]
        answers, null_score = best_answers(windows, scores, lengths=self._lengths, count=N_BEST)
        n_best = [
            {
                "text": context[each.start : each.end],
                "start": each.start,
                "end": each.end,
                "score": round(each.score, 4),
            }
            for each in answers
        ]
        if not n_best:
            return _nothing()
        margin = round(null_score - answers[0].score, 4)
        found = {"margin": margin, "n_best": n_best}
        if self._has_unanswerable and margin > self.threshold:
            return _nothing() | found
        return _nothing() | n_best[0] | found

    def _row_f1(self, text: str, row: Row) -> float:
        golds = [answer["text"] for answer in row["answers"]] or [""]
        return max(answer_f1(text, gold, self._language) for gold in golds)

    def _zero_shot_prompt(self, row: Row, room: int) -> list[int]:
        """The prompt; of a context that is too long the end is left out."""
        before, after = ZERO_SHOT_TEMPLATES[self._language].split("{context}")
        after = after.replace("{question}", row["question"].strip())
        tail = self._tokenizer(after, add_special_tokens=False)["input_ids"]
        head = self._tokenizer(before + row["context"].strip())["input_ids"]
        return [*head[: max(1, room - len(tail))], *tail]


def make_spans(config: TuneConfig, train_rows: Sequence[Row], backbone: Backbone) -> Spans:
    """Make the task from its training rows: the language, whether some have no answer, how long answers are.

    Raises:
        DataError: a row without a context.
        ConfigError: an encoder-decoder, which answers by generating.
    """
    if backbone.kind == "seq2seq":
        raise ConfigError('head = "span" needs a decoder or an encoder; write head = "generative"')
    for number, row in enumerate(train_rows):
        if not row.get("context"):
            raise DataError(
                f'row {number + 1} has no context to take a span from; add it, or write head = "generative"'
            )
    language = config.language or ("zh" if joiner_for([[row["context"] for row in train_rows]]) == "" else "en")
    return Spans(
        backbone,
        language=language,
        template=config.template,
        has_unanswerable=any(not row["answers"] for row in train_rows),
        lengths=_answer_lengths(backbone, train_rows, language),
        max_tokens=config.max_tokens or MAX_TOKENS,
        dropout=HEAD_DROPOUT if config.dropout is None else config.dropout,
    )


def span_logits(model: nn.Module, ids_bt: Tensor, lengths_b: Tensor, spans_b3: Tensor) -> Tensor:
    """Start and end logits, logits_bt2, float32; -inf outside the context and the null position."""
    assert isinstance(model, TunedModel)
    at_t = torch.arange(ids_bt.shape[1], device=ids_bt.device)
    first_b1, end_b1, null_b1 = spans_b3[:, :, None].unbind(dim=1)
    if isinstance(model.head, HubHead):
        more = {"token_type_ids": (at_t >= first_b1).long()} if _has_token_types(model) else {}
        found = model.head(ids_bt, lengths_b, **more)
        logits_bt2 = torch.stack((found.start_logits, found.end_logits), dim=-1).float()
    else:
        assert model.head is not None
        logits_bt2 = model.head(model.backbone.hidden(ids_bt, lengths_b))
    is_open_bt = ((at_t >= first_b1) & (at_t < end_b1)) | (at_t == null_b1)
    return logits_bt2.masked_fill(~is_open_bt[..., None], -torch.inf)


def _has_token_types(model: TunedModel) -> bool:
    """Whether an encoder tells the context (1) from the question (0), as its tokenizer does for a pair."""
    config = model.backbone.module.config  # type: ignore[union-attr]
    names = model.backbone.tokenizer.model_input_names
    return "token_type_ids" in names and getattr(config, "type_vocab_size", 0) > 1


@torch.no_grad()
def _score(task: Spans, model: TunedModel, items: Sequence[Item]) -> Iterable[tuple[Item, np.ndarray[Any, Any]]]:
    """Each window with its logits (t, 2), batches of like length."""
    device = next(model.parameters()).device
    for batch in split_by_length([item.length for item in items]):
        chosen = [items[number] for number in batch]
        ids_bt, lengths_b, spans_b3 = (torch.from_numpy(array).to(device) for array in task.collate(chosen)[:3])
        logits_bt2 = span_logits(model, ids_bt, lengths_b, spans_b3).cpu().numpy()
        for row, item in enumerate(chosen):
            yield item, logits_bt2[row, : item.length]


def _window_of(item: Item) -> SpanWindow:
    first, _, null = item.targets["span"].tolist()
    return SpanWindow(
        ids_t=item.ids, first=first, starts_c=item.targets["starts"], ends_c=item.targets["ends"], null=null
    )


def _answer_lengths(backbone: Backbone, rows: Sequence[Row], language: str) -> AnswerLengths:
    answers = [[answer["text"] for answer in row["answers"]] for row in rows if row["answers"]]
    texts = [each[order_by_agreement(each, language)[0]] for each in answers]
    ids = backbone.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    counts = [max(1, len(each)) for each in ids]
    return lengths_of(counts, shortest_limit=_SHORTEST_LIMIT, longest_limit=_LONGEST_LIMIT)


def _nothing() -> Prediction:
    return {"text": "", "start": None, "end": None, "score": None, "margin": None, "n_best": []}
