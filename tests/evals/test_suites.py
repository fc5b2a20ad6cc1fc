"""Suites: every file of the shared pack, rows of the hub's form, results and comparisons by hand."""

from __future__ import annotations

import gzip
import json
import math

import numpy as np
import pytest

from chinchilla_lm.core.errors import ConfigError, DataError
from chinchilla_lm.evals.loading import load_for_evaluation
from chinchilla_lm.evals.suite_forms import Item
from chinchilla_lm.evals.suite_run import SuiteResult, compare_results, run_suite
from chinchilla_lm.evals.suites import SUITES, find_suite, suite_items

# One row of each hub set, its shape only. What the harness asks of it: (text, continuation of the right choice).
HUB_ROWS = {
    "blimp": (
        {"sentence_good": "The cat sleeps.", "sentence_bad": "The cat sleep.", "UID": "agreement", "field": "syntax"},
        ("", " The cat sleeps."),
    ),
    "lambada": ({"text": "The sea was calm and the sailor sang"}, ("The sea was calm and the sailor", " sang")),
    "arc-easy": (
        {"id": "x", "question": "What is wet?", "choices": {"text": ["sand", "sea"], "label": ["A", "B"]},
         "answerKey": "B"},
        ("Question: What is wet?\nAnswer:", " sea"),
    ),
    "arc-challenge": (
        {"question": "What is wet?", "choices": {"text": ["sea", "sand"], "label": ["1", "2"]}, "answerKey": "1"},
        ("Question: What is wet?\nAnswer:", " sea"),
    ),
    "piqa": (
        {"goal": "To open a can", "sol1": "use a spoon", "sol2": "use an opener", "label": 1},
        ("Question: To open a can\nAnswer:", " use an opener"),
    ),
    "copa": (
        {"premise": "The man turned on the faucet.", "choice1": "The toilet filled.", "choice2": "Water flowed.",
         "question": "effect", "idx": 0, "label": 1},
        ("The man turned on the faucet therefore", " water flowed."),
    ),
    "openbookqa": (
        {"question_stem": "Fog is likely near", "choices": {"text": ["a marsh", "a desert"], "label": ["A", "B"]},
         "answerKey": "A"},
        ("Fog is likely near", " a marsh"),
    ),
    "hellaswag": (
        {"activity_label": "Sailing", "ctx_a": "A man stands on deck.", "ctx_b": "he", "label": "1",
         "endings": ["flies. [substeps] up", "pulls [title] a rope."]},
        ("Sailing: A man stands on deck. He", " pulls. a rope."),
    ),
    "winogrande": (
        {"sentence": "Ann was better than Mary so _ got the hard cases.", "option1": "Ann", "option2": "Mary",
         "answer": "1"},
        ("Ann was better than Mary so Ann", " got the hard cases."),
    ),
    "wsc273": (
        {"text": "The trophy does not fit because it is too large.", "pronoun": "it", "pronoun_loc": 32,
         "options": ["the trophy", "the case"], "label": 0},
        ("The trophy does not fit because the trophy", " is too large."),
    ),
    "boolq": (
        {"passage": "The sea is salt.", "question": "is the sea salt", "label": 1, "idx": 0},
        ("The sea is salt.\nQuestion: is the sea salt?\nAnswer:", " yes"),
    ),
    "commonsenseqa": (
        {"question": "Where is a book kept? ", "answerKey": "B", "question_concept": "book",
         "choices": {"label": ["A", "B", "C"], "text": ["oven", "shelf", "river"]}},
        ("Question: Where is a book kept?\nA. oven\nB. shelf\nC. river\nAnswer:", " B"),
    ),
}  # fmt: skip
COUNTS = {
    "blimp": 67_000, "lambada": 5153, "arc-easy": 2376, "arc-challenge": 1172, "piqa": 1838, "copa": 100,
    "openbookqa": 500, "winogrande": 1267, "wsc273": 273, "boolq": 3270, "commonsenseqa": 1221,
}  # fmt: skip


def test_every_suite_is_tested_here():
    assert set(HUB_ROWS) == set(SUITES)
    assert set(COUNTS) | {"hellaswag"} == set(SUITES)


@pytest.mark.parametrize("name", SUITES)
def test_a_row_of_the_hub_is_asked_as_the_harness_asks_it(name):
    row, right = HUB_ROWS[name]
    item = find_suite(name).convert(row)
    assert item.pairs[item.gold or 0] == right
    assert len(item.lengths) == len(item.pairs)
    if name == "blimp":
        assert item.group == "agreement"


