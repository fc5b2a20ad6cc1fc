"""The page of a prompted evaluation: mean and spread first, every rule and draw, the prompt as asked, safe text."""

from __future__ import annotations

import copy
import statistics
from pathlib import Path
from typing import Any

import pytest
from tests.report.page_reader import HOSTILE, Page, check_self_contained, damaged

from chinchilla_lm.core.errors import DataError
from chinchilla_lm.report.chart import Line, Marks
from chinchilla_lm.report.prompt_page import render_prompt_page, write_prompt_page
from chinchilla_lm.report.prompt_words import headline, rules_chart

DRAWN = {"bc": (0.8, 0.7, 0.75), "sum": (0.55, 0.5, 0.65)}
MEAN, SPREAD = statistics.fmean(DRAWN["bc"]), statistics.stdev(DRAWN["bc"])
SCORED: dict[str, Any] = {
    "schema": "prompt/1",
    "task": "text-classification",
    "language": "en",
    "model": "models/little",
    "template": "en/text-classification/sentiment-review",
    "shots": 4,
    "rows": 60,
    "metric": "accuracy",
    "metrics": {"nll": 0.5123, "accuracy": MEAN},
    "spread": {"nll": 0.0213, "accuracy": SPREAD},
    "interval": {"accuracy": [0.6411, 0.8422]},
    "per_draw": [
        {"draw": place, "metrics": {"accuracy": DRAWN["bc"][place], "nll": 0.5}, "demonstrations": [place, 41, 7, 3],
         "rule": "bc", "reason": f"bc: {80 + place}% on 64 held-out rows",
         "by_rule": {rule: values[place] for rule, values in DRAWN.items()}}
        for place in range(3)
    ],
    "cut_rows": 2,
    "refused": 5,
    "scoring": ["bc"],
    "labels": ["negative", "positive"],
    "per_class": {"negative": {"precision": 0.71, "recall": 0.9, "f1": 0.79, "support": 20.0},
                  "positive": {"precision": 0.82, "recall": 0.6, "f1": None, "support": 40.0}},
    "first_prompt": {"text": "Review: <b>bad</b>\nSentiment: negative\n\nReview: good & new\nSentiment:",
                     "choices": [" negative", " positive"]},
    "search": {"items_scored": 700, "best": {},
               "table": [{"template": "en/a", "draw": 1, "rule": "cc", "score": 0.9123, "items": 64}]},
}  # fmt: skip
WRITTEN: dict[str, Any] = {
    "schema": "prompt/1",
    "task": "translation",
    "model": "m",
    "shots": 0,
    "rows": 8,
    "metric": "bleu",
    "metrics": {"bleu": 12.5},
    "spread": {"bleu": 0.0},
    "interval": {},
    "per_draw": [{"draw": 0, "metrics": {"bleu": 12.5}, "demonstrations": []}],
    "scoring": ["written"],
}


def test_the_first_line_says_metric_mean_and_spread() -> None:
    assert headline(SCORED) == [
        "Accuracy of little: 75.0 %, ±\u00a05.0 points over 3 draws of 4 solved examples, on 60 rows.",
        "A guess among 2 labels has 50.0 %.",
    ]
    assert headline(WRITTEN) == ["BLEU of m: 12.50 without a solved example, on 8 rows."]
    one = {**SCORED, "labels": [], "per_draw": SCORED["per_draw"][:1]}
    assert headline(one) == ["Accuracy of little: 75.0 % with 4 solved examples, one draw, on 60 rows."]


def test_every_rule_and_draw_is_in_the_table_with_all_its_digits() -> None:
    page = Page(render_prompt_page(SCORED))
    values = [float(attrs["value"] or "nan") for tag, attrs in page.tags if tag == "data"]
    assert {MEAN, SPREAD, 0.5123, *DRAWN["bc"], *DRAWN["sum"], 0.71, 0.9, 0.79} <= set(values)
    said = page.text
    assert "bc 80.0 % 70.0 % 75.0 % 75.0 % 5.0 points 3 of 3" in said
    assert "sum 55.0 % 50.0 % 65.0 % 56.7 % 7.6 points 0 of 3" in said
    assert "0 80.0 % bc bc: 80% on 64 held-out rows 0, 41, 7, 3" in said
    assert "64.1 % to 84.2 %" in said
    assert "Cut rows 2 did not fit the context" in said
    assert "Refused copies 5 of test rows, left out" in said
    assert "positive 40 82.0 % 60.0 % – negative 20" in said  # the commonest class first
    assert "within 700 answers" in said
    assert "en/a 1 cc 0.9123 64" in said
    assert page.json("records") == SCORED


