"""Folders of a trunk with a task's head, as transformers' own classes write them.

| kind | tensors beside the trunk's | the trunk's names begin with |
|---|---|---|
| SequenceClassification | score.weight (c, d) | model. |
| TokenClassification | score.weight (c, d), score.bias (c) | model. |
| QuestionAnswering | qa_outputs.weight (2, d), qa_outputs.bias (2) | transformer. |
| Model | none; a head of ours lies in head.safetensors | (nothing) |

config.json has the class in `architectures`, the labels in `id2label` and `label2id`, and `problem_type`. Layouts that
are not stock are written in the same form with `model_type` "chinchilla_lm", for this package alone.
Reading trusts nothing, as `model.huggingface`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from chinchilla_lm.core.errors import ModelError
from chinchilla_lm.core.files import (
    clean_temporaries,
    explain_os_error,
    read_json,
    replace_directory,
    temporary_beside,
    write_bytes,
    write_json,
)
from chinchilla_lm.model.huggingface import (
    TOKENIZER_FILES,
    WEIGHTS_FILE,
    check_tensors,
    export_tensors,
    read_header,
    weight_files,
    write_weights,
)
from chinchilla_lm.model.model_config import is_stock, read_config, read_special_ids, write_config
from chinchilla_lm.model.transformer import Transformer

Kind = Literal["SequenceClassification", "TokenClassification", "QuestionAnswering", "Model"]

OWN_HEAD_FILE = "head.safetensors"
_TRUNKS: dict[str, str] = {
    "SequenceClassification": "model.",
    "TokenClassification": "model.",
    "QuestionAnswering": "transformer.",
    "Model": "",
}
HEAD_NAMES: dict[str, tuple[str, ...]] = {
    "SequenceClassification": ("score.weight",),
    "TokenClassification": ("score.weight", "score.bias"),
    "QuestionAnswering": ("qa_outputs.weight", "qa_outputs.bias"),
    "Model": (),
}
MOST_LABELS = 100_000


@dataclass(frozen=True, kw_only=True)
class HeadedModel:
    """A trunk and a task's head.

    Attributes:
        trunk: its output projection is not saved.
        kind: which class of transformers it is.
        head: tensors by the names in the folder; of kind "Model" those of head.safetensors.
        labels: names of the head's outputs; empty where they have none.
        problem_type: transformers' word, such as "multi_label_classification"; None: not said.
        extra_files: written beside, by plain name; not read.
    """

    trunk: Transformer
    kind: Kind
    head: Mapping[str, Tensor]
    labels: tuple[str, ...] = ()
    problem_type: str | None = None
    extra_files: Mapping[str, str | bytes] = field(default_factory=dict)


def save_headed_model(model: HeadedModel, folder: Path, *, tokenizer_folder: Path) -> None:
    """Write the folder at once: it appears whole, or the old one stays.

    Args:
        model: what to write; `extra_files` by plain name.
        folder: the target; replaced if it exists.
        tokenizer_folder: where tokenizer.json and its companions are copied from.

    Raises:
        ModelError: the tokenizer does not fit the model.
        DataError: the disk is full, or the place may not be written.
    """
    assert set(model.head) == set(HEAD_NAMES[model.kind]) or model.kind == "Model", sorted(model.head)
    target = folder.absolute()
    special = read_special_ids(tokenizer_folder, model.trunk.shape.vocab)
    config, _ = write_config(model.trunk.shape, special)
    stem = config.get("architectures", ["ChinchillaForCausalLM"])[0].removesuffix("ForCausalLM")
    config["architectures"] = [f"{stem}Model" if model.kind == "Model" else f"{stem}For{model.kind}"]
    if model.labels:
        config["id2label"] = {str(index): label for index, label in enumerate(model.labels)}
        config["label2id"] = {label: index for index, label in enumerate(model.labels)}
    if model.problem_type is not None:
        config["problem_type"] = model.problem_type
    tensors = _trunk_tensors(model.trunk, model.kind)
    temporary = temporary_beside(target)
    with explain_os_error(target, needed_bytes=sum(4 * tensor.numel() for tensor in tensors.values())):
        clean_temporaries(target.parent, target.name)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            write_json(temporary / "config.json", config)
            beside = model.kind == "Model"
            write_weights(temporary / WEIGHTS_FILE, tensors if beside else {**tensors, **model.head}, torch.float32)
            if beside and model.head:
                write_weights(temporary / OWN_HEAD_FILE, model.head, torch.float32)
            for name in TOKENIZER_FILES:
                if (tokenizer_folder / name).is_file():
                    shutil.copyfile(tokenizer_folder / name, temporary / name)
            for name, content in model.extra_files.items():
                assert Path(name).name == name, name
                write_bytes(temporary / name, content.encode() if isinstance(content, str) else content)
            replace_directory(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def load_headed_model(folder: Path) -> HeadedModel:
    """Read a folder with a head on a Qwen3, Llama or own trunk.

    Returns:
        The model, float32, on the CPU, in evaluation mode.

    Raises:
        ModelError: no such head, or labels or tensors that are missing or do not fit.
        DataError: config.json is absent or not JSON.
    """
    config = read_json(folder / "config.json")
    kind = kind_of(config)
    if kind is None:
        raise ModelError(f"{folder} has no head of a known task; name the folder of a tuned model")
    labels = read_labels(folder, config) if kind.endswith("Classification") else ()
    shape = read_config(folder)
    if is_stock(shape):  # such a folder has no output projection; a textbook model would change if it were tied
        shape = replace(shape, is_tied=True)
    outputs = 2 if kind == "QuestionAnswering" else len(labels)
    sizes = {name: (outputs, shape.d_model)[: 2 if name.endswith("weight") else 1] for name in HEAD_NAMES[kind]}
    files = weight_files(folder)
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in _trunk_tensors(Transformer(shape), kind).items()}
    check_tensors(folder, shape, expected | sizes, read_header(files))
    trunk = Transformer(shape)
    head = {name: torch.empty(size) for name, size in sizes.items()}
    targets = _trunk_tensors(trunk, kind) | head
    for path in files:
        with safe_open(path, framework="pt") as weights, torch.no_grad():
            for name in weights.keys():  # noqa: SIM118 - not a dict
                if name in targets:
                    targets[name].copy_(weights.get_tensor(name))
    if kind == "Model" and (folder / OWN_HEAD_FILE).is_file():
        head = read_own_head(folder / OWN_HEAD_FILE)
    problem_type = config.get("problem_type")
    return HeadedModel(
        trunk=trunk.eval(),
        kind=kind,
        head=head,
        labels=labels,
        problem_type=problem_type if isinstance(problem_type, str) else None,
    )


def kind_of(config: Any) -> Kind | None:
    """Which head a config.json describes; None: none of the table's."""
    names = config.get("architectures") if isinstance(config, dict) else None
    name = str(names[0]) if isinstance(names, list) and names else ""
    for kind in get_args(Kind):
        if name.endswith(f"For{kind}" if kind != "Model" else kind):
            return kind
    return None


