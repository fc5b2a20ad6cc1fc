"""Text classification: one label of two or more, several labels, one text or two.

Decoders read a prompt and answer in their own words. The logit of a label is the last state times the mean of the
output-matrix rows of the label word's tokens, less the mean over the labels (which changes no probability): at the
first step exactly the model's own zero-shot answer.

    head "label-words"   these rows stay as they are; the network learns to say them. Default below 2,000 rows where the
                         tokenizer knows the words: measured on 400 SST-2 rows, 90.0 against 71.0 for a head from
                         scratch (zero-shot 78.0).
    head "fresh"         these rows are where a trained matrix starts from, so that it begins at zero-shot, too. With
                         several labels a row always this one, and from the labels' shares (`tune.label_sets`).

Encoders and encoder-decoders use the head of their own class (BERT's pooler, BART's end token) and no prompt.

Axes: b rows, t positions, d width, k labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chinchilla_lm.core.errors import ConfigError, DataError
from chinchilla_lm.metrics.classification import measure_classification, measure_multilabel
from chinchilla_lm.metrics.measures import Measures
from chinchilla_lm.tune.backbone import Backbone, last_states, pad_rows, split_by_length
from chinchilla_lm.tune.batches import trim
from chinchilla_lm.tune.config import TuneConfig
from chinchilla_lm.tune.label_sets import all_labels, labels_alike, labels_of, start_at_base_rates
from chinchilla_lm.tune.prompted_tokenizer import add_prompt, spells_whole, word_ids
from chinchilla_lm.tune.task import Item, Prediction, Progress, Row, TunedModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

LABEL_WORDS_BELOW_ROWS = 2000
"""Fewer training rows than this, and the model's own words are the head (see the top of the file; TUNE notes 4b)."""
# Prompts by what the labels are about; "{text}" is filled in. The sentiment one is that of the measurement above.
_SENTIMENTS = frozenset(
    ("positive", "negative", "neutral", "mixed", "pos", "neg", "积极", "消极", "正面", "负面", "中性")
)
_TEMPLATES: Mapping[tuple[str, str], str] = {
    ("sentiment", "en"): "Review: {text}\nSentiment:",
    ("sentiment", "zh"): "评论：{text}\n情感：",
    ("pair", "en"): "First: {text}\nSecond: {text_pair}\nRelation:",
    ("pair", "zh"): "第一句：{text}\n第二句：{text_pair}\n关系：",
    ("topic", "en"): "Text: {text}\nLabel:",
    ("topic", "zh"): "文本：{text}\n类别：",
}
_FULL_WORDS = {"pos": "positive", "neg": "negative"}
_HEAD_DROPOUT = 0.1  # Devlin et al. 2019, section A.2, before the classifier
_CHINESE_SHARE = 0.2  # of the characters: fewer are names in an English text


class LabelHead(nn.Module):
    """Logits of labels from one state. Attribute `weight` (k, d), float32: a parameter if it is trained."""

    weight: Tensor

    def __init__(self, weight_kd: Tensor, *, is_trained: bool, dropout: float) -> None:
        """`weight_kd` is copied."""
        super().__init__()
        start = weight_kd.detach().float().clone()
        if is_trained:
            self.weight = nn.Parameter(start)
        else:
            self.register_buffer("weight", start)
        self.dropout = dropout

    def forward(self, x_bd: Tensor) -> Tensor:
        """logits_bk, float32."""
        return F.linear(F.dropout(x_bd.float(), self.dropout, self.training), self.weight)


