"""Run directories of tunings, made by code: the records that `chinchilla tune` writes, with numbers of known truth."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from chinchilla_lm.core.files import write_json, write_text
from chinchilla_lm.core.records import append_record

LABELS = ("negative", "positive")
TEXTS = (
    "a stirring , funny and finally transporting re imagining",
    "apparently reassembled from the cutting room floor",
    "it 's slow -- very , very slow",
    "一部真正动人的电影",
)


def tune_record(**changes: Any) -> dict[str, Any]:
    """Return a whole tune.json of a sentiment classifier."""
    record: dict[str, Any] = {
        "schema": "tune/1",
        "task": "text-classification",
        "model": "/models/SmolLM2-135M-Instruct",
        "method": "lora",
        "backbone": "own",
        "mask": "causal",
        "hub_class": "AutoModelForSequenceClassification",
        "metric": "accuracy",
        "higher_is_better": True,
        "evaluated_on": "test",
        "metrics_before": {"accuracy": 0.78, "macro_f1": 0.771, "mcc": 0.573, "nll": 0.61},
        "metrics_after": {"accuracy": 0.9033, "macro_f1": 0.9031, "mcc": 0.807, "nll": 0.29},
        "intervals": {
            "before": {"low": 0.733, "high": 0.827, "level": 0.95},
            "after": {"low": 0.867, "high": 0.937, "level": 0.95},
        },
        "paired": {
            "difference": 0.1233,
            "low": 0.08,
            "high": 0.167,
            "level": 0.95,
            "p_value": 0.0001,
            "method": "paired bootstrap",
            "draws": 10000,
            "mcnemar": {"statistic": 24.6, "p_value": 7.1e-7, "fixed": 48, "broken": 11},
        },
        "per_class": {
            "before": {label: {"precision": 0.8, "recall": 0.7, "f1": 0.75, "support": 150} for label in LABELS},
            "after": {label: {"precision": 0.91, "recall": 0.9, "f1": 0.905, "support": 150} for label in LABELS},
        },
        "rows": {
            "train": {"used": 400, "available": 6920, "file": "train.jsonl"},
            "validation": {"used": 200, "available": 872, "file": "dev.jsonl"},
            "test": {"used": 300, "available": 1821, "file": "test.jsonl"},
        },
        "settings": {"lr": 5e-4, "rank": 8, "epochs": 2.0, "rows": 16, "head": "label-words", "warmup": 0.1},
        "reasons": {"lr": "LoRA wants about ten times the rate of full fine-tuning", "head": "under 2,000 rows"},
        "best": {"step": 40, "value": 0.895},
        "calibration": {stage: reliability(shift) for stage, shift in (("before", 0.2), ("after", 0.04))},
        "cost": {
            "seconds": 301.2,
            "seconds_training": 205.0,
            "tokens": 41_500,
            "steps": 50,
            "params_trained": 4_884_480,
            "params_total": 139_399_488,
            "peak_rss_bytes": 1_610_000_000,
        },
        "describe": {"template": "Review: {text}\nSentiment:", "label_words": {"negative": " negative"}},
        "warnings": [],
        "examples_changed": [
            {"row": 3, "text": TEXTS[0], "gold": "positive", "before": "negative", "after": "positive"},
            {"row": 8, "text": TEXTS[3], "gold": "positive", "before": "negative", "after": "positive"},
            {"row": 5, "text": TEXTS[2], "gold": "negative", "before": "negative", "after": "positive"},
        ],
    }
    return {**record, **changes}


def reliability(shift: float) -> dict[str, Any]:
    """Return the calibration of a model that is right `shift` less often than it says."""
    places = np.linspace(0.55, 0.95, 5)
    return {
        "error": shift,
        "bins": [{"confidence": float(c), "accuracy": float(max(0, c - shift)), "count": 60} for c in places],
    }


def write_tune_run(folder: Path, record: dict[str, Any] | None = None, *, steps: int = 50) -> Path:
    """Write a run directory: tune.json, curves, predictions, config.toml."""
    generator = np.random.default_rng(7)
    write_json(folder / "tune.json", record if record is not None else tune_record())
    write_text(folder / "config.toml", 'task = "text-classification"\n')
    for step in range(1, steps + 1):
        loss = 0.25 + 0.45 * math.exp(-step / 12) + float(generator.normal(scale=0.03))
        append_record(folder / "records.jsonl", "step/1", {"step": step, "tokens": 830 * step, "loss": loss})
        if step % 10 == 0:
            value = 0.9 - 0.12 * math.exp(-step / 15) - (0.01 if step == 50 else 0.0)
            fields = {"step": step, "tokens": 830 * step, "accuracy": value}
            append_record(folder / "records.jsonl", "evaluation/1", fields)
    for stage, right in (("before", 0.78), ("after", 0.9)):
        lines = []
        for row in range(300):
            gold = LABELS[row % 2]
            label = gold if generator.random() < right else LABELS[1 - row % 2]
            lines.append(json.dumps({"row": row, "gold": gold, "label": label}))
        write_text(folder / "predictions" / f"{stage}.jsonl", "\n".join(lines) + "\n")
    return folder
