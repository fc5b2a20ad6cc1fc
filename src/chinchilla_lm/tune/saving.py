"""A tuned model as files: an ordinary Hugging Face folder, and the adapter beside it in peft's format.

    run/model/      config.json (architectures, id2label, problem_type), model.safetensors with the head, the tokenizer
                    with its prompt, task.json; `transformers.pipeline(task, model="run/model")` runs it unchanged
    run/adapter/    of methods lora, prompt, prefix, ia3, peft: adapter_config.json, adapter_model.safetensors with the
                    head, task.json with the labels; peft loads it on the base model

LoRA, IA3 and other tuners of peft are merged into the weights of model/. Virtual tokens (prompt, prefix) have no place
in weights: model/ then holds the base model with the head, and answers as tuned only with adapter/ on it, as task.json
says.
A task may carry `tokenizer` (with its prompt) and `hub_settings` (further keys of config.json).
"""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from chinchilla_lm.core.files import (
    clean_temporaries,
    explain_os_error,
    read_json,
    replace_directory,
    temporary_beside,
    write_json,
)
from chinchilla_lm.model.headed import HEAD_NAMES, OWN_HEAD_FILE, HeadedModel, Kind, save_headed_model
from chinchilla_lm.model.huggingface import save_model, write_weights
from chinchilla_lm.tune.adapter_files import adapter_of, save_adapter
from chinchilla_lm.tune.config import TuneConfig
from chinchilla_lm.tune.freezing import lora_settings
from chinchilla_lm.tune.hub_backbone import HubBackbone, HubHead
from chinchilla_lm.tune.lora import has_lora, merged_copy
from chinchilla_lm.tune.own_backbone import OwnBackbone
from chinchilla_lm.tune.task import Task, TunedModel

SCHEMA = "tuned/1"
TASK_FILE = "task.json"
PEFT_TASKS = {
    "AutoModelForSequenceClassification": "SEQ_CLS",
    "AutoModelForTokenClassification": "TOKEN_CLS",
    "AutoModelForQuestionAnswering": "QUESTION_ANS",
    "AutoModelForCausalLM": "CAUSAL_LM",
    "AutoModelForSeq2SeqLM": "SEQ_2_SEQ_LM",
}


def save_tuned(model: TunedModel, task: Task, folder: Path, config: TuneConfig) -> None:
    """Write model/ and, for a method that adds parameters, adapter/ beside it; each appears whole or not at all.

    Args:
        model: with the weights to save; not changed.
        task: its class, labels, tokenizer.
        folder: run/model; replaced if it exists.
        config: of the run.

    Raises:
        DataError: the disk is full, or the place may not be written.
        ModelError: the tokenizer does not fit the model.
    """
    backbone = model.backbone
    description = describe_saved(task, config)
    tokenizer = getattr(task, "tokenizer", backbone.tokenizer)
    temporary = temporary_beside(folder.absolute())
    with explain_os_error(folder):
        for name in (folder.name, "adapter"):
            clean_temporaries(folder.absolute().parent, name)
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            if isinstance(backbone, OwnBackbone):
                _save_own(backbone, model.head, task, tokenizer, temporary)
            else:
                assert isinstance(backbone, HubBackbone), backbone
                _save_hub(backbone, model.head, task, temporary)
                tokenizer.save_pretrained(temporary)
            _save_writing(task, temporary)
            write_json(temporary / TASK_FILE, description)
            replace_directory(temporary, folder.absolute())
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        if description["adapter"]:
            _save_adapter(model, task, folder.parent / "adapter", config)


def describe_saved(task: Task, config: TuneConfig) -> dict[str, Any]:
    """What task.json says: how the folder was made and how it answers."""
    is_virtual = config.method in ("prompt", "prefix")
    return {
        "schema": SCHEMA,
        "task": config.task,
        "hub_class": task.hub_class,
        "labels": list(task.labels),
        "method": config.method,
        "mask": config.mask,
        "base": config.model,
        "adapter": config.method in ("lora", "prompt", "prefix", "ia3", "peft"),
        "needs_adapter": is_virtual,
        "hub_settings": dict(getattr(task, "hub_settings", {})),
        "describe": task.describe(),
    }


def head_tensors(head: nn.Module | None) -> dict[str, Tensor]:
    """The state of a head of ours: "weight" and "bias" of a single matrix, other names of a larger head."""
    if head is None or isinstance(head, HubHead):
        return {}
    state = {name: tensor.detach() for name, tensor in head.state_dict().items()}
    single = {name.removeprefix("linear."): tensor for name, tensor in state.items()}
    return single if set(single) <= {"weight", "bias"} else state


