"""Templates: the boundary of prompt and answer, labels, demonstrations, and the library's files."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla_lm.core.errors import ConfigError, DataError
from chinchilla_lm.prompt.library_files import LIBRARY, library_templates, load_template, read_template
from chinchilla_lm.prompt.template import TASKS, Template, label_word

REVIEW = Template(
    name="review",
    task="text-classification",
    language="en",
    item="Review: {{ text }}\nSentiment:",
    fields=("text",),
    labels={"neg": "negative", "pos": "positive"},
)
ROWS = [{"text": "dull", "label": "neg"}, {"text": "great fun", "label": "pos"}]


def test_a_prompt_is_instruction_demonstrations_and_item():
    parts = REVIEW.render({"text": "fine"}, ROWS)
    assert parts.shared == "Review: dull\nSentiment: negative\n\nReview: great fun\nSentiment: positive\n\n"
    assert parts.item == "Review: fine\nSentiment:"
    assert parts.choices == (" negative", " positive")
    assert parts.answers == ("negative", "positive")
    assert parts.prefix == parts.shared + parts.item


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=40))
def test_no_prompt_ends_in_a_space_whatever_the_row_says(text):
    template = Template(
        name="t", task="text-generation", language="en", item="{{ text }}", fields=("text",), answer="x"
    )
    assert not template.render({"text": text}).prefix.endswith(" ")


def test_labels_are_known_by_name_word_number_and_letter():
    assert [REVIEW.gold_index({"label": label}) for label in ("neg", "positive", 1, "0")] == [0, 1, 1, 0]
    letters = load_template("en/multiple-choice/question-letters")
    row = {"question": "?", "choices": ["a", "b", "c"], "label": "C"}
    assert letters.gold_index(row) == 2
    with pytest.raises(DataError, match=r"review: the label 'meh' is none of 'neg', 'pos'; correct the row"):
        REVIEW.gold_index({"label": "meh"})
    for wrong in (2, -1, True, 0.5, None):
        with pytest.raises(DataError, match="is none of"):
            REVIEW.gold_index({"label": wrong})


def test_a_label_that_is_a_number_is_a_name_and_no_place():
    stars = REVIEW.with_labels({"1": "bad", "2": "fair", "5": "fine"})
    assert [stars.gold_index({"label": label}) for label in ("1", "2", "5", 5, 1)] == [0, 1, 2, 2, 0]
    for unknown in ("0", 0, "3", 4):
        with pytest.raises(DataError, match="is none of '1', '2', '5'"):
            stars.gold_index({"label": unknown})


def test_of_choices_with_the_same_text_either_is_right():
    template = load_template("en/multiple-choice/question-answer")
    row = {"question": "?", "choices": ["here", "there", "here"], "label": 2}
    assert template.gold_index(row) == 0  # as the choice of the highest score is: of equal ones the first


def test_an_open_set_takes_the_labels_of_the_rows():
    template = REVIEW.with_labels(["card_arrival", "pos", "Sci/Tech"])
    assert dict(template.labels) == {"card_arrival": "card arrival", "pos": "positive", "Sci/Tech": "Sci/Tech"}
    assert dict(REVIEW.with_labels({"a": "x", "b": "y"}).labels) == {"a": "x", "b": "y"}
    with pytest.raises(ConfigError, match="stands for two labels"):
        REVIEW.with_labels(["a_b", "a b"])
    assert label_word("lost_or__stolen_card") == "lost or stolen card"


@pytest.mark.parametrize("choices", [[], "ab", ["a", ""], ["a", " "], [{"text": "a"}], [["a"]], ["a"] * 1001, 3])
def test_choices_are_texts(choices):
    with pytest.raises(DataError, match="choices gives"):
        load_template("en/multiple-choice/question-answer").render({"question": "?", "choices": choices})


def test_a_missing_field_is_named():
    with pytest.raises(DataError, match="review needs the field 'text', the row has 'sentence'; name the column"):
        REVIEW.render({"sentence": "x"})


def test_a_chat_takes_turns_and_ends_with_the_user():
    chat = REVIEW.messages({"text": "fine"}, ROWS)
    assert [turn["role"] for turn in chat] == ["user", "assistant", "user", "assistant", "user"]
    assert chat[1]["content"] == "negative"
    assert chat[-1]["content"] == "Review: fine\nSentiment:"
    told = load_template("en/multiple-choice/continuation-likely")
    assert told.messages(told.example)[0]["role"] == "system"


def test_a_content_free_row_keeps_the_shape():
    relation = load_template("en/relation-extraction/relation-marked")
    emptied = relation.content_free(relation.example, "N/A")
    assert relation.render(emptied).item == "Sentence: <e1><e2>N/A</e2></e1>\nIn this sentence, e1"
    assert "<e1>" in relation.render(relation.content_free(relation.example, "")).item
    assert REVIEW.render(REVIEW.content_free(ROWS[0], "")).item == "Review: \nSentiment:"


def test_reasoning_stands_between_cue_and_answer():
    thinking = load_template("en/multiple-choice/question-letters").thinking()
    row = dict(thinking.example)
    parts = thinking.render(row, [row])
    assert thinking.kind == "generate"
    assert parts.item.endswith("Answer: Let's think step by step.")
    assert "that is a shelf. So the answer is A.\n\n" in parts.shared
    assert thinking.gold_text(row) == "A"
    with pytest.raises(ConfigError, match="has no chain-of-thought form"):
        REVIEW.thinking()


def test_alternatives_may_stand_in_the_prompt():
    schema = load_template("en/multiple-choice/schema-partial")
    parts = schema.render(schema.example)
    assert parts.items == tuple(schema.example["contexts"])
    assert parts.choices == (" is too large.", " is too large.")
    assert schema.gold_index(schema.example) == 0


# ---- The library ----------------------------------------------------------------------------------------------------

LIBRARY_TEMPLATES = library_templates()
FAMILIES = {
    "text-classification": ("sentiment", "topic", "intent", "pair"),
    "token-classification": ("entity",),
    "relation-extraction": ("relation",),
    "question-answering": ("context", "closed"),
    "multiple-choice": ("question", "continuation"),
    "translation": ("pair",),
    "summarization": ("article",),
    "dialogue": ("turns",),
    "text-generation": ("code",),
}


def test_every_task_has_three_wordings_in_both_languages():
    assert set(FAMILIES) == set(TASKS)
    for task, families in FAMILIES.items():
        for family in families:
            for language in ("en", "zh"):
                assert len(library_templates(task, language, family)) >= 3, (task, family, language)


@pytest.mark.parametrize("template", LIBRARY_TEMPLATES, ids=[template.name for template in LIBRARY_TEMPLATES])
def test_every_wording_keeps_the_boundary(template):
    forms = [template] + ([template.thinking()] if template.thought else [])
    for form in forms:
        parts = form.render(form.example, [form.example] * 2)
        assert not parts.prefix.endswith(" ")
        assert "{{" not in parts.prefix
        for choice, answer in zip(parts.choices, parts.answers, strict=True):
            assert choice == form.delimiter + answer
            assert not answer.startswith(" ")
        # A text between spaces takes its space with it; Chinese has none.
        assert form.delimiter == {"en": " ", "zh": ""}[form.language] or form.family == "code"
        # The demonstration's answer is what may follow the same item.
        assert form.delimiter + form.answer_text(form.example) + form.separator in parts.shared
        if form.kind == "choice":
            assert form.gold_text(form.example) == parts.answers[form.gold_index(form.example)]


@pytest.mark.parametrize("name", [t.name for t in LIBRARY_TEMPLATES if t.kind == "choice" and not t.contexts])
def test_a_domain_premise_is_the_prompts_end_without_the_input(name):
    template = load_template(name)
    premise = template.domain_text(template.example)
    assert premise
    assert not premise.endswith(" ")
    emptied = template.content_free(template.example, "")
    assert premise == template.domain_text(emptied)


def test_languages_pair_their_families():
    pairs = {(t.task, t.family) for t in LIBRARY_TEMPLATES}
    for task, family in pairs:
        assert {t.language for t in LIBRARY_TEMPLATES if (t.task, t.family) == (task, family)} == {"en", "zh"}


def test_a_name_is_found_or_the_nearest_is_said():
    assert load_template("en/translation/pair-names").task == "translation"
    with pytest.raises(ConfigError, match="near it are .*en/text-classification/sentiment-review"):
        load_template("en/text-classification/sentiment-rewiew")
    with pytest.raises(ConfigError, match="task = 'ner' is unknown"):
        library_templates("ner")
    with pytest.raises(
        ConfigError, match="family = 'x' has no template here; write one of context, closed|closed, context"
    ):
        library_templates("question-answering", family="x")


GOOD = """
task: text-classification
language: en
item: "{{ text }} It was"
fields: [text]
labels: {neg: bad, pos: good}
example: {text: fine, label: pos}
"""
BROKEN = [
    ("item: ", "itme: ", r"unknown key 'itme'; did you mean 'item'\?"),
    ("It was", "It was ", "item and domain end in a space; the space belongs to the answer, so delete it"),
    ("neg: bad", "neg: good", r"labels.neg = 'good' stands for two labels"),
    ("neg: bad", "neg: ' bad'", r"labels.neg = ' bad' is empty or has outer spaces"),
    ("pos: good", "no: good", "line 6: the key False is a bool; put it in quotes"),
    ("{{ text }}", "{{ text|attr('a') }}", "item: line 1: the filter attr is not known"),
    ("{{ text }}", "{{ sentence }}", "example: .*'sentence' is undefined"),
    ("label: pos", "label: meh", "example: .*the label 'meh' is none of"),
    ("fields: [text]", "fields: [text, title]", "example: .*needs the field 'title'"),
    ("language: en", "language: de", "language = 'de'; write one of en, zh"),
    ("task: text-classification", "task: sentiment", "task = 'sentiment'; write one of"),
    ("language: en", "language: en\nlanguage: zh", "line 4: the key 'language' is given twice; delete one"),
    ("fields: [text]", "fields: text", "fields = 'text' has the wrong type; write a list"),
    ("language: en", "delimiter: ': '\nlanguage: en", "delimiter = ': '; write"),
    ("language: en", "language: &a en\nsource: *a", r"an alias \(\*name\) is not allowed"),
    ("language: en", "language: !!python/object/apply:os.system [id]", "runs Python, which is never done here"),
    ("language: en", "language: !function os.system", "!function os.system runs Python"),
    ("language: en", "language: en\nextract: {rule: regex, pattern: '('}", "is no regular expression"),
    ("language: en", "language: [en", "is not YAML"),
    ("example: {text: fine, label: pos}", "", "example: it is missing"),
]


@pytest.mark.parametrize(("old", "new", "message"), BROKEN, ids=[new[:30] for _, new, _ in BROKEN])
def test_a_broken_file_is_one_clear_line(tmp_path, old, new, message):
    path = tmp_path / "mine.yaml"
    assert old in GOOD
    path.write_text(GOOD.replace(old, new), encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as refusal:
        read_template(path)
    assert str(refusal.value).startswith(str(path))
    assert "\n" not in str(refusal.value)


def test_a_good_file_outside_the_library_is_read(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD, encoding="utf-8")
    assert load_template(str(path)).render({"text": "A"}).choices == (" bad", " good")
    with pytest.raises(Exception, match="does not exist"):
        load_template(str(tmp_path / "none.yaml"))


def test_library_files_are_only_templates():
    assert {path.suffix for path in LIBRARY.rglob("*") if path.is_file()} == {".yaml"}
