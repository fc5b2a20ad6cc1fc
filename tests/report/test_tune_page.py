"""The page of a tuning: from the records alone, self-contained, honest about what they show, safe with any text."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.report.page_reader import HOSTILE

from chinchilla_lm.core.errors import DataError
from chinchilla_lm.core.files import write_json, write_text
from chinchilla_lm.core.records import append_record
from chinchilla_lm.report.tune_card import tune_card
from chinchilla_lm.report.tune_charts import reliability_chart, strip_chart, tune_charts, validation_chart
from chinchilla_lm.report.tune_page import render_tune_page, write_tune_page
from chinchilla_lm.report.tune_record import read_tune_run
from chinchilla_lm.report.tune_rows import answer_text, changed_examples, class_rows, confusion_rows, entity_text
from chinchilla_lm.report.tune_use import load_lines
from chinchilla_lm.report.tune_words import headline, is_share, notes, write, write_change, write_p

LABELS = ("negative", "positive")
TEXTS = (
    "a stirring , funny and finally transporting re imagining",
    "apparently reassembled from the cutting room floor",
    "it 's slow -- very , very slow",
    "一部真正动人的电影",
)
ROWS = {
    "train": {"used": 400, "available": 6920, "file": "train.jsonl"},
    "validation": {"used": 200, "available": 872, "file": "dev.jsonl"},
    "test": {"used": 300, "available": 1821, "file": "test.jsonl"},
}
COST = {
    "seconds": 301.2,
    "train_seconds": 205.0,
    "targets": 800,
    "tokens": 21_600,
    "updates": 50,
    "trainable_parameters": 4_884_480,
    "parameters": 139_399_488,
    "peak_rss_bytes": 1_610_000_000,
}


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
            "method": "paired bootstrap, 10000 draws",
            "mcnemar": {"statistic": 24.6, "p_value": 7.1e-7, "fixed": 48, "broken": 11},
        },
        "per_class": {
            "before": {label: {"precision": 0.8, "recall": 0.7, "f1": 0.75, "support": 150} for label in LABELS},
            "after": {label: {"precision": 0.91, "recall": 0.9, "f1": 0.905, "support": 150} for label in LABELS},
        },
        "rows": ROWS,
        "settings": {"lr": 5e-4, "rank": 8, "epochs": 2.0, "rows": 16, "head": "label-words", "warmup": 0.1},
        "reasons": {"lr": "LoRA wants about ten times the rate of full fine-tuning", "head": "under 2,000 rows"},
        "best": {"step": 40, "value": 0.895},
        "calibration": {stage: reliability(shift) for stage, shift in (("before", 0.2), ("after", 0.04))},
        "cost": COST,
        "describe": {"template": "Review: {text}\nSentiment:", "label_words": {"negative": " negative"}},
        "warnings": [],
        "changed_counts": {"fixed": 48, "broken": 11},
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
        append_record(folder / "records.jsonl", "step/1", {"step": step, "tokens": 16 * step, "loss": loss})
        if step % 10 == 0:
            value = 0.9 - 0.12 * math.exp(-step / 15) - (0.01 if step == 50 else 0.0)
            fields = {"step": step, "tokens": 16 * step, "metrics": {"accuracy": value}, "value": value}
            append_record(folder / "records.jsonl", "evaluation/1", fields)
    for stage, right in (("before", 0.78), ("after", 0.9)):
        lines = []
        for row in range(300):
            gold = LABELS[row % 2]
            label = gold if generator.random() < right else LABELS[1 - row % 2]
            lines.append(json.dumps({"row": row, "gold": gold, "predicted": label}))
        write_text(folder / "predictions" / f"{stage}.jsonl", "\n".join(lines) + "\n")
    return folder


def page_of(folder: Path) -> str:
    return render_tune_page(read_tune_run(folder))


def test_the_first_sentence_says_the_metric_before_and_after_with_its_test(tmp_path):
    said = headline(read_tune_run(write_tune_run(tmp_path / "sst2")))
    assert said.verdict == "better"
    assert said.sentences[0] == (
        "SmolLM2-135M-Instruct after LoRA on 400 rows: accuracy on 300 test rows went from 78.0 % to 90.3 %."
    )
    assert said.sentences[1] == "That is +12.3 points (95 %: +8.0 to +16.7, p < 0.001): better than before."


@pytest.mark.parametrize(
    ("low", "high", "is_up", "verdict"),
    [
        (0.01, 0.2, True, "better"),
        (-0.01, 0.2, True, "open"),
        (-0.2, -0.01, True, "worse"),
        (0.01, 0.2, False, "worse"),
    ],
)
def test_better_is_claimed_only_where_the_interval_leaves_out_zero(tmp_path, low, high, is_up, verdict):
    difference = (low + high) / 2
    record = tune_record(
        higher_is_better=is_up,
        metrics_before={"accuracy": 0.5},
        metrics_after={"accuracy": 0.5 + difference},
        paired={"difference": difference, "low": low, "high": high, "p_value": 0.2},
    )
    run = read_tune_run(write_tune_run(tmp_path / "run", record))
    assert headline(run).verdict == verdict
    assert any("cannot tell before from after" in note for note in notes(run)) == (verdict == "open")


def test_a_task_without_a_before_says_so(tmp_path):
    run = read_tune_run(write_tune_run(tmp_path / "ner", tune_record(metrics_before=None, paired=None)))
    said = headline(run)
    assert said.verdict == "alone"
    assert "90.3 % (95 %: 86.7 to 93.7 %)" in said.sentences[0]
    assert "no answer to this task by prompt" in said.sentences[1]
    assert "not recorded" not in page_of(tmp_path / "ner")


def test_rows_that_chose_the_best_step_are_not_passed_off_as_a_test(tmp_path):
    run = read_tune_run(write_tune_run(tmp_path / "run", tune_record(evaluated_on="validation")))
    assert any("they flatter" in note for note in notes(run))
    assert "validation rows" in headline(run).sentences[0]


def test_numbers_carry_their_unit():
    assert write("accuracy", 0.9033) == "90.3 %"
    assert write("bleu", 23.456) == "23.46"
    assert write("bleu", 0.4) == "0.40", "a BLEU below 1 is not a share"
    assert write("perplexity", 12.3) == "12.30"
    assert write_change("macro_f1", -0.013) == "-1.3 points"
    assert write_change("chrf", 2.5) == "+2.50"
    assert not any(is_share(name, 0.5) for name in ("mcc", "bits_per_byte", "loss", "hamming_loss", "brier"))
    assert [write_p(p) for p in (0.00002, 0.0342, 0.42)] == ["p < 0.001", "p = 0.034", "p = 0.42"]


def test_the_page_loads_nothing_and_runs_only_what_its_policy_names(tmp_path):
    page = write_tune_page(write_tune_run(tmp_path / "sst2")).read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)=["'](?!#)""", page)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"sha256-{digest}" in policy[1]
    names = ["strip", "tune-loss", "tune-validation", "reliability"]
    assert [chart.name for chart in tune_charts(read_tune_run(tmp_path / "sst2"))] == names
    for name in names:
        assert f'id="fig-{name}"' in page
    inside = re.search(r'<script type="application/json" id="records">(.*?)</script>', page, re.DOTALL)
    assert inside is not None
    assert json.loads(inside[1]) == tune_record()