class Classification:
    """See `tune.task.Task`; `make_classification` builds it from rows."""

    name = "text-classification"
    hub_class = "AutoModelForSequenceClassification"

    def __init__(
        self,
        config: TuneConfig,
        backbone: Backbone,
        labels: tuple[str, ...],
        *,
        head: str,
        template: str | None,
        train_rows: Sequence[Row] = (),
        is_multilabel: bool = False,
    ) -> None:
        """Builds the tokenizer that carries the prompt.

        Args:
            config: resolved: max_tokens is set.
            backbone: the model that will be tuned; kept for its tokenizer only.
            labels: in the order of the logits, at least two (one, if several may hold).
            head: "label-words", "fresh" (decoders), or "own" (the class's own).
            template: of a decoder's prompt; None: no prompt.
            train_rows: the first show how texts are cut into tokens behind the prompt, all how often labels hold.
            is_multilabel: a row has a set of labels.
        """
        assert config.max_tokens is not None, "resolve the config first"
        self.primary = "micro_f1" if is_multilabel else "accuracy"
        self.labels = labels
        self.is_multilabel = is_multilabel
        self._config = config
        self._head = head
        self._template = template
        self._form = backbone.form
        self._plain_tokenizer = backbone.tokenizer
        self._train_rows = train_rows
        samples = [{"text": row["text"], "text_pair": row.get("text_pair") or ""} for row in train_rows[:32]]
        self.tokenizer: PreTrainedTokenizerFast = (
            backbone.tokenizer if template is None else add_prompt(backbone.tokenizer, template, samples)
        )
        self.tokenizer.model_max_length = config.max_tokens
        self._filler = int(cast(int, backbone.tokenizer.pad_token_id))
        self._check_room()
        self._texts_cut = 0
        self._has_types = head == "own" and "token_type_ids" in self.tokenizer.model_input_names

    @property
    def hub_settings(self) -> dict[str, Any]:
        """Keys of the saved config.json beside the labels."""
        problem = "multi_label_classification" if self.is_multilabel else "single_label_classification"
        return {"problem_type": problem, "pad_token_id": self._filler}

    def encode(self, rows: Sequence[Row], *, is_training: bool) -> list[Item]:
        """One item a row; labels are wanted in training only."""
        if not rows:
            return []
        encoded = cast(Any, self.tokenizer)(*self._texts(rows), truncation=True, max_length=self._config.max_tokens)
        if is_training:
            self._texts_cut = sum(bool(encoding.overflowing) for encoding in encoded.encodings)
        items: list[Item] = []
        for index, ids in enumerate(encoded["input_ids"]):
            ids = ids or [self._filler]  # an empty text without a prompt still has one position to read
            targets: dict[str, Any] = {}
            if self._has_types:
                targets["types"] = np.array(encoded["token_type_ids"][index] or [0], dtype=np.int64)
            if is_training:
                targets["label"] = self._target(rows[index], index)
            items.append(Item(row=index, ids=np.array(ids, dtype=np.int64), targets=targets))
        return items

    def collate(self, items: Sequence[Item]) -> tuple[np.ndarray[Any, Any], ...]:
        """(ids_bt, lengths_b, then types_bt for models that have them, then labels_b or labels_bk)."""
        ids_bt, lengths_b = pad_rows([item.ids.tolist() for item in items], self._filler)
        arrays = [ids_bt, lengths_b]
        if self._has_types:
            arrays.append(pad_rows([item.targets["types"].tolist() for item in items], 0)[0])
        if "label" in items[0].targets:
            arrays.append(np.stack([item.targets["label"] for item in items]))
        return tuple(arrays)

    def objective(self, model: nn.Module, batch: tuple[Tensor, ...]) -> tuple[Tensor, int]:
        """Cross-entropy of the labels; of a set of labels, the mean of their binary cross-entropies."""
        *inputs, labels = batch
        logits_bk = self._logits(cast(TunedModel, model), tuple(inputs))
        if self.is_multilabel:
            losses_bk = F.binary_cross_entropy_with_logits(logits_bk, labels.float(), reduction="none")
            return losses_bk.mean(dim=1).sum(), len(labels)
        return F.cross_entropy(logits_bk, labels, reduction="sum"), len(labels)

    def make_head(self, backbone: Backbone) -> nn.Module:
        """The class's own head, or label words' rows."""
        if self._head == "own":
            from chinchilla_lm.tune.hub_backbone import HubBackbone  # it imports transformers: seconds

            assert isinstance(backbone, HubBackbone)
            return backbone.adopt_head(self.hub_class, self.labels, problem_type=self.hub_settings["problem_type"])
        is_trained = self._head == "fresh"
        dropout = self._config.dropout
        if dropout is None:
            dropout = _HEAD_DROPOUT if is_trained else 0.0
        weight_kd = self.label_rows(backbone)
        if self.is_multilabel and self._train_rows:
            read = partial(self._states, backbone)
            weight_kd = start_at_base_rates(weight_kd, self._train_rows, self.labels, read)
        return LabelHead(weight_kd, is_trained=is_trained, dropout=dropout)

    @torch.no_grad()
    def label_rows(self, backbone: Backbone) -> Tensor:
        """Mean of the output-matrix rows of each label word's tokens, less the mean over the labels: w_kd, float32."""
        rows = [backbone.unembedding_rows(ids).mean(dim=0) for ids in self._word_ids().values()]
        w_kd = torch.stack(rows)
        return w_kd - w_kd.mean(dim=0)

    @torch.no_grad()
    def predict(self, model: TunedModel, rows: Sequence[Row], progress: Progress | None = None) -> list[Prediction]:
        """{"label", "probability", "probabilities"} a row; of a set of labels {"label": [...], "probabilities"}."""
        found: list[Prediction] = [{}] * len(rows)
        done = 0
        for items in self._batches(rows):
            tensors = tuple(torch.from_numpy(array).to(model.backbone.device) for array in self.collate(items))
            logits_bk = self._logits(model, tensors).double()
            p_bk = logits_bk.sigmoid() if self.is_multilabel else logits_bk.softmax(dim=-1)
            for item, p_k in zip(items, p_bk.cpu().numpy(), strict=True):
                found[item.row] = self._say(p_k)
            done += len(items)
            if progress is not None:
                progress(done, len(rows))
        return found

    def measure(self, predictions: Sequence[Prediction], rows: Sequence[Row]) -> Measures:
        """Accuracy, F1, MCC and calibration; a label that training never saw counts as missed."""
        p_nk = np.array([each["probabilities"] for each in predictions])
        golds = [labels_of(row) for row in rows]
        several = next((number for number, gold in enumerate(golds, start=1) if len(gold) != 1), None)
        if not self.is_multilabel and several is not None:
            raise DataError(
                f"row {several} to measure has {len(golds[several - 1])} labels and the training rows have one each;"
                " give it one, or write the training labels as lists"
            )
        gold: list[Any] = golds if self.is_multilabel else [labels[0] for labels in golds]
        given = {label for labels in golds for label in labels}
        labels = [*self.labels, *sorted(given - {*self.labels})]
        p_nk = np.pad(p_nk, ((0, 0), (0, len(labels) - p_nk.shape[1])))
        said = [each["label"] for each in predictions]
        measure = measure_multilabel if self.is_multilabel else measure_classification
        return measure(said, gold, labels, p_nk)

    def zero_shot(self, backbone: Backbone, rows: Sequence[Row]) -> list[Prediction] | None:
        """The decoder's own choice among the label words; None for others."""
        if self._head == "own":
            return None
        head = LabelHead(self.label_rows(backbone), is_trained=False, dropout=0.0)
        return self.predict(TunedModel(backbone, head.to(backbone.device)).eval(), rows)

    def describe(self) -> dict[str, Any]:
        """Head, prompt and label words, for the record and the card."""
        described: dict[str, Any] = {"head": self._head, "labels": list(self.labels), "backbone": self._form}
        described |= {"is_multilabel": self.is_multilabel, "texts_cut": self._texts_cut}
        if self._head != "own":
            words = self._word_ids()
            described |= {"template": self._template, "pooling": self._config.pooling}
            described["label_words"] = {label: _word_of(label, self._config) for label in self.labels}
            if any(len(ids) > 1 for ids in words.values()):
                described["note"] = "A label word of several tokens is scored by the mean of their rows."
        return described

    # Inside

    def _check_room(self) -> None:
        """Refuse a max_tokens that the prompt alone fills: the tokenizer would then cut nothing at all."""
        most, is_pair = self._config.max_tokens or 0, any(row.get("text_pair") is not None for row in self._train_rows)
        fixed = self.tokenizer.num_special_tokens_to_add(pair=is_pair)
        if most <= fixed:
            raise ConfigError(
                f"max_tokens = {most} must be more than the {fixed} tokens around a text; raise it, or shorten template"
            )

    def _texts(self, rows: Sequence[Row]) -> tuple[list[str], ...]:
        texts = [row["text"] for row in rows]
        if any(row.get("text_pair") is not None for row in rows):
            return texts, [row.get("text_pair") or "" for row in rows]
        return (texts,)

    def _target(self, row: Row, index: int) -> np.ndarray[Any, Any]:
        given = labels_of(row)
        unknown = [label for label in given if label not in self.labels]
        if unknown:
            raise DataError(f"row {index}: label {unknown[0]!r} is none of the {len(self.labels)} labels; correct it")
        places = [self.labels.index(label) for label in given]
        if not self.is_multilabel:
            return np.array(places[0], dtype=np.int64)
        target_k = np.zeros(len(self.labels), dtype=np.float32)
        target_k[places] = 1
        return target_k

    def _logits(self, model: TunedModel, inputs: tuple[Tensor, ...]) -> Tensor:
        lengths_b = inputs[1]
        ids_bt, *types = trim(lengths_b, inputs[0], *inputs[2:])
        if self._head == "own":
            assert model.head is not None
            more = {"token_type_ids": types[0]} if types else {}
            return model.head(ids_bt, lengths_b, **more).logits.float()
        return cast(nn.Module, model.head)(self._pool(model.backbone.hidden(ids_bt, lengths_b), lengths_b))

    def _pool(self, x_btd: Tensor, lengths_b: Tensor) -> Tensor:
        return last_states(x_btd, lengths_b) if self._config.pooling == "last" else mean_states(x_btd, lengths_b)

    def _states(self, backbone: Backbone, rows: Sequence[Row]) -> Tensor:
        """What the head reads of each row, x_nd, in no order."""
        found: list[Tensor] = []
        for items in self._batches(rows):
            ids_bt, lengths_b = (torch.from_numpy(array).to(backbone.device) for array in self.collate(items)[:2])
            found.append(self._pool(backbone.hidden(ids_bt, lengths_b), lengths_b))
        return torch.cat(found)

    def _batches(self, rows: Sequence[Row]) -> Iterator[list[Item]]:
        items = self.encode(rows, is_training=False)
        for places in split_by_length([item.length for item in items]):
            yield [items[place] for place in places]

    def _say(self, p_k: np.ndarray[Any, Any]) -> Prediction:
        probabilities = [round(float(p), 9) for p in p_k]
        if self.is_multilabel:
            chosen = [label for label, p in zip(self.labels, p_k, strict=True) if p > 0.5]
            return {"label": chosen, "probabilities": probabilities}
        best = int(p_k.argmax())
        return {"label": self.labels[best], "probability": probabilities[best], "probabilities": probabilities}

    def _word_ids(self) -> dict[str, list[int]]:
        assert self._template is not None
        words = {label: _word_of(label, self._config) for label in self.labels}
        return {label: word_ids(self._plain_tokenizer, self._template, word) for label, word in words.items()}


