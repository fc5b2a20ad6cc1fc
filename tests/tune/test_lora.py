"""LoRA on our Transformer: against peft on the transformers model, and against its own definition."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from chinchilla_lm.core.errors import ConfigError, ModelError
from chinchilla_lm.core.shapes import ModelShape
from chinchilla_lm.model.compiling import compile_blocks
from chinchilla_lm.model.huggingface import load_model, save_model
from chinchilla_lm.model.transformer import Transformer, initialise
from chinchilla_lm.tune.adapter_files import adapter_of, put_adapter, read_adapter, save_adapter, stack_adapters
from chinchilla_lm.tune.lora import LoraSettings, add_lora, has_lora, lora_modules, merged_copy, remove_lora

SETTINGS = LoraSettings(rank=3, alpha=6.0, dropout=0.0)
IDS = torch.arange(22).view(2, 11) % 60


def make_model(layout: Any = "qwen3", seed: int = 0) -> Transformer:
    activation: Any = {"textbook": "relu", "chinchilla": "gelu"}.get(layout, "swiglu")
    shape = ModelShape(
        layout=layout,
        vocab=64,
        context=32,
        d_model=32,
        n_layers=2,
        n_heads=4,
        n_kv_heads=4 if layout == "chinchilla" else 2,
        head_dim=8,
        d_ff=48,
        activation=activation,
    )
    model = Transformer(shape)
    initialise(model, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.15, generator=generator)
    return model


def with_lora(settings: LoraSettings) -> Transformer:
    model = make_model()
    add_lora(model, settings, seed=0)
    return model


def randomise(model: Transformer, seed: int = 1) -> None:
    """Give B values, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, module in lora_modules(model):
            module.lora_b.normal_(0, 0.3, generator=generator)


@pytest.mark.parametrize("layout", ["qwen3", "llama", "textbook", "chinchilla"])
def test_an_untrained_adapter_changes_nothing_and_a_trained_one_merges_exactly(layout):
    model = make_model(layout).eval()
    with torch.no_grad():
        before = model(IDS)
        add_lora(model, SETTINGS, seed=0)
        assert torch.equal(model(IDS), before)
        randomise(model)
        adapted = model(IDS)
        assert (adapted - before).abs().max() > 0.1
        merged = merged_copy(model)
        torch.testing.assert_close(merged(IDS), adapted, atol=1e-5, rtol=1e-5)
        assert not has_lora(merged)
        remove_lora(model, merges=False)
        assert torch.equal(model(IDS), before)


