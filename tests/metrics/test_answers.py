"""Answers against the published scripts' rules, written again plainly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_lm.metrics.answers import (
    answer_f1,
    exact_match,
    measure_answers,
    normalise_answer,
    order_by_agreement,
)


def test_english_answers_lose_case_articles_and_punctuation() -> None:
    assert normalise_answer("The  Cat's, an (old) HAT.") == "cats old hat"
    assert exact_match("the Denver Broncos!", "Denver Broncos") == 1.0
    assert answer_f1("the large Denver Broncos", "Denver Broncos") == pytest.approx(0.8)
    assert normalise_answer("der alte Mann", "de") == "alte mann"
    assert normalise_answer("der alte Mann", "en") == "der alte mann"


def test_the_best_of_the_gold_answers_counts() -> None:
    # The example of SQuAD's article: one row, three annotators.
    measures = measure_answers(["Santa Clara, California"], [["Levi's Stadium", "santa clara california", "Clara"]])
    assert measures.values == {"f1": 1.0, "exact_match": 1.0}


def test_no_answer_is_right_when_nothing_is_said() -> None:
    measures = measure_answers(["", "Paris", "Paris", ""], [[], [], ["Paris"], ["Paris"]])
    assert measures.values["exact_match"] == 0.5
    assert measures.per_class["answer"]["f1"] == 0.5
    assert measures.per_class["no answer"]["support"] == 2


def test_chinese_answers_are_scored_on_characters() -> None:
    # cmrc2018_evaluate.py: the longest common run over the lengths, CJK punctuation left out.
    assert exact_match("《广茂铁路》", "广茂铁路", "zh") == 1.0
    assert answer_f1("位于广东省的广茂铁路", "广茂铁路", "zh") == pytest.approx(2 * 4 / (10 + 4))
    assert answer_f1("1998年5月", "1998年", "zh-CN") == pytest.approx(2 * 2 / (4 + 2))
    assert answer_f1("上海", "北京", "zh") == 0.0


@given(st.text("广茂铁路ab 1。，", max_size=12), st.text("广茂铁路ab 1。，", min_size=1, max_size=12))
def test_the_longest_run_is_that_of_all_substrings(predicted: str, gold: str) -> None:
    from chinchilla_lm.metrics.answers import _cmrc_units

    first, second = _cmrc_units(gold), _cmrc_units(predicted)
    runs = [
        end - start
        for start in range(len(first))
        for end in range(start + 1, len(first) + 1)
        if any(second[place : place + end - start] == first[start:end] for place in range(len(second)))
    ]
    expected = 2 * max(runs, default=0) / (len(first) + len(second)) if first and second else float(first == second)
    assert answer_f1(predicted, gold, "zh") == pytest.approx(expected)


@given(st.text("ab the,. ", max_size=20), st.text("ab the,. ", max_size=20))
def test_f1_is_symmetric_bounded_and_one_where_answers_match(first: str, second: str) -> None:
    f1 = answer_f1(first, second)
    assert 0 <= f1 <= 1
    assert f1 == pytest.approx(answer_f1(second, first))
    if exact_match(first, second):
        assert f1 == 1.0


def test_the_answer_most_people_agree_with_comes_first() -> None:
    people = ["Each brotherhood elects two delegates", "two delegates", "delegates", "two delegates"]
    assert [people[place] for place in order_by_agreement(people)][:2] == ["two delegates", "two delegates"]
    assert order_by_agreement(["the cat", "a dog"]) == [0, 1]  # two cannot outvote each other
    assert order_by_agreement([]) == []
    assert order_by_agreement(["北京的公园", "公园里", "公园里面"], "zh")[0] == 1


@given(st.lists(st.sampled_from(["x", "x y", "y z", "z", "the x"]), min_size=1, max_size=6))
def test_no_other_answer_scores_better_against_all_people(people: list[str]) -> None:
    def score(place: int) -> float:
        return measure_answers([people[place]] * len(people), [[one] for one in people]).value

    order = order_by_agreement(people)
    assert sorted(order) == list(range(len(people)))
    assert score(order[0]) == pytest.approx(max(map(score, range(len(people)))))
