"""LoRA adapters as values and as folders in peft's format.

A folder holds adapter_config.json and adapter_model.safetensors with peft's names:

    base_model.model.<trunk>.layers.<i>.<projection>.lora_A.weight     (r, d_in)
    base_model.model.<trunk>.layers.<i>.<projection>.lora_B.weight     (rows, r)
    base_model.model.<head>.weight, .bias                              the task's head, peft's `modules_to_save`

`trunk` is "model", but "transformer" in ...ForQuestionAnswering of Llama and Qwen3. What peft wrote is read, what we
wrote peft reads on the transformers model. Safetensors only; sizes and names are checked before use.
It never imports peft.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from chinchilla_lm.core.errors import ModelError
from chinchilla_lm.core.files import explain_os_error, read_json, write_bytes, write_json
from chinchilla_lm.core.shapes import ModelShape
from chinchilla_lm.model.transformer import Transformer
from chinchilla_lm.tune.lora import LoraSettings, add_lora, fused_projections, lora_modules

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(?:(?P<trunk>\w+)\.)?(?P<place>layers\.\d+\.\w+\.\w+)\.lora_(?P<kind>[AB])\.weight")
# Options of peft's LoraConfig that change the function and that this file does not know; each must be empty.
_UNKNOWN_OPTIONS = (
    "use_dora",
    "fan_in_fan_out",
    "rank_pattern",
    "alpha_pattern",
    "layer_replication",
    "lora_bias",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
    "use_qalora",
    "megatron_config",
)


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """One LoRA adapter with the head that was trained beside it.

    Attributes:
        settings: rank, alpha, dropout, targets.
        factors: "layers.<i>.<projection>" -> (A (r, d_in), B (rows, r)), float32.
        head: name in the transformers model, such as "score.weight" -> tensor; empty without a head.
        task_type: peft's word: "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "CAUSAL_LM".
        base: folder or name of the model that the adapter belongs to.
        trunk: name of the trunk within the transformers model.
    """

    settings: LoraSettings
    factors: Mapping[str, tuple[Tensor, Tensor]]
    head: Mapping[str, Tensor] = field(default_factory=dict)
    task_type: str = "CAUSAL_LM"
    base: str = ""
    trunk: str = "model"


def adapter_of(
    model: Transformer, settings: LoraSettings, *, task_type: str = "CAUSAL_LM", base: str = "", trunk: str = "model"
) -> Adapter:
    """Return the adapter that is on a model, without a head: copies of its factors."""
    factors = {}
    for name, module in lora_modules(model):
        layer = name.split(".")[1]
        for projection in module.projections:
            a, b = module.factors(projection)
            factors[f"layers.{layer}.{projection}"] = (a.clone(), b.clone())
    return Adapter(settings=settings, factors=factors, task_type=task_type, base=base, trunk=trunk)


def put_adapter(model: Transformer, adapter: Adapter) -> None:
    """Put an adapter on a model without one, in place; everything else is frozen.

    Raises:
        ModelError: a factor has no place in this model, or another size.
    """
    expected = _factor_shapes(model.shape, adapter.settings)
    found = {place: (tuple(a.shape), tuple(b.shape)) for place, (a, b) in adapter.factors.items()}
    for place in [*expected, *found]:
        if expected.get(place) != found.get(place):
            raise ModelError(
                f"the adapter's {place} has shapes {found.get(place)} and the model takes {expected.get(place)}; load "
                f"it on the model that it was trained on ({adapter.base or 'not named'})"
            )
    add_lora(model, adapter.settings, seed=0)
    with torch.no_grad():
        for name, module in lora_modules(model):
            for projection in module.projections:
                for target, source in zip(
                    module.factors(projection),
                    adapter.factors[f"layers.{name.split('.')[1]}.{projection}"],
                    strict=True,
                ):
                    target.copy_(source)


def save_adapter(adapter: Adapter, folder: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors; other files of the folder stay."""
    tensors = {_PREFIX + name: tensor for name, tensor in adapter.head.items()}
    trunk = f"{adapter.trunk}." if adapter.trunk else ""
    for place, (a, b) in adapter.factors.items():
        tensors[f"{_PREFIX}{trunk}{place}.lora_A.weight"] = a
        tensors[f"{_PREFIX}{trunk}{place}.lora_B.weight"] = b
    portable = {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in tensors.items()}
    write_bytes(folder / WEIGHTS_FILE, safetensors.torch.save(portable, metadata={"format": "pt"}))
    heads = sorted({name.rpartition(".")[0] for name in adapter.head})
    config = {
        "peft_type": "LORA",
        "task_type": adapter.task_type,
        "base_model_name_or_path": adapter.base,
        "r": adapter.settings.rank,
        "lora_alpha": adapter.settings.alpha,
        "lora_dropout": adapter.settings.dropout,
        "target_modules": list(adapter.settings.targets),
        "modules_to_save": heads or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "inference_mode": True,
    }
    write_json(folder / CONFIG_FILE, config)