def test_hostile_texts_stay_texts(tmp_path):
    label = {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 3}
    record = tune_record(
        model=f"/models/{HOSTILE}",
        per_class={"after": {HOSTILE: label}},
        examples_changed=[{"text": HOSTILE, "gold": HOSTILE, "before": "x", "after": HOSTILE}],
        settings={HOSTILE: HOSTILE},
        reasons={HOSTILE: HOSTILE},
        warnings=[HOSTILE],
        describe={"template": HOSTILE},
    )
    page = page_of(write_tune_run(tmp_path / "run", record))
    assert "<img" not in page
    assert "alert(1)</script>" not in page
    assert "49" not in re.findall(r"--&gt;&lt;!--(..)", page)


def test_classes_stand_by_size_and_wrong_answers_are_counted(tmp_path):
    run = read_tune_run(write_tune_run(tmp_path / "run"))
    assert [row["name"] for row in class_rows(run)] == ["negative", "positive"]
    rows = [(row["gold"], row["predicted"]) for row in run.before]
    for gold, answer, before, _after in confusion_rows(run):
        assert before == sum(pair == (gold, answer) for pair in rows)


def test_what_changed_is_told_apart(tmp_path):
    run = read_tune_run(write_tune_run(tmp_path / "run"))
    changed = changed_examples(run)
    assert [len(changed[kind]) for kind in ("fixed", "broken")] == [2, 1]
    assert (changed["n_fixed"], changed["n_broken"]) == (48, 11)


