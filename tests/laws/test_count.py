from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_lm.core.errors import ConfigError
from chinchilla_lm.core.shapes import ModelShape
from chinchilla_lm.laws.count import (
    attention_flops,
    count_hoffmann_parameters,
    count_parameters,
    flops_of,
    forward_flops,
    inference_flops_per_token,
    training_flops_per_token,
)


def hoffmann_shape(n_layers: int, d_model: int, n_heads: int, head_dim: int) -> ModelShape:
    return ModelShape(
        layout="chinchilla",
        vocab=32000,
        context=2048,
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        head_dim=head_dim,
        d_ff=4 * d_model,
        activation="gelu",
    )


# Hoffmann et al. 2022, Table A4: shape; N (to the parameter); ratio of FLOPs to 6 N D as printed, then recomputed to
# four digits; the ratio with logits; the ratio of appendix F as written.
TABLE_A4 = [
    (hoffmann_shape(10, 640, 10, 64), 73_825_280, 1.03, 1.0250, 1.30, 1.58),
    (hoffmann_shape(20, 1024, 16, 64), 305_707_008, 1.10, 1.1008, 1.21, 1.32),
    (hoffmann_shape(24, 1280, 10, 128), 552_604_160, 1.08, 1.0829, 1.16, 1.23),
    (hoffmann_shape(26, 1792, 14, 128), 1_143_453_696, 1.04, 1.0441, 1.09, 1.14),
    (hoffmann_shape(28, 2048, 16, 128), 1_593_126_912, 1.03, 1.0329, 1.07, 1.12),
    (hoffmann_shape(40, 3584, 28, 128), 6_796_274_688, 0.99, 0.9941, 1.01, 1.03),
]


@pytest.mark.parametrize(("shape", "params", "printed", "table", "logits", "text"), TABLE_A4)
def test_hoffmann_table_a4_is_met(
    shape: ModelShape, params: int, printed: float, table: float, logits: float, text: float
) -> None:
    assert count_hoffmann_parameters(shape) == params
    ratio = training_flops_per_token(shape, "hoffmann_table") / (6.0 * params)
    assert ratio == pytest.approx(table, abs=5e-5)  # half of the last digit
    assert ratio == pytest.approx(printed, abs=0.0051)
    assert training_flops_per_token(shape, "hoffmann_logits") / (6.0 * params) == pytest.approx(logits, abs=0.0051)
    assert training_flops_per_token(shape, "hoffmann_text") / (6.0 * params) == pytest.approx(text, abs=0.0051)


@pytest.mark.parametrize("row", TABLE_A4)
def test_our_chinchilla_layout_has_hoffmanns_matrices_and_other_vectors(row: tuple[ModelShape, int]) -> None:
    shape, d, n_layers = row[0], row[0].d_model, row[0].n_layers
    vectors_hoffmann = n_layers * 15 * d + 2 * d
    vectors_ours = n_layers * 9 * d + d  # two gains, u, v, feed-forward biases of 4 d and d; the last gain
    count = count_parameters(shape)
    assert count.non_embedding - vectors_ours == row[1] - vectors_hoffmann - shape.vocab * d
    assert count.matmul == row[1] - vectors_hoffmann


# Published totals of models whose configuration is public: Qwen3-0.6B (tied), Llama 2 7B, Llama 3 8B.
PUBLISHED = [
    ("qwen3", 151936, 1024, 28, 16, 8, 128, 3072, True, 596_049_920),
    ("llama", 32000, 4096, 32, 32, 32, 128, 11008, False, 6_738_415_616),
    ("llama", 128256, 4096, 32, 32, 8, 128, 14336, False, 8_030_261_248),
]


@pytest.mark.parametrize(
    ("layout", "vocab", "d", "layers", "heads", "kv", "head_dim", "d_ff", "tied", "total"), PUBLISHED
)
def test_public_models_have_their_published_totals(
    layout: str, vocab: int, d: int, layers: int, heads: int, kv: int, head_dim: int, d_ff: int, tied: bool, total: int
) -> None:
    shape = ModelShape(
        layout=layout,  # type: ignore[arg-type]
        vocab=vocab,
        context=4096,
        d_model=d,
        n_layers=layers,
        n_heads=heads,
        n_kv_heads=kv,
        head_dim=head_dim,
        d_ff=d_ff,
        is_tied=tied,
    )
    assert count_parameters(shape).total == total


SMALL = ModelShape(vocab=96, context=32, d_model=24, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=40)


def test_tying_removes_the_head_and_nothing_else() -> None:
    tied, untied = count_parameters(dataclasses.replace(SMALL, is_tied=True)), count_parameters(SMALL)
    assert untied.total - tied.total == untied.head == untied.embedding
    assert tied.head == 0
    assert (tied.non_embedding, tied.matmul) == (untied.non_embedding, untied.matmul)


