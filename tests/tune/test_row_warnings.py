"""What is said of rows: repeated, taught by nobody, cut, left out; and labels in mixed forms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from chinchilla_lm.core.errors import ConfigError, DataError
from chinchilla_lm.tune.classification import LabelHead
from chinchilla_lm.tune.config import TuneConfig
from chinchilla_lm.tune.tuning import tune

from .conftest import build, write_jsonl

Rows = list[dict[str, Any]]


def test_a_record_says_what_is_wrong_with_the_rows(
    configure: Callable[..., TuneConfig], sentiment_rows: Rows, tmp_path: Path
) -> None:
    train = [*sentiment_rows[:30], {"text": "good " * 400, "label": "positive"}]
    fresh = {"text": "a film of its own", "label": "mixed"}
    test = [*sentiment_rows[25:33], fresh, {"text": sentiment_rows[0]["text"], "label": "mixed"}]
    paths = {"train": train, "validation": sentiment_rows[35:], "test": test}
    files = {name: str(write_jsonl(tmp_path / f"{name}.jsonl", rows)) for name, rows in paths.items()}
    assert tune(configure(steps=1, **files)).record["warnings"] == [
        "6 of 10 test rows are also among the training rows, which flatters the numbers.",
        "2 of 10 test rows have labels that no training row has ('mixed'): they count as missed.",
        "1 texts of training rows were cut to fit max_tokens.",
    ]


def test_rows_that_teach_nothing_are_counted(configure: Callable[..., TuneConfig], tmp_path: Path) -> None:
    far = {"text": "fire " * 300 + "end", "head": [0, 4], "tail": [1500, 1503], "label": "Other"}
    near = [
        {"text": f"the fire {n} end", "head": [4, 8], "tail": [len(f"the fire {n} "), len(f"the fire {n} end")]}
        for n in range(8)
    ]
    rows = [far, *({**row, "label": ("Other", "Cause")[n % 2]} for n, row in enumerate(near))]
    path = str(write_jsonl(tmp_path / "related.jsonl", rows))
    config = configure(task="relation-extraction", steps=1, train=path, validation=path, test=path)
    warnings = tune(config).record["warnings"]
    assert "1 of 9 training rows were left out: nothing of their answer could be learned." in warnings


def test_a_long_text_is_not_said_to_break_the_model(
    configure: Callable[..., TuneConfig], sentiment_rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import tokenization_utils_base

    said: list[str] = []
    monkeypatch.setattr(tokenization_utils_base.logger, "warning", lambda text, *_: said.append(text))
    long = [*sentiment_rows, {"text": "good " * 400, "label": "positive"}, {"text": "bad " * 400, "label": "negative"}]
    task, _ = build(configure(max_tokens=64), long[::-1])
    assert max(item.length for item in task.encode(long, is_training=True)) == 64
    assert said == []


def test_max_tokens_must_hold_more_than_the_prompt(configure: Callable[..., TuneConfig], sentiment_rows: Rows) -> None:
    task, _ = build(configure(max_tokens=8), sentiment_rows)
    assert {item.length for item in task.encode(sentiment_rows, is_training=True)} == {8}
    with pytest.raises(ConfigError, match="max_tokens = 7 must be more than the 7 tokens around a text"):
        build(configure(max_tokens=7), sentiment_rows)


def test_labels_in_mixed_forms_are_the_same_labels(configure: Callable[..., TuneConfig]) -> None:
    texts = ["a warm film", "a dull film", "the cat sat", "good"]
    labels = ["cat", ["a", "cat"], ["a"], []]
    rows = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
    lists = [{**row, "label": [row["label"]] if isinstance(row["label"], str) else row["label"]} for row in rows]
    heads, measured = [], []
    for given in (rows, lists):
        task, model = build(configure(max_tokens=64), given)
        assert task.labels == ("a", "cat")
        assert isinstance(model.head, LabelHead)
        heads.append(model.head.weight)
        measured.append(task.measure(task.predict(model, rows), rows).values)
    assert torch.equal(*heads)  # "a" is no part of "cat": the base rates are those of the lists
    assert measured[0] == measured[1]


def test_several_labels_to_measure_need_several_to_learn(
    configure: Callable[..., TuneConfig], sentiment_rows: Rows
) -> None:
    task, model = build(configure(max_tokens=64), sentiment_rows)
    rows = [{"text": "x", "label": ["positive"]}, {"text": "y", "label": ["positive", "negative"]}]
    assert task.measure(task.predict(model, rows[:1]), rows[:1]).values["accuracy"] in (0.0, 1.0)
    with pytest.raises(DataError, match="row 2 to measure has 2 labels"):
        task.measure(task.predict(model, rows), rows)


def test_numbers_are_ordered_by_value_and_always_the_same(
    configure: Callable[..., TuneConfig], sentiment_rows: Rows
) -> None:
    labels = ["10", "01", "2", "1", "-3"]
    rows = [{"text": row["text"], "label": labels[n % 5]} for n, row in enumerate(sentiment_rows)]
    task, _ = build(configure(max_tokens=64), rows)
    assert task.labels == ("-3", "01", "1", "2", "10")