def _save_own(backbone: OwnBackbone, head: nn.Module | None, task: Task, tokenizer: Any, folder: Path) -> None:
    trunk = merged_copy(backbone.transformer) if has_lora(backbone.transformer) else backbone.transformer
    with tempfile.TemporaryDirectory() as made:
        tokenizer.save_pretrained(made)
        if head is None:
            save_model(trunk, folder, tokenizer_folder=made)
            return
        kind, tensors = own_head(head, task)
        settings = getattr(task, "hub_settings", {})
        headed = HeadedModel(
            trunk=trunk, kind=kind, head=tensors, labels=tuple(task.labels), problem_type=settings.get("problem_type")
        )
        save_headed_model(headed, folder, tokenizer_folder=Path(made))


def own_head(head: nn.Module, task: Task) -> tuple[Kind, dict[str, Tensor]]:
    """The kind of folder that a head makes of our Transformer, and its tensors by their names there."""
    tensors = head_tensors(head)
    kind = cast(Kind, task.hub_class.removeprefix("AutoModelFor").removeprefix("Auto"))
    names = {name.rpartition(".")[2]: name for name in HEAD_NAMES.get(kind, ())}
    if not names:
        return "Model", tensors
    assert set(tensors) == set(names), (sorted(tensors), kind)
    return kind, {names[name]: tensor for name, tensor in tensors.items()}


def _save_hub(backbone: HubBackbone, head: nn.Module | None, task: Task, folder: Path) -> None:
    module: Any = merged_module(backbone)
    tensors = head_tensors(head)
    full, is_single = module, set(tensors) <= {"weight", "bias"}
    if tensors:
        full = _with_head(module, task.hub_class, tensors if is_single else {}, task.labels)
    if task.labels and not isinstance(head, HubHead):
        full.config.id2label = dict(enumerate(task.labels))
        full.config.label2id = {label: index for index, label in enumerate(task.labels)}
    for name, value in getattr(task, "hub_settings", {}).items():
        setattr(full.config, name, value)
    full.save_pretrained(folder)
    if not is_single:
        write_weights(folder / OWN_HEAD_FILE, tensors, torch.float32)


def _save_writing(task: Task, folder: Path) -> None:
    """Let transformers' `generate` begin an answer before it may end it, where the task writes so (`tune.writing`)."""
    writing, path = getattr(task, "writing", None), folder / "generation_config.json"
    if writing is not None and not writing.may_be_empty and path.is_file():
        write_json(path, read_json(path) | {"min_new_tokens": 1})


def merged_module(backbone: HubBackbone) -> nn.Module:
    """The transformers module with what peft has put into its matrices merged: a copy, or itself without an adapter."""
    if getattr(backbone, "peft_model", None) is None:
        return backbone.module
    from chinchilla_lm.tune.peft_methods import merge_layers  # peft is an optional package

    return merge_layers(backbone.module)


def _with_head(module: Any, hub_class: str, tensors: Mapping[str, Tensor], labels: tuple[str, ...]) -> Any:
    """The task's class of transformers around the module's body, its head's weights set."""
    import transformers  # seconds to import; a hub backbone has done it

    config = copy.deepcopy(module.config)
    config.num_labels = len(labels) or 2
    with torch.device("meta"):
        full = getattr(transformers, hub_class).from_config(config)
    body = full if hub_class == "AutoModel" else full.base_model
    body.load_state_dict(module.base_model.state_dict(), assign=True)
    prefix = f"{full.base_model_prefix}."
    names = [name for name in full.state_dict() if not name.startswith(prefix)] if tensors else []
    assert len(names) == len(tensors), (names, sorted(tensors))
    for name in names:
        place, _, kind = name.rpartition(".")
        setattr(full.get_submodule(place), kind, nn.Parameter(tensors[kind].float(), requires_grad=False))
    return full


def _save_adapter(model: TunedModel, task: Task, folder: Path, config: TuneConfig) -> None:
    temporary, backbone = temporary_beside(folder.absolute()), model.backbone
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        task_type = PEFT_TASKS.get(task.hub_class, "FEATURE_EXTRACTION")
        if isinstance(backbone, OwnBackbone):
            kind, tensors = ("CausalLM", {}) if model.head is None else own_head(model.head, task)
            trunk = {"QuestionAnswering": "transformer", "Model": ""}.get(kind, "model")
            adapter = adapter_of(
                backbone.transformer, lora_settings(config), task_type=task_type, base=config.model, trunk=trunk
            )
            own_tensors = tensors if kind == "Model" else {}
            save_adapter(replace(adapter, head={} if own_tensors else tensors), temporary)
        else:
            from chinchilla_lm.tune.peft_methods import save_peft_adapter  # peft is an optional package

            tensors = head_tensors(model.head)
            is_single = set(tensors) <= {"weight", "bias"}
            own_tensors = {} if is_single else tensors
            save_peft_adapter(model, task.hub_class, task_type, tensors if is_single else {}, temporary)
        if own_tensors:
            write_weights(temporary / OWN_HEAD_FILE, own_tensors, torch.float32)
        getattr(task, "tokenizer", backbone.tokenizer).save_pretrained(temporary)
        write_json(temporary / TASK_FILE, describe_saved(task, config))
        replace_directory(temporary, folder.absolute())
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
