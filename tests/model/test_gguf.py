from __future__ import annotations

import json
import os
import resource
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.random_models import random_model
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from chinchilla_lm.core import files
from chinchilla_lm.core.errors import ConfigError, DataError, ModelError
from chinchilla_lm.core.shapes import ModelShape
from chinchilla_lm.data.tokenizer import save_tokenizer, train_tokenizer
from chinchilla_lm.model.gguf import GgufText, read_gguf, write_gguf
from chinchilla_lm.model.gguf_tokenizer import CONTROL, NORMAL, UNUSED, build_tokenizer, describe_tokenizer
from chinchilla_lm.model.huggingface import export_tensors, save_model
from chinchilla_lm.model.model_config import SpecialIds

gguf = pytest.importorskip("gguf")

VOCAB = 300
TEXT = "The sailor said hello, and the sea said nothing. 你好，大海 🚀 1872. " * 40
QWEN3 = ModelShape(vocab=VOCAB, context=48, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=64)
SHAPES = {
    "qwen3": QWEN3,
    "qwen3-tied": replace(QWEN3, is_tied=True, rope_theta=5e5),
    "llama": replace(QWEN3, layout="llama", norm_epsilon=1e-5),
    "llama-wide-heads-tied": replace(QWEN3, layout="llama", n_kv_heads=1, head_dim=16, is_tied=True),
}
SPECIAL = SpecialIds(bos=0, eos=0, pad=0)


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer([TEXT], VOCAB - 10), folder)
    return folder


@pytest.fixture(scope="module")
def text(tokenizer_folder) -> GgufText:
    return GgufText(tokenizer=describe_tokenizer(tokenizer_folder, VOCAB), special=SPECIAL, chat_template="{{ x }}")


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_float32_comes_back_bit_for_bit(tmp_path, text, shape):
    model = random_model(shape)
    write_gguf(model, tmp_path / "m.gguf", text, name="tiny")
    back, text_back = read_gguf(tmp_path / "m.gguf")
    assert back.shape == shape
    assert text_back == text
    for (name, before), after in zip(export_tensors(model).items(), export_tensors(back).values(), strict=True):
        assert torch.equal(before, after), name


@pytest.mark.slow  # the import of transformers
@pytest.mark.parametrize("is_tied", [True, False])
def test_transformers_computes_our_logits_from_our_file(tmp_path, text, is_tied):
    pytest.importorskip("accelerate", reason="transformers reads GGUF with accelerate only")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Of qwen3 files transformers 5.23 ignores key_length, so its head_dim is wrong for small models.
    model = random_model(replace(SHAPES["llama"], is_tied=is_tied))
    write_gguf(model, tmp_path / "m.gguf", text)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32).eval()
    ids = torch.randint(VOCAB, (2, 40), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert (theirs(ids).logits - model(ids)).abs().max() < 1e-4
    tokens = AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    assert tokens(TEXT).input_ids == build_tokenizer(text.tokenizer).encode(TEXT).ids


@pytest.mark.parametrize(("precision", "bound"), [("bf16", 2**-8), ("q8_0", 1 / 254 + 2**-11)])
def test_rounding_stays_within_the_format(tmp_path, text, precision, bound):
    model = random_model(SHAPES["llama"])
    write_gguf(model, tmp_path / "m.gguf", text, precision=precision)
    back, _ = read_gguf(tmp_path / "m.gguf")
    for (name, before), after in zip(export_tensors(model).items(), export_tensors(back).values(), strict=True):
        error = (before - after).abs().max() / before.abs().max()
        assert error == 0 if before.ndim == 1 else 0 < error < bound, name
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert kinds["blk.0.attn_q.weight"] == precision.upper()
    assert kinds["blk.0.attn_norm.weight"] == "F32"


def test_rows_that_are_no_whole_blocks_stay_float32(tmp_path, text):
    write_gguf(random_model(replace(QWEN3, d_model=24)), tmp_path / "m.gguf", text, precision="q8_0")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert kinds["token_embd.weight"] == "F32"
    assert kinds["blk.1.ffn_down.weight"] == "Q8_0"


def test_llama_rows_are_in_the_order_of_the_stock_converter(tmp_path, text):
    shape = SHAPES["llama"]
    model = random_model(shape)
    write_gguf(model, tmp_path / "m.gguf", text)
    found = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    for ours, theirs, heads in (("q", "attn_q", shape.n_heads), ("k", "attn_k", shape.n_kv_heads)):
        rows = export_tensors(model)[f"model.layers.1.self_attn.{ours}_proj.weight"].numpy()
        # LlamaModel.permute of convert_hf_to_gguf.py
        permuted = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2)
        assert np.array_equal(found[f"blk.1.{theirs}.weight"], permuted.reshape(rows.shape))


