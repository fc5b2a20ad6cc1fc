"""Serving: what is read at once costs what it would cost token by token, and published cache sizes."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_lm.core.errors import PlanError
from chinchilla_lm.core.shapes import ModelShape
from chinchilla_lm.laws.count import inference_flops_per_token, training_flops_per_token
from chinchilla_lm.laws.serving import decode_flops, kv_cache_bytes, prefill_flops

SMALL = ModelShape(vocab=96, context=32, d_model=24, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=40)
LLAMA3_8B = ModelShape(
    layout="llama",
    vocab=128256,
    context=8192,
    d_model=4096,
    n_layers=32,
    n_heads=32,
    n_kv_heads=8,
    head_dim=128,
    d_ff=14336,
)


@given(st.integers(0, 300), st.integers(1, 300))
def test_decoding_is_the_sum_of_its_steps(prompt: int, new: int) -> None:
    # step i meets prompt + i keys and itself half: the integral from i to i + 1
    steps = sum(inference_flops_per_token(SMALL, prompt + step + 0.5) for step in range(new))
    assert decode_flops(SMALL, prompt, new) == pytest.approx(steps, rel=1e-12)


@given(st.integers(1, 5000), st.integers(0, 5000))
def test_a_text_costs_the_same_read_or_written(first: int, second: int) -> None:
    whole = prefill_flops(SMALL, first + second, all_logits=True)
    halves = prefill_flops(SMALL, first, all_logits=True) + decode_flops(SMALL, first, second)
    assert whole == pytest.approx(halves, rel=1e-12)


def test_training_costs_three_times_reading() -> None:
    context = float(SMALL.context)
    assert 3 * prefill_flops(SMALL, context, all_logits=True) == training_flops_per_token(SMALL) * context


def test_a_server_runs_the_head_once() -> None:
    saved = prefill_flops(SMALL, 32, all_logits=True) - prefill_flops(SMALL, 32)
    assert saved == 31 * 2 * 96 * 24
    assert prefill_flops(SMALL, 0) == decode_flops(SMALL, 10, 0) == 0


def test_llama_3_8b_caches_128_kib_a_token() -> None:
    assert kv_cache_bytes(LLAMA3_8B, 1) == 128 * 1024
    full = dataclasses.replace(LLAMA3_8B, n_kv_heads=32)
    assert kv_cache_bytes(full, 8192, rows=3) == 4 * 3 * 8192 * 128 * 1024
    assert kv_cache_bytes(LLAMA3_8B, 8192, bytes_per_value=1) == 2**29


@pytest.mark.parametrize("tokens", [-1.0, float("inf"), float("nan")])
def test_impossible_amounts_are_refused(tokens: float) -> None:
    with pytest.raises(PlanError, match="must be finite and >= 0"):
        prefill_flops(SMALL, tokens)
    with pytest.raises(PlanError, match="new_tokens"):
        decode_flops(SMALL, 1, tokens)
    with pytest.raises(PlanError, match="tokens"):
        kv_cache_bytes(SMALL, tokens)
