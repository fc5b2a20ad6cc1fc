"""Joint search and thresholds against brute force; character offsets there and back."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from chinchilla_lm.core.errors import ConfigError, DataError
from chinchilla_lm.data.span_search import (
    AnswerLengths,
    best_answers,
    best_spans,
    choose_threshold,
    lengths_of,
)
from chinchilla_lm.data.span_windows import check_template, encode_question, locate_answer, target_positions

TEMPLATE = "Question: {question}\nContext: {context}\nAnswer:"
CONTEXT = "The play was written by Anna Smith in London in 1903. 今天的天气很好，我们去北京的公园。"


@pytest.fixture(scope="module", params=["qwen3", "bert"])
def reader(tiny_folder, request):
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder(request.param))
    template = None if request.param == "bert" else TEMPLATE

    def encode(question, context, max_tokens=512, stride=16):
        return encode_question(tokenizer, question, context, template=template, max_tokens=max_tokens, stride=stride)

    return encode


@pytest.mark.parametrize("seed", range(20))
def test_best_spans_equals_trying_every_pair(seed):
    draw = np.random.default_rng(seed)
    tokens, longest, count = int(draw.integers(1, 12)), int(draw.integers(1, 6)), int(draw.integers(1, 9))
    start_c, end_c = draw.normal(size=tokens), draw.normal(size=tokens)
    start_c[draw.random(tokens) < 0.2] = -np.inf
    cost = float(draw.choice([0.0, 0.4]))
    every = [
        (i, j, start_c[i] + end_c[j] - cost * (j - i))
        for i, j in itertools.product(range(tokens), repeat=2)
        if i <= j < i + longest and np.isfinite(start_c[i])
    ]
    expected = sorted(every, key=lambda pair: -pair[2])[:count]
    found = best_spans(start_c, end_c, lengths=AnswerLengths(longest=longest, cost=cost), count=count)
    assert [pair[:2] for pair in found] == [pair[:2] for pair in expected]
    assert [pair[2] for pair in found] == pytest.approx([pair[2] for pair in expected])


def test_the_cost_of_a_token_is_that_of_a_geometric_distribution():
    counts = [1, 2, 2, 7] * 200
    cost = lengths_of(counts, shortest_limit=30, longest_limit=128).cost
    p = 1 / np.mean(counts)  # its maximum likelihood
    assert cost == pytest.approx(np.log(p) - (np.log(p) + np.log(1 - p)), rel=1e-3)
    assert lengths_of([1] * 50, shortest_limit=30, longest_limit=128).cost == pytest.approx(np.log(51))
    assert lengths_of([], shortest_limit=30, longest_limit=128) == AnswerLengths(longest=30, cost=0.0)
    assert [lengths_of([n], shortest_limit=30, longest_limit=128).longest for n in (1, 50, 500)] == [30, 50, 128]


def test_an_empty_context_has_no_span():
    assert best_spans(np.zeros(0), np.zeros(0), lengths=AnswerLengths(longest=5), count=3) == []


@settings(max_examples=150, deadline=None)
@given(
    answer=st.tuples(st.integers(0, len(CONTEXT) - 1), st.integers(1, 12)), max_tokens=st.sampled_from([40, 60, 512])
)
def test_offsets_there_and_back(reader, answer, max_tokens):
    """The tokens that cover an answer give back a slice that covers it, as tightly as tokens can, in any script."""
    start, end = answer[0], min(answer[0] + answer[1], len(CONTEXT))
    while start < end and CONTEXT[start] == " ":
        start += 1
    while end > start and CONTEXT[end - 1] == " ":
        end -= 1
    if start == end:
        return
    windows = reader("who ?", CONTEXT, max_tokens)
    found = 0
    for window in windows:
        place = target_positions(window, (start, end))
        if place is None:
            continue
        found += 1
        first, last = place[0] - window.first, place[1] - window.first
        low, high = window.starts_c[first], window.ends_c[last]
        assert low <= start
        assert high >= end
        # Tight: no other start or end lies between.
        assert not (window.starts_c[(window.starts_c > low)] <= start).any()
        assert not ((window.ends_c >= end) & (window.ends_c < high)).any()
    if len(windows) == 1:
        assert found == 1


@pytest.mark.parametrize("answer", ["我们", "公园", "我们去", "公园。"])
def test_a_character_cut_between_two_tokens_is_whole_and_alone(reader, answer):
    """The tiny tokenizer has tokens such as the end of 们 with the beginning of 去."""
    (window,) = reader("哪里？", CONTEXT)
    start = CONTEXT.index(answer)
    first, last = target_positions(window, (start, start + len(answer)))
    assert CONTEXT[window.starts_c[first - window.first] : window.ends_c[last - window.first]] == answer


def test_windows_overlap_and_cover_the_context(reader):
    (whole,) = reader("who wrote it ?", CONTEXT)
    windows = reader("who wrote it ?", CONTEXT, max_tokens=50, stride=10)
    assert len(windows) > 1
    for window in windows:
        assert len(window.ids_t) <= 50
        assert (window.ids_t[: window.first] == whole.ids_t[: whole.first]).all()  # the whole question, every time
    for name in ("starts_c", "ends_c"):
        parts = [getattr(window, name) for window in windows]
        for before, after in itertools.pairwise(parts):
            assert (before[-10:] == after[:10]).all()
        assert (np.concatenate([parts[0], *(part[10:] for part in parts[1:])]) == getattr(whole, name)).all()


def test_search_over_windows_is_that_of_the_whole(reader):
    """With one score a character, windows give the answer that brute force over the whole context gives."""
    draw = np.random.default_rng(3)
    start_at, end_at = draw.normal(size=len(CONTEXT) + 1), draw.normal(size=len(CONTEXT) + 1)
    windows = reader("who ?", CONTEXT, max_tokens=50, stride=20)
    scores = []
    for window in windows:
        start_t, end_t = np.full(len(window.ids_t), -9.0), np.full(len(window.ids_t), -9.0)
        inside = slice(window.first, window.first + window.count)
        start_t[inside], end_t[inside] = start_at[window.starts_c], end_at[window.ends_c]
        scores.append((start_t, end_t))
    answers, null_score = best_answers(windows, scores, lengths=AnswerLengths(longest=8), count=5)
    (whole,) = reader("who ?", CONTEXT)
    every = {}
    for i in range(whole.count):
        for j in range(i, min(i + 8, whole.count)):
            low, high = int(whole.starts_c[i]), int(whole.ends_c[j])
            if 0 <= low < high:
                every[low, high] = start_at[low] + end_at[high]
    best = max(every, key=lambda place: every[place])
    assert (answers[0].start, answers[0].end) == best
    assert len({(answer.start, answer.end) for answer in answers}) == len(answers) == 5
    assert null_score == -18.0


@pytest.mark.parametrize("seed", range(15))
def test_threshold_is_the_best_of_all(seed):
    draw = np.random.default_rng(seed)
    count = int(draw.integers(1, 9))
    margins = draw.integers(-3, 4, size=count).astype(float)
    answered, silent = draw.random(count), (draw.random(count) < 0.4).astype(float)

    def mean(threshold):
        return np.where(margins > threshold, silent, answered).mean()

    best = max(mean(threshold) for threshold in [-9.0, *np.unique(margins), 9.0])
    assert mean(choose_threshold(margins, answered, silent)) == pytest.approx(best)


def test_no_rows_leave_the_threshold_at_zero():
    assert choose_threshold([], [], []) == 0.0


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{context}\n{question}\n", "before the question"),
        ("{question}", "once each"),
        ("{question} {context}", "must end in words"),
    ],
)
def test_templates_that_a_causal_model_cannot_use_are_refused(template, message):
    with pytest.raises(ConfigError, match=message):
        check_template(template)


def test_a_question_without_room_for_its_context_is_refused(reader):
    with pytest.raises(DataError, match="leaves no room"):
        reader("who " * 40, CONTEXT, max_tokens=40)


def test_answers_are_found_where_they_say_or_where_they_stand():
    assert locate_answer("abc b", [{"text": "b", "start": 4}]) == (4, 5)
    assert locate_answer("abc b", [{"text": "b", "start": 0}]) == (1, 2)  # a wrong offset
    assert locate_answer("abc b", [{"text": "x"}, {"text": " b "}, {"text": "b"}]) == (1, 2)
    assert locate_answer("abc b", [{"text": "x"}, {"text": "  "}]) is None
