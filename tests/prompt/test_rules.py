"""Scoring rules against numbers worked out by hand and against brute force with a tiny exact language model."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla_lm.core.errors import ConfigError, DataError
from chinchilla_lm.prompt.library_files import load_template
from chinchilla_lm.prompt.plan import CONTENT_FREE_TEXTS, RULES, plan_scores
from chinchilla_lm.prompt.rules import (
    batch_scores,
    contextual_scores,
    finish_scores,
    normalised,
    pmi_scores,
    probabilities,
)
from chinchilla_lm.prompt.template import Template

REVIEW = load_template("en/text-classification/sentiment-review")
ROWS = [{"text": f"film {number}", "label": "positive"} for number in range(5)]
DEMOS = [{"text": "dull", "label": "negative"}, {"text": "great", "label": "positive"}]


def bigram_logprob(prefix: str, continuation: str) -> float:
    """A language model: p(next character) depends on the one before it, by a fixed formula."""
    total, before = 0.0, prefix[-1:] or "\x02"
    for character in continuation:
        weight = 1 + (ord(before) * 31 + ord(character) * 17) % 23
        total += math.log(weight / sum(1 + (ord(before) * 31 + code * 17) % 23 for code in range(256)))
        before = character
    # The whole prompt counts a little, so that rows and demonstrations differ.
    return total + math.sin(len(prefix)) * len(continuation) / 10


def asked(template, rows, demos, rules):
    requests = plan_scores(template, rows, demos, rules)
    return requests, np.array([bigram_logprob(request.prefix, request.continuation) for request in requests])


def test_length_rules_by_hand():
    requests, _ = asked(load_template("zh/multiple-choice/question-answer"), [
        {"question": "？", "choices": ["书", "a b"], "label": 0}
    ], (), "sum")  # fmt: skip
    logprobs = [-6.0, -6.0]
    assert finish_scores("sum", requests, logprobs).tolist() == [[-6, -6]]
    assert finish_scores("char", requests, logprobs).tolist() == [[-6, -2]]
    assert finish_scores("byte", requests, logprobs).tolist() == [[-2, -2]]
    assert finish_scores("token", requests, logprobs, [2, 1]).tolist() == [[-3, -6]]


def test_the_delimiter_does_not_count_in_lengths():
    requests, _ = asked(REVIEW, ROWS[:1], (), "sum")
    assert requests[0].continuation == " negative"
    assert finish_scores("char", requests, [-8.0, -8.0]).tolist() == [[-1, -1]]


def test_pmi_by_hand():
    # Holtzman et al. 2021: a likely word loses to an unlikely one that the input made likelier.
    sum_nk = np.log([[0.4, 0.2]])
    assert pmi_scores(sum_nk, np.log([0.8, 0.1])) == pytest.approx(np.log([[0.5, 2.0]]))


def test_contextual_calibration_by_hand():
    # Zhao et al. 2021: p = (0.6, 0.4), content-free p = (0.9, 0.1) and (0.7, 0.3): q = (0.8, 0.2).
    scores = contextual_scores(np.log([[0.3, 0.2]]), np.log([[0.45, 0.05], [0.7, 0.3]]))
    assert np.exp(scores) == pytest.approx(np.array([[0.6 / 0.8, 0.4 / 0.2]]))


def test_a_choice_that_never_stands_without_content_does_not_divide_by_zero():
    scores = contextual_scores(np.log([[0.5, 0.5]]), np.array([[0.0, -5000.0]]))
    assert np.isfinite(scores).all()


def test_batch_calibration_by_hand():
    # Zhou et al. 2023: mean of the log-probabilities over the batch.
    p_nk = np.array([[0.9, 0.1], [0.6, 0.4]])
    mean_k = np.log(p_nk).mean(axis=0)
    assert batch_scores(np.log(p_nk)) == pytest.approx(np.log(p_nk) - mean_k)
    assert batch_scores(np.log(p_nk)).argmax(axis=1).tolist() == [0, 1]
    assert batch_scores(np.log(p_nk), strength=0.0) == pytest.approx(np.log(p_nk))


@settings(max_examples=50, deadline=None)
@given(
    table=st.lists(st.lists(st.floats(-50, 0), min_size=3, max_size=3), min_size=1, max_size=8),
    bias=st.lists(st.floats(-20, 20), min_size=3, max_size=3),
)
def test_batch_calibration_undoes_any_bias_of_the_choices(table, bias):
    sum_nk = np.array(table)
    plain, biased = batch_scores(sum_nk), batch_scores(sum_nk + np.array(bias))
    # Up to one number a row, which changes no decision.
    assert plain - plain[:, :1] == pytest.approx(biased - biased[:, :1], abs=1e-9)


def test_probabilities_sum_to_one_also_with_absent_choices():
    sum_nk = np.array([[-1.0, -2.0, -np.inf], [-1000.0, -1001.0, -999.0]])
    assert probabilities(sum_nk).sum(axis=1) == pytest.approx([1, 1])
    assert np.exp(normalised(sum_nk))[0, 2] == 0


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_equals_brute_force(rule):
    requests, logprobs = asked(REVIEW, ROWS, DEMOS, RULES)
    counts = [len(request.continuation.split()) for request in requests]
    found_nk = finish_scores(rule, requests, logprobs, counts)
    shared = "".join(REVIEW.item_text(row) + " " + REVIEW.gold_text(row) + "\n\n" for row in DEMOS)
    words = ["negative", "positive"]

    def total(item: str, word: str) -> float:
        return bigram_logprob(shared + item, " " + word)

    free = [[total(f"Review: {text}\nSentiment:", word) for word in words] for text in CONTENT_FREE_TEXTS]
    q_k = np.mean([np.exp(row) / np.exp(row).sum() for row in np.array(free)], axis=0)
    plain = [[total(REVIEW.item_text(row), word) for word in words] for row in ROWS]
    log_p = [np.log(np.exp(row) / np.exp(row).sum()) for row in np.array(plain)]
    channel_shared = "".join(f"Sentiment: {REVIEW.gold_text(row)}\nReview: {row['text']}\n\n" for row in DEMOS)
    for n, row in enumerate(ROWS):
        for k, word in enumerate(words):
            expected = {
                "sum": plain[n][k],
                "token": plain[n][k] / 1,
                "char": plain[n][k] / 8,
                "byte": plain[n][k] / 8,
                "pmi": plain[n][k] - bigram_logprob("Sentiment:", " " + word),
                "cc": log_p[n][k] - np.log(q_k[k]),
                "bc": log_p[n][k] - np.mean([row_p[k] for row_p in log_p]),
                "channel": bigram_logprob(channel_shared + f"Sentiment: {word}\nReview:", " " + row["text"]),
            }
            assert found_nk[n, k] == pytest.approx(expected[rule]), (rule, n, k)


@pytest.mark.parametrize("rule", RULES)
def test_rules_planned_together_or_alone_agree(rule):
    alone, alone_values = asked(REVIEW, ROWS, DEMOS, rule)
    together, together_values = asked(REVIEW, ROWS, DEMOS, RULES)
    counts, many = [1] * len(alone), [1] * len(together)
    assert finish_scores(rule, alone, alone_values, counts) == pytest.approx(
        finish_scores(rule, together, together_values, many)
    )
    assert len({(r.prefix, r.continuation, r.part, r.row, r.choice) for r in together}) == len(together)


def test_demonstrations_of_each_row_are_calibrated_by_themselves():
    per_row = [DEMOS, DEMOS[::-1], DEMOS, DEMOS[:1], DEMOS[:1]]
    requests, logprobs = asked(REVIEW, ROWS, per_row, "cc")
    found_nk = finish_scores("cc", requests, logprobs)
    assert len({request.group for request in requests}) == 3
    for n, row in enumerate(ROWS):
        one, values = asked(REVIEW, [row], per_row[n], "cc")
        assert found_nk[n] == pytest.approx(finish_scores("cc", one, values)[0])


def test_a_shared_premise_is_asked_once():
    requests, _ = asked(REVIEW, ROWS, DEMOS, "pmi")
    assert len(requests) == 2 * len(ROWS) + 2
    assert {request.prefix for request in requests if request.part == "domain"} == {"Sentiment:"}
    own, _ = asked(load_template("en/multiple-choice/question-answer"), [
        {"question": "a", "choices": ["x", "y", "z"], "label": 0}, {"question": "b", "choices": ["u", "v"], "label": 0}
    ], (), "pmi")  # fmt: skip
    assert len(own) == 10


@pytest.mark.parametrize("order", [1, -1])
def test_a_premise_of_each_row_is_its_own_whichever_row_comes_first(order):
    # The premise names a field that is no content, which one row leaves empty.
    template = Template(
        name="t", task="text-classification", language="en", labels={"0": "bad", "1": "good"}, fields=("text",),
        optional=("title",), content=("text",), item="{{ text }}\n{% if title %}{{ title }}{% else %}It{% endif %} is",
    )  # fmt: skip
    rows = [{"text": "a", "title": "Rome"}, {"text": "b", "title": ""}, {"text": "c", "title": "Paris"}][::order]
    requests, logprobs = asked(template, rows, (), "pmi")
    for scores_k, row in zip(finish_scores("pmi", requests, logprobs), rows, strict=True):
        premise = f"{row['title'] or 'It'} is"
        expected = [
            bigram_logprob(f"{row['text']}\n{premise}", word) - bigram_logprob(premise, word)
            for word in (" bad", " good")
        ]
        assert scores_k == pytest.approx(expected)


def test_rows_with_fewer_choices_are_filled():
    rows = [{"question": "a", "choices": ["x", "y", "z"]}, {"question": "b", "choices": ["u", "v"]}]
    template = load_template("en/multiple-choice/question-answer")
    for rule in ("sum", "token", "char", "byte", "pmi", "channel"):
        requests, logprobs = asked(template, rows, (), rule)
        scores_nk = finish_scores(rule, requests, logprobs, [1] * len(requests))
        assert scores_nk.shape == (2, 3)
        assert np.isneginf(scores_nk[1, 2])
        assert np.isfinite(scores_nk[:, :2]).all()


def test_batch_calibration_takes_letters_and_refuses_a_rows_own_choices():
    rows = [{"question": "a", "choices": ["x", "y"]}, {"question": "b", "choices": ["u", "v"]}]
    letters, values = asked(load_template("en/multiple-choice/question-letters"), rows, (), "bc")
    assert finish_scores("bc", letters, values).shape == (2, 2)
    own, values = asked(load_template("en/multiple-choice/question-answer"), rows, (), "bc")
    with pytest.raises(DataError, match="choice 0 is 'x' and 'u'; use pmi or byte"):
        finish_scores("bc", own, values)


def test_batch_calibration_may_take_its_mean_from_elsewhere():
    requests, logprobs = asked(REVIEW, ROWS, (), "bc")
    reference = np.array([[-1.0, -3.0], [-2.0, -2.0]])
    found = finish_scores("bc", requests, logprobs, reference_mk=reference)
    assert found == pytest.approx(
        normalised(finish_scores("sum", requests, logprobs)) - normalised(reference).mean(axis=0)
    )


def test_partial_scoring_compares_prompts():
    schema = load_template("en/multiple-choice/schema-partial")
    requests = plan_scores(schema, [schema.example], (), "sum")
    assert [request.item for request in requests] == schema.example["contexts"]
    assert {request.continuation for request in requests} == {" is too large."}
    with pytest.raises(ConfigError, match="its rules are sum and token"):
        plan_scores(schema, [schema.example], (), "pmi")


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="the rule 'acc' is unknown; write one of sum"):
        plan_scores(REVIEW, ROWS, (), "acc")
    with pytest.raises(ConfigError, match="needs a closed label set"):
        plan_scores(load_template("en/multiple-choice/question-answer"), [], (), "cc")
    with pytest.raises(ConfigError, match="has no `channel`"):
        plan_scores(load_template("en/text-classification/pair-premise"), [], (), "channel")
    with pytest.raises(ConfigError, match="writes its answers"):
        plan_scores(load_template("en/translation/pair-names"), [], (), "sum")
    requests, logprobs = asked(REVIEW, ROWS, (), "sum")
    with pytest.raises(DataError, match="a log-probability is nan"):
        finish_scores("sum", requests, [*logprobs[:-1], math.nan])
    with pytest.raises(DataError, match="give one number a request"):
        finish_scores("sum", requests, logprobs[:-1])
    with pytest.raises(ConfigError, match="give token_counts"):
        finish_scores("token", requests, logprobs)
    with pytest.raises(DataError, match="plan it with"):
        finish_scores("cc", requests, logprobs)
    with pytest.raises(DataError, match="holds no domain requests"):
        finish_scores("pmi", requests, logprobs)
