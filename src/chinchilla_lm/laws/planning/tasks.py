"""What a planned model will score on suites: the second step, from the plan's loss and its band to accuracies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from chinchilla_lm.laws.planning.answer import Plan, TaskOutlook
from chinchilla_lm.laws.task_law import TaskLaw


def task_laws(record: Mapping[str, Any]) -> dict[str, TaskLaw]:
    """Read the laws of suites that a law.json carries; none where it has no "tasks".

    Raises:
        FitError: an entry that is no law of a task.
    """
    tasks = cast(Mapping[str, Mapping[str, Any]], record.get("tasks") or {})
    return {name: TaskLaw.from_dict(law) for name, law in tasks.items()}


def add_tasks(made: Plan, laws: Mapping[str, TaskLaw]) -> Plan:
    """Forecast every suite at the plan's loss, over the plan's own band of it.

    Args:
        made: the plan; one without a loss stays as it is.
        laws: by suite, of the same tokenizer and held-out text as the law that made the plan.

    Returns:
        The plan with `tasks`, and with a note for each doubt.
    """
    if made.loss is None or not laws:
        return made
    low, high = made.loss_low, made.loss_high
    band = None if low is None or high is None else (min(low, made.loss), max(high, made.loss))
    tasks: list[TaskOutlook] = []
    notes: list[str] = []
    for name, law in laws.items():
        forecast = law.forecast(made.loss, band)
        tasks.append(
            TaskOutlook(name=name, accuracy=forecast.accuracy, low=forecast.low, high=forecast.high, chance=law.chance)
        )
        notes += [f"{name}: {warning}" for warning in forecast.warnings]
        if band is None:
            notes.append(f"{name}: the plan's loss has no band, so its interval is that of a model of just this loss")
    return replace(made, tasks=tuple(tasks), notes=(*made.notes, *notes))
