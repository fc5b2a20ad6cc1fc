"""`chinchilla prompt` as scripts and people meet it: its JSON keys, its folder, its one-line errors."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from chinchilla_lm.cli.main import run_command


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder, draws = tmp_path_factory.mktemp("rows"), random.Random(0)
    words = ["sea", "calm", "sailor", "whale", "ship", "cook"]
    for name, count in (("train", 60), ("test", 8)):
        rows = [{"text": f"{name} {n} " + " ".join(draws.choices(words, k=4)),
                 "label": ["negative", "positive"][n % 2]} for n in range(count)]  # fmt: skip
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    questions = [{"question": "who sang?", "choices": ["the cook", "the sailor"], "label": n % 2} for n in range(4)]
    (folder / "choice.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    wishes = [{"text": f"please do {n}", "label": f"wish_{n}"} for n in range(24)]
    (folder / "wishes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in wishes))
    answers = [{"question": "who sang", "answers": ["the sailor"]}]
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    passages = [
        {"question": "who sang", "context": "The sailor sang.", "answers": [{"text": "The sailor", "start": 0}]}
    ]
    (folder / "passages.jsonl").write_text("".join(json.dumps(row) + "\n" for row in passages))
    return folder


def ask(capsys, *words: object) -> dict:
    assert run_command(["prompt", *map(str, words), "--weights", "float32", "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    return json.loads(out)


def test_the_document_has_the_keys_that_scripts_rely_on(tiny_model, files, capsys, tmp_path):
    record = ask(
        capsys, "text-classification", "--model", tiny_model, "--test", files / "test.jsonl",
        "--train", files / "train.jsonl", "--shots", 2, "--draws", 2, "--dev-rows", 32, "--out", tmp_path / "out",
    )  # fmt: skip
    assert {"metrics", "per_draw", "template", "scoring"} <= set(record)
    assert record["template"] == "en/text-classification/sentiment-review"
    assert (record["rows"], record["shots"], record["metric"]) == (8, 2, "accuracy")
    assert len(record["per_draw"]) == 2
    accuracies = [draw["metrics"]["accuracy"] for draw in record["per_draw"]]
    assert record["metrics"]["accuracy"] == pytest.approx(sum(accuracies) / 2)
    assert set(record["scoring"]) == {draw["rule"] for draw in record["per_draw"]}
    low, high = record["interval"]["accuracy"]
    assert 0 <= low <= high <= 1
    assert json.loads((tmp_path / "out" / "prompt.json").read_text()) == record
    for draw in range(2):
        answers = [json.loads(line) for line in (tmp_path / "out" / f"answers-{draw}.jsonl").read_text().splitlines()]
        right = [record["labels"][row["answer"]] == row["label"] for row in answers]
        assert sum(right) / len(right) == pytest.approx(accuracies[draw])


@pytest.mark.parametrize("method", ["balanced", "bm25"])
def test_the_page_shows_the_prompt_that_the_record_keeps(tiny_model, files, capsys, tmp_path, method):
    page = tmp_path / "page.html"
    record = ask(
        capsys, "text-classification", "--model", tiny_model, "--test", files / "test.jsonl", "--method", method,
        "--train", files / "train.jsonl", "--shots", 2, "--draws", 2, "--dev-rows", 0, "--calibrate", "sum",
        "--report", page,
    )  # fmt: skip
    asked = record["first_prompt"]["text"]
    train, test = (
        [json.loads(line) for line in (files / f"{name}.jsonl").read_text().splitlines()] for name in ("train", "test")
    )
    shown = [row for row in train if f"Review: {row['text']}\nSentiment: {row['label']}\n" in asked]
    assert len(shown) == 2
    if method == "balanced":  # the record's own numbers are of the rows shown
        numbers = record["per_draw"][0]["demonstrations"]
        assert sorted(asked.index(row["text"]) for row in shown) == [asked.index(train[n]["text"]) for n in numbers]
    assert asked.endswith(f"Review: {test[0]['text']}\nSentiment:")
    assert record["first_prompt"]["choices"] == [" negative", " positive"]
    # each row is of one class, and found or not by its own class alone
    hits = sum(one["recall"] * one["support"] for one in record["per_class"].values())
    assert hits / record["rows"] == pytest.approx(record["metrics"]["accuracy"])
    text = page.read_text(encoding="utf-8")
    assert asked in text
    assert repr(record["metrics"]["accuracy"]) in text


def test_the_same_words_give_the_same_document(tiny_model, files, capsys):
    words = ("text-classification", "--model", tiny_model, "--test", files / "test.jsonl", "--limit", 5)
    words += ("--train", files / "train.jsonl", "--shots", 2, "--draws", 2, "--calibrate", "sum", "--seed", 7)
    assert ask(capsys, *words) == ask(capsys, *words)


def test_a_part_of_the_test_rows_may_be_answered_by_any_label_of_the_file(tiny_model, files, capsys, tmp_path):
    words = ("--model", tiny_model, "--test", files / "wishes.jsonl", "--limit", 3, "--calibrate", "sum")
    record = ask(capsys, "text-classification", *words, "--out", tmp_path / "out")
    assert record["template"] == "en/text-classification/intent-query"
    answers = [json.loads(line)["answer"] for line in (tmp_path / "out" / "answers-0.jsonl").read_text().splitlines()]
    assert len(answers) == record["rows"] == 3
    assert max(answers) > 2  # of 24 labels, not of the three that the drawn rows have


def test_a_task_file_of_the_harness_is_a_wording_of_rows_as_they_are(tiny_model, capsys, tmp_path):
    task = tmp_path / "pick.yaml"
    task.write_text(
        'task: pick\noutput_type: multiple_choice\ndoc_to_text: "Goal: {{goal}}\\nWay:"\n'
        'doc_to_choice: "{{[sol1, sol2]}}"\ndoc_to_target: gold\n'
    )
    rows = [
        {"goal": f"cross sea {n}", "sol1": "by ship", "sol2": "on foot", "gold": n % 2, "answer": "its own"}
        for n in range(6)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("--model", tiny_model, "--test", tmp_path / "rows.jsonl", "--template", task, "--calibrate", "sum")
    record = ask(capsys, "multiple-choice", *words, "--out", tmp_path / "out")
    assert (record["template"], record["rows"]) == ("pick", 6)
    answers = [json.loads(line)["answer"] for line in (tmp_path / "out" / "answers-0.jsonl").read_text().splitlines()]
    assert '"given_answer": "its own"' in (tmp_path / "out" / "answers-0.jsonl").read_text()
    right = sum(answer == row["gold"] for answer, row in zip(answers, rows, strict=True))
    assert record["metrics"]["accuracy"] == pytest.approx(right / 6)


def test_other_tasks_ways_and_searches_run(tiny_model, files, capsys):
    record = ask(capsys, "multiple-choice", "--model", tiny_model, "--test", files / "choice.jsonl")
    assert (record["template"], record["scoring"]) == ("en/multiple-choice/question-answer", ["byte"])
    record = ask(capsys, "question-answering", "--model", tiny_model, "--test", files / "answers.jsonl")
    assert record["scoring"] == ["written"]
    held = ("--test", files / "test.jsonl", "--limit", 2, "--write", "--samples", 3)
    assert ask(capsys, "text-classification", "--model", tiny_model, *held)["scoring"] == ["written"]
    learned = ("--test", files / "test.jsonl", "--limit", 3, "--train", files / "train.jsonl", "--shots", 2)
    near = ask(
        capsys, "text-classification", "--model", tiny_model, *learned, "--draws", 2, "--method", "nearest",
        "--dev-rows", 16, "--search", 300,
    )  # fmt: skip
    assert near["search"]["items_scored"] <= 300
    assert near["search"]["best"]["template"] == near["template"]


def test_orders_thoughts_and_votes_are_reachable(tiny_model, files, capsys, tmp_path):
    learned = ("--test", files / "test.jsonl", "--limit", 3, "--train", files / "train.jsonl", "--dev-rows", 0)
    words = ("text-classification", "--model", tiny_model, *learned, "--shots", 3, "--draws", 1, "--calibrate", "sum")
    drawn, ordered = ask(capsys, *words), ask(capsys, *words, "--order", "entropy")
    one, two = drawn["per_draw"][0]["demonstrations"], ordered["per_draw"][0]["demonstrations"]
    assert sorted(one) == sorted(two)
    for task, file, template in (
        ("text-classification", "test", "text-classification/sentiment-question+thought"),
        ("multiple-choice", "choice", "multiple-choice/question-letters+thought"),
        ("question-answering", "answers", "question-answering/closed-question+thought"),
        ("question-answering", "passages", "question-answering/context-passage+thought"),
    ):
        folder = tmp_path / template.replace("/", "-")
        record = ask(
            capsys, task, "--model", tiny_model, "--test", files / f"{file}.jsonl", "--limit", 2, "--thought",
            "--samples", 3, "--out", folder,
        )  # fmt: skip
        assert (record["template"], record["scoring"]) == (f"en/{template}", ["written"])
        lines = [json.loads(line) for line in (folder / "answers-0.jsonl").read_text().splitlines()]
        assert len(lines) == record["rows"]
        assert all(len(line["texts"]) == 3 and 0 <= line["share"] <= 1 for line in lines)


def test_a_question_with_a_passage_is_asked_with_it(tiny_model, files, capsys):
    words = ("question-answering", "--model", tiny_model, "--test")
    assert ask(capsys, *words, files / "passages.jsonl")["template"] == "en/question-answering/context-passage"
    assert ask(capsys, *words, files / "answers.jsonl")["template"] == "en/question-answering/closed-question"


def test_columns_of_other_names_are_named(tiny_model, files, capsys, tmp_path):
    (tmp_path / "stars.csv").write_text("post,stars\nthe sea was calm,positive\nno sea,negative\n")
    words = ("--model", tiny_model, "--test", tmp_path / "stars.csv", "--calibrate", "sum", "--column", "text=post")
    assert run_command(["prompt", "text-classification", *map(str, words)]) == 2
    assert "stars.csv: row 1 has no field 'label'" in capsys.readouterr().err
    assert ask(capsys, "text-classification", *words, "--column", "label=stars")["rows"] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--column", "label"], "--column label names no field and column; write FIELD=COLUMN"),
        (["--shots", "2"], "--shots 2 needs solved rows; give --train FILE, or --shots 0"),
        (["--limit", "-1"], "--limit -1 and --dev-rows 64 must be 0 or more"),
        (["--template", "sentiment-reviw"], "no template is named 'sentiment-reviw'"),
        (["--model", "/nowhere"], "/nowhere"),
        (["--test", "/nowhere.jsonl"], "/nowhere.jsonl"),
        (["--calibrate", "best"], "best"),
        (["--search", "5"], "too few"),
        (["--samples", "3"], "--samples 3 are of written texts; add --thought or --write"),
        (["--order", "alphabet"], "alphabet"),
    ],
)
def test_a_wrong_request_is_one_line(tiny_model, files, capsys, words, message):
    given = {"--model": str(tiny_model), "--test": str(files / "test.jsonl")}
    given |= dict(zip(words[::2], words[1::2], strict=True))
    code = run_command(["prompt", "text-classification", *[word for pair in given.items() for word in pair]])
    printed = capsys.readouterr()
    assert code == 2
    assert printed.out == ""
    assert message in printed.err.splitlines()[-1]
    assert printed.err.count("\n") == (2 if "--search" in words else 1)  # what it was about to search, and why not


def test_help_imports_no_torch():
    program = (
        "import sys; from chinchilla_lm.cli.main import run_command; run_command(['prompt', '--help']); "
        "run_command(['eval', '--help']); "
        "sys.exit(1 if {'torch', 'transformers', 'scipy', 'pyarrow'} & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    for word in ("--template", "--calibrate", "--suite", "--harness"):
        assert word in done.stdout
