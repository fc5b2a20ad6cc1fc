"""Muon's direction is the polar factor of the momentum (SVD knows it); all but the blocks' matrices follow AdamW."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from chinchilla_lm.core.errors import CheckpointError
from chinchilla_lm.core.shapes import ModelShape
from chinchilla_lm.model.transformer import Transformer, initialise
from chinchilla_lm.train.checkpoint import load_checkpoint, save_checkpoint
from chinchilla_lm.train.config import OptimizerConfig
from chinchilla_lm.train.muon import orthogonalise
from chinchilla_lm.train.optimizer import build_optimizer, group_parameters

SHAPE = ModelShape(vocab=24, context=8, d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=32)
CONFIG = OptimizerConfig(rule="muon", lr_matrix=0.01, lr_embedding=0.3, weight_decay=0.5)


def build(config=CONFIG):
    model = Transformer(SHAPE)
    initialise(model, seed=0)
    return model, build_optimizer(model, config)


def put_gradients(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (16, 48), (64, 171), (128, 512)])
def test_the_direction_is_close_to_the_polar_factor(rows, columns):
    matrices = torch.randn(3, rows, columns, generator=torch.Generator().manual_seed(rows))
    found = orthogonalise(matrices, torch.float32)
    u, s, vh = torch.linalg.svd(matrices.double(), full_matrices=False)
    exact = u @ vh
    singular = torch.linalg.svdvals(found.double())
    is_large = s > 5e-3 * s.norm(dim=-1, keepdim=True)
    assert singular[is_large].min() > 0.7
    assert singular.max() < 1.3
    cosine = (found.double() * exact).sum((-2, -1)) / found.double().norm(dim=(-2, -1)) / exact.norm(dim=(-2, -1))
    assert cosine.min() > 0.98


def test_bfloat16_points_where_float32_points():
    matrices = torch.randn(2, 64, 160, generator=torch.Generator().manual_seed(0))
    fine, coarse = orthogonalise(matrices, torch.float32), orthogonalise(matrices, torch.bfloat16).float()
    cosine = (fine * coarse).sum((-2, -1)) / fine.norm(dim=(-2, -1)) / coarse.norm(dim=(-2, -1))
    assert cosine.min() > 0.999


def test_a_zero_gradient_moves_nothing_but_the_decay():
    assert torch.equal(orthogonalise(torch.zeros(1, 4, 6)), torch.zeros(1, 4, 6))


def test_first_update_by_hand():
    model, optimizer = build()
    put_gradients(model, 1)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    optimizer.step()
    for name, parameter in group_parameters(model)["matrix"].items():
        mean = 0.05 * gradients[name]
        blend = gradients[name].lerp(mean, 0.95)
        wide = blend if blend.shape[0] <= blend.shape[1] else blend.mT
        direction = orthogonalise(wide[None])[0]
        direction = direction if blend.shape[0] <= blend.shape[1] else direction.mT
        expected = before[name] * (1 - 0.01 * 0.5) - 0.01 * 0.1 * math.sqrt(max(blend.shape)) * direction
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-5, atol=1e-7)


def test_all_else_follows_adamw_to_the_last_bit():
    model, optimizer = build()
    other, plain = build(replace(CONFIG, rule="adamw"))
    for seed in (1, 2, 3):
        for each, its in ((model, optimizer), (other, plain)):
            put_gradients(each, seed)
            its.step()
            its.zero_grad(set_to_none=True)
    groups, others = group_parameters(model), dict(other.named_parameters())
    for kind in ("head", "embedding", "vector"):
        assert groups[kind]
        for name, parameter in groups[kind].items():
            assert torch.equal(parameter, others[name]), name
    assert not any(torch.equal(parameter, others[name]) for name, parameter in groups["matrix"].items())


def test_a_checkpoint_continues_bit_for_bit(tmp_path):
    model, optimizer = build()
    for seed in (1, 2):
        put_gradients(model, seed)
        optimizer.step()
    path = save_checkpoint(tmp_path, 2, model, optimizer, {})
    resumed, its_optimizer = build()
    load_checkpoint(path, resumed, its_optimizer)
    for each, its in ((model, optimizer), (resumed, its_optimizer)):
        put_gradients(each, 3)
        its.step()
    for (name, one), (_, two) in zip(model.named_parameters(), resumed.named_parameters(), strict=True):
        assert torch.equal(one, two), name


def test_a_checkpoint_of_the_other_rule_is_refused(tmp_path):
    model, optimizer = build(replace(CONFIG, rule="adamw"))
    put_gradients(model, 1)
    optimizer.step()
    path = save_checkpoint(tmp_path, 1, model, optimizer, {})
    with pytest.raises(CheckpointError, match="optimizer state"):
        load_checkpoint(path, *build())
