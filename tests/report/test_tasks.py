"""The suites of a run on its page: the law's figure and table from the records, hostile names, records in parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.report.page_reader import HOSTILE, Page

from chinchilla_lm.core.files import read_json, write_json, write_text
from chinchilla_lm.laws.task_law import TaskRun, fit_task_law
from chinchilla_lm.report.page import write_report
from chinchilla_lm.report.rundir import read_run
from chinchilla_lm.report.tasks import task_charts, tasks_of

FORECAST = {"metric": "acc", "chance": 0.5, "items": 400, "accuracy": 0.61, "low": 0.55, "high": 0.67, "level": 0.9,
            "runs": 11, "warnings": ["a doubt about these runs"]}  # fmt: skip
REACHED = {"metric": "acc", "accuracy": 0.645, "standard_error": 0.024, "items": 400, "chance": 0.5, "cut_items": 0}


def add_suite(folder: Path, name: str = "blimp", *, forecast: Any = None, law: Any = None) -> None:
    """Give a run's records what a suite adds to them."""
    path = folder / "sweep" / "records.jsonl"
    trials = [json.loads(line) for line in path.read_text().splitlines()]
    for trial in trials:
        if trial["purpose"] == "ladder":
            found = {**REACHED, "accuracy": 0.5 + 0.5 / (1 + trial["loss"] ** 2)}
            trial.setdefault("suites", {})[name] = found
    write_text(path, "".join(json.dumps(trial) + "\n" for trial in trials))
    ladder = [trial for trial in trials if "suites" in trial]
    runs = [TaskRun(loss=t["loss"], accuracy=t["suites"][name]["accuracy"], standard_error=0.024) for t in ladder]
    fitted = fit_task_law(runs, chance=0.5).to_dict()
    for file, value in (("law", fitted if law is None else law), ("forecast", forecast or FORECAST), ("eval", REACHED)):
        if (folder / f"{file}.json").exists():
            record = read_json(folder / f"{file}.json")
            write_json(folder / f"{file}.json", {**record, "tasks": {**record.get("tasks", {}), name: value}})


def page_of(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


def test_a_run_without_suites_has_no_section_of_tasks(make_run: Any) -> None:
    assert "What it can do: tasks" not in page_of(make_run()).text
    assert tasks_of(read_run(make_run("again"))) == []


def test_the_forecast_the_measurement_and_the_law_of_a_suite_are_on_the_page(make_run: Any) -> None:
    folder = make_run()
    add_suite(folder)
    page = page_of(folder)
    values = {attributes["value"] for tag, attributes in page.tags if tag == "data"}
    assert {"0.61", "0.55", "0.67", "0.645", "0.024"} <= values
    for words in (
        "blimp: right answers over loss",
        "law of the task",
        "a guess",
        "inside",
        "a doubt about these runs.",
    ):
        assert words in page.text
    chart = task_charts(read_run(folder))[0]
    stars = next(layer for layer in chart.layers if layer.label == "reached")
    assert stars.points[0].y == pytest.approx(64.5)
    assert stars.points[0].x == read_json(folder / "eval.json")["loss"]
    assert len(next(layer for layer in chart.layers if layer.label == "models of the sweep").points) == 11


def test_a_suite_without_a_forecast_says_why(make_run: Any) -> None:
    folder = make_run(until="forecast")
    add_suite(folder, forecast={"metric": "acc", "chance": 0.5, "items": 400, "reason": "3 runs do not make a law"})
    assert "3 runs do not make a law" in page_of(folder).text


def test_hostile_names_stay_text_and_records_in_parts_are_passed_over(make_run: Any) -> None:
    folder = make_run()
    add_suite(folder, HOSTILE, forecast={**FORECAST, "warnings": HOSTILE}, law={"schema": "task_law/1", "fits": 3})
    page = page_of(folder)
    assert [tag for tag, _ in page.tags].count("script") == 3
    assert "alert" not in page.scripts[-1]
    write_json(folder / "law.json", {**read_json(folder / "law.json"), "tasks": [1]})
    write_json(folder / "forecast.json", {**read_json(folder / "forecast.json"), "tasks": {HOSTILE: {"low": "x"}}})
    write_json(folder / "eval.json", {**read_json(folder / "eval.json"), "tasks": None})
    task = tasks_of(read_run(folder))[0]
    assert (task.law, dict(task.forecast), dict(task.reached), task.is_inside) == (None, {}, {}, None)
    assert "right answers over loss" in page_of(folder).text
