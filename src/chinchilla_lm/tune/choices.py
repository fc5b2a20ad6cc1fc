r"""Multiple choice and commonsense: which of k answers follows the question.

Decoders and encoder-decoders price each answer behind the prompt; its logit is ln p(answer | prompt) per byte (or per
token, or whole), times the mean number of bytes of an answer, so that a difference is in nats of an average answer.
Training is cross-entropy over the k answers of a question. Before the first step this is zero-shot scoring, and the
tuned folder is an ordinary language model. Encoders use their ForMultipleChoice class on pairs (question, answer).

Prompt and answer are tokenised together and parted at their longest common token prefix.
Axes: b rows, k choices, t positions read, u positions priced, n = b k pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chinchilla_lm.core.errors import ConfigError, DataError
from chinchilla_lm.metrics.classification import measure_choices
from chinchilla_lm.metrics.measures import Measures
from chinchilla_lm.tune.backbone import IGNORED, Backbone, pad_rows, split_by_length
from chinchilla_lm.tune.classification import language_of
from chinchilla_lm.tune.config import TuneConfig
from chinchilla_lm.tune.prompted_tokenizer import answer_joint
from chinchilla_lm.tune.task import Item, Prediction, Progress, Row, TunedModel, refuse_unusable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_TEMPLATES = {"en": "Question: {question}\nAnswer:", "zh": "问题：{question}\n答案："}
_HUB_CLASSES = {
    "causal": "AutoModelForCausalLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "encoder": "AutoModelForMultipleChoice",
}


class Choices:
    """See `tune.task.Task`; `make_choices` builds it from rows."""

    name = "multiple-choice"
    primary = "accuracy"
    labels: tuple[str, ...] = ()

    def __init__(self, config: TuneConfig, backbone: Backbone, *, template: str, mean_units: float) -> None:
        """Keeps what encoding needs.

        Args:
            config: resolved: max_tokens is set.
            backbone: the model that will be tuned.
            template: of the prompt, with {question}; not used by encoders.
            mean_units: bytes or tokens of an average answer; 1 for normalisation "sum".
        """
        assert config.max_tokens is not None, "resolve the config first"
        self.hub_class = _HUB_CLASSES[backbone.kind]
        self.tokenizer: PreTrainedTokenizerFast = backbone.tokenizer
        self._config = config
        self._kind = backbone.kind
        self._template = template
        self._mean_units = mean_units
        self._filler = int(cast(int, backbone.tokenizer.pad_token_id))
        self._has_types = backbone.kind == "encoder" and "token_type_ids" in self.tokenizer.model_input_names

    @property
    def hub_settings(self) -> dict[str, Any]:
        """Nothing beside the model's own config."""
        return {}

    def encode(self, rows: Sequence[Row], *, is_training: bool) -> list[Item]:
        """One item a question, its choices under each other: `ids` are those of (k, t) in one row.

        Raises:
            DataError: in training, no question is left whose right answer has tokens.
        """
        items, unusable = [], []
        for index, row in enumerate(rows):
            targets = self._encode_pairs(row) if self._kind == "encoder" else self._encode_answers(row)
            if is_training and targets["lengths"][row["label"]] == 0:
                unusable.append(index)
                continue
            if is_training:
                targets["label"] = np.array(row["label"], dtype=np.int64)
            items.append(Item(row=index, ids=targets["ids"].ravel(), targets=targets))
        return refuse_unusable(items, unusable, "the right answers are empty; check the choices, or raise max_tokens")

    def collate(self, items: Sequence[Item]) -> tuple[np.ndarray[Any, Any], ...]:
        """(ids_bkt, lengths_bk, then targets_bku and units_bk, or types_bkt of an encoder, then labels_b)."""
        arrays = [
            _stack([item.targets["ids"] for item in items], self._filler),
            _stack([item.targets["lengths"] for item in items], 0),
        ]
        if self._kind != "encoder":
            arrays.append(_stack([item.targets["targets"] for item in items], IGNORED))
            arrays.append(_stack([item.targets["units"] for item in items], 1.0))
        elif self._has_types:
            arrays.append(_stack([item.targets["types"] for item in items], 0))
        if "label" in items[0].targets:
            arrays.append(np.stack([item.targets["label"] for item in items]))
        return tuple(arrays)

    def objective(self, model: nn.Module, batch: tuple[Tensor, ...]) -> tuple[Tensor, int]:
        """Cross-entropy over the choices of each question."""
        *inputs, labels_b = batch
        logits_bk = self._logits(cast(TunedModel, model), inputs)
        return F.cross_entropy(logits_bk, labels_b, reduction="sum"), len(labels_b)

    def make_head(self, backbone: Backbone) -> nn.Module | None:
        """An encoder's own head; a language model needs none."""
        if self._kind != "encoder":
            return None
        from chinchilla_lm.tune.hub_backbone import HubBackbone  # it imports transformers: seconds

        assert isinstance(backbone, HubBackbone)
        return backbone.adopt_head(self.hub_class, ())

    @torch.no_grad()
    def predict(self, model: TunedModel, rows: Sequence[Row], progress: Progress | None = None) -> list[Prediction]:
        """{"choice": index, "answer": its text, "probability", "probabilities"} a row."""
        found: list[Prediction] = [{}] * len(rows)
        items, done = self.encode(rows, is_training=False), 0
        for places in split_by_length([item.length for item in items]):
            chosen = [items[place] for place in places]
            tensors = [torch.from_numpy(array).to(model.backbone.device) for array in self.collate(chosen)]
            p_bk = self._logits(model, tensors).double().softmax(dim=-1).cpu().numpy()
            for item, p_k in zip(chosen, p_bk, strict=True):
                found[item.row] = _say(p_k, rows[item.row]["choices"])
            done += len(chosen)
            if progress is not None:
                progress(done, len(rows))
        return found

    def measure(self, predictions: Sequence[Prediction], rows: Sequence[Row]) -> Measures:
        """Accuracy."""
        return measure_choices([each["choice"] for each in predictions], [row["label"] for row in rows])

    def zero_shot(self, backbone: Backbone, rows: Sequence[Row]) -> list[Prediction] | None:
        """The untouched language model's own choice; None for encoders."""
        return None if self._kind == "encoder" else self.predict(TunedModel(backbone, None).eval(), rows)

    def describe(self) -> dict[str, Any]:
        """How answers are priced, for the record and the card."""
        if self._kind == "encoder":
            return {"head": "own"}
        return {
            "head": "scoring",
            "template": self._template,
            "normalisation": self._config.normalisation,
            "mean_units": self._mean_units,
        }

    # Inside

    def _encode_answers(self, row: Row) -> dict[str, np.ndarray[Any, Any]]:
        """Ids, lengths, targets and units of each (prompt, answer); an empty answer has length 0."""
        prompt = self._template.replace("{question}", row["question"])
        if self._kind == "seq2seq":  # source and answer are two texts, each with its end token
            context = self.tokenizer(prompt)["input_ids"]
            pairs = [self._cut(context, self.tokenizer(each)["input_ids"]) for each in row["choices"]]
            rows = [context for context, _ in pairs]
            targets = [answer for _, answer in pairs]
        else:
            pairs = [self._cut(*part_ids(self.tokenizer, prompt, choice)) for choice in row["choices"]]
            rows = [[*context, *answer][:-1] for context, answer in pairs]
            targets = [[*[IGNORED] * (len(context) - 1), *answer] for context, answer in pairs]
        lengths = [len(ids) if answer else 0 for ids, (_, answer) in zip(rows, pairs, strict=True)]
        units = [
            count_units(self._config.normalisation, choice, len(answer))
            for choice, (_, answer) in zip(row["choices"], pairs, strict=True)
        ]
        return {
            "ids": pad_rows(rows, self._filler)[0],
            "lengths": np.array(lengths, dtype=np.int64),
            "targets": pad_rows(targets, IGNORED)[0],
            "units": np.array(units, dtype=np.float32),
        }

    def _encode_pairs(self, row: Row) -> dict[str, np.ndarray[Any, Any]]:
        """Ids, lengths and segment numbers of each pair (question, answer)."""
        questions = [row["question"]] * len(row["choices"])
        encoded = self.tokenizer(
            questions, list(row["choices"]), truncation="longest_first", max_length=self._config.max_tokens
        )
        ids_kt, lengths_k = pad_rows(encoded["input_ids"], self._filler)
        found = {"ids": ids_kt, "lengths": lengths_k}
        if self._has_types:
            found["types"] = pad_rows(encoded["token_type_ids"], 0)[0]
        return found

    def _cut(self, context: list[int], answer: list[int]) -> tuple[list[int], list[int]]:
        """Cut the beginning of a prompt that is too long, and of an answer its end."""
        assert self._config.max_tokens is not None
        answer = answer[: self._config.max_tokens - 1]
        room = self._config.max_tokens - len(answer)
        return context[-room:], answer

    def _logits(self, model: TunedModel, inputs: Sequence[Tensor]) -> Tensor:
        """logits_bk, float32; -inf for a choice that is not there."""
        ids_bkt, lengths_bk = inputs[0], inputs[1]
        is_real_n = (lengths_bk > 0).flatten()
        lengths_n = lengths_bk.flatten()[is_real_n]
        longest = int(lengths_n.max())
        ids_nt = ids_bkt.flatten(0, 1)[is_real_n, :longest]
        if self._kind == "encoder":
            assert model.head is not None
            more = {"token_type_ids": inputs[2].flatten(0, 1)[is_real_n, None, :longest]} if self._has_types else {}
            scores_n = model.head(ids_nt[:, None], lengths_n[:, None], **more).logits[:, 0].float()
        else:
            targets_nu = inputs[2].flatten(0, 1)[is_real_n]
            targets_nu = targets_nu[:, :longest] if self._kind == "causal" else targets_nu
            losses_nu = model.backbone.token_losses(ids_nt, targets_nu, lengths_n)
            scores_n = -losses_nu.sum(dim=1) * self._mean_units / inputs[3].flatten()[is_real_n]
        empty_n = scores_n.new_full((lengths_bk.numel(),), -torch.inf)
        return empty_n.index_copy(0, is_real_n.nonzero()[:, 0], scores_n).view_as(lengths_bk)


