"""`chinchilla chat`, `export` and `push` as people and scripts meet them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.random_models import random_model

from chinchilla_lm.cli.chat import HELP, run_chat
from chinchilla_lm.cli.main import run_command
from chinchilla_lm.cli.terminal import read_logit_bias, visible
from chinchilla_lm.core.errors import ConfigError
from chinchilla_lm.core.shapes import ModelShape
from chinchilla_lm.data.tokenizer import save_tokenizer, train_tokenizer
from chinchilla_lm.generate.completion import complete, generate
from chinchilla_lm.generate.engine import Engine
from chinchilla_lm.generate.request import Request
from chinchilla_lm.generate.sampling import GREEDY, Sampling
from chinchilla_lm.model.huggingface import save_model
from chinchilla_lm.serve.conversation import Conversation
from chinchilla_lm.serve.served_model import ServedModel, load_served_model
from chinchilla_lm.serve.settings import Limits

TEXT = "The sailor said hello, and the sea said nothing. 你好，大海 🚀 " * 40
TEMPLATE = (
    "{% for message in messages %}{{ message.role + ': ' + message.content + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
CONTEXT = 128


def make_folder(folder: Path, template: str | None) -> Path:
    tokenizer = train_tokenizer([TEXT], 400)
    save_tokenizer(tokenizer, folder / "tokenizer", max_tokens=CONTEXT)
    vocab = tokenizer.get_vocab_size()
    shape = ModelShape(
        vocab=vocab, context=CONTEXT, d_model=32, n_layers=1, n_heads=2, n_kv_heads=2, head_dim=16, d_ff=32
    )
    model = random_model(shape, spread=0.2, seed=0, start=0)
    extra = {} if template is None else {"chat_template.jinja": template}
    save_model(model, folder / "model", tokenizer_folder=folder / "tokenizer", extra_files=extra)
    return folder / "model"


@pytest.fixture(scope="module")
def chat_folder(tmp_path_factory) -> Path:
    return make_folder(tmp_path_factory.mktemp("chat"), TEMPLATE)


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory) -> Path:
    return make_folder(tmp_path_factory.mktemp("base"), None)


@pytest.fixture(scope="module")
def served(chat_folder) -> Iterator[ServedModel]:
    loaded = load_served_model(chat_folder, limits=Limits(slots=1, queue=1))
    yield loaded
    loaded.close(5.0)


def talk(conversation: Conversation, *lines: str) -> list[str]:
    written: list[str] = []
    rest = iter(lines)
    run_chat(conversation, lambda: next(rest, None), written.append)
    return written


def test_an_answer_is_the_models_on_the_templates_prompt(served, chat_folder):
    conversation = Conversation(served, sampling=GREEDY, max_tokens=12, system="Be kind.")
    answers = ["".join(conversation.answer(text)) for text in ("hello", "the sea")]
    engine = Engine(served.trunk, slots=1)
    turns = f"system: Be kind.\nuser: hello\nassistant: {answers[0]}\nuser: the sea\nassistant: "
    for prompt, answer in (("system: Be kind.\nuser: hello\nassistant: ", answers[0]), (turns, answers[1])):
        ids = tuple(served.tokenizer.encode(prompt).ids)
        request = Request(prompt_ids=ids, max_tokens=12, sampling=GREEDY)
        assert "".join(event.text for event in complete(engine, served.tokenizer, request)) == answer
    assert [one["role"] for one in conversation.messages] == ["system", "user", "assistant", "user", "assistant"]


def test_the_commands_do_what_they_say(served, tmp_path, capsys):
    conversation = Conversation(served, sampling=GREEDY, max_tokens=4, system="a")
    path = tmp_path / "talk.json"
    written = talk(conversation, "hello", f"/save {path}", "/reset", "", "/quit", "not read")
    assert written[-1] == "\n"
    saved = json.loads(path.read_text())["messages"]
    assert [visible(one["content"]) for one in saved] == ["a", "hello", "".join(written[:-1])]
    assert conversation.messages == [{"role": "system", "content": "a"}]
    talk(conversation, "/system b c", "hi")
    assert [one["content"] for one in conversation.messages][:2] == ["b c", "hi"]
    talk(conversation, "/system")
    assert conversation.messages == []
    capsys.readouterr()
    talk(conversation, "/wat", "/save")
    assert capsys.readouterr().err == f"{HELP}\n{HELP}\n"


def test_ctrl_c_stops_the_answer_and_not_the_program(served):
    conversation = Conversation(served, sampling=GREEDY, max_tokens=100)
    written: list[str] = []

    def write(piece: str) -> None:
        written.append(piece)
        if len(written) == 2:
            raise KeyboardInterrupt

    lines = iter(["hello", "again"])
    run_chat(conversation, lambda: next(lines, None), write)
    assert written[2] == " ...\n"
    assert conversation.messages[1] == {"role": "assistant", "content": conversation.messages[1]["content"]}
    assert visible(conversation.messages[1]["content"]) == "".join(written[:2])
    assert len(conversation.messages) == 4, "the second question was answered"


def test_ctrl_c_at_the_prompt_asks_again(served, capsys):
    def lines() -> Iterator[str | None]:
        yield "interrupt"
        yield None

    script = lines()

    def read() -> str | None:
        line = next(script)
        if line == "interrupt":
            raise KeyboardInterrupt
        return line

    run_chat(Conversation(served, sampling=GREEDY, max_tokens=4), read, lambda piece: None)
    assert "/quit or Ctrl-D leaves" in capsys.readouterr().err


def test_old_turns_leave_the_prompt_and_never_the_system_message(served, capsys):
    conversation = Conversation(served, sampling=GREEDY, max_tokens=16, system="Be kind.")
    talk(conversation, *["tell me of the sea and the sailor"] * 8)
    assert len(conversation.messages) == 17
    assert conversation.left_out > 0
    assert conversation.left_out % 2 == 0
    assert "no longer fit the context" in capsys.readouterr().err


def test_a_text_too_long_is_one_line_and_not_kept(served, capsys):
    conversation = Conversation(served, sampling=GREEDY, max_tokens=4)
    talk(conversation, "sailor " * 200)
    assert "write a shorter one" in capsys.readouterr().err
    assert conversation.messages == []


def test_answers_differ_by_turn_and_repeat_by_seed(served):
    def answers(seed: int) -> list[str]:
        conversation = Conversation(served, sampling=Sampling(temperature=1.5, seed=seed), max_tokens=12)
        return ["".join(conversation.answer("hello")) for _ in range(2)]

    assert answers(1) == answers(1) != answers(2)


def test_a_base_model_continues_and_says_so(base_folder, monkeypatch, capsys):
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("The sea\r\n/quit\n"))
    assert run_command(["chat", str(base_folder), "--temperature", "0", "--max-tokens", "6"]) == 0
    printed = capsys.readouterr()
    assert "no chat template: it continues each text you write" in printed.err
    loaded = load_served_model(base_folder, limits=Limits(slots=1, queue=1))
    expected = generate(loaded.trunk, loaded.tokenizer, "The sea", max_tokens=6, sampling=GREEDY).text
    loaded.close(5.0)
    assert printed.out == visible("The sea" + expected) + "\n"


def test_a_models_text_cannot_steer_the_terminal():
    assert visible("a\x1b[2J\x07b\n\tc\x7f\x9bd 你") == "a␛[2J␇b\n\tc␡\ufffdd 你"


def test_logit_bias_is_read_or_refused():
    assert read_logit_bias(("42=-100", "7=0.5")) == {42: -100.0, 7: 0.5}
    for word in ("42", "a=1", "1=b", ""):
        with pytest.raises(ConfigError, match="must be TOKEN_ID=BIAS"):
            read_logit_bias((word,))


def test_generate_takes_every_sampling_option(base_folder, capsys):
    words = ["generate", str(base_folder), "The sea", "--max-tokens", "8", "--json"]
    options = ["--min-p", "0.1", "--repetition-penalty", "1.2", "--presence-penalty", "0.5"]
    options += ["--frequency-penalty", "-0.5", "--logit-bias", "30=-100", "--logit-bias", "31=5", "--seed", "4"]
    assert run_command(words + options) == 0
    printed = json.loads(capsys.readouterr().out)
    loaded = load_served_model(base_folder, limits=Limits(slots=1, queue=1))
    sampling = Sampling(
        min_p=0.1,
        repetition_penalty=1.2,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        logit_bias={30: -100.0, 31: 5.0},
        seed=4,
    )
    expected = generate(loaded.trunk, loaded.tokenizer, "The sea", max_tokens=8, sampling=sampling)
    loaded.close(5.0)
    assert printed["text"] == expected.text
    assert run_command([*words, "--top-p", "2"]) == 2


def test_export_check_leaves_with_2_when_something_blocks(chat_folder, tmp_path, capsys):
    assert run_command(["export", str(chat_folder), "--check"]) == 0
    printed = capsys.readouterr().out
    assert f"vllm serve {chat_folder}" in printed
    assert "llama-server -m " in printed
    assert "ollama create" in printed
    assert run_command(["export", str(chat_folder), "--check", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["schema"], record["blocked"]) == ("export-check/1", [])
    assert {one["reader"] for one in record["findings"]} == {"transformers", "vllm", "llama.cpp"}
    (tmp_path / "config.json").write_text((chat_folder / "config.json").read_text())
    assert run_command(["export", str(tmp_path), "--check", "--json"]) == 2
    printed = capsys.readouterr()
    assert json.loads(printed.out)["blocked"] == ["transformers", "vllm", "llama.cpp"]
    assert printed.err.count("chinchilla: ") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["export", "MODEL"], "--to and --out are both needed"),
        (["export", "MODEL", "--to", "onnx", "--out", "x"], "--to onnx is unknown"),
        (["export", "MODEL", "--check", "--to", "hf"], "--check writes nothing"),
        (["export", "/no/such", "--check"], "holds no config.json"),
        (["push", "MODEL", "noslash", "--dry-run"], "must be OWNER/NAME"),
        (["chat", "/no/such"], "holds no config.json"),
        (["chat", "MODEL", "--logit-bias", "x"], "must be TOKEN_ID=BIAS"),
    ],
)
def test_wrong_requests_are_one_line(chat_folder, words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_command([str(chat_folder) if word == "MODEL" else word for word in words]) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert "Traceback" not in printed.err
    assert list(tmp_path.iterdir()) == []


def test_export_and_push_print_what_they_did(chat_folder, tmp_path, capsys):
    pytest.importorskip("gguf")
    assert run_command(["export", str(chat_folder), "--to", "gguf:q8_0", "--out", str(tmp_path / "m.gguf")]) == 0
    printed = capsys.readouterr().out
    assert "300 of 300 random texts tokenised alike" in printed
    assert run_command(["export", str(chat_folder), "--to", "gguf", "--out", str(tmp_path), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["schema"], record["parity"][0]["weight_error"]) == ("export/1", 0.0)
    assert run_command(["push", str(chat_folder), "ada/tiny", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "would go to ada/tiny" in printed
    assert "missing: README.md" in printed
    assert run_command(["push", str(chat_folder), "ada/tiny", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["uploaded"] is False
