"""How well task laws forecast finished runs: the best model held out, and the final one before it was trained.

Run: python bench/task_laws.py RUN_DIR [RUN_DIR ...]

RUN_DIR is what `chinchilla run --suite ...` left: its sweep's models and the final one answered the same items. Four
forecasts a suite, each with its 90 % interval and what was measured:

    best rung model   the sweep's model of least loss, from the others and its own measured loss
    final, its loss   the final model, from all of the sweep's models and its measured loss: the task law alone
    final, forecast   the same from the forecast loss and its interval: what was known before it was trained
    each left out     every model of the sweep in turn, from the others: how many intervals hold
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chinchilla_lm.core.files import read_json
from chinchilla_lm.core.records import read_records
from chinchilla_lm.laws.task_law import LEAST_RUNS, TaskForecast, TaskRun, fit_task_law, hold_out_best
from chinchilla_lm.study.tasks import fit_tasks, forecast_tasks, task_runs

Records = Sequence[Mapping[str, Any]]


def main() -> None:
    reader = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    reader.add_argument("runs", nargs="+", type=Path)
    for folder in reader.parse_args().runs:
        records = [r for r in read_records(folder / "sweep" / "records.jsonl", "trial/1") if r.get("suites")]
        outcome, forecast = read_json(folder / "eval.json"), read_json(folder / "forecast.json")
        print(f"\n## {folder.name}: {len(records)} models of the sweep, final loss {outcome['loss']:.4f} "
              f"(forecast {forecast['loss']:.4f}, {forecast['low']:.4f} to {forecast['high']:.4f})\n")  # fmt: skip
        print_models(records, outcome)
        print("\n| suite | chance | forecast of | accuracy | 90 % interval | measured | inside |\n|" + "---|" * 7)
        for name in sorted({name for record in records for name in record["suites"]}):
            print_forecasts(name, [r for r in records if name in r["suites"]], outcome, forecast)


def print_models(records: Records, outcome: Mapping[str, Any]) -> None:
    """Print every model with its accuracies."""
    names = sorted({name for record in records for name in record["suites"]})
    print("| model | parameters | loss | " + " | ".join(names) + " |\n|" + "---|" * (3 + len(names)))
    for record in sorted(records, key=lambda one: -one["loss"]):
        cells = [said(record["suites"][name]) if name in record["suites"] else "" for name in names]
        print(f"| {record['trial']} | {record['params_total']:,} | {record['loss']:.4f} | {' | '.join(cells)} |")
    cells = [said(outcome["tasks"][name]) if name in outcome["tasks"] else "" for name in names]
    print(f"| final | | {outcome['loss']:.4f} | {' | '.join(cells)} |")


def print_forecasts(name: str, records: Records, outcome: Mapping[str, Any], forecast: Mapping[str, Any]) -> None:
    """Print the four forecasts of a suite."""
    chance = records[0]["suites"][name]["chance"]
    runs = task_runs(records)[name]
    measured = outcome["tasks"][name]
    if len(runs) <= LEAST_RUNS:
        print(f"| {name} | {chance:.3f} | none: {len(runs)} models | | | {measured['accuracy']:.4f} | |")
        return
    held, actual = hold_out_best(runs, chance=chance)
    print_row(name, chance, "best model of the sweep, held out", held, actual)
    error = measured["standard_error"] or runs[-1].standard_error
    own = fit_task_law(runs, chance=chance).forecast(outcome["loss"], standard_error=error)
    print_row(name, chance, "final model, at its measured loss", own, measured["accuracy"])
    made = forecast_tasks(fit_tasks(records), forecast, records)[name]
    ends = TaskForecast(accuracy=made["accuracy"], low=made["low"], high=made["high"], level=0.9, warnings=())
    print_row(name, chance, "final model, before training", ends, measured["accuracy"])
    held_in, left_out = leave_each_out(runs, chance)
    print(f"| {name} | {chance:.3f} | each model of the sweep, left out | | | | {held_in} of {left_out} |")
    for warning in made["warnings"]:
        print(f"| {name} | | warning: {warning} | | | | |")


def leave_each_out(runs: Sequence[TaskRun], chance: float) -> tuple[int, int]:
    """Count the intervals that hold the model left out of the fit, of how many."""
    held_in = 0
    for place, run in enumerate(runs):
        law = fit_task_law([*runs[:place], *runs[place + 1 :]], chance=chance)
        made = law.forecast(run.loss, standard_error=run.standard_error)
        held_in += made.low <= run.accuracy <= made.high
    return held_in, len(runs)


def print_row(name: str, chance: float, what: str, made: TaskForecast, actual: float) -> None:
    is_inside = "yes" if made.low <= actual <= made.high else "NO"
    print(f"| {name} | {chance:.3f} | {what} | {made.accuracy:.4f} | {made.low:.4f} to {made.high:.4f} | "
          f"{actual:.4f} | {is_inside} |")  # fmt: skip


def said(found: Mapping[str, Any]) -> str:
    return f"{found['accuracy']:.4f} ± {found['standard_error']:.4f}"


if __name__ == "__main__":
    main()
