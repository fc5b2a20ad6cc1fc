"""`chinchilla merge`: the merged folder answers as base and adapter; wrong requests are refused before torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cyclopts import App
from tests.tune.conftest import save_tiny_model, write_jsonl

from chinchilla_lm.cli import tune_merge as command
from chinchilla_lm.core.errors import ConfigError


def run(*words: Any) -> None:
    app = App(name="chinchilla")
    app.command(command.merge)
    given = ["merge", *map(str, words)]
    app(given, exit_on_error=False, print_error=False, result_action="return_value")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_tiny_model("qwen3", tmp_path / "base")


def test_a_run_s_adapter_merges_to_its_model_and_two_halves_to_the_same(base, tmp_path, capsys):
    from safetensors.torch import load_file

    from chinchilla_lm.tune.config import TuneConfig
    from chinchilla_lm.tune.tuning import tune

    rows = [{"text": f"a {word} film", "label": label} for word, label in (("good", "positive"), ("bad", "negative"))]
    train = write_jsonl(tmp_path / "train.jsonl", rows * 4)
    out = tmp_path / "run"
    settings: dict[str, Any] = {"steps": 3, "lr": 1e-2, "rows": 4, "dtype": "float32", "bootstrap_draws": 100}
    tune(
        TuneConfig(
            task="text-classification",
            model=str(base),
            train=str(train),
            validation=str(train),
            out=str(out),
            head="fresh",
            **settings,
        )
    )
    run(base, "--adapter", out, "--out", tmp_path / "one", "--json")
    assert json.loads(capsys.readouterr().out)["adapters"] == [{"folder": str(out / "adapter"), "weight": 1.0}]
    halves = ["--adapter", out, "--weight", "0.75", "--adapter", out / "adapter", "--weight", "0.25"]
    run(base, *halves, "--out", tmp_path / "two")
    run(base, "--adapter", out, "--weight", "-1", "--out", tmp_path / "less")
    expected = load_file(out / "model" / "model.safetensors")
    for name, tolerance in (("one", 0.0), ("two", 1e-5)):
        found = load_file(tmp_path / name / "model.safetensors")
        assert found.keys() == expected.keys()
        assert max(float((found[key] - expected[key]).abs().max()) for key in expected) <= tolerance
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config["id2label"] == {"0": "negative", "1": "positive"}
        assert json.loads((tmp_path / name / "task.json").read_text())["labels"] == ["negative", "positive"]
    start, less = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "less"))
    key = "model.layers.0.mlp.up_proj.weight"
    assert (less[key] + expected[key]).sub(2 * start[key]).abs().max() < 1e-5
    with pytest.raises(ConfigError, match="would replace"):
        run(base, "--adapter", out, "--out", out)


def test_what_does_not_fit_is_refused_in_one_line(base, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    for words, said in (
        ((base, "--adapter", base, "--out", tmp_path / "o"), "no adapter_config.json"),
        ((base, "--adapter", adapter, "--weight", "1", "--weight", "2", "--out", tmp_path / "o"), "--weight once"),
        ((base, "--adapter", adapter, "--weight", "nan", "--out", tmp_path / "o"), "--weight once"),
        ((base, "--adapter", adapter, "--out", base), "would replace"),
        ((base, "--adapter", adapter, "--out", Path(__file__).parent), "holds other files"),
    ):
        with pytest.raises(ConfigError) as refused:
            run(*words)
        assert said in str(refused.value)
        assert "\n" not in str(refused.value)


def test_help_imports_no_torch():
    program = (
        "import sys; from cyclopts import App; from chinchilla_lm.cli.tune_merge import merge; app = App(); "
        "app.command(merge); app(['merge', '--help'], exit_on_error=False, result_action='return_value'); "
        "sys.exit(1 if {'torch', 'transformers', 'numpy'} & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    assert "--adapter" in done.stdout
