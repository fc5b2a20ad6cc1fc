"""Tuning on: new rows for a model that was tuned before, without losing what it could.

    replay         a share of the older runs' training rows among the new ones, and of the validation rows too
    L2-SP          a pull back to the old weights at every update
    averaging      as far from the old to the new weights as the older validation rows allow
    new adapter    the old LoRA merged, a new one trained
    gate           every older task is measured again on its own test rows; one that drops by more than `max_drop`, and
                   the result is written to model-rejected/ in place of model/

Forgetting F = mean over older tasks i of max_t a_(i,t) - a_(i,T), a the task's measure after run t, T this run
(Chaudhry et al. 2018, section 3.1, with the mean over all older tasks).

    out/ as `tuning.tune` writes it, continuation.json (from which run, how), final/ with averaged weights, and in
    tune.json "continual": sentence, forgetting, is_accepted, tasks [{run, name, metric, before, after, forgotten,
    history}]
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chinchilla_lm.core.config import load_toml
from chinchilla_lm.core.errors import CheckpointError, ConfigError
from chinchilla_lm.core.files import read_json, sha256_file, write_json
from chinchilla_lm.metrics.measures import Measures
from chinchilla_lm.train.checkpoint import save_checkpoint
from chinchilla_lm.tune.batches import TaskBatches
from chinchilla_lm.tune.config import TuneConfig
from chinchilla_lm.tune.defaults import resolve_for_rows
from chinchilla_lm.tune.freezing import choose_parameters, make_optimizer
from chinchilla_lm.tune.learning import Lesson, Progressed, forget_states, learn, learned_part
from chinchilla_lm.tune.loading import (
    CONTINUATION_FILE,
    ContinueSettings,
    LoadedRun,
    continued_config,
    grow_model,
    load_tuned,
)
from chinchilla_lm.tune.saving import save_tuned
from chinchilla_lm.tune.splits import Splits, draw_rows, read_splits
from chinchilla_lm.tune.stages import (
    Display,
    Silent,
    claim_folder,
    make_record,
    make_teller,
    predict_before,
    predict_rows,
    validate_rows,
    write_predictions,
)
from chinchilla_lm.tune.task import Task, TunedModel
from chinchilla_lm.tune.tuning import TuneResult

_SHARES = (1.0, 0.75, 0.5, 0.25)
"""How far averaging may go from the old weights (0) to the new ones (1); tried from the farthest."""


def continue_tuning(
    run: Path, config: TuneConfig, display: Display | None = None, settings: ContinueSettings | None = None
) -> TuneResult:
    """Tune a run's model on with new rows, and measure every older task again.

    Args:
        run: directory of a finished tuning, or of a continuation of one.
        config: new rows, `out`, and training settings; model, head and prompt are those of `run`.
        display: told what happens.
        settings: against forgetting, and the gate.

    Returns:
        The record; `record["continual"]["is_accepted"]` says what the gate says.

    Raises:
        ChinchillaError: one line: an unfinished run, another task, rows that do not fit; see `tuning.tune`.
    """
    display, settings = display or Silent(), settings or ContinueSettings()
    _check_settings(settings)
    folder = Path(config.out)
    old_config = load_toml(TuneConfig, run / "config.toml")
    if config.task != old_config.task:
        raise ConfigError(
            f"task = {config.task!r} must be that of {run}, {old_config.task!r}; for another task write --model "
            f"{run / 'model'}"
        )
    config = continued_config(old_config, config, settings)
    _claim(folder, run, config, settings)
    if (folder / "tune.json").is_file():
        forget_states(folder)
        return TuneResult(folder=folder, record=read_json(folder / "tune.json"))
    torch.set_num_threads(config.threads)
    parent = load_tuned(run)
    lesson, task, splits = _make_lesson(parent, config, settings)
    display.stage("before", f"{len(splits.test)} {splits.evaluated_on} rows, the old model")
    before = predict_before(folder, splits.test, lambda: predict_rows(task, lesson.model, splits.test, display))
    start = {name: p.detach().clone() for name, p in lesson.model.named_parameters() if p.requires_grad}
    if settings.pull:
        _pull_back(lesson, start, settings.pull)
    display.stage("tune", f"{len(splits.train)} new rows, {lesson.config.steps} updates, {config.method}")
    state, warnings = learn(lesson, make_teller(display, lesson.config))
    share = _average(lesson, task, parent, start, state, settings) if settings.averages else 1.0
    display.stage("after", f"{len(splits.test)} {splits.evaluated_on} rows, and the older tasks")
    after = predict_rows(task, lesson.model, splits.test, display)
    write_predictions(folder, "after", splits.test, after)
    table = _measure_older(parent, task, lesson.model, settings, display) | {"share_of_new_weights": share}
    record = make_record(lesson, task, splits, (before, after), (state, warnings), {}) | {"continual": table}
    save_tuned(lesson.model, task, folder / ("model" if table["is_accepted"] else "model-rejected"), lesson.config)
    write_json(folder / "tune.json", record)
    forget_states(folder)
    display.stage("done", str(table["sentence"]))
    return TuneResult(folder=folder, record=record)


@dataclass(frozen=True, kw_only=True)
class OldTask:
    """One run of the chain that leads here: its test rows, and what was measured on them after each run since.

    Attributes:
        run: its run directory.
        name: the last part of that.
        metric: the measure that counts.
        higher_is_better: of it.
        rows: its test rows.
        history: the measure after its own run and after each later one.
    """

    run: str
    name: str
    metric: str
    higher_is_better: bool
    rows: list[dict[str, Any]]
    history: list[float]


def older_tasks(run: LoadedRun) -> list[OldTask]:
    """Every task that a run's model has learned, oldest first."""
    # Not by name: two runs of a chain may lie in folders of one name.
    older = run.record.get("continual", {}).get("tasks", [])
    measured = {each.get("run", each["name"]): each["history"] for each in older}  # records before 2026-11-22: by name
    tasks, folder, splits, record = [], run.folder, run.splits, run.record
    while True:
        own = [record["metrics_after"][record["metric"]]]
        history = measured.get(_path_of(folder)) or measured.get(folder.name, own)
        tasks.append(
            OldTask(
                run=_path_of(folder),
                name=Path(_path_of(folder)).name,
                metric=record["metric"],
                higher_is_better=record["higher_is_better"],
                rows=splits.test,
                history=list(history),
            )
        )
        if not (folder / CONTINUATION_FILE).is_file():
            return tasks[::-1]
        folder = Path(read_json(folder / CONTINUATION_FILE)["run"])
        splits = read_splits(load_toml(TuneConfig, folder / "config.toml"))
        record = read_json(folder / "tune.json")


