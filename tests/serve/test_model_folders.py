"""S5: folders from strangers. None runs code, all are refused in one line; and the folders that are served."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.serve.conftest import make_folder, run_live

from chinchilla_lm.core.errors import ChinchillaError, ModelError
from chinchilla_lm.serve.chat_template import ChatTemplate, TemplateFailed
from chinchilla_lm.serve.served_model import load_served_model
from chinchilla_lm.serve.settings import Limits, ServerSettings


class Canary:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.fixture
def folder(tiny_folder, tmp_path) -> Path:
    """A good folder, to be spoilt."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def weights(path: Path, header: bytes, rest: bytes = b"") -> None:
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + rest)


def tensor_header(shape: list[int], offsets: list[int]) -> bytes:
    tensor = {"dtype": "F32", "shape": shape, "data_offsets": offsets}
    return json.dumps({"model.embed_tokens.weight": tensor}).encode()


def pickles(folder: Path, canary: Path) -> None:
    for name in ("pytorch_model.bin", "extra.pkl", "optimizer.pt"):
        (folder / name).write_bytes(pickle.dumps(Canary(canary)))


def only_pickle(folder: Path, canary: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps(Canary(canary)) + b"\0" * 10**6)


def link_out(folder: Path, _: Path) -> None:
    (folder / "secret.json").symlink_to("/etc/passwd")


def linked_weights(folder: Path, _: Path) -> None:
    shutil.move(folder / "model.safetensors", folder.parent / "outside.safetensors")
    (folder / "model.safetensors").symlink_to("../outside.safetensors")


