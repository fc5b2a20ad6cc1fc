"""Spans against seqeval's and nervaluate's own reports."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_lm.core.errors import DataError
from chinchilla_lm.metrics.tagging import measure_tagging, spans_of

seqeval = pytest.importorskip("seqeval.metrics")
scheme = pytest.importorskip("seqeval.scheme")
nervaluate = pytest.importorskip("nervaluate")

_tags = st.sampled_from(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"])
_rows = st.lists(st.lists(st.tuples(_tags, _tags), min_size=1, max_size=8), min_size=1, max_size=6)


@given(_rows)
@pytest.mark.filterwarnings("ignore")
def test_strict_f1_agrees_with_seqeval(rows: list[list[tuple[str, str]]]) -> None:
    predicted, gold = ([[pair[side] for pair in row] for row in rows] for side in (0, 1))
    measures = measure_tagging(predicted, gold)
    options = {"mode": "strict", "scheme": scheme.IOB2, "zero_division": 0}
    assert measures.value == pytest.approx(seqeval.f1_score(gold, predicted, average="micro", **options))
    assert measures.values["precision"] == pytest.approx(seqeval.precision_score(gold, predicted, **options))
    assert measures.values["recall"] == pytest.approx(seqeval.recall_score(gold, predicted, **options))
    if measures.per_class:
        assert measures.values["macro_f1"] == pytest.approx(
            seqeval.f1_score(gold, predicted, average="macro", **options)
        )
    assert measures.values["token_accuracy"] == pytest.approx(seqeval.accuracy_score(gold, predicted))


def test_partial_f1_agrees_with_nervaluate_on_its_own_lists() -> None:
    gold = [["O", "B-LOC", "I-LOC", "O", "B-PER"], ["B-PER", "I-PER", "I-PER", "O"], ["O", "O"]]
    predicted = [["O", "B-LOC", "O", "O", "B-LOC"], ["B-PER", "I-PER", "O", "O"], ["B-LOC", "O"]]
    report = nervaluate.Evaluator(gold, predicted, tags=["LOC", "PER"], loader="list").evaluate()["overall"]
    values = measure_tagging(predicted, gold).values
    assert values["partial_f1"] == pytest.approx(report["partial"].f1)
    assert values["type_f1"] == pytest.approx(report["ent_type"].f1)
    assert values["exact_f1"] == pytest.approx(report["exact"].f1)
    assert values["f1"] == pytest.approx(report["strict"].f1)
    assert values["f1"] < values["partial_f1"]


def test_an_inside_without_a_beginning_is_no_span() -> None:
    assert spans_of([["I-PER", "O", "B-LOC", "I-PER"]]) == [{("LOC", 2, 3)}]


def test_a_text_without_spans_is_right_when_none_is_predicted() -> None:
    measures = measure_tagging([["O"], ["B-X"]], [["O"], ["O"]])
    assert measures.scores_n == (1.0, 0.0)
    assert measures.value == 0.0


def test_different_lengths_are_refused() -> None:
    with pytest.raises(DataError, match="row 2 has 1 tags and 2 predictions"):
        measure_tagging([["O"], ["O", "O"]], [["O"], ["O"]])
