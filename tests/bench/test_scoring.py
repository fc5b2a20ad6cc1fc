from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

from scoring import Scorer, cut_windows, score_documents  # noqa: E402

VOCAB = 256
TEXTS = ["hello, sailor " * 9, "a", "naïve 你好 " * 4]


def _byte_scorer(context: int, logits_of) -> Scorer:
    return Scorer(
        encode=lambda text: list(text.encode()),
        decode=lambda ids: bytes(ids).decode(),
        start_id=0,
        context=context,
        logits=logits_of,
        params=0,
    )


@given(length=st.integers(2, 200), context=st.integers(1, 70))
def test_every_target_counts_once_in_order_and_with_half_a_context(length: int, context: int) -> None:
    ids = list(range(length))
    counted = []
    for index, (window, count) in enumerate(cut_windows(ids, context)):
        assert len(window) <= context + 1
        counted += window[len(window) - count :]
        if index:
            assert len(window) - count >= (context + 1) // 2
    assert counted == ids[1:]


@pytest.mark.parametrize("context", [1, 5, 64])
def test_a_uniform_model_over_bytes_has_eight_bits_a_byte(context: int) -> None:
    scorer = _byte_scorer(context, lambda ids_bt: torch.zeros(*ids_bt.shape, VOCAB))
    assert score_documents(scorer, TEXTS)["bits_per_byte"] == pytest.approx(8.0, rel=1e-6)


@pytest.mark.parametrize("context", [3, 16, 500])
def test_a_bigram_model_scores_as_by_hand_whatever_the_windows(context: int) -> None:
    table_vv = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(0))
    log_vv = table_vv.double().log_softmax(-1)
    by_hand = sum(
        -float(log_vv[before, after])
        for text in TEXTS
        for before, after in zip([0, *text.encode()], text.encode(), strict=False)
    )
    assert score_documents(_byte_scorer(context, lambda ids_bt: table_vv[ids_bt]), TEXTS)["nats"] == pytest.approx(
        by_hand, rel=1e-5
    )
