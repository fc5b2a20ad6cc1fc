"""Settings chosen on the validation rows: many short trainings, of which the best is measured on the test rows.

    out/search/trials.jsonl          search_trial/1, one a finished trial
    out/search/trial-003/            its records; weights of the best trial only, until they are the run's
    out/                             the best trial as an ordinary run, with "search" in tune.json

The test rows are read by the last step alone. Trials that lag at a quarter, a half or three quarters of their updates
are stopped. Killed at any instant, the same call continues.
"""

from __future__ import annotations

import gc
import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from chinchilla_lm.core.errors import CheckpointError, ConfigError, TrainingDiverged
from chinchilla_lm.core.files import replace_directory, temporary_beside, write_json
from chinchilla_lm.core.records import append_record, read_records
from chinchilla_lm.metrics.measures import Measures
from chinchilla_lm.train.loop import StepRecord
from chinchilla_lm.tune.config import TuneConfig
from chinchilla_lm.tune.defaults import resolve
from chinchilla_lm.tune.learning import Lesson, learn
from chinchilla_lm.tune.search_space import RUNGS, Chooser, Dial, Trial, Values, dials_of, make_chooser
from chinchilla_lm.tune.splits import Splits, read_splits
from chinchilla_lm.tune.stages import Display, Silent, claim_folder
from chinchilla_lm.tune.tuning import TuneResult, prepare_lesson, tune

SCHEMA = "search_trial/1"
# What a trial leaves behind and what the winner hands on; checkpoints last, for they say that the rest is there.
_STATE = ("records.jsonl", "best", "checkpoints")


def search(config: TuneConfig, trials: int, display: Display | None = None) -> TuneResult:
    """Try settings on the validation rows, then finish the best as the run of `config.out`.

    Args:
        config: whose own settings are the first trial.
        trials: how many settings are tried, >= 1.
        display: told what happens.

    Returns:
        The best trial's run; its record has "search": {chooser, dials, trials, best, seconds}.

    Raises:
        ConfigError: fewer than one trial, or every trial failed.
        CheckpointError: the folder holds a search of other settings or rows, or a run that fewer trials chose.
        ChinchillaError: as `tune`.
    """
    if trials < 1:
        raise ConfigError(f"{trials} trials search nothing; write 1 or more")
    display = display or Silent()
    folder = Path(config.out) / "search"
    _refuse_chosen(folder, trials)
    claim_folder(folder, config)
    splits = _without_test(read_splits(replace(config, test=None)))
    config = replace(config, evaluate_every=None)
    rate = resolve(config, context=1 << 30)[0].lr
    assert rate is not None
    dials = dials_of(config, rate)
    chooser = make_chooser(
        dials, {"lr": rate} | {dial.name: getattr(config, dial.name) for dial in dials[1:]}, config.seed
    )
    began = time.monotonic()
    done = _replay(folder, chooser)
    for number in range(len(done), trials):
        values = chooser.propose(number)
        display.stage("search", f"trial {number + 1} of {trials}: {_words(values)}")
        done.append(_run_trial(_Attempt(number, config, values, splits, chooser), folder, display))
        _keep_best(folder, done)
    best = _best_of(done)
    return _finish(config, done, best, (chooser, dials, time.monotonic() - began), display)


@dataclass(frozen=True)
class _Attempt:
    number: int
    config: TuneConfig
    values: Values
    splits: Splits
    chooser: Chooser


class _Lagging(Exception):  # noqa: N818 - no error: the chooser stops a trial
    """Raised out of the loop."""


@dataclass(kw_only=True)
class _Watch:
    """Listens to one trial: notes the score at each rung and stops what lags."""

    attempt: _Attempt
    display: Display
    steps: int
    evaluate_every: int
    reports: dict[int, float] = field(default_factory=dict)
    sign: int = 1

    def see(self, measures: Measures) -> None:
        self.sign = 1 if measures.higher_is_better else -1

    def tell(self, record: StepRecord, value: float | None) -> None:
        self.display.advance(record.step / self.steps, record.loss, None)
        if value is None or (record.step % self.evaluate_every and record.step != self.steps):
            return
        rung = min(RUNGS, math.ceil(RUNGS * record.step / self.steps))
        score = self.sign * value
        self.reports[rung] = max(score, self.reports.get(rung, -math.inf))
        if rung < RUNGS and not self.attempt.chooser.goes_on(self.attempt.number, rung, self.reports[rung]):
            raise _Lagging


def config_of_trial(config: TuneConfig, values: Values, train_rows: int) -> TuneConfig:
    """Return the config with a trial's values, validated at every rung.

    Args:
        config: the search's.
        values: of the dials.
        train_rows: how many rows are trained on.
    """
    most = values.get("rows", config.rows)
    micro_batch = None if config.micro_batch is None else min(config.micro_batch, most)
    changed = replace(config, **values, micro_batch=micro_batch)
    updates = changed.steps or max(1, round(changed.epochs * math.ceil(train_rows / changed.rows)))
    return replace(changed, evaluate_every=max(1, math.ceil(updates / RUNGS)), patience=0)


def _refuse_chosen(folder: Path, trials: int) -> None:
    """Refuse to search on where a run has been made of the best so far: another best could not take its place."""
    path = folder / "trials.jsonl"
    done = len(read_records(path, SCHEMA)) if path.is_file() else 0
    if done < trials and (folder.parent / "config.toml").is_file():
        raise CheckpointError(
            f"{folder.parent} holds a run that {done} trials chose, and {trials} may choose another; write to a new"
            " folder"
        )


