"""Resumable lines of benchmarks, and rows of the shared files in the hub's columns."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

from lines import latest_records, run_lines  # noqa: E402
from suite_parity import TASK_FILES, hub_row  # noqa: E402

from chinchilla_lm.evals.suites import find_suite  # noqa: E402

QUESTION = {"context": "What is the sea?", "choices": ["a ship", "water", "a cook", "no"], "label": 1}
ROWS = {
    "piqa": {"context": "open a door", "choices": ["push it", "eat it"], "label": 0},
    "copa": {"context": "The man turned on the tap, therefore", "choices": ["he sang.", "water flowed."], "label": 1},
    "openbookqa": QUESTION,
    "arc-easy": QUESTION,
    "arc-challenge": QUESTION,
    "lambada": {"text": "The cook said no to the sailor"},
    "blimp": {"uid": "wh_island", "good": "The cooks sing.", "bad": "The cooks sings."},
    "commonsenseqa": {"question": "Where is a ship?", "choices": ["sea", "oven", "sky", "bed", "hat"], "label": 0},
    "winogrande": {"contexts": ["Ann met Sue so Ann", "Ann met Sue so Sue"], "continuation": "sang.", "label": 1},
    "boolq": {
        "context": "Passage: The sea. It is wet.\nQuestion: is the sea wet?",
        "choices": ["no", "yes"],
        "label": 1,
    },
}


def test_finished_lines_are_skipped_and_failed_ones_come_again(tmp_path, capsys):
    results = tmp_path / "out" / "results.jsonl"
    program = "import sys; open(sys.argv[1], 'a').write(sys.argv[2] + '\\n'); sys.exit(sys.argv[3] == 'bad')"

    def command_of(name: str) -> list[str]:
        record = json.dumps({"name": name, "runs": 1}) if name != "bad" else '{"torn'
        return [sys.executable, "-c", program, str(results), record, name]

    results.parent.mkdir()
    results.write_text(
        json.dumps({"name": "first", "runs": 0}) + "\n" + json.dumps({"name": "first", "runs": 7}) + "\n"
    )
    run_lines(["first", "bad", "second"], results, command_of, os.environ)
    told = capsys.readouterr().err
    assert "first: finished before" in told
    assert "bad: FAILED with exit code 1" in told
    assert list(latest_records(results, ["second", "bad", "first"])) == ["second", "first"]
    assert latest_records(results)["first"]["runs"] == 7
    assert latest_records(tmp_path / "nothing.jsonl") == {}


def test_every_suite_of_the_parity_is_covered():
    assert set(ROWS) == set(TASK_FILES)


@pytest.mark.parametrize("suite", ROWS)
def test_a_row_in_the_hubs_columns_is_the_same_item(suite):
    convert = find_suite(suite).convert
    own, hub = convert(ROWS[suite]), convert(hub_row(suite, ROWS[suite]))
    assert (hub.pairs, hub.gold, hub.group) == (own.pairs, own.gold, own.group)