def test_answers_of_every_task_become_text():
    assert entity_text(["Empire", "State", "is", "big"], ["B-loc", "I-loc", "O", "O"]) == "Empire State [loc]"
    assert entity_text(["a", "b"], ["B-x", "B-x"]) == "a [x], b [x]"
    assert entity_text(["a"], ["O"]) == "(no entity)"
    assert answer_text({"text": "Paris", "score": 0.4}) == "Paris"
    assert answer_text([{"text": "Paris"}, {"text": "the capital"}]) == "Paris | the capital"
    assert answer_text(["B-loc", "I-loc", "O"]) == "1 × loc"
    assert answer_text([]) == "(none)"


def test_a_resumed_curve_counts_each_step_once_and_the_best_step_is_marked(tmp_path):
    folder = write_tune_run(tmp_path / "run")
    again = (folder / "records.jsonl").read_text()
    (folder / "records.jsonl").write_text(again + again)
    run = read_tune_run(folder)
    assert [step for step, _ in run.steps] == list(range(1, 51))
    chart = validation_chart(run)
    assert chart is not None
    kept = next(layer for layer in chart.layers if layer.label == "kept")
    assert kept.points[0].x == 40  # type: ignore[union-attr]


def test_what_is_missing_or_torn_is_named_not_guessed(tmp_path):
    folder = tmp_path / "run"
    write_json(folder / "tune.json", {"task": "translation", "metrics_after": {"bleu": 12.0}, "metric": "bleu"})
    page = page_of(folder)
    assert "No curve of the training loss is recorded" in page
    (folder / "predictions").mkdir()
    (folder / "predictions" / "after.jsonl").write_text('{"row": 0}\n{"ro')
    assert "cannot be read whole" in page_of(folder)
    for wrong in ({"schema": "tune/2", "task": "x"}, {"schema": "tune/1"}):
        write_json(folder / "tune.json", wrong)
        with pytest.raises(DataError, match=r"tune\.json"):
            read_tune_run(folder)
    with pytest.raises(DataError, match="holds no tune.json"):
        read_tune_run(tmp_path / "nowhere")


def test_intervals_at_the_ends_of_a_share_stay_inside(tmp_path):
    record = tune_record(
        metrics_before={"accuracy": 1.0},
        metrics_after={"accuracy": 1.0},
        intervals={"before": {"low": 1.0, "high": 1.0}, "after": {"low": 1.0, "high": 1.0}},
        calibration={},
    )
    run = read_tune_run(write_tune_run(tmp_path / "run", record))
    chart = strip_chart(run)
    assert chart is not None
    assert chart.x.high == 100.0
    assert reliability_chart(run) is None


def test_the_card_says_what_before_is_and_which_labels_are_known(tmp_path):
    describe = {"labels": ["negative", "positive"]}
    classes = {"after": {name: {"f1": 0.5, "support": 9} for name in ("negative", "positive", "taught by nobody")}}
    record = tune_record(describe=describe, per_class=classes)
    card = tune_card(write_tune_run(tmp_path / "run", record))
    assert "Before is the untouched SmolLM2-135M-Instruct on the same rows, asked by a prompt." in card
    assert "\nnegative, positive.\n" in card
    alone = tune_card(write_tune_run(tmp_path / "alone", tune_record(metrics_before=None, paired=None)))
    assert "Before is" not in alone
    older = {"is_accepted": True, "sentence": "kept", "tasks": []}
    going_on = tune_card(write_tune_run(tmp_path / "on", tune_record(continual=older)))
    assert going_on.count("Before is the tuned model that this run goes on from") == 1
    assert "untouched" not in going_on.partition("## ")[0]
    tagged = tune_record(task="token-classification", describe={"labels": ["O", "B-PER", "I-PER"]}, per_class=classes)
    assert "\nPER.\n" in tune_card(write_tune_run(tmp_path / "tagged", tagged))


