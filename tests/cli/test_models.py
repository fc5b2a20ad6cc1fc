from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.random_models import random_model

from chinchilla_lm.cli import models as commands
from chinchilla_lm.cli.terminal import SamplingOptions
from chinchilla_lm.core.errors import ChinchillaError, DataError
from chinchilla_lm.core.shapes import ModelShape
from chinchilla_lm.data.documents import Document
from chinchilla_lm.data.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from chinchilla_lm.evals.heldout import windows_of_documents
from chinchilla_lm.evals.perplexity import evaluate
from chinchilla_lm.generate.completion import generate
from chinchilla_lm.generate.sampling import Sampling
from chinchilla_lm.model.huggingface import load_model, save_model

TEXT = "The sailor said hello, and the sea said nothing. " * 40


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "text.txt").write_text(TEXT)
    save_tokenizer(train_tokenizer([TEXT], 300), folder / "tokenizer")
    shape = ModelShape(vocab=300, context=32, d_model=16, n_layers=1, n_heads=2, n_kv_heads=2, head_dim=8, d_ff=32)
    save_model(
        random_model(shape, spread=0.2, seed=0, start=0), folder / "model", tokenizer_folder=folder / "tokenizer"
    )
    return folder


def test_generate_prints_one_json_document(run_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands.generate(
        run_directory / "model", "The sea", max_tokens=9, sampling=SamplingOptions(temperature=1.0, seed=3), json=True
    )
    printed = json.loads(capsys.readouterr().out)
    expected = generate(
        load_model(run_directory / "model"),
        load_tokenizer(run_directory / "model"),
        "The sea",
        max_tokens=9,
        sampling=Sampling(temperature=1.0, seed=3),
    )
    assert set(printed) == {"text", "tokens", "tokens_per_s", "finish_reason"}
    assert (printed["text"], printed["tokens"]) == (expected.text, expected.tokens)
    assert printed["finish_reason"] in ("stop", "length")


def test_generate_prints_only_the_text_on_stdout(run_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands.generate(run_directory, "The sea", max_tokens=9, sampling=SamplingOptions(seed=3), json=True)
    record = json.loads(capsys.readouterr().out)
    commands.generate(run_directory, "The sea", max_tokens=9, sampling=SamplingOptions(seed=3))
    printed = capsys.readouterr()
    assert printed.out == record["text"] + "\n"
    assert "tokens/s" in printed.err


def test_eval_of_a_corpus_is_the_evaluation(run_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands.evaluate(run_directory, corpus=(str(run_directory / "text.txt"),), json=True)
    printed = json.loads(capsys.readouterr().out)
    model, tokenizer = load_model(run_directory / "model"), load_tokenizer(run_directory / "model")
    expected = evaluate(model, windows_of_documents([Document(text=TEXT, id="")], tokenizer, 32))
    assert printed == {"schema": "eval/1", **expected.to_dict()}


def test_eval_says_its_unit(run_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands.evaluate(run_directory, corpus=(str(run_directory / "text.txt"),), max_tokens=100)
    printed = capsys.readouterr().out
    assert "nats per token" in printed
    assert "96 tokens" in printed


def test_eval_without_text_says_what_to_give(run_directory: Path) -> None:
    with pytest.raises(DataError, match="give --corpus"):
        commands.evaluate(run_directory)


def test_eval_with_two_texts_is_refused(run_directory: Path) -> None:
    with pytest.raises(DataError, match="give one of them"):
        commands.evaluate(run_directory, corpus=("a",), data=Path("b"))


def test_a_missing_model_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ChinchillaError, match="nowhere"):
        commands.generate(tmp_path / "nowhere", "a")


def test_importing_the_commands_does_not_import_torch() -> None:
    code = "import sys, chinchilla_lm.cli.models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
