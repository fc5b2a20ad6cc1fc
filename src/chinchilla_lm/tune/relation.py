"""Relation extraction: which relation holds between two marked entities of a text.

Two heads on the same marked text (`data.markers`):
    markers             the states at the two closing markers and the last token, joined, through one hidden layer; an
                        encoder's are those of the opening markers and the first token. `tune.deployed` loads it, and
                        /v1/classify serves a decoder's.
    label-words, fresh  one matrix on the last token of a prompt that names both entities, its rows at first those of
                        the relations' names ("label-words", of a decoder) or random: an ordinary
                        ...ForSequenceClassification, which transformers' pipeline("text-classification") runs on the
                        text that `prompted_text` makes. Encoders have their own class's head, and no prompt.

Measured on SmolLM2-135M, SemEval-2010 task 8, 800 training rows, one epoch of LoRA at 1e-3, macro F1 of 300 test rows:
markers 51.4, label-words 36.2 (one seed). So "markers" is the default where it is tested: decoders and encoders.

Axes: b rows, t positions, d width, k labels, m = 3 marked positions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chinchilla_lm.core.errors import ConfigError, DataError
from chinchilla_lm.data.markers import encode_marked, entity_text, fill_marked, name_entities
from chinchilla_lm.metrics.measures import Measures
from chinchilla_lm.metrics.relation import NEGATIVES, measure_relation
from chinchilla_lm.tune.backbone import Backbone, pad_rows, split_by_length
from chinchilla_lm.tune.batches import trim
from chinchilla_lm.tune.config import TuneConfig
from chinchilla_lm.tune.hub_backbone import HubHead
from chinchilla_lm.tune.task import Item, Prediction, Progress, Row, TunedModel, refuse_unusable

Form = Literal["markers", "label-words", "fresh"]

TEMPLATES = {
    "markers": "{text}",
    "last": "{text}\nThe relation between {head} and {tail} is:",
    "zero-shot": "{text}\nThe relation between {head} and {tail} is:",
}
HEAD_DROPOUT = 0.1
HEAD_STD = 0.02
MAX_TOKENS = 256
# Rows that calibrate each other in the zero-shot form; fewer would add more noise than they take away.
# Source: TUNE.md 2.3 (batch calibration, Zhou et al. 2023, arXiv 2309.17249).
_LEAST_TO_CALIBRATE = 32
_REVERSED = re.compile(r"\(e2,\s*e1\)$")
_DIRECTION = re.compile(r"\(e[12],\s*e[12]\)$")


class Relation:
    """See `tune.task.Task`."""

    name = "relation-extraction"
    primary = "macro_f1"

    def __init__(
        self,
        backbone: Backbone,
        labels: Sequence[str],
        *,
        form: Form = "markers",
        template: str | None = None,
        label_words: dict[str, str] | None = None,
        max_tokens: int = MAX_TOKENS,
        dropout: float = HEAD_DROPOUT,
    ) -> None:
        """Notes how a row is read.

        Args:
            backbone: whose tokenizer cuts the text.
            labels: relations, in the order of the head's outputs.
            form: of the head.
            template: prompt with {text}, {head} and {tail}; None: the form's own.
            label_words: label -> the words that name it; others name themselves.
            max_tokens: longest row; of a longer text the ends far from the entities are left out.
            dropout: before the head.
        """
        self.labels = tuple(labels)
        self.hub_class = "AutoModel" if form == "markers" else "AutoModelForSequenceClassification"
        self._tokenizer = backbone.tokenizer
        self._is_encoder = backbone.kind != "causal"
        self._form: Form = form
        is_prompted = form != "markers" and not self._is_encoder
        self._template = template or TEMPLATES["last" if is_prompted else "markers"]
        if self._template.count("{text}") != 1:
            raise ConfigError(f"template {self._template!r} must hold {{text}} once; add it")
        self._words = {label: (label_words or {}).get(label) or _in_words(label) for label in labels}
        self._max_tokens = min(max_tokens, backbone.context)
        self._dropout = dropout

    def encode(self, rows: Sequence[Row], *, is_training: bool) -> list[Item]:
        """Make one item a row; in training, a row without label or whose entities do not fit is left out."""
        items: list[Item] = []
        unusable: list[int] = []
        index = {label: place for place, label in enumerate(self.labels)}
        for number, row in enumerate(rows):
            encoded = encode_marked(
                self._encode_text,
                row,
                template=self._template,
                max_tokens=self._max_tokens,
                is_encoder=self._is_encoder,
            )
            targets = {"places": np.array(encoded.places, np.int64)}
            if is_training:
                label = row.get("label")
                if label is None or not encoded.fits:
                    unusable.append(number)
                    continue
                if label not in index:
                    raise DataError(f"row {number + 1}: relation {label!r} is not among the training rows'; correct it")
                targets["label"] = np.array(index[label], np.int64)
            items.append(Item(row=number, ids=encoded.ids_t, targets=targets))
        if not is_training:
            return items
        return refuse_unusable(items, unusable, "no label, or entities further apart than max_tokens; raise it")

    def collate(self, items: Sequence[Item]) -> tuple[np.ndarray[Any, Any], ...]:
        """(ids_bt, lengths_b, places_bm, labels_b); without labels in prediction."""
        ids_bt, lengths_b = pad_rows(
            [item.ids.tolist() for item in items], int(cast(int, self._tokenizer.pad_token_id))
        )
        arrays = [ids_bt, lengths_b, np.stack([item.targets["places"] for item in items])]
        if "label" in items[0].targets:
            arrays.append(np.stack([item.targets["label"] for item in items]))
        return tuple(arrays)

    def objective(self, model: nn.Module, batch: tuple[Tensor, ...]) -> tuple[Tensor, int]:
        """Cross-entropy of each row's relation, summed; and the number of rows."""
        ids_bt, lengths_b, places_bm, labels_b = batch
        (ids_bt,) = trim(lengths_b, ids_bt)
        logits_bk = relation_logits(model, ids_bt, lengths_b, places_bm)
        return F.cross_entropy(logits_bk, labels_b, reduction="sum"), len(labels_b)

    def make_head(self, backbone: Backbone) -> nn.Module:
        """The head of the form, fresh, or its rows those of the label words; an encoder's class has its own."""
        if self._form == "markers":
            return MarkerHead(backbone.width, len(self.labels), dropout=self._dropout)
        if backbone.kind != "causal":
            return backbone.adopt_head(self.hub_class, self.labels)  # type: ignore[attr-defined]
        head = LastTokenHead(backbone.width, len(self.labels), dropout=self._dropout)
        if self._form == "label-words":
            with torch.no_grad():
                rows = [backbone.unembedding_rows(self._word_ids(label)).mean(dim=0) for label in self.labels]
                head.linear.weight.copy_(torch.stack(rows))
        return head

    def predict(self, model: TunedModel, rows: Sequence[Row], progress: Progress | None = None) -> list[Prediction]:
        """{"label", "probabilities": [k] in the order of `labels`} a row."""
        items = self.encode(rows, is_training=False)
        predictions: list[Prediction] = [{} for _ in rows]
        for done, (item, p_k) in enumerate(_score(self, model, items), start=1):
            predictions[item.row] = self._prediction(p_k)
            if progress is not None:
                progress(done, len(rows))
        return predictions

    def measure(self, predictions: Sequence[Prediction], rows: Sequence[Row]) -> Measures:
        """SemEval-2010 task 8's macro F1 and others."""
        # By the labels that are known: few test rows may have none without a relation, and a model still says so.
        negative = next((name for name in NEGATIVES if name in self.labels), None)
        return measure_relation([each["label"] for each in predictions], [row["label"] for row in rows], negative)

    def zero_shot(self, backbone: Backbone, rows: Sequence[Row]) -> list[Prediction] | None:
        """Let the untouched decoder name the relation after a prompt, calibrated over the rows; None for others.

        A relation written NAME(e2,e1) is asked with the entities in that order. A name of several tokens scores their
        mean, as if the head were made of label words.
        """
        if backbone.kind != "causal":
            return None
        ids_k = [self._word_ids(label) for label in self.labels]
        is_reversed_k = np.array([bool(_REVERSED.search(label)) for label in self.labels])
        scores_nk = np.zeros((len(rows), len(self.labels)))
        for is_reversed in sorted(set(is_reversed_k.tolist())):
            prompts = [self._zero_shot_prompt(row, is_reversed=is_reversed) for row in rows]
            columns = np.flatnonzero(is_reversed_k == is_reversed)
            for batch in split_by_length([len(prompt) for prompt in prompts]):
                logps_bv = backbone.next_token_logits([prompts[number] for number in batch]).log_softmax(dim=-1)
                for column in columns:
                    scores_nk[batch, column] = logps_bv[:, ids_k[column]].mean(dim=1).cpu().numpy()
        if len(rows) >= _LEAST_TO_CALIBRATE:
            scores_nk -= scores_nk.mean(axis=0)
        p_nk = np.exp(scores_nk - scores_nk.max(axis=1, keepdims=True))
        return [self._prediction(p_k) for p_k in p_nk / p_nk.sum(axis=1, keepdims=True)]

    def describe(self) -> dict[str, Any]:
        """The form of the head, the markers and the prompt, and how to deploy it."""
        return {
            "head": self._form,
            "labels": list(self.labels),
            "template": self._template,
            "markers": "@ * type * head @, # ^ type ^ tail # (without types: @ head @, # tail #)",
            "max_tokens": self._max_tokens,
            "zero_shot": TEMPLATES["zero-shot"],
            "pipeline": None if self._form == "markers" else "text-classification on the marked text with its prompt",
        }

    def prompted_text(self, row: Row) -> str:
        """The text that the model reads for a row: what goes into transformers' pipeline("text-classification")."""
        return fill_marked(row, self._template)[0]

    def _encode_text(self, text: str) -> tuple[list[int], Sequence[tuple[int, int]]]:
        encoding = self._tokenizer(text, return_offsets_mapping=True)
        return encoding["input_ids"], encoding["offset_mapping"]

    def _zero_shot_prompt(self, row: Row, *, is_reversed: bool) -> list[int]:
        head, tail = entity_text(row, "head"), entity_text(row, "tail")
        first, second = (tail, head) if is_reversed else (head, tail)
        before, after = TEMPLATES["zero-shot"].split("{text}")
        prompt = before + row["text"] + name_entities(after, {"{head}": first, "{tail}": second})
        return self._tokenizer(prompt)["input_ids"][-self._max_tokens :]

    def _word_ids(self, label: str) -> list[int]:
        return self._tokenizer(" " + self._words[label], add_special_tokens=False)["input_ids"]

    def _prediction(self, p_k: np.ndarray[Any, Any]) -> Prediction:
        return {"label": self.labels[int(p_k.argmax())], "probabilities": [round(float(p), 6) for p in p_k]}