def test_the_vocabulary_is_as_long_as_the_embedding(text):
    tokenizer = text.tokenizer
    assert len(tokenizer.tokens) == len(tokenizer.types) == VOCAB
    assert (tokenizer.tokens[0], tokenizer.types[0]) == ("<|endoftext|>", CONTROL)
    assert tokenizer.types[1] == NORMAL
    assert (tokenizer.tokens[-1], tokenizer.types[-1]) == (f"[PAD{VOCAB - 1}]", UNUSED)
    assert tokenizer.pre == "gpt-2"
    assert not tokenizer.adds_bos


@pytest.mark.parametrize("layout", ["chinchilla", "textbook", "qwen3"])
def test_our_own_layouts_are_refused_in_one_line(tmp_path, text, layout):
    shape = replace(QWEN3, layout=layout, activation="gelu", n_kv_heads=4)
    with pytest.raises(ModelError, match="exists in no other program; `chinchilla serve`") as caught:
        write_gguf(random_model(shape), tmp_path / "m.gguf", text)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_file_is_readable_by_all_and_replaces_the_old_one(tmp_path, text):
    (tmp_path / "m.gguf").write_text("old")
    write_gguf(random_model(QWEN3), tmp_path / "m.gguf", text)
    assert stat.S_IMODE(os.stat(tmp_path / "m.gguf").st_mode) == 0o644
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]
    with pytest.raises(ConfigError, match="choose from f32, bf16, q8_0"):
        write_gguf(random_model(QWEN3), tmp_path / "m.gguf", text, precision="q4_0")  # type: ignore[arg-type]
    assert read_gguf(tmp_path / "m.gguf")[0].shape == QWEN3


def test_a_place_that_cannot_be_written_is_one_line(tmp_path, text):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file"):
        write_gguf(random_model(QWEN3), tmp_path / "file" / "m.gguf", text)


@pytest.mark.parametrize("room", [1, 3_000, 9_000, 30_000, 60_000])
def test_a_disk_that_takes_no_more_is_one_line_and_keeps_the_old_file(tmp_path, text, room):
    (tmp_path / "m.gguf").write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))  # a write stops half-way, and so does the close after
    try:
        with pytest.raises(DataError, match=r"m\.gguf: .*; check the disk"):
            write_gguf(random_model(QWEN3), tmp_path / "m.gguf", text)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("m.gguf", "old")]


def test_weights_that_do_not_fit_on_the_disk_are_refused_before_they_are_made(tmp_path, text, monkeypatch):
    monkeypatch.setattr(files, "free_bytes", lambda path: 1000)
    with pytest.raises(DataError, match=r"the weights of m\.gguf need about .* and 1000 B are free"):
        write_gguf(random_model(QWEN3), tmp_path / "m.gguf", text)
    with pytest.raises(DataError, match=r"the weights of the model need about .* and 1000 B are free"):
        save_model(random_model(QWEN3), tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_save_left_goes_with_the_next_one(tmp_path, text):
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    left = [tmp_path / f".{name}.{killed.pid}.tmp" for name in ("m", "m.gguf", "another")]
    for folder in left[::2]:
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"gigabytes")
    left[1].write_bytes(b"gigabytes")
    save_model(random_model(QWEN3), tmp_path / "m")
    write_gguf(random_model(QWEN3), tmp_path / "m.gguf", text)
    assert sorted(path.name for path in tmp_path.iterdir()) == [left[2].name, "m", "m.gguf"]  # others' is not ours


