"""Which parameters learn, how fast, and with how much decay: a model and a config in, optimizer groups out.

| method | learns |
|---|---|
| full | everything |
| head | the task's head |
| top-k | the last `top_k` blocks, what follows the blocks (last norm, pooler, untied output matrix), the head |
| gradual | as full, but a block is frozen until its epoch: the head first, one block more each epoch, from the top |
| pattern | parameters whose name matches `pattern` (`re.search`), and the head |
| bitfit | biases, or norm gains in a model without biases, and the head |
| lora, prompt, prefix, ia3, peft | what the method adds, and the head |

A parameter has a depth: 0 embeddings, 1 ... L blocks, L + 1 what follows them and the head. Layer-wise decay gives
depth i the rate lr * layer_decay^(L + 1 - i). Weight decay is decoupled (each update multiplies by 1 - lr *
weight_decay) and is for matrices: not for embeddings, gains, biases, virtual tokens.

Sources: gradual unfreezing and rates by layer: Howard and Ruder 2018 (ULMFiT), sections 3.2-3.3; BitFit: Ben Zaken et
al. 2022; decoupled decay: Loshchilov and Hutter 2019.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from chinchilla_lm.core.errors import ConfigError
from chinchilla_lm.tune.config import TuneConfig
from chinchilla_lm.tune.lora import LoraSettings, add_lora, has_lora
from chinchilla_lm.tune.task import TunedModel

BETAS = (0.9, 0.999)
"""AdamW's own defaults, which fine-tuning keeps (Devlin et al. 2019, appendix A.2)."""
MOMENTUM = 0.9
_ADAPTERS = ("lora", "prompt", "prefix", "ia3", "peft")
_SHOWN_NAMES = 3


def choose_parameters(model: TunedModel, config: TuneConfig) -> list[dict[str, Any]]:
    """Set requires_grad on every parameter, put an adapter on where the method has one, and return optimizer groups.

    Args:
        model: changed in place. Under "gradual" every block is trainable here; `thaw` freezes those whose time has not
            come, before the first step and at each epoch.
        config: method, rates, decay; lr is set.

    Returns:
        Groups for `make_optimizer`: "params", "name", "lr", "lr_peak", "weight_decay"; every trainable parameter in
        exactly one.

    Raises:
        ConfigError: the method does not fit the model, or nothing would learn.
    """
    assert config.lr is not None, "resolve the config first"
    if config.method in _ADAPTERS and not has_adapter(model):
        attach_adapter(model, config)
    is_added = {id(p) for p in _adapter_parameters(model)}
    model.requires_grad_(False)
    depths = parameter_depths(model)
    top = max(depths.values())
    chosen = _chosen_names(model, config, depths) if config.method not in _ADAPTERS else set()
    in_head = {id(p) for p in _head_parameters(model)}
    groups: dict[tuple[int, str], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not (name in chosen or id(parameter) in in_head or id(parameter) in is_added):
            continue
        parameter.requires_grad_(True)
        kind = "head" if id(parameter) in in_head else _kind(depths[name], parameter, config.method)
        is_matrix = parameter.ndim >= 2 and not name.endswith("bias") and kind not in ("embedding", "virtual")
        depth = depths[name] if config.layer_decay < 1 else top
        key = (depth, kind if is_matrix else f"{kind} without decay")
        if key not in groups:
            lr = config.lr * config.layer_decay ** (top - depth)
            label = f"{key[1]} at depth {depth}" if config.layer_decay < 1 else key[1]
            decay = config.weight_decay if is_matrix else 0.0
            groups[key] = {"params": [], "name": label, "lr": lr, "lr_peak": lr, "weight_decay": decay}
        groups[key]["params"].append(parameter)
    if not groups:
        raise ConfigError(f'method "{config.method}" leaves nothing to learn here; choose lora, top-k or full')
    return [groups[key] for key in sorted(groups, reverse=True)]


def make_optimizer(groups: list[dict[str, Any]], config: TuneConfig) -> torch.optim.Optimizer:
    """Make AdamW or SGD over groups of `choose_parameters`; weight decay is decoupled in both.

    Under "gradual" the state of blocks that are still frozen is there from the start, all zero, as if they had just
    been thawed: a checkpoint then always holds the same tensors.
    """
    if config.optimizer == "adamw":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, betas=BETAS, eps=1e-8, fused=True)
        keys: tuple[str, ...] = ("exp_avg", "exp_avg_sq")
    else:
        for group in groups:
            group["decoupled_decay"], group["weight_decay"] = group["weight_decay"], 0.0
        optimizer = torch.optim.SGD(groups, lr=groups[0]["lr"], momentum=MOMENTUM)
        optimizer.register_step_pre_hook(_decay_weights)
        keys = ("momentum_buffer",)
    if config.method == "gradual":
        for parameter in (p for group in groups for p in group["params"]):
            state: dict[str, Tensor] = {key: torch.zeros_like(parameter) for key in keys}
            if config.optimizer == "adamw":
                state["step"] = torch.zeros((), device=parameter.device)
            optimizer.state[parameter].update(state)
    return optimizer