def test_the_card_tells_results_and_limits_as_text(tmp_path):
    record = tune_record(describe={"template": HOSTILE}, model=f"/models/{HOSTILE}")
    card = tune_card(write_tune_run(tmp_path / "run", record))
    front = card.split("---")[1]
    yaml = pytest.importorskip("yaml")
    parsed = yaml.safe_load(front)
    assert parsed["pipeline_tag"] == "text-classification"
    assert parsed["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.9033
    body = card.partition("\n---\n")[2]
    outside = re.sub(r"(?ms)^(`{3,})text\n.*?^\1$", "", body)
    assert "<img" not in outside
    assert "## Limits" in card
    assert "400" in card


def test_the_report_needs_no_torch():
    program = (
        "import sys; import chinchilla_lm.report.tune_page, chinchilla_lm.report.tune_card; "
        "sys.exit(1 if {'torch', 'transformers'} & set(sys.modules) else 0)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(
    ("task", "hub_class", "more", "said"),
    [
        ("text-classification", "AutoModelForSequenceClassification", {}, 'pipeline("text-classification"'),
        (
            "token-classification",
            "AutoModelForTokenClassification",
            {"describe": {"pipeline": {"aggregation_strategy": "first", "is_exact": True}}},
            'aggregation_strategy="first"',
        ),
        ("relation-extraction", "AutoModel", {}, "load_deployed"),
        ("question-answering", "AutoModelForQuestionAnswering", {}, "load_deployed"),
        ("dialogue", "AutoModelForCausalLM", {}, '"role": "user"'),
        ("translation", "AutoModelForSeq2SeqLM", {}, "AutoModelForSeq2SeqLM.from_pretrained"),
        (
            "translation",
            "AutoModelForCausalLM",
            {"describe": {"template": 'Say "{source}" in Chinese: {answer}'}},
            'tokenizer("Say \\"{source}\\" in Chinese:"',
        ),
        ("text-classification", "AutoModelForSequenceClassification", {"method": "prefix"}, "PeftModel"),
    ],
)
def test_the_lines_that_load_a_folder_are_python_for_every_task(tmp_path, task, hub_class, more, said):
    record = tune_record(task=task, hub_class=hub_class, **more)
    lines = load_lines(read_tune_run(write_tune_run(tmp_path / "run", record, steps=2)))
    compile(lines, "page", "exec")
    assert said in lines


def test_what_twice_the_rows_would_bring_is_said_in_the_metrics_unit(tmp_path):
    law = {
        "level": 0.9,
        "points": [{"rows": rows, "value": 0.95 - rows**-0.5, "low": 0.7, "high": 0.95} for rows in (50, 100, 200)],
        "curve": [{"rows": rows, "value": 0.95 - rows**-0.5, "low": 0.7, "high": 0.95} for rows in (50, 400)],
        "doubled": {"rows": 400, "value": 0.9, "low": 0.88, "high": 0.92},
        "gain": {"value": 0.021, "low": 0.004, "high": 0.04},
        "form": "error = floor + scale * rows^-exponent",
        "constants": {"floor": 0.05},
    }
    page = page_of(write_tune_run(tmp_path / "run", tune_record(learning_curve=law)))
    assert "Twice the rows (400) should bring +2.1 points (90 %: +0.4 to +4.0)." in page
    assert 'id="fig-rows-law"' in page


def test_a_rejected_continuation_says_so_first(tmp_path):
    old = {"name": "old", "metric": "bleu", "before": 20.0, "after": 12.5, "forgotten": 7.5, "gate": "dropped by 7.5"}
    continual = {"is_accepted": False, "sentence": "old dropped by 7.5: rejected.", "tasks": [old]}
    run = read_tune_run(write_tune_run(tmp_path / "run", tune_record(continual=continual)))
    assert "old dropped by 7.5: rejected." in notes(run)
    page = render_tune_page(run)
    assert "12.50" in page
    assert "What it kept of the old tasks" in page
