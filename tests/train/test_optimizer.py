"""Every parameter is in exactly one group, in every layout; decay is decoupled and only on matrices."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from chinchilla_lm.core.shapes import ModelShape
from chinchilla_lm.model.transformer import Transformer, initialise
from chinchilla_lm.train.config import OptimizerConfig
from chinchilla_lm.train.optimizer import build_optimizer, group_parameters

SHAPE = ModelShape(vocab=24, context=8, d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=32)
SHAPES = [
    SHAPE,
    replace(SHAPE, layout="llama", is_tied=True),
    replace(SHAPE, layout="chinchilla", n_kv_heads=2, activation="gelu"),
    replace(SHAPE, layout="textbook", n_kv_heads=2, activation="relu", norm_placement="post"),
    replace(SHAPE, layout="textbook", n_kv_heads=2, activation="gelu", is_tied=True),
]
CONFIG = OptimizerConfig(lr_matrix=0.01, lr_embedding=0.3, weight_decay=0.5)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.layout}-{'tied' if s.is_tied else 'untied'}")
def test_every_parameter_is_in_exactly_one_group(shape):
    model = Transformer(shape)
    grouped = [name for names in group_parameters(model).values() for name in names]
    assert sorted(grouped) == sorted(name for name, _ in model.named_parameters())
    optimizer = build_optimizer(model, CONFIG)
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in model.parameters())


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.layout}-{'tied' if s.is_tied else 'untied'}")
def test_groups_hold_what_they_say(shape):
    groups = group_parameters(Transformer(shape))
    assert list(groups["embedding"]) == ["embedding"]
    assert all(parameter.ndim == 2 for parameter in groups["matrix"].values())
    assert all(name.startswith("blocks.") and name.endswith(".weight") for name in groups["matrix"])
    assert ("head.weight" in groups["head"]) == (not shape.is_tied)
    assert all(name.endswith("bias") or "norm" in name for name in groups["vector"])


def test_foreign_modules_are_grouped_by_type():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wte = nn.Embedding(10, 4)
            self.project = nn.Linear(4, 4)
            self.norm = nn.LayerNorm(4)
            self.frozen = nn.Linear(4, 4).requires_grad_(False)
            self.head = nn.Linear(4, 10, bias=False)
            self.head.weight = self.wte.weight

    groups = group_parameters(Tied())
    assert {kind: list(names) for kind, names in groups.items()} == {
        "matrix": [],
        "head": ["project.weight"],
        "embedding": ["wte.weight"],
        "vector": ["project.bias", "norm.weight", "norm.bias"],
    }


def test_groups_carry_their_peak_rate_and_decay():
    optimizer = build_optimizer(Transformer(SHAPE), CONFIG)
    assert {g["name"]: (g["lr_peak"], g["weight_decay"]) for g in optimizer.param_groups} == {
        "matrix": (0.01, 0.5),
        "head": (0.01, 0.5),
        "embedding": (0.3, 0.0),
        "vector": (0.01, 0.0),
    }


def test_decay_shrinks_matrices_by_lr_times_decay_and_nothing_else():
    model = Transformer(SHAPE)
    initialise(model, seed=0)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, CONFIG)
    for group in optimizer.param_groups:
        group["lr"] = 0.1 * group["lr_peak"]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)  # so that decay is all that moves
    optimizer.step()
    matrices = group_parameters(model)["matrix"]
    for name, parameter in model.named_parameters():
        shrink = 1 - 0.1 * 0.01 * 0.5 if name in matrices else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * shrink, rtol=1e-6, atol=0)
