"""`fit`: one JSON document with the agreed keys, people's text on stderr, one-line refusals, files that others read."""

from __future__ import annotations

import json

import numpy as np
import pytest

from chinchilla_lm.cli.main import run_command
from chinchilla_lm.laws.forms.additive import AdditiveLaw
from chinchilla_lm.laws.forms.record import law_from_dict

TRUTH = AdditiveLaw(E=1.8, A=482.0, B=2085.0, alpha=0.348, beta=0.366)
FIT_KEYS = {
    *("method", "form", "E", "A", "B", "alpha", "beta", "a", "b", "objective", "n_runs", "intervals", "warnings"),
    *("backtest", "forecast", "diagnosis", "comparison", "frontier", "optima", "target", "runs", "draws", "hash"),
}
QUICK = ("--bootstrap", "0", "--no-diagnosis")


@pytest.fixture
def runs(tmp_path):
    """An exact sweep of 4 x 5 runs."""
    path = tmp_path / "runs.csv"
    lines = ["n_params,n_tokens,flops,loss"]
    for flops in (1e19, 3e19, 1e20, 3e20):
        for size in np.geomspace(0.2, 5, 5):
            params = TRUTH.optimum(flops)[0] * size
            tokens = flops / 6 / params
            lines.append(f"{params},{tokens},{flops},{TRUTH.loss(params, tokens)}")
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def noisy(tmp_path):
    """A sweep of 7 x 7 runs with .3 % noise, named, with distinct tokens."""
    rng = np.random.default_rng(7)
    path = tmp_path / "noisy.csv"
    lines = ["run,n_params,n_tokens,flops,loss,n_unique_tokens"]
    for flops in np.geomspace(1e18, 1e21, 7):
        for size in np.geomspace(0.25, 4, 7):
            params = TRUTH.optimum(flops)[0] * size
            tokens = flops / 6 / params
            loss = TRUTH.loss(params, tokens) * np.exp(rng.normal(scale=0.003))
            lines.append(f"r{len(lines)},{params:.6g},{tokens:.6g},{flops:.6g},{loss:.5f},{tokens / 2:.6g}")
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def curves(tmp_path):
    """Training curves of a law at a constant learning rate: nine sizes of three lengths, forty checkpoints each."""
    path = tmp_path / "curves.csv"
    lines = ["run,n_params,step,loss"]
    for index, size in enumerate(np.geomspace(3e7, 3e9, 9)):
        for step in np.geomspace(100, 100_000 * (1 + index % 3), 40).round():
            lines.append(f"size{size:.3g},{size},{step:.0f},{TRUTH.loss(size, step * 524288)}")
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def command(capsys):
    def run(*words):
        code = run_command(["fit", *map(str, words)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def document(command):
    def run(*words):
        code, out, err = command(*words, "--json")
        assert code == 0, err
        return json.loads(out), err

    return run


def refused(result):
    code, out, err = result
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_the_document_has_the_agreed_keys_and_no_text_of_people(document, noisy):
    record, said = document(noisy, "--bootstrap", "200", "--target-flops", "1e22")
    assert record.keys() >= FIT_KEYS
    assert record["n_runs"] == 49
    for name in ("E", "A", "B", "alpha", "beta", "a", "b"):
        assert record["intervals"][name].keys() == {"low", "high", "se"}
        assert record["intervals"][name]["low"] < record[name] < record["intervals"][name]["high"]
    assert record["intervals"]["a"]["low"] < TRUTH.a < record["intervals"]["a"]["high"]
    assert len(record["draws"]) == 200
    assert "forecast" in said
    assert "back-test" in said


def test_the_forecast_holds_the_truth_of_the_law_that_made_the_runs(document, noisy):
    record, _ = document(noisy, "--bootstrap", "0", "--target-flops", "1e22")
    ahead = record["forecast"]
    truth = TRUTH.loss(ahead["params"], ahead["tokens"])
    assert ahead["low"] < truth < ahead["high"]
    assert ahead["raw"]["low"] < truth < ahead["raw"]["high"]
    assert 6 * ahead["params"] * ahead["tokens"] == pytest.approx(1e22)
    assert record["target"] == {"flops": 1e22, "params": None, "tokens": None}
    own, _ = document(noisy, *QUICK, "--target-params", "3B", "--target-tokens", "100B")
    assert own["forecast"]["params"] == 3e9
    assert own["forecast"]["bracket"] is None


@pytest.mark.parametrize("loss", ["lad", "ls", "huber"])
def test_exact_runs_give_their_law_by_every_objective(document, runs, loss):
    record, _ = document(runs, "--loss", loss, *QUICK)
    assert record["n_runs"] == 20
    for name in ("E", "A", "B", "alpha", "beta"):
        assert record[name] == pytest.approx(getattr(TRUTH, name), rel=1e-3)
    assert record["draws"] is None
    assert record["diagnosis"] is None


def test_the_papers_delta_is_an_option(document, noisy):
    record, _ = document(noisy, "--delta", "1e-3", *QUICK)
    assert record["delta"] == 1e-3


def test_all_approaches_stand_side_by_side(document, runs):
    record, said = document(runs, "--method", "all", *QUICK)
    assert record["isoflop"]["a"] == pytest.approx(TRUTH.a, abs=0.02)
    assert [valley["flops"] for valley in record["isoflop"]["valleys"]] == pytest.approx([1e19, 3e19, 1e20, 3e20])
    assert all(valley["parabola"] for valley in record["isoflop"]["valleys"])
    assert {answer["approach"] for answer in record["approaches"]["answers"]} == {"isoflop", "parametric"}
    assert record["envelope"] is None
    assert "approach 1 was left out" in said


def test_isoflop_alone_is_a_law_that_the_planner_reads(document, runs):
    record, _ = document(runs, "--method", "isoflop")
    assert record["method"] == "isoflop"
    assert record["a"] + record["b"] == pytest.approx(1)
    assert law_from_dict(record).optimum(1e20)[0] == pytest.approx(TRUTH.optimum(1e20)[0], rel=0.1)


def test_the_envelope_of_training_curves(document, command, curves, runs):
    words = (curves, "--tokens-per-step", "524288", "--schedule", "constant", *QUICK)
    record, _ = document(*words, "--method", "envelope")
    assert record["a"] == pytest.approx(TRUTH.a, abs=0.05)
    assert record["envelope"]["n_runs"] == 9
    whole, said = document(*words, "--method", "all", "--checkpoints", "all")
    assert whole["n_runs"] == 360
    assert {answer["approach"] for answer in whole["approaches"]["answers"]} >= {"envelope", "parametric"}
    final, said = document(*words)
    assert final["n_runs"] == 9
    assert "351 earlier lines of 9 runs were left out" in said
    assert "this table has no column run" in refused(command(runs, "--method", "envelope"))


@pytest.mark.parametrize("form", ["coupled", "kaplan", "overtraining", "repetition", "best"])
def test_every_form_is_fitted_recorded_and_read_back(document, noisy, form):
    record, said = document(noisy, "--form", form, *QUICK[2:], "--bootstrap", "30")
    law = law_from_dict(record)
    assert law.form == record["form"]
    assert record["form"] == form or form == "best"
    assert "a" in record["intervals"]
    assert 0.3 < record["a"] < 0.7
    assert len(record["draws"][0]) == (6 if law.form in ("coupled", "kaplan") else 5)
    assert law.form in said


@pytest.mark.parametrize("method", ["delta", "pairs", "wild", "cluster", "parametric"])
def test_every_kind_of_interval_holds_the_truth_here(document, noisy, method):
    record, said = document(noisy, "--intervals", method, "--bootstrap", "300", "--no-diagnosis")
    interval = record["intervals"]["a"]
    assert interval["low"] < TRUTH.a < interval["high"]
    assert method in record["interval_method"]
    assert method in said


def test_a_long_table_gets_fewer_resamples_and_is_told(document, tmp_path):
    rng = np.random.default_rng(0)
    params, tokens = 10 ** rng.uniform(7, 9, 6_000), 10 ** rng.uniform(9, 11, 6_000)
    loss = TRUTH.loss(params, tokens) * np.exp(rng.normal(scale=0.003, size=6_000))
    path = tmp_path / "long.csv"
    path.write_text(
        "n_params,n_tokens,loss\n" + "".join(f"{n},{d},{v}\n" for n, d, v in zip(params, tokens, loss, strict=True))
    )
    record, said = document(path)
    assert record["n_runs"] == 6_000
    assert record["alpha"] == pytest.approx(TRUTH.alpha, abs=0.005)
    assert len(record["draws"]) == 400
    assert "666 resamples instead of 4000" in said
    assert "1000 of 6000 runs" in said
    assert record["runs"]["n_shown"] <= 600


def test_few_runs_are_fitted_and_what_they_cannot_carry_is_said(document, tmp_path):
    path = tmp_path / "few.csv"
    rows = [(1e8, 2e9), (3e8, 2e9), (1e8, 2e10), (1e9, 2e10), (3e8, 6e9), (1e9, 2e9)]
    path.write_text("n_params,n_tokens,loss\n" + "\n".join(f"{n},{d},{TRUTH.loss(n, d)}" for n, d in rows))
    record, said = document(path, "--bootstrap", "20")
    assert record["diagnosis"] is None
    assert "8 at least" in said


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (("--params-column", "siez"), "--params-column names"),
        (("--delta", "tiny"), "write auto, or a number"),
        (("--delta", "-1"), "--delta -1.0 must be finite and > 0"),
        (("--loss", "lad", "--delta", "1e-3"), "leave out one of them"),
        (("--bootstrap", "1"), "must be 0 or at least 2"),
        (("--bootstrap", "0", "--intervals", "pairs"), "give --bootstrap 4000"),
        (("--cluster", "params"), "needs --intervals cluster or wild"),
        (("--intervals", "cluster", "--cluster", "run"), "--run-column"),
        (("--form", "coupled", "--intervals", "profile"), "made for the additive form"),
        (("--form", "repetition"), "--unique-tokens-column"),
        (("--method", "isoflop", "--form", "coupled"), "fits no form"),
        (("--method", "isoflop", "--target-flops", "1e22"), "--method parametric"),
        (("--remedy", "law"), "--method isoflop"),
        (("--seed", "-1"), "--seed -1 must be >= 0"),
        (("--prior", "--form", "coupled"), "--form additive"),
        (("--tokens-per-step", "5"), "leave out --tokens-per-step"),
        (("--target-params", "1B"), "names no run; add --target-tokens"),
        (("--target-flops", "1e22", "--target-params", "1B", "--target-tokens", "1B"), "leave out one"),
        (("--target-flops", "many"), "no number"),
        (("--out", "law.toml"), "must end in .json"),
        (("--plot", "fit.pdf"), "must end in .png or .svg"),
        (("--report", "fit"), "must end in .html"),
        (("--where", "n_params"), "COLUMN=VALUE"),
        (("--form", "cubic"), "cubic"),
    ],
)
def test_wrong_requests_have_one_line(command, runs, words, answer):
    assert answer in refused(command(runs, *words))