def test_a_torn_file_is_refused(tmp_path, text):
    write_gguf(random_model(QWEN3), tmp_path / "m.gguf", text)
    content = (tmp_path / "m.gguf").read_bytes()
    for size in (0, 3, 100, len(content) // 2, len(content) - 100):
        (tmp_path / "torn.gguf").write_bytes(content[:size])
        with pytest.raises(ModelError, match="not a whole GGUF file"):
            read_gguf(tmp_path / "torn.gguf")


def splitter(regex: str):
    from tokenizers import Regex

    split = pre_tokenizers.Split(Regex(regex), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


# As in the tokenizer.json of Meta-Llama-3-8B and of Qwen3-0.6B.
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace("{1,3}", "")
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
DIGITS = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTES])


def write_tokenizer(folder: Path, pre_tokenizer, **bpe: object) -> Tokenizer:
    trained = json.loads(train_tokenizer([TEXT], VOCAB).to_str())["model"]
    merges = [tuple(pair) for pair in trained["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=trained["vocab"], merges=merges, **bpe))
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


@pytest.mark.parametrize(
    ("name", "pre_tokenizer", "bpe"),
    [
        ("gpt-2", BYTES, {}),
        ("smollm", DIGITS, {}),
        ("llama-bpe", splitter(LLAMA3), {"ignore_merges": True}),
        ("qwen2", splitter(QWEN2), {}),
    ],
)
def test_a_known_rule_is_named_and_does_the_same(tmp_path, name, pre_tokenizer, bpe):
    tokenizer = write_tokenizer(tmp_path, pre_tokenizer, **bpe)
    described = describe_tokenizer(tmp_path, VOCAB)
    assert described.pre == name
    sample = TEXT + "  don't\n\n12345 x=3.14;<|endoftext|>\t ü"
    assert build_tokenizer(described).encode(sample).ids == tokenizer.encode(sample).ids


@pytest.mark.parametrize(
    ("pre_tokenizer", "bpe", "message"),
    [
        (pre_tokenizers.Whitespace(), {}, "pre-tokenizer .Whitespace. is none of gpt-2, smollm"),
        (pre_tokenizers.ByteLevel(add_prefix_space=True), {}, "none of gpt-2"),
        (splitter(r"\s+|\S+"), {}, "none of gpt-2"),
        (splitter(LLAMA3), {}, "none of gpt-2"),  # llama.cpp's rule of this name ignores merges
        (BYTES, {"byte_fallback": True}, "BPE with byte fallback; use llama.cpp's own"),
    ],
)
def test_a_rule_without_a_name_is_refused(tmp_path, pre_tokenizer, bpe, message):
    write_tokenizer(tmp_path, pre_tokenizer, **bpe)
    with pytest.raises(ModelError, match=message):
        describe_tokenizer(tmp_path, VOCAB)


def test_normalizers_and_tokens_around_a_text_are_seen(tmp_path):
    tokenizer = write_tokenizer(tmp_path, BYTES)
    for single, adds_bos in (("<|endoftext|> $A", True), ("$A", False), ("$A <|endoftext|>", None)):
        tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<|endoftext|>", 0)])
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        if adds_bos is None:
            with pytest.raises(ModelError, match="knows one in front"):
                describe_tokenizer(tmp_path, VOCAB)
        else:
            assert describe_tokenizer(tmp_path, VOCAB).adds_bos is adds_bos
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ModelError, match="normalizer Lowercase"):
        describe_tokenizer(tmp_path, VOCAB)


def test_a_broken_tokenizer_is_refused(text):
    for changes in ({"merges": ("a nowhere",)}, {"merges": ("a",)}, {"types": text.tokenizer.types[:-1]}):
        with pytest.raises(ModelError, match="export the model again"):
            build_tokenizer(replace(text.tokenizer, **changes))
