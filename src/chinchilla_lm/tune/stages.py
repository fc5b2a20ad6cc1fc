"""What every kind of run does: it claims its folder, tells who listens, asks the model, writes answers and the record.

`tuning` runs them once; `continual` for a run that goes on from another.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch

from chinchilla_lm import __version__
from chinchilla_lm.core.config import dump_toml, load_toml
from chinchilla_lm.core.errors import CheckpointError
from chinchilla_lm.core.files import read_json, sha256_file, write_json, write_text
from chinchilla_lm.metrics.measures import Measures
from chinchilla_lm.train.loop import StepRecord
from chinchilla_lm.tune.comparison import (
    calibration_of,
    changed_examples,
    compare,
    describe_row,
    prediction_lines,
)
from chinchilla_lm.tune.config import TuneConfig
from chinchilla_lm.tune.learning import Lesson, Progressed
from chinchilla_lm.tune.row_warnings import row_warnings
from chinchilla_lm.tune.splits import Splits
from chinchilla_lm.tune.task import Prediction, Row, Task, TunedModel

SCHEMA = "tune/1"
SOURCES_FILE = "sources.json"
_SAMPLES, _SAMPLE_BYTES = 64, 1 << 14


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


def claim_folder(folder: Path, config: TuneConfig) -> None:
    """Write sources.json, env.json and config.toml, or check that the folder holds the same run of the same rows.

    Raises:
        CheckpointError: it holds another one; the settings that differ, or the file that has changed, are named.
    """
    path = folder / "config.toml"
    if path.is_file():
        found = load_toml(TuneConfig, path)
        if found.fingerprint() != config.fingerprint():
            names = [name for name, value in asdict(found).items() if value != asdict(config)[name]]
            raise CheckpointError(
                f"{folder} holds a tuning with another {', '.join(names)}; write to a new folder, or restore the config"
            )
    claim_sources(folder, config)
    if not path.is_file():
        write_json(folder / "env.json", _environment(config))
        write_text(path, dump_toml(config))  # the last: from here on the folder is claimed


def claim_sources(folder: Path, config: TuneConfig) -> None:
    """Write sources.json, or check that the rows and the model of a run are those that it began with.

    Raises:
        CheckpointError: a file has changed since: going on would mix two sets of rows or two models, and a finished run
            tells of the older one.
    """
    path = folder / SOURCES_FILE
    sources = {name: getattr(config, name) for name in ("model", "train", "validation", "test")}
    files = {name: Path(source).expanduser() for name, source in sources.items() if source is not None}
    digests = {name: sha256_file(file) for name, file in files.items() if file.is_file()}  # hf:NAME has no file
    if (files["model"] / "config.json").is_file():
        digests["model"] = model_digest(files["model"])
    if not path.is_file():
        write_json(path, {"schema": "sources/1", **digests})
        return
    began_with = read_json(path)
    for name, digest in digests.items():
        if began_with.get(name, digest) != digest:
            raise CheckpointError(
                f"{sources[name]} has changed since {folder} began with it; write to a new folder, or restore the file"
            )


def model_digest(folder: Path) -> str:
    """Name the weights of a model folder: 64 hex digits of config.json and of samples of each weights file.

    Whole files would take seconds a gigabyte at each start; other weights differ in every sample.
    """
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}".encode())
        with path.open("rb") as stream:
            for place in range(_SAMPLES):
                stream.seek(size * place // _SAMPLES)
                digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def predict_rows(task: Task, model: TunedModel, rows: Sequence[Row], display: Display) -> list[Prediction]:
    """Ask a model, in evaluation mode, of every row; one prediction each, in their order."""

    def progress(done: int, total: int) -> None:
        display.advance(done / max(1, total), None, None)

    model.eval()
    with torch.no_grad():
        return task.predict(model, rows, progress)


def make_teller(display: Display, config: TuneConfig) -> Callable[[StepRecord, float | None], None]:
    """Return a listener for `learning.learn` that tells a display how far it is.

    Args:
        display: told of every update.
        config: resolved, so that its number of updates is known.
    """
    steps = config.steps or 1
    began, first = time.monotonic(), [0]

    def tell(record: StepRecord, value: float | None) -> None:
        first[0] = first[0] or record.step - 1 or 1
        done = max(1, record.step - first[0])
        seconds_left = (time.monotonic() - began) / done * (steps - record.step)
        display.advance(record.step / steps, record.loss, seconds_left)

    return tell


def validate_rows(task: Task, model: TunedModel, rows: Sequence[Row]) -> Measures:
    """Measure a model on validation rows, in evaluation mode, as early stopping goes by it.

    A task's own `validate` decides where it has one: generative tasks price all rows and write answers to some of them.
    """
    model.eval()
    with torch.no_grad():
        own = getattr(task, "validate", None)
        return task.measure(task.predict(model, rows), rows) if own is None else own(model, rows)


def predict_before(
    folder: Path, rows: Sequence[Row], ask: Callable[[], list[Prediction] | None]
) -> list[Prediction] | None:
    """Read what an interrupted run has written of the model before training; else ask it, and write that.

    Args:
        folder: the run directory.
        rows: asked about.
        ask: one prediction a row; None where the task has no answer before training.
    """
    written = read_predictions(folder / "predictions" / "before.jsonl", rows)
    if written is not None:
        return written
    predictions = ask()
    if predictions is not None:
        write_predictions(folder, "before", rows, predictions)
    return predictions


def write_predictions(folder: Path, name: str, rows: Sequence[Row], predictions: Sequence[Prediction]) -> None:
    """Write folder/predictions/NAME.jsonl, one line a row."""
    lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in prediction_lines(rows, predictions))
    write_text(folder / "predictions" / f"{name}.jsonl", "".join(lines))


def read_predictions(path: Path, rows: Sequence[Row]) -> list[Prediction] | None:
    """Read what `write_predictions` wrote for these rows; None where it is absent or of other rows."""
    if not path.is_file():
        return None
    # Not splitlines(): a text may hold U+2028, which JSON leaves as it is.
    written = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    if len(written) != len(rows):
        return None
    for number, (line, row) in enumerate(zip(written, rows, strict=True)):
        described = json.loads(json.dumps(describe_row(number, row)))
        if any(line[name] != value for name, value in described.items()):
            return None
    return [line["prediction"] for line in written]


def make_record(
    lesson: Lesson,
    task: Task,
    splits: Splits,
    predictions: tuple[list[Prediction] | None, list[Prediction]],
    learned: tuple[Progressed, tuple[str, ...]],
    reasons: Mapping[str, str],
) -> dict[str, Any]:
    """Return tune.json of a finished training.

    Args:
        lesson: its model has the chosen weights.
        task: measures the predictions.
        splits: whose test rows were asked.
        predictions: before (None: the untouched model has no answer) and after, on the test rows.
        learned: of `learning.learn`: where it ended, and its warnings.
        reasons: setting -> why it has its value.
    """
    config, (state, warnings) = lesson.config, learned
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
        "backbone": lesson.model.backbone.form,
        "evaluated_on": splits.evaluated_on,
        **compared,
        "rows": splits.counts,
        "settings": {name: value for name, value in asdict(config).items() if value is not None},
        "reasons": dict(reasons),
        "best": {"step": state.best_step, "value": state.best_value},
        "stopped_at": state.step,
        "curve": "records.jsonl",
        "examples_changed": examples,
        "changed_counts": counts,
        "calibration": {name: found for name, found in calibration.items() if found is not None},
        "cost": _cost(lesson, state),
        "warnings": [*warnings, *row_warnings(splits, task.labels, lesson.batches.items, described)],
        "describe": described,
    }


def _cost(lesson: Lesson, state: Progressed) -> dict[str, Any]:
    return {
        "seconds": state.elapsed_seconds,
        "train_seconds": state.train_seconds,
        "targets": state.tokens,
        "updates": state.step,
        "tokens": lesson.batches.tokens_until(state.step),
        "trainable_parameters": sum(p.numel() for p in lesson.model.parameters() if p.requires_grad),
        "peak_rss_bytes": _peak_rss_bytes(),
    }


def _peak_rss_bytes() -> int:
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
