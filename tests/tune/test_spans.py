"""Extractive question answering: targets, the loss by hand, windows, no answer, padding, and the saved form."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from chinchilla_lm.core.errors import ConfigError, DataError
from chinchilla_lm.tune.config import TuneConfig
from chinchilla_lm.tune.prompts_generative import answers_of
from chinchilla_lm.tune.spans import span_logits

from . import conftest
from .conftest import batch_of

KINDS = ("qwen3", "gpt2", "bert")
CONTEXT = "The play was written by Anna Smith in London near the river ."
ROWS = [
    {"question": "Who wrote it ?", "context": CONTEXT, "answers": [{"text": "Anna Smith", "start": 24}]},
    {"question": "When ?", "context": "the cat sat on the mat .", "answers": []},
    {"question": "哪里？", "context": "今天的天气很好，我们去北京的公园。", "answers": [{"text": "公园"}]},
]


def build(folder, rows=ROWS, **changes):
    fields = {"task": "question-answering", "model": str(folder), "train": "t", "out": "o", "head": "span"}
    return conftest.build(TuneConfig(**(fields | {"language": "en"} | changes)), rows, head_spread=0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_that_of_the_answers_ends_by_hand(tiny_folder, kind):
    task, model = build(tiny_folder(kind))
    items = task.encode(ROWS, is_training=True)
    loss, count = task.objective(model, batch_of(task, items))
    expected = 0.0
    for item in items:
        ids_bt, lengths_b, spans_b3, _ = batch_of(task, [item])
        with torch.no_grad():
            logits_t2 = span_logits(model, ids_bt, lengths_b, spans_b3)[0]
        first, end, null = item.targets["span"]
        places = [*range(first, end), null] if null >= end else [null, *range(first, end)]
        for which, answer in enumerate(item.targets["answer"].tolist()):
            choices = logits_t2[places, which]
            expected += 0.5 * F.cross_entropy(choices, torch.tensor(places.index(answer))).item()
    assert count == len(items) == 3
    assert loss.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_targets_are_the_answer_or_the_null_position(tiny_folder, kind):
    task, model = build(tiny_folder(kind))
    tokenizer = model.backbone.tokenizer
    items = task.encode(ROWS, is_training=True)
    for item, text in zip(items, ["Anna Smith", None, "公园"], strict=True):
        first, last = item.targets["answer"]
        if text is None:
            assert first == last == (0 if kind == "bert" else item.length - 1)
        else:
            assert text in tokenizer.decode(item.ids[first : last + 1])


def test_the_answer_to_learn_is_the_one_most_people_gave(tiny_folder):
    people = ["by Anna Smith in London near the river", "Anna Smith", "Anna Smith"]
    row = {**ROWS[0], "answers": [{"text": text, "start": CONTEXT.find(text)} for text in people]}
    task, model = build(tiny_folder("qwen3"))
    alone, voted = task.encode([ROWS[0], row], is_training=True)
    assert voted.targets["answer"].tolist() == alone.targets["answer"].tolist()
    assert answers_of("question-answering", row, "en") == ["Anna Smith", people[0]]


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_slices_and_do_not_depend_on_the_batch(tiny_folder, kind):
    task, model = build(tiny_folder(kind), ROWS[:1])
    together = task.predict(model, ROWS)
    for row, prediction, alone in zip(ROWS, together, (task.predict(model, [row])[0] for row in ROWS), strict=True):
        assert prediction["text"] == alone["text"] != ""
        for each in prediction["n_best"]:
            assert row["context"][each["start"] : each["end"]] == each["text"] == each["text"].strip()
        scores = [each["score"] for each in prediction["n_best"]]
        assert scores == sorted(scores, reverse=True)


def test_a_learned_answer_is_found_in_any_window(tiny_folder):
    """With the true logits put in by hand, the answer far in a long context comes out of its window."""
    context = ("filler words here and there . " * 12) + CONTEXT + (" more filler words ." * 9)
    row = {"question": "Who ?", "context": context, "answers": [{"text": "Anna Smith", "start": context.index("Anna")}]}
    task, model = build(tiny_folder("qwen3"), [row], max_tokens=64)
    items = task.encode([row], is_training=True)
    assert len(items) > 3
    assert any(item.targets["answer"][0] != item.targets["span"][2] for item in items)
    parts = []
    for item in items:
        logits_t2 = torch.full((item.length, 2), -5.0)
        logits_t2[item.targets["answer"][0], 0] = logits_t2[item.targets["answer"][1], 1] = 5.0
        parts.append((item, logits_t2.numpy()))
    answer = task._answer(parts, context)
    assert answer["text"] == "Anna Smith"
    assert answer["start"] == context.index("Anna")


def test_no_answer_is_given_beyond_the_threshold_only(tiny_folder):
    task, model = build(tiny_folder("qwen3"))
    assert task.describe()["has_unanswerable"] is True
    margin = task.predict(model, ROWS[:1])[0]["margin"]
    task.threshold = margin + 0.1
    assert task.predict(model, ROWS[:1])[0]["text"] != ""
    task.threshold = margin - 0.1
    prediction = task.predict(model, ROWS[:1])[0]
    assert prediction["text"] == ""
    assert prediction["start"] is None
    assert len(prediction["n_best"]) == 5


def test_the_threshold_is_chosen_on_rows_that_have_both(tiny_folder):
    task, _ = build(tiny_folder("qwen3"))
    predictions = [
        {"margin": -2.0, "n_best": [{"text": "Anna Smith"}]},
        {"margin": 1.0, "n_best": [{"text": "mat"}]},
        {"margin": 0.5, "n_best": [{"text": "公园"}]},
    ]
    task.calibrate(predictions, ROWS)
    assert task.threshold == 0.75


@pytest.mark.parametrize("kind", KINDS)
def test_measure_and_zero_shot(tiny_folder, kind):
    task, model = build(tiny_folder(kind))
    right = [{"text": "Anna Smith"}, {"text": ""}, {"text": "公园"}]
    assert task.measure(right, ROWS).values["exact_match"] == 1.0
    answers = task.zero_shot(model.backbone, ROWS)
    if kind == "bert":
        assert answers is None
    else:
        assert all("\n" not in each["text"] for each in answers)
        assert len(answers) == 3


def test_requests_that_cannot_be_answered_are_refused(tiny_folder):
    with pytest.raises(ConfigError, match="generative"):
        build(tiny_folder("t5"))
    with pytest.raises(DataError, match="row 1 has no context"):
        build(tiny_folder("qwen3"), [{"question": "who ?", "answers": []}])
    task, _ = build(tiny_folder("qwen3"))
    with pytest.raises(DataError, match="no answer stands in its context"):
        task.encode([{"question": "who ?", "context": CONTEXT, "answers": [{"text": "Bob"}]}], is_training=True)


def test_an_encoder_reads_a_pair_as_transformers_does(tiny_folder):
    """The logits are those of the plain class on the tokenizer's own pair, token types included."""
    folder = tiny_folder("bert")
    task, model = build(folder)
    (item,) = task.encode(ROWS[:1], is_training=False)
    ids_bt, lengths_b, spans_b3 = batch_of(task, [item])
    with torch.no_grad():
        ours_t2 = span_logits(model, ids_bt, lengths_b, spans_b3)[0]
    plain = AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    plain.load_state_dict(model.backbone.module.state_dict())
    batch = AutoTokenizer.from_pretrained(folder)(ROWS[0]["question"], CONTEXT, return_tensors="pt")
    with torch.no_grad():
        theirs = plain(**batch)
    inside = slice(*item.targets["span"][:2])
    torch.testing.assert_close(ours_t2[inside, 0], theirs.start_logits[0][inside], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours_t2[inside, 1], theirs.end_logits[0][inside], rtol=1e-4, atol=1e-4)
