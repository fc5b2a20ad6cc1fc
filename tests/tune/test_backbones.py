"""Both forms of a model are the same model, whatever the padding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from chinchilla_lm.core.errors import ConfigError, ModelError
from chinchilla_lm.tune.backbone import choose_form, last_states, load_backbone, split_by_length
from chinchilla_lm.tune.config import TuneConfig

TEXTS = ("a warm film", "the team won the final game on sunday , and the bank fell", "dull")
Folder = Callable[[str], Path]


def configure(folder: Path, **changes: Any) -> TuneConfig:
    return TuneConfig(task="text-classification", model=str(folder), train="t", out="o", **changes)


def padded(backbone: Any, filler: int, extra: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rows = backbone.tokenizer(list(TEXTS), add_special_tokens=True)["input_ids"]
    lengths_b = torch.tensor([len(row) for row in rows])
    ids_bt = torch.full((len(rows), int(lengths_b.max()) + extra), filler)
    for index, row in enumerate(rows):
        ids_bt[index, : len(row)] = torch.tensor(row)
    return ids_bt, lengths_b


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_own_and_hub_are_the_same_function(tiny_folder: Folder, kind: str) -> None:
    own, hub = (load_backbone(configure(tiny_folder(kind), backbone=form)) for form in ("own", "hub"))
    assert (own.form, hub.form) == ("own", "hub")
    ids_bt, lengths_b = padded(own, 1)
    targets_bt = ids_bt.roll(-1, 1).masked_fill(torch.arange(ids_bt.shape[1]) >= lengths_b[:, None] - 1, -100)
    with torch.no_grad():
        for ours, theirs in (
            (
                last_states(own.hidden(ids_bt, lengths_b), lengths_b),
                last_states(hub.hidden(ids_bt, lengths_b), lengths_b),
            ),
            (own.token_losses(ids_bt, targets_bt, lengths_b), hub.token_losses(ids_bt, targets_bt, lengths_b)),
            (own.unembedding_rows([5, 3]), hub.unembedding_rows([5, 3])),
        ):
            torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
    prompts = [row[:length].tolist() for row, length in zip(ids_bt, lengths_b, strict=True)]
    torch.testing.assert_close(own.next_token_logits(prompts), hub.next_token_logits(prompts), atol=1e-4, rtol=1e-4)
    assert own.generate(prompts, 6, [own.tokenizer.eos_token_id]) == hub.generate(prompts, 6, [])
    choices = [prompts[0], prompts[2], [9]]
    np.testing.assert_allclose(
        own.choice_logprobs(prompts[1], choices), hub.choice_logprobs(prompts[1], choices), atol=1e-4
    )


@pytest.mark.parametrize("kind", ["qwen3", "llama", "gpt2", "bert", "t5", "bart"])
@pytest.mark.parametrize("mask", ["causal", "bidirectional", "top-k"])
def test_no_state_depends_on_the_padding(tiny_folder: Folder, kind: str, mask: str) -> None:
    if mask != "causal" and kind not in ("qwen3", "llama", "gpt2"):
        pytest.skip("masks are a decoder's")
    backbone = load_backbone(configure(tiny_folder(kind), mask=mask, mask_blocks=1))
    assert isinstance(backbone, torch.nn.Module)
    backbone.eval()
    with torch.no_grad():
        plain = [
            backbone.hidden(ids_bt[i : i + 1, :length], lengths_b[i : i + 1])[0]
            for ids_bt, lengths_b in [padded(backbone, 1)]
            for i, length in enumerate(lengths_b.tolist())
        ]
        for filler, extra in ((1, 0), (7, 5), (int(backbone.tokenizer.pad_token_id), 3)):
            ids_bt, lengths_b = padded(backbone, filler, extra)
            states_btd = backbone.hidden(ids_bt, lengths_b)
            for alone, row, length in zip(plain, states_btd, lengths_b.tolist(), strict=True):
                torch.testing.assert_close(row[:length], alone, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["qwen3", "llama", "gpt2"])
def test_a_mask_opens_the_blocks_it_names(tiny_folder: Folder, kind: str) -> None:
    """The first position's state changes with the last token where any block sees forward, and only there."""
    changed = {}
    for mask, blocks in (("causal", 1), ("top-k", 1), ("top-k", 2), ("bidirectional", 1)):
        backbone = load_backbone(configure(tiny_folder(kind), mask=mask, mask_blocks=blocks))
        ids_bt = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 9]])
        with torch.no_grad():
            x_btd = backbone.hidden(ids_bt, torch.tensor([4, 4]))
        changed[mask, blocks] = float((x_btd[0, 0] - x_btd[1, 0]).abs().max())
        states = x_btd[:, 0]
        if (mask, blocks) == ("top-k", 2):
            all_open = states
    assert changed["causal", 1] == 0
    assert min(changed["top-k", 1], changed["top-k", 2], changed["bidirectional", 1]) > 1e-4
    torch.testing.assert_close(states, all_open, atol=1e-5, rtol=1e-5)  # every block open is the bidirectional model


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_an_answers_losses_are_those_of_transformers(tiny_folder: Folder, kind: str) -> None:
    backbone = load_backbone(configure(tiny_folder(kind)))
    ids_bt, lengths_b = padded(backbone, 1)
    targets_bu = torch.tensor([[8, 9, 10], [11, 12, -100], [13, -100, -100]])
    module = AutoModelForSeq2SeqLM.from_pretrained(tiny_folder(kind)).eval()
    backbone.module.eval()
    with torch.no_grad():
        losses_bu = backbone.token_losses(ids_bt, targets_bu, lengths_b)
        mask_bt = (torch.arange(ids_bt.shape[1]) < lengths_b[:, None]).long()
        theirs = module(input_ids=ids_bt, attention_mask=mask_bt, labels=targets_bu).loss
    assert float(losses_bu.sum() / 6) == pytest.approx(float(theirs), rel=1e-5)
    prompts = [row[:length].tolist() for row, length in zip(ids_bt, lengths_b, strict=True)]
    alone = [answer for prompt in prompts for answer in backbone.generate([prompt], 5, [])]
    assert backbone.generate(prompts, 5, []) == alone


