"""`plan`: one JSON document with the agreed keys, people's text on stderr, pictures, refusals of one line."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pytest

from chinchilla_lm.cli.main import run_command
from chinchilla_lm.laws.forms.additive import AdditiveLaw

TRUTH = AdditiveLaw(E=1.8, A=482.0, B=2085.0, alpha=0.348, beta=0.366, params_convention="total")
KEYS = {"params", "tokens", "flops", "loss", "loss_low", "loss_high", "tokens_per_param", "epochs"}
KEYS |= {"gpu_hours", "cost", "flat_band", "shape", "law"}


def document(capsys):
    captured = capsys.readouterr()
    return json.loads(captured.out), captured.err


def answer(capsys, words):
    """Return what `chinchilla plan WORDS --json` prints: the document, and the text for people."""
    assert run_command(["plan", *shlex.split(words), "--json"]) == 0
    return document(capsys)


def write_law(folder, **fields):
    path = folder / "law.json"
    path.write_text(json.dumps({**TRUTH.to_dict(), **fields}))
    return path


def test_a_budget_writes_one_document(capsys):
    record, people = answer(capsys, "--budget 5.76e23")
    assert set(record) >= KEYS
    assert record["params"] == pytest.approx(72.2e9, rel=0.01)  # Besiroglu et al. 2024: about 20 tokens a parameter
    assert record["tokens_per_param"] == pytest.approx(18.4, abs=0.1)
    assert record["loss_low"] < record["loss"] < record["loss_high"]
    assert set(record["flat_band"]) == {"params_low", "params_high", "loss_penalty"}
    assert record["shape"] == record["shapes"][0]["shape"]
    assert record["law"] == "besiroglu2024"
    assert "tokens" in people


def test_without_json_people_are_told_on_stdout(capsys):
    assert run_command(shlex.split("plan --budget 1e20 --law hoffmann2022-approach1")) == 0
    captured = capsys.readouterr()
    assert "parameters" in captured.out
    assert "[0m" not in captured.out
    assert captured.err == ""


def test_hours_and_dollars_are_priced(capsys):
    for words in ("--hardware H100", ""):  # the budget names the device itself
        record, _ = answer(capsys, f"--budget '8 H100-hours' --price 2.0 {words}")
        assert record["gpu_hours"] == pytest.approx(8)
        assert record["cost"] == pytest.approx(16)
    record, _ = answer(capsys, "--budget '$16' --hardware 4xH100 --price 2.0")
    assert record["gpu_hours"] == pytest.approx(8)
    assert record["training_seconds"] == pytest.approx(2 * 3600)


def test_a_loss_asks_for_its_budget_and_back(capsys):
    asked, people = answer(capsys, "--loss 2.5 --hardware H100 --price 2.0")
    back, _ = answer(capsys, f"--budget {asked['flops']!r}")
    assert back["loss"] == pytest.approx(2.5, rel=1e-9)
    assert back["params"] == pytest.approx(asked["params"], rel=1e-6)
    assert asked["intervals"]["cost"]["low"] < asked["cost"] < asked["intervals"]["cost"]["high"]
    assert "90 %" in people


def test_a_size_or_a_text_asks_for_the_rest(capsys):
    by_size, _ = answer(capsys, "--params 1B")
    by_tokens, _ = answer(capsys, f"--tokens {by_size['tokens']!r}")
    assert by_size["params"] == 1e9
    assert by_tokens["params"] == pytest.approx(1e9, rel=1e-9)


def test_little_text_repeats_and_says_what_it_supports(capsys):
    record, people = answer(capsys, "--budget 1e20 --unique-tokens 100M")
    assert record["epochs"] == pytest.approx(record["tokens"] / 1e8)
    assert record["epochs"] > 4
    assert [support["epochs"] for support in record["text"]] == [1.0, 4.0]
    assert "supports a compute-optimal model up to" in people


def test_serving_by_device_time_shrinks_the_model(capsys):
    in_flops, _ = answer(capsys, "--budget 1e23 --inference-tokens 1T")
    in_time, people = answer(
        capsys, "--budget 1e23 --inference-tokens 1T --decode-tokens 200B --decode-mfu 0.01 --hardware H100"
    )
    assert in_time["params"] < in_flops["params"]
    assert in_time["serving"]["decode_cost"] == pytest.approx(40)
    assert 0 < in_time["training_gpu_hours"] < in_time["gpu_hours"]
    assert "saves" in people


def test_a_fit_s_document_is_a_law_for_plan(capsys, tmp_path):
    runs = tmp_path / "runs.csv"
    lines = ["n_params,n_tokens,flops,loss"]
    for flops in (1e19, 3e19, 1e20, 3e20):
        for params in TRUTH.optimum(flops)[0] * np.geomspace(0.2, 5, 5):
            lines.append(f"{params},{flops / 6 / params},{flops},{TRUTH.loss(params, flops / 6 / params)}")
    runs.write_text("\n".join(lines))
    assert run_command(["fit", str(runs), "--bootstrap", "20", "--json"]) == 0
    record, _ = document(capsys)
    path = tmp_path / "law.json"
    path.write_text(json.dumps(record))
    for law in (str(path), str(tmp_path)):  # a file, and a run directory that holds it
        planned, _ = answer(capsys, f"--budget 1e21 --law {law}")
        assert planned["params"] == pytest.approx(TRUTH.optimum(1e21)[0], rel=1e-4)
        assert planned["loss_low"] < planned["loss"]


def test_resamples_in_a_law_file_become_intervals(capsys, tmp_path):
    constants = np.array([TRUTH.E, TRUTH.A, TRUTH.B, TRUTH.alpha, TRUTH.beta])
    draws = constants * np.exp(np.random.default_rng(0).normal(0, 0.02, (200, 5)))
    law = write_law(tmp_path, draws=draws.tolist(), largest_flops=3e20)
    record, people = answer(capsys, f"--budget 1e21 --law {law}")
    spread = record["intervals"]["params"]
    assert spread["low"] < record["params"] < spread["high"]
    assert not any("no intervals" in note for note in record["notes"])
    assert people.count("90 %") == 3  # size, tokens, loss


@pytest.mark.parametrize("name", ["plan.png", "plan.svg"])
def test_the_picture_is_drawn(capsys, tmp_path, name):
    path = tmp_path / name
    words = f"plan --budget 1e22 --unique-tokens 25B --law muennighoff2023 --plot {path}"
    assert run_command(shlex.split(words)) == 0
    head = path.read_bytes()[:200]
    assert head.startswith(b"\x89PNG") if name.endswith("png") else b"<?xml" in head
    assert str(path) in capsys.readouterr().out.replace("\n", "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--budget", "5 parsecs"], "parsecs"),
        ([], "nothing to plan for"),
        (["--budget", "1e20", "--loss", "2.5"], "two goals"),
        (["--budget", "1e20", "--law", "besiroglu"], "did you mean"),
        (["--budget", "5m"], "--hardware"),
        (["--budget", "1e20", "--price", "2"], "--hardware"),
        (["--budget", "8 A100-hours", "--hardware", "H100"], "different devices"),
        (["--budget", "1e20", "--decode-mfu", ".01"], "--inference-tokens"),
        (["--budget", "1e20", "--inference-tokens", "1B", "--decode-tokens", "2B"], "are more than"),
        (["--budget", "1e20", "--plot", "plan.gif"], ".png or .svg"),
        (["--budget", "1e20", "--law", "kaplan2020", "--plot", "plan.png"], "states losses"),
        (["--loss", "1.7"], "stays above 1.817"),
        (["--budget", "1e20", "--law", "list.json"], "holds no law"),
        (["--budget", "1e20", "--law", "draws.json"], "draws"),
        (["--budget", "1e20", "--hardware", "empty"], "env.json"),
        (["--budget", "1e20", "--vocab", "0"], "vocab"),
    ],
)
def test_a_wrong_request_is_one_line_and_exit_code_2(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "draws.json").write_text(json.dumps({**TRUTH.to_dict(), "draws": [["a"], 3]}))
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.iterdir())
    assert run_command(["plan", *words, "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert [line for line in captured.err.splitlines() if line.startswith("chinchilla: ") and said in line]
    assert sorted(tmp_path.iterdir()) == before