def test_removing_with_merge_leaves_a_plain_model_with_the_adapted_function(tmp_path):
    model = make_model().eval()
    add_lora(model, SETTINGS, seed=0)
    randomise(model)
    with torch.no_grad():
        adapted = model(IDS)
        remove_lora(model, merges=True)
        torch.testing.assert_close(model(IDS), adapted, atol=1e-5, rtol=1e-5)
    assert set(dict(model.named_parameters())) == set(dict(make_model().named_parameters()))
    save_model(model, tmp_path / "m")
    with torch.no_grad():
        torch.testing.assert_close(load_model(tmp_path / "m")(IDS), adapted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("targets", [LoraSettings().targets, ("q_proj", "v_proj"), ("up_proj",)])
def test_kernels_compute_what_plain_torch_defines(dtype, targets):
    settings = replace(SETTINGS, targets=targets)
    plain = make_model()
    add_lora(plain, settings, seed=0)
    randomise(plain)
    fused = copy.deepcopy(plain)
    if compile_blocks(fused, "kernels").mode != "kernels":
        pytest.skip("no C++ compiler")
    assert all(module.has_kernels for _, module in lora_modules(fused))
    for model in (plain, fused):
        model.compute_dtype = dtype
        model.token_losses(IDS, IDS.roll(-1, 1)).sum().backward()
    tolerance = 1e-4 if dtype == torch.float32 else 0.06
    for (name, ours), theirs in zip(fused.named_parameters(), plain.parameters(), strict=True):
        if "lora" not in name:
            assert ours.grad is None, name
            assert theirs.grad is None, name
            continue
        assert ours.grad is not None, name
        assert theirs.grad is not None, name
        scale = theirs.grad.abs().max()
        torch.testing.assert_close(ours.grad / scale, theirs.grad / scale, atol=tolerance, rtol=0)


def test_kernels_with_dropout_have_the_gradient_of_plain_torch():
    settings = replace(SETTINGS, dropout=0.5)
    plain = make_model()
    add_lora(plain, settings, seed=0)
    randomise(plain)
    fused = copy.deepcopy(plain)
    if compile_blocks(fused, "kernels").mode != "kernels":
        pytest.skip("no C++ compiler")
    gradients = []
    for model in (plain, fused):
        torch.manual_seed(7)
        model.token_losses(IDS, IDS.roll(-1, 1)).sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_keeps_its_share_and_the_mean(dtype):
    module = next(module for _, module in lora_modules(with_lora(replace(SETTINGS, dropout=0.3))))
    with torch.no_grad():
        module.weight.zero_()
        module.lora_a.fill_(1 / 32)
        module.lora_b.fill_(1.0)
    x = torch.ones(20_000, 32, dtype=dtype, requires_grad=True)
    torch.manual_seed(0)
    y = module(x)
    kept = y[:, 0].detach().float() * (1 - 0.3) / (3 * SETTINGS.scale)  # of the 32 inputs, the share that was kept
    assert kept.mean().item() == pytest.approx(0.7, abs=0.003)
    assert kept.std().item() == pytest.approx((0.7 * 0.3 / 32) ** 0.5, rel=0.03)
    y[:, 0].sum().backward()
    assert x.grad is not None
    assert (x.grad == 0).float().mean().item() == pytest.approx(0.3, abs=0.003)
    module.eval()
    assert module(x)[:, 0].float().mean().item() == pytest.approx(3 * SETTINGS.scale, rel=1e-3)


def test_the_frozen_base_stays_bit_equal_and_follows_changes_of_its_weight():
    model = make_model()
    add_lora(model, SETTINGS, seed=0)
    model.compute_dtype = torch.bfloat16
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        model.token_losses(IDS, IDS.roll(-1, 1)).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == ("lora" not in name), name
    with torch.no_grad():  # the cached copy in bfloat16 is not stale
        old = model(IDS)
        model.get_parameter("blocks.0.attention.qkv.weight").mul_(1.5)
        assert not torch.equal(model(IDS), old)


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_peft_loads_our_adapter_with_equal_logits_and_we_load_peft_s(tiny_folder, tmp_path, kind):
    peft = pytest.importorskip("peft")
    import transformers as hf

    folder = tiny_folder(kind)
    model = load_model(folder).eval()
    add_lora(model, SETTINGS, seed=0)
    randomise(model)
    save_adapter(adapter_of(model, SETTINGS, base=str(folder)), tmp_path / "ours")
    hub = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    wrapped = peft.PeftModel.from_pretrained(hub, tmp_path / "ours").eval()
    with torch.no_grad():
        torch.testing.assert_close(wrapped(IDS).logits, model(IDS), atol=2e-5, rtol=1e-4)
    fresh = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    theirs = peft.get_peft_model(
        fresh, peft.LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj", "down_proj"], use_rslora=True)
    ).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
        expected = theirs(IDS).logits
    theirs.save_pretrained(tmp_path / "theirs")
    again = load_model(folder).eval()
    put_adapter(again, read_adapter(tmp_path / "theirs"))
    with torch.no_grad():
        torch.testing.assert_close(again(IDS), expected, atol=2e-5, rtol=1e-4)


def test_a_saved_head_comes_back_in_peft(tiny_folder, tmp_path):
    peft = pytest.importorskip("peft")
    import transformers as hf

    folder = tiny_folder("qwen3")
    model = load_model(folder).eval()
    add_lora(model, SETTINGS, seed=0)
    randomise(model)
    head_cd = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    adapter = adapter_of(model, SETTINGS, task_type="SEQ_CLS", base=str(folder))
    save_adapter(replace(adapter, head={"score.weight": head_cd}), tmp_path / "a")
    hub = hf.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3, dtype=torch.float32)
    wrapped = peft.PeftModel.from_pretrained(hub, tmp_path / "a").eval()
    with torch.no_grad():
        ours = model.hidden(IDS)[:, -1] @ head_cd.T
        torch.testing.assert_close(wrapped(IDS).logits, ours, atol=2e-5, rtol=1e-4)
    assert torch.equal(read_adapter(tmp_path / "a").head["score.weight"], head_cd)


def test_a_stack_of_adapters_is_the_weighted_sum_of_their_products():
    models = [make_model() for _ in range(2)]
    settings = (SETTINGS, LoraSettings(rank=2, alpha=8.0, dropout=0.1, targets=("q_proj", "up_proj")))
    for seed, (model, one) in enumerate(zip(models, settings, strict=True)):
        add_lora(model, one, seed=seed)
        randomise(model, seed)
    adapters = [adapter_of(model, one) for model, one in zip(models, settings, strict=True)]
    stacked = make_model()
    put_adapter(stacked, stack_adapters(adapters, (0.5, 2.0)))
    base, merged = make_model(), merged_copy(stacked)
    parts = [merged_copy(model) for model in models]
    for (name, weight), result, first, second in zip(
        base.named_parameters(), *(m.parameters() for m in (merged, *parts)), strict=True
    ):
        expected = weight + 0.5 * (first - weight) + 2.0 * (second - weight)
        torch.testing.assert_close(result, expected.detach(), atol=1e-5, rtol=1e-5, msg=name)


def test_adapters_of_another_model_or_kind_are_refused(tmp_path):
    model = make_model()
    add_lora(model, SETTINGS, seed=0)
    adapter = adapter_of(model, SETTINGS, base="small")
    other = Transformer(replace(model.shape, n_layers=1))
    with pytest.raises(ModelError, match="small"):
        put_adapter(other, adapter)
    save_adapter(adapter, tmp_path)
    text = (tmp_path / "adapter_config.json").read_text()
    (tmp_path / "adapter_config.json").write_text(text.replace('"use_dora": false', '"use_dora": true'))
    with pytest.raises(ModelError, match="use_dora"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text(text.replace("LORA", "IA3"))
    with pytest.raises(ModelError, match="IA3"):
        read_adapter(tmp_path)
    with pytest.raises(ConfigError, match="rank"):
        LoraSettings(rank=0)
    with pytest.raises(ConfigError, match="lm_head"):
        LoraSettings(targets=("lm_head",))