def thaw(model: TunedModel, step: int, steps_per_epoch: int) -> int:
    """For method "gradual": train the head and, after e whole epochs, the last e blocks; freeze the others.

    Args:
        model: after `choose_parameters`; changed in place.
        step: updates done; call this before the first and between any two.
        steps_per_epoch: updates in one epoch, >= 1.

    Returns:
        Blocks that learn now. What lies below the blocks (embeddings) joins when all blocks do.

    Source: Howard and Ruder 2018, section 3.3.
    """
    depths = parameter_depths(model)
    blocks = len(model.backbone.blocks)
    open_blocks = min(step // steps_per_epoch, blocks)
    lowest = 0 if open_blocks == blocks else blocks + 1 - open_blocks
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(depths[name] >= lowest)
    return open_blocks


def attach_adapter(model: TunedModel, config: TuneConfig) -> None:
    """Put what the method adds (LoRA, virtual tokens, scales) on the backbone, in place."""
    backbone: Any = model.backbone
    if backbone.form == "own":
        assert config.method == "lora", config.method
        add_lora(backbone.transformer, lora_settings(config), seed=config.seed)
        return
    from chinchilla_lm.tune.peft_methods import add_peft  # peft is an optional package

    add_peft(backbone, config)


def lora_settings(config: TuneConfig) -> LoraSettings:
    """Return LoRA's settings as a config has them."""
    alpha = 2.0 * config.rank if config.lora_alpha is None else config.lora_alpha
    return LoraSettings(rank=config.rank, alpha=alpha, dropout=config.lora_dropout)


def parameter_depths(model: TunedModel) -> dict[str, int]:
    """Return each parameter's depth: 0 embeddings, 1 ... L blocks, L + 1 what follows the blocks, and the head."""
    blocks = list(model.backbone.blocks)
    in_block = {id(p): index for index, block in enumerate(blocks, start=1) for p in block.parameters()}
    in_embedding = {
        id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()
    }
    depths = {}
    for name, parameter in model.named_parameters():
        is_below = id(parameter) in in_embedding or "embed" in name  # BERT's embeddings.LayerNorm, our `embedding`
        depths[name] = in_block.get(id(parameter), 0 if is_below else len(blocks) + 1)
    return depths


def _chosen_names(model: TunedModel, config: TuneConfig, depths: dict[str, int]) -> set[str]:
    """Names that the method trains beside the head."""
    names, top = list(depths), max(depths.values())
    if config.method in ("full", "gradual"):
        return set(names)
    if config.method == "head":
        if not _head_parameters(model):
            raise ConfigError(
                "method \"head\" needs a head of the task's own, and this task answers in the model's words; choose "
                "lora or top-k"
            )
        return set()
    if config.method == "top-k":
        return {name for name in names if depths[name] > top - 1 - config.top_k}
    if config.method == "pattern":
        assert config.pattern is not None
        try:
            chosen = {name for name in names if re.search(config.pattern, name)}
        except re.error as error:
            raise ConfigError(f"pattern {config.pattern!r} is no regular expression ({error}); correct it") from None
        if not chosen:
            shown = ", ".join(names[:: max(1, len(names) // _SHOWN_NAMES)][:_SHOWN_NAMES])
            raise ConfigError(f"pattern {config.pattern!r} matches no parameter; names are such as {shown}")
        return chosen
    assert config.method == "bitfit", config.method
    below_head = {name: p for name, p in model.named_parameters() if name.startswith("backbone.")}
    biases = {name for name in below_head if name.endswith("bias")}
    return biases or {name for name, p in below_head.items() if p.ndim < 2}


def _head_parameters(model: TunedModel) -> list[nn.Parameter]:
    return [] if model.head is None else list(model.head.parameters())


def has_adapter(model: TunedModel) -> bool:
    """Whether a method has already added its parameters."""
    return bool(_adapter_parameters(model))


def _adapter_parameters(model: TunedModel) -> list[nn.Parameter]:
    """What LoRA or peft has added to the backbone."""
    backbone: Any = model.backbone
    if has_lora(model):
        return [p for name, p in model.named_parameters() if name.endswith((".lora_a", ".lora_b"))]
    return list(getattr(backbone, "added_parameters", ()))


def _kind(depth: int, parameter: nn.Parameter, method: str) -> str:
    if method in ("prompt", "prefix", "ia3"):
        return "virtual"
    if method in ("lora", "peft"):
        return "adapter"
    if depth == 0:
        return "embedding"
    return "matrix" if parameter.ndim >= 2 else "vector"


def _decay_weights(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    for group in optimizer.param_groups:
        moved = [p for p in group["params"] if p.grad is not None]
        if group["decoupled_decay"] and moved:
            with torch.no_grad():
                factor = 1 - group["lr"] * group["decoupled_decay"]
                torch._foreach_mul_(moved, factor)  # pyright: ignore[reportPrivateImportUsage]
