from __future__ import annotations

import math

import pytest

from chinchilla_lm.core.errors import DataError
from chinchilla_lm.metrics.diversity import measure_losses, measure_text
from chinchilla_lm.metrics.measures import merge
from chinchilla_lm.metrics.resampling import interval


def test_loss_perplexity_and_bits_per_byte_are_of_the_whole() -> None:
    measures = measure_losses([6.0, 1.0], [3, 1], [8, 2])
    assert measures.value == pytest.approx(7 / 4)
    assert measures.values["perplexity"] == pytest.approx(math.exp(7 / 4))
    assert measures.values["bits_per_byte"] == pytest.approx(7 / math.log(2) / 10)
    assert not measures.higher_is_better
    assert measures.scores_n == (2.0, 1.0)


def test_distinct_counts_over_all_rows() -> None:
    values = measure_text(["a b a b", "我们 a b"]).values
    assert values["distinct_1"] == pytest.approx(4 / 8)
    assert values["distinct_2"] == pytest.approx(4 / 6)  # ab ba ab | 我们 们a ab
    assert values["repetition"] == 0.0
    assert measure_text(["x x x x x x"]).values["repetition"] == pytest.approx(2 / 3)


def test_joined_measures_keep_the_first_primary_and_can_be_drawn_again() -> None:
    joined = merge(measure_losses([6.0, 1.0], [3, 1]), measure_text(["a b", "c"]))
    assert joined.primary == "loss"
    assert joined.values["length"] == 1.5
    low, high = interval(joined, name="length", draws=200)
    assert (low, high) == (1.0, 2.0)
    assert "distinct_2" not in joined.formulas
    assert joined.as_record()["values"]["loss"] == joined.value


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(DataError, match="0 target tokens"):
        measure_losses([0.0], [0])
    with pytest.raises(DataError, match="0 rows"):
        measure_text([])
