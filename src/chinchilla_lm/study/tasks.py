"""From the ladder's accuracies to a forecast of the final model's, before it is trained; and what came of it.

The second step of two: the sweep's law says the loss and its interval, the task's law what accuracy goes with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from chinchilla_lm.core.errors import FitError
from chinchilla_lm.laws.task_law import TaskForecast, TaskLaw, TaskRun, fit_task_law


def task_runs(records: Sequence[Mapping[str, Any]]) -> dict[str, list[TaskRun]]:
    """Collect the models of a sweep that were asked a suite, by suite.

    Args:
        records: of all trials; those without suites are passed over.
    """
    runs: dict[str, list[TaskRun]] = {}
    for record in records:
        if record["status"] != "done":
            continue
        for name, found in record.get("suites", {}).items():
            error = found["standard_error"] or _error_of(found["accuracy"], found["items"])
            run = TaskRun(loss=record["loss"], accuracy=found["accuracy"], standard_error=error)
            runs.setdefault(name, []).append(run)
    return runs


def fit_tasks(records: Sequence[Mapping[str, Any]]) -> dict[str, TaskLaw | str]:
    """Fit each suite's law; where that cannot be done, say why in its place."""
    chances = {name: found["chance"] for record in records for name, found in record.get("suites", {}).items()}
    laws: dict[str, TaskLaw | str] = {}
    for name, runs in task_runs(records).items():
        try:
            laws[name] = fit_task_law(runs, chance=chances[name])
        except FitError as error:
            laws[name] = str(error)
    return laws


def laws_record(laws: Mapping[str, TaskLaw | str]) -> dict[str, dict[str, Any]]:
    """Write the laws as law.json's "tasks", by suite; those that could not be fitted are left out."""
    return {name: law.to_dict() for name, law in laws.items() if isinstance(law, TaskLaw)}


def forecast_tasks(
    laws: Mapping[str, TaskLaw | str], forecast: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Forecast the final model's accuracies.

    Args:
        laws: of `fit_tasks`.
        forecast: of the loss: loss, low, high, level.
        records: of all trials.

    Returns:
        forecast.json's "tasks", by suite: accuracy, low, high, level, chance, metric, items, warnings; or chance,
        metric, items and "reason", why there is no forecast.
    """
    asked = {name: found for record in records for name, found in record.get("suites", {}).items()}
    tasks: dict[str, dict[str, Any]] = {}
    for name, law in laws.items():
        known = {key: asked[name][key] for key in ("metric", "chance", "items")}
        if isinstance(law, str):
            tasks[name] = {**known, "reason": law}
            continue
        made = _forecast(law, forecast, known["items"])
        tasks[name] = {
            **known,
            "accuracy": made.accuracy,
            "low": made.low,
            "high": made.high,
            "level": made.level,
            "runs": len(law.runs),
            "warnings": list(made.warnings),
        }
    return tasks


def judge_tasks(measured: Mapping[str, Mapping[str, Any]], forecast: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Set what the final model scored beside its forecast: eval.json's "tasks", by suite."""
    tasks: dict[str, dict[str, Any]] = {}
    for name, found in measured.items():
        made = forecast.get("tasks", {}).get(name, {})
        tasks[name] = dict(found)
        if "accuracy" in made:
            tasks[name]["predicted"] = {key: made[key] for key in ("accuracy", "low", "high")}
            tasks[name]["inside"] = made["low"] <= found["accuracy"] <= made["high"]
    return tasks


def task_lines(tasks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say the forecasts of forecast.json's "tasks", a line each."""
    lines: list[str] = []
    for name, made in tasks.items():
        if "reason" in made:
            lines.append(f"{name}: no forecast, {made['reason']}")
            continue
        doubt = "".join(f" ({warning})" for warning in made["warnings"][:1])
        lines.append(
            f"{name} will be right in {100 * made['accuracy']:.1f} %, {100 * made['level']:.0f} % interval "
            f"{100 * made['low']:.1f} to {100 * made['high']:.1f}, chance {100 * made['chance']:.1f}{doubt}"
        )
    return lines


def _forecast(law: TaskLaw, forecast: Mapping[str, Any], items: int) -> TaskForecast:
    """Forecast what will be measured: with the error of so many items (parts of a suite make it a little smaller)."""
    interval, level = (forecast["low"], forecast["high"]), forecast["level"]
    expected = law.forecast(forecast["loss"], interval, level=level).accuracy
    error = _error_of(expected, items)
    return law.forecast(forecast["loss"], interval, standard_error=error, level=level)


def _error_of(accuracy: float, items: int) -> float:
    """Give a binomial standard error; none or all right are no certainty (rule of succession, Laplace 1774)."""
    likely = min(max(accuracy, 1 / (items + 2)), (items + 1) / (items + 2))
    return math.sqrt(likely * (1 - likely) / items)