def forgetting(histories: list[tuple[list[float], bool]]) -> float:
    """F = mean over tasks of the best value so far less the last one, in the measure's unit; 0 without tasks.

    Args:
        histories: (values after each run, the last one now; whether higher is better) of each older task.

    Source: Chaudhry et al. 2018 (Riemannian Walk), section 3.1.
    """
    drops = [max(values) - values[-1] if is_higher else values[-1] - min(values) for values, is_higher in histories]
    return sum(drops) / len(drops) if drops else 0.0


# Stages


def _check_settings(settings: ContinueSettings) -> None:
    if not (0 <= settings.replay <= 1 and 0 <= settings.pull < math.inf and settings.max_drop >= 0):
        raise ConfigError(
            f"replay = {settings.replay} must lie in [0, 1], pull = {settings.pull} and max_drop = {settings.max_drop} "
            "must be >= 0; 0.1, 0 and 0.01 are the defaults"
        )


def _claim(folder: Path, run: Path, config: TuneConfig, settings: ContinueSettings) -> None:
    """Write config and continuation, or check that the folder holds the same."""
    if folder.resolve() == run.resolve():
        raise ConfigError(f"out = {folder} is the run to continue; write to a new folder")
    said = {"schema": "continuation/1", "run": str(run.resolve()), "settings": asdict(settings)}
    said["tune_json"] = sha256_file(run / "tune.json") if (run / "tune.json").is_file() else ""
    path = folder / CONTINUATION_FILE
    if path.is_file() and read_json(path) != said:
        raise CheckpointError(f"{folder} continues another run or in another way; write to a new folder")
    claim_folder(folder, config)
    write_json(path, said)


