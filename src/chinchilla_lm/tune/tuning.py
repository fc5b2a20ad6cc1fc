"""One fine-tuning run: rows and a model in; a better model, and the proof that it is better, out.

    before   the untouched model on the test rows, by prompt alone where the task has such a form
    learn    THE loop, validated on the task's metric, stopped early, the best weights restored (`tune.learning`)
    after    the tuned model on the same test rows, and the paired test of the difference

    out/config.toml, env.json, records.jsonl, checkpoints/, best/, predictions/{before,after}.jsonl, model/, tune.json

Killed at any instant, the same call continues; a finished run is only read. Selection never sees the test rows.
"""

from __future__ import annotations

import json
import os
import platform
import random
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from chinchilla_lm import __version__
from chinchilla_lm.core.config import dump_toml, load_toml
from chinchilla_lm.core.errors import CheckpointError
from chinchilla_lm.core.files import read_json, sha256_file, write_json, write_text
from chinchilla_lm.data.labelled import read_rows, rows_for_task, split_rows
from chinchilla_lm.metrics.measures import Measures
from chinchilla_lm.train.loop import StepRecord
from chinchilla_lm.tune.backbone import Backbone, load_backbone
from chinchilla_lm.tune.batches import TaskBatches
from chinchilla_lm.tune.comparison import calibration_of, changed_examples, compare, prediction_lines
from chinchilla_lm.tune.config import TuneConfig
from chinchilla_lm.tune.defaults import resolve, resolve_for_rows
from chinchilla_lm.tune.freezing import choose_parameters, make_optimizer
from chinchilla_lm.tune.learning import Lesson, Progressed, learn
from chinchilla_lm.tune.saving import save_tuned
from chinchilla_lm.tune.task import Prediction, Row, Task, TunedModel, make_task

SCHEMA = "tune/1"


class Display(Protocol):
    """A listener to a run; the terminal's bar is one."""

    def stage(self, name: str, detail: str) -> None:
        """A stage begins, or says something worth a line."""
        ...

    def advance(self, fraction: float, loss: float | None, seconds_left: float | None) -> None:
        """The present stage is so far done."""
        ...


class Silent:
    """A listener that says nothing."""

    def stage(self, name: str, detail: str) -> None:
        """Ignore it."""

    def advance(self, fraction: float, loss: float | None, seconds_left: float | None) -> None:
        """Ignore it."""


