"""`plan` and `fit`: one JSON document with the agreed keys, people's text on stderr, refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest

from chinchilla_lm.cli.laws import fit, plan
from chinchilla_lm.core.errors import DataError, PlanError, UnitError
from chinchilla_lm.laws.forms.additive import AdditiveLaw

TRUTH = AdditiveLaw(E=1.8, A=482.0, B=2085.0, alpha=0.348, beta=0.366)
FIT_KEYS = {"method", "form", "E", "A", "B", "alpha", "beta", "a", "b", "objective", "n_runs"}
PLAN_KEYS = {"params", "tokens", "flops", "loss", "loss_low", "loss_high", "tokens_per_param", "epochs"}


@pytest.fixture
def runs(tmp_path):
    path = tmp_path / "runs.csv"
    lines = ["n_params,n_tokens,flops,loss"]
    for flops in (1e19, 3e19, 1e20, 3e20):
        for size in np.geomspace(0.2, 5, 5):
            params = TRUTH.optimum(flops)[0] * size
            tokens = flops / 6 / params
            lines.append(f"{params},{tokens},{flops},{TRUTH.loss(params, tokens)}")
    path.write_text("\n".join(lines))
    return path


def document(capsys):
    captured = capsys.readouterr()
    return json.loads(captured.out), captured.err


def test_plan_writes_one_document(capsys):
    plan(budget="5.76e23", json=True)
    record, people = document(capsys)
    assert PLAN_KEYS | {"gpu_hours", "cost", "flat_band", "shape", "law"} <= set(record)
    assert record["params"] == pytest.approx(72.2e9, rel=0.01)  # Besiroglu et al. 2024: about 20 tokens a parameter
    assert record["tokens_per_param"] == pytest.approx(18.4, abs=0.1)
    assert record["loss_low"] < record["loss"] < record["loss_high"]
    assert set(record["flat_band"]) == {"params_low", "params_high", "loss_penalty"}
    assert record["law"] == "besiroglu2024"
    assert "tokens" in people


def test_plan_without_json_talks_to_people_on_stdout(capsys):
    plan(budget="1e20", law="hoffmann2022-approach1")
    captured = capsys.readouterr()
    assert "parameters" in captured.out
    assert captured.err == ""


def test_plan_prices_hours_and_dollars(capsys):
    plan(budget="8 H100-hours", hardware="H100", price=2.0, json=True)
    record, _ = document(capsys)
    assert record["gpu_hours"] == pytest.approx(8)
    assert record["cost"] == pytest.approx(16)


def test_plan_with_little_text_repeats_it(capsys):
    plan(budget="1e20", unique_tokens="100M", json=True)
    record, _ = document(capsys)
    assert record["epochs"] == pytest.approx(record["tokens"] / 1e8)
    assert record["epochs"] > 4


def test_a_fit_s_document_is_a_law_for_plan(capsys, runs, tmp_path):
    fit(runs, bootstrap=20, json=True)
    record, _ = document(capsys)
    assert FIT_KEYS | {"intervals", "warnings", "backtest"} <= set(record)
    assert record["method"] == "parametric"
    assert record["a"] == pytest.approx(TRUTH.a, rel=1e-6)
    assert set(record["intervals"]["E"]) == {"low", "high", "se"}
    assert record["backtest"]["median_error_percent"] < 0.01
    path = tmp_path / "law.json"
    path.write_text(json.dumps(record))
    for law in (str(path), str(tmp_path)):  # a file, and a run directory that holds it
        plan(budget="1e21", law=law, json=True)
        planned, _ = document(capsys)
        assert planned["params"] == pytest.approx(TRUTH.optimum(1e21)[0], rel=1e-4)
        assert planned["loss_low"] < planned["loss"]


def test_fit_all_with_a_target(capsys, runs):
    fit(runs, method="all", bootstrap=0, target_flops="3e21", json=True)
    record, _ = document(capsys)
    assert record["isoflop"]["a"] == pytest.approx(TRUTH.a, abs=0.02)
    assert len(record["isoflop"]["budgets"]) == 4
    made = record["forecast"]
    assert made["low"] < TRUTH.loss(*TRUTH.optimum(3e21)) < made["high"]
    assert made["params"] == pytest.approx(TRUTH.optimum(3e21)[0], rel=1e-3)


@pytest.mark.parametrize(("loss", "n"), [("lad", 20), ("ls", 20)])
def test_fit_by_other_losses(capsys, runs, loss, n):
    fit(runs, loss=loss, bootstrap=0, json=True)
    record, _ = document(capsys)
    assert record["n_runs"] == n
    assert record["alpha"] == pytest.approx(TRUTH.alpha, rel=1e-4)
    assert record["intervals"] == {}


def test_fit_isoflop_alone(capsys, runs):
    fit(runs, method="isoflop", json=True)
    record, _ = document(capsys)
    assert record["method"] == "isoflop"
    assert record["a"] + record["b"] == pytest.approx(1)
    with pytest.raises(PlanError, match="--method parametric"):
        fit(runs, method="isoflop", target_flops="1e22")


def test_wrong_requests_have_one_line(runs, tmp_path):
    with pytest.raises(UnitError):
        plan(budget="5 parsecs")
    with pytest.raises(PlanError, match="did you mean"):
        plan(budget="1e20", law="besiroglu")
    with pytest.raises(PlanError, match="--hardware"):
        plan(budget="5m")
    with pytest.raises(PlanError, match="--hardware"):
        plan(budget="1e20", price=2.0)
    with pytest.raises(DataError, match="params-column"):
        fit(runs, params_column="siez")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(PlanError, match="holds no law"):
        plan(budget="1e20", law=str(tmp_path / "list.json"))
