"""Suites as columns of a table: read with their lines, fitted by fit, and forecast by a plan on its record."""

from __future__ import annotations

import json

import numpy as np
import pytest

from chinchilla_lm.cli.main import run_command
from chinchilla_lm.core.errors import DataError, FitError
from chinchilla_lm.laws.forms.additive import AdditiveLaw
from chinchilla_lm.laws.table import read_runs
from chinchilla_lm.laws.task_law import TaskLaw

TRUTH = AdditiveLaw(E=1.8, A=482.0, B=2085.0, alpha=0.348, beta=0.366, params_convention="total")


def accuracy_at(loss: float) -> float:
    return 0.5 + 0.5 / (1 + np.exp(1.4 * (loss - 2.6)))


def write_runs(path, *, columns="acc_blimp,se_blimp,chance_blimp", cells=lambda loss: f"{accuracy_at(loss)},0.002,0.5"):
    lines = [f"n_params,n_tokens,flops,loss,{columns}"]
    for flops in (1e19, 3e19, 1e20, 3e20):
        for params in TRUTH.optimum(flops)[0] * np.geomspace(0.2, 5, 5):
            loss = float(TRUTH.loss(params, flops / 6 / params))
            lines.append(f"{params},{flops / 6 / params},{flops},{loss},{cells(loss)}")
    path.write_text("\n".join(lines))
    return path


def test_fit_keeps_the_law_of_a_suite_and_plan_forecasts_it(tmp_path, capsys):
    runs, law = write_runs(tmp_path / "runs.csv"), tmp_path / "law.json"
    assert run_command(["fit", str(runs), "--bootstrap", "20", "--out", str(law)]) == 0
    assert "task blimp" in capsys.readouterr().out
    assert run_command(["plan", "--law", str(law), "--budget", "3e21", "--json"]) == 0
    captured = capsys.readouterr()
    made = json.loads(captured.out)
    task = made["tasks"]["blimp"]
    assert task["accuracy"] == pytest.approx(accuracy_at(made["loss"]), abs=0.005)
    assert task["low"] <= accuracy_at(made["loss"]) <= task["high"]
    assert task["low"] <= accuracy_at(made["loss_high"]) + 0.01  # the band of the loss is in the interval
    assert "blimp" in captured.err
    assert TaskLaw.from_dict(json.loads(law.read_text())["tasks"]["blimp"]).runs


def test_a_law_without_suites_plans_as_before(capsys):
    assert run_command(["plan", "--budget", "1e20", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tasks"] == {}


def test_a_column_without_chance_or_error_is_left_out_and_told(tmp_path):
    table = read_runs(write_runs(tmp_path / "runs.csv", columns="acc_arc", cells=lambda loss: "0.3"))
    assert table.tasks == ()
    assert any("acc_arc has no se_arc and no chance_arc" in warning for warning in table.warnings)


def test_empty_cells_are_models_that_were_not_asked(tmp_path):
    path = write_runs(tmp_path / "runs.csv", cells=lambda loss: f"{accuracy_at(loss)},0.01,0.5" if loss < 2.9 else ",,")
    task = read_runs(path).tasks[0]
    assert 0 < np.isnan(task.accuracy_n).sum() < len(task.accuracy_n)
    assert read_runs(path).take(np.array([0, 1])).tasks[0].accuracy_n.shape == (2,)


@pytest.mark.parametrize(
    ("cells", "said"),
    [("57.1,0.01,0.5", r"runs\.csv:2: acc_blimp is '57\.1', and must be a part of 1"),
     ("0.57,0.01,one half", "chance_blimp is 'one half'"),
     ("0.57,0.01,", "chance_blimp must be one number below 1")],
)  # fmt: skip
def test_cells_that_are_no_parts_of_one_are_refused(tmp_path, cells, said):
    with pytest.raises(DataError, match=said):
        read_runs(write_runs(tmp_path / "runs.csv", cells=lambda loss: cells))


def test_a_record_that_is_no_law_of_a_task_is_refused():
    with pytest.raises(FitError, match="holds no law of a task"):
        TaskLaw.from_dict({"chance": 0.5, "fits": [{"form": "straight"}]})