@dataclass(frozen=True, kw_only=True)
class TuneResult:
    """A finished run.

    Attributes:
        folder: the run directory; `folder / "model"` is a Hugging Face folder.
        record: tune.json.
    """

    folder: Path
    record: Mapping[str, Any]

    @property
    def value(self) -> float:
        """The primary measure after tuning."""
        return float(self.record["metrics_after"][self.record["metric"]])


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Canonical rows: what is trained on, what decides, and what is only measured.

    Attributes:
        test: the validation rows where the config names no test file; `evaluated_on` then says so.
        counts: for the record: split -> {used, available, file}.
    """

    train: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    test: list[dict[str, Any]]
    evaluated_on: str
    counts: dict[str, dict[str, Any]]


def tune(config: TuneConfig, display: Display | None = None) -> TuneResult:
    """Fine-tune, and compare before with after.

    Args:
        config: what to do; `config.out` is continued where it holds the same run.
        display: told what happens.

    Returns:
        The record. torch's global random state and number of threads are changed.

    Raises:
        ChinchillaError: one line: rows, model or settings that do not fit; a folder of another run; divergence;
            an interruption (state saved).
    """
    display = display or Silent()
    folder = Path(config.out)
    _claim(folder, config)
    if (folder / "tune.json").is_file() and (folder / "model" / "config.json").is_file():
        return TuneResult(folder=folder, record=read_json(folder / "tune.json"))
    torch.set_num_threads(config.threads)
    splits = read_splits(config)
    run, backbone = _prepare(config, splits)
    display.stage("before", f"{len(splits.test)} {splits.evaluated_on} rows, the untouched model")
    before = _evaluate_before(run, backbone, splits, folder, display)
    model, lesson = _make_lesson(run, backbone, splits, has_start=before is not None)
    display.stage("tune", f"{len(splits.train)} rows, {lesson.config.steps} updates, {config.method}")
    state, warnings = learn(lesson, _teller(display, lesson.config))
    calibrate = getattr(run.task, "calibrate", None)  # such as the threshold of "no answer"; never on the test rows
    if calibrate is not None:
        calibrate(_predict(run.task, model, splits.validation, display), splits.validation)
    display.stage("after", f"{len(splits.test)} {splits.evaluated_on} rows, weights of update {state.best_step}")
    after = _predict(run.task, model, splits.test, display)
    _write_predictions(folder, "after", splits.test, after)
    save_tuned(model, run.task, folder / "model", run.config)
    record = _record(replace(run, config=lesson.config), splits, (before, after), (state, warnings))
    record["backbone"] = backbone.form
    record["cost"]["tokens"] = lesson.batches.tokens_until(state.step)
    record["cost"]["trainable_parameters"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    write_json(folder / "tune.json", record)
    display.stage("done", f"{record['metric']} {record['metrics_after'][record['metric']]:.4g}")
    return TuneResult(folder=folder, record=record)


def read_splits(config: TuneConfig) -> Splits:
    """Read, check and draw the rows of a config.

    Raises:
        DataError: a file that cannot be read, or a row that does not fit the task.
    """

    def read(source: str) -> list[dict[str, Any]]:
        return rows_for_task(config.task, read_rows(source), config.columns)

    train = read(config.train)
    counts: dict[str, dict[str, Any]] = {"train": {"available": len(train), "file": config.train}}
    if config.validation is not None:
        validation = read(config.validation)
        counts["validation"] = {"available": len(validation), "file": config.validation}
        validation = draw_rows(validation, config.validation_rows, config.seed)
        train = draw_rows(train, config.train_rows, config.seed)
    else:
        train = draw_rows(train, config.train_rows, config.seed)
        train, validation = split_rows(train, config.validation_fraction, config.seed)
        counts["validation"] = {"available": len(validation), "file": config.train, "remark": "held out of train"}
        validation = draw_rows(validation, config.validation_rows, config.seed)
    test, evaluated_on = validation, "validation"
    if config.test is not None:
        test, evaluated_on = read(config.test), "test"
        counts["test"] = {"available": len(test), "file": config.test}
        test = draw_rows(test, config.test_rows, config.seed)
        counts["test"]["used"] = len(test)
    counts["train"]["used"], counts["validation"]["used"] = len(train), len(validation)
    return Splits(train=train, validation=validation, test=test, evaluated_on=evaluated_on, counts=counts)


def draw_rows(rows: list[dict[str, Any]], count: int | None, seed: int) -> list[dict[str, Any]]:
    """Draw `count` rows by seed, in their order; a larger count has those of a smaller one among them."""
    if count is None or count >= len(rows):
        return rows
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    return [rows[i] for i in sorted(order[:count])]


def prepare_lesson(config: TuneConfig, splits: Splits) -> tuple[Task, Lesson]:
    """Load a config's model and prepare its training alone; a search and a learning curve compare many of these.

    Returns:
        (the task, what `learning.learn` takes; its config is resolved).
    """
    torch.set_num_threads(config.threads)
    run, backbone = _prepare(config, splits)
    _, lesson = _make_lesson(run, backbone, splits, has_start=False)
    return run.task, lesson


# Stages


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What the stages share: the resolved config, why, and the task."""

    config: TuneConfig
    reasons: dict[str, str]
    task: Task
    began: float


def _claim(folder: Path, config: TuneConfig) -> None:
    """Write the config, or check that the folder holds the same run."""
    path = folder / "config.toml"
    if path.is_file():
        found = load_toml(TuneConfig, path)
        if found.fingerprint() != config.fingerprint():
            names = [name for name, value in asdict(found).items() if value != asdict(config)[name]]
            raise CheckpointError(
                f"{folder} holds a tuning with another {', '.join(names)}; write to a new folder, or restore the config"
            )
        return
    write_text(path, dump_toml(config))
    write_json(folder / "env.json", _environment(config))


def _prepare(config: TuneConfig, splits: Splits) -> tuple[_Run, Backbone]:
    began = time.monotonic()
    first, _ = resolve(config, context=1 << 30)  # the number format is needed to load, the context known afterwards
    assert first.device is not None
    backbone = load_backbone(config, dtype=getattr(torch, first.dtype), device=first.device)
    resolved, reasons = resolve(config, context=backbone.context)
    task = make_task(resolved, splits.train, backbone)
    return _Run(config=resolved, reasons=reasons, task=task, began=began), backbone


def _evaluate_before(
    run: _Run, backbone: Backbone, splits: Splits, folder: Path, display: Display
) -> list[Prediction] | None:
    """Ask the untouched model; an answer that an interrupted run has written is read again."""
    path = folder / "predictions" / "before.jsonl"
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines()
        if len(lines) == len(splits.test):
            return [json.loads(line)["prediction"] for line in lines]
    assert isinstance(backbone, torch.nn.Module)
    backbone.eval()
    with torch.no_grad():
        predictions = run.task.zero_shot(backbone, splits.test)
    display.advance(1.0, None, None)
    if predictions is not None:
        _write_predictions(folder, "before", splits.test, predictions)
    return predictions


