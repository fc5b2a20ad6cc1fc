"""Answers in generated text: every rule by example, stops and votes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_lm.core.errors import ConfigError, DataError
from chinchilla_lm.prompt.extraction import Extraction, cut_at_stops, extract_answer, vote
from chinchilla_lm.prompt.rows import join_tokens, read_entities, tag_spans, tag_tokens, with_derived_fields


@pytest.mark.parametrize(
    ("settings", "text", "answer"),
    [
        ({"rule": "all"}, "  a\nb ", "a\nb"),
        ({"rule": "first-line"}, "\n  Oslo \nBergen", "Oslo"),
        ({"rule": "last-line"}, "Oslo\n Bergen \n\n", "Bergen"),
        ({"rule": "number"}, "It costs 1,234.50 kr, or 7", "1234.50"),
        ({"rule": "number", "which": "last"}, "3 + 4 = -7", "-7"),
        ({"rule": "number"}, "1,2,3", "1"),
        ({"rule": "number"}, "−5 degrees", "-5"),
        ({"rule": "number"}, "3e8 m/s", "3e8"),
        ({"rule": "number"}, "none", None),
        ({"rule": "number"}, "COVID-19", "19"),
        ({"rule": "number", "which": "last"}, "from 10-20", "20"),
        ({"rule": "number", "which": "last"}, "(3)-5", "5"),
        ({"rule": "number"}, "答案是-5", "-5"),
        ({"rule": "number"}, "12,3456", "12"),
        ({"rule": "number"}, "p < .05", ".05"),
        ({"rule": "number"}, "wait...5", "5"),
        ({"rule": "number"}, "共３，４５６人", "3456"),
        ({"rule": "letter"}, "(B) because A", "B"),
        ({"rule": "letter"}, "A good guess. The answer is C.", "C"),
        ({"rule": "letter"}, "答案是B。", "B"),
        ({"rule": "letter"}, "选D", "D"),
        ({"rule": "letter"}, "答案：Ｂ 因为A不对", "B"),
        ({"rule": "letter"}, "B is correct.", "B"),
        ({"rule": "letter"}, "A is correct.", "A"),
        ({"rule": "letter"}, "I think C", "C"),
        ({"rule": "letter"}, "A guess", None),
        ({"rule": "letter"}, "Bob says so", None),
        ({"rule": "letter", "which": "last"}, "not A. So the answer is: (D)", "D"),
        ({"rule": "regex", "pattern": "#### (-?[0-9]+)"}, "so\n#### 42", "42"),
        ({"rule": "regex", "pattern": "[0-9]+", "which": "last"}, "1 2 3", "3"),
        ({"rule": "regex", "pattern": "x(y)?"}, "x", "x"),
        ({"rule": "all"}, " \n", None),
        ({"rule": "first-line"}, "", None),
    ],
)
def test_rules_by_example(settings, text, answer):
    assert extract_answer(Extraction(**settings), text) == answer


def test_choices_are_whole_words_and_the_longer_wins():
    first, last = Extraction(rule="choice"), Extraction(rule="choice", which="last")
    choices = ["positive", "negative", "very negative"]
    assert extract_answer(first, "It is Positive, not negative", choices) == "positive"
    assert extract_answer(last, "It is positive, no: NEGATIVE.", choices) == "negative"
    assert extract_answer(first, "very negative", choices) == "very negative"
    assert extract_answer(first, "nonpositively", choices) is None
    assert extract_answer(first, "我认为是正面的。", ["负面", "正面"]) == "正面"
    assert extract_answer(first, "", choices) is None


def test_a_pattern_cannot_hang():
    slow = Extraction(rule="regex", pattern=r"(a|aa)+$c")
    with pytest.raises(DataError, match="takes longer than 0.5 s"):
        extract_answer(slow, "a" * 20_000)
    assert extract_answer(slow, "abab") is None
    for pattern in ("(", "(" * 240 + ")" * 240 + "("):
        with pytest.raises(ConfigError, match="is no regular expression"):
            Extraction(rule="regex", pattern=pattern)
    for bomb in ("a{999999999}", "a{0,999999999}", "(?:(?:a{500}){500}){500}", "(" * 10 + "a" + "{9})" * 10):
        with pytest.raises(ConfigError, match="write counts of a smaller product"):
            Extraction(rule="regex", pattern=bomb)
    assert extract_answer(Extraction(rule="regex", pattern=r"\d{4}-\d{1,2}"), "in 2026-11") == "2026-11"
    with pytest.raises(ConfigError, match="a pattern goes with rule = 'regex'"):
        Extraction(rule="number", pattern="x")
    with pytest.raises(ConfigError, match="write at most 500"):
        Extraction(rule="regex", pattern="x" * 501)


@given(text=st.text(max_size=30), stops=st.lists(st.text(min_size=1, max_size=3), max_size=3))
def test_the_text_before_the_first_stop(text, stops):
    cut = cut_at_stops(text, stops)
    assert text.startswith(cut)
    assert not any(stop in cut for stop in stops)
    assert cut == text or any(text[len(cut) :].startswith(stop) for stop in stops)


def test_votes_keep_signs_and_points():
    assert vote(["-5", "5", "5"]).answer == "5"
    assert vote(["-5", "−5", "5"]).answer == "-5"
    assert vote([".5", "5", "0.5"]).share == pytest.approx(1 / 3)
    assert vote(["“Oslo”.", "oslo", "- Oslo"]).share == 1


def test_votes_by_hand():
    result = vote(["Oslo", None, " oslo. ", "Bergen", "OSLO"])
    assert (result.answer, result.share, result.unanswered) == ("Oslo", 0.75, 1)
    assert result.counts == {"Oslo": 3, "Bergen": 1}
    assert vote(["a", "b"]).answer == "a"
    assert vote(["a", "b"], [0.1, 0.9]).answer == "b"
    assert vote([None, None]).answer is None
    assert vote([]).share == 0
    assert vote(["４２", "42"]).share == 1
    assert vote(["?", "!"]).counts == {"?": 1, "!": 1}


TOKENS = ["Ann", "Lee", "met", "Bo", "in", "New", "York", "."]
TAGS = ["B-person", "I-person", "O", "B-person", "O", "B-location", "I-location", "O"]


def test_entities_go_to_text_and_back():
    row = with_derived_fields("token-classification", {"tokens": TOKENS, "tags": TAGS})
    assert row["text"] == "Ann Lee met Bo in New York ."
    types = ["person", "location"]
    listed = "; ".join(f"{entity['text']} ({entity['type']})" for entity in row["entities"])
    marked = " ".join(f"[{entity['text']} | {entity['type']}]" for entity in row["entities"])
    assert read_entities("entity-list", listed, types) == row["entities"]
    assert read_entities("entity-markup", marked, types) == row["entities"]
    assert tag_tokens(TOKENS, row["entities"]) == TAGS


def test_entities_that_are_not_in_the_sentence_or_not_asked_for_are_left_out():
    types = ["person"]
    assert read_entities("entity-list", "Ann (Person); Oslo (city); (person); x", types) == [
        {"text": "Ann", "type": "person"}
    ]
    assert read_entities("entity-markup", "[Ann | person] [x] [ | person] [Bo | per", types) == [
        {"text": "Ann", "type": "person"}
    ]
    assert read_entities("entity-list", "none\nAnn (person)", types) == []
    assert read_entities("entity-list", "李明（人名）；北京（地名）。", ["人名", "地名"])[1]["text"] == "北京"
    assert tag_tokens(["a", "b"], [{"text": "c", "type": "x"}]) == ["O", "O"]
    assert tag_tokens(["a", "a"], [{"text": "a", "type": "x"}] * 3) == ["B-x", "B-x"]


def test_tags_are_read_as_spans():
    assert tag_spans(TOKENS, TAGS) == [(0, 2, "person"), (3, 4, "person"), (5, 7, "location")]
    assert tag_spans(["a", "b", "c"], ["I-x", "I-y", "B-y"]) == [(0, 1, "x"), (1, 2, "y"), (2, 3, "y")]
    with pytest.raises(DataError, match="the tag 'S-x' is not IOB2"):
        tag_spans(["a"], ["S-x"])
    with pytest.raises(DataError, match="1 tags for 2 tokens"):
        tag_spans(["a", "b"], ["O"])


def test_tokens_are_joined_as_people_write():
    assert join_tokens(["我", "爱", "New", "York", "吗", "？"]) == "我爱 New York 吗？"


def test_relation_marks_nest():
    row = {"text": "New York Times", "head": [0, 14], "tail": [4, 8]}
    assert with_derived_fields("relation-extraction", row)["marked"] == "<e1>New <e2>York</e2> Times</e1>"
    swapped = {"text": "New York Times", "head": [4, 14], "tail": [0, 14]}
    assert with_derived_fields("relation-extraction", swapped)["marked"] == "<e2>New <e1>York Times</e1></e2>"
    with pytest.raises(DataError, match="is no span of 14 characters"):
        with_derived_fields("relation-extraction", {**row, "tail": [4, 99]})


def test_a_dialogue_ends_with_the_reply():
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert with_derived_fields("dialogue", {"messages": messages})["reply"] == "b"
    asked = with_derived_fields("dialogue", {"messages": messages[:1]})
    assert asked["history"] == messages[:1]
    assert "reply" not in asked
