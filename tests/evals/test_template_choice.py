"""Which wording comes first for a kind of rows, and a search that sees no test label."""

from __future__ import annotations

import random

import pytest

from chinchilla_lm.core.errors import BudgetError, ConfigError
from chinchilla_lm.data.labelled import read_rows, rows_for_task
from chinchilla_lm.evals.loading import load_for_evaluation
from chinchilla_lm.evals.prompted import PromptRows
from chinchilla_lm.evals.template_choice import FIRST_WORDINGS, fitting_templates, search_templates
from chinchilla_lm.prompt.demonstrations import DemoSettings
from chinchilla_lm.prompt.library_files import library_templates

SENTIMENT = [{"text": "a fine whale", "label": "positive"}, {"text": "no sea", "label": "negative"}]
QUESTION = {"question": "who sang?", "choices": ["the cook", "the sailor"], "label": 1}
BLANK = {"question": "", "choices": ["a b", "c b"], "contexts": ["a", "c"], "continuation": "b", "label": 0}
KINDS = [
    ("text-classification", SENTIMENT, "sentiment-review"),
    ("text-classification", [{"text": "a", "label": "World"}, {"text": "b", "label": "Sports"}], "topic-article"),
    ("text-classification", [{"text": "a", "label": "whales"}, {"text": "b", "label": "cooking"}], "topic-article"),
    ("text-classification", [{"text": str(n), "label": f"wish_{n}"} for n in range(30)], "intent-query"),
    ("text-classification", [{"text": "a", "text_pair": "b", "label": "entailment"}], "pair-premise"),
    ("multiple-choice", [QUESTION], "question-answer"),
    ("multiple-choice", [{**QUESTION, "choices": ["A", "B"]}], "question-answer"),
    ("multiple-choice", [{**QUESTION, "question": "the cook sang, therefore"}], "continuation-plain"),
    ("multiple-choice", [BLANK], "schema-partial"),
]
FILES = [
    ("text-classification", "en", "sentiment-sst2/test.jsonl", "sentiment-review", 2),
    ("text-classification", "en", "topic-agnews-small/test.jsonl", "topic-article", 4),
    ("text-classification", "en", "intent-banking77/test.jsonl", "intent-query", 77),
    ("text-classification", "en", "intent-clinc150/test.jsonl", "intent-query", 150),
    ("multiple-choice", "en", "mc-commonsenseqa/dev.jsonl", "question-answer", 0),
    ("multiple-choice", "en", "mc-zeroshot-pack/copa.jsonl", "continuation-plain", 0),
    ("multiple-choice", "en", "mc-zeroshot-pack/winogrande_xl_dev.jsonl", "schema-partial", 0),
    ("text-classification", "zh", "topic-csl-zh/test.jsonl", "topic-belongs", 13),
]


@pytest.mark.parametrize(("task", "rows", "wording"), KINDS)
def test_the_wording_that_the_field_uses_comes_first(task, rows, wording):
    found = fitting_templates(task, "en", rows)
    assert found[0].name == f"en/{task}/{wording}"
    assert {template.family for template in found[:2]} == {found[0].family}
    assert "intent" not in {template.family for template in fitting_templates("text-classification", "en", SENTIMENT)}
    for template in found:  # whatever is offered can be asked
        for row in rows:
            template.render(row)


@pytest.mark.parametrize(("task", "language", "file", "wording", "labels"), FILES)
def test_public_sets_have_their_wording(shared_data, task, language, file, wording, labels):
    rows = rows_for_task(task, read_rows(shared_data / file))
    first = fitting_templates(task, language, rows)[0]
    assert first.name == f"{language}/{task}/{wording}"
    assert len(first.labels) >= labels
    assert {row["label"] for row in rows} <= set(first.labels) or not labels


def test_every_first_wording_is_in_the_library():
    names = {template.name.rsplit("/", 1)[-1] for template in library_templates(language="en")}
    assert set(FIRST_WORDINGS.values()) <= names


def test_what_fits_nothing_is_one_line():
    with pytest.raises(ConfigError, match="no en template of multiple-choice fits these rows") as found:
        fitting_templates("multiple-choice", "en", [{"label": 0}])
    assert "\n" not in str(found.value)
    assert "--template" in str(found.value)
    numbered = [{"text": "a", "label": "0"}, {"text": "b", "label": "1"}]
    with pytest.raises(ConfigError, match=r"fits these rows \(en/.*/sentiment-\w+ has no word for the label '0'"):
        fitting_templates("text-classification", "en", numbered)
    several = [{"text": "a", "label": ["x", "y"]}]
    for named in (None, "en/text-classification/topic-article"):
        with pytest.raises(ConfigError, match="a prompt chooses one; give rows of one label"):
            fitting_templates("text-classification", "en", several, named)
    rows = [{"text": "a", "label": "splendid"}]
    with pytest.raises(ConfigError, match="has no word for the label 'splendid'"):
        fitting_templates("text-classification", "en", rows, "en/text-classification/sentiment-review")
    with pytest.raises(ConfigError, match="no template is named 'sentiment-reviw'"):
        fitting_templates("text-classification", "en", SENTIMENT, "sentiment-reviw")


@pytest.fixture(scope="module")
def scorer(tiny_model):
    return load_for_evaluation(tiny_model).scorer("float32")


def rows_of(count: int, seed: int) -> list[dict]:
    draws = random.Random(seed)
    words = ["sea", "calm", "sailor", "whale", "ship"]
    return [
        {"text": f"{seed} {n} " + " ".join(draws.choices(words, k=4)), "label": draws.choice(["negative", "positive"])}
        for n in range(count)
    ]


def test_the_search_sees_dev_rows_only_and_keeps_its_budget(scorer):
    tests, pool, dev = rows_of(6, 1), rows_of(12, 2), rows_of(32, 3)
    templates = fitting_templates("text-classification", "en", dev)[:2]
    settings = DemoSettings(shots=2, draws=2, seed=1)
    results = []
    for label in ("negative", "positive"):
        rows = PromptRows(tests=[{**row, "label": label} for row in tests], pool=pool, dev=dev)
        results.append(search_templates(scorer, templates, rows, settings, budget_items=140))
    copied = PromptRows(tests=tests, pool=pool, dev=[*tests, *dev])
    results.append(search_templates(scorer, templates, copied, settings, budget_items=140))
    assert results[0] == results[1] == results[2]
    assert results[0].items_scored <= 140
    assert results[0].best.arm.template in {template.name for template in templates}
    assert {row.arm.draw for row in results[0].table} == {0, 1}
    with pytest.raises(BudgetError, match="too few for 4 arms"):
        search_templates(scorer, templates, rows, settings, budget_items=20)
    writing = fitting_templates("summarization", "en", [{"document": "a b", "summary": "a"}])
    with pytest.raises(ConfigError, match="writes its answers; the search compares templates with choices"):
        search_templates(scorer, writing, rows, settings, budget_items=140)
