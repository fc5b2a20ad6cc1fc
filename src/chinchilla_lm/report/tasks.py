"""The suites of a run: accuracy over loss with the task's law, its forecast and what the final model scored.

Records that lack their numbers are passed over; a run from before there were suites has no figures here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from chinchilla_lm.core.errors import FitError
from chinchilla_lm.laws.task_law import TaskLaw
from chinchilla_lm.report.chart import Axis, Band, Chart, Layer, Line, Marks, Point, axis_over
from chinchilla_lm.report.points import LOSS_LABEL, Z90, interval_label
from chinchilla_lm.report.rundir import Record, Run, is_number
from chinchilla_lm.report.words import sentences_of

_STEPS = 16  # of the law's line and band: more would not be seen
_MARGIN = 0.1  # of the range of losses


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is known of a suite.

    Attributes:
        name: of the suite.
        chance: accuracy of a guess.
        items: that each model answered.
        models: (loss, accuracy, standard error, trial's name) of the sweep.
        law: fitted to them; None without one.
        forecast: forecast.json's part: accuracy, low and high, or "reason"; empty without one.
        reached: eval.json's part: accuracy and standard_error; empty without one.
    """

    name: str
    chance: float
    items: int
    models: tuple[tuple[float, float, float, str], ...]
    law: TaskLaw | None
    forecast: Record
    reached: Record

    @property
    def is_inside(self) -> bool | None:
        """Whether what was reached lies in the forecast's interval, from the numbers; None without one of them."""
        if "accuracy" not in self.forecast or not self.reached:
            return None
        return bool(self.forecast["low"] <= self.reached["accuracy"] <= self.forecast["high"])

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the sweep's models do not support, a line each."""
        return sentences_of(self.forecast.get("warnings"))


def tasks_of(run: Run) -> list[Task]:
    """Collect every suite that a model of the run was asked, by name."""
    forecasts, outcomes = _tables(run.forecast), _tables(run.evaluation)
    asked: dict[str, list[tuple[Record, Record]]] = {}
    for trial in run.trials:
        for name, found in _mapping(trial.get("suites")).items():
            if _has(found, "accuracy", "standard_error", "chance", "items"):
                asked.setdefault(str(name), []).append((trial, found))
    tasks: list[Task] = []
    for name, answers in sorted(asked.items()):
        made, reached = forecasts.get(name, {}), outcomes.get(name, {})
        is_forecast = _has(made, "accuracy", "low", "high") or isinstance(made.get("reason"), str)
        tasks.append(
            Task(
                name=name,
                chance=float(answers[0][1]["chance"]),
                items=int(answers[0][1]["items"]),
                models=tuple(
                    (
                        float(trial["loss"]),
                        float(found["accuracy"]),
                        float(found["standard_error"]),
                        str(trial.get("trial", "trial")),
                    )
                    for trial, found in answers
                ),  # fmt: skip
                law=_law(_tables(run.law).get(name)),
                forecast=made if is_forecast else {},
                reached=reached if _has(reached, "accuracy", "standard_error") else {},
            )
        )
    return tasks


def task_charts(run: Run) -> list[Chart]:
    """Draw a chart for each suite, named task-0, task-1 ... in the order of `tasks_of`."""
    return [_chart(run, task, f"task-{place}") for place, task in enumerate(tasks_of(run))]


def _chart(run: Run, task: Task, name: str) -> Chart:
    marks: list[Layer] = [_models(task), *_outcome(run, task)]
    points = [point for layer in marks if isinstance(layer, Marks) for point in layer.points]
    x_axis = axis_over((point.x for point in points), "held-out " + LOSS_LABEL, margin=_MARGIN)
    law = _law_layers(task, x_axis, run)
    values = [value for point in points for value in (point.y, point.low, point.high) if value is not None]
    values += [y for layer in law if isinstance(layer, Line) for _, y in layer.points]
    summary = f"{len(task.models)} models of the sweep, {task.items} items each."
    if "accuracy" in task.forecast:
        ends = tuple(100 * float(task.forecast[key]) for key in ("accuracy", "low", "high"))
        summary += " Before training the forecast was {:.1f} %, between {:.1f} and {:.1f}.".format(*ends)
    if task.reached:
        summary += f" The model reached {100 * float(task.reached['accuracy']):.1f} %."
    return Chart(
        name=name,
        title=f"{task.name}: right answers over loss",
        summary=summary,
        x=x_axis,
        y=axis_over([*values, 100 * task.chance], "right answers (%)", margin=0.08),
        layers=(*law, *marks),
    )


def _models(task: Task) -> Marks:
    points = tuple(
        Point(x=loss, y=100 * accuracy, low=100 * (accuracy - Z90 * error), high=100 * (accuracy + Z90 * error),
              text=f"{trial}: loss {loss:.4f}, {100 * accuracy:.1f} % right")
        for loss, accuracy, error, trial in task.models
    )  # fmt: skip
    return Marks(label="models of the sweep", colour="r4", points=points)


def _outcome(run: Run, task: Task) -> list[Layer]:
    layers: list[Layer] = []
    if run.forecast is not None and "accuracy" in task.forecast:
        accuracy, low, high = (100 * float(task.forecast[key]) for key in ("accuracy", "low", "high"))
        text = f"forecast {accuracy:.1f} % ({low:.1f} to {high:.1f})"
        point = Point(x=float(run.forecast["loss"]), y=accuracy, low=low, high=high, text=text)
        label = f"forecast, {interval_label(task.forecast)}"
        layers.append(Marks(label=label, colour="predicted", marker="dash", size=8.5, points=(point,)))
    if run.evaluation is not None and task.reached:
        accuracy, error = float(task.reached["accuracy"]), Z90 * float(task.reached["standard_error"])
        point = Point(x=float(run.evaluation["loss"]), y=100 * accuracy, low=100 * (accuracy - error),
                      high=100 * (accuracy + error), text=f"reached {100 * accuracy:.1f} %")  # fmt: skip
        layers.append(Marks(label="reached", colour="actual", marker="star", size=5.5, points=(point,)))
    return layers


def _law_layers(task: Task, x_axis: Axis, run: Run) -> list[Layer]:
    """The law with its band over the losses shown, and the line of a guess."""
    ends = ((x_axis.low, 100 * task.chance), (x_axis.high, 100 * task.chance))
    layers: list[Layer] = [Line(label="a guess", colour="quiet", points=ends, width=1.2, is_dashed=True)]
    if task.law is None:
        return layers
    losses = [x_axis.low + (x_axis.high - x_axis.low) * step / _STEPS for step in range(_STEPS + 1)]
    made = [task.law.forecast(loss) for loss in losses]
    band = tuple((loss, 100 * one.low, 100 * one.high) for loss, one in zip(losses, made, strict=True))
    line = tuple((loss, 100 * task.law.accuracy(loss)) for loss in losses)
    return [
        *layers,
        Band(label="the law's 90 % for a model of known loss", colour="quiet", points=band),
        Line(label="law of the task", colour="law", points=line),
    ]


def _law(record: Any) -> TaskLaw | None:
    try:
        return None if record is None else TaskLaw.from_dict(record)
    except FitError:
        return None


def _tables(record: Record | None) -> dict[str, Record]:
    tasks = _mapping((record or {}).get("tasks"))
    return {str(name): table for name, table in tasks.items() if isinstance(table, Mapping)}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _has(record: Any, *names: str) -> bool:
    return isinstance(record, Mapping) and all(is_number(record.get(name)) for name in names)