def test_the_prompt_stands_there_as_it_was_asked() -> None:
    text = render_prompt_page(SCORED)
    assert "Review: &lt;b&gt;bad&lt;/b&gt;\nSentiment: negative\n\nReview: good &amp; new\nSentiment:</p>" in text
    page = Page(text)
    assert SCORED["first_prompt"]["text"] in page.words
    assert 'What may follow: " negative" , " positive" .' in page.text
    many = {**SCORED, "first_prompt": {"text": "Q:", "choices": [f" label {n}" for n in range(150)]}}
    assert "and 126 more." in Page(render_prompt_page(many)).text
    assert "The prompt is not recorded." in Page(render_prompt_page(WRITTEN)).text


def test_the_figure_shows_each_draw_and_the_spread_of_each_rule() -> None:
    chart = rules_chart(SCORED)
    assert chart is not None
    assert [name for _, name in chart.y.names] == ["bc", "sum"]
    marks = {layer.label: [point.x for point in layer.points] for layer in chart.layers if isinstance(layer, Marks)}
    assert marks["a draw that this rule answered"] == pytest.approx([100 * value for value in DRAWN["bc"]])
    assert marks["a draw"] == pytest.approx([100 * value for value in DRAWN["sum"]])
    assert marks["a guess"] == [50.0, 50.0]
    bars = [[x for x, _ in layer.points] for layer in chart.layers if isinstance(layer, Line)]
    assert bars[0] == pytest.approx([100 * (MEAN - SPREAD), 100 * (MEAN + SPREAD)])
    alone = rules_chart(WRITTEN)
    assert alone is not None
    assert [name for _, name in alone.y.names] == ["written"]
    assert [point.x for layer in alone.layers if isinstance(layer, Marks) for point in layer.points] == [12.5]


@pytest.mark.parametrize("record", [SCORED, WRITTEN])
def test_nothing_is_loaded_and_links_point_at_what_is_there_once(record: dict[str, Any]) -> None:
    check_self_contained(render_prompt_page(record))


def test_hostile_words_stay_words() -> None:
    record = copy.deepcopy(SCORED)
    record["model"] = record["task"] = record["template"] = HOSTILE
    record["first_prompt"] = {"text": HOSTILE, "choices": [HOSTILE]}
    record["per_class"] = {HOSTILE: {"support": 3}}
    record["per_draw"][0] |= {
        "reason": HOSTILE,
        "rule": HOSTILE,
        "by_rule": {HOSTILE: 0.5},
        "demonstrations": [HOSTILE],
    }
    record["search"]["table"][0]["template"] = HOSTILE
    page = Page(render_prompt_page(record))
    assert len(page.scripts) == 3
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert HOSTILE in page.words
    assert page.json("records") == record


@pytest.mark.parametrize("value", [None, 7, "x", [1], {"a": [2]}, float("nan")])
def test_any_part_may_be_absent_or_of_another_kind(value: Any) -> None:
    for record in damaged(SCORED, value, keep=("schema", "metrics")):
        Page(render_prompt_page(record))
    for draw in damaged(SCORED["per_draw"][0], value):
        Page(render_prompt_page({**SCORED, "per_draw": [draw, SCORED["per_draw"][1]]}))
    for prompt in damaged(SCORED["first_prompt"], value):
        Page(render_prompt_page({**SCORED, "first_prompt": prompt}))


@pytest.mark.parametrize(
    ("record", "said"),
    [({}, "schema ''"), ({"schema": "suites/1"}, "schema 'suites/1'"), ({"schema": "prompt/1"}, "no metric in it")],
)
def test_a_record_of_another_kind_is_one_clear_line(record: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said) as error:
        write_prompt_page(record, tmp_path / "page.html")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "page.html").exists()
