"""`chinchilla tune` as scripts and people meet it: every setting an option, a file joined with words, JSON, errors."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cyclopts import App

from chinchilla_lm.cli import tune as command
from chinchilla_lm.cli.tune_options import GROUPS, TuneOptions, default_out, field_help, read_config
from chinchilla_lm.core.errors import ConfigError
from chinchilla_lm.core.files import write_json
from chinchilla_lm.tune.config import TuneConfig

NEEDED = {"model": "m", "train": "t.jsonl"}


def options(**values: Any) -> Any:
    return TuneOptions(**{**NEEDED, **values})


def run(words: list[str]) -> None:
    app = App(name="chinchilla")
    app.command(command.tune)
    app(["tune", *words], exit_on_error=False, print_error=False, result_action="return_value")


def test_every_field_of_the_config_is_an_option_in_exactly_one_group():
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(each.name for each in dataclasses.fields(TuneConfig) if each.name != "task")


def test_every_option_has_the_words_of_its_field():
    words = field_help()
    for each in dataclasses.fields(TuneConfig):
        assert words[each.name] != each.name.replace("_", " "), f"{each.name} is not in TuneConfig's docstring"
        assert "None" not in words[each.name]
    assert words["rank"].endswith("[default: 8]")


def test_help_imports_no_torch():
    program = (
        "import sys; from cyclopts import App; from chinchilla_lm.cli.tune import tune; app = App(); "
        "app.command(tune); "
        "app(['tune', '--help'], exit_on_error=False, result_action='return_value'); "
        "sys.exit(1 if {'torch', 'transformers', 'scipy', 'pyarrow', 'numpy'} & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    for title in (*GROUPS, "Job"):
        assert title in done.stdout


def test_words_win_over_the_file_and_the_file_over_the_defaults(tmp_path):
    path = tmp_path / "t.toml"
    path.write_text('task = "text-classification"\nmodel = "a"\ntrain = "b.csv"\nrank = 16\nlr = 1e-4\n')
    config = read_config(None, TuneOptions(rank=8, columns=("text=body",)), path)
    assert (config.task, config.model, config.rank, config.lr) == ("text-classification", "a", 8, 1e-4)
    assert config.columns == {"text": "body"}
    assert config.epochs == TuneConfig.epochs


def test_a_backslash_n_in_a_template_is_a_line_break():
    config = read_config("text-classification", options(template=r"Review: {text}\nSentiment:"), None)
    assert config.template == "Review: {text}\nSentiment:"


@pytest.mark.parametrize(
    ("task", "values", "text", "said"),
    [
        (None, {}, None, "task is missing"),
        ("translation", {"model": None}, None, "--model FOLDER"),
        ("translation", {"train": None}, None, "--train FILE"),
        ("translation", {"columns": ("source",)}, None, "NAME=VALUE"),
        ("translation", {}, 'task = "dialogue"', "leave one of them out"),
        ("translation", {}, "rnak = 3", "did you mean 'rank'"),
        ("translation", {}, "rank = ", "is not TOML"),
        ("translation", {"rank": 0}, None, "must be >= 1"),
    ],
)
def test_a_wrong_request_is_refused_with_the_way_out(task, values, text, said, tmp_path):
    path = tmp_path / "t.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError) as refused:
        read_config(task, options(**values), path if text is not None else None)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "values",
    [
        {"search": -1},
        {"fractions": (1.5,)},
        {"search": 2, "fractions": (0.5,)},
        {"search": 2, "augment": "perturb"},
        {"augment_share": 0.5},
        {"synonyms": Path("s.jsonl")},
        {"augment": "generate", "synonyms": Path("s.jsonl")},
        {"augment": "perturb", "augment_share": 1.5},
    ],
)
def test_jobs_that_make_no_sense_are_refused(values):
    with pytest.raises(ConfigError):
        command.JobOptions(**values)


def test_the_run_directory_is_named_after_the_request():
    table = {"task": "token-classification", "train": "sets/ner-wnut17/train.conll"}
    assert default_out(table) == "runs/token-classification-ner-wnut17-lora"
    assert default_out({**table, "train": "my rows.csv", "method": "full"}) == "runs/token-classification-my-rows-full"


def test_json_has_the_keys_that_scripts_rely_on(monkeypatch, tmp_path, capsys):
    record = {
        "schema": "tune/1",
        "task": "translation",
        "metric": "bleu",
        "metrics_before": {"bleu": 1.5},
        "metrics_after": {"bleu": 12.25},
        "intervals": {"after": {"low": 10.0, "high": 14.0, "level": 0.95}},
    }

    def learned(config: TuneConfig, job: object, going_on: object, display: object) -> None:
        write_json(Path(config.out) / "tune.json", record)

    monkeypatch.setattr(command, "_run", learned)
    out = tmp_path / "run"
    run(["translation", "--model", "m", "--train", "t.csv", "--out", str(out), "--json"])
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["metrics_before"] == {"bleu": 1.5}
    assert document["metrics_after"] == {"bleu": 12.25}
    assert (document["interval"]["low"], document["interval"]["high"]) == (10.0, 14.0)
    assert document["model_dir"] == str(out / "model")
    assert document["report"] == str(out / "report.html")
    assert "12.25" in captured.err


def test_going_on_takes_task_and_model_of_the_older_run(tmp_path):
    (tmp_path / "config.toml").write_text('task = "dialogue"\nmodel = "old"\ntrain = "old.jsonl"\nrank = 16\n')
    config = read_config(None, TuneOptions(train="new.jsonl"), None, older=tmp_path)
    assert (config.task, config.model, config.train) == ("dialogue", "old", "new.jsonl")
    with pytest.raises(ConfigError, match="train is missing"):
        read_config(None, TuneOptions(), None, older=tmp_path)
    with pytest.raises(ConfigError, match=r"config\.toml cannot be read"):
        read_config(None, TuneOptions(train="t"), None, older=tmp_path / "none")
    with pytest.raises(ConfigError, match="for --continue RUN"):
        run(["dialogue", "--model", "m", "--train", "t", "--replay", "0.2"])


def test_the_options_of_going_on_are_the_settings():
    from chinchilla_lm.tune.loading import ContinueSettings

    assert dataclasses.asdict(command.ContinueOptions()) == dataclasses.asdict(ContinueSettings())