class MarkerHead(nn.Module):
    """Three states, joined, one hidden layer with GELU, labels; dropout before both matrices."""

    def __init__(self, width: int, outputs: int, *, dropout: float) -> None:
        """Draws both matrices from N(0, 0.02^2) by torch's global generator; biases are 0."""
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.hidden = nn.Linear(3 * width, width)
        self.linear = nn.Linear(width, outputs)
        for layer in (self.hidden, self.linear):
            nn.init.normal_(layer.weight, std=HEAD_STD)
            nn.init.zeros_(layer.bias)

    def forward(self, x_bmd: Tensor) -> Tensor:
        """Logits of every row, float32."""
        hidden_bd = F.gelu(self.hidden(self.dropout(x_bmd.float().flatten(1))))
        return self.linear(self.dropout(hidden_bd))


class LastTokenHead(nn.Module):
    """Dropout and one matrix without a bias: the head of transformers' ...ForSequenceClassification on a decoder."""

    def __init__(self, width: int, outputs: int, *, dropout: float) -> None:
        """Draws the matrix from N(0, 0.02^2) by torch's global generator."""
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width, outputs, bias=False)
        nn.init.normal_(self.linear.weight, std=HEAD_STD)

    def forward(self, x_bd: Tensor) -> Tensor:
        """Logits of every row, float32."""
        return self.linear(self.dropout(x_bd.float()))


