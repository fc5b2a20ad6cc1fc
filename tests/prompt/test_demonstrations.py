"""Demonstrations: balance, neighbours, copies of test items, order; against brute force and bm25s."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla_lm.core.errors import ConfigError, DataError
from chinchilla_lm.prompt.bm25 import Bm25, words_of
from chinchilla_lm.prompt.contamination import TestTexts, pieces_of, plain_text
from chinchilla_lm.prompt.demonstrations import (
    DemoSettings,
    input_text,
    select_demonstrations,
)
from chinchilla_lm.prompt.library_files import load_template
from chinchilla_lm.prompt.ordering import global_entropy, local_entropy, order_by_entropy
from chinchilla_lm.prompt.plan import plan_scores

REVIEW = load_template("en/text-classification/sentiment-review")
WORDS = "slow bright funny cold warm clever flat rich thin loud quiet sharp".split()  # noqa: SIM905 - a list to read
TEXTS = [" ".join(pair) for pair in itertools.permutations(WORDS, 2)]
POOL = [{"text": f"a {text} film", "label": ("negative", "positive")[n % 4 == 0]} for n, text in enumerate(TEXTS[:80])]
TESTS = [{"text": f"one {text} story"} for text in TEXTS[80:100]]


def test_draws_are_balanced_different_and_repeatable():
    draws = select_demonstrations(REVIEW, POOL, TESTS, DemoSettings(shots=6, draws=7, seed=3))
    assert len(draws) == 7
    for draw in draws:
        assert [row["label"] for row in draw.rows].count("positive") == 3
        assert draw.rows == tuple(POOL[number] for number in draw.indices)
        assert len(set(draw.indices)) == 6
    assert len({draw.indices for draw in draws}) == 7
    assert draws == select_demonstrations(REVIEW, POOL, TESTS, DemoSettings(shots=6, draws=7, seed=3))
    assert len(select_demonstrations(REVIEW, POOL, TESTS)) == 5


def test_labels_take_turns_and_scarce_ones_give_theirs_away():
    pool = [*POOL[:5], {"text": "odd", "label": "positive"}]
    draw = select_demonstrations(REVIEW, pool, TESTS, DemoSettings(shots=6, draws=1))[0]
    assert sorted(draw.indices) == list(range(6))
    assert select_demonstrations(REVIEW, POOL, TESTS, DemoSettings(shots=0))[0].rows == ()
    with pytest.raises(DataError, match="7 demonstrations wanted, 6 of 6 training rows can serve"):
        select_demonstrations(REVIEW, pool, TESTS, DemoSettings(shots=7))
    with pytest.raises(ConfigError, match="write shots >= 0 and draws >= 1"):
        DemoSettings(draws=0)


def test_the_nearest_stands_last():
    rng = np.random.default_rng(0)
    pool_mv, tests_nv = rng.normal(size=(80, 5)), rng.normal(size=(20, 5))
    settings_ = DemoSettings(shots=4, method="nearest", draws=1)
    draw = select_demonstrations(REVIEW, POOL, TESTS, settings_, (pool_mv, tests_nv))[0]
    assert not draw.is_shared
    for row, numbers in enumerate(draw.indices):
        cosines = [
            float(pool_mv[m] @ tests_nv[row] / math.dist(pool_mv[m], [0] * 5) / math.dist(tests_nv[row], [0] * 5))
            for m in range(80)
        ]
        assert list(numbers) == sorted(range(80), key=lambda m: cosines[m])[-4:]
    requests = plan_scores(REVIEW, TESTS, draw.rows)
    assert requests[0].shared.endswith(f"{POOL[draw.indices[0][-1]]['text']}\nSentiment: "
                                       f"{POOL[draw.indices[0][-1]]['label']}\n\n")  # fmt: skip


def test_draws_of_neighbours_come_from_parts_of_the_pool():
    draws = select_demonstrations(REVIEW, POOL, TESTS, DemoSettings(shots=2, method="bm25", draws=5))
    assert len({draw.indices for draw in draws}) > 1
    with pytest.raises(ConfigError, match="nearest needs vectors"):
        select_demonstrations(REVIEW, POOL, TESTS, DemoSettings(method="nearest"))
    with pytest.raises(ConfigError, match="give one row for each of 80 and 20 texts"):
        select_demonstrations(REVIEW, POOL, TESTS, DemoSettings(method="nearest"), (np.ones((80, 2)), np.ones((20, 3))))


@pytest.mark.parametrize("method", ["balanced", "random", "bm25", "nearest"])
def test_copies_of_test_items_are_never_shown(method):
    tests = [{"text": "The plot is thin, but the actors carry the whole film to its end."}, *TESTS]
    copies = [
        {"text": "the plot is thin but the actors carry the whole film to its end", "label": "positive"},
        {"text": "THE PLOT IS THIN — BUT THE ACTORS CARRY THE WHOLE FILM TO THE END!", "label": "negative"},
    ]
    pool = [*copies, *POOL]
    vectors = np.ones((len(pool), 2)), np.ones((len(tests), 2))
    wanted = DemoSettings(shots=len(POOL), method=method, draws=1)
    draw = select_demonstrations(REVIEW, pool, tests, wanted, vectors if method == "nearest" else None)[0]
    shown = set(draw.indices) if draw.is_shared else {number for numbers in draw.indices for number in numbers}
    assert shown == set(range(2, len(pool)))
    assert draw.refused == (0, 1)


def test_input_text_is_what_the_row_says():
    assert input_text(load_template("en/question-answering/context-passage"), {
        "context": "C", "question": "Q", "answers": [{"text": "A"}]
    }) == "C\nQ"  # fmt: skip
    dialogue = load_template("en/dialogue/turns-ab")
    assert "Bergen" in input_text(dialogue, dialogue.example)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_near_copies_are_found_as_by_brute_force(data):
    # Few letters make many shared pieces.
    text = st.text(alphabet="abc ", max_size=24)
    tests = data.draw(st.lists(text, min_size=1, max_size=8))
    wanted = data.draw(st.one_of(text, st.sampled_from(tests).map(lambda found: found + "a")))
    limit = data.draw(st.sampled_from([0.3, 0.5, 0.8, 1.0]))

    def similarity(left: str, right: str) -> float:
        a, b = pieces_of(plain_text(left)), pieces_of(plain_text(right))
        return len(a & b) / len(a | b)

    best = max(similarity(wanted, test) for test in tests)
    found = TestTexts(tests, limit).nearest(wanted)
    if best >= limit:
        assert found is not None
        assert found[1] == pytest.approx(best)
        assert similarity(wanted, tests[found[0]]) == pytest.approx(best)
    else:
        assert found is None


def test_plain_text_keeps_letters_of_any_language():
    assert plain_text("Ａ，b-C 電影！") == "abc電影"


def test_bm25_equals_bm25s():
    bm25s = pytest.importorskip("bm25s")
    texts = ["the cat sat on the mat", "a dog and a cat", "birds fly high", "the the the", "dog dog mat bird"]
    peer = bm25s.BM25(k1=1.5, b=0.75, method="lucene")
    peer.index([words_of(text) for text in texts], show_progress=False)
    ours = Bm25(texts)
    for query in ("cat mat", "the dog", "bird", "nothing here", "dog dog"):
        # A word asked twice counts once here, twice there.
        known = [word for word in dict.fromkeys(words_of(query)) if word in peer.vocab_dict]
        expected = peer.get_scores(known) if known else np.zeros(5)
        assert ours.scores(query) == pytest.approx(expected, abs=1e-6)


def test_bm25_reads_chinese_by_characters_and_pairs():
    assert words_of("好电影 GOOD_one") == ["好", "电", "影", "好电", "电影", "good", "one"]
    scores = Bm25(["电影好看", "股票上涨", "看电视"]).scores("这部电影")
    assert scores.argmax() == 0
    assert scores[1] == 0


def test_entropies_by_hand():
    table = np.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.7, 0.3]])
    assert global_entropy(table) == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    expected = -np.mean([p * math.log(p) + (1 - p) * math.log(1 - p) for p in (0.9, 0.8, 0.4, 0.7)])
    assert local_entropy(table) == pytest.approx(expected)
    assert global_entropy(np.array([[1.0, 0.0]])) == 0
    assert global_entropy(np.eye(3)) == pytest.approx(math.log(3))


def test_the_order_that_uses_every_label_wins():
    asked = []

    def probabilities_of(rows):
        asked.append(tuple(rows))
        # One order alone answers both labels.
        share = 0.5 if rows[:2] == ["c", "a"] else 0.0
        return np.array([[0.6, 0.4]] * 4 + [[0.6 - share, 0.4 + share]] * 4)

    choice = order_by_entropy(["a", "b", "c", "d"], probabilities_of)
    assert len(set(asked)) == 24
    assert choice.order[:2] == (2, 0)
    assert choice.entropies[0] == pytest.approx(math.log(2))
    assert sorted(choice.orders) == list(itertools.permutations(range(4)))
    assert list(choice.entropies) == sorted(choice.entropies, reverse=True)


def test_many_demonstrations_are_sampled():
    choice = order_by_entropy(list(range(9)), lambda rows: np.array([[0.5, 0.5]]), measure="local", max_orders=10)
    assert len(set(choice.orders)) == 10
    with pytest.raises(DataError, match="do not sum to 1"):
        order_by_entropy([1, 2], lambda rows: np.array([[0.5, 0.6]]))
