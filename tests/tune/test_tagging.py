"""Tagging: what speaks for a word, the loss, padding, masks, windows, and the deployed pipeline."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from chinchilla_lm.core.errors import DataError, ModelError
from chinchilla_lm.tune.config import TuneConfig
from chinchilla_lm.tune.tagging import tag_logits, unit_log_probabilities

from . import conftest
from .conftest import TAGGED as ROWS
from .conftest import batch_of

KINDS = ("qwen3", "gpt2", "bert")


def build(folder, rows=ROWS, *, seed=0, **changes):
    """(task, model in eval mode) on a tiny model."""
    fields = {"task": "token-classification", "model": str(folder), "train": "t", "out": "o"}
    return conftest.build(TuneConfig(**(fields | changes)), rows, seed=seed, head_spread=0.5)


def test_labels_are_both_tags_of_every_type(tiny_folder):
    task, _ = build(tiny_folder("qwen3"))
    assert task.labels == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")


def test_rows_without_entities_or_with_unknown_tags_are_refused(tiny_folder):
    with pytest.raises(DataError, match="no tag but O"):
        build(tiny_folder("qwen3"), ROWS[1:2])
    task, _ = build(tiny_folder("qwen3"))
    with pytest.raises(DataError, match="row 1: tag 'B-ORG' is not among"):
        task.encode([{"tokens": ["x"], "tags": ["B-ORG"]}], is_training=True)
    with pytest.raises(DataError, match="all 1 training rows"):
        task.encode([{"tokens": [""], "tags": ["O"]}], is_training=True)


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_that_of_each_words_tag_by_hand(tiny_folder, kind, pooling):
    task, model = build(tiny_folder(kind), pooling=pooling)
    items = task.encode(ROWS, is_training=True)
    loss, count = task.objective(model, batch_of(task, items))
    expected, units = 0.0, 0
    for item in items:  # one row at a time, without padding
        ids_bt, lengths_b = torch.from_numpy(item.ids)[None], torch.tensor([item.length])
        p_tk = tag_logits(model, ids_bt, lengths_b)[0].softmax(-1)
        for unit, tag in enumerate(item.targets["tags"]):
            spoken = np.flatnonzero(item.targets["units"] == unit)
            expected -= math.log(p_tk[spoken, tag].mean().item())
            units += 1
    assert count == units
    assert units >= sum(len(row["tokens"]) for row in ROWS)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_gradients_are_finite_where_units_are_missing():
    logits_btk = torch.randn(2, 4, 3, requires_grad=True)
    units_bt = torch.tensor([[0, 0, -1, 2], [-1, -1, -1, 0]])
    logps_buk = unit_log_probabilities(logits_btk, units_bt, 3)
    assert logps_buk[0, 0].exp().sum().item() == pytest.approx(1.0)
    (logps_buk[0, 0, 1] + logps_buk[0, 2, 0] + logps_buk[1, 0, 2]).backward()
    assert torch.isfinite(logits_btk.grad).all()
    assert (logits_btk.grad[0, 2] == 0).all()


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("kind", KINDS)
def test_predictions_do_not_depend_on_the_batch_or_its_padding(tiny_folder, kind, pooling):
    task, model = build(tiny_folder(kind), pooling=pooling)
    together = task.predict(model, ROWS)
    alone = [task.predict(model, [row])[0] for row in ROWS]
    assert together == alone
    assert [len(each["tags"]) for each in together] == [len(row["tokens"]) for row in ROWS]
    assert len({tag for each in together for tag in each["tags"]}) > 1


@pytest.mark.parametrize("mask", ["bidirectional", "top-k"])
@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
def test_without_the_causal_mask_the_first_state_sees_the_last_token(tiny_folder, kind, mask):
    """Also at batch 1 without padding, where a mask of None means causal (llm2vec 74); and padding is never seen."""
    _, causal = build(tiny_folder(kind))
    _, model = build(tiny_folder(kind), mask=mask, mask_blocks=1)
    ids_bt = torch.tensor([[30, 40, 50, 60]])
    changed_bt = torch.tensor([[30, 40, 50, 61]])
    full_b = torch.tensor([4])

    def first(which, ids_bt, lengths_b=full_b):
        with torch.no_grad():
            return which.backbone.hidden(ids_bt, lengths_b)[0, 0]

    torch.testing.assert_close(first(causal, ids_bt), first(causal, changed_bt))
    assert (first(model, ids_bt) - first(model, changed_bt)).abs().max() > 1e-3
    padded_bt = torch.tensor([[30, 40, 50, 60, 7, 9]])
    torch.testing.assert_close(first(model, padded_bt), first(model, ids_bt), rtol=1e-4, atol=1e-4)
    pair_bt = torch.tensor([[30, 40, 50, 60, 7, 9], [1, 2, 3, 4, 5, 6]])
    pair_b = torch.tensor([4, 6])
    torch.testing.assert_close(first(model, pair_bt, pair_b), first(model, ids_bt), rtol=1e-4, atol=1e-4)


def test_long_sentences_are_tagged_to_the_end(tiny_folder):
    row = {"tokens": ROWS[0]["tokens"] * 30, "tags": ROWS[0]["tags"] * 30}
    task, model = build(tiny_folder("qwen3"), max_tokens=40)
    items = task.encode([row], is_training=True)
    assert len(items) > 5
    assert sum(int(item.targets["is_first"].sum()) for item in items) == len(row["tokens"])
    (prediction,) = task.predict(model, [row])
    assert len(prediction["tags"]) == len(row["tokens"])
    assert any(tag != "O" for tag in prediction["tags"][-20:])


def test_chinese_characters_are_tagged_one_by_one(tiny_folder):
    row = {"tokens": list("我们去北京的公园。"), "tags": ["O", "O", "O", "B-LOC", "I-LOC", "O", "O", "O", "O"]}
    task, model = build(tiny_folder("qwen3"), [row])
    assert task.describe()["joiner"] == ""
    assert len(task.predict(model, [row])[0]["tags"]) == len(row["tokens"])


def test_every_row_is_reported_once(tiny_folder):
    task, model = build(tiny_folder("qwen3"), max_tokens=12)
    seen = []
    task.predict(model, [*ROWS, {"tokens": [], "tags": []}], lambda done, total: seen.append((done, total)))
    assert seen == [(2, 4), (3, 4), (4, 4)]


def test_measure_is_span_f1_and_there_is_no_zero_shot(tiny_folder):
    pytest.importorskip("seqeval")
    task, model = build(tiny_folder("qwen3"))
    perfect = [{"tags": row["tags"]} for row in ROWS]
    assert task.measure(perfect, ROWS).values["f1"] == 1.0
    silent = [{"tags": ["O"] * len(row["tokens"])} for row in ROWS]
    assert task.measure(silent, ROWS).values["f1"] == 0.0
    assert task.zero_shot(model.backbone, ROWS) is None


def test_an_encoder_decoder_tags_where_transformers_has_a_class_for_it(tiny_folder):
    task, model = build(tiny_folder("t5"))
    assert task.predict(model, ROWS) == [task.predict(model, [row])[0] for row in ROWS]
    with pytest.raises(ModelError, match="AutoModelForTokenClassification"):
        build(tiny_folder("bart"))
