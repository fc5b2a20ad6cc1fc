"""Labels against scikit-learn; calibration against a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_lm.core.errors import DataError
from chinchilla_lm.metrics.calibration import calibration_error, measure_calibration, reliability
from chinchilla_lm.metrics.classification import measure_choices, measure_classification, measure_multilabel

sklearn = pytest.importorskip("sklearn.metrics")

LABELS = ["anger", "joy", "fear", "none"]
_pairs = st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS)), min_size=1, max_size=40)
_sets = st.lists(st.sampled_from(LABELS), unique=True)


@given(_pairs)
@pytest.mark.filterwarnings("ignore:A single label")
def test_one_label_a_row_agrees_with_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    predicted, gold = map(list, zip(*pairs, strict=True))
    measures = measure_classification(predicted, gold, LABELS)
    assert measures.value == pytest.approx(sklearn.accuracy_score(gold, predicted))
    assert measures.values["macro_f1"] == pytest.approx(
        sklearn.f1_score(gold, predicted, average="macro", zero_division=0)
    )
    assert measures.values["mcc"] == pytest.approx(sklearn.matthews_corrcoef(gold, predicted), abs=1e-12)
    precision, recall, f1, support = sklearn.precision_recall_fscore_support(
        gold, predicted, labels=LABELS, zero_division=0
    )
    for place, label in enumerate(LABELS):
        found = measures.per_class[label]
        assert [found["precision"], found["recall"], found["f1"], found["support"]] == pytest.approx(
            [precision[place], recall[place], f1[place], support[place]]
        )


@given(st.lists(st.tuples(_sets, _sets), min_size=1, max_size=30))
def test_sets_of_labels_agree_with_scikit_learn(pairs: list[tuple[list[str], list[str]]]) -> None:
    predicted, gold = map(list, zip(*pairs, strict=True))
    measures = measure_multilabel(predicted, gold, LABELS)
    table = [np.array([[label in row for label in LABELS] for row in rows], dtype=int) for rows in (gold, predicted)]
    occurs = (table[0] + table[1]).any(axis=0)
    by_class = sklearn.f1_score(*table, average=None, zero_division=0)
    assert measures.values["micro_f1"] == pytest.approx(sklearn.f1_score(*table, average="micro", zero_division=0))
    assert measures.values["macro_f1"] == pytest.approx(by_class[occurs].mean() if occurs.any() else 0.0)
    assert measures.values["exact_match"] == pytest.approx(sklearn.accuracy_score(*table))
    assert measures.values["hamming_loss"] == pytest.approx(sklearn.hamming_loss(*table))
    assert measures.values["example_f1"] == pytest.approx(
        sklearn.f1_score(*table, average="samples", zero_division=1.0)
    )


def test_a_prediction_that_is_no_label_is_wrong_and_a_class_of_its_own() -> None:
    predicted, gold = ["joy", "I do not know", "fear"], ["joy", "joy", "fear"]
    measures = measure_classification(predicted, gold, LABELS)
    assert measures.value == pytest.approx(2 / 3)
    assert measures.values["mcc"] == pytest.approx(sklearn.matthews_corrcoef(gold, predicted))


def test_a_gold_label_that_is_unknown_is_refused() -> None:
    with pytest.raises(DataError, match="'hope' is not among"):
        measure_classification(["joy"], ["hope"], LABELS)
    with pytest.raises(DataError, match="0 rows"):
        measure_classification([], [], LABELS)


def test_probabilities_agree_with_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.ones(4), 300)
    gold = generator.integers(4, size=300)
    measures = measure_classification(
        [LABELS[place] for place in probabilities.argmax(axis=1)],
        [LABELS[place] for place in gold],
        LABELS,
        probabilities,
    )
    assert measures.values["nll"] == pytest.approx(sklearn.log_loss(gold, probabilities, labels=range(4)))
    brier = ((probabilities - np.eye(4)[gold]) ** 2).sum(axis=1).mean()
    assert measures.values["brier"] == pytest.approx(brier)


# Hundredths that are no edges of fifteenths but 0, .2, .4, ...: there a loop's division rounds as ours does.
@given(st.lists(st.tuples(st.integers(0, 100), st.booleans()), min_size=1, max_size=60))
def test_calibration_error_is_the_mean_gap_of_bins(rows: list[tuple[int, bool]]) -> None:
    expected = 0.0
    for place in range(15):
        within = [row for row in rows if max(1, row[0]) * 15 in range(place * 100 + 1, (place + 1) * 100 + 1)]
        if within:
            gap = sum(row[0] / 100 for row in within) - sum(row[1] for row in within)
            expected += abs(gap) / len(rows)
    confidence, correct = [row[0] / 100 for row in rows], [row[1] for row in rows]
    assert calibration_error(confidence, correct) == pytest.approx(expected, abs=1e-12)
    assert sum(one.rows for one in reliability(confidence, correct)) == len(rows)


def test_honest_probabilities_have_a_small_calibration_error_and_boasts_a_large_one() -> None:
    generator = np.random.default_rng(1)
    confidence = generator.uniform(0.5, 1, 20_000)
    correct = generator.random(20_000) < confidence
    assert calibration_error(confidence, correct) < 0.02
    assert calibration_error(np.full(20_000, 0.99), correct) == pytest.approx(0.99 - correct.mean())
    table = np.column_stack([confidence, 1 - confidence])
    assert measure_calibration(table, (~correct).astype(int)).value == pytest.approx(
        calibration_error(confidence, correct)
    )


def test_choices_are_accuracy() -> None:
    assert measure_choices([0, 1, 2, 0], [0, 1, 1, 1]).value == 0.5
