"""Own words: exchangeable by construction, in any script; sets of items: read back as written, and scored alike."""

from __future__ import annotations

import random

import numpy as np
import pytest

from chinchilla_lm.core.errors import DataError
from chinchilla_lm.evals.item_sets import make_item_set, read_item_sets, score_item_sets, stored_suite, write_item_set
from chinchilla_lm.evals.loading import load_for_evaluation
from chinchilla_lm.evals.own_words import CHOICES, PASSAGE_BYTES, own_word_items
from chinchilla_lm.evals.suite_run import run_suite


def zipf_text(words: int, seed: int) -> str:
    """Words of very different frequency, independent of each other."""
    draws = np.random.default_rng(seed)
    names = ["".join(draws.choice(list("abcdefghij"), 5)) for _ in range(300)]
    weights = 1 / np.arange(1, 301)
    return " ".join(np.array(names)[draws.choice(300, words, p=weights / weights.sum())])


def test_who_knows_only_how_often_words_occur_is_right_once_in_eight():
    text = zipf_text(40_000, seed=1)
    items = own_word_items([text], 3000, seed=2)
    counts: dict[str, int] = {}
    for word in text.split():
        counts[word] = counts.get(word, 0) + 1
    right = [max(range(CHOICES), key=lambda k: counts[item.pairs[k][1].strip()]) == item.gold for item in items]
    assert len(items) == 3000
    assert abs(np.mean(right) - 1 / CHOICES) < 3 * 0.006  # three standard errors of 3,000 items
    assert len({item.gold for item in items}) == CHOICES


def test_an_item_is_the_texts_own_word_after_its_passage():
    text = zipf_text(3000, seed=3)
    for item in own_word_items([text], 200, seed=0):
        passage, word = item.pairs[item.gold]
        assert passage + word in text
        assert 0 < len(passage.encode()) <= PASSAGE_BYTES
        assert len({own for _, own in item.pairs}) == CHOICES
        assert {own for own, _ in item.pairs} == {passage}
    assert own_word_items([text], 200, seed=0) == own_word_items([text], 200, seed=0)
    assert own_word_items([text], 200, seed=0) != own_word_items([text], 200, seed=1)


def test_chinese_is_asked_by_the_character_and_never_beside_a_spaced_word():
    draws = random.Random(0)
    chinese = "".join(draws.choice("天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏") for _ in range(4000))
    items = own_word_items([chinese, zipf_text(2000, seed=4)], 300, seed=0)
    kinds = {(all(own.startswith(" ") for _, own in i.pairs), any(own[0] == " " for _, own in i.pairs)) for i in items}
    assert kinds == {(True, True), (False, False)}
    assert all(len(text.encode()) <= PASSAGE_BYTES for item in items for text, _ in item.pairs)


def test_a_text_of_too_few_words_is_refused():
    with pytest.raises(DataError, match=r"make \d+ items; give more text, or --suite none"):
        own_word_items(["1 2 3 " * 100, "one two three"], 100, seed=0)


def test_a_stored_set_gives_every_model_the_same_items(tiny_model, tmp_path):
    loaded = load_for_evaluation(tiny_model)
    items = own_word_items([zipf_text(3000, seed=5)], 40, seed=0)[:40]
    made = make_item_set(stored_suite("own-words", 1 / CHOICES), items, tiny_model, context=512)
    write_item_set(tmp_path, made)
    again = read_item_sets(tmp_path)
    assert again[0].items == tuple(items)
    assert (again[0].tokens, again[0].suite.name, again[0].suite.chance) == (made.tokens, "own-words", 1 / CHOICES)
    found = score_item_sets(loaded.model, again, tiny_model)["own-words"]
    result = run_suite(loaded.scorer("float32"), made.suite, items)
    assert (found["accuracy"], found["standard_error"], found["items"]) == (result.value, result.errors["acc"], 40)
    assert read_item_sets(tmp_path / "absent") == ()
    assert score_item_sets(loaded.model, (), tiny_model) == {}


def test_a_set_that_the_context_cannot_hold_is_refused_before_any_model_is_asked(tiny_model, tmp_path):
    items = own_word_items([zipf_text(3000, seed=5)], 60, seed=0)
    with pytest.raises(DataError, match=r"continuation of \d+ tokens and the context is 2; give --context"):
        make_item_set(stored_suite("own-words", 1 / CHOICES), items, tiny_model, context=2)
    (tmp_path / "blimp.json").write_text('{"schema": "items/1", "suite": "blimp"}')
    with pytest.raises(DataError, match="holds no items of a suite"):
        read_item_sets(tmp_path)