def _make_lesson(parent: LoadedRun, config: TuneConfig, settings: ContinueSettings) -> tuple[Lesson, Task, Splits]:
    """New rows and replayed ones, the old weights, an optimizer; the same for the same folders."""
    splits = read_splits(config)
    old_rows = parent.train_rows
    replayed = draw_rows(old_rows, math.ceil(settings.replay * len(old_rows)), config.seed)
    old_validation = parent.splits.validation  # the same share of it: what is to be kept takes part in every choice
    kept = draw_rows(old_validation, math.ceil(settings.replay * len(old_validation)), config.seed)
    validation = [*splits.validation, *kept]
    model, task, resolved = grow_model(parent, config, splits.train, settings)
    items = task.encode([*splits.train, *replayed], is_training=True)
    batches = TaskBatches(items, task.collate, rows=resolved.rows, seed=resolved.seed)
    resolved, _ = resolve_for_rows(
        resolved, longest=max(item.length for item in items), steps_per_epoch=batches.steps_per_epoch
    )
    optimizer = make_optimizer(choose_parameters(model, resolved), resolved)
    torch.manual_seed(resolved.seed)

    splits.counts["replayed"] = {"used": len(replayed), "available": len(old_rows)}
    lesson = Lesson(
        config=resolved,
        model=model,
        optimizer=optimizer,
        batches=batches,
        objective=task.objective,
        validate=lambda: validate_rows(task, model, validation),
        folder=Path(config.out),
        fingerprint=f"{config.fingerprint()}-{sha256_file(parent.folder / 'tune.json')[:8]}-{settings}",
        validates_start=True,
    )
    return lesson, task, splits


def _pull_back(lesson: Lesson, start: dict[str, Tensor], pull: float) -> None:
    """After each update move every parameter back towards where it started, by lr * pull of the way."""
    named = {id(p): name for name, p in lesson.model.named_parameters()}

    def hook(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        with torch.no_grad():
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.lerp_(start[named[id(parameter)]], min(1.0, group["lr"] * pull))

    lesson.optimizer.register_step_post_hook(hook)


def _average(
    lesson: Lesson,
    task: Task,
    parent: LoadedRun,
    start: dict[str, Tensor],
    state: Progressed,
    settings: ContinueSettings,
) -> float:
    """Set the weights between old and new: as far as the old validation rows drop by no more than allowed."""
    model, rows = lesson.model, parent.splits.validation
    end = {name: p.detach().clone() for name, p in model.named_parameters() if name in start}

    def measure_at(share: float) -> Measures:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in start:
                    parameter.copy_(torch.lerp(start[name], end[name], share))
        return _measure(task, model, rows)

    allowed = measure_at(0.0)
    chosen = 0.0
    for share in _SHARES:
        if _drop(allowed.value, measure_at(share).value, allowed.higher_is_better) <= settings.max_drop:
            chosen = share
            break
    else:
        measure_at(0.0)
    learned = learned_part(lesson.optimizer, model)
    save_checkpoint(
        lesson.folder / "final", state.step, learned, torch.optim.SGD(learned.parameters(), lr=0.0), {"share": chosen}
    )
    return chosen


def _measure_older(
    parent: LoadedRun, task: Task, model: TunedModel, settings: ContinueSettings, display: Display
) -> dict[str, Any]:
    """The table "continual" of tune.json."""
    tasks, histories, is_accepted = [], [], True
    olds = older_tasks(parent)
    for done, old in enumerate(olds, start=1):
        now = _measure(task, model, old.rows).values[old.metric]
        history = [*old.history, now]
        forgotten = forgetting([(history, old.higher_is_better)])
        drop = _drop(old.history[-1], now, old.higher_is_better)
        is_kept = drop <= settings.max_drop
        is_accepted = is_accepted and is_kept
        histories.append((history, old.higher_is_better))
        said = "kept" if is_kept else f"dropped by {drop:.3g}, allowed {settings.max_drop:g}"
        tasks.append(
            {
                "run": old.run,
                "name": old.name,
                "metric": old.metric,
                "higher_is_better": old.higher_is_better,
                "rows": len(old.rows),
                "before": old.history[-1],
                "after": now,
                "drop": drop,
                "forgotten": forgotten,
                "gate": said,
                "history": history,
            }
        )
        display.advance(done / len(olds), None, None)
    lost = forgetting(histories)
    worst = max(tasks, key=lambda each: each["drop"])
    sentence = f"Forgetting is {lost:.4f} over {len(tasks)} older task{'s' if len(tasks) > 1 else ''}; " + (
        f"none dropped by more than {settings.max_drop:g}: accepted."
        if is_accepted
        else f"{worst['name']} dropped by {worst['drop']:.4f}, more than {settings.max_drop:g}: rejected, the model is "
        "in model-rejected/."
    )
    return {
        "schema": "continual/1",
        "sentence": sentence,
        "is_accepted": is_accepted,
        "forgetting": lost,
        "settings": asdict(settings),
        "tasks": tasks,
    }


def _measure(task: Task, model: TunedModel, rows: list[dict[str, Any]]) -> Measures:
    model.eval()
    with torch.no_grad():
        return task.measure(task.predict(model, rows), rows)


def _drop(before: float, after: float, higher_is_better: bool) -> float:
    return before - after if higher_is_better else after - before


def _path_of(folder: Path) -> str:
    return str(folder.resolve())