def _make_lesson(run: _Run, backbone: Backbone, splits: Splits, *, has_start: bool) -> tuple[TunedModel, Lesson]:
    """Build head, parameters to learn, batches and optimizer; the same for the same config and rows."""
    task = run.task
    items = task.encode(splits.train, is_training=True)
    batches = TaskBatches(items, task.collate, rows=run.config.rows, seed=run.config.seed)
    config, reasons = resolve_for_rows(
        run.config, longest=max(item.length for item in items), steps_per_epoch=batches.steps_per_epoch
    )
    run.reasons.update(reasons)
    torch.manual_seed(config.seed)
    head = task.make_head(backbone)
    model = TunedModel(backbone, head if head is None else head.to(backbone.device))
    optimizer = make_optimizer(choose_parameters(model, config), config)
    torch.manual_seed(config.seed)  # dropout does not depend on how many draws the head took

    def validate() -> Measures:
        own = getattr(task, "validate", None)  # generative tasks price all rows, and write answers to some of them
        if own is not None:
            return own(model, splits.validation)
        return task.measure(task.predict(model, splits.validation), splits.validation)

    folder = Path(config.out)
    return model, Lesson(
        config=config,
        model=model,
        optimizer=optimizer,
        batches=batches,
        objective=task.objective,
        validate=validate,
        folder=folder,
        fingerprint=f"{config.fingerprint()}-{_model_name(config)}",
        validates_start=has_start,
    )


def _predict(task: Task, model: TunedModel, rows: Sequence[Row], display: Display) -> list[Prediction]:
    def progress(done: int, total: int) -> None:
        display.advance(done / max(1, total), None, None)

    model.eval()
    with torch.no_grad():
        return task.predict(model, rows, progress)


def _teller(display: Display, config: TuneConfig) -> Callable[[StepRecord, float | None], None]:
    steps = config.steps or 1
    began, first = time.monotonic(), [0]

    def tell(record: StepRecord, value: float | None) -> None:
        first[0] = first[0] or record.step - 1 or 1
        done = max(1, record.step - first[0])
        seconds_left = (time.monotonic() - began) / done * (steps - record.step)
        display.advance(record.step / steps, record.loss, seconds_left)

    return tell


def _model_name(config: TuneConfig) -> str:
    """Name the weights that the run begins with: 8 digits of config.json and the size of each weights file."""
    folder = Path(config.model)
    sizes = [f"{path.name}:{path.stat().st_size}" for path in sorted(folder.glob("*.safetensors"))]
    return f"{sha256_file(folder / 'config.json')[:8]}-{'-'.join(sizes)}"


# Records


def _write_predictions(folder: Path, name: str, rows: Sequence[Row], predictions: Sequence[Prediction]) -> None:
    lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in prediction_lines(rows, predictions))
    write_text(folder / "predictions" / f"{name}.jsonl", "".join(lines))


def _record(
    run: _Run,
    splits: Splits,
    predictions: tuple[list[Prediction] | None, list[Prediction]],
    learned: tuple[Progressed, tuple[str, ...]],
) -> dict[str, Any]:
    config, task, (state, warnings) = run.config, run.task, learned
    before, after = predictions
    before_measures = None if before is None else task.measure(before, splits.test)
    after_measures = task.measure(after, splits.test)
    compared = compare(before_measures, after_measures, draws=config.bootstrap_draws, seed=config.seed)
    examples, counts = [], {}
    calibration = {"after": calibration_of(after, after_measures)}
    if before is not None and before_measures is not None:
        examples, counts = changed_examples(splits.test, (before, before_measures), (after, after_measures))
        calibration = {"before": calibration_of(before, before_measures), **calibration}
    described = task.describe()
    return {
        "schema": SCHEMA,
        "task": config.task,
        "model": config.model,
        "method": config.method,
        "mask": config.mask,
        "head": described.get("head", config.head),
        "hub_class": task.hub_class,
        "evaluated_on": splits.evaluated_on,
        **compared,
        "rows": splits.counts,
        "settings": {name: value for name, value in asdict(config).items() if value is not None},
        "reasons": run.reasons,
        "best": {"step": state.best_step, "value": state.best_value},
        "stopped_at": state.step,
        "curve": "records.jsonl",
        "examples_changed": examples,
        "changed_counts": counts,
        "calibration": {name: found for name, found in calibration.items() if found is not None},
        "cost": {
            "seconds": state.elapsed_seconds,
            "train_seconds": state.train_seconds,
            "targets": state.tokens,
            "updates": state.step,
            "peak_rss_bytes": peak_rss_bytes(),
        },
        "warnings": list(warnings),
        "describe": described,
    }


def peak_rss_bytes() -> int:
    """The most memory this process has held; Linux counts in KiB, macOS in bytes."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _environment(config: TuneConfig) -> dict[str, Any]:
    return {
        "schema": "env/1",
        "version": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "os": platform.platform(),
        "cores": os.cpu_count(),
        "threads": config.threads,
    }
