"""Drawing sums is drawing rows: the library on the drawn rows says the same; tests have their size."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from chinchilla_lm.metrics.classification import measure_classification
from chinchilla_lm.metrics.measures import Measures, mean_of
from chinchilla_lm.metrics.overlap import measure_translation
from chinchilla_lm.metrics.relation import measure_relation
from chinchilla_lm.metrics.resampling import draw_sums, interval, mcnemar, paired_difference
from chinchilla_lm.metrics.tagging import measure_tagging

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "then", "it", "slept", "well"]


def _labels(rows: int, seed: int) -> tuple[list[str], list[str]]:
    generator = np.random.default_rng(seed)
    gold = [str(label) for label in generator.integers(4, size=rows)]
    return [label if generator.random() < 0.7 else "0" for label in gold], gold


def _sentences(rows: int, seed: int) -> tuple[list[str], list[str]]:
    generator = np.random.default_rng(seed)
    gold = [" ".join(generator.choice(WORDS, 8)) for _ in range(rows)]
    return [" ".join(word for word in text.split() if generator.random() < 0.9) for text in gold], gold


def _tags(rows: int, seed: int) -> tuple[list[list[str]], list[list[str]]]:
    generator = np.random.default_rng(seed)
    draw = lambda: list(generator.choice(["O", "B-A", "B-B"], 6))  # noqa: E731
    gold = [draw() for _ in range(rows)]
    return [[tag if generator.random() < 0.8 else "O" for tag in row] for row in gold], gold


@pytest.mark.parametrize("task", ["labels", "relation", "tags", "translation"])
def test_the_formula_on_drawn_sums_is_the_measure_of_the_drawn_rows(task: str) -> None:
    def measure(predicted: list, gold: list) -> Measures:  # type: ignore[type-arg]
        if task == "labels":
            return measure_classification(predicted, gold, ["0", "1", "2", "3"])
        if task == "relation":
            return measure_relation(predicted, gold, negative="0")
        return measure_tagging(predicted, gold) if task == "tags" else measure_translation(predicted, gold)

    makers = {"labels": _labels, "relation": _labels, "tags": _tags, "translation": _sentences}
    predicted, gold = makers[task](60, 3)
    whole = measure(predicted, gold)
    assert whole.counts_nk is not None
    generator = np.random.default_rng(5)
    for _ in range(5):
        rows = generator.integers(60, size=60)
        again = measure([predicted[row] for row in rows], [gold[row] for row in rows])
        sums_k = whole.counts_nk[rows].sum(axis=0)
        for name, formula in whole.formulas.items():
            assert float(formula(sums_k)) == pytest.approx(again.values[name], abs=1e-9), name


@pytest.mark.parametrize("kinds", [2, 300])
def test_drawn_sums_have_the_mean_and_variance_of_drawing_rows(kinds: int) -> None:
    generator = np.random.default_rng(2)
    counts_nk = generator.integers(kinds, size=(300, 1)).astype(float)  # 2 kinds: by multinomial; 300: row by row
    drawn = np.concatenate(list(draw_sums(counts_nk, 4000, seed=0)))[:, 0]
    error = 300**0.5 * counts_nk.std()
    assert abs(drawn.mean() - counts_nk.sum()) < 4 * error / 4000**0.5
    assert drawn.std() == pytest.approx(error, rel=0.06)


def test_the_interval_of_accuracy_is_near_the_normal_one() -> None:
    measures = mean_of({"accuracy": [1.0] * 320 + [0.0] * 80}, "accuracy")
    low, high = interval(measures)
    half = 1.96 * (0.8 * 0.2 / 400) ** 0.5
    assert (low, high) == pytest.approx((0.8 - half, 0.8 + half), abs=0.004)
    assert interval(measures, seed=1) == pytest.approx((low, high), abs=0.004)


def test_equal_models_differ_in_about_one_of_twenty_test_sets() -> None:
    """Two models that are equally good: the interval misses 0, and p < .05, at about the stated rate."""
    generator = np.random.default_rng(0)
    missed = small = 0
    trials = 400
    for trial in range(trials):
        right = generator.random((2, 250)) < 0.8  # each right on 80 %, independently
        before, after = (mean_of({"accuracy": row.astype(float).tolist()}, "accuracy") for row in right)
        found = paired_difference(before, after, draws=999, seed=trial)
        missed += not found.low <= 0 <= found.high
        small += found.p_value < 0.05
    # 5 % of 400 is 20 +- 4.4; three standard errors
    assert 7 <= missed <= 34
    assert 7 <= small <= 34


def test_identical_predictions_do_not_differ() -> None:
    measures = measure_classification(*_labels(50, 1), ["0", "1", "2", "3"])
    found = paired_difference(measures, measures, draws=500)
    assert (found.difference, found.low, found.high, found.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_a_clear_improvement_is_seen_and_equal_rows_help() -> None:
    generator = np.random.default_rng(4)
    first = generator.random(400) < 0.7
    second = first | (generator.random(400) < 0.15)  # right wherever the first is
    before, after = (mean_of({"accuracy": row.astype(float).tolist()}, "accuracy") for row in (first, second))
    found = paired_difference(before, after, draws=2000)
    assert found.low > 0
    assert found.p_value < 0.01
    assert found.high - found.low < 0.5 * (interval(before)[1] - interval(before)[0]) * 2


def test_mcnemar_is_the_binomial_test_of_few_rows_and_chi_square_of_many() -> None:
    few = mcnemar([True] * 6 + [False] * 2 + [True] * 50, [False] * 6 + [True] * 2 + [True] * 50)
    assert (few.only_before, few.only_after, few.is_exact) == (6, 2, True)
    assert few.p_value == pytest.approx(stats.binomtest(2, 8).pvalue)
    many = mcnemar([True] * 40 + [False] * 20, [False] * 40 + [True] * 20)
    assert many.statistic == pytest.approx((20 - 1) ** 2 / 60)  # with Edwards' correction
    assert many.p_value == pytest.approx(stats.chi2.sf(361 / 60, 1))
    assert mcnemar([True, False], [True, False]).p_value == 1.0
