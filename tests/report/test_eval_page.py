"""The page of an evaluation: true to its record, whole for partial ones, safe with any text, loading nothing."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.report.page_reader import HOSTILE, Page, check_self_contained, damaged

from chinchilla_lm.core.errors import DataError
from chinchilla_lm.report import svg
from chinchilla_lm.report.chart import Line, Marks
from chinchilla_lm.report.eval_page import render_eval_page, write_eval_page
from chinchilla_lm.report.eval_rows import harness_rows, pair_rows, suite_rows, text_rows
from chinchilla_lm.report.eval_words import eval_charts, headline, suites_chart

SUITES: dict[str, Any] = {
    "schema": "suites/1",
    "model": "runs/little",
    "seed": 3,
    "suites": [
        {"suite": "blimp", "metric": "acc", "value": 0.6123456, "standard_error": 0.0212345, "items": 500,
         "chance": 0.5, "values": {"acc": 0.6123456, "acc_norm": 0.598765}, "parts": {"anaphor": 0.9, "island": 0.3},
         "errors": {"acc": 0.0212345, "acc_norm": 0.0223456}, "cut_items": 2},
        {"suite": "arc-easy", "metric": "acc_norm", "value": 0.26, "standard_error": 0.0439, "items": 100,
         "chance": 0.25, "values": {"acc_norm": 0.26}, "errors": {"acc_norm": 0.0439}, "parts": {}, "cut_items": 0},
        {"suite": "lambada", "metric": "acc", "value": 0.11, "standard_error": 0.031, "items": 100, "chance": 0.0,
         "values": {"acc": 0.11, "perplexity": 812.5}, "errors": {"acc": 0.031, "perplexity": 90.0}, "parts": {},
         "cut_items": 0},
    ],
    "against": {"model": "runs/large", "suites": {
        "blimp": {"value": 0.71, "difference": 0.0976544, "standard_error": 0.02, "p_value": 0.0000123,
                  "only_first": 31, "only_second": 80},
        "arc-easy": {"value": 0.28, "difference": 0.02, "standard_error": 0.05, "p_value": 0.81,
                     "only_first": 12, "only_second": 14},
        "lambada": {"value": 0.02, "difference": -0.09, "standard_error": 0.03, "p_value": 0.0123,
                    "only_first": 10, "only_second": 1},
    }},
    "contamination": {"arc-easy": {"checked": 88, "short": 12, "found": 7, "window": 13, "items": [1, 2]}},
    "harness": {"copa": {"acc,none": 0.61, "acc_stderr,none": 0.049, "samples": 100.0},
                "gsm8k": {"exact_match,strict": 0.02, "exact_match_stderr,strict": 0.004}},
}  # fmt: skip
DOMAINS: dict[str, Any] = {
    "schema": "domains/1",
    "model": "runs/little",
    "domains": [
        {"domain": "all", "documents": 9, "tokens": 4000, "bytes": 16000, "nats": 1e4, "bits_per_byte": 1.51234,
         "bits_per_byte_se": 0.01, "loss": 3.5},
        {"domain": "text/books", "documents": 8, "tokens": 3000, "bytes": 12000, "nats": 8e3, "bits_per_byte": 1.41234,
         "bits_per_byte_se": 0.02, "loss": 3.3},
        {"domain": "text/code", "documents": 1, "tokens": 1000, "bytes": 4000, "nats": 2e3, "bits_per_byte": 1.81234,
         "bits_per_byte_se": None, "loss": 3.9},
    ],
}  # fmt: skip
TEXT = {"schema": "eval/1", "loss": 3.81, "loss_se": 0.02, "bits_per_byte": 1.787, "tokens": 65536, "bytes": 201652}


def test_the_first_sentences_judge_against_a_guess_and_against_the_second_model() -> None:
    above, compared, learned = headline(SUITES)
    assert above == (
        "little is above a guess on blimp; not clearly above a guess on arc-easy; without a verdict on lambada."
    )
    assert compared == "large is better on blimp; worse on lambada; not to be told apart on arc-easy."
    assert learned == "Items that may have been learned by heart: 7 of arc-easy."
    one = {**SUITES, "suites": SUITES["suites"][:1], "against": None, "contamination": None}
    (said,) = headline(one)
    # 61.23456 +- 1.96 * 2.12345
    assert said == (
        "little has 61.2 % of 500 items of blimp right (95 % interval 57.1 to 65.4), more than the 50.0 % of a guess."
    )


def test_every_number_of_the_record_is_on_the_page_with_all_its_digits() -> None:
    page = Page(render_eval_page(SUITES))
    values = {float(attrs["value"] or "nan") for tag, attrs in page.tags if tag == "data"}
    for suite in SUITES["suites"]:
        assert {suite["value"], suite["standard_error"], *suite["values"].values()} <= values
    for pair in SUITES["against"]["suites"].values():
        assert {pair["value"], pair["difference"], pair["p_value"]} <= values
    assert {0.9, 0.3, 0.61, 0.049, 0.02, 0.004} <= values
    said = page.text
    assert "blimp: 2 items were cut" in said
    assert "arc-easy 7 88 12 13" in said
    assert "57.1 to 65.4" in said
    assert page.json("records") == SUITES
    assert re.search(r"large less little, on the same items", said)


def test_dots_stand_where_the_record_says_between_the_ends_of_their_intervals() -> None:
    chart = suites_chart(SUITES)
    assert chart is not None
    assert [name for _, name in chart.y.names] == ["blimp", "arc-easy", "lambada"]
    marks = {layer.label: layer.points for layer in chart.layers if isinstance(layer, Marks)}
    assert [point.x for point in marks["little, 95 % interval"]] == pytest.approx([61.23456, 26.0, 11.0])
    assert [point.x for point in marks["large"]] == pytest.approx([71.0, 28.0, 2.0])
    assert [point.x for point in marks["a guess"]] == [50.0, 25.0]  # lambada has none
    bars = [layer.points for layer in chart.layers if isinstance(layer, Line)]
    assert [bars[0][0][0], bars[0][1][0]] == pytest.approx([61.23456 - 1.96 * 2.12345, 61.23456 + 1.96 * 2.12345])
    assert all(point.y == bar[0][1] for point, bar in zip(marks["little, 95 % interval"], bars, strict=True))
    assert [chart.name for chart in eval_charts(SUITES)] == ["suites", "differences"]


def test_items_without_spread_have_no_interval_and_no_verdict() -> None:
    record = copy.deepcopy(SUITES)
    record["suites"][0] |= {"value": 1.0, "standard_error": 0.0}
    row = suite_rows(record)[0]
    assert (row.interval, row.is_above_chance) == (None, None)
    assert "without a verdict on blimp and lambada" in headline(record)[0]
    assert "blimp: the items give no spread" in Page(render_eval_page(record)).text


def test_many_suites_are_counted_and_long_names_leave_room_for_the_figure() -> None:
    record = copy.deepcopy(SUITES)
    record["suites"] = [{**record["suites"][0], "suite": f"suite-{n}"} for n in range(6)]
    record["suites"][0]["suite"] = "一个很长的名字的测验集合"
    assert headline(record)[0] == "little is above a guess on 6 suites."
    chart = suites_chart(record)
    assert chart is not None
    assert chart.y.names[:2] == ((6.0, "一个很长的名字…"), (5.0, "suite-1"))


def test_the_harness_is_read_by_metric_filter_and_error() -> None:
    assert harness_rows(SUITES) == [
        ("copa", "acc", 0.61, 0.049, 100),
        ("gsm8k", "exact_match (strict)", 0.02, 0.004, None),
    ]
    only = {"schema": "suites/1", "model": "m", "suites": [], "harness": SUITES["harness"]}
    assert headline(only) == ["m reaches 0.61 in acc of copa, by lm-evaluation-harness."]
    assert "exact_match (strict)" in Page(render_eval_page(only)).text


def test_text_is_told_whole_and_by_source() -> None:
    assert headline(DOMAINS) == [
        "little needs 1.5123 ± 0.0100 bits for a byte of the text: least in books, most in code."
    ]
    page = Page(render_eval_page(DOMAINS))
    assert "books 1.4123 0.0200 3.3000 8 3,000 12,000" in page.text
    (chart,) = eval_charts(DOMAINS)
    assert [name for _, name in chart.y.names] == ["all together", "books", "code"]
    phone = str(svg.draw(chart, width=346.0, height=200.0))
    assert len(re.findall(r'class="tick middle"', phone)) >= 2  # one number alone is no scale
    same = copy.deepcopy(DOMAINS)
    same["domains"][2]["domain"] = "other/books"
    assert [row.label for row in text_rows(same)] == ["all together", "text/books", "other/books"]
    assert headline(TEXT) == ["the model needs 1.7870 bits for a byte of the text."]
    said = Page(render_eval_page(TEXT)).text
    assert "all together 1.7870 – 3.8100 ± 0.0200 – 65,536 201,652" in said
    assert "Bits per byte How surprised" in said
    assert "95 % interval" not in said  # the page has none


@pytest.mark.parametrize("record", [SUITES, DOMAINS, TEXT])
def test_nothing_is_loaded_and_links_point_at_what_is_there_once(record: dict[str, Any]) -> None:
    check_self_contained(render_eval_page(record))


def test_hostile_words_stay_words() -> None:
    record = copy.deepcopy(SUITES)
    record["model"] = record["against"]["model"] = HOSTILE
    record["suites"][0] |= {"suite": HOSTILE, "metric": HOSTILE, "parts": {HOSTILE: 0.5, "b": 0.1}}
    record["harness"][HOSTILE] = {HOSTILE: 0.5}
    record["contamination"][HOSTILE] = {"found": 1, "checked": 2}
    page = Page(render_eval_page(record))
    assert len(page.scripts) == 3
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert HOSTILE in " ".join(page.words)
    assert page.json("records") == record


@pytest.mark.parametrize("value", [None, 7, "x", [1], {"a": [2]}, float("nan")])
def test_any_part_may_be_absent_or_of_another_kind(value: Any) -> None:
    for record in damaged(SUITES, value, keep=("schema", "suites")):
        Page(render_eval_page(record))
    for suite in damaged(SUITES["suites"][0], value, keep=("value",)):
        Page(render_eval_page({**SUITES, "suites": [suite]}))
    for pair in damaged(SUITES["against"]["suites"]["blimp"], value):
        Page(render_eval_page({**SUITES, "against": {"model": "m", "suites": {"blimp": pair, "other": pair}}}))
    for domain in damaged(DOMAINS["domains"][1], value, keep=("bits_per_byte",)):
        Page(render_eval_page({**DOMAINS, "domains": [domain]}))


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({}, "schema ''"),
        ({"schema": "prompt/1", "metrics": {}}, "schema 'prompt/1'"),
        ({"schema": "suites/1", "suites": []}, "nothing measured"),
    ],
)
def test_a_record_of_another_kind_is_one_clear_line(record: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said) as error:
        write_eval_page(record, tmp_path / "page.html")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "page.html").exists()


def test_a_pair_is_judged_by_its_test() -> None:
    assert [pair.verdict for pair in pair_rows(SUITES)] == ["better", "open", "worse"]


def test_the_pages_need_no_torch(tmp_path: Path) -> None:
    (tmp_path / "eval.json").write_text(json.dumps(SUITES))
    code = (
        "import json, sys, pathlib; from chinchilla_lm.report.eval_page import write_eval_page; "
        "import chinchilla_lm.report.prompt_page; f = pathlib.Path(sys.argv[1]); "
        "write_eval_page(json.loads((f / 'eval.json').read_text()), f / 'page.html'); "
        "print([m for m in sys.modules if m.split('.')[0] in ('torch', 'transformers') or '.evals' in m])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
