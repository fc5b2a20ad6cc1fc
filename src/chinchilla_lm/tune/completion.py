"""Generative tasks on a decoder: a prompt, then its completion, and the loss on the completion alone.

translation, summarization, text-generation (with or without prompts, with control fields, code) and question-answering
by writing (with a text or from memory). An update's loss is the sum over its completion tokens divided by their number
in the whole batch (the loop divides), so that neither micro-batches nor packing weigh a token differently.
Dialogues are in `dialogue`, encoder-decoders in `seq2seq`. Never trains. Axes: b rows, t positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from chinchilla_lm.core.errors import ConfigError
from chinchilla_lm.tune.batches import trim
from chinchilla_lm.tune.completion_tokens import IGNORED, EncodedPair, PairEncoder
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
from chinchilla_lm.tune.packing import pack_examples, packed_token_losses, packing_obstacle
from chinchilla_lm.tune.prompts_generative import make_template, script_of, stop_texts
from chinchilla_lm.tune.task import Item, Row, TunedModel, refuse_unusable

if TYPE_CHECKING:
    from chinchilla_lm.tune.backbone import Backbone


def make_completion(config: TuneConfig, train_rows: Sequence[Row], backbone: Backbone) -> Any:
    """Make the task: on a decoder `CompletionTask`, on an encoder-decoder `seq2seq.Seq2SeqTask`.

    Raises:
        ConfigError: the model is an encoder, which does not write.
        DataError: a row lacks a field.
    """
    texts = make_texts(config, train_rows)
    if backbone.kind == "seq2seq":
        from chinchilla_lm.tune.seq2seq import Seq2SeqTask  # decoders do without

        return Seq2SeqTask(config, texts, train_rows, backbone)
    if backbone.kind != "causal":
        raise ConfigError(
            f"task {config.task!r} needs a model that writes, and {config.model} is an encoder; choose a decoder, or "
            'for question-answering head = "span"'
        )
    return CompletionTask(config, texts, train_rows, backbone)


def make_texts(config: TuneConfig, train_rows: Sequence[Row]) -> AnswerTexts:
    """The text side of a generative task: template, languages and stops by the config and the training rows."""
    task = config.task
    language = config.language
    codes = (config.columns.get("source", ""), config.columns.get("target", ""))
    known = tuple(code if len(code) == 2 and code.isalpha() else "" for code in codes)
    if language is None:
        first = [str(value) for row in train_rows[:50] for value in row.values() if isinstance(value, str)]
        language = "zh" if task != "translation" and script_of(first) == "zh" else "en"
    template = make_template(task, train_rows, language=language, written=config.template, codes=(known[0], known[1]))
    draft = AnswerTexts(task=task, language=language, answer_language=language, template=template, stops=())
    answers = [draft.answers(row)[0] for row in train_rows]
    spoken = script_of(answers[:100]) or (known[1] if task == "translation" else "")
    return AnswerTexts(
        task=task,
        language=language,
        answer_language=spoken or ("en" if task == "translation" else language),
        template=template,
        stops=() if task == "text-generation" else stop_texts(answers),
    )


class CompletionTask:
    """A generative task on a decoder; see `tune.task.Task`."""

    hub_class = "AutoModelForCausalLM"
    labels: tuple[str, ...] = ()
    make_head = no_head
    predict = predict_texts
    validate = validate_answers
    measure = measure_texts
    zero_shot = predict_untouched

    def __init__(self, config: TuneConfig, texts: AnswerTexts, train_rows: Sequence[Row], backbone: Backbone) -> None:
        """Measures the training answers to know how long a written one may become."""
        self.name: str = config.task
        self.primary = PRIMARY[config.task]
        self.texts = texts
        self.is_packed = check_packing(config, backbone)
        self.max_tokens = config.max_tokens or min(MAX_TOKENS, backbone.context)
        self.encoder = PairEncoder(backbone.tokenizer, self.max_tokens)
        answer_tokens = [len(self.encoder.bare(texts.answers(row)[0])) for row in train_rows[:1000]]
        self.writing = settle_writing(config, backbone, self.max_tokens, answer_tokens, texts.stops)
        self.cut_counts = {"prompts_cut": 0, "answers_cut": 0, "rows_refused": 0}

    def encode(self, rows: Sequence[Row], *, is_training: bool) -> list[Item]:
        """One item a row, inputs and targets shifted; a text without a prompt that is too long becomes several.

        Rows whose answer would be cut away whole are left out and counted.
        """
        items, refused, cut = [], [], {"prompts_cut": 0, "answers_cut": 0}
        for index, row in enumerate(rows):
            pairs = self._encode_row(row)
            if not pairs:
                refused.append(index)
            for pair in pairs:
                cut["prompts_cut"] += pair.is_prompt_cut
                cut["answers_cut"] += pair.is_completion_cut
                items.append(Item(row=index, ids=pair.inputs, targets={"targets": pair.targets}))
        if is_training:
            self.cut_counts = cut | {"rows_refused": len(refused)}
            reason = f"the prompt alone fills max_tokens = {self.max_tokens}; raise it, or shorten the template"
            refuse_unusable(items, refused, reason)
        return items

    def collate(self, items: Sequence[Item]) -> tuple[np.ndarray[Any, Any], ...]:
        """(ids_bt, lengths_b, targets_bt), padded on the right; packed: also documents_bt, and fewer rows."""
        return collate_completions(items, self.max_tokens if self.is_packed else None)

    def objective(self, model: nn.Module, batch: tuple[Tensor, ...], /) -> tuple[Tensor, int]:
        """Sum of the completion tokens' losses, nats, and their number."""
        return completion_objective(model, batch)

    def describe(self) -> dict[str, Any]:
        """Template, stops, lengths, and what was cut from the training rows."""
        limits = {"max_tokens": self.max_tokens, "is_packed": self.is_packed} | self.writing.describe()
        return self.texts.describe() | limits | self.cut_counts

    def prompt_ids(self, row: Row) -> list[int]:
        """Tokens after which the model writes its answer, room for that left."""
        room = min(self.writing.max_tokens, self.max_tokens - 1)
        return self.encoder.encode_prompt(self.texts.prompt(row), self._shortener(row), room)

    def losses_of(self, backbone: Backbone, items: Sequence[Item]) -> np.ndarray[Any, Any]:
        """Summed loss of each item, nats, float64 (b), without gradient."""
        return item_losses(backbone, items)

    def _encode_row(self, row: Row) -> list[EncodedPair]:
        prompt, completion = self.texts.prompt(row), self.texts.completion(row)
        if not prompt:
            return split_text(self.encoder, completion)
        pair = self.encoder.encode(prompt, completion, self._shortener(row))
        return [] if pair is None else [pair]

    def _shortener(self, row: Row) -> Any:
        template = self.texts.template
        if template.cut_field is None:
            return None
        field = str(row.get(template.cut_field) or "")
        return self.encoder.shortener(field, lambda text: template.prompt(row, shortened=text)[0])


