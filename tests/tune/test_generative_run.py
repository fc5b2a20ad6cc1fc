"""Generative tasks from rows to a deployed folder: tuned, measured, saved, and run by transformers unchanged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chinchilla_lm.tune.config import TuneConfig
from chinchilla_lm.tune.tuning import tune

from .conftest import write_jsonl

PAIRS = [
    {"source": "good books", "target": "你好"},
    {"source": "the cat sat", "target": "天气"},
    {"source": "great film", "target": "公园"},
    {"source": "the dog ran", "target": "北京"},
]
TALKS = [
    {"messages": [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat on the mat"}]},
    {"messages": [{"role": "user", "content": "the dog"}, {"role": "assistant", "content": "ran to the river"}]},
]


def run(folder: Path, tmp_path: Path, task: Any, rows: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """Learn a few rows by heart; the same rows validate and test."""
    path = str(write_jsonl(tmp_path / "rows.jsonl", rows))
    settings = {"method": "full", "lr": 1e-2, "rows": 4, "steps": 60, "evaluate_every": 30, "patience": 0}
    settings |= {"dtype": "float32", "weight_decay": 0.0, "max_new_tokens": 12, "bootstrap_draws": 200}
    config = TuneConfig(
        task=task,
        model=str(folder),
        train=path,
        validation=path,
        test=path,
        out=str(tmp_path / "out"),
        **settings | more,
    )
    return dict(tune(config).record)


@pytest.mark.parametrize(
    ("kind", "form", "more"),
    [("qwen3", "own", {}), ("gpt2", "hub", {}), ("qwen3", "own", {"is_packed": True})],
)
def test_a_tuned_translator_answers_through_pipeline_and_stops_by_itself(
    kind: str, form: str, more: dict[str, Any], tiny_folder: Callable[[str], Path], tmp_path: Path
):
    from transformers import pipeline

    record = run(tiny_folder(kind), tmp_path, "translation", PAIRS, backbone=form, **more)
    assert record["metrics_after"]["loss"] < 0.3 * record["metrics_before"]["loss"]
    assert record["metrics_after"]["chrf"] > 90
    settings = json.loads((tmp_path / "out" / "model" / "generation_config.json").read_text(encoding="utf-8"))
    assert settings["min_new_tokens"] == 1  # no training answer is empty
    pipe = pipeline("text-generation", model=str(tmp_path / "out" / "model"), device="cpu")
    template = record["describe"]["template"]
    for name, value in record["describe"]["template_constants"].items():
        template = template.replace("{" + name + "}", value)
    for row in PAIRS:
        prompt = template.replace("{source}", row["source"]).removesuffix("{answer}").rstrip(" ")
        (out,) = pipe(prompt, max_new_tokens=40, do_sample=False, return_full_text=False)
        assert out["generated_text"].strip() == row["target"]  # much shorter than 40 tokens: it learnt to stop


def test_a_tuned_dialogue_model_takes_messages(tiny_folder: Callable[[str], Path], tmp_path: Path):
    from transformers import pipeline

    record = run(tiny_folder("qwen3"), tmp_path, "dialogue", TALKS)
    assert record["metrics_after"]["perplexity"] < 1.5 < record["metrics_before"]["perplexity"]
    assert (tmp_path / "out" / "model" / "chat_template.jinja").is_file()
    pipe = pipeline("text-generation", model=str(tmp_path / "out" / "model"), device="cpu")
    for row in TALKS:
        (out,) = pipe(row["messages"][:1], max_new_tokens=30, do_sample=False)
        assert out["generated_text"][-1] == {"role": "assistant", "content": " " + row["messages"][1]["content"]}


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_a_tuned_encoder_decoder_loads_as_such_and_writes_the_same(
    kind: str, tiny_folder: Callable[[str], Path], tmp_path: Path
):
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    rows = [{"document": pair["source"], "summary": pair["target"]} for pair in PAIRS]
    record = run(tiny_folder(kind), tmp_path, "summarization", rows, template="summarize: {document}", steps=80)
    assert record["metrics_after"]["loss"] < 0.5 * record["metrics_before"]["loss"]
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out" / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "model")
    for row, example in zip(rows, read_lines(tmp_path / "out" / "predictions" / "after.jsonl"), strict=True):
        ids = tokenizer("summarize: " + row["document"], return_tensors="pt")
        out = model.generate(
            input_ids=ids["input_ids"], attention_mask=ids["attention_mask"], max_new_tokens=12, do_sample=False
        )
        assert tokenizer.decode(out[0], skip_special_tokens=True).strip() == example["prediction"]["text"]


def test_pipelines_for_translation_and_summaries_are_gone_from_transformers():
    """What docs and describe say of deployment: text-generation for decoders, AutoModelForSeq2SeqLM for the others."""
    from transformers.pipelines import SUPPORTED_TASKS

    gone = {"translation", "summarization", "text2text-generation", "question-answering"}
    assert not gone & set(SUPPORTED_TASKS)
    assert "text-generation" in SUPPORTED_TASKS


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