def _without_test(splits: Splits) -> Splits:
    """Hold the test rows back from everything that chooses."""
    return replace(splits, test=splits.validation, evaluated_on="validation")


def _replay(folder: Path, chooser: Chooser) -> list[Trial]:
    """Read the trials that an earlier process finished, and tell the chooser."""
    path = folder / "trials.jsonl"
    if not path.is_file():
        return []
    found = []
    for record in read_records(path, SCHEMA):
        reports = {int(rung): float(score) for rung, score in record["reports"].items()}
        trial = Trial(
            number=record["number"],
            values=record["settings"],
            reports=reports,
            score=record["score"],
            state=record["state"],
        )
        chooser.finish(trial)
        found.append(trial)
    return found


def _run_trial(attempt: _Attempt, folder: Path, display: Display) -> Trial:
    out = folder / f"trial-{attempt.number:03d}"
    config = config_of_trial(attempt.config, attempt.values, len(attempt.splits.train))
    config = replace(config, out=str(out), test=None)
    began = time.monotonic()
    _, lesson = prepare_lesson(config, attempt.splits)
    assert lesson.config.steps is not None
    assert lesson.config.evaluate_every is not None
    watch = _Watch(
        attempt=attempt,
        display=display,
        steps=lesson.config.steps,
        evaluate_every=lesson.config.evaluate_every,
    )
    score, value, state = None, None, "finished"
    try:
        learned, _ = learn(_watched(lesson, watch), watch.tell)
        value = learned.best_value
        score = None if value is None else watch.sign * value
    except _Lagging:
        state = "stopped"
    except TrainingDiverged:
        state = "failed"
    del lesson
    gc.collect()  # the next trial loads its own model
    trial = Trial(number=attempt.number, values=attempt.values, reports=watch.reports, score=score, state=state)
    attempt.chooser.finish(trial)
    fields = {
        "number": trial.number,
        "settings": dict(trial.values),
        "reports": {str(rung): report for rung, report in trial.reports.items()},
        "score": score,
        "value": value if value is not None else _shown(trial.reports, watch.sign),
        "state": state,
        "seconds": time.monotonic() - began,
    }
    append_record(folder / "trials.jsonl", SCHEMA, fields, sync=True)
    return trial


def _watched(lesson: Lesson, watch: _Watch) -> Lesson:
    """Return the lesson whose validations the watch sees, for the direction of the metric."""
    validate = lesson.validate
    assert validate is not None

    def seen() -> Measures:
        measures = validate()
        watch.see(measures)
        return measures

    return replace(lesson, validate=seen)


def _shown(reports: Mapping[int, float], sign: int) -> float | None:
    return sign * reports[max(reports)] if reports else None


def _best_of(done: list[Trial]) -> Trial:
    finished = [trial for trial in done if trial.score is not None]
    if not finished:
        raise ConfigError(f"all {len(done)} trials failed; lower lr, or look at the rows")
    return max(finished, key=lambda trial: (trial.score or 0.0, -trial.number))


def _keep_best(folder: Path, done: list[Trial]) -> None:
    """Remove the weights of all trials but the best so far."""
    finished = [trial for trial in done if trial.score is not None]
    best = _best_of(done).number if finished else -1
    for trial in done:
        if trial.number != best:
            for name in _STATE[1:]:
                shutil.rmtree(folder / f"trial-{trial.number:03d}" / name, ignore_errors=True)


def _finish(
    config: TuneConfig,
    done: list[Trial],
    best: Trial,
    choice: tuple[Chooser, tuple[Dial, ...], float],
    display: Display,
) -> TuneResult:
    """Give the best trial's training to the run of `config.out`, which measures it on the test rows."""
    out = Path(config.out)
    splits_rows = read_splits(replace(config, test=None)).counts["train"]["used"]
    chosen = config_of_trial(config, best.values, splits_rows)
    display.stage("best", f"trial {best.number + 1}: {_words(best.values)}")
    trained = out / "search" / f"trial-{best.number:03d}"
    if not (out / "checkpoints").is_dir() and not (out / "tune.json").is_file():
        for name in _STATE:
            if (trained / name).is_dir():
                temporary = temporary_beside(out / name)  # killed here, the same call copies again
                shutil.copytree(trained / name, temporary, dirs_exist_ok=True)
                replace_directory(temporary, out / name)
            elif (trained / name).is_file():
                shutil.copyfile(trained / name, out / name)
    result = tune(chosen, display)
    for name in _STATE[1:]:
        shutil.rmtree(trained / name, ignore_errors=True)  # the run has them, or what they led to
    chooser, dials, seconds = choice
    lines = read_records(out / "search" / "trials.jsonl", SCHEMA)
    found = {
        "chooser": chooser.name,
        "dials": [asdict(dial) for dial in dials],
        "trials": [
            {name: line[name] for name in ("number", "settings", "value", "state", "seconds")} for line in lines
        ],
        "best": best.number,
        "seconds": sum(line["seconds"] for line in lines),
        "rows": "validation",
    }
    record = {**result.record, "search": found}
    write_json(out / "tune.json", record)
    return TuneResult(folder=out, record=record)


def _words(values: Values) -> str:
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
    )
