"""Packed examples: each loss is the one of the example alone, on both backbones; the plan loses and doubles none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_lm.core.errors import ConfigError
from chinchilla_lm.tune.backbone import load_backbone
from chinchilla_lm.tune.completion import check_packing
from chinchilla_lm.tune.config import TuneConfig
from chinchilla_lm.tune.packing import (
    PADDING,
    isolating_bias,
    pack_examples,
    pack_lengths,
    packed_token_losses,
    restarted_positions,
)

FORMS = [("qwen3", "own"), ("llama", "own"), ("qwen3", "hub"), ("llama", "hub"), ("gpt2", "hub")]


def config_of(folder: Path, form: Any, **more: Any) -> TuneConfig:
    settings = {"task": "text-generation", "train": "train.jsonl", "out": "out", "method": "full"}
    return TuneConfig(model=str(folder), backbone=form, **settings | more)


def make_examples(vocab: int) -> tuple[list[np.ndarray[Any, Any]], list[np.ndarray[Any, Any]]]:
    drawn = np.random.default_rng(0)
    inputs = [drawn.integers(0, vocab, size) for size in (7, 12, 3, 20, 1, 9, 5)]
    targets = [np.where(drawn.random(len(ids)) < 0.6, drawn.integers(0, vocab, len(ids)), -100) for ids in inputs]
    return inputs, targets


@pytest.mark.parametrize(("kind", "form"), FORMS)
def test_packed_losses_and_gradients_are_those_of_each_example_alone(
    kind: str, form: str, tiny_folder: Callable[[str], Path]
):
    backbone: Any = load_backbone(config_of(tiny_folder(kind), form))
    inputs, targets = make_examples(backbone.vocab)
    arrays = pack_examples(inputs, targets, 32)
    assert len(arrays[0]) < len(inputs)
    ids_bt, _, targets_bt, documents_bt = map(torch.from_numpy, arrays)
    losses_bt = packed_token_losses(backbone, ids_bt, targets_bt, documents_bt)
    losses_bt.sum().backward()
    packed = {name: parameter.grad.clone() for name, parameter in backbone.named_parameters()}
    backbone.zero_grad()

    alone = []
    for row in pack_lengths([len(ids) for ids in inputs], 32):
        for index in row:
            batch = [torch.from_numpy(array)[None] for array in (inputs[index], targets[index])]
            alone.append(backbone.token_losses(*batch, torch.tensor([len(inputs[index])]))[0])
    sum(losses.sum() for losses in alone).backward()  # type: ignore[union-attr]
    torch.testing.assert_close(losses_bt[documents_bt != PADDING], torch.cat(alone), atol=1e-5, rtol=1e-5)
    for name, parameter in backbone.named_parameters():
        torch.testing.assert_close(packed[name], parameter.grad, atol=1e-4, rtol=1e-4)  # sums over 57 tokens


@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=40))
def test_the_plan_holds_each_example_once_and_no_row_overflows(lengths: list[int]):
    rows = pack_lengths(lengths, 20)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= 20 for row in rows)
    assert len(rows) <= 11 / 9 * max(1, -(-sum(lengths) // 20)) + 6 / 9 + len(lengths) / 2  # first fit is never wild


def test_positions_restart_and_documents_do_not_see_each_other():
    documents_bt = torch.tensor([[0, 0, 0, 1, 1, PADDING], [0, 1, 2, 2, PADDING, PADDING]])
    assert restarted_positions(documents_bt).tolist() == [[0, 1, 2, 0, 1, 0], [0, 0, 0, 1, 0, 1]]
    sees = isolating_bias(documents_bt, torch.float32, -1.0)[0, 0] == 0
    assert [row.nonzero()[:, 0].tolist() for row in sees] == [[0], [0, 1], [0, 1, 2], [3], [3, 4], [5]]


def test_what_cannot_be_packed_is_refused_in_one_line(tiny_folder: Callable[[str], Path]):
    config = config_of(tiny_folder("qwen3"), "hub", method="prefix", is_packed=True)
    with pytest.raises(ConfigError, match="method prefix puts its own tokens"):
        check_packing(config, load_backbone(config))
    config = config_of(tiny_folder("t5"), "hub", is_packed=True)
    with pytest.raises(ConfigError, match="for decoders"):
        check_packing(config, load_backbone(config))
