"""One fine-tuning run: rows and a model in; a better model, and the proof that it is better, out.

    before   the untouched model on the test rows, by prompt alone where the task has such a form
    learn    THE loop, validated on the task's metric, stopped early, the best weights restored (`tune.learning`)
    after    the tuned model on the same test rows, and the paired test of the difference

    out/config.toml, sources.json, env.json, records.jsonl, best/, predictions/{before,after}.jsonl, model/, tune.json;
        checkpoints/ until the run is finished

Killed at any instant, the same call continues; a finished run is only read. Selection never sees the test rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from chinchilla_lm.core.files import read_json, require_space, write_json
from chinchilla_lm.tune.backbone import Backbone, load_backbone
from chinchilla_lm.tune.batches import TaskBatches
from chinchilla_lm.tune.config import TuneConfig
from chinchilla_lm.tune.defaults import doubt_length, resolve, resolve_for_rows
from chinchilla_lm.tune.freezing import choose_parameters, make_optimizer
from chinchilla_lm.tune.learning import Lesson, forget_states, learn
from chinchilla_lm.tune.saving import save_tuned
from chinchilla_lm.tune.splits import Splits, read_splits
from chinchilla_lm.tune.stages import (
    Display,
    Silent,
    claim_folder,
    make_record,
    make_teller,
    model_digest,
    predict_before,
    predict_rows,
    validate_rows,
    write_predictions,
)
from chinchilla_lm.tune.task import Prediction, Task, TunedModel, make_task


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
    claim_folder(folder, config)
    if (folder / "tune.json").is_file() and (folder / "model" / "config.json").is_file():
        forget_states(folder)
        return TuneResult(folder=folder, record=read_json(folder / "tune.json"))
    torch.set_num_threads(config.threads)
    splits = read_splits(config)
    run, backbone = _prepare(config, splits)
    if not (folder / "checkpoints").is_dir():
        _require_room(folder, run.config, backbone)
    display.stage("before", f"{len(splits.test)} {splits.evaluated_on} rows, the untouched model")
    before = predict_before(folder, splits.test, lambda: _ask_untouched(run.task, backbone, splits))
    display.advance(1.0, None, None)
    model, lesson = _make_lesson(run, backbone, splits, has_start=before is not None)
    display.stage("tune", f"{len(splits.train)} rows, {lesson.config.steps} updates, {config.method}")
    state, warnings = learn(lesson, make_teller(display, lesson.config))
    calibrate = getattr(run.task, "calibrate", None)  # such as the threshold of "no answer"; never on the test rows
    if calibrate is not None:
        calibrate(predict_rows(run.task, model, splits.validation, display), splits.validation)
    display.stage("after", f"{len(splits.test)} {splits.evaluated_on} rows, weights of update {state.best_step}")
    after = predict_rows(run.task, model, splits.test, display)
    write_predictions(folder, "after", splits.test, after)
    save_tuned(model, run.task, folder / "model", run.config)
    warnings = (*warnings, *doubt_length(lesson.config, str(run.task.describe().get("head")), state.step))
    record = make_record(lesson, run.task, splits, (before, after), (state, warnings), run.reasons)
    write_json(folder / "tune.json", record)
    forget_states(folder)
    display.stage("done", f"{record['metric']} {record['metrics_after'][record['metric']]:.4g}")
    return TuneResult(folder=folder, record=record)


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


def _prepare(config: TuneConfig, splits: Splits) -> tuple[_Run, Backbone]:
    first, _ = resolve(config, context=1 << 30)  # the number format is needed to load, the context known afterwards
    assert first.device is not None
    backbone = load_backbone(config, dtype=getattr(torch, first.dtype), device=first.device)
    resolved, reasons = resolve(config, context=backbone.context)
    task = make_task(resolved, splits.train, backbone)
    return _Run(config=resolved, reasons=reasons, task=task), backbone


def _require_room(folder: Path, config: TuneConfig, backbone: Backbone) -> None:
    """Refuse before the untouched model is asked what `learn` would refuse later; an adapter's model/ is large too."""
    assert isinstance(backbone, torch.nn.Module)
    weights = sum(parameter.nbytes for parameter in backbone.parameters())
    moments = 2 if config.optimizer == "adamw" else 1
    copies = 3 * (1 + moments) + 2 if config.method == "full" else 1  # three states and two best ones, or model/
    require_space(folder, copies * weights, "the model and the states of its tuning")


def _ask_untouched(task: Task, backbone: Backbone, splits: Splits) -> list[Prediction] | None:
    assert isinstance(backbone, torch.nn.Module)
    backbone.eval()
    with torch.no_grad():
        return task.zero_shot(backbone, splits.test)


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

    folder = Path(config.out)
    return model, Lesson(
        config=config,
        model=model,
        optimizer=optimizer,
        batches=batches,
        objective=task.objective,
        validate=lambda: validate_rows(task, model, splits.validation),
        folder=folder,
        fingerprint=f"{config.weights_fingerprint()}-{model_digest(Path(config.model))[:16]}",
        validates_start=has_start,
    )
