"""A saved folder as a task again: tags, relations and answers from rows, without the training that made it.

task.json in the folder says how rows are read; the weights and the head are those of the folder. Stock pipelines need
none of this; it serves what they have not: valid IOB2 by Viterbi, the "markers" head, answers as exact slices.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from chinchilla_lm.core.errors import ModelError
from chinchilla_lm.core.files import read_json
from chinchilla_lm.data.span_search import AnswerLengths
from chinchilla_lm.model.compiling import compile_blocks
from chinchilla_lm.model.headed import OWN_HEAD_FILE, load_headed_model, read_own_head
from chinchilla_lm.model.model_config import read_config
from chinchilla_lm.tune.backbone import Backbone, load_tokenizer
from chinchilla_lm.tune.hub_backbone import HubBackbone, HubMask, load_hub_backbone
from chinchilla_lm.tune.own_backbone import OwnBackbone
from chinchilla_lm.tune.relation import MarkerHead, Relation
from chinchilla_lm.tune.saving import TASK_FILE
from chinchilla_lm.tune.spans import Spans
from chinchilla_lm.tune.tagging import Tagging
from chinchilla_lm.tune.task import TunedModel

WordTask = Tagging | Relation | Spans


def load_deployed(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[WordTask, TunedModel]:
    """Read the folder of a tuned tagger, relation extractor or span finder.

    Args:
        folder: run/model.
        dtype: of activations and matmuls.

    Returns:
        (task, model in evaluation mode): `task.predict(model, rows)` answers.

    Raises:
        ModelError: no task.json, one of another task, a mask that no folder carries, or weights that do not fit.
    """
    description = _read_description(folder)
    backbone, tensors = _load_trunk(folder, description, dtype)
    try:
        task = _make_task(description, backbone)
    except (KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{folder / TASK_FILE} lacks {error}; save the model again") from None
    if isinstance(backbone, HubBackbone) and not tensors:
        return task, TunedModel(backbone, backbone.adopt_head(task.hub_class, task.labels)).eval()
    head = task.make_head(backbone)
    _fill_head(head, tensors, folder)
    return task, TunedModel(backbone, head).eval()


def _read_description(folder: Path) -> Mapping[str, Any]:
    if not (folder / TASK_FILE).is_file():
        raise ModelError(f"{folder} has no {TASK_FILE}; name the folder model/ of a run of chinchilla tune")
    description = read_json(folder / TASK_FILE)
    known = (Tagging.name, Relation.name, Spans.name)
    if not isinstance(description, dict) or description.get("task") not in known:
        raise ModelError(f"{folder / TASK_FILE} is not of {', '.join(known)}; load it with transformers' pipeline")
    if description.get("mask") == "top-k" or description.get("needs_adapter"):
        raise ModelError(f"{folder} needs what no folder carries (mask top-k, or adapter/ on it); load it by hand")
    return description


def _load_trunk(
    folder: Path, description: Mapping[str, Any], dtype: torch.dtype
) -> tuple[Backbone, Mapping[str, torch.Tensor]]:
    """The backbone, and the tensors of a head of ours; none where the head is in transformers' class."""
    tokenizer = load_tokenizer(folder)
    if description.get("mask") == "causal" and _is_ours(folder):
        headed = load_headed_model(folder)
        headed.trunk.compute_dtype = dtype
        compile_blocks(headed.trunk, "kernels")
        return OwnBackbone(headed.trunk, tokenizer, folder), headed.head
    backbone = load_hub_backbone(folder, tokenizer, dtype, "cpu", HubMask(kind=description.get("mask", "causal")))
    own_head = folder / OWN_HEAD_FILE
    return backbone, read_own_head(own_head) if own_head.is_file() else {}


def _is_ours(folder: Path) -> bool:
    try:
        read_config(folder)
    except ModelError:
        return False
    return True


def _make_task(description: Mapping[str, Any], backbone: Backbone) -> WordTask:
    described, labels = description["describe"], tuple(description["labels"])
    if description["task"] == Tagging.name:
        return Tagging(
            backbone,
            labels,
            pooling=described["pooling"],
            joiner=described["joiner"],
            max_tokens=described["max_tokens"],
            is_causal=described["is_causal"],
        )
    if description["task"] == Relation.name:
        return Relation(
            backbone,
            labels,
            form=described["head"],
            template=described["template"],
            max_tokens=described["max_tokens"],
        )
    task = Spans(
        backbone,
        language=described["language"],
        template=described["template"],
        has_unanswerable=described["has_unanswerable"],
        lengths=AnswerLengths(longest=described["longest_answer_tokens"], cost=float(described.get("token_cost", 0.0))),
        max_tokens=described["max_tokens"],
    )
    task.threshold = float(described["threshold"])
    return task


def _fill_head(head: nn.Module, tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    if not isinstance(head, MarkerHead):  # "score.weight" -> "linear.weight"
        tensors = {"linear." + name.rpartition(".")[2]: tensor for name, tensor in tensors.items()}
    sizes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    expected = {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}
    if sizes != expected:
        raise ModelError(f"{folder}: the head has {sizes}, {TASK_FILE} says {expected}; save the model again")
    head.load_state_dict(dict(tensors))
