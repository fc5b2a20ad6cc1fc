"""`chinchilla eval` on suites and domains: its JSON, a comparison, contamination, one-line errors."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from chinchilla_lm.cli.main import run_command
from chinchilla_lm.data.prepare import prepare


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("suites")
    rows = [{"uid": "ab"[n % 2], "good": f"the sea was {n}", "bad": f"{n} sea the was"} for n in range(12)]
    (place / "blimp.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    choices = ["said no to the ship.", "sang of whales and of the calm sea near the ship."]
    rows = [{"context": f"the cook {n} therefore", "choices": choices, "label": n % 2} for n in range(6)]
    (place / "copa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def ask(capsys, *words: object) -> dict:
    assert run_command(["eval", *map(str, words), "--weights", "float32", "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    return json.loads(out)


def test_suites_with_a_comparison_and_a_record(tiny_model, folder, capsys, tmp_path):
    words = (tiny_model, "--suite", "blimp", "--suite", "copa", "--suite-data", folder, "--limit", 8)
    record = ask(capsys, *words, "--against", tiny_model, "--out", tmp_path / "suites.json")
    assert record["schema"] == "suites/1"
    assert [one["suite"] for one in record["suites"]] == ["blimp", "copa"]
    blimp, copa = record["suites"]
    assert (blimp["items"], set(blimp["parts"]), copa["items"], copa["chance"]) == (8, {"a", "b"}, 6, 0.5)
    for one in record["suites"]:
        same = record["against"]["suites"][one["suite"]]
        assert (same["value"], same["difference"], same["p_value"]) == (one["value"], 0.0, 1.0)
    assert json.loads((tmp_path / "suites.json").read_text()) == record
    assert run_command(["eval", *map(str, words)]) == 0
    assert f"blimp acc                {blimp['value']:.4f} +- " in capsys.readouterr().out


def test_all_takes_the_suites_that_are_there(tiny_model, folder, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("chinchilla_lm.evals.suites._has_hub", lambda: False)
    text = tmp_path / "text"
    text.mkdir()
    for number in range(30):  # the second item of the suite, whole, stands in every document
        (text / f"{number}.txt").write_text(
            f"{number} of them: the cook 1 therefore sang of whales and of the calm sea near the ship. And {number} "
            * 3
        )
    prepare([str(text)], tmp_path / "prepared", vocab=300, heldout_bytes=300)
    record = ask(
        capsys, tiny_model, "--suite", "all", "--suite-data", folder, "--train-data", tmp_path / "prepared"
    )  # fmt: skip
    assert [one["suite"] for one in record["suites"]] == ["blimp", "copa"]
    assert record["contamination"]["copa"]["items"] == [1]
    assert record["contamination"]["blimp"]["found"] == 0


def test_domains_are_priced_together_and_apart(tiny_model, capsys, tmp_path):
    for name, text in (("sea", "the sea was calm and the sailor sang"), ("cook", "the cook said no")):
        (tmp_path / f"{name}.txt").write_text(text)
    places = [str(tmp_path / f"{name}.txt") for name in ("sea", "cook")]
    words = (tiny_model, "--corpus", places[0], "--corpus", places[1])
    record = ask(capsys, *words, "--by-domain", "--out", tmp_path / "domains.json")
    assert json.loads((tmp_path / "domains.json").read_text()) == record
    (tmp_path / "sea.txt").write_text("the sea was calm and the sailor sang to the cook " * 60)
    measured = ask(capsys, *words, "--out", tmp_path / "eval.json")
    assert json.loads((tmp_path / "eval.json").read_text()) == measured
    (tmp_path / "file").touch()
    assert run_command(["eval", *map(str, words), "--json", "--out", str(tmp_path / "file" / "eval.json")]) == 2
    assert json.loads(capsys.readouterr().out) == measured  # what was measured is told, though it cannot be kept
    whole, *parts = record["domains"]
    assert whole["domain"] == "all"
    assert {one["domain"] for one in parts} == set(places)
    assert whole["nats"] == pytest.approx(sum(one["nats"] for one in parts))
    assert whole["bytes"] == 36 + 16
    assert whole["bits_per_byte"] == pytest.approx(whole["nats"] / math.log(2) / 52)


def test_the_page_is_made_of_the_record(tiny_model, folder, capsys, tmp_path):
    page = tmp_path / "suites.html"
    words = (tiny_model, "--suite", "copa", "--suite-data", folder, "--against", tiny_model, "--report", page)
    record = ask(capsys, *words)
    text = page.read_text(encoding="utf-8")
    assert repr(record["suites"][0]["value"]) in text
    assert "Compared with" in text
    (tmp_path / "sea.txt").write_text("the sea was calm and the sailor sang to the cook " * 60)
    for way in ([], ["--by-domain"]):
        record = ask(capsys, tiny_model, "--corpus", tmp_path / "sea.txt", *way, "--report", page)
        found = record["domains"][0] if way else record
        text = page.read_text(encoding="utf-8")
        assert repr(found["bits_per_byte"]) in text
        assert f"{tiny_model.name} needs {found['bits_per_byte']:.4f}" in text
    assert run_command(["eval", "nowhere", "--suite", "copa", "--report", str(tmp_path / "page.pdf")]) == 2
    assert "page.pdf must end in .html" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--suite", "blip"], "there is no suite 'blip'"),
        (["--suite", "arc-easy"], "which arc-easy is read from"),
        (["--suite", "copa", "--limit", "0"], "limit must be >= 1, got 0"),
        (["--by-domain"], "give --corpus FILE or FOLDER"),
        (["--corpus", "/nowhere.txt", "--stride", "8"], "/nowhere.txt"),
    ],
)
def test_a_wrong_request_is_one_line(tiny_model, folder, capsys, monkeypatch, words, message):
    monkeypatch.setattr("chinchilla_lm.evals.suites._has_hub", lambda: False)
    code = run_command(["eval", str(tiny_model), "--suite-data", str(folder), *words])
    printed = capsys.readouterr()
    assert (code, printed.out) == (2, "")
    assert message in printed.err
    assert printed.err.count("\n") == 1
