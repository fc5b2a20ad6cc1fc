"""Adapters into weights: one merged exactly, or several stacked as a weighted sum of their products.

On a Qwen3, Llama or own model LoRA folders are merged here, in float32; every other model or method goes through peft.
The result is an ordinary Hugging Face folder with the head and labels of one of the adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file

from chinchilla_lm.core.errors import ConfigError, ModelError
from chinchilla_lm.core.files import read_json, write_bytes, write_json
from chinchilla_lm.model.headed import HEAD_NAMES, OWN_HEAD_FILE, HeadedModel, Kind, read_own_head, save_headed_model
from chinchilla_lm.model.huggingface import load_model, save_model
from chinchilla_lm.model.model_config import read_config
from chinchilla_lm.tune.adapter_files import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    Adapter,
    is_plain_lora,
    put_adapter,
    read_adapter,
    stack_adapters,
)
from chinchilla_lm.tune.lora import remove_lora
from chinchilla_lm.tune.saving import PEFT_TASKS, TASK_FILE

# peft's types that put tokens before the text; they have no place in weights.
_VIRTUAL = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE")
_CLASSES = {kind: name for name, kind in PEFT_TASKS.items()}


def merge_adapters(base: Path, adapters: Sequence[Path], out: Path, *, weights: Sequence[float] | None = None) -> None:
    """Write base + sum of w_i times adapter i as a model folder.

    Args:
        base: folder of the model that the adapters were trained on.
        adapters: one folder or more; the head, labels and tokenizer are those of the first.
        out: the folder to write; replaced if it exists.
        weights: one number each; None: 1 each. One adapter with weight 1 is merged as it was trained.

    Raises:
        ConfigError: no adapter, or not one weight each.
        ModelError: an adapter of another model, or one that has no place in weights (virtual tokens).
    """
    shares = [1.0] * len(adapters) if weights is None else list(weights)
    if not adapters or len(shares) != len(adapters):
        raise ConfigError(f"{len(adapters)} adapters and {len(shares)} weights; give one or more, and one weight each")
    kinds = [str(read_json(folder / CONFIG_FILE).get("peft_type")) for folder in adapters]
    virtual = [str(folder) for folder, kind in zip(adapters, kinds, strict=True) if kind in _VIRTUAL]
    if virtual:
        raise ModelError(f"{virtual[0]} holds virtual tokens, which have no place in weights; use it through peft")
    if set(kinds) == {"LORA"} and _is_ours(base) and all(map(is_plain_lora, adapters)):
        _merge_own(base, [read_adapter(folder) for folder in adapters], adapters[0], out, shares)
    else:
        _merge_by_peft(base, adapters, kinds, out, shares)
    if (adapters[0] / TASK_FILE).is_file():  # how rows are read; the adapter itself is no longer needed
        write_json(out / TASK_FILE, {**read_json(adapters[0] / TASK_FILE), "adapter": False, "needs_adapter": False})


def _is_ours(base: Path) -> bool:
    try:
        read_config(base)
    except ModelError:
        return False
    return True


def _merge_own(base: Path, adapters: list[Adapter], first: Path, out: Path, shares: list[float]) -> None:
    model = load_model(base)
    stacked = adapters[0] if shares == [1.0] else stack_adapters(adapters, shares)
    put_adapter(model, stacked)
    remove_lora(model, merges=True)
    tokenizer = first if (first / "tokenizer.json").is_file() else base
    head = dict(adapters[0].head)
    if (first / OWN_HEAD_FILE).is_file():  # a head that transformers has no class for, such as that of relations
        own = HeadedModel(trunk=model, kind="Model", head=read_own_head(first / OWN_HEAD_FILE))
        save_headed_model(own, out, tokenizer_folder=tokenizer)
        return
    if not head:
        save_model(model, out, tokenizer_folder=tokenizer)
        return
    kind = cast(Kind, _CLASSES.get(adapters[0].task_type, "").removeprefix("AutoModelFor"))
    if set(head) != set(HEAD_NAMES.get(kind, ())):
        raise ModelError(f"{first}: head {sorted(head)} does not fit {adapters[0].task_type}; save the adapter again")
    said = read_json(first / TASK_FILE) if (first / TASK_FILE).is_file() else {}
    labels = tuple(said.get("labels") or [f"LABEL_{index}" for index in range(len(next(iter(head.values()))))])
    headed = HeadedModel(
        trunk=model,
        kind=kind,
        head=head,
        labels=labels if kind.endswith("Classification") else (),
        problem_type=said.get("hub_settings", {}).get("problem_type"),
    )
    save_headed_model(headed, out, tokenizer_folder=tokenizer)


def _merge_by_peft(base: Path, adapters: Sequence[Path], kinds: list[str], out: Path, shares: list[float]) -> None:
    try:
        import peft
        import transformers
    except ModuleNotFoundError as error:
        raise ConfigError(f'{error.name} is not installed; pip install "chinchilla-lm[tune]"') from None
    said = read_json(adapters[0] / TASK_FILE) if (adapters[0] / TASK_FILE).is_file() else {}
    name = said.get("hub_class") or _CLASSES.get(str(read_json(adapters[0] / CONFIG_FILE).get("task_type")))
    labels = said.get("labels") or []
    more: dict[str, Any] = {}
    if labels:
        more = {"id2label": dict(enumerate(labels)), "label2id": {label: index for index, label in enumerate(labels)}}
    module: Any = getattr(transformers, name or "AutoModelForCausalLM").from_pretrained(
        base, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=torch.float32, **more
    )
    for key, value in said.get("hub_settings", {}).items():
        setattr(module.config, key, value)
    if shares != [1.0] and set(kinds) != {"LORA"}:
        raise ModelError(f"adapters of kind {', '.join(sorted(set(kinds)))} are merged one at a time, with weight 1")
    wrapped: Any = peft.PeftModel.from_pretrained(module, str(adapters[0]))
    merged = _with_plain_heads(_scale_layers(wrapped, shares[0]).merge_and_unload())
    for folder, share in zip(adapters[1:], shares[1:], strict=True):
        config: Any = peft.PeftConfig.from_pretrained(str(folder))
        config.modules_to_save, config.task_type = None, None  # only the first adapter's head counts
        wrapped = peft.get_peft_model(merged, config)
        tensors = {name: tensor for name, tensor in load_file(folder / WEIGHTS_FILE).items() if ".lora_" in name}
        peft.set_peft_model_state_dict(wrapped, tensors)
        merged = _scale_layers(wrapped, share).merge_and_unload()
    merged.save_pretrained(out)
    if (adapters[0] / OWN_HEAD_FILE).is_file():  # a head that transformers has no class for
        write_bytes(out / OWN_HEAD_FILE, (adapters[0] / OWN_HEAD_FILE).read_bytes())
    tokenizer = adapters[0] if (adapters[0] / "tokenizer.json").is_file() else base
    transformers.AutoTokenizer.from_pretrained(tokenizer, local_files_only=True).save_pretrained(out)


def _with_plain_heads(module: Any) -> Any:
    """Put trained heads in the place of peft's wrappers; not every tuner's merge does (LN_TUNING, peft 0.21)."""
    from peft.utils.other import ModulesToSaveWrapper

    for name, part in list(module.named_modules()):
        if isinstance(part, ModulesToSaveWrapper):
            module.set_submodule(name, part.modules_to_save[str(part.active_adapter)])
    return module


def _scale_layers(wrapped: Any, share: float) -> Any:
    for module in wrapped.modules():
        if share != 1.0 and isinstance(getattr(module, "scaling", None), dict):
            for name in module.scaling:
                module.scaling[name] *= share
    return wrapped