def test_too_few_and_hopeless_runs_have_one_line(command, tmp_path):
    path = tmp_path / "few.csv"
    path.write_text("n_params,n_tokens,loss\n1e8,2e9,3\n2e8,2e9,2.9\n")
    assert "all 2 runs have 2e+09 tokens" in refused(command(path))
    path.write_text("n_params,n_tokens,loss\n1e8,2e9,3\n2e8,3e9,2.9\n")
    assert "cannot determine the law" in refused(command(path))
    assert "No such file" in refused(command(tmp_path / "none.csv"))


def test_a_prior_carries_runs_that_are_too_few(document, command, tmp_path):
    path = tmp_path / "four.csv"
    rows = [(1e8, 2e9), (3e8, 2e10), (1e9, 2e9), (1e9, 2e10)]
    path.write_text("n_params,n_tokens,loss\n" + "\n".join(f"{n},{d},{TRUTH.loss(n, d)}" for n, d in rows))
    assert "give a prior" in refused(command(path))
    record, _ = document(path, "--prior", *QUICK)
    assert record["alpha"] == pytest.approx(TRUTH.alpha, abs=0.15)


def test_repeated_text_is_told_and_counted_by_its_worth(document, noisy):
    record, said = document(noisy, *QUICK)
    assert "49 of 49 runs repeat their text" in said
    record, said = document(noisy, "--form", "repetition", *QUICK)
    assert "by what it is worth" in said
    assert record["repeated_tokens"] > 0


def test_hints_repeat_how_the_file_is_read(command, noisy):
    code, out, err = command(noisy, *QUICK, "--flops-column", "6ND", "--params-unit", "1")
    assert code == 0, err
    assert f"chinchilla design {noisy} --flops-column 6ND --params-unit 1 --budget 1e21" in out


def test_the_law_file_plans(command, noisy, tmp_path, capsys):
    law = tmp_path / "law.json"
    code, out, _ = command(noisy, "--bootstrap", "50", "--out", law)
    assert code == 0
    assert f"chinchilla plan --law {law} --budget 1e22" in out
    assert f"chinchilla design {noisy} --budget 1e21" in out
    assert run_command(["plan", "--law", str(law), "--budget", "1e22", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["params"] == pytest.approx(TRUTH.optimum(1e22)[0], rel=0.2)
    assert planned["intervals"]["params"]["low"] < planned["params"]
