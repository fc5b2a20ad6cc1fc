"""The whole run: before, training, early stopping, restoring, resuming, records."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from chinchilla_lm.core import files
from chinchilla_lm.core.errors import CheckpointError, DataError
from chinchilla_lm.core.records import read_records
from chinchilla_lm.metrics.measures import Measures
from chinchilla_lm.train.loop import StepRecord
from chinchilla_lm.tune import learning, tuning
from chinchilla_lm.tune.config import TuneConfig
from chinchilla_lm.tune.defaults import doubt_length
from chinchilla_lm.tune.learning import learned_part
from chinchilla_lm.tune.splits import draw_rows
from chinchilla_lm.tune.tuning import tune

from .conftest import write_jsonl

Folder = Callable[[str], Path]


@pytest.fixture
def configure(
    configure: Callable[..., TuneConfig], tmp_path: Path, sentiment_rows: list[dict[str, Any]]
) -> Callable[..., TuneConfig]:
    """Three epochs, a checkpoint at every step, and test rows of their own."""
    test = write_jsonl(tmp_path / "test.jsonl", [{**row, "text": f"so {row['text']}"} for row in sentiment_rows[::2]])
    return functools.partial(configure, test=str(test), epochs=3.0, checkpoint_seconds=0.0, bootstrap_draws=200)


@pytest.mark.parametrize(
    ("kind", "method", "lr", "epochs"),
    [("qwen3", "full", 3e-3, 4), ("llama", "lora", 1e-2, 6), ("gpt2", "full", 3e-3, 6), ("bert", "full", 1e-3, 16)],
)
def test_a_run_gets_better_and_says_so(
    configure: Callable[..., TuneConfig], kind: str, method: str, lr: float, epochs: float
) -> None:
    result = tune(configure(kind, method=method, lr=lr, epochs=float(epochs), evaluate_every=20))
    record = result.record
    assert record["metrics_after"]["accuracy"] >= 0.8
    assert record["schema"] == "tune/1"
    assert (record["metrics_before"] is None) == (kind == "bert")
    if kind != "bert":
        assert record["paired"]["mcnemar"]["fixed"] >= record["paired"]["mcnemar"]["broken"]
        assert record["paired"]["low"] <= record["paired"]["difference"] <= record["paired"]["high"]
    assert record["rows"]["train"] == {"available": 40, "file": record["settings"]["train"], "used": 40}
    lines = [json.loads(line) for line in (result.folder / "predictions" / "after.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == list(range(20))
    steps = read_records(result.folder / "records.jsonl", "step/1")
    assert [step["step"] for step in steps[:3]] == [1, 2, 3]


def test_a_finished_run_is_only_read(configure: Callable[..., TuneConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    (model_config := Path(configure().out) / "model" / "config.json").parent.mkdir(parents=True)
    result = tune(configure(steps=1))
    model_config.write_text("{}") if not model_config.exists() else None
    monkeypatch.setattr(tuning, "load_backbone", lambda *_, **__: pytest.fail("loaded again"))
    assert tune(configure(steps=1)).record == json.loads((result.folder / "tune.json").read_text())


def test_a_finished_run_leaves_its_weights_once_and_the_best_for_a_continuation(
    configure: Callable[..., TuneConfig],
) -> None:
    result = tune(configure(kind="llama"))
    found = {path.relative_to(result.folder).parts[0] for path in result.folder.rglob("*.safetensors")}
    assert found == {"best", "model"}
    assert len(list((result.folder / "best").iterdir())) == 1
    assert not list(result.folder.rglob(".*.tmp"))
    (result.folder / "checkpoints" / "step-000000001").mkdir(parents=True)  # as a kill before their removal leaves them
    tune(configure(kind="llama"))
    assert not (result.folder / "checkpoints").exists()


@pytest.mark.parametrize("method", ["full", "lora"])
def test_what_the_disk_cannot_hold_is_refused_before_the_model_is_asked(
    configure: Callable[..., TuneConfig], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    config = configure(kind="llama", method=method)
    monkeypatch.setattr(files, "free_bytes", lambda path: 10_000)
    with pytest.raises(DataError, match="the model and the states of its tuning need about .* are free"):
        tune(config)
    assert not (Path(config.out) / "predictions").exists()
    monkeypatch.undo()
    assert tune(config).record["metrics_after"]  # after making room the same call goes on


def test_twelve_epochs_and_twelve_point_nought_are_one_run(configure: Callable[..., TuneConfig]) -> None:
    whole, lr = configure(epochs=12, weight_decay=0), 1
    assert whole.fingerprint() == configure(epochs=12.0, weight_decay=0.0).fingerprint()
    assert configure(lr=lr).fingerprint() == configure(lr=float(lr)).fingerprint()
    assert whole.fingerprint() != configure(epochs=12.5, weight_decay=0).fingerprint()
    other_test = configure(test=None, epochs=12, weight_decay=0)
    assert whole.fingerprint() != other_test.fingerprint()
    assert whole.weights_fingerprint() == other_test.weights_fingerprint()
    assert configure(seed=1).weights_fingerprint() != configure(seed=2).weights_fingerprint()


def test_another_config_in_the_same_folder_is_refused(configure: Callable[..., TuneConfig]) -> None:
    tune(configure(steps=1))
    with pytest.raises(CheckpointError, match="another steps"):
        tune(configure(steps=2))


class Killed(BaseException):
    """What a kill is to the process."""


@pytest.mark.parametrize(
    ("kind", "method", "optimizer"),
    [
        ("llama", "full", "adamw"),
        ("qwen3", "lora", "sgd"),
        ("qwen3", "gradual", "adamw"),
        ("bert", "full", "adamw"),
        ("gpt2", "lora", "adamw"),
    ],
)
def test_killed_and_resumed_is_bit_identical(
    configure: Callable[..., TuneConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    method: str,
    optimizer: str,
) -> None:
    """With dropout and validations; of an untied model, whose output matrix never gets a gradient."""
    settings: dict[str, Any] = {"method": method, "optimizer": optimizer, "head": "fresh", "dropout": 0.2}
    settings |= {"kind": kind, "evaluate_every": 2, "patience": 9, "epochs": 2.0}
    monkeypatch.setattr(tuning, "forget_states", lambda folder: None)  # they are compared below
    whole = tune(configure(out=str(tmp_path / "whole"), **settings))
    kills = iter([3, 7])

    def kill_at(step: int) -> Callable[[StepRecord, float | None], None]:
        def tell(record: StepRecord, value: float | None) -> None:
            if record.step == step:
                raise Killed

        return tell

    real_teller = tuning.make_teller
    broken = configure(out=str(tmp_path / "broken"), **settings)
    for step in kills:
        monkeypatch.setattr(tuning, "make_teller", lambda *_, step=step: kill_at(step))
        with pytest.raises(Killed):
            tune(broken)
    monkeypatch.setattr(tuning, "make_teller", real_teller)
    resumed = tune(broken)
    assert resumed.record["metrics_after"] == whole.record["metrics_after"]
    assert resumed.record["best"] == whole.record["best"]
    for folder in ("checkpoints", "best"):
        names = [sorted(path.name for path in (run.folder / folder).iterdir()) for run in (whole, resumed)]
        assert names[0] == names[1]
        for name in names[0]:
            ours, theirs = (load_file(run.folder / folder / name / "weights.safetensors") for run in (whole, resumed))
            assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    curves = [read_records(run.folder / "records.jsonl") for run in (whole, resumed)]
    timeless = [
        [{key: value for key, value in record.items() if "second" not in key and "_per_s" not in key} for record in one]
        for one in curves
    ]
    assert timeless[0] == timeless[1]


@pytest.mark.parametrize(("kind", "form"), [("bert", "hub"), ("gpt2", "hub"), ("qwen3", "own")])
def test_every_part_is_trained_from_the_first_update(
    configure: Callable[..., TuneConfig], monkeypatch: pytest.MonkeyPatch, kind: str, form: str
) -> None:
    """Dropout works before the first validation too: transformers hands its modules over in evaluation mode."""
    config = configure(kind, backbone=form, method="lora", steps=1)
    _, lesson = tuning.prepare_lesson(config, tuning.read_splits(config))
    real, modes = lesson.objective, []

    def objective(model: torch.nn.Module, batch: Any, /) -> Any:
        modes.append({module.training for module in model.modules()})
        return real(model, batch)

    learning.learn(replace(lesson, objective=objective))
    assert modes == [{True}]


def test_the_best_checkpoint_is_really_restored(
    configure: Callable[..., TuneConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation says .1, .5, .9, .3, .2 -> training stops, and the weights are those of the third validation."""
    values, seen = iter([0.1, 0.5, 0.9, 0.3, 0.2]), []
    real_learn = learning.learn

    def learn(lesson: learning.Lesson, tell: Any = None) -> Any:
        def validate() -> Measures:
            part = learned_part(lesson.optimizer, lesson.model)
            seen.append({name: p.detach().clone() for name, p in part.named_parameters()})
            return Measures(values={"accuracy": next(values)}, primary="accuracy")

        result = real_learn(replace(lesson, validate=validate, validates_start=False), tell)
        part = dict(learned_part(lesson.optimizer, lesson.model).named_parameters())
        assert all(torch.equal(part[name], seen[2][name]) for name in part)
        assert any(not torch.equal(part[name], seen[4][name]) for name in part)
        return result

    monkeypatch.setattr(tuning, "learn", learn)
    record = tune(configure(evaluate_every=2, patience=2)).record
    assert record["best"] == {"step": 6, "value": 0.9}
    assert record["stopped_at"] == 10


