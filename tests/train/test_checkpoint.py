"""Checkpoints: exact, verified, refused when they are not this model's, newest valid first."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from chinchilla_lm.core.errors import CheckpointError
from chinchilla_lm.model.transformer import Transformer, initialise
from chinchilla_lm.train.checkpoint import (
    latest_checkpoint,
    list_checkpoints,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from chinchilla_lm.train.optimizer import build_optimizer


def build(config, seed=0):
    model = Transformer(config.shape)
    initialise(model, seed)
    return model, build_optimizer(model, config.optimizer)


def update(model, optimizer, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


def moments(model, optimizer):
    return {(n, k): v for n, p in model.named_parameters() for k, v in optimizer.state[p].items()}


@pytest.fixture
def config(make_config):
    return make_config()


def test_state_comes_back_bit_for_bit(config, tmp_path):
    model, optimizer = build(config)
    update(model, optimizer, 1)
    torch.manual_seed(7)
    torch.rand(5)
    path = save_checkpoint(tmp_path, 12, model, optimizer, {"tokens": 384, "loss": 0.1 + 0.2})
    expected_draw = torch.rand(5)

    other, other_optimizer = build(config, seed=9)
    update(other, other_optimizer, 2)
    torch.manual_seed(8)
    extra = load_checkpoint(path, other, other_optimizer)
    assert extra == {"step": 12, "tokens": 384, "loss": 0.1 + 0.2}
    assert torch.equal(torch.rand(5), expected_draw)
    assert all(torch.equal(p, other.get_parameter(n)) for n, p in model.named_parameters())
    mine, theirs = moments(model, optimizer), moments(other, other_optimizer)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)

    update(model, optimizer, 3)
    update(other, other_optimizer, 3)
    assert all(torch.equal(p, other.get_parameter(n)) for n, p in model.named_parameters())


def test_files_are_the_documented_ones(config, tmp_path):
    model, optimizer = build(config)
    update(model, optimizer, 1)
    path = save_checkpoint(tmp_path, 3, model, optimizer, {})
    assert path.name == "step-000000003"
    assert sorted(file.name for file in path.iterdir()) == [
        "manifest.json",
        "optimizer.safetensors",
        "random.safetensors",
        "state.json",
        "weights.safetensors",
    ]
    assert {file.name for file in tmp_path.iterdir()} == {path.name}
    assert set(load_file(path / "weights.safetensors")) == {name for name, _ in model.named_parameters()}
    assert "exp_avg_sq/blocks.0.attention.qkv.weight" in load_file(path / "optimizer.safetensors")


def test_a_checkpoint_before_the_first_update_has_no_moments(config, tmp_path):
    model, optimizer = build(config)
    path = save_checkpoint(tmp_path, 0, model, optimizer, {})
    other, other_optimizer = build(config, seed=9)
    update(other, other_optimizer, 2)
    load_checkpoint(path, other, other_optimizer)
    assert not other_optimizer.state


def test_without_an_optimizer_only_the_weights_come_back(config, tmp_path):
    model, optimizer = build(config)
    path = save_checkpoint(tmp_path, 0, model, optimizer, {})
    other, _ = build(config, seed=9)
    before = torch.get_rng_state()
    torch.rand(3)
    moved = torch.get_rng_state()
    load_checkpoint(path, other, None)
    assert torch.equal(torch.get_rng_state(), moved)
    assert not torch.equal(before, moved)
    assert all(torch.equal(p, other.get_parameter(n)) for n, p in model.named_parameters())


def test_tied_weights_buffers_and_other_optimizers(tmp_path):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(6, 4)
            self.head = nn.Linear(4, 6, bias=False)
            self.head.weight = self.embedding.weight
            self.norm = nn.BatchNorm1d(4)

    model, other = Tied(), Tied()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    other_optimizer = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    update(model, optimizer, 1)
    model.norm.running_mean += 1
    load_checkpoint(save_checkpoint(tmp_path, 1, model, optimizer, {}), other, other_optimizer)
    assert torch.equal(other.norm.running_mean, model.norm.running_mean)
    assert other.head.weight is other.embedding.weight
    update(model, optimizer, 2)
    update(other, other_optimizer, 2)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"d_model": 24}, "embedding has shape [32, 16], this model has [32, 24]"),
        ({"n_layers": 3}, "blocks.2."),
        ({"n_layers": 1}, "is not in this model"),
        ({"layout": "llama"}, "blocks.0.attention.key_norm.weight is not in this model"),
    ],
)
def test_another_model_is_refused_and_nothing_changes(config, tmp_path, change, words):
    model, optimizer = build(config)
    update(model, optimizer, 1)
    path = save_checkpoint(tmp_path, 1, model, optimizer, {})
    other, other_optimizer = build(replace(config, shape=replace(config.shape, **change)), seed=9)
    before = [parameter.detach().clone() for parameter in other.parameters()]
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, other, other_optimizer)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(p, q) for p, q in zip(before, other.parameters(), strict=True))
    assert not other_optimizer.state


def test_newest_valid_one_is_found_and_corrupt_ones_are_named(config, tmp_path):
    assert latest_checkpoint(tmp_path / "absent") == (None, ())
    model, optimizer = build(config)
    paths = [save_checkpoint(tmp_path, step, model, optimizer, {}) for step in (5, 10, 1_000_000_000)]
    assert list_checkpoints(tmp_path) == paths
    assert latest_checkpoint(tmp_path) == (paths[2], ())
    (paths[2] / "manifest.json").unlink()
    with (paths[1] / "weights.safetensors").open("r+b") as stream:
        stream.seek(1000)
        byte = stream.read(1)[0]
        stream.seek(1000)
        stream.write(bytes([byte ^ 1]))
    found, warnings = latest_checkpoint(tmp_path)
    assert found == paths[0]
    assert [("manifest.json" in warnings[0]), ("weights.safetensors" in warnings[1])] == [True, True]
    with pytest.raises(CheckpointError, match=r"weights\.safetensors is corrupt .*older checkpoint"):
        load_checkpoint(paths[1], model, optimizer)


def test_a_checkpoint_under_another_step_is_refused(config, tmp_path):
    """A renamed folder would shift the learning rate and the data."""
    model, optimizer = build(config)
    path = save_checkpoint(tmp_path, 5, model, optimizer, {})
    moved = path.rename(tmp_path / "step-000000006")
    with pytest.raises(CheckpointError, match=r"manifest\.json is corrupt"):
        load_checkpoint(moved, model, optimizer)
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_checkpoint(tmp_path, model, optimizer)


def test_files_of_two_checkpoints_cannot_be_mixed(config, tmp_path):
    model, optimizer = build(config)
    old = save_checkpoint(tmp_path, 1, model, optimizer, {})
    update(model, optimizer, 1)
    new = save_checkpoint(tmp_path, 2, model, optimizer, {})
    shutil.copy(old / "optimizer.safetensors", new / "optimizer.safetensors")
    assert latest_checkpoint(tmp_path)[0] == old


def test_pruning_keeps_the_newest_and_drops_refused_ones_beyond(config, tmp_path):
    model, optimizer = build(config)
    for step in (1, 2, 3, 4, 9):
        save_checkpoint(tmp_path, step, model, optimizer, {})
    prune_checkpoints(tmp_path, newest_step=4, keep=2)  # 9 was refused at the start: it must not count as a newest
    assert [path.name[-1] for path in list_checkpoints(tmp_path)] == ["3", "4"]
    assert len(list(tmp_path.iterdir())) == 2


def test_the_same_step_is_replaced(config, tmp_path):
    model, optimizer = build(config)
    save_checkpoint(tmp_path, 1, model, optimizer, {"take": 1})
    path = save_checkpoint(tmp_path, 1, model, optimizer, {"take": 2})
    assert load_checkpoint(path, model, optimizer) == {"step": 1, "take": 2}
    assert len(list(tmp_path.iterdir())) == 1


def test_leftovers_of_killed_processes_are_removed(config, tmp_path):
    model, optimizer = build(config)
    mine = tmp_path / f".step-000000001.{os.getpid()}.tmp"  # a container restarts with the same number
    dead = tmp_path / ".step-000000001.4194305.tmp"  # above Linux's largest process number
    for leftover in (mine, dead):
        leftover.mkdir()
        (leftover / "weights.safetensors").write_bytes(b"half")
    path = save_checkpoint(tmp_path, 2, model, optimizer, {})
    assert list(tmp_path.iterdir()) == [path]


def test_values_that_json_cannot_hold_are_our_bug(config, tmp_path):
    model, optimizer = build(config)
    with pytest.raises(ValueError, match="JSON"):
        save_checkpoint(tmp_path, 1, model, optimizer, {"loss": float("nan")})
    assert not list_checkpoints(tmp_path)
