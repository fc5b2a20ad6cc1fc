"""A tuned head on a decoder: classes of texts, or entities within them, from a folder that transformers knows too.

    ...ForSequenceClassification    the last token's state meets `score`; a prompt lies in the folder's tokenizer
    ...ForTokenClassification       the states of a word's tokens meet `score`; task.json says which of them speak
    ...Model with head.safetensors  the relation of two entities (`relation_reader`)
    ...ForQuestionAnswering         slices of a context (`answer_reader`); task.json says how a question is asked

Folders of Qwen3, Llama and own layouts (`model.headed`). Words of a raw text are its runs of letters and digits, and
each other sign; in a language without spaces (task.json's joiner is "") each character.
Axes: t positions, d width, c classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from chinchilla_lm.core.errors import ModelError
from chinchilla_lm.model.headed import HeadedModel, kind_of, load_headed_model
from chinchilla_lm.model.transformer import Transformer
from chinchilla_lm.serve.answer_reader import AnswerReader
from chinchilla_lm.serve.relation_reader import RelationReader
from chinchilla_lm.serve.strict_json import JsonRefused, parse_json

TASK_FILE = "task.json"
_LARGEST_TASK_BYTES = 4 << 20  # CLINC150's 151 labels with their words take 20 KB
_SPACED_WORD = re.compile(r"\w+|[^\w\s]")
_UNSPACED_WORD = re.compile(r"[A-Za-z0-9]+|\S")


class Classifier:
    """A trunk, a head and the classes' names (c). Attributes: `trunk`, `labels`, `is_multi_label`, `is_paired`."""

    def __init__(
        self,
        trunk: Transformer,
        head_cd: Tensor,
        labels: Sequence[str],
        *,
        is_multi_label: bool,
        is_paired: bool = False,
    ) -> None:
        """Takes parts that belong together; `is_paired`: it was tuned on pairs of texts."""
        self.trunk, self.labels, self.is_multi_label = trunk, tuple(labels), is_multi_label
        self.is_paired = is_paired
        self._head_cd = head_cd

    @torch.inference_mode()
    def probabilities(self, ids: Sequence[int]) -> list[float]:
        """Return a probability for each class: they sum to 1, or are independent if `is_multi_label`."""
        x_d = self.trunk.hidden(torch.tensor([list(ids)]))[0, -1].float()
        scores_c = self._head_cd @ x_d
        chances_c = scores_c.sigmoid() if self.is_multi_label else scores_c.softmax(dim=-1)
        return [float(chance) for chance in chances_c]


class Tagger:
    """A trunk and a head that tags words. Attributes: `trunk`, `labels` (c), IOB2."""

    def __init__(
        self, model: HeadedModel, tokenizer: Tokenizer, *, pooling: str = "last", is_spaced: bool = True
    ) -> None:
        """Takes parts that belong together.

        Args:
            model: of kind TokenClassification.
            tokenizer: of its folder.
            pooling: which tokens speak for a word: "last", "first", or "mean" of their probabilities.
            is_spaced: words are parted by spaces.
        """
        self.trunk, self.labels = model.trunk, model.labels
        self._weight_cd, self._bias_c = model.head["score.weight"], model.head["score.bias"]
        self._tokenizer, self._pooling = tokenizer, pooling
        self._pattern = _SPACED_WORD if is_spaced else _UNSPACED_WORD

    @torch.inference_mode()
    def entities(self, text: str) -> list[dict[str, Any]]:
        """Return {entity_group, word, start, end, score} of each entity, characters from `start` to before `end`."""
        encoding = self._tokenizer.encode_batch([text])[0]  # `encode` would let no other thread run
        if not encoding.ids:  # an empty text
            return []
        x_td = self.trunk.hidden(torch.tensor([encoding.ids]))[0].float()
        chances_tc = (x_td @ self._weight_cd.t() + self._bias_c).softmax(dim=-1)
        found: list[dict[str, Any]] = []
        scores: list[float] = []
        before, first, offsets = "O", 0, encoding.offsets
        for match in self._pattern.finditer(text):
            while first < len(offsets) and offsets[first][1] <= match.start():
                first += 1
            end = first
            while end < len(offsets) and offsets[end][0] < match.end():
                end += 1
            covering = list(range(first, end))
            if not covering:
                before = "O"
                continue
            chosen = {"last": covering[-1:], "first": covering[:1]}.get(self._pooling, covering)
            chance_c = chances_tc[chosen].mean(dim=0)
            best = int(chance_c.argmax())
            tag, score = self.labels[best], float(chance_c[best])
            kind = tag.partition("-")[2] if tag[:2] in ("B-", "I-") else tag
            if tag != "O" and tag[:2] == "I-" and before[2:] == kind and found:
                scores.append(score)
                found[-1] |= {"end": match.end(), "score": sum(scores) / len(scores)}
            elif tag != "O":
                scores = [score]
                found.append({"entity_group": kind, "start": match.start(), "end": match.end(), "score": score})
            before = tag
        return [{**each, "word": text[each["start"] : each["end"]]} for each in found]