def test_exact_flops_are_the_matrices_and_the_causal_half_of_attention() -> None:
    # By hand: a block has 24 (32 + 2 * 16) + 32 * 24 + 3 * 24 * 40 weights, the head 96 * 24; 16 keys on average.
    matmul = 3 * (24 * 64 + 32 * 24 + 3 * 24 * 40) + 96 * 24
    attention = 3 * (2 * 16 * 32 + 2 * 16 * 32)
    assert count_parameters(SMALL).matmul == matmul
    assert training_flops_per_token(SMALL) == 3 * (2 * matmul + attention)
    assert training_flops_per_token(SMALL, "exact_full_attention") == 3 * (2 * matmul + 2 * attention)
    assert inference_flops_per_token(SMALL) == 2 * matmul + attention
    assert inference_flops_per_token(SMALL, 0) == 2 * matmul


def test_six_n_conventions_are_six_times_their_count() -> None:
    count = count_parameters(SMALL)
    assert training_flops_per_token(SMALL, "6N_total") == 6 * count.by("total")
    assert training_flops_per_token(SMALL, "6N_matmul") == 6 * count.by("matmul")
    assert training_flops_per_token(SMALL, "6N_non_embedding") == 6 * count.by("non_embedding")


@given(st.integers(1, 10**6), st.integers(1, 2**17))
def test_flops_are_floats_that_do_not_overflow(width: int, context: int) -> None:
    flops = training_flops_per_token(dataclasses.replace(SMALL, d_model=2 * width, context=context))
    assert isinstance(flops, float)
    assert 0 < flops * 1e15 < float("inf")


def test_unknown_conventions_and_layouts_are_refused() -> None:
    with pytest.raises(ConfigError, match="'8N'.*exact"):
        training_flops_per_token(SMALL, "8N")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'all'.*matmul"):
        count_parameters(SMALL).by("all")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="layout 'chinchilla'"):
        training_flops_per_token(SMALL, "hoffmann_text")


def test_the_parts_of_a_forward_pass_make_every_convention() -> None:
    parts = forward_flops(SMALL)
    assert training_flops_per_token(SMALL) == 3 * parts.total()
    assert training_flops_per_token(SMALL, "6N_matmul") == 3 * parts.total(attention=False)
    assert inference_flops_per_token(SMALL, 7) == forward_flops(SMALL, 7).total()
    assert parts.total(embedding=True) - parts.total() == parts.head == 2 * 96 * 24
    assert forward_flops(SMALL, 0).attention == 0


def test_kaplan_counts_what_we_do_without_the_head() -> None:
    # Half of the keys on average, two products: 2 n_layers n_ctx d_attn. Only the head differs (Porian et al. 2024).
    assert training_flops_per_token(SMALL, "kaplan") == 3 * forward_flops(SMALL).total(head=False)


PALM = ModelShape(  # Chowdhery et al. 2022, table 1: 118 layers, 48 heads of 256, one key head, vocabulary 256k, tied
    layout="llama",
    vocab=256_000,
    context=2048,
    d_model=18432,
    n_layers=118,
    n_heads=48,
    n_kv_heads=1,
    head_dim=256,
    d_ff=4 * 18432,
    is_tied=True,
)


def test_palm_counts_its_parameters_and_twice_our_attention() -> None:
    count = count_parameters(PALM)
    assert round(count.matmul / 1e9, 2) == 540.35  # the table's; its parallel blocks have one norm each, ours two
    exact = training_flops_per_token(PALM, "exact_full_attention")
    vectors = count.total - count.matmul  # norms, which PaLM's N holds and no matrix product does
    assert training_flops_per_token(PALM, "palm") == pytest.approx(exact + 6 * vectors, rel=1e-15)
    untied = dataclasses.replace(PALM, is_tied=False)
    assert training_flops_per_token(untied, "palm") == training_flops_per_token(PALM, "palm")


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
def test_grouped_key_heads_save_weights_and_no_attention(n_kv_heads: int) -> None:
    shape = dataclasses.replace(SMALL, n_kv_heads=n_kv_heads)
    full = dataclasses.replace(SMALL, n_kv_heads=4)
    assert attention_flops(shape, 16) == attention_flops(full, 16)
    saved = 2 * 3 * 24 * 8 * (4 - n_kv_heads)  # two matrices, three layers, d x head_dim for each head fewer
    assert count_parameters(full).matmul - count_parameters(shape).matmul == saved


def test_swiglu_has_a_third_matrix_and_no_biases() -> None:
    shape = dataclasses.replace(SMALL, activation="gelu")
    difference = count_parameters(SMALL).non_embedding - count_parameters(shape).non_embedding
    assert difference == 3 * (24 * 40 - (40 + 24))


def test_the_budget_of_gopher_does_not_overflow() -> None:
    params, tokens = np.array([280_000_000_000]), np.array([300_000_000_000])
    with np.errstate(over="ignore"):
        wrong = 6 * params * tokens
    assert wrong[0] != 5.04e23  # what numpy's int64 says, without a word
    assert flops_of(params, tokens)[0] == 5.04e23
    assert flops_of(280_000_000_000, 300_000_000_000) == 5.04e23
    assert flops_of(np.int64(280_000_000_000), np.int64(300_000_000_000)) == 5.04e23


@given(st.floats(1e3, 1e13), st.floats(1e3, 1e15), st.floats(1, 12))
def test_flops_are_the_product(params: float, tokens: float, k: float) -> None:
    assert flops_of(params, tokens, k) == pytest.approx(k * params * tokens, rel=1e-15)
