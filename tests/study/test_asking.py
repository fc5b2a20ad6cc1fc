"""Which suites models are asked, what that costs, and the forecast of a task from a ladder's records."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from chinchilla_lm.core.errors import ConfigError, DataError
from chinchilla_lm.data.prepare import prepare
from chinchilla_lm.evals.item_sets import read_item_sets
from chinchilla_lm.laws.count import training_flops_per_token
from chinchilla_lm.laws.shapes import shape_on_path
from chinchilla_lm.study.asking import (
    SuiteChoice,
    asking_flops,
    asking_tokens,
    check_suites,
    choose_items,
    draw_item_sets,
    keep_item_sets,
)
from chinchilla_lm.study.request import Allowance, StudyConfig
from chinchilla_lm.study.speeds import MachineSpeeds, SpeedTable
from chinchilla_lm.study.tasks import fit_tasks, forecast_tasks, judge_tasks, task_lines, task_runs

FLOPS, MINUTES = Allowance(kind="flops", amount=1e13), Allowance(kind="seconds", amount=600.0)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    for name in ("argparse", "datetime", "doctest", "inspect", "tarfile", "typing"):
        (folder / f"{name}.py").write_text(Path(os.__file__).with_name(f"{name}.py").read_text())
    return prepare((str(folder),), folder / "prepared", vocab=300)


@pytest.fixture
def blimp(tmp_path) -> Path:
    rows = [{"uid": "ab"[n % 2], "good": f"the ship {n} is here", "bad": f"the ship {n} are here"} for n in range(40)]
    (tmp_path / "blimp.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        (SuiteChoice(names=("blip",)), "there is no suite 'blip'; choose from own-words, blimp"),
        (SuiteChoice(names=("none", "blimp")), "none stands alone"),
        (SuiteChoice(names=("own-words",), items=0), "must be >= 1"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(choice, said):
    with pytest.raises(ConfigError, match=said):
        check_suites(choice)


def test_suites_without_their_files_are_refused_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setattr("chinchilla_lm.evals.suites._has_hub", lambda: False)
    with pytest.raises(DataError, match="which blimp is read from"):
        check_suites(SuiteChoice(names=("blimp",), folder=tmp_path))


def test_a_study_that_names_no_suite_asks_own_words_but_not_in_a_minute(manifest):
    config = StudyConfig(corpus=("x",), budget="10m", suite_items=60)
    assert [one.suite.name for one in choose_items(config, MINUTES, manifest, 64)] == ["own-words"]
    assert choose_items(config, Allowance(kind="seconds", amount=60.0), manifest, 64) == ()
    assert choose_items(replace(config, suite=("none",)), MINUTES, manifest, 64) == ()


def test_items_are_those_of_the_seed_and_what_they_cost_is_counted(manifest, blimp):
    choice = SuiteChoice(names=("own-words", "blimp", "blimp"), folder=blimp, items=20, seed=3)
    drawn = draw_item_sets(choice, manifest, 64)
    assert [one.suite.name for one in drawn] == ["own-words", "blimp"]
    assert drawn == draw_item_sets(choice, manifest, 64)
    assert drawn[0].items != draw_item_sets(replace(choice, seed=4), manifest, 64)[0].items
    shape, tokens = shape_on_path(32, vocab=300, context=64), sum(one.tokens for one in drawn)
    assert asking_flops(drawn, shape) == pytest.approx(tokens * training_flops_per_token(shape) / 3)
    table = SpeedTable(flops_per_token=(training_flops_per_token(shape),), tokens_per_s=(5e4,))
    speeds = MachineSpeeds(worker=table, whole=table, n_workers=1)
    assert asking_tokens(drawn, FLOPS, shape, manifest.tokenizer_folder, speeds) == pytest.approx(tokens / 3)
    assert asking_tokens(drawn, MINUTES, shape, manifest.tokenizer_folder, speeds) > 0
    assert asking_tokens((), MINUTES, shape, manifest.tokenizer_folder, speeds) == 0


def test_a_job_that_goes_on_reads_its_items_and_refuses_other_suites(manifest, blimp, tmp_path):
    choice = SuiteChoice(names=("blimp",), folder=blimp, items=20)
    first = keep_item_sets(tmp_path / "suites", choice, manifest, 64)
    (blimp / "blimp.jsonl").unlink()
    assert keep_item_sets(tmp_path / "suites", choice, manifest, 64) == first == read_item_sets(tmp_path / "suites")
    with pytest.raises(ConfigError, match="holds the items of blimp, and this asks for own-words"):
        keep_item_sets(tmp_path / "suites", SuiteChoice(names=("own-words",)), manifest, 64)
    assert keep_item_sets(tmp_path / "none", SuiteChoice(names=()), manifest, 64) == ()


def trial(loss: float, accuracy: float, **changes):
    found = {"metric": "acc", "accuracy": accuracy, "standard_error": 0.005, "items": 4000, "chance": 0.5}
    return {"status": "done", "loss": loss, "suites": {"blimp": found}, **changes}


FORECAST = {"loss": 3.0, "low": 2.9, "high": 3.1, "level": 0.9}


def test_a_ladder_that_rises_forecasts_the_final_model_and_is_judged():
    records = [trial(loss, 0.5 + 0.1 * (5 - loss)) for loss in (3.4, 3.6, 3.9, 4.2, 4.5)]
    records += [{"status": "diverged"}, {"status": "done", "loss": 4.0}]
    made = forecast_tasks(fit_tasks(records), FORECAST, records)
    assert made["blimp"]["low"] < 0.70 < made["blimp"]["high"]
    assert made["blimp"]["runs"] == 5
    judged = judge_tasks({"blimp": {"accuracy": 0.70, "standard_error": 0.007}}, {**FORECAST, "tasks": made})
    assert judged["blimp"]["inside"] is True
    assert judged["blimp"]["predicted"]["accuracy"] == made["blimp"]["accuracy"]
    assert task_lines(made)[0].startswith("blimp will be right in ")


def test_three_models_make_no_forecast_and_say_why():
    records = [trial(loss, 0.6) for loss in (3.4, 3.6, 3.9)]
    made = forecast_tasks(fit_tasks(records), FORECAST, records)
    assert "3 runs do not make a law" in made["blimp"]["reason"]
    assert task_lines(made) == [f"blimp: no forecast, {made['blimp']['reason']}"]
    judged = judge_tasks({"blimp": {"accuracy": 0.7, "standard_error": 0.01}}, {**FORECAST, "tasks": made})
    assert "inside" not in judged["blimp"]
    assert judge_tasks({}, FORECAST) == {}  # a forecast from before there were suites


def test_no_right_answer_at_all_is_no_certainty():
    none_right = {"metric": "acc", "accuracy": 0.0, "standard_error": 0.0, "items": 298, "chance": 0.0}
    runs = task_runs([trial(4.0, 0.6), {"status": "done", "loss": 4.1, "suites": {"lambada": none_right}}])
    assert runs["blimp"][0].standard_error == 0.005
    assert runs["lambada"][0].standard_error == pytest.approx((1 / 300 * 299 / 300 / 298) ** 0.5)