ClassifierKind = Classifier | Tagger | AnswerReader | RelationReader
"""What /v1/classify asks."""


def is_classifier(config: Mapping[str, Any]) -> bool:
    """Whether a config.json describes a task's head and no language model."""
    return kind_of(config) is not None


def load_classifier(folder: Path, config: Mapping[str, Any], tokenizer: Tokenizer) -> ClassifierKind:
    """Read a tuned folder.

    Args:
        folder: checked by `check_model_folder`.
        config: its config.json.
        tokenizer: its tokenizer.json.

    Raises:
        ModelError: labels or tensors are missing or do not fit, or a head that has no route.
    """
    kind = kind_of(config)
    table = _read_task(folder / TASK_FILE)
    said = table.get("describe")
    said = said if isinstance(said, dict) else {}
    if table.get("mask", "causal") != "causal":
        raise ModelError(
            f"{folder}: it was tuned with mask {str(table['mask'])[:40]!r}, and the server reads causally; ask it with "
            "tune.deployed (docs/serving.md)"
        )
    is_relation = kind == "Model" and said.get("head") == "markers"
    if not is_relation and kind not in ("SequenceClassification", "TokenClassification", "QuestionAnswering"):
        raise ModelError(
            f"{folder}: a head of kind {kind} is not served; serve a classification of texts or tokens, relations, or "
            "answers from a context"
        )
    model = load_headed_model(folder)
    if is_relation:
        return RelationReader(model, tokenizer, table)
    if kind == "QuestionAnswering":
        return AnswerReader(model, tokenizer, said)
    if kind == "TokenClassification":
        pooling, joiner = str(said.get("pooling", "last")), said.get("joiner", " ")
        return Tagger(model, tokenizer, pooling=pooling, is_spaced=joiner != "")
    problem = model.problem_type or "single_label_classification"
    if problem not in ("single_label_classification", "multi_label_classification") or len(model.labels) < 2:
        raise ModelError(
            f"{folder}: problem_type {problem!r} with {len(model.labels)} labels is not served; use two or more classes"
        )
    head_cd = model.head["score.weight"]
    return Classifier(
        model.trunk,
        head_cd,
        model.labels,
        is_multi_label=problem.startswith("multi"),
        is_paired="{text_pair}" in str(said.get("template")),
    )


def _read_task(path: Path) -> dict[str, Any]:
    """task.json of a folder that `chinchilla tune` wrote; {} for a folder of others."""
    if not path.is_file():
        return {}
    if path.stat().st_size > _LARGEST_TASK_BYTES:
        raise ModelError(f"{path} has more than {_LARGEST_TASK_BYTES} bytes; save the model again")
    try:
        table = parse_json(path.read_bytes())
    except JsonRefused as error:
        raise ModelError(f"{path}: {error}") from None
    return table if isinstance(table, dict) else {}