def check_packing(config: TuneConfig, backbone: Backbone) -> bool:
    """Whether to pack, as the config says.

    Raises:
        ConfigError: the config says so, and this model or method cannot.
    """
    obstacle = packing_obstacle(backbone, config.method) if config.is_packed else ""
    if obstacle:
        raise ConfigError(f"is_packed = true cannot be: {obstacle}; remove it (rows of like length go together anyway)")
    return config.is_packed


def split_text(encoder: PairEncoder, text: str) -> list[EncodedPair]:
    """Cut a text without a prompt into rows of max_tokens; each begins with the last token of the one before.

    So every token of the text, and the end-of-text token, is a target exactly once.
    """
    limit, encoder_whole = encoder.max_tokens, PairEncoder(encoder.tokenizer, 1 << 40)
    whole = encoder_whole.encode("", text)
    assert whole is not None, "a text always has its end-of-text token"
    pieces = [EncodedPair(ids=whole.ids[:limit], boundary=whole.boundary)]
    for start in range(limit, len(whole.ids), limit - 1):
        pieces.append(EncodedPair(ids=whole.ids[start - 1 : start + limit - 1], boundary=1))
    return pieces


def collate_completions(items: Sequence[Item], capacity: int | None) -> tuple[np.ndarray[Any, Any], ...]:
    """Make a batch of shifted examples.

    Args:
        items: with targets "targets" (t).
        capacity: tokens of a packed row, at least the longest item; None: one example a row.

    Returns:
        (ids_bt, lengths_b, targets_bt), int64, padded with 0 and -100; packed: also documents_bt.
    """
    inputs, targets = [item.ids for item in items], [item.targets["targets"] for item in items]
    if capacity is not None:
        return pack_examples(inputs, targets, max(capacity, *(len(ids) for ids in inputs)))
    lengths_b = np.asarray([len(ids) for ids in inputs], dtype=np.int64)
    ids_bt = np.zeros((len(items), int(lengths_b.max())), dtype=np.int64)
    targets_bt = np.full_like(ids_bt, IGNORED)
    for row, (ids, wanted) in enumerate(zip(inputs, targets, strict=True)):
        ids_bt[row, : len(ids)], targets_bt[row, : len(ids)] = ids, wanted
    return ids_bt, lengths_b, targets_bt


def completion_objective(model: nn.Module, batch: tuple[Tensor, ...]) -> tuple[Tensor, int]:
    """Sum of the targets' losses of one micro-batch, and their number; padding beyond its longest row is left out."""
    assert isinstance(model, TunedModel)
    losses_bt, targets_bt = _losses(model.backbone, batch)
    return losses_bt.sum(dtype=torch.float32), int((targets_bt != IGNORED).sum())


def item_losses(backbone: Backbone, items: Sequence[Item]) -> np.ndarray[Any, Any]:
    """Summed loss of each item, nats, float64 (b), without gradient."""
    batch = tuple(torch.from_numpy(array).to(backbone.device) for array in collate_completions(items, None))
    with torch.no_grad():
        losses_bt, _ = _losses(backbone, batch)
    return losses_bt.double().sum(1).cpu().numpy()


def _losses(backbone: Backbone, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    lengths_b = batch[1]
    ids_bt, targets_bt, *documents = trim(lengths_b, batch[0], *batch[2:])
    if documents:
        return packed_token_losses(backbone, ids_bt, targets_bt, documents[0]), targets_bt
    return backbone.token_losses(ids_bt, targets_bt, lengths_b), targets_bt
