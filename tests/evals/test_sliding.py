"""Sliding windows against one forward pass a token, and against lm-evaluation-harness's own windows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.random_models import random_model
from tokenizers import Tokenizer, models, pre_tokenizers

from chinchilla_lm.core.errors import ConfigError, DataError, ModelError
from chinchilla_lm.core.shapes import ModelShape
from chinchilla_lm.data.documents import Document
from chinchilla_lm.evals import sliding
from chinchilla_lm.evals.sliding import score_documents
from chinchilla_lm.model.transformer import Transformer, initialise

CONTEXT = 12


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """One token a byte, so that a document's tokens are its bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={"<|endoftext|>": 0} | {one: i for i, one in enumerate(alphabet, 1)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return made


@pytest.fixture(scope="module")
def model(tokenizer) -> Transformer:
    shape = {"d_model": 32, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "head_dim": 16, "d_ff": 64}
    return random_model(ModelShape(vocab=tokenizer.get_vocab_size(), context=CONTEXT, **shape), spread=0.3)


def document(text: str, name: str = "a") -> Document:
    return Document(text=text, id=name)


@torch.inference_mode()
def brute_force(model: Transformer, tokenizer: Tokenizer, text: str, stride: int) -> float:
    """Price each target by a forward pass of its own, over the inputs that the rule gives it."""
    ids = tokenizer.encode(text).ids
    stream, nats, end_of_window = [0, *ids], 0.0, 0
    for target in range(len(ids)):
        if target >= end_of_window:
            end_of_window = min(len(ids), CONTEXT if target == 0 else end_of_window + stride)
        begin = max(0, end_of_window - CONTEXT)
        logits_v = model(torch.tensor([stream[begin : target + 1]]))[0, -1].double()
        nats -= float(torch.log_softmax(logits_v, dim=-1)[ids[target]])
    return nats


TEXTS = ["a", "the sea was calm", "the sailor sang of whales, and then he slept", "你好，大海", "x" * 60]


@pytest.mark.parametrize("stride", [1, 5, CONTEXT])
def test_every_token_is_priced_once_in_its_window(model, tokenizer, stride, monkeypatch):
    monkeypatch.setattr(sliding, "TOKENS_PER_PASS", 40)
    (score,) = score_documents(model, tokenizer, [document(one) for one in TEXTS], start_id=0, stride=stride)
    nats = [brute_force(model, tokenizer, one, stride) for one in TEXTS]
    sizes = [len(one.encode()) for one in TEXTS]
    assert score.nats == pytest.approx(sum(nats), rel=1e-6)
    assert (score.documents, score.tokens, score.bytes) == (len(TEXTS), sum(sizes), sum(sizes))
    assert score.bits_per_byte == pytest.approx(sum(nats) / math.log(2) / sum(sizes), rel=1e-6)
    assert score.loss == pytest.approx(sum(nats) / sum(sizes), rel=1e-6)


def test_domains_add_up_to_the_whole(model, tokenizer):
    documents = [document(one, f"{'ab'[i % 2]}/{i}") for i, one in enumerate(TEXTS)]
    scores = score_documents(model, tokenizer, documents, start_id=0, domain_of=lambda one: one.id[0])
    assert [one.domain for one in scores] == ["all", "a", "b"]
    assert scores[0].nats == pytest.approx(scores[1].nats + scores[2].nats)
    assert scores[0].bytes == scores[1].bytes + scores[2].bytes
    alone = score_documents(model, tokenizer, documents[::2], start_id=0)[0]
    assert scores[1].nats == pytest.approx(alone.nats)


def test_the_standard_error_is_that_of_resampled_documents(model, tokenizer):
    draws = np.random.default_rng(2)
    texts = ["".join(draws.choice(list("abcde "), int(size))) for size in draws.integers(5, 60, 80)]
    whole = score_documents(model, tokenizer, [document(one) for one in texts], start_id=0)[0]
    each = [score_documents(model, tokenizer, [document(one)], start_id=0)[0] for one in texts]
    nats, sizes = np.array([one.nats for one in each]), np.array([one.bytes for one in each])
    picks = draws.integers(0, len(texts), (4000, len(texts)))
    spread = np.std(nats[picks].sum(axis=1) / sizes[picks].sum(axis=1) / math.log(2))
    assert whole.bits_per_byte_se == pytest.approx(spread, rel=0.1)
    assert each[0].bits_per_byte_se is None


def test_what_cannot_be_measured_is_refused(model, tokenizer):
    with pytest.raises(ConfigError, match="stride must be 1 to the model's context of 12"):
        score_documents(model, tokenizer, [document("a")], start_id=0, stride=13)
    with pytest.raises(DataError, match="no text"):
        score_documents(model, tokenizer, [document("")], start_id=0)
    broken = Transformer(model.shape)
    initialise(broken, 0)
    with torch.no_grad():
        broken.head_weight[:] = float("nan")
    with pytest.raises(ModelError, match="not finite|nan"):
        score_documents(broken, tokenizer, [document("a b")], start_id=0)


def test_disjoint_windows_are_those_of_lm_evaluation_harness(model, tokenizer):
    windows = pytest.importorskip("lm_eval.utils", reason="needs lm-eval: pip install 'chinchilla-lm[eval]'")
    text = "the sailor sang of whales, and then"
    ids = tokenizer.encode(text).ids
    nats = 0.0
    for inputs, targets in map(
        windows.make_disjoint_window,
        windows.get_rolling_token_windows(token_list=ids, prefix_token=0, max_seq_len=CONTEXT, context_len=1),
    ):
        stream = [*inputs, *targets]
        with torch.inference_mode():
            logits_tv = model(torch.tensor([stream[:-1]]))[0].double()
        rows = torch.log_softmax(logits_tv, dim=-1)[-len(targets) :]
        nats -= sum(float(row[token]) for row, token in zip(rows, targets, strict=True))
    (score,) = score_documents(model, tokenizer, [document(text)], start_id=0, stride=CONTEXT)
    assert score.nats == pytest.approx(nats, rel=1e-5)