@pytest.mark.parametrize("name", COUNTS)
def test_the_shared_files_are_whole_suites(shared_data, name):
    suite = find_suite(name)
    items = suite_items(suite, shared_data)
    assert len(items) == COUNTS[name]
    for item in items:
        assert item.gold is None or 0 <= item.gold < len(item.pairs)
        assert len(item.lengths) == len(item.pairs) >= (1 if item.gold is None else 2)
        for (text, continuation), (characters, size) in zip(item.pairs, item.lengths, strict=True):
            assert not text.endswith(" ")
            assert continuation.startswith(" ")
            assert not continuation.startswith("  ")
            assert len(continuation.strip().encode()) <= size
            assert 0 < characters <= size
    golds = {item.gold for item in items}
    assert len(golds) > 1 or name in ("blimp", "lambada")
    assert len({item.group for item in items}) == (67 if name == "blimp" else 1)


def test_a_limit_draws_as_many_of_each_part_and_the_same_for_every_model(tmp_path):
    rows = [{"uid": f"part {n % 7}", "good": f"good {n}", "bad": f"bad {n}"} for n in range(70)]
    (tmp_path / "blimp.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    blimp = find_suite("blimp")
    items = suite_items(blimp, tmp_path, limit=14, seed=3)
    counts = {item.group: sum(other.group == item.group for other in items) for item in items}
    assert counts == {f"part {n}": 2 for n in range(7)}
    assert items == suite_items(blimp, tmp_path, limit=14, seed=3)
    assert items != suite_items(blimp, tmp_path, limit=14, seed=4)
    assert len(suite_items(blimp, tmp_path, limit=16)) == 16
    with pytest.raises(ConfigError, match="limit must be >= 1, got 0"):
        suite_items(blimp, tmp_path, limit=0)


def test_a_folder_that_is_none_is_said_and_not_the_hub(tmp_path):
    with pytest.raises(DataError, match="nowhere is no folder; give the one with the suites' files"):
        suite_items(find_suite("piqa"), tmp_path / "nowhere")


def test_what_cannot_be_read_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="there is no suite 'blip'; choose from blimp, lambada"):
        find_suite("blip")
    (tmp_path / "copa.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(DataError, match=r"copa\.jsonl, row 1: not the form of copa") as found:
        suite_items(find_suite("copa"), tmp_path)
    assert "\n" not in str(found.value)
    monkeypatch.setattr("chinchilla_lm.evals.suites._has_hub", lambda: False)
    with pytest.raises(DataError, match="which arc-easy is read from"):
        suite_items(find_suite("arc-easy"), tmp_path)


SENTENCES = [("the sea was calm", "the sea calm was"), ("a whale came near", "whale a near came"),
             ("the cook said no", "cook the no said"), ("the sailor sang", "sang sailor the")]  # fmt: skip


@pytest.fixture(scope="module")
def scorer(tiny_model):
    return load_for_evaluation(tiny_model).scorer("float32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("suites")
    rows = [{"uid": "ab"[n % 3 > 0], "good": good, "bad": bad} for n, (good, bad) in enumerate(SENTENCES)]
    with gzip.open(place / "blimp.jsonl.gz", "wt") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows)
    rows = [{"context": f"the {word} said", "choices": ["no", "the sea was calm", "a ship"], "label": n % 3}
            for n, word in enumerate(["cook", "sailor", "whale", "sea", "ship"])]  # fmt: skip
    (place / "arc_easy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "lambada.jsonl").write_text("".join(json.dumps({"text": good}) + "\n" for good, _ in SENTENCES))
    return place


def test_accuracies_are_those_of_choices_priced_one_by_one(scorer, folder):
    suite = find_suite("arc-easy")
    items = suite_items(suite, folder)
    result = run_suite(scorer, suite, items)
    right: dict[str, list[bool]] = {"acc": [], "acc_norm": [], "acc_bytes": []}
    for item in items:
        sums = np.array([scorer.score([pair])[0].logprob for pair in item.pairs])
        lengths = np.array([len(continuation) - 1 for _, continuation in item.pairs])
        right["acc"].append(sums.argmax() == item.gold)
        right["acc_norm"].append((sums / lengths).argmax() == item.gold)
        right["acc_bytes"].append((sums / lengths).argmax() == item.gold)
    for name, marks in right.items():
        assert result.values[name] == pytest.approx(np.mean(marks))
        assert result.errors[name] == pytest.approx(np.std(marks, ddof=1) / math.sqrt(5))
    assert result.value == result.values["acc_norm"]
    assert result.correct_n == tuple(right["acc_norm"])


def test_parts_count_alike_however_many_items_they_have(scorer, folder):
    suite = find_suite("blimp")
    items = suite_items(suite, folder)
    result = run_suite(scorer, suite, items)
    marks = {"a": [], "b": []}
    for item in items:
        good, bad = (scorer.score([pair])[0].logprob for pair in item.pairs)
        marks[item.group].append(good > bad)
    assert result.parts == {name: np.mean(own) for name, own in marks.items()}
    assert result.value == pytest.approx((np.mean(marks["a"]) + np.mean(marks["b"])) / 2)
    variances = [np.var(own, ddof=1) / len(own) for own in marks.values()]
    assert result.errors["acc"] == pytest.approx(math.sqrt(sum(variances)) / 2)


def test_a_cloze_is_right_when_every_token_is_the_likeliest(scorer, folder):
    suite = find_suite("lambada")
    result = run_suite(scorer, suite, suite_items(suite, folder))
    scores = scorer.score([(good.rpartition(" ")[0], " " + good.rpartition(" ")[2]) for good, _ in SENTENCES])
    assert result.values["acc"] == np.mean([score.is_greedy for score in scores])
    assert result.values["perplexity"] == pytest.approx(math.exp(-np.mean([score.logprob for score in scores])))


def result_of(correct: str, groups: str, suite: str = "blimp") -> SuiteResult:
    marks = np.array([mark == "1" for mark in correct])
    parts = {name: float(marks[[one == name for one in groups]].mean()) for name in sorted(set(groups))}
    return SuiteResult(
        suite=suite, metric="acc", items=len(marks), chance=0.5, values={"acc": float(np.mean(list(parts.values())))},
        errors={"acc": 0.1}, parts=parts, correct_n=tuple(map(bool, marks)), groups_n=tuple(groups), cut_items=0,
    )  # fmt: skip


def test_two_models_are_compared_on_the_same_items():
    first, second = result_of("1100010101", "aaaabbbbbb"), result_of("1011111101", "aaaabbbbbb")
    found = compare_results(first, second)
    assert (found.only_first, found.only_second) == (1, 4)
    # Exact McNemar by hand: 2 * (C(5,0) + C(5,1)) / 2^5.
    assert found.p_value == pytest.approx(2 * (1 + 5) / 32)
    assert found.difference == pytest.approx(second.value - first.value)
    change = {"a": [0, -1, 1, 1], "b": [1, 0, 1, 0, 0, 0]}
    variance = sum(np.var(own, ddof=1) / len(own) for own in change.values())
    assert found.standard_error == pytest.approx(math.sqrt(variance) / 2)
    same = compare_results(first, first)
    assert (same.difference, same.p_value, same.standard_error) == (0.0, 1.0, 0.0)


def test_groups_of_one_item_have_the_error_of_items_drawn_freely():
    first, second = result_of("110001", "abcdef"), result_of("101111", "abcdef")
    change = [0, -1, 1, 1, 1, 0]
    expected = np.std(change, ddof=1) / math.sqrt(len(change))
    assert compare_results(first, second).standard_error == pytest.approx(expected)
    lone = compare_results(result_of("1000", "aaab"), result_of("1011", "aaab"))  # one group of one item
    variances = [np.var([0, 0, 1], ddof=1) / 3, np.var([0, 0, 1, 1], ddof=1)]
    assert lone.standard_error == pytest.approx(math.sqrt(sum(variances)) / 2)


def test_many_changed_items_are_compared_by_chi_square():
    first, second = result_of("1" * 10 + "0" * 30 + "1" * 20, "a" * 60), result_of("0" * 10 + "1" * 50, "a" * 60)
    found = compare_results(first, second)
    statistic = (abs(10 - 30) - 1) ** 2 / 40
    assert found.p_value == pytest.approx(math.erfc(math.sqrt(statistic / 2)))


def test_results_on_other_items_are_not_compared():
    with pytest.raises(DataError, match="cannot be paired"):
        compare_results(result_of("10", "aa"), result_of("101", "aaa"))
    with pytest.raises(DataError, match="cannot be paired"):
        compare_results(result_of("10", "aa"), result_of("10", "aa", suite="copa"))
    with pytest.raises(DataError, match="cannot be paired"):
        compare_results(result_of("10", "aa"), result_of("10", "ab"))


@pytest.mark.filterwarnings("error")
def test_an_empty_choice_is_never_the_best_by_length(scorer):
    item = Item(pairs=(("the sea", " "), ("the sea", " was calm")), gold=1, lengths=((0, 0), (8, 8)))
    result = run_suite(scorer, find_suite("piqa"), [item])
    assert result.values["acc_norm"] == result.values["acc_bytes"] == 1


def test_no_items_are_refused(scorer):
    with pytest.raises(DataError, match="copa has no items"):
        run_suite(scorer, find_suite("copa"), [])
