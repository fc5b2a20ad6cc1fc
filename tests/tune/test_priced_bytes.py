"""Bits per byte count the bytes of what has a loss: an answer that max_tokens cuts counts as far as it was read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chinchilla_lm.tune.config import TuneConfig

from .conftest import build


def predict(folder: Path, task_name: Any, rows: list[dict[str, Any]], max_tokens: int) -> tuple[Any, list[Any]]:
    config = TuneConfig(
        task=task_name, model=str(folder), train="t", out="o", max_tokens=max_tokens, max_new_tokens=1, dtype="float32"
    )
    task, model = build(config, rows)
    return task, task.predict(model, rows)


@pytest.mark.parametrize("kind", ["qwen3", "t5"])
def test_a_cut_answer_counts_the_bytes_that_were_priced(tiny_folder: Callable[[str], Path], kind: str) -> None:
    short = {"prompt": "the cat", "completion": " sat on the mat"}
    long = {"prompt": "the cat", "completion": " sat on the mat , and" * 20}
    task, (whole, cut) = predict(tiny_folder(kind), "text-generation", [short, long], 24)
    assert whole["bytes"] == len(short["completion"])
    assert 15 < cut["bytes"] < 80 < len(long["completion"])
    rates = [task.measure([each], [row]).values["bits_per_byte"] for each, row in ((whole, short), (cut, long))]
    assert 0.5 < rates[1] / rates[0] < 2  # as if all bytes were priced it would be a tenth


def test_an_answer_without_room_counts_no_bytes(tiny_folder: Callable[[str], Path]) -> None:
    rows = [{"document": "the cat sat on the mat", "summary": "the mat"}]
    _, [said] = predict(tiny_folder("qwen3"), "summarization", rows, 16)  # the template alone has more tokens
    assert (said["loss"], said["tokens"], said["bytes"]) == (0, 0, 0)


def test_a_turn_that_fits_no_window_counts_no_bytes(tiny_folder: Callable[[str], Path]) -> None:
    turns = ["hi", "the cat sat", "why", "on the mat , " * 30]
    roles = ["user", "assistant"] * 2
    talk = {"messages": [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=True)]}
    _, [said] = predict(tiny_folder("qwen3"), "dialogue", [talk], 40)
    assert said["tokens"] > 0
    assert said["bytes"] == len(turns[1])