def code_beside(folder: Path, canary: Path) -> None:
    (folder / "modeling_evil.py").write_text(f"open({str(canary)!r}, 'w')\n")
    edit(folder / "config.json", auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"})


def tokenizer_code(folder: Path, canary: Path) -> None:
    (folder / "tok.py").write_text(f"open({str(canary)!r}, 'w')\n")
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tok.Evil", None]})


def set_config(**changes: Any):
    return lambda folder, _: edit(folder / "config.json", **changes)


def set_template(source: str):
    return lambda folder, _: (folder / "chat_template.jinja").write_text(source)


def write(name: str, content: bytes):
    return lambda folder, _: (folder / name).write_bytes(content)


CORPUS = {
    "pickles beside": pickles,
    "a pickle called safetensors": only_pickle,
    "a link out": link_out,
    "weights outside": linked_weights,
    "auto_map": code_beside,
    "tokenizer auto_map": tokenizer_code,
    "an attention from the hub": set_config(_attn_implementation="evil/kernel"),
    "experts from the hub": set_config(experts_implementation="evil/kernel"),
    "1e9 layers": set_config(num_hidden_layers=10**9),
    "1024 wide layers": set_config(num_hidden_layers=1024, hidden_size=65536, intermediate_size=262144),
    "1e18 words": set_config(vocab_size=10**18),
    "2^64 positions": set_config(max_position_embeddings=2**64),
    "a negative size": set_config(hidden_size=-32),
    "another type": set_config(model_type="lightglue"),
    "quantised": set_config(quantization_config={"quant_method": "evil"}),
    "an end of text outside": lambda folder, _: edit(folder / "generation_config.json", eos_token_id=[0, 10**6]) ,
    "NaN": write("config.json", b'{"model_type":"qwen3","rms_norm_eps":NaN}'),
    "5000 digits": write("config.json", b'{"vocab_size":' + b"9" * 5000 + b"}"),
    "deep config": write("config.json", b"[" * 100_000),
    "a large config": write("config.json", b" " * (2 << 20)),
    "binary config": write("config.json", bytes(range(256))),
    "deep tokenizer": write("tokenizer.json", b'{"model":' * 100_000),
    "a wrong tokenizer": write("tokenizer.json", b'{"model":{"type":"BPE","vocab":{"a":4294967295},"merges":[]}}'),
    "an empty tokenizer": write("tokenizer.json", b""),
    "deep tokenizer settings": write("tokenizer_config.json", b'{"a":' * 5000 + b"1" + b"}" * 5000),
    "a header of 2^63": write("model.safetensors", struct.pack("<Q", 2**63) + b"{}" * 10**6),
    "a header of 90 MB that is not there": write("model.safetensors", struct.pack("<Q", 90 << 20) + b"{}" * 10**6),
    "a header that is no JSON": lambda folder, _: weights(folder, b"x" * 100, b"\0" * 10**6),
    "tensors of 1e18": lambda folder, _: weights(folder, tensor_header([10**9, 10**9], [0, 4]), b"\0" * 10**6),
    "offsets outside": lambda folder, _: weights(folder, tensor_header([1], [4 * 10**9, 4 * 10**9 + 4]), b"\0" * 10**6),
    "an endless template": set_template("{% for i in range(9**5) %}{% for j in range(9**5) %}{% endfor %}{% endfor %}"),
    "a template of 1e10 characters": set_template("{{ 'a' * 10**10 }}"),
    "a template that pads": set_template("{{ '%1000000000d' % 1 }}"),
    "a template that reaches out": set_template("{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    "a template that opens": set_template("{{ cycler.__init__.__globals__.os.popen('id').read() }}"),
    "a template that includes": set_template("{% include '/etc/passwd' %}"),
    "a broken template": set_template("{% for %}"),
    "a huge template": set_template("a" * (1 << 19)),
}  # fmt: skip


@pytest.mark.parametrize("spoil", CORPUS.values(), ids=CORPUS.keys())
def test_a_malicious_folder_is_refused_and_runs_nothing(folder, tmp_path, spoil):
    canary = tmp_path / "canary"
    spoil(folder, canary)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(ChinchillaError) as caught:
        load_served_model(folder, limits=Limits(slots=1)).close(1.0)
    grown_bytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    print(f"{str(caught.value)[:150]} | {time.process_time() - began:.2f} s, {grown_bytes / 2**20:.0f} MB")
    assert "\n" not in str(caught.value)
    assert not canary.exists()
    assert grown_bytes < 200 << 20


def test_a_link_inside_the_folder_is_fine(folder):
    shutil.move(folder / "config.json", folder / "real.json")
    (folder / "config.json").symlink_to("real.json")
    load_served_model(folder, limits=Limits(slots=1)).close(1.0)


def test_a_run_directory_is_served_by_its_model(folder, tmp_path):
    run = tmp_path / "my-run"
    run.mkdir()
    shutil.move(folder, run / "model")
    served = load_served_model(run, limits=Limits(slots=1))
    assert served.name == "my-run"
    served.close(1.0)


@pytest.mark.parametrize("name", ["", "a" * 129, "a\nb"])
def test_a_name_is_short_and_printable(folder, name):
    with pytest.raises(ModelError, match="name"):
        load_served_model(folder, name=name or "\x00", limits=Limits(slots=1))


def test_an_empty_place_is_said(tmp_path):
    with pytest.raises(ModelError, match="no config.json"):
        load_served_model(tmp_path)


def test_a_model_without_a_template_refuses_chats_only(tmp_path):
    folder = make_folder(tmp_path, template=None)
    with run_live(folder, ServerSettings(port=0, limits=Limits(slots=1))) as live:
        answer = live.post("/v1/chat/completions", {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "no_chat_template")
        assert live.post("/v1/completions", {"model": "tiny", "prompt": "hi", "max_tokens": 2}).status_code == 200


TEMPLATES = {
    "ours": "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}",
    "chatml": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
        "You are helpful.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
        "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "blocks": (
        "{%- set ns = namespace(seen=0) -%}\n{%- for message in messages %}\n    {%- if message.role == 'user' %}\n"
        "        {%- set ns.seen = ns.seen + 1 %}\n{{ bos_token + message.content | trim }}\n    {%- else %}\n"
        "{% generation %}{{ message.content }}{% endgeneration %}{% continue %}\n    {%- endif %}\n{%- endfor %}\n"
        "{{ ns.seen }}{{ messages | tojson }}{% if tools %}x{% endif %}"
    ),
}


@pytest.mark.parametrize("source", TEMPLATES.values(), ids=TEMPLATES.keys())
def test_templates_mean_what_they_mean_in_transformers(tiny_folder, source):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(tiny_folder)
    messages = [
        {"role": "user", "content": " Grüße 你好 <b> \n"},
        {"role": "assistant", "content": "ok"},
        {"role": "user", "content": "2"},
    ]
    template = ChatTemplate(source, {"bos_token": "<|endoftext|>"})
    expected = theirs.apply_chat_template(messages, chat_template=source, tokenize=False, add_generation_prompt=True)
    assert template.render(messages) == expected
    template.close()


def test_a_template_that_was_stopped_leaves_the_next_chat_alone():
    template = ChatTemplate(
        "{% if messages[0].content == 'loop' %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}"
        "{% endfor %}{% endif %}{{ messages[0].content }}",
        {},
    )
    assert template.render([{"role": "user", "content": "a"}]) == "a"
    with pytest.raises(TemplateFailed, match="more than 0.5 s"):
        template.render([{"role": "user", "content": "loop"}])
    assert template.render([{"role": "user", "content": "b"}]) == "b"
    template.close()


@pytest.mark.parametrize(
    ("layout", "kind"), [("qwen3", "single_label_classification"), ("llama", "multi_label_classification")]
)
def test_a_tuned_head_classifies_as_in_transformers(tiny_folder, tmp_path, layout, kind):
    import openai
    from transformers import LlamaConfig, LlamaForSequenceClassification, Qwen3Config, Qwen3ForSequenceClassification

    kinds = {
        "qwen3": (Qwen3Config, Qwen3ForSequenceClassification),
        "llama": (LlamaConfig, LlamaForSequenceClassification),
    }
    make_config, make = kinds[layout]
    shape = json.loads((tiny_folder / "config.json").read_text())
    config = make_config(
        **{name: shape[name] for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")},
        **{name: shape[name] for name in ("num_attention_heads", "num_key_value_heads", "head_dim")},
        max_position_embeddings=64,
        id2label={0: "bad", 1: "fine", 2: "good"},
        label2id={"bad": 0, "fine": 1, "good": 2},
        problem_type=kind,
        pad_token_id=0,
        initializer_range=0.3,
    )
    torch.manual_seed(5)
    theirs = make(config).eval()
    theirs.save_pretrained(tmp_path / "head")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_folder / name, tmp_path / "head" / name)
    texts = ["The sea", "hello, said the cook"]
    with run_live(tmp_path / "head", ServerSettings(port=0)) as live:
        answer = live.post("/v1/classify", {"model": "tiny", "input": texts}).json()
        for row, text in zip(answer["data"], texts, strict=True):
            with torch.no_grad():
                scores = theirs(torch.tensor([live.served.tokenizer.encode(text).ids])).logits[0]
            chances = scores.softmax(-1) if kind.startswith("single") else scores.sigmoid()
            assert row["probs"] == pytest.approx(chances.tolist(), abs=1e-4)
            assert row["label"] == theirs.config.id2label[int(chances.argmax())]
        client = openai.OpenAI(base_url=live.url + "/v1", api_key="x", max_retries=0)
        with pytest.raises(openai.NotFoundError, match="classifier"):
            client.completions.create(model="tiny", prompt="a")
        assert len(client.embeddings.create(model="tiny", input="a").data[0].embedding) == shape["hidden_size"]
    spoil_head(tmp_path / "head")
    with pytest.raises(ModelError, match=r"score.weight has shape \[2, 32\]"):
        load_served_model(tmp_path / "head")


def spoil_head(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["score.weight"] = tensors["score.weight"][:2].contiguous()
    os.remove(folder / "model.safetensors")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
