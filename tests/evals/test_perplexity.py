from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.random_models import random_model

from chinchilla_lm.core.errors import DataError, ModelError
from chinchilla_lm.core.shapes import ModelShape
from chinchilla_lm.data.loader import HeldOut
from chinchilla_lm.evals.perplexity import evaluate
from chinchilla_lm.model.transformer import Transformer, initialise

WINDOWS, CONTEXT, VOCAB = 7, 24, 61


@pytest.fixture
def heldout() -> HeldOut:
    draws = np.random.default_rng(0)
    ids_ns = draws.integers(0, VOCAB, (WINDOWS, CONTEXT + 1))
    return _heldout(ids_ns, target_bytes_n=draws.integers(CONTEXT, 5 * CONTEXT, WINDOWS))


def _heldout(ids_ns: np.ndarray, target_bytes_n: np.ndarray) -> HeldOut:
    return HeldOut(inputs_nt=ids_ns[:, :-1], targets_nt=ids_ns[:, 1:], target_bytes_n=target_bytes_n)


def _random_model(seed: int = 0, **changes: object) -> Transformer:
    sizes = {"d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 4, "head_dim": 8, "d_ff": 64, **changes}
    shape = ModelShape(vocab=VOCAB, context=CONTEXT, **sizes)  # type: ignore[arg-type]
    return random_model(shape, seed=seed, start=seed)


def test_loss_is_the_sum_by_hand(heldout: HeldOut) -> None:
    model = _random_model()
    window_nats = np.zeros(WINDOWS)
    for window in range(WINDOWS):
        with torch.no_grad():
            logits_tv = model(torch.from_numpy(heldout.inputs_nt[[window]]))[0].double().numpy()
        for position, target in enumerate(heldout.targets_nt[window]):
            row = logits_tv[position]
            window_nats[window] += math.log(np.exp(row - row.max()).sum()) + row.max() - row[target]
    result = evaluate(model, heldout)
    total, byte_count = window_nats.sum(), heldout.target_bytes_n.sum()
    # float32 log-softmax against float64: 1e-6 relative.
    assert result.loss == pytest.approx(total / (WINDOWS * CONTEXT), rel=1e-6)
    assert result.bits_per_byte == pytest.approx(total / math.log(2) / byte_count, rel=1e-6)
    assert result.loss_se == pytest.approx(np.std(window_nats / CONTEXT, ddof=1) / math.sqrt(WINDOWS), rel=1e-5)
    assert (result.tokens, result.bytes) == (WINDOWS * CONTEXT, byte_count)
    assert result.perplexity == pytest.approx(math.exp(result.loss))


def test_loss_equals_the_one_of_transformers(heldout: HeldOut, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from chinchilla_lm.model.huggingface import save_model

    model = _random_model()
    save_model(model, tmp_path / "model")
    peer = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    windows_ns = torch.from_numpy(np.concatenate([heldout.inputs_nt, heldout.targets_nt[:, -1:]], axis=1))
    with torch.no_grad():
        expected = peer(windows_ns, labels=windows_ns).loss.item()
    assert evaluate(model, heldout).loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("batch_rows", [1, 3, 100])
def test_the_batch_size_changes_nothing(heldout: HeldOut, batch_rows: int) -> None:
    model = _random_model()
    result, reference = evaluate(model, heldout, batch_rows=batch_rows), evaluate(model, heldout)
    assert result.loss == pytest.approx(reference.loss, rel=1e-6)
    assert result.loss_se == pytest.approx(reference.loss_se, rel=1e-4)


def test_a_model_that_knows_nothing_has_loss_ln_vocab(heldout: HeldOut) -> None:
    model = Transformer(_random_model().shape)
    initialise(model, seed=0)  # the recipe starts the head at 0: uniform over the vocabulary
    result = evaluate(model, heldout)
    assert result.loss == pytest.approx(math.log(VOCAB), rel=1e-6)
    assert result.loss_se == pytest.approx(0, abs=1e-6)


def test_dropout_is_off_and_the_mode_restored(heldout: HeldOut) -> None:
    model = _random_model(dropout=0.5)
    for is_training in (True, False):
        model.train(is_training)
        assert evaluate(model, heldout) == evaluate(model, heldout)
        assert model.training is is_training


def test_one_window_has_no_standard_error(heldout: HeldOut) -> None:
    one = HeldOut(
        inputs_nt=heldout.inputs_nt[:1], targets_nt=heldout.targets_nt[:1], target_bytes_n=heldout.target_bytes_n[:1]
    )
    assert evaluate(_random_model(), one).loss_se is None


def test_no_windows_are_refused() -> None:
    empty = _heldout(np.zeros((0, CONTEXT + 1), dtype=np.int64), np.zeros(0, dtype=np.int64))
    with pytest.raises(DataError, match="shorter than one window"):
        evaluate(_random_model(), empty)


def test_windows_longer_than_the_context_are_refused() -> None:
    long = _heldout(np.zeros((2, CONTEXT + 2), dtype=np.int64), np.ones(2, dtype=np.int64))
    with pytest.raises(ModelError, match="25 tokens and the model's context is 24"):
        evaluate(_random_model(), long)


def test_tokens_of_another_vocabulary_are_refused() -> None:
    foreign = _heldout(np.full((2, CONTEXT + 1), VOCAB), np.ones(2, dtype=np.int64))
    with pytest.raises(ModelError, match="token 61 is outside the model's vocabulary of 61"):
        evaluate(_random_model(), foreign)


def test_a_diverged_model_is_named_as_such(heldout: HeldOut) -> None:
    model = _random_model()
    with torch.no_grad():
        model.embedding.fill_(float("nan"))
    with pytest.raises(ModelError, match="diverged"):
        evaluate(model, heldout)
