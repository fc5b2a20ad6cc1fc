"""`design` and `compare`: one JSON document, people's text on stderr, pictures, refusals."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pytest

from chinchilla_lm.cli.main import run_command
from chinchilla_lm.laws.forms.additive import AdditiveLaw

LAW = AdditiveLaw(E=1.8, A=482.0, B=2085.0, alpha=0.348, beta=0.366, params_convention="total")


def write_runs(path, gain=1.0, seed=0):
    rng = np.random.default_rng(seed)
    lines = ["n_params,n_tokens,loss"]
    for flops in (1e18, 1e19, 1e20):
        for size in np.geomspace(0.3, 3, 5):
            params = LAW.optimum(flops)[0] * size
            tokens = flops / 6 / params
            loss = LAW.loss(params * gain**0.5, tokens * gain**0.5) * np.exp(0.002 * rng.standard_normal())
            lines.append(f"{params},{tokens},{loss}")
    path.write_text("\n".join(lines))
    return path


def answer(capsys, words):
    """Return what `chinchilla WORDS --json` prints: the document, and the text for people."""
    assert run_command([*shlex.split(words), "--json"]) == 0
    captured = capsys.readouterr()
    return json.loads(captured.out), captured.err


def test_a_design_from_nothing_fits_its_budget(capsys):
    record, people = answer(capsys, "design --budget 1e20 --most-runs 15")
    assert record["schema"] == "design/1"
    assert 0 < record["cost"] <= 1e20
    assert record["target_flops"] == 1e22
    assert len(record["runs"]) <= 15
    assert sum(run["cost"] for run in record["runs"]) == pytest.approx(record["cost"])
    assert set(record["sd_after"]) == {"size", "loss"}
    assert "published laws" in people
    assert "per param" in people


def test_a_design_from_runs_lowers_what_they_leave(capsys, tmp_path):
    runs = write_runs(tmp_path / "runs.csv")
    picture = tmp_path / "design.png"
    record, people = answer(
        capsys,
        f"design {runs} --budget 3e20 --target-flops 1e23 --goal loss --branches .2 --most-runs 12 --plot {picture}",
    )
    assert record["sd_after"]["loss"]["total"] < record["sd_before"]["loss"]["total"]
    assert set(record["sd_after"]) == {"loss"}
    assert record["belief"] == "a fit of 15 runs"
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert str(picture) in people.replace("\n", "")


def test_a_design_takes_a_published_law_and_a_fit(capsys, tmp_path):
    path = tmp_path / "law.json"
    draws = [[1.8, 480.0, 2000.0, 0.347, 0.365], [1.82, 490.0, 2100.0, 0.349, 0.367]]
    path.write_text(json.dumps({**LAW.to_dict(), "draws": draws}))
    for law in ("besiroglu2024", str(path)):
        record, _ = answer(capsys, f"design --budget 1e20 --law {law} --most-runs 12 --trust-form")
        assert record["sd_after"]["size"]["misfit"] == 0
        assert law in record["belief"]


def test_a_comparison_finds_the_multiplier(capsys, tmp_path):
    a, b = write_runs(tmp_path / "old.csv"), write_runs(tmp_path / "new.csv", gain=1.6, seed=1)
    picture = tmp_path / "comparison.svg"
    record, people = answer(capsys, f"compare {a} {b} --at-flops 1e19 --plot {picture}")
    assert record["schema"] == "multiplier/1"
    assert record["low"] < 1.6 < record["high"]
    assert record["multiplier"] == pytest.approx(1.6, rel=0.15)
    assert "times less compute" in people
    assert "<svg" in picture.read_text()
    assert "times more compute" in answer(capsys, f"compare {b} {a}")[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["design", "--budget", "5m"], "--hardware"),
        (["design", "--budget", "1e20", "--branches", "1.5"], "--branches"),
        (["design", "--budget", "1e20", "--law", "kaplan2020"], "no additive form"),
        (["design", "--budget", "1e20", "--tokens-per-param", "50", "2"], "holds no run"),
        (["design", "--budget", "1e20", "--goal", "fame"], "--goal"),
        (["design", "--budget", "1e20", "--least-run-flops", "1e21"], "must be below"),
        (["design", "--budget", "1e20", "--noise-sd", "-1"], ".003 is common"),
        (["design", "--budget", "1e20", "--plot", "x.pdf"], ".png or .svg"),
        (["compare", "/no/such/a.csv", "/no/such/b.csv"], "/no/such/a.csv"),
    ],
)
def test_a_wrong_request_is_one_line_and_exit_code_2(words, said, capsys):
    assert run_command(words) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert "Traceback" not in captured.err
    assert len(captured.err.strip().splitlines()) == 1


def test_recipes_that_share_no_loss_are_refused(capsys, tmp_path):
    a, b = write_runs(tmp_path / "a.csv"), write_runs(tmp_path / "b.csv", gain=1e7)
    for words, said in (
        (f"compare {a} {b}", "do not overlap"),
        (f"design {a} --budget 1e16 --least-run-flops 1e17 --largest-run-flops 1e18", "pays no run"),
    ):
        assert run_command(shlex.split(words)) == 2
        assert said in capsys.readouterr().err
