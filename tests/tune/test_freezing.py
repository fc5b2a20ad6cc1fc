"""Which parameters learn: frozen ones stay bit-equal through real updates, groups hold each parameter once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from chinchilla_lm.core.errors import ConfigError
from chinchilla_lm.train.checkpoint import load_checkpoint, save_checkpoint
from chinchilla_lm.tune.config import TuneConfig
from chinchilla_lm.tune.freezing import choose_parameters, make_optimizer, parameter_depths, thaw
from chinchilla_lm.tune.hub_backbone import HubMask, load_hub_backbone
from chinchilla_lm.tune.own_backbone import load_own_backbone
from chinchilla_lm.tune.task import TunedModel

CONFIG = TuneConfig(
    task="text-classification", model="m", train="t", out="o", method="full", lr=1e-2, weight_decay=0.1, layer_decay=1.0
)
IDS, LENGTHS = torch.arange(3, 27).view(3, 8), torch.tensor([8, 8, 8])


def make_tuned(tiny_folder: Any, kind: str = "qwen3", form: str = "own", *, has_head: bool = True) -> TunedModel:
    transformers = pytest.importorskip("transformers")
    folder = tiny_folder(kind)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    if form == "own":
        backbone: Any = load_own_backbone(folder, tokenizer, torch.float32)
    else:
        backbone = load_hub_backbone(folder, tokenizer, torch.float32, "cpu", HubMask())
    torch.manual_seed(0)
    return TunedModel(backbone, nn.Linear(backbone.width, 2) if has_head else None)


def update(model: TunedModel, optimizer: torch.optim.Optimizer, steps: int = 2) -> None:
    assert model.head is not None
    for _ in range(steps):
        model.head(model.backbone.hidden(IDS, LENGTHS)[:, -1].float()).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def changed(model: TunedModel, config: TuneConfig, steps: int = 2) -> set[str]:
    """Names of the parameters that real updates move; the others must be equal bit for bit."""
    optimizer = make_optimizer(choose_parameters(model, config), config)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    update(model, optimizer, steps)
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}


@pytest.mark.parametrize(("kind", "form"), [("qwen3", "own"), ("gpt2", "hub"), ("bert", "hub")])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_frozen_parameters_are_bit_equal_after_training(tiny_folder, kind, form, optimizer):
    base = replace(CONFIG, optimizer=optimizer)
    assert changed(make_tuned(tiny_folder, kind, form), replace(base, method="head")) == {"head.weight", "head.bias"}
    model = make_tuned(tiny_folder, kind, form)
    depths = parameter_depths(model)
    moved = changed(model, replace(base, method="top-k", top_k=1))
    assert {depths[name] for name in moved} <= {2, 3}
    assert any(depths[name] == 2 for name in moved)
    everything = make_tuned(tiny_folder, kind, form)
    assert {depths[name] for name in changed(everything, base)} == {0, 1, 2, 3}


def test_a_pattern_trains_what_it_names_and_the_head(tiny_folder):
    config = replace(CONFIG, method="pattern", pattern=r"blocks\.1\.attention\.(qkv|out)")
    moved = changed(make_tuned(tiny_folder), config)
    assert moved == {
        "head.weight",
        "head.bias",
        "backbone.transformer.blocks.1.attention.qkv.weight",
        "backbone.transformer.blocks.1.attention.out.weight",
    }
    with pytest.raises(ConfigError, match=r"matches no parameter; names are such as .*blocks"):
        choose_parameters(make_tuned(tiny_folder), replace(config, pattern="layers"))
    with pytest.raises(ConfigError, match="no regular expression"):
        choose_parameters(make_tuned(tiny_folder), replace(config, pattern="("))


def test_bitfit_trains_biases_or_gains(tiny_folder):
    moved = changed(make_tuned(tiny_folder, "gpt2", "hub"), replace(CONFIG, method="bitfit"))
    assert all(name.endswith("bias") or name.startswith("head") for name in moved)
    assert len(moved) > 10
    gains = changed(make_tuned(tiny_folder), replace(CONFIG, method="bitfit"))
    assert all("norm" in name or name.startswith("head") for name in gains)
    assert len(gains) > 5


def test_lora_trains_its_factors_and_the_head(tiny_folder):
    moved = changed(make_tuned(tiny_folder), replace(CONFIG, method="lora", rank=2))
    assert moved
    assert all(name.startswith("head") or ".lora_" in name for name in moved)
    assert sum(".lora_b" in name for name in moved) == 8


def test_the_head_method_without_a_head_is_refused(tiny_folder):
    with pytest.raises(ConfigError, match="lora or top-k"):
        choose_parameters(make_tuned(tiny_folder, has_head=False), replace(CONFIG, method="head"))


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_each_trainable_parameter_is_in_one_group_and_only_matrices_decay(tiny_folder, layer_decay):
    model = make_tuned(tiny_folder)
    groups = choose_parameters(model, replace(CONFIG, layer_decay=layer_decay))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert len({group["name"] for group in groups}) == len(groups)
    depths = parameter_depths(model)
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            is_decayed = parameter.ndim == 2 and "embedding" not in name
            assert group["weight_decay"] == (0.1 if is_decayed else 0.0), name
            assert group["lr_peak"] == pytest.approx(1e-2 * layer_decay ** (3 - depths[name])), name


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_decay_is_decoupled_from_the_gradient(tiny_folder, optimizer):
    """With a gradient of zero each update multiplies a matrix by 1 - lr * weight_decay, and touches no gain."""
    model = make_tuned(tiny_folder)
    config = replace(CONFIG, optimizer=optimizer)
    made = make_optimizer(choose_parameters(model, config), config)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for _ in range(2):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        made.step()
    for name, parameter in model.named_parameters():
        is_decayed = parameter.ndim == 2 and "embedding" not in name
        expected = before[name] * (1 - 1e-2 * 0.1) ** 2 if is_decayed else before[name]
        torch.testing.assert_close(parameter.detach(), expected, msg=name)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_gradual_thaws_one_block_an_epoch_from_the_top_and_resumes(tiny_folder, tmp_path, optimizer):
    config = replace(CONFIG, method="gradual", optimizer=optimizer)
    model = make_tuned(tiny_folder)
    made = make_optimizer(choose_parameters(model, config), config)
    depths = parameter_depths(model)
    lowest = {0: 3, 1: 2, 2: 0, 3: 0}
    for epoch in range(4):
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        assert thaw(model, 5 * epoch, 5) == min(epoch, 2)
        update(model, made, 1)
        for name, parameter in model.named_parameters():
            is_moved = not torch.equal(parameter, before[name])
            assert is_moved == (depths[name] >= lowest[epoch]), (epoch, name)
        if epoch == 0:  # a checkpoint between holds every moment, and a run from it is the same run
            saved = save_checkpoint(tmp_path, 1, model, made, {})
    again = make_tuned(tiny_folder)
    second = make_optimizer(choose_parameters(again, config), config)
    load_checkpoint(saved, again, second)
    for epoch in range(1, 4):
        thaw(again, 5 * epoch, 5)
        update(again, second, 1)
    for (name, ours), theirs in zip(again.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
