"""The main job end to end, as a user runs it: small, on real text (this interpreter's standard library)."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chinchilla_lm.core.records import read_records
from chinchilla_lm.laws.count import count_parameters, training_flops_per_token
from chinchilla_lm.model.huggingface import load_model, save_model
from chinchilla_lm.study.directory import RunDirectory
from chinchilla_lm.study.finish import keep_draft

# Far below where laws hold: it is the machinery that is tested, the forecast only for being made and kept.
WORDS = ("run", "--budget", "2e11", "--sweep-share", "0.35", "--least-rung-flops", "4e9")
WORDS += ("--vocab", "300", "--context", "32", "--threads", "1")
SUITE = ("--suite", "own-words", "--suite-items", "60")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for name in ("argparse", "ast", "datetime", "decimal", "doctest", "inspect", "tarfile", "typing"):
        source = Path(os.__file__).with_name(f"{name}.py")
        if source.exists():
            (folder / source.name).write_text(source.read_text())
    return folder


def command(corpus: Path, out: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "chinchilla_lm.cli.main",
        *WORDS,
        *SUITE,
        "--corpus",
        str(corpus),
        "--out",
        str(out),
        "--json",
    ]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2] / "src")}


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    """Return (run directory, the JSON document it printed)."""
    out = tmp_path_factory.mktemp("run") / "run"
    done = subprocess.run(command(corpus, out), capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    return out, json.loads(done.stdout)


def test_the_document_has_the_keys_that_scripts_rely_on(finished):
    out, document = finished
    wanted = {"run_dir", "model_dir", "report", "flops_spent", "law", "plan", "predicted", "actual", "bits_per_byte"}
    assert wanted <= set(document)
    assert {"E", "A", "B", "alpha", "beta", "a", "b", "intervals", "warnings", "n_runs"} <= set(document["law"])
    assert "</html>" in Path(document["report"]).read_text()
    assert document["predicted"]["low"] < document["predicted"]["loss"] < document["predicted"]["high"]


def test_the_budget_is_kept_within_a_tenth(finished):
    assert finished[1]["flops_spent"] == pytest.approx(2e11, rel=0.1)


def test_the_forecast_was_written_before_the_training_began(finished):
    out, _ = finished
    stages = [record["stage"] for record in read_records(out / "stages.jsonl", "stage/1")]
    assert stages == ["measure", "prepare", "sweep", "forecast", "train", "evaluate", "report"]
    first_training_record = (out / "train" / "records.jsonl").stat()
    assert (out / "forecast.json").stat().st_mtime_ns <= first_training_record.st_mtime_ns


def test_the_ladders_models_and_the_final_one_answer_the_same_items_forecast_before_the_training(finished):
    out, document = finished
    trials = read_records(out / "sweep" / "records.jsonl", "trial/1")
    asked = [trial["suites"]["own-words"] for trial in trials if trial["purpose"] == "ladder"]
    assert len(asked) >= 4
    assert all("suites" not in trial for trial in trials if trial["purpose"] != "ladder")
    stored = json.loads((out / "suites" / "own-words.json").read_text())
    assert {found["items"] for found in asked} == {60} == {len(stored["items"])}
    made, measured = (
        json.loads((out / "forecast.json").read_text())["tasks"]["own-words"],
        document["tasks"]["own-words"],
    )
    assert made["low"] < made["accuracy"] < made["high"]
    assert measured["predicted"] == {key: made[key] for key in ("accuracy", "low", "high")}
    assert measured["inside"] == (made["low"] <= measured["accuracy"] <= made["high"])
    assert len(document["law"]["tasks"]["own-words"]["runs"]) == len(asked)
    assert "own-words: right answers over loss" in (out / "report.html").read_text()


def test_asking_is_in_the_flops_spent(finished):
    out, document = finished
    tokens = json.loads((out / "suites" / "own-words.json").read_text())["tokens"]
    stage = next(s for s in read_records(out / "stages.jsonl", "stage/1") if s["stage"] == "evaluate")
    final = training_flops_per_token(load_model(out / "model").shape)
    assert stage["flops"] == pytest.approx(tokens * final / 3)


def test_a_forecast_below_the_floor_is_not_called_established(finished):
    out, document = finished
    assert document["predicted"]["established"] is False
    assert any("1e+12" in reason for reason in json.loads((out / "forecast.json").read_text())["reasons"])


def test_a_small_model_of_the_sweep_is_left_as_a_draft_if_one_is_small_enough(finished, tmp_path):
    out, _ = finished
    final = count_parameters(load_model(out / "model").shape).total
    assert not (out / "sweep" / "drafts").exists()
    drafts = sorted((out / "drafts").glob("*"))
    sizes = {json.loads(line)["params_total"] for line in (out / "sweep" / "records.jsonl").read_text().splitlines()}
    assert len(drafts) == int(min(sizes) <= final / 2)
    directory = RunDirectory(tmp_path)
    for size in (90_000, 300_000, 700_000):
        save_model(load_model(out / "model"), directory.sweep / "drafts" / str(size))
    assert keep_draft(directory, 1_000_000) == directory.drafts / "90000"
    assert keep_draft(directory, 1_000_000) == directory.drafts / "90000"  # again: nothing is left to choose from
    assert load_model(directory.drafts / "90000").shape == load_model(out / "model").shape
    assert keep_draft(RunDirectory(tmp_path / "none"), 1000) is None


def test_transformers_loads_the_folder_and_finds_the_same_loss(finished):
    out, _ = finished
    check = json.loads((out / "eval.json").read_text())["transformers_check"]
    assert abs(check["difference"]) < 1e-4
    assert check["tokens"] > 0


def test_the_trained_model_beats_the_best_trial_of_the_sweep(finished):
    out, document = finished
    trials = read_records(out / "sweep" / "records.jsonl", "trial/1")
    assert document["actual"]["loss"] < min(record["loss"] for record in trials if record["status"] == "done")


def test_the_same_command_again_trains_nothing_and_says_the_same(finished, corpus):
    out, document = finished
    before = (out / "model" / "model.safetensors").stat().st_mtime_ns
    done = subprocess.run(command(corpus, out), capture_output=True, text=True, env=environment(), check=True)
    again = json.loads(done.stdout)
    assert again["actual"] == document["actual"]
    assert (out / "model" / "model.safetensors").stat().st_mtime_ns == before


def test_a_finished_run_leaves_its_weights_once(finished):
    out, _ = finished
    left = {path.relative_to(out).parts[0] for path in out.rglob("*.safetensors")}
    assert left <= {"model", "drafts"}
    assert not list(out.rglob(".*.tmp"))
    assert {path.name for path in (out / "sweep").iterdir()} == {"design.json", "records.jsonl", "registry.sqlite"}


def test_another_request_in_the_same_directory_is_refused_in_one_line(finished, corpus):
    words = [word if word != "2e11" else "4e11" for word in command(corpus, finished[0])]
    done = subprocess.run(words, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 2
    assert "budget was '2e11', now '4e11'" in done.stderr
    assert "Traceback" not in done.stderr


def test_training_the_plan_alone_gives_the_same_weights(finished, tmp_path):
    out, _ = finished
    words = [sys.executable, "-m", "chinchilla_lm.cli.main", "train", str(out / "plan.toml")]
    words += ["--data", str(out / "data"), "--out", str(tmp_path / "alone"), *SUITE, "--json"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model_dir"] == str(tmp_path / "alone" / "model")
    assert digest(tmp_path / "alone") == digest(out)  # asked a suite at each evaluation, and no weight is another
    evaluations = read_records(tmp_path / "alone" / "records.jsonl", "evaluation/1")
    assert len(evaluations) > 1
    last = evaluations[-1]["suites"]["own-words"]
    assert last["accuracy"] == json.loads((out / "eval.json").read_text())["tasks"]["own-words"]["accuracy"]
    assert not list((tmp_path / "alone").glob("checkpoints"))
    again = subprocess.run(words, capture_output=True, text=True, env=environment(), check=False)
    assert json.loads(again.stdout) == json.loads(done.stdout)  # the finished job is only read
    plan = (out / "plan.toml").read_text()
    words[4] = str(tmp_path / "other.toml")
    (tmp_path / "other.toml").write_text(plan.replace("seed = 0", "seed = 1"))
    other = subprocess.run(words, capture_output=True, text=True, env=environment(), check=False)
    assert other.returncode == 2
    assert "holds the model of another config" in other.stderr


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model" / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.slow
def test_killed_at_random_instants_the_same_command_ends_at_bit_identical_weights(finished, corpus, tmp_path):
    seconds = sum(record["seconds"] for record in read_records(finished[0] / "stages.jsonl", "stage/1"))
    out, rng, kills = tmp_path / "run", random.Random(0), 0
    # The measurements may choose another number format; everything else is a function of the request.
    out.mkdir()
    for name in ("config.toml", "env.json"):
        (out / name).write_bytes((finished[0] / name).read_bytes())
    stage = next(line for line in (finished[0] / "stages.jsonl").read_text().splitlines() if '"measure"' in line)
    (out / "stages.jsonl").write_text(stage + "\n")
    while True:
        job = subprocess.Popen(
            command(corpus, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment()
        )
        try:
            job.wait(timeout=rng.uniform(3.0, seconds / 2) if kills < 8 else None)
            break
        except subprocess.TimeoutExpired:
            job.send_signal(signal.SIGKILL)
            job.wait()
            kills += 1
            time.sleep(1.0)  # orphaned workers end at their next report
    assert kills >= 3
    assert digest(out) == digest(finished[0])
