"""The main job: measure, prepare, sweep, forecast, train, evaluate, report; `study.stages` has each of them.

Wherever it is stopped, the same command continues.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chinchilla_lm.core.errors import DataError
from chinchilla_lm.core.files import read_json
from chinchilla_lm.data.documents import read_documents
from chinchilla_lm.data.manifest import Manifest
from chinchilla_lm.study.asking import check_suites, suites_of
from chinchilla_lm.study.directory import open_run
from chinchilla_lm.study.machine import device_name
from chinchilla_lm.study.progress import Progress, Quiet
from chinchilla_lm.study.request import StudyConfig, allowance_of
from chinchilla_lm.study.stages import Study
from chinchilla_lm.train.config import TrainConfig

# Less than this leaves too few held-out windows to tell two models apart, and nothing to learn from.
LEAST_TEXT_BYTES = 100_000


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """A finished study: where everything is, and the records that scripts rely on.

    Attributes:
        run_dir: the run directory.
        forecast: forecast.json.
        law: law.json.
        evaluation: eval.json.
        flops_spent: sweep and final run together.
        seconds_spent: wall time of the whole job over its resumes.
    """

    run_dir: Path
    forecast: dict[str, Any]
    law: dict[str, Any]
    evaluation: dict[str, Any]
    flops_spent: float
    seconds_spent: float


def run_study(config: StudyConfig, out: Path, progress: Progress | None = None) -> StudyResult:
    """Do the main job: from text and a budget to a model whose loss was said before it was trained.

    Args:
        config: the request.
        out: the run directory; the same request in it is resumed.
        progress: told what happens.

    Returns:
        The result, read back from the records.

    Raises:
        ChinchillaError: the request is wrong, or the work failed; the line says the way out.
    """
    study = _open_study(config, out, progress)
    directory = study.directory
    environment, manifest, plan = _plan_study(study)
    if not directory.is_finished("evaluate"):
        study.evaluate(study.train(plan, manifest, environment), manifest)
    study.report()
    return StudyResult(
        run_dir=out,
        forecast=read_json(directory.forecast),
        law=read_json(directory.law),
        evaluation=read_json(directory.evaluation),
        flops_spent=sum(record["flops"] for record in directory.stage_records()),
        seconds_spent=directory.spent_seconds(),
    )


def run_sweep_only(config: StudyConfig, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Do the study's first half: measure, prepare, sweep, forecast and plan.

    Args:
        config: the request; `run_study` with the same one continues.
        out: the run directory.
        progress: told what happens.

    Returns:
        forecast.json.

    Raises:
        ChinchillaError: as `run_study`.
    """
    study = _open_study(config, out, progress)
    _plan_study(study)
    return read_json(study.directory.forecast)


def _open_study(config: StudyConfig, out: Path, progress: Progress | None) -> Study:
    """Check the request before anything is written or measured."""
    allowance = allowance_of(config, device_name())
    if not (out / "config.toml").exists():
        _check_text(config.corpus)
        check_suites(suites_of(config))
    return Study(config, allowance, open_run(out, config), progress or Quiet())


def _check_text(corpus: tuple[str, ...]) -> None:
    size = 0
    for document in read_documents(corpus):
        size += len(document.text.encode())
        if size >= LEAST_TEXT_BYTES:
            return
    raise DataError(
        f"{', '.join(corpus)} has {size:,} bytes of text, and a study needs {LEAST_TEXT_BYTES:,} to train and test on; "
        "give more text, or try --corpus stdlib"
    )


def _plan_study(study: Study) -> tuple[dict[str, Any], Manifest, TrainConfig]:
    """Do the stages before the final training."""
    with contextlib.ExitStack() as stack:
        pool = study.open_pool(stack)
        environment = study.measure(pool)
        manifest = study.prepare(environment)
        study.sweep(environment, manifest, pool)
    return environment, manifest, study.decide(environment, manifest)
