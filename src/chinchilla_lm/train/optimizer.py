"""The optimizer of a run: one group for each kind of parameter.

| group | parameters | rule "muon" | rule "adamw" | peak rate | weight decay |
|---|---|---|---|---|---|
| matrix | matrices in blocks | Muon | AdamW | lr_matrix | weight_decay |
| head | the head, any other matrix | AdamW | AdamW | lr_matrix | weight_decay |
| embedding | embedding tables (a tied head is one of them) | AdamW | AdamW | lr_embedding | 0 |
| vector | norm gains, biases | AdamW | AdamW | lr_matrix | 0 |

Decay is decoupled as in torch.optim.AdamW: each update first multiplies a weight by (1 - lr * weight_decay), with the
lr of that update, so the decay follows the schedule.
"""

from __future__ import annotations

import torch
from torch import nn

from chinchilla_lm.train.config import OptimizerConfig
from chinchilla_lm.train.muon import MuonAdamW


def build_optimizer(model: nn.Module, config: OptimizerConfig, dtype: torch.dtype = torch.float32) -> torch.optim.AdamW:
    """Make the optimizer over every trainable parameter of a model.

    Args:
        model: of any layout; parameters with requires_grad False are left out.
        config: rule, rates, betas, epsilon, decay.
        dtype: of Muon's products; the run's own.

    Returns:
        An AdamW, or one whose matrix group follows Muon. Its groups carry "name" and "lr_peak"; the loop sets
        group["lr"] = factor * group["lr_peak"].

    Source: Loshchilov & Hutter 2019 (decoupled decay); no decay on embeddings, norms and biases: common practice.
    """
    settings = {
        "matrix": (config.lr_matrix, config.weight_decay),
        "head": (config.lr_matrix, config.weight_decay),
        "embedding": (config.lr_embedding, 0.0),
        "vector": (config.lr_matrix, 0.0),
    }
    groups = [
        {
            "params": list(parameters.values()),
            "name": name,
            "lr": settings[name][0],
            "lr_peak": settings[name][0],
            "weight_decay": settings[name][1],
        }
        for name, parameters in group_parameters(model).items()
        if parameters
    ]
    betas = (config.beta1, config.beta2)
    if config.rule == "adamw":
        return torch.optim.AdamW(groups, betas=betas, eps=config.epsilon, fused=True)
    for group in groups:
        group["rule"] = "muon" if group["name"] == "matrix" else "adamw"
        group["momentum"] = config.momentum
    return MuonAdamW(groups, betas=betas, eps=config.epsilon, dtype=dtype)


def group_parameters(model: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    """Sort every trainable parameter into exactly one of "matrix", "head", "embedding", "vector".

    Embeddings are known by their module (nn.Embedding) or by their own name ("embedding"); one that a tied head shares
    stays an embedding. A parameter called a bias is a vector, whatever its axes. A matrix of a block is known by a
    number in its name (`blocks.3.up.weight`); any other, such as a task's head, counts as a head.

    Returns:
        group -> name -> parameter, each in the order of `model.named_parameters()`.
    """
    in_embedding = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
        for parameter in module.parameters(recurse=False)
    }
    groups: dict[str, dict[str, nn.Parameter]] = {"matrix": {}, "head": {}, "embedding": {}, "vector": {}}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        own_name = name.rpartition(".")[2]
        if id(parameter) in in_embedding or own_name.endswith("embedding"):
            groups["embedding"][name] = parameter
        elif parameter.ndim < 2 or own_name.endswith("bias"):
            groups["vector"][name] = parameter
        else:
            is_in_block = any(part.isdigit() for part in name.split("."))
            groups["matrix" if is_in_block else "head"][name] = parameter
    return groups
