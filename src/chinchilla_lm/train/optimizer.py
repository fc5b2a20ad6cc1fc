"""AdamW with one group for each kind of parameter.

| group | parameters | peak rate | weight decay |
|---|---|---|---|
| matrix | matrices in blocks, the head | lr_matrix | weight_decay |
| embedding | embedding tables (a tied head is one of them) | lr_embedding | 0 |
| vector | norm gains, biases | lr_matrix | 0 |

Decay is decoupled as in torch.optim.AdamW: each update first multiplies a weight by (1 - lr * weight_decay), with the
lr of that update, so the decay follows the schedule.
"""

from __future__ import annotations

import torch
from torch import nn

from chinchilla_lm.train.config import OptimizerConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Make AdamW over every trainable parameter of a model.

    Args:
        model: of any layout; parameters with requires_grad False are left out.
        config: rates, betas, epsilon, decay.

    Returns:
        A fused AdamW whose groups carry "name" and "lr_peak"; the loop sets group["lr"] = factor * group["lr_peak"].

    Source: Loshchilov & Hutter 2019 (decoupled decay); no decay on embeddings, norms and biases: common practice.
    """
    settings = {
        "matrix": (config.lr_matrix, config.weight_decay),
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
    return torch.optim.AdamW(groups, betas=(config.beta1, config.beta2), eps=config.epsilon, fused=True)


def group_parameters(model: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    """Sort every trainable parameter into exactly one of "matrix", "embedding", "vector".

    Embeddings are known by their module (nn.Embedding) or by their own name ("embedding"); one that a tied head shares
    stays an embedding. A parameter called a bias is a vector, whatever its axes.

    Returns:
        group -> name -> parameter, each in the order of `model.named_parameters()`.
    """
    in_embedding = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
        for parameter in module.parameters(recurse=False)
    }
    groups: dict[str, dict[str, nn.Parameter]] = {"matrix": {}, "embedding": {}, "vector": {}}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        own_name = name.rpartition(".")[2]
        if id(parameter) in in_embedding or own_name.endswith("embedding"):
            groups["embedding"][name] = parameter
        elif parameter.ndim < 2 or own_name.endswith("bias"):
            groups["vector"][name] = parameter
        else:
            groups["matrix"][name] = parameter
    return groups