def make_relation(config: TuneConfig, train_rows: Sequence[Row], backbone: Backbone) -> Relation:
    """Make the task: relations from the training rows; the head "auto" is the better one (top of the file).

    Raises:
        DataError: fewer than two relations.
        ConfigError: a head that relations do not have.
    """
    labels = sorted({row["label"] for row in train_rows if row.get("label") is not None})
    if len(labels) < 2:
        raise DataError(f"{len(train_rows)} training rows hold {len(labels)} relations; give rows of two or more")
    form = config.head
    if form == "auto":
        form = "fresh" if backbone.kind == "seq2seq" else "markers"
    if form not in ("markers", "label-words", "fresh"):
        raise ConfigError(f'head = "{form}" is none for relations; write "markers", "label-words" or "fresh"')
    if form == "label-words" and backbone.kind != "causal":
        raise ConfigError('head = "label-words" is for decoders; write "fresh" or "markers"')
    return Relation(
        backbone,
        labels,
        form=form,
        template=config.template,
        label_words=dict(config.label_words),
        max_tokens=config.max_tokens or MAX_TOKENS,
        dropout=HEAD_DROPOUT if config.dropout is None else config.dropout,
    )


def relation_logits(model: nn.Module, ids_bt: Tensor, lengths_b: Tensor, places_bm: Tensor) -> Tensor:
    """Logits of every row, logits_bk, float32."""
    assert isinstance(model, TunedModel)
    if isinstance(model.head, HubHead):
        return model.head(ids_bt, lengths_b).logits.float()
    assert model.head is not None
    x_btd = model.backbone.hidden(ids_bt, lengths_b)
    x_bmd = x_btd.gather(1, places_bm[..., None].expand(-1, -1, x_btd.shape[-1]))
    return model.head(x_bmd if isinstance(model.head, MarkerHead) else x_bmd[:, -1])


@torch.no_grad()
def _score(task: Relation, model: TunedModel, items: Sequence[Item]) -> Iterable[tuple[Item, np.ndarray[Any, Any]]]:
    """Each item with its labels' probabilities, batches of like length."""
    device = next(model.parameters()).device
    for batch in split_by_length([item.length for item in items]):
        chosen = [items[number] for number in batch]
        ids_bt, lengths_b, places_bm = (torch.from_numpy(array).to(device) for array in task.collate(chosen)[:3])
        p_bk = relation_logits(model, ids_bt, lengths_b, places_bm).softmax(dim=-1).cpu().numpy()
        yield from zip(chosen, p_bk, strict=True)


def _in_words(label: str) -> str:
    """Component-Whole(e2,e1) -> component whole; per:city_of_birth -> per city of birth."""
    return re.sub(r"[\W_]+", " ", _DIRECTION.sub("", label)).strip().lower() or label
