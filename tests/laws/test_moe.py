"""Experts: published totals, the dense special case, and Hugging Face's own modules."""

from __future__ import annotations

import dataclasses

import pytest

from chinchilla_lm.core.errors import ConfigError
from chinchilla_lm.core.shapes import ModelShape
from chinchilla_lm.laws.count import count_parameters, inference_flops_per_token, training_flops_per_token
from chinchilla_lm.laws.moe import (
    MixtureOfExperts,
    count_moe_parameters,
    moe_inference_flops_per_token,
    moe_training_flops_per_token,
)

MIXTRAL = ModelShape(
    layout="llama",
    vocab=32000,
    context=4096,
    d_model=4096,
    n_layers=32,
    n_heads=32,
    n_kv_heads=8,
    head_dim=128,
    d_ff=14336,
)
QWEN3 = ModelShape(
    vocab=151936,
    context=4096,
    d_model=2048,
    n_layers=48,
    n_heads=32,
    n_kv_heads=4,
    head_dim=128,
    d_ff=6144,
)
DEEPSEEK = ModelShape(
    layout="llama",
    vocab=102400,
    context=4096,
    d_model=2048,
    n_layers=28,
    n_heads=16,
    n_kv_heads=16,
    head_dim=128,
    d_ff=10944,
)
SMALL = ModelShape(vocab=96, context=32, d_model=24, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=40)


@pytest.mark.parametrize(
    ("shape", "moe", "stored", "active"),
    [  # to the parameter, as their files hold them; the active ones as their authors round them
        (MIXTRAL, MixtureOfExperts(experts=8, active=2, d_expert=14336), 46_702_792_704, 12.9e9),
        (QWEN3, MixtureOfExperts(experts=128, active=8, d_expert=768), 30_532_122_624, 3.3e9),
        (DEEPSEEK, MixtureOfExperts(experts=64, active=6, shared=2, d_expert=1408, dense_layers=1), 16.4e9, 2.8e9),
    ],
    ids=["Mixtral 8x7B", "Qwen3-30B-A3B", "DeepSeekMoE 16B"],
)
def test_public_mixtures_have_their_published_counts(
    shape: ModelShape, moe: MixtureOfExperts, stored: float, active: float
) -> None:
    count = count_moe_parameters(shape, moe)
    assert count.stored.total == (stored if isinstance(stored, int) else pytest.approx(stored, abs=0.05e9))
    assert count.active.total == pytest.approx(active, abs=0.06e9)


@pytest.mark.slow  # transformers' modules, on no device
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_hugging_face_s_modules_have_as_many(family: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    moe = MixtureOfExperts(experts=6, active=2, d_expert=56)
    shape = dataclasses.replace(SMALL, layout="llama" if family == "mixtral" else "qwen3")
    experts = {"num_local_experts": 6} if family == "mixtral" else {"num_experts": 6, "moe_intermediate_size": 56}
    config = AutoConfig.for_model(
        family,
        vocab_size=96,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=56,
        num_experts_per_tok=2,
        tie_word_embeddings=False,
        **experts,
    )
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(config)
    assert count_moe_parameters(shape, moe).stored.total == sum(weight.numel() for weight in module.parameters())


def test_one_expert_is_the_dense_model_and_a_router() -> None:
    moe = MixtureOfExperts(experts=1, active=1, d_expert=40)
    count = count_moe_parameters(SMALL, moe)
    router = 3 * 24
    assert count.stored == count.active
    assert count.stored.total == count_parameters(SMALL).total + router
    assert moe_training_flops_per_token(SMALL, moe) == training_flops_per_token(SMALL) + 6 * router
    assert moe_inference_flops_per_token(SMALL, moe, 5) == inference_flops_per_token(SMALL, 5) + 2 * router
    full = moe_training_flops_per_token(SMALL, moe, "exact_full_attention")
    assert full == training_flops_per_token(SMALL, "exact_full_attention") + 6 * router


def test_more_experts_cost_storage_and_only_a_router_more_compute() -> None:
    few, many = (MixtureOfExperts(experts=number, active=2, d_expert=40) for number in (4, 64))
    by_few, by_many = count_moe_parameters(SMALL, few), count_moe_parameters(SMALL, many)
    assert by_many.stored.total - by_few.stored.total == 3 * 60 * (3 * 24 * 40 + 24)
    assert by_many.active.total - by_few.active.total == 3 * 60 * 24
    six_n = moe_training_flops_per_token(SMALL, many, "6N_active")
    assert six_n == 6 * by_many.active.total


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"active": 9}, "active=9 is over experts=8"),
        ({"experts": 0}, "experts=0"),
        ({"shared": -1}, "shared=-1"),
        ({"d_expert": 1.5}, "d_expert=1.5"),
    ],
)
def test_impossible_mixtures_are_refused(change: dict[str, int], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        MixtureOfExperts(**{"experts": 8, "active": 2, "d_expert": 40, **change})


def test_shapes_without_experts_counts_are_refused() -> None:
    moe = MixtureOfExperts(experts=8, active=2, d_expert=40)
    with pytest.raises(ConfigError, match="'gelu'"):
        count_moe_parameters(dataclasses.replace(SMALL, activation="gelu"), moe)
    with pytest.raises(ConfigError, match="dense_layers=4"):
        count_moe_parameters(SMALL, dataclasses.replace(moe, dense_layers=4))
    with pytest.raises(ConfigError, match="'6ND'.*6N_active"):
        moe_training_flops_per_token(SMALL, moe, "6ND")  # type: ignore[arg-type]
