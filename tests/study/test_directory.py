"""A run directory: resumed by the same request, refused to another, its clock and stages kept."""

from __future__ import annotations

import pytest

from chinchilla_lm.core.errors import BudgetError, ConfigError
from chinchilla_lm.study.directory import RunDirectory, open_run
from chinchilla_lm.study.request import Allowance, StudyConfig, allowance_of

REQUEST = StudyConfig(corpus=("stdlib",), budget="5m")


def test_the_same_request_reopens_and_another_is_refused_naming_what_differs(tmp_path):
    open_run(tmp_path / "run", REQUEST)
    open_run(tmp_path / "run", REQUEST)
    with pytest.raises(ConfigError, match="budget was '5m', now '6m'.*--out"):
        open_run(tmp_path / "run", StudyConfig(corpus=("stdlib",), budget="6m"))


def test_a_run_from_before_there_were_suites_is_the_same_request(tmp_path):
    open_run(tmp_path / "run", REQUEST)
    path = tmp_path / "run" / "config.toml"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if not line.startswith("suite")) + "\n")
    assert len(path.read_text().splitlines()) == len(lines) - 3
    open_run(tmp_path / "run", REQUEST)


def test_a_folder_with_other_files_is_not_taken(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match="no run directory"):
        open_run(tmp_path, REQUEST)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_finished_stage_and_the_clock_survive_a_reopening(tmp_path):
    directory = open_run(tmp_path, REQUEST)
    with directory.stage("measure") as fields:
        fields["flops"] = 3.0
    assert directory.is_finished("measure")
    again = RunDirectory(tmp_path)
    assert again.is_finished("measure")
    assert not again.is_finished("train")
    assert again.stage_records()[0]["flops"] == 3.0
    assert again.spent_seconds() >= again.stage_records()[0]["seconds"]


def test_a_stage_that_fails_is_not_finished(tmp_path):
    directory = open_run(tmp_path, REQUEST)
    with pytest.raises(RuntimeError), directory.stage("train"):
        raise RuntimeError
    assert not directory.is_finished("train")


@pytest.mark.parametrize(
    ("budget", "wanted"),
    [("20m", Allowance(kind="seconds", amount=1200.0)), ("1e15", Allowance(kind="flops", amount=1e15))],
)
def test_time_and_flops_are_allowances(budget, wanted):
    assert allowance_of(StudyConfig(corpus=("x",), budget=budget), "cpu") == wanted


def test_hours_of_a_device_count_only_where_it_is():
    config = StudyConfig(corpus=("x",), budget="2 H100-hours")
    assert allowance_of(config, "NVIDIA H100 80GB HBM3") == Allowance(kind="seconds", amount=7200.0)
    with pytest.raises(BudgetError, match="chinchilla plan"):
        allowance_of(config, "some cpu")


@pytest.mark.parametrize("budget", ["1s", "$50"])
def test_budgets_that_buy_no_study_are_refused_with_the_way_out(budget):
    with pytest.raises(BudgetError, match="5m|20m"):
        allowance_of(StudyConfig(corpus=("x",), budget=budget), "cpu")


@pytest.mark.parametrize(
    "wrong", [{"vocab": 100}, {"seed": -1}, {"sweep_share": 0.0}, {"corpus": ()}, {"context": 3}, {"suite_items": 0}]
)
def test_a_request_out_of_range_is_refused(wrong):
    with pytest.raises(ConfigError):
        StudyConfig(**{"corpus": ("x",), "budget": "5m", **wrong})