def make_classification(config: TuneConfig, train_rows: Sequence[Row], backbone: Backbone) -> Classification:
    """Find the labels, the language, the head and the prompt of a set of rows.

    Raises:
        DataError: fewer than two labels.
        ConfigError: a head or a label word that does not fit, or two labels whose words are the same tokens.
    """
    is_multilabel = any(not isinstance(row["label"], str) for row in train_rows)
    labels = all_labels(train_rows)
    if len(labels) < (1 if is_multilabel else 2):
        raise DataError(f"the training rows have {len(labels)} labels ({', '.join(labels)}); classification needs two")
    head = _choose_head(config, backbone, labels, len(train_rows), is_multilabel=is_multilabel)
    template = None if head == "own" else config.template or _template_for(config, train_rows, labels)
    unknown = [label for label in config.label_words if label not in labels]
    if unknown:
        raise ConfigError(f"label_words names {unknown[0]!r}, but the labels are {', '.join(labels[:20])}; correct it")
    make = partial(
        Classification, config, backbone, labels, template=template, train_rows=train_rows, is_multilabel=is_multilabel
    )
    task = make(head=head)
    alike = labels_alike(task._word_ids()) if head == "label-words" else None
    if alike is None:
        return task
    if config.head == "auto":
        return make(head="fresh")
    raise ConfigError(
        f"the labels {alike[0]!r} and {alike[1]!r} have words of the same tokens, which no tuning could tell apart; "
        f'name one by label_words, such as {alike[1]}=..., or write head = "fresh"'
    )


