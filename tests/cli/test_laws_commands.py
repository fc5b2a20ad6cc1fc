"""`fit`: one JSON document with the agreed keys, people's text on stderr, refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest

from chinchilla_lm.cli.laws import fit
from chinchilla_lm.core.errors import DataError, PlanError
from chinchilla_lm.laws.forms.additive import AdditiveLaw

TRUTH = AdditiveLaw(E=1.8, A=482.0, B=2085.0, alpha=0.348, beta=0.366)
FIT_KEYS = {"method", "form", "E", "A", "B", "alpha", "beta", "a", "b", "objective", "n_runs"}


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


def test_wrong_requests_have_one_line(runs):
    with pytest.raises(DataError, match="params-column"):
        fit(runs, params_column="siez")
