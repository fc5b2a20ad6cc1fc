"""The whole command on tiny models: one JSON document, a page, Ctrl-C and on again, search, fractions, going on."""

from __future__ import annotations

import json
import os
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cyclopts import App

from chinchilla_lm.cli import tune as command
from chinchilla_lm.cli.display import StudyDisplay
from chinchilla_lm.cli.main import run_command
from chinchilla_lm.core.errors import CheckpointError
from chinchilla_lm.report.tune_charts import tune_charts
from chinchilla_lm.report.tune_record import read_tune_run
from chinchilla_lm.train.job import Interrupted

from .conftest import save_tiny_model, write_jsonl

Words = Callable[..., list[str]]


@pytest.fixture
def words(tiny_folder: Callable[[str], Path], tmp_path: Path, sentiment_rows: list[dict[str, Any]]) -> Words:
    train = write_jsonl(tmp_path / "train.jsonl", sentiment_rows)
    test = write_jsonl(tmp_path / "test.jsonl", sentiment_rows[::2])

    def make(*more: str, out: str = "run") -> list[str]:
        given = ["--model", str(tiny_folder("qwen3")), "--train", str(train), "--validation", str(train)]
        given += ["--test", str(test), "--out", str(tmp_path / out), "--method", "full", "--lr", "3e-3"]
        given += ["--rows", "8", "--epochs", "2", "--dtype", "float32", "--bootstrap-draws", "200", "--json"]
        return ["text-classification", *given, *more]

    return make


def run(given: list[str]) -> None:
    app = App(name="chinchilla")
    app.command(command.tune)
    app(["tune", *given], exit_on_error=False, print_error=False, result_action="return_value")


def test_one_command_from_rows_to_a_page(words, tmp_path, capsys):
    run(words())
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    accuracy = document["metrics_after"]["accuracy"]
    assert document["interval"]["low"] <= accuracy <= document["interval"]["high"]
    assert set(document["metrics_before"]) == set(document["metrics_after"])
    assert Path(document["model_dir"], "config.json").is_file()
    page = Path(document["report"]).read_text(encoding="utf-8")
    drawn = [chart.name for chart in tune_charts(read_tune_run(tmp_path / "run"))]
    assert drawn[:3] == ["strip", "tune-loss", "tune-validation"]
    assert all(f'id="fig-{name}"' in page for name in drawn)
    assert f"{100 * accuracy:.1f} %" in page
    assert "Class by class" in page
    assert f"{100 * accuracy:.1f} %" in captured.err
    assert "20 test rows" in (tmp_path / "run" / "model" / "README.md").read_text(encoding="utf-8")
    run(words())  # a finished run is only read
    assert json.loads(capsys.readouterr().out) == document


def test_ctrl_c_leaves_a_run_that_the_same_command_finishes(words, tmp_path, capsys, monkeypatch):
    told = StudyDisplay.advance

    def stop(display: StudyDisplay, fraction: float, loss: float | None, seconds_left: float | None) -> None:
        if loss is not None:  # the first update of the training
            os.kill(os.getpid(), signal.SIGINT)
        told(display, fraction, loss, seconds_left)

    monkeypatch.setattr(StudyDisplay, "advance", stop)
    with pytest.raises(Interrupted) as stopped:
        run(words())
    assert stopped.value.exit_code == 130
    assert not (tmp_path / "run" / "tune.json").exists()
    monkeypatch.setattr(StudyDisplay, "advance", told)
    run(words())
    run(words(out="whole"))
    first, whole = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["metrics_after"] == whole["metrics_after"]


def test_a_search_and_its_trials_are_on_the_page(words, tmp_path):
    run(words("--search", "2"))
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "Every trial was judged on the validation rows" in page
    assert len(read_tune_run(tmp_path / "run").table("search")["trials"]) == 2


def test_what_twice_the_rows_would_bring_is_on_the_page(words, tmp_path, capsys):
    run(words("--fractions", "0.25", "0.5"))
    assert "Twice the rows" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "Twice the rows" in capsys.readouterr().err


def test_added_rows_are_said_on_page_card_and_terminal(words, tmp_path, capsys):
    senses = write_jsonl(tmp_path / "synonyms.jsonl", [{"word": "film", "pos": "n", "senses": [["movie"]]}])
    given = words("--augment", "perturb", "--augment-share", "0.5", "--synonyms", str(senses))
    run(given)
    captured = capsys.readouterr()
    said = "Data used: 40 real training rows, and 20 that are copies of them with slips and synonyms"
    assert said in captured.err
    assert said in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert said in (tmp_path / "run" / "model" / "README.md").read_text(encoding="utf-8")
    assert json.loads(captured.out)["rows"]["train"]["used"] == 60
    run(given)  # a finished run is only read
    assert json.loads(capsys.readouterr().out) == json.loads(captured.out)
    with pytest.raises(CheckpointError, match="other settings or added rows"):
        run(words("--augment", "perturb", "--augment-share", "0.25"))


def test_going_on_shows_the_older_task(words, tmp_path, capsys):
    run(words())
    run([*words(out="more")[1:], "--continue", str(tmp_path / "run"), "--max-drop", "1"])
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["is_accepted"]
    page = (tmp_path / "more" / "report.html").read_text(encoding="utf-8")
    assert "What it kept of the old tasks" in page


def test_a_refused_continuation_names_the_rejected_folder_and_needs_no_model(words, tmp_path, sentiment_rows, capsys):
    run(words())
    other = {"positive": "negative", "negative": "positive"}
    rows = write_jsonl(tmp_path / "flipped.jsonl", [{**row, "label": other[row["label"]]} for row in sentiment_rows])
    given = ["--continue", str(tmp_path / "run"), "--train", str(rows), "--validation", str(rows), "--test", str(rows)]
    given += ["--out", str(tmp_path / "more"), "--replay", "0", "--epochs", "8", "--rows", "8", "--lr", "3e-3"]
    run([*given, "--dtype", "float32", "--bootstrap-draws", "200", "--json"])
    captured = capsys.readouterr()
    document = json.loads(captured.out.splitlines()[-1])
    assert not document["is_accepted"]
    assert document["model_dir"] == str(tmp_path / "more" / "model-rejected")
    assert Path(document["model_dir"], "config.json").is_file()
    assert not (tmp_path / "more" / "model").exists()
    assert "model-rejected" in captured.err
    assert "rejected" in (tmp_path / "more" / "report.html").read_text(encoding="utf-8")


def test_the_commands_of_the_guide_work_as_written(tmp_path, sentiment_rows, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_tiny_model("qwen3", tmp_path / "my-model")
    for name in ("train", "test", "new", "new-test"):
        write_jsonl(tmp_path / f"{name}.jsonl", sentiment_rows)
    guide = (Path(__file__).parents[2] / "docs" / "tune.md").read_text(encoding="utf-8")
    lines = [line for line in guide.splitlines() if line.startswith(("chinchilla tune ", "chinchilla merge "))]
    wanted = ("tune text-classification --model", "tune --continue", "merge my-model --adapter runs/sentiment --out")
    for start in wanted:
        (line,) = [line for line in lines if line.startswith(f"chinchilla {start}")]
        assert run_command(shlex.split(line)[1:]) == 0, capsys.readouterr().err
    assert (tmp_path / "runs" / "sentiment" / "report.html").is_file()
    assert (tmp_path / "runs" / "sentiment-2" / "continuation.json").is_file()
    assert (tmp_path / "merged" / "config.json").is_file()