def read_labels(folder: Path, config: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the head's outputs, in order, from id2label.

    Raises:
        ModelError: they are missing, too many or not numbered from 0.
    """
    table = config.get("id2label")
    if not isinstance(table, dict) or not 0 < len(table) <= MOST_LABELS:
        raise ModelError(f"{folder}: config.json has no id2label; save the model again with its labels")
    labels = [table.get(str(index)) for index in range(len(table))]
    if not all(isinstance(label, str) for label in labels):
        raise ModelError(f"{folder}: id2label must name the classes 0 to {len(table) - 1}; save the model again")
    return tuple(str(label) for label in labels)


def _trunk_tensors(trunk: Transformer, kind: str) -> dict[str, Tensor]:
    if not is_stock(trunk.shape):
        return {name: tensor for name, tensor in export_tensors(trunk).items() if not name.startswith("head.")}
    tensors = {name: tensor for name, tensor in export_tensors(trunk).items() if name != "lm_head.weight"}
    return {_TRUNKS[kind] + name.removeprefix("model."): tensor for name, tensor in tensors.items()}


def read_own_head(path: Path) -> dict[str, Tensor]:
    """Read the tensors of head.safetensors, float32.

    Raises:
        ModelError: it is not whole.
    """
    try:
        with safe_open(path, framework="pt") as weights:
            return {name: weights.get_tensor(name).float() for name in weights.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is not a whole safetensors file ({error}); write or download it again") from None