def test_gpt2_generates_what_transformers_generates(tiny_folder: Folder) -> None:
    backbone = load_backbone(configure(tiny_folder("gpt2")))
    module = AutoModelForCausalLM.from_pretrained(tiny_folder("gpt2")).eval()
    prompts = backbone.tokenizer(list(TEXTS))["input_ids"]
    theirs = [
        module.generate(torch.tensor([prompt]), max_new_tokens=5, do_sample=False, pad_token_id=1)[0, len(prompt) :]
        for prompt in prompts
    ]
    backbone.module.eval()
    ours = backbone.generate(prompts, 5, [])
    for mine, expected in zip(ours, theirs, strict=True):
        assert mine == [token for token in expected.tolist() if token > 1][: len(mine)]


def test_the_form_follows_the_rule(tiny_folder: Folder) -> None:
    assert choose_form(configure(tiny_folder("qwen3"))) == "own"
    assert choose_form(configure(tiny_folder("qwen3"), method="ia3")) == "hub"
    assert choose_form(configure(tiny_folder("qwen3"), mask="bidirectional")) == "hub"
    assert choose_form(configure(tiny_folder("gpt2"))) == "hub"
    with pytest.raises(ConfigError, match="own.*gpt2.*auto"):
        choose_form(configure(tiny_folder("gpt2"), backbone="own"))
    with pytest.raises(ModelError, match="mask.*encoder"):
        load_backbone(configure(tiny_folder("bert"), mask="bidirectional"))


def test_batches_by_length_hold_every_row_once() -> None:
    lengths = [5, 1, 9, 9, 2, 2]
    batches = split_by_length(lengths, tokens_at_once=18)
    assert sorted(row for batch in batches for row in batch) == list(range(6))
    assert all(len(batch) * max(lengths[i] for i in batch) <= 18 for batch in batches)


@pytest.mark.parametrize("kind", ["gpt2", "bert", "bart"])
def test_dropout_is_that_of_the_config(tiny_folder: Folder, kind: str) -> None:
    """0 makes training mode deterministic; a head's class gets it too."""
    for dropout, is_same in ((0.0, True), (0.5, False)):
        backbone = load_backbone(configure(tiny_folder(kind), dropout=dropout))
        if kind == "bert":
            backbone.adopt_head("AutoModelForSequenceClassification", ("a", "b"))
        backbone.train()
        ids_bt, lengths_b = padded(backbone, 1)
        first, second = (backbone.hidden(ids_bt, lengths_b) for _ in range(2))
        assert torch.equal(first, second) == is_same
