"""Encoder-decoders: the loss is transformers' own, its labels shifted right behind the start token; its greedy text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from chinchilla_lm.core.errors import ConfigError
from chinchilla_lm.tune.backbone import load_backbone
from chinchilla_lm.tune.config import TuneConfig
from chinchilla_lm.tune.seq2seq import Seq2SeqTask
from chinchilla_lm.tune.task import IGNORED, TunedModel, make_task

ROWS = [
    {"document": "the cat sat on the mat , and the dog ran", "summary": ["the cat sat", "a cat"]},
    {"document": "the team won the final game on sunday", "summary": ["the team won"]},
    {"document": "good books", "summary": ["books"]},
]


def make(folder: Path, **more: Any) -> tuple[Seq2SeqTask, TunedModel]:
    config = TuneConfig(task="summarization", model=str(folder), train="a", out="b", method="full", **more)
    backbone = load_backbone(config)
    task = make_task(config, ROWS, backbone)
    assert isinstance(task, Seq2SeqTask)
    return task, TunedModel(backbone, None).eval()


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_loss_is_that_of_transformers_and_of_a_decoder_fed_by_hand(kind: str, tiny_folder: Callable[[str], Path]):
    from transformers import AutoModelForSeq2SeqLM

    task, model = make(tiny_folder(kind))
    items = task.encode(ROWS, is_training=True)
    batch = tuple(map(torch.from_numpy, task.collate(items)))
    loss_sum, count = task.objective(model, batch)
    theirs = AutoModelForSeq2SeqLM.from_pretrained(tiny_folder(kind)).eval()
    expected, by_hand = 0.0, 0.0
    for item in items:
        ids, labels = torch.from_numpy(item.ids)[None], torch.from_numpy(item.targets["targets"])[None]
        assert labels[0, -1] == task.tokenizer.eos_token_id
        expected += theirs(input_ids=ids, labels=labels).loss.item() * labels.numel()
        shifted = torch.cat((torch.tensor([[theirs.config.decoder_start_token_id]]), labels[:, :-1]), 1)
        logits = theirs(input_ids=ids, decoder_input_ids=shifted).logits[0]
        by_hand += torch.nn.functional.cross_entropy(logits, labels[0], reduction="sum").item()
    assert count == sum(len(item.targets["targets"]) for item in items)
    assert loss_sum.item() == pytest.approx(expected, rel=2e-5)
    assert loss_sum.item() == pytest.approx(by_hand, rel=2e-5)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_text_is_the_greedy_text_of_transformers(kind: str, tiny_folder: Callable[[str], Path]):
    from transformers import AutoModelForSeq2SeqLM

    task, model = make(tiny_folder(kind), max_new_tokens=8)
    predictions = task.predict(model, ROWS)
    theirs = AutoModelForSeq2SeqLM.from_pretrained(tiny_folder(kind)).eval()
    for row, prediction in zip(ROWS, predictions, strict=True):
        ids = task.tokenizer(task.texts.prompt(row), return_tensors="pt")
        out = theirs.generate(
            input_ids=ids["input_ids"], attention_mask=ids["attention_mask"], max_new_tokens=8, do_sample=False
        )
        text = str(task.tokenizer.decode(out[0], skip_special_tokens=True))
        assert prediction["text"] == text.split("\n")[0].strip()
    assert "rouge_l" in task.measure(predictions, ROWS).values


def test_long_documents_lose_their_end_and_the_closing_token_stays(tiny_folder: Callable[[str], Path]):
    task, _ = make(tiny_folder("bart"), max_tokens=40)
    (item,) = task.encode([{"document": "the dog ran . " * 30, "summary": "a dog"}], is_training=True)
    assert len(item.ids) <= 40
    text = task.tokenizer.decode(item.ids)
    assert text.startswith("<s>Summarize")
    assert text.endswith("Summary:</s>")
    assert task.describe()["prompts_cut"] == 1
    assert (item.targets["targets"] != IGNORED).all()


def test_packing_is_refused(tiny_folder: Callable[[str], Path]):
    with pytest.raises(ConfigError, match="for decoders"):
        make(tiny_folder("t5"), is_packed=True)
