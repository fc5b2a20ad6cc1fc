"""Columns of a table of runs that say what the models can do: acc_NAME, se_NAME and chance_NAME of a suite NAME.

Accuracies and standard errors are parts of 1, one a run; a cell may be empty where a model was not asked. The chance is
one number in every line, and is never guessed. It reads no file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chinchilla_lm.core.errors import DataError, FitError
from chinchilla_lm.laws.forms.law import Floats
from chinchilla_lm.laws.task_law import TaskLaw, TaskRun, fit_task_law

_ACCURACY, _ERROR, _CHANCE = "acc_", "se_", "chance_"


@dataclass(frozen=True, kw_only=True)
class TaskColumn:
    """What the runs of a table score on a suite.

    Attributes:
        name: of the suite.
        chance: accuracy of a guess.
        accuracy_n: of each run, nan where it was not asked.
        error_n: its standard error over items.
    """

    name: str
    chance: float
    accuracy_n: Floats
    error_n: Floats


def find_task_columns(
    header: Sequence[str], rows: Sequence[tuple[int, Sequence[str]]], path: Path
) -> tuple[tuple[TaskColumn, ...], list[str]]:
    """Read every suite of a table.

    Args:
        header: names as in the file.
        rows: (line, cells) of the runs.
        path: for the message.

    Returns:
        The suites, and a sentence for each that lacks its standard errors or its chance and was left out.

    Raises:
        DataError: a cell that is no part of 1, or a chance that is not one number.
    """
    places = {name.strip().lower(): place for place, name in enumerate(header)}
    found: list[TaskColumn] = []
    notes: list[str] = []
    for name in (column.removeprefix(_ACCURACY) for column in places if column.startswith(_ACCURACY)):
        missing = [prefix + name for prefix in (_ERROR, _CHANCE) if prefix + name not in places]
        if missing:
            notes.append(f"acc_{name} has no {' and no '.join(missing)} beside it, and no law of it was fitted")
            continue
        columns = [
            np.array([_part(cells, places[prefix + name], f"{path}:{line}: {prefix}{name}") for line, cells in rows])
            for prefix in (_ACCURACY, _ERROR, _CHANCE)
        ]
        chances = sorted({float(chance) for chance in columns[2] if not math.isnan(chance)})
        if len(chances) != 1 or chances[0] >= 1:
            raise DataError(f"{path}: chance_{name} must be one number below 1 in every line, such as 0.5 for pairs")
        found.append(TaskColumn(name=name, chance=chances[0], accuracy_n=columns[0], error_n=columns[1]))
    return tuple(found), notes


def fit_task_columns(columns: Sequence[TaskColumn], loss_n: Floats) -> tuple[dict[str, TaskLaw], list[str]]:
    """Fit the law of each suite to the runs that were asked it.

    Args:
        columns: of `find_task_columns`.
        loss_n: of the same runs, nats per token.

    Returns:
        Laws by suite, and a sentence for each suite whose runs carry none or a doubtful one.
    """
    laws: dict[str, TaskLaw] = {}
    notes: list[str] = []
    for column in columns:
        asked = np.flatnonzero(np.isfinite(column.accuracy_n) & np.isfinite(column.error_n)).tolist()
        runs = [
            TaskRun(
                loss=float(loss_n[place]),
                accuracy=float(column.accuracy_n[place]),
                standard_error=float(column.error_n[place]),
            )
            for place in asked
        ]
        try:
            laws[column.name] = fit_task_law(runs, chance=column.chance)
        except FitError as error:
            notes.append(f"task {column.name}: {error}")
            continue
        notes += [f"task {column.name}: {warning}" for warning in laws[column.name].warnings]
    return laws, notes


def _part(cells: Sequence[str], place: int, where: str) -> float:
    text = cells[place].strip() if place < len(cells) else ""
    if not text:
        return math.nan
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise DataError(
            f"{where} is {text[:40]!r}, and must be a part of 1, such as 0.57; write it so, or leave it empty"
        )
    return value
