"""Answers by prompt against prompts written out here and priced one by one, and what may not change an answer."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from chinchilla_lm.core.errors import ConfigError, DataError
from chinchilla_lm.evals.loading import load_for_evaluation
from chinchilla_lm.evals.prompted import PromptRows, PromptSettings, answer_by_choice
from chinchilla_lm.evals.scorer import Scorer
from chinchilla_lm.prompt.demonstrations import DemoSettings
from chinchilla_lm.prompt.library_files import load_template

WORDS = ["sea", "calm", "sailor", "whale", "ship", "cook", "no", "sang"]
LABELS = ("negative", "positive")
REVIEW = load_template("en/text-classification/sentiment-review")
FEW = PromptSettings(rule="sum", demonstrations=DemoSettings(shots=2, draws=3, seed=4))


def rows_of(count: int, seed: int) -> list[dict]:
    draws = random.Random(seed)
    return [
        {"text": f"{seed} {number} " + " ".join(draws.choices(WORDS, k=5)), "label": draws.choice(LABELS)}
        for number in range(count)
    ]


TESTS, POOL, DEV = rows_of(36, 1), rows_of(20, 2), rows_of(40, 3)


@pytest.fixture(scope="module")
def scorer(tiny_model) -> Scorer:
    return load_for_evaluation(tiny_model).scorer("float32")


def prices(scorer: Scorer, before: str, texts: list[str]) -> np.ndarray:
    """ln p of " negative" and " positive" after a written-out review prompt, one pair at a time."""
    pairs = [[(f"{before}Review: {text}\nSentiment:", f" {label}") for label in LABELS] for text in texts]
    return np.array([[scorer.score([pair])[0].logprob for pair in row] for row in pairs])


def log_softmax(scores_nk: np.ndarray) -> np.ndarray:
    return np.log(np.exp(scores_nk) / np.exp(scores_nk).sum(axis=1, keepdims=True))


def by_hand(scorer: Scorer, before: str, rule: str) -> np.ndarray:
    """The formulas of docs/prompting.md."""
    texts = [row["text"] for row in TESTS]
    if rule == "channel":
        assert not before, "only used without demonstrations"
        pairs = [[(f"Sentiment: {label}\nReview:", f" {text}") for label in LABELS] for text in texts]
        return np.array([[scorer.score([pair])[0].logprob for pair in row] for row in pairs])
    sums = prices(scorer, before, texts)
    if rule == "sum":
        return sums
    if rule == "token":
        return sums / [len(scorer.tokenizer.encode(f" {label}").ids) for label in LABELS]
    if rule in ("char", "byte"):
        return sums / [len(label) for label in LABELS]
    if rule == "pmi":
        return sums - [scorer.score([("Sentiment:", f" {label}")])[0].logprob for label in LABELS]
    if rule == "cc":
        empty = np.exp(log_softmax(prices(scorer, before, ["N/A", "", "[MASK]"]))).mean(axis=0)
        return log_softmax(sums) - np.log(empty / empty.sum())
    assert rule == "bc"
    return log_softmax(sums) - log_softmax(sums).mean(axis=0)


@pytest.mark.parametrize("rule", ["sum", "token", "char", "byte", "pmi", "cc", "bc", "channel"])
def test_accuracy_by_rule_is_that_of_prompts_written_out(scorer, rule):
    gold = np.array([LABELS.index(row["label"]) for row in TESTS])
    result = answer_by_choice(scorer, REVIEW, PromptRows(tests=TESTS), PromptSettings(rule=rule))
    expected = by_hand(scorer, "", rule)
    assert result.draws[0].scores_nk == pytest.approx(expected, abs=2e-4)
    assert result.mean["accuracy"] == pytest.approx((expected.argmax(axis=1) == gold).mean())
    assert result.draws[0].by_rule == {rule: result.mean["accuracy"]}


def test_order_by_entropy_is_the_best_of_all_orders_written_out(scorer):
    drawn = PromptSettings(rule="sum", demonstrations=DemoSettings(shots=3, draws=2, seed=4))
    ordered = PromptSettings(rule="sum", demonstrations=DemoSettings(shots=3, draws=2, seed=4, order="entropy"))
    rows = PromptRows(tests=TESTS, pool=POOL[:8])  # five rows are left to probe with, in whatever order
    pairs = zip(
        answer_by_choice(scorer, REVIEW, rows, drawn).draws,
        answer_by_choice(scorer, REVIEW, rows, ordered).draws,
        strict=True,
    )
    for as_drawn, draw in pairs:
        assert set(draw.demonstrations) == set(as_drawn.demonstrations)
        probes = [row["text"] for number, row in enumerate(rows.pool) if number not in draw.demonstrations]
        entropies = {}
        for order in itertools.permutations(draw.demonstrations):
            solved = [POOL[number] for number in order]
            before = "".join(f"Review: {row['text']}\nSentiment: {row['label']}\n\n" for row in solved)
            shares_pk = np.exp(log_softmax(prices(scorer, before, probes)))
            wins_k = np.bincount(shares_pk.argmax(axis=1), minlength=2) / len(probes)
            of_wins = -sum(share * np.log(share) for share in wins_k if share)
            entropies[order] = (round(of_wins, 9), -(shares_pk * np.log(shares_pk)).sum(axis=1).mean())
        best = max(entropies.values())
        assert entropies[draw.demonstrations] == pytest.approx(best, abs=1e-5)
        assert best > min(entropies.values())
        before = "".join(f"Review: {POOL[n]['text']}\nSentiment: {POOL[n]['label']}\n\n" for n in draw.demonstrations)
        assert draw.scores_nk == pytest.approx(by_hand(scorer, before, "sum"), abs=3e-4)


def test_order_by_entropy_is_refused_where_it_means_nothing(scorer):
    with pytest.raises(ConfigError, match="nearest row last"):
        DemoSettings(shots=2, method="bm25", order="entropy")
    few = PromptSettings(rule="sum", demonstrations=DemoSettings(shots=2, draws=1, order="entropy"))
    with pytest.raises(DataError, match="rows beyond the demonstrations"):
        answer_by_choice(scorer, REVIEW, PromptRows(tests=TESTS[:1], pool=POOL[:2]), few)
    question = {"question": "who sang?", "choices": ["the cook", "the sailor"], "label": 0}
    rows = PromptRows(
        tests=[question], pool=[{**question, "question": f"{n} came?"} for n in ("who", "which ship", "what")]
    )
    with pytest.raises(ConfigError, match="no closed label set"):
        answer_by_choice(scorer, load_template("en/multiple-choice/question-answer"), rows, few)


@pytest.mark.parametrize("rule", ["sum", "cc", "bc", "pmi"])
def test_demonstrations_stand_before_the_item_as_written_here(scorer, rule):
    settings = PromptSettings(rule=rule, demonstrations=FEW.demonstrations)
    result = answer_by_choice(scorer, REVIEW, PromptRows(tests=TESTS, pool=POOL), settings)
    for draw in result.draws[:2]:
        solved = [POOL[number] for number in draw.demonstrations]
        assert sorted(row["label"] for row in solved) == ["negative", "positive"]
        before = "".join(f"Review: {row['text']}\nSentiment: {row['label']}\n\n" for row in solved)
        assert draw.scores_nk == pytest.approx(by_hand(scorer, before, rule), abs=3e-4)
    accuracies = [draw.measures.values["accuracy"] for draw in result.draws]
    assert result.mean["accuracy"] == pytest.approx(np.mean(accuracies))
    assert result.spread["accuracy"] == pytest.approx(np.std(accuracies, ddof=1))


@pytest.mark.parametrize("dev", [DEV, []])
def test_auto_never_reads_the_labels_of_the_test_rows(scorer, dev):
    swapped = [{**row, "label": other["label"]} for row, other in zip(TESTS, TESTS[::-1], strict=True)]
    settings = PromptSettings(demonstrations=DemoSettings(shots=2, draws=2))
    plain, other = (
        answer_by_choice(scorer, REVIEW, PromptRows(tests=tests, pool=POOL, dev=dev), settings)
        for tests in (TESTS, swapped)
    )
    assert [row["label"] for row in TESTS] != [row["label"] for row in swapped]
    for one, two in zip(plain.draws, other.draws, strict=True):
        assert (one.rule, one.reason, one.predicted) == (two.rule, two.reason, two.predicted)
        assert one.demonstrations == two.demonstrations


def test_auto_takes_the_rule_that_the_dev_rows_answer_best(scorer):
    result = answer_by_choice(scorer, REVIEW, PromptRows(tests=TESTS, dev=DEV))
    (draw,) = result.draws
    assert draw.rule in draw.by_rule
    assert set(draw.by_rule) == {"bc", "pmi", "cc", "byte", "sum"}
    assert draw.reason.startswith(f"{draw.rule}: ")
    assert "40 held-out rows" in draw.reason
    without = answer_by_choice(scorer, REVIEW, PromptRows(tests=TESTS))
    assert without.draws[0].rule == "bc"
    few = answer_by_choice(scorer, REVIEW, PromptRows(tests=TESTS[:8]))
    assert few.draws[0].rule == "cc"


def test_dev_rows_that_copy_test_rows_choose_nothing(scorer):
    copies = [{**row, "text": row["text"].upper() + "!"} for row in TESTS]
    only_copies = answer_by_choice(scorer, REVIEW, PromptRows(tests=TESTS, dev=copies))
    assert only_copies.draws[0].reason.startswith("bc: 36 unlabelled inputs")
    some = answer_by_choice(scorer, REVIEW, PromptRows(tests=TESTS, dev=[*copies, *DEV]))
    plain = answer_by_choice(scorer, REVIEW, PromptRows(tests=TESTS, dev=DEV))
    assert some.draws[0].reason == plain.draws[0].reason


def test_draws_follow_from_the_seed(scorer):
    def demonstrations(seed: int) -> list:
        settings = PromptSettings(rule="sum", demonstrations=DemoSettings(shots=2, draws=3, seed=seed))
        result = answer_by_choice(scorer, REVIEW, PromptRows(tests=TESTS[:2], pool=POOL), settings)
        return [(draw.demonstrations, draw.predicted) for draw in result.draws]

    assert demonstrations(1) == demonstrations(1)
    assert demonstrations(1) != demonstrations(2)
    assert len({one for one, _ in demonstrations(1)}) > 1


def test_each_row_may_have_its_own_demonstrations(scorer):
    settings = PromptSettings(demonstrations=DemoSettings(shots=2, draws=2, method="bm25"))
    result = answer_by_choice(scorer, REVIEW, PromptRows(tests=TESTS, pool=POOL, dev=DEV), settings)
    assert len(result.draws[0].demonstrations) == len(TESTS)
    assert len(set(result.draws[0].demonstrations)) > 1


def test_a_prompt_that_does_not_fit_is_cut_and_told(scorer):
    long = {"text": "sea " * 600, "label": "negative"}
    result = answer_by_choice(scorer, REVIEW, PromptRows(tests=[*TESTS[:3], long]), PromptSettings(rule="sum"))
    assert result.cut_rows == 1


def test_a_pool_row_that_copies_a_test_row_is_left_out(scorer):
    pool = [dict(TESTS[0]), *POOL]
    settings = PromptSettings(rule="sum", demonstrations=DemoSettings(shots=8, draws=4))
    result = answer_by_choice(scorer, REVIEW, PromptRows(tests=TESTS[:2], pool=pool), settings)
    assert all(0 not in draw.demonstrations for draw in result.draws)
    assert result.refused == 1  # whichever draw met it


def test_requests_that_cannot_be_met_are_one_line(scorer):
    with pytest.raises(ConfigError, match="the rule 'best' is unknown; write auto or one of sum"):
        PromptSettings(rule="best")
    with pytest.raises(DataError, match="there are no test rows"):
        PromptRows(tests=[])
    with pytest.raises(DataError, match="2 shots need solved rows; give a training file") as found:
        answer_by_choice(scorer, REVIEW, PromptRows(tests=TESTS), FEW)
    assert "\n" not in str(found.value)
    question = load_template("en/multiple-choice/question-answer")
    row = {"question": "who sang?", "choices": ["the cook", "the sailor"], "label": 1}
    with pytest.raises(ConfigError, match="cc .* needs a closed label set"):
        answer_by_choice(scorer, question, PromptRows(tests=[row]), PromptSettings(rule="cc"))