def mean_states(x_btd: Tensor, lengths_b: Tensor) -> Tensor:
    """The mean of each row's real states, x_bd, float32."""
    is_real_bt = torch.arange(x_btd.shape[1], device=x_btd.device) < lengths_b[:, None]
    return (x_btd.float() * is_real_bt[..., None]).sum(dim=1) / lengths_b[:, None]


def language_of(texts: Sequence[str]) -> str:
    """Return "zh" where a fifth of the characters are Chinese, else "en"."""
    sample = "".join(texts[:200])
    chinese = sum("\u4e00" <= character <= "\u9fff" for character in sample)
    return "zh" if chinese > _CHINESE_SHARE * max(1, len(sample)) else "en"


def _choose_head(
    config: TuneConfig, backbone: Backbone, labels: Sequence[str], rows: int, *, is_multilabel: bool
) -> str:
    if config.head not in ("auto", "label-words", "fresh"):
        raise ConfigError(f'head = "{config.head}" is not for classification; write "label-words", "fresh" or "auto"')
    if backbone.kind != "causal":
        if config.head == "label-words":
            raise ConfigError(
                f'head = "label-words" is for decoders, and {config.model} is an {backbone.kind}; write head = "fresh"'
            )
        return "own"
    if is_multilabel:
        if config.head == "label-words":
            raise ConfigError('head = "label-words" gives one label a row, and rows have several; write head = "fresh"')
        return "fresh"
    if config.head != "auto":
        return config.head
    is_few = rows < LABEL_WORDS_BELOW_ROWS and config.method != "head"
    knows_words = is_few and spells_whole(backbone.tokenizer, [_word_of(label, config) for label in labels])
    return "label-words" if knows_words else "fresh"


def _template_for(config: TuneConfig, rows: Sequence[Row], labels: Sequence[str]) -> str:
    language = config.language or language_of([row["text"] for row in rows])
    if any(row.get("text_pair") is not None for row in rows):
        return _TEMPLATES["pair", language]
    is_sentiment = {label.lower() for label in labels} <= _SENTIMENTS
    return _TEMPLATES["sentiment" if is_sentiment else "topic", language]


def _word_of(label: str, config: TuneConfig) -> str:
    """What names a label in the prompt's answer; of its own accord "card_arrival" reads "card arrival"."""
    return config.label_words.get(label) or _FULL_WORDS.get(label) or label.replace("_", " ").strip() or label