def make_choices(config: TuneConfig, train_rows: Sequence[Row], backbone: Backbone) -> Choices:
    """Find the language and the mean length of an answer.

    Raises:
        ConfigError: a head or a template that does not fit.
    """
    if config.head not in ("auto", "scoring"):
        raise ConfigError(f'head = "{config.head}" is not for multiple-choice; write "scoring" or "auto"')
    language = config.language or language_of([row["question"] for row in train_rows])
    template = config.template or _TEMPLATES[language]
    if template.count("{question}") != 1:
        raise ConfigError(f"template = {template!r} must have {{question}} once; write {_TEMPLATES['en']!r}")
    units = [
        count_units(config.normalisation, choice, len(part_ids(backbone.tokenizer, template, choice)[1]))
        for row in train_rows
        for choice in row["choices"]
    ]
    if not units:
        raise DataError("the training rows have no choices; give at least one question with its answers")
    return Choices(config, backbone, template=template, mean_units=float(np.mean(units)))


def part_ids(tokenizer: PreTrainedTokenizerFast, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    """Tokenise prompt and answer together and part them where the prompt alone stops being their common beginning.

    Returns:
        (ids of the prompt, at least one; ids of the answer, none where it is empty). A token that holds the end of the
        prompt and the beginning of the answer belongs to the answer.
    """
    alone = _without_end(tokenizer, prompt)
    if not answer.strip():
        return alone, []
    whole = _without_end(tokenizer, prompt + answer_joint(prompt) + answer.strip())
    shared = next(
        (i for i, (a, b) in enumerate(zip(alone, whole, strict=False)) if a != b), min(len(alone), len(whole))
    )
    shared = max(1, min(shared, len(whole) - 1))
    return whole[:shared], whole[shared:]


def count_units(normalisation: str, answer: str, tokens: int) -> float:
    """What a log-probability is divided by: bytes of the answer in UTF-8, its tokens, or 1."""
    if normalisation == "byte":
        return float(max(1, len(answer.strip().encode())))
    return float(max(1, tokens)) if normalisation == "token" else 1.0


def _without_end(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Ids with what the tokenizer puts before a text, without what it puts behind."""
    whole, plain = tokenizer(text)["input_ids"], tokenizer(text, add_special_tokens=False)["input_ids"]
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[: start + len(plain)]
    return plain


def _say(p_k: np.ndarray[Any, Any], choices: Sequence[str]) -> Prediction:
    p_k = p_k[: len(choices)]
    best = int(p_k.argmax())
    probabilities = [round(float(p), 9) for p in p_k]
    return {
        "choice": best,
        "answer": choices[best],
        "probability": probabilities[best],
        "probabilities": probabilities,
    }


def _stack(arrays: Sequence[np.ndarray[Any, Any]], filler: float) -> np.ndarray[Any, Any]:
    """Stack arrays of unequal sizes on a new first axis, filled up behind."""
    sizes = tuple(max(array.shape[axis] for array in arrays) for axis in range(arrays[0].ndim))
    stacked = np.full((len(arrays), *sizes), filler, dtype=arrays[0].dtype)
    for place, array in enumerate(arrays):
        stacked[(place, *map(slice, array.shape))] = array
    return stacked