def test_a_run_killed_between_a_better_validation_and_its_checkpoint_still_ends(
    configure: Callable[..., TuneConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gone on with other threads it may find that validation no better, and what was best before is gone."""
    real_learn, values = learning.learn, iter([0.5, 0.9])

    def learn(lesson: learning.Lesson, tell: Any = None) -> Any:
        def validate() -> Measures:
            return Measures(values={"accuracy": next(values)}, primary="accuracy")

        def killing(record: StepRecord, value: float | None) -> None:
            if value == 0.9:
                raise Killed

        return real_learn(replace(lesson, validate=validate, validates_start=False), killing)

    monkeypatch.setattr(tuning, "learn", learn)
    config = configure(evaluate_every=2, steps=6, patience=9)
    with pytest.raises(Killed):
        tune(config)
    values = iter([0.4, 0.3])
    assert tune(config).record["best"] == {"step": 4, "value": 0.9}


def test_among_equals_the_likelier_is_kept_but_never_for_the_untouched_model(
    configure: Callable[..., TuneConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real_learn = learning.learn

    def run(name: str, measured: list[tuple[float, float]], validates_start: bool) -> dict[str, Any]:
        values = iter(measured)

        def learn(lesson: learning.Lesson, tell: Any = None) -> Any:
            def validate() -> Measures:
                accuracy, nll = next(values)
                return Measures(values={"accuracy": accuracy, "nll": nll}, primary="accuracy")

            return real_learn(replace(lesson, validate=validate, validates_start=validates_start), tell)

        monkeypatch.setattr(tuning, "learn", learn)
        return tune(configure(out=str(tmp_path / name), evaluate_every=2, steps=6, patience=9)).record

    assert run("a", [(0.8, 0.5), (0.8, 0.4), (0.8, 0.6)], False)["best"] == {"step": 4, "value": 0.8}
    assert run("b", [(0.8, 0.5), (0.8, 0.4), (0.8, 0.3), (0.7, 0.1)], True)["best"] == {"step": 0, "value": 0.8}


def test_own_and_hub_take_the_same_path(configure: Callable[..., TuneConfig], tmp_path: Path) -> None:
    curves = []
    for form in ("own", "hub"):
        result = tune(configure(backbone=form, out=str(tmp_path / form), epochs=2.0))
        curves.append([step["loss"] for step in read_records(result.folder / "records.jsonl", "step/1")])
    np.testing.assert_allclose(curves[0], curves[1], rtol=2e-3)


def test_micro_batches_change_nothing(configure: Callable[..., TuneConfig], tmp_path: Path) -> None:
    curves = []
    for size in (8, 3, 1):
        result = tune(configure(micro_batch=size, out=str(tmp_path / str(size)), steps=4))
        records = read_records(result.folder / "records.jsonl", "step/1")
        curves.append([(step["loss"], step["grad_norm"]) for step in records])
    np.testing.assert_allclose(curves[0], curves[1], rtol=1e-4)
    np.testing.assert_allclose(curves[0], curves[2], rtol=1e-4)


def test_drawn_rows_are_nested() -> None:
    rows = [{"text": str(i)} for i in range(50)]
    small, large = draw_rows(rows, 10, 3), draw_rows(rows, 20, 3)
    assert len(small) == 10
    assert all(row in large for row in small)
    assert [int(row["text"]) for row in small] == sorted(int(row["text"]) for row in small)


def test_a_tokenizer_of_the_model_is_not_changed(configure: Callable[..., TuneConfig], tiny_folder: Folder) -> None:
    before = (tiny_folder("qwen3") / "tokenizer.json").read_bytes()
    tune(configure(steps=1))
    assert (tiny_folder("qwen3") / "tokenizer.json").read_bytes() == before
    assert AutoTokenizer.from_pretrained(tiny_folder("qwen3"))("a")["input_ids"]


def test_a_head_from_noise_with_few_updates_is_doubted(configure: Callable[..., TuneConfig], tmp_path: Path) -> None:
    row = {"question": "who ?", "context": "the cat sat", "answers": [{"text": "cat", "start": 4}]}
    files = dict.fromkeys(("train", "validation", "test"), str(write_jsonl(tmp_path / "asked.jsonl", [row] * 2)))
    config = configure(task="question-answering", head="span", rows=2, steps=3, max_tokens=64, **files)
    doubts = [said for said in tune(config).record["warnings"] if "updates" in said]
    assert len(doubts) == 1
    assert doubts[0].startswith("3 updates are few for a head that starts from noise")
    assert doubts[0].endswith("(rows = 1)")
    long = configure(steps=100)
    assert doubt_length(long, "span", 100) == ()
    assert doubt_length(long, "span", 20) == ()  # it stopped early, so it had learnt what it could
    assert doubt_length(config, "label-words", 3) == ()