def read_adapter(folder: Path) -> Adapter:
    """Read a LoRA folder, ours or peft's.

    Raises:
        ModelError: not a LoRA adapter, an option that changes the function and is not known here, or broken tensors.
        DataError: a file is absent.
    """
    config = read_json(folder / CONFIG_FILE)
    _check_config(folder, config)
    tensors = _read_tensors(folder / WEIGHTS_FILE)
    factors: dict[str, dict[str, Tensor]] = {}
    head, trunks = {}, set()
    for name, tensor in tensors.items():
        if (match := _FACTOR.fullmatch(name)) is not None:
            factors.setdefault(match["place"], {})[match["kind"]] = tensor.float()
            trunks.add(match["trunk"] or "")
        elif "lora_" in name or ".layers." in name:
            raise ModelError(f"{folder}: tensor {name} is no LoRA factor of a projection; merge it with peft first")
        else:
            head[name] = tensor.float()
    halves = [place for place, pair in factors.items() if len(pair) != 2]
    if halves or not factors or len(trunks) != 1:
        raise ModelError(f"{folder}: {halves or 'nothing'} has lora_A without lora_B; save the adapter again")
    found = {place.rpartition(".")[2] for place in factors}
    alpha = float(config["lora_alpha"]) * (config["r"] ** 0.5 if config.get("use_rslora") else 1.0)
    settings = LoraSettings(
        rank=config["r"],
        alpha=alpha,
        dropout=float(config.get("lora_dropout") or 0.0),
        targets=tuple(name for name in LoraSettings().targets if name in found),
    )
    return Adapter(
        settings=settings,
        factors={place: (pair["A"], pair["B"]) for place, pair in factors.items()},
        head=head,
        task_type=str(config.get("task_type") or "CAUSAL_LM"),
        base=str(config.get("base_model_name_or_path") or ""),
        trunk=trunks.pop(),
    )


def is_plain_lora(folder: Path) -> bool:
    """Whether a folder's LoRA has none of the options (DoRA, ...) that `read_adapter` refuses and peft merges."""
    config = read_json(folder / CONFIG_FILE)
    return not any(config.get(option) for option in _UNKNOWN_OPTIONS) and config.get("bias", "none") == "none"


def stack_adapters(adapters: Sequence[Adapter], weights: Sequence[float]) -> Adapter:
    """Return one adapter whose product is the weighted sum of the others' products, exactly.

    The factors are laid side by side, so the rank is the sum of the ranks: sum w s B A = [w1 s1 B1, w2 s2 B2] [A1; A2].
    The heads are left out: two tasks' heads have no sum.

    Args:
        adapters: of the same base model; one or more.
        weights: one number each; 1.0 for a plain sum.

    Raises:
        ModelError: they belong to models of different sizes.
    """
    assert len(adapters) == len(weights) > 0
    rank = sum(adapter.settings.rank for adapter in adapters)
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    for place in dict.fromkeys(place for adapter in adapters for place in adapter.factors):
        pairs = [adapter.factors.get(place) for adapter in adapters]
        sizes = {(pair[0].shape[1], pair[1].shape[0]) for pair in pairs if pair is not None}
        if len(sizes) != 1:
            raise ModelError(f"the adapters' {place} have sizes {sorted(sizes)}; stack adapters of one base model")
        d_in, rows = sizes.pop()
        a = torch.zeros(rank, d_in)
        b = torch.zeros(rows, rank)
        start = 0
        for adapter, pair, weight in zip(adapters, pairs, weights, strict=True):
            end = start + adapter.settings.rank
            if pair is not None:
                a[start:end], b[:, start:end] = pair[0], pair[1] * (weight * adapter.settings.scale)
            start = end
        factors[place] = (a, b)
    found = {place.rpartition(".")[2] for place in factors}
    targets = tuple(name for name in LoraSettings().targets if name in found)
    settings = LoraSettings(rank=rank, alpha=float(rank), dropout=0.0, targets=targets)
    first = adapters[0]
    return Adapter(settings=settings, factors=factors, task_type=first.task_type, base=first.base, trunk=first.trunk)


def _factor_shapes(shape: ModelShape, settings: LoraSettings) -> dict[str, tuple[tuple[int, int], tuple[int, int]]]:
    inputs = {"o_proj": shape.n_heads * shape.head_dim, "down_proj": shape.d_ff}
    shapes = {}
    for layer in range(shape.n_layers):
        for projections in fused_projections(shape).values():
            for place, (start, end) in projections.items():
                name = place.rpartition(".")[2]
                if name in settings.targets:
                    a = (settings.rank, inputs.get(name, shape.d_model))
                    shapes[f"layers.{layer}.{place}"] = (a, (end - start, settings.rank))
    return shapes


def _check_config(folder: Path, config: Any) -> None:
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else config
        raise ModelError(f"{folder} holds a {kind!r} adapter; only LoRA runs on our own Transformer, use backbone hub")
    for option in _UNKNOWN_OPTIONS:
        if config.get(option):
            raise ModelError(f"{folder}: {option} = {config[option]} is not known here; merge the adapter with peft")
    if config.get("bias", "none") != "none":
        raise ModelError(f"{folder}: bias = {config['bias']!r} is not known here; merge the adapter with peft")
    if type(config.get("r")) is not int or not isinstance(config.get("lora_alpha"), int | float):
        raise ModelError(f"{folder}: r and lora_alpha must be numbers; save the adapter again")


def _read_tensors(path: Path) -> dict[str, Tensor]:
    with explain_os_error(path):
        content = path.read_bytes()
    try:
        tensors = safetensors.torch.load(content)
    except SafetensorError as error:
        raise ModelError(f"{path} is not a whole safetensors file ({error}); write or download it again") from None
    foreign = [name for name in tensors if not name.startswith(_PREFIX)]
    if foreign:
        raise ModelError(f"{path}: tensor {foreign[0]} does not begin with {_PREFIX}; save the adapter with peft again")
    return {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}
