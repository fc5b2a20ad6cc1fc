"""Relations: where the markers stand, what the head reads, cropping, padding, and the zero-shot form."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_lm.core.errors import ConfigError, DataError
from chinchilla_lm.data.markers import mark_entities
from chinchilla_lm.tune.config import TuneConfig
from chinchilla_lm.tune.relation import relation_logits

from . import conftest
from .conftest import RELATED

KINDS = ("qwen3", "gpt2", "bert")
TEXT = RELATED[0]["text"]
ROWS = [
    *RELATED,
    {"text": "bad films and good books", "head": [19, 24], "tail": [4, 9], "label": "Cause-Effect(e1,e2)"},
]


def build(folder, rows=ROWS, **changes):
    fields = {"task": "relation-extraction", "model": str(folder), "train": "t", "out": "o"}
    return conftest.build(TuneConfig(**(fields | changes)), rows)


def test_markers_are_those_of_the_paper():
    assert mark_entities(ROWS[0]).text == "The @ fire @ was caused by a # cigarette # near Paris ."
    typed = ROWS[0] | {"head_type": "EVENT", "tail_type": "Small_Thing"}
    assert mark_entities(typed).text == (
        "The @ * event * fire @ was caused by a # ^ small thing ^ cigarette # near Paris ."
    )
    assert mark_entities(ROWS[2]).text == "bad # films # and good @ books @"
    nested = {"text": "the Bank of England said", "head": [4, 19], "tail": [12, 19]}
    assert mark_entities(nested).text == "the @ Bank of # England # @ said"
    outer_tail = {"text": "the Bank of England said", "head": [4, 8], "tail": [4, 19]}
    assert mark_entities(outer_tail).text == "the # @ Bank @ of England # said"


@given(st.text("ab @#中 ", min_size=2, max_size=20), st.data())
def test_without_its_markers_the_text_is_as_before(text, draw):
    bounds = sorted(draw.draw(st.lists(st.integers(0, len(text)), min_size=4, max_size=4)))
    head, tail = bounds[:2], bounds[2:]
    if head[0] == head[1] or tail[0] == tail[1]:
        return
    marked = mark_entities({"text": text, "head": head, "tail": tail})
    for place, sign in ((marked.head_close, "@"), (marked.tail_close, "#")):
        assert marked.text[place] == sign
    assert marked.text[marked.head_open : marked.head_close + 1] == f"@ {text[slice(*head)]} @"
    assert marked.text[marked.tail_open : marked.tail_close + 1] == f"# {text[slice(*tail)]} #"
    assert len(marked.text) == len(text) + 8


@pytest.mark.parametrize(
    ("head", "tail", "message"),
    [([0, 99], [4, 5], "must be characters"), ([3, 3], [4, 5], "must be"), ([0, 5], [3, 9], "cross")],
)
def test_impossible_entities_are_refused(head, tail, message):
    with pytest.raises(DataError, match=message):
        mark_entities({"text": TEXT, "head": head, "tail": tail})


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_reads_the_markers(tiny_folder, kind):
    task, model = build(tiny_folder(kind), head="markers")
    for item in task.encode(ROWS, is_training=True):
        head, tail, whole = item.targets["places"]
        pieces = [model.backbone.tokenizer.decode([token]).strip() for token in item.ids[[head, tail]]]
        assert [piece[:1] for piece in pieces] == ["@", "#"]
        assert whole == (0 if kind == "bert" else item.length - 1)


@pytest.mark.parametrize("head", ["markers", "label-words", "fresh"])
@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_do_not_depend_on_the_batch_or_its_padding(tiny_folder, kind, head):
    if (kind, head) == ("bert", "label-words"):
        with pytest.raises(ConfigError, match="is for decoders"):
            build(tiny_folder(kind), head=head)
        return
    task, model = build(tiny_folder(kind), head=head)
    together = task.predict(model, ROWS)
    for row, prediction in zip(ROWS, together, strict=True):
        assert task.predict(model, [row])[0]["probabilities"] == pytest.approx(prediction["probabilities"], abs=1e-5)
        assert sum(prediction["probabilities"]) == pytest.approx(1.0, abs=1e-4)


def test_the_loss_is_the_cross_entropy_of_the_labels(tiny_folder):
    task, model = build(tiny_folder("qwen3"))
    batch = tuple(torch.from_numpy(array) for array in task.collate(task.encode(ROWS, is_training=True)))
    loss, count = task.objective(model, batch)
    logits_bk = relation_logits(model, *batch[:3])
    expected = -sum(logits_bk.log_softmax(-1)[row, task.labels.index(each["label"])] for row, each in enumerate(ROWS))
    assert (loss.item(), count) == (pytest.approx(expected.item()), 3)


def test_label_words_are_the_zero_shot_form_at_step_0(tiny_folder):
    """Without calibration and direction, the head of label words ranks as the untouched model does."""
    rows = [row | {"label": label} for row, label in zip(ROWS, ["cause", "other", "part of"], strict=True)]
    task, model = build(tiny_folder("qwen3"), rows, head="label-words")
    logits_bk = relation_logits(
        model, *(torch.from_numpy(array) for array in task.collate(task.encode(rows, is_training=False)))
    )
    weight_kd = model.head.linear.weight
    for place, label in enumerate(task.labels):
        ids = model.backbone.tokenizer(" " + label, add_special_tokens=False)["input_ids"]
        torch.testing.assert_close(weight_kd[place], model.backbone.unembedding_rows(ids).mean(dim=0))
    assert logits_bk.shape == (3, 3)


def test_long_texts_keep_the_entities(tiny_folder):
    row = {"text": "filler " * 60 + TEXT + " filler" * 60, "head": [424, 428], "tail": [445, 454], "label": "Other"}
    for kind in ("qwen3", "bert"):
        task, model = build(tiny_folder(kind), max_tokens=64, head="markers")
        (item,) = task.encode([row], is_training=True)
        assert item.length <= 64
        assert "fire @" in model.backbone.tokenizer.decode(item.ids)
        head, tail, _ = item.targets["places"]
        assert model.backbone.tokenizer.decode(item.ids[[head]]).strip() == "@"
        assert model.backbone.tokenizer.decode(item.ids[[tail]]).strip() == "#"
        apart = {"text": "fire" + " filler" * 90 + " fire", "head": [0, 4], "tail": [635, 639], "label": "Other"}
        with pytest.raises(DataError, match="further apart"):
            task.encode([apart], is_training=True)
        assert len(task.predict(model, [apart])) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_zero_shot_asks_a_decoder_in_the_direction_of_the_relation(tiny_folder, kind):
    task, model = build(tiny_folder(kind))
    predictions = task.zero_shot(model.backbone, ROWS * 12)
    if kind == "bert":
        assert predictions is None
        return
    assert len(predictions) == 36
    assert all(sum(each["probabilities"]) == pytest.approx(1.0, abs=1e-4) for each in predictions)
    turned = [row | {"head": row["tail"], "tail": row["head"]} for row in ROWS * 12]
    swapped = task.zero_shot(model.backbone, turned)
    forward, backward = task.labels.index("Cause-Effect(e1,e2)"), task.labels.index("Cause-Effect(e2,e1)")
    for one, other in zip(predictions, swapped, strict=True):
        ratio = one["probabilities"][forward] / one["probabilities"][backward]
        assert other["probabilities"][backward] / other["probabilities"][forward] == pytest.approx(ratio, rel=0.02)


def test_requests_that_make_no_sense_are_refused(tiny_folder):
    with pytest.raises(DataError, match="1 relations"):
        build(tiny_folder("qwen3"), ROWS[:1])
    with pytest.raises(ConfigError, match="none for relations"):
        build(tiny_folder("qwen3"), head="span")
    with pytest.raises(ConfigError, match="must hold {text} once"):
        build(tiny_folder("qwen3"), template="no field")
    task, _ = build(tiny_folder("qwen3"))
    with pytest.raises(DataError, match="'Nothing' is not among"):
        task.encode([ROWS[0] | {"label": "Nothing"}], is_training=True)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_an_encoder_decoder_uses_its_own_classs_head(tiny_folder, kind):
    task, model = build(tiny_folder(kind))
    assert task.describe()["head"] == "fresh"
    together = task.predict(model, ROWS)
    for row, prediction in zip(ROWS, together, strict=True):
        assert task.predict(model, [row])[0]["probabilities"] == pytest.approx(prediction["probabilities"], abs=1e-4)


def test_test_rows_without_the_negative_relation_still_leave_it_out(tiny_folder):
    """A model trained on "Other" says it of one of three rows that all have a relation: no class of its own."""
    task, _ = build(tiny_folder("qwen3"))
    causes = ["Cause-Effect(e1,e2)", "Cause-Effect(e2,e1)", "Cause-Effect(e2,e1)"]
    rows = [{**RELATED[0], "label": label} for label in causes]
    said = [{"label": label} for label in (causes[0], causes[1], "Other")]
    measured = task.measure(said, rows)
    assert list(measured.per_class) == ["Cause-Effect"]
    assert measured.values["macro_f1"] == pytest.approx(2 * 2 / (2 + 3))
