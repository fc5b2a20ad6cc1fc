"""Tuning on: what a run ended with comes back exactly, forgetting is measured, and the gate decides."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from chinchilla_lm.core.errors import CheckpointError, ConfigError
from chinchilla_lm.tune import classification
from chinchilla_lm.tune.config import TuneConfig
from chinchilla_lm.tune.continual import ContinueSettings, continue_tuning, forgetting, older_tasks
from chinchilla_lm.tune.loading import load_tuned
from chinchilla_lm.tune.tuning import tune

pytest.importorskip("transformers")


def sentiments() -> list[dict[str, Any]]:
    words = {"positive": ("warm", "funny", "great", "good"), "negative": ("dull", "boring", "terrible", "bad")}
    subjects = ("film", "story", "game", "play", "book")
    return [
        {"text": f"a {word} {subject}", "label": label}
        for label in words
        for word in words[label]
        for subject in subjects
    ]


@pytest.fixture
def topic_rows() -> list[dict[str, Any]]:
    lines = [("the team won the {} game", "sports"), ("shares fell at the {} bank", "business")]
    words = ("final", "good", "bad", "great", "sunday", "dull", "river", "funny", "profit", "warm")
    return [{"text": line.format(word), "label": label} for line, label in lines for word in words]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def first_run(tiny_folder, tmp_path_factory) -> TuneConfig:
    """A finished tuning on sentiments; read-only."""
    folder = tmp_path_factory.mktemp("first")
    rows = write_jsonl(folder / "old.jsonl", sentiments())
    config = TuneConfig(
        task="text-classification",
        model=str(tiny_folder("qwen3")),
        train=rows,
        validation=rows,
        test=rows,
        out=str(folder / "first"),
        template="{text} :",
        rows=8,
        epochs=12.0,
        lr=5e-3,
        dtype="float32",
        patience=0,
        bootstrap_draws=100,
    )
    tune(config)
    return config


def probabilities(run: Any) -> torch.Tensor:
    with torch.no_grad():
        return torch.tensor([each["probabilities"] for each in run.task.predict(run.model, run.splits.test)])


def test_a_run_s_end_comes_back_exactly(first_run):
    run = load_tuned(Path(first_run.out))
    lines = (Path(first_run.out) / "predictions" / "after.jsonl").read_text().splitlines()
    expected = torch.tensor([json.loads(line)["prediction"]["probabilities"] for line in lines])
    assert torch.equal(probabilities(run), expected)
    with pytest.raises(CheckpointError, match="no finished tuning"):
        load_tuned(Path(first_run.model))


def test_new_labels_and_rows_are_learned_in_a_chain_that_loads(first_run, topic_rows, tmp_path):
    rows = write_jsonl(tmp_path / "new.jsonl", topic_rows)
    config = replace(first_run, train=rows, validation=rows, test=rows, out=str(tmp_path / "second"))
    result = continue_tuning(
        Path(first_run.out), config, settings=ContinueSettings(replay=1.0, has_new_adapter=True, max_drop=1.0)
    )
    table = result.record["continual"]
    assert table["is_accepted"]
    assert (tmp_path / "second" / "model" / "config.json").is_file()
    assert [each["name"] for each in table["tasks"]] == ["first"]
    assert result.value > result.record["metrics_before"]["accuracy"]
    assert result.value > 0.8
    second = load_tuned(tmp_path / "second")
    assert second.task.labels == ("business", "negative", "positive", "sports")
    assert (
        second.task.measure(second.task.predict(second.model, second.splits.test), second.splits.test).value
        == result.value
    )
    again = continue_tuning(
        Path(first_run.out), config, settings=ContinueSettings(replay=1.0, has_new_adapter=True, max_drop=1.0)
    )
    assert again.record == result.record  # a finished run is only read
    third = continue_tuning(
        tmp_path / "second",
        replace(config, epochs=1.0, lr=1e-4, out=str(tmp_path / "third")),
        settings=ContinueSettings(pull=1.0, max_drop=1.0),
    )
    olds = third.record["continual"]["tasks"]
    assert [(each["name"], len(each["history"])) for each in olds] == [("first", 3), ("second", 2)]
    assert third.record["continual"]["forgetting"] == pytest.approx(
        sum(max(each["history"]) - each["history"][-1] for each in olds) / 2
    )
    assert [old.name for old in older_tasks(load_tuned(tmp_path / "third"))] == ["first", "second", "third"]


def test_prompt_and_head_stay_those_of_the_first_run_and_runs_of_one_name_are_two(
    first_run, topic_rows, tmp_path, monkeypatch
):
    """By rule the new labels would change the prompt, and the number of rows the head."""
    rows = [write_jsonl(tmp_path / f"{n}.jsonl", each) for n, each in enumerate((sentiments(), topic_rows))]
    configs = [
        replace(first_run, template=None, train=path, validation=path, test=path, steps=2, out=str(tmp_path / place))
        for path, place in zip((*rows, rows[1]), ("a/run", "b/run", "c/run"), strict=True)
    ]
    first = tune(configs[0]).record
    assert first["describe"]["template"] == "Review: {text}\nSentiment:"
    monkeypatch.setattr(classification, "LABEL_WORDS_BELOW_ROWS", 50)
    keep_all = ContinueSettings(max_drop=1.0)
    second = continue_tuning(tmp_path / "a/run", configs[1], settings=keep_all).record
    assert second["describe"]["labels"] == ["business", "negative", "positive", "sports"]
    for name in ("template", "head"):
        assert second["describe"][name] == first["describe"][name]
    third = continue_tuning(tmp_path / "b/run", configs[2], settings=keep_all).record
    histories = [each["history"] for each in third["continual"]["tasks"]]
    assert [len(history) for history in histories] == [3, 2]
    assert [history[0] for history in histories] == [each["metrics_after"]["accuracy"] for each in (first, second)]


def test_contradicting_rows_are_rejected_by_the_gate_and_replay_forgets_less(first_run, tmp_path):
    other = {"positive": "negative", "negative": "positive"}
    flipped = [{**row, "label": other[row["label"]]} for row in sentiments()[::3]]
    rows = write_jsonl(tmp_path / "flipped.jsonl", flipped)
    lost = []
    for name, settings in (
        ("plain", ContinueSettings(replay=0.0)),
        ("replayed", ContinueSettings(replay=1.0)),
        ("pulled", ContinueSettings(replay=0.0, pull=1e3)),
        ("averaged", ContinueSettings(replay=0.0, averages=True)),
    ):
        out = tmp_path / name
        config = replace(first_run, train=rows, validation=rows, test=rows, out=str(out), epochs=6.0)
        record = continue_tuning(Path(first_run.out), config, settings=settings).record["continual"]
        lost.append(record["forgetting"])
        assert (out / ("model" if record["is_accepted"] else "model-rejected") / "config.json").is_file()
        assert record["is_accepted"] == (record["tasks"][0]["drop"] <= 0.01)
    assert lost[0] > 0.2
    assert not record_of(tmp_path / "plain")["is_accepted"]
    assert all(other < lost[0] for other in lost[1:])
    assert record_of(tmp_path / "averaged")["is_accepted"]
    assert record_of(tmp_path / "averaged")["share_of_new_weights"] < 1
    loaded = load_tuned(tmp_path / "averaged")  # the averaged weights, not the best checkpoint
    assert older_tasks(loaded)[0].history[-1] == record_of(tmp_path / "averaged")["tasks"][0]["after"]


def record_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "tune.json").read_text())["continual"]


def test_forgetting_is_the_mean_of_the_drops_from_the_best():
    assert forgetting([([0.9, 0.7], True), ([0.5, 0.8, 0.6], True)]) == pytest.approx((0.2 + 0.2) / 2)
    assert forgetting([([2.0, 1.0, 1.5], False)]) == pytest.approx(0.5)
    assert forgetting([]) == 0.0


def test_what_cannot_be_continued_is_refused(first_run, tmp_path):
    for config, run, match in (
        (replace(first_run, task="token-classification", out="o"), first_run.out, "must be that of"),
        (first_run, first_run.out, "write to a new folder"),
    ):
        with pytest.raises(ConfigError, match=match):
            continue_tuning(Path(run), config)
    with pytest.raises(ConfigError, match="replay"):
        continue_tuning(Path(first_run.out), first_run, settings=ContinueSettings(replay=2.0))


def test_a_generative_task_goes_on_by_the_choice_that_its_first_run_went_by(tiny_folder, tmp_path):
    rows = write_jsonl(tmp_path / "pairs.jsonl", [{"source": "good books", "target": "你好"}] * 4)
    config = TuneConfig(
        task="translation",
        model=str(tiny_folder("qwen3")),
        train=rows,
        validation=rows,
        test=rows,
        out=str(tmp_path / "first"),
        steps=2,
        rows=4,
        dtype="float32",
        max_new_tokens=3,
        bootstrap_draws=100,
    )
    tune(config)
    continue_tuning(Path(config.out), replace(config, out=str(tmp_path / "second")))
    for name in ("first", "second"):
        lines = [json.loads(line) for line in (tmp_path / name / "records.jsonl").read_text().splitlines()]
        chosen = [line for line in lines if line["schema"] == "evaluation/1"]
        assert chosen
        assert all(line["value"] == line["metrics"]["choice"] for line in chosen), name
