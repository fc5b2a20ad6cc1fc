"""Several labels a row: the head begins at their shares, and learns empty sets, which no logits summing to zero say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chinchilla_lm.core.errors import ConfigError
from chinchilla_lm.tune.backbone import load_backbone
from chinchilla_lm.tune.classification import make_classification
from chinchilla_lm.tune.config import TuneConfig
from chinchilla_lm.tune.label_sets import RATE_ROWS, base_rate_logits
from chinchilla_lm.tune.task import TunedModel
from chinchilla_lm.tune.tuning import tune

Folder = Callable[[str], Path]
WORDS = ("film", "team", "bank", "shares", "sunday", "warm", "good", "won")


def make_rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Texts of two words, whose labels are those of three words that occur: none in 36 % of the rows, one or two."""
    draws = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for _ in range(count):
        words = list(draws.choice(WORDS, size=2, replace=False))
        rows.append({"text": " ".join(words), "label": [word for word in words if word in WORDS[:3]]})
    return rows


def configure(folder: Path, **changes: Any) -> TuneConfig:
    settings: dict[str, Any] = {"task": "text-classification", "train": "t", "out": "o", "max_tokens": 32}
    return TuneConfig(model=str(folder), **settings | changes)


def test_the_mean_state_has_the_labels_shares(tiny_folder: Folder) -> None:
    rows = make_rows(RATE_ROWS, seed=1)
    for row in rows[:60]:
        row["label"] = [label for label in row["label"] if label != "film"]
    backbone = load_backbone(configure(tiny_folder("qwen3"), lr=1e-3))
    task = make_classification(configure(tiny_folder("qwen3"), lr=1e-3), rows, backbone)
    assert task.describe()["head"] == "fresh"
    model = TunedModel(backbone, task.make_head(backbone)).eval()
    p_nk = np.array([each["probabilities"] for each in task.predict(model, rows)])
    logits_nk = np.log(p_nk) - np.log1p(-p_nk)
    expected = base_rate_logits(rows, task.labels)
    np.testing.assert_allclose(logits_nk.mean(axis=0), expected, atol=1e-4)
    share = np.mean(["film" in row["label"] for row in rows])
    assert expected[task.labels.index("film")] == pytest.approx(np.log(share / (1 - share)), abs=0.3)


def test_sets_are_learnt(tiny_folder: Folder, tmp_path: Path) -> None:
    """Right only where the whole set is right; one of logits that sum to zero is never below zero for all labels."""
    for name, count, seed in (("train", 200, 2), ("dev", 60, 3), ("test", 60, 4)):
        lines = [json.dumps(row) for row in make_rows(count, seed)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    files = {"train": "train.jsonl", "validation": "dev.jsonl", "test": "test.jsonl"}
    paths = {name: str(tmp_path / file) for name, file in files.items()}
    more = {"method": "full", "epochs": 12.0, "bootstrap_draws": 100, "dtype": "float32", "threads": 1, "lr": 5e-3}
    torch.manual_seed(0)
    record = tune(configure(tiny_folder("qwen3"), out=str(tmp_path / "out"), **paths, **more)).record
    assert record["metrics_after"]["exact_match"] > 0.9 > 0.6 > record["metrics_before"]["exact_match"]


def test_label_words_alone_are_refused(tiny_folder: Folder) -> None:
    config = configure(tiny_folder("qwen3"), lr=1e-3, head="label-words")
    with pytest.raises(ConfigError, match=r"one label a row.*fresh"):
        make_classification(config, make_rows(8, seed=5), load_backbone(config))
