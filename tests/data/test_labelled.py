"""Labelled rows: every published form of a task, every file format, and errors that name the row."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_lm.core.errors import DataError
from chinchilla_lm.data.labelled import TASKS, read_rows, rows_for_task, split_rows
from chinchilla_lm.data.tags import to_iob2


def _one(task: str, row: dict[str, Any], columns: dict[str, str] | None = None, **options: Any) -> dict[str, Any]:
    return rows_for_task(task, [row], columns, **options)[0]


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    rows = [{"text": 'He said "no", twice', "label": "neg"}, {"text": "好，很好", "label": "pos"}]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    (tmp_path / "a.csv").write_text(
        '\ufefftext,label\r\n"He said ""no"", twice",neg\r\n"好，很好",pos\r\n', encoding="utf-8"
    )
    (tmp_path / "b.csv").write_text('text;label\n"He said ""no"", twice";neg\n好，很好;pos\n', encoding="utf-8")
    (tmp_path / "a.tsv").write_text('text\tlabel\nHe said "no", twice\tneg\n"好，很好"\tpos\n', encoding="utf-8")
    import pyarrow as pa
    import pyarrow.parquet as parquet

    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for path in sorted(tmp_path.iterdir()):
        assert read_rows(path) == rows, path.name
    assert len(list(tmp_path.iterdir())) == 7


def test_squads_nested_file_is_flattened(tmp_path: Path) -> None:
    question = {"id": "q1", "question": "Who?", "answers": [{"text": "Ada", "answer_start": 0}], "is_impossible": False}
    nested = {
        "version": "1.1",
        "data": [{"title": "T", "paragraphs": [{"context": "Ada wrote it.", "qas": [question]}]}],
    }
    (tmp_path / "dev.json").write_text(json.dumps(nested))
    row = rows_for_task("question-answering", read_rows(tmp_path / "dev.json"))[0]
    assert row == {"id": "q1", "question": "Who?", "context": "Ada wrote it.", "answers": [{"text": "Ada", "start": 0}]}


def test_conll_files_of_both_delimiters(tmp_path: Path) -> None:
    (tmp_path / "a.conll").write_text("-DOCSTART- -X- O O\n\nEU NNP B-NP I-ORG\nrejects VBZ B-VP O\n\n# O\n")
    assert read_rows(tmp_path / "a.conll") == [
        {"tokens": ["EU", "rejects"], "tags": ["I-ORG", "O"]},
        {"tokens": ["#"], "tags": ["O"]},
    ]
    (tmp_path / "b.conll").write_text("# sent_id = 1\r\nNew York\tB-LOC\r\n\r\n\r\n")
    assert read_rows(tmp_path / "b.conll") == [{"tokens": ["New York"], "tags": ["B-LOC"]}]
    (tmp_path / "c.conll").write_text("EU\tB-ORG\nrejects\n")
    with pytest.raises(DataError, match="line 2 is 'rejects'"):
        read_rows(tmp_path / "c.conll")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.csv", None, "does not exist"),
        ("a.xlsx", b"PK", "suffix that is not known"),
        ("a.jsonl", b'{"text": 1}\n{"text"', "line 2 is not JSON"),
        ("b.jsonl", b"[1]\n", "line 1 is a list, not an object"),
        ("a.json", b'{"text": "x"}\n{"text": "y"}', "named .jsonl"),
        ("a.csv", b"text,label\nhe said, no,neg\n", "line 2 has 3 columns where the header has 2"),
        ("b.csv", b"text,label\n", "has no rows"),
        ("c.csv", "text,label\n好,坏\n".encode("gb18030"), "is not UTF-8 text"),
        ("a.parquet", b"PAR1 nonsense", "not a whole Parquet file"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 99, mtime=0)[:30], "not a whole gzip file"),
    ],
)
def test_files_that_cannot_be_read_are_refused(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_rows(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_folder_is_refused_with_its_files(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{}")
    with pytest.raises(DataError, match="is a folder; give one of its files .train.jsonl"):
        read_rows(tmp_path)


def test_the_hub_names_classes(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["neg", "pos"]),
            "ner_tags": datasets.Sequence(datasets.ClassLabel(names=["O", "B-X"])),
        }
    )
    table = datasets.Dataset.from_dict({"text": ["a"], "label": [1], "ner_tags": [[0, 1]]}, features=features)
    (tmp_path / "set").mkdir()
    table.to_parquet(tmp_path / "set" / "train.parquet")
    assert read_rows(f"hf:{tmp_path / 'set'}") == [{"text": "a", "label": "pos", "ner_tags": ["O", "B-X"]}]


CANONICAL = [
    ("text-classification", {"sentence": "a", "label": 3}, {"text": "a", "label": "3"}),
    ("text-classification", {"text": "a", "label": 0, "label_text": "neg"}, {"text": "a", "label": "neg"}),
    ("text-classification", {"text": "a", "labels": ["x", 2]}, {"text": "a", "label": ["x", "2"]}),
    ("text-classification", {"text": "a", "labels": '["x"]'}, {"text": "a", "label": ["x"]}),
    (
        "text-classification",
        {"premise": "a", "hypothesis": "b", "label": "yes", "idx": 3},
        {"text": "a", "text_pair": "b", "label": "yes"},
    ),
    (
        "token-classification",
        {"words": ["a", "b"], "ner_tags": ["I-X", "O"]},
        {"tokens": ["a", "b"], "tags": ["B-X", "O"]},
    ),
    (
        "token-classification",
        {"tokens": "['a', 'b']", "tags": '["O", "O"]'},
        {"tokens": ["a", "b"], "tags": ["O", "O"]},
    ),
    (
        "relation-extraction",
        {"text": "The <e1>cat</e1> sat on <e2>mats</e2>.", "label": "on"},
        {"text": "The cat sat on mats.", "head": [4, 7], "tail": [15, 19], "label": "on"},
    ),
    (
        "relation-extraction",
        {
            "token": ["Ada", "met", "Charles", "Babbage"],
            "subj_start": 2,
            "subj_end": 3,
            "obj_start": 0,
            "obj_end": 0,
            "subj_type": "PER",
            "obj_type": "PER",
            "relation": "met",
        },  # fmt: skip
        {
            "text": "Ada met Charles Babbage",
            "head": [8, 23],
            "tail": [0, 3],
            "head_type": "PER",
            "tail_type": "PER",
            "label": "met",
        },  # fmt: skip
    ),
    (
        "relation-extraction",
        {
            "text": "Ada met Bob",
            "h": {"name": "Ada", "pos": [0, 3]},
            "t": {"name": "Bob", "pos": [8, 11]},
            "relation": "met",
        },
        {"text": "Ada met Bob", "head": [0, 3], "tail": [8, 11], "label": "met"},
    ),
    (
        "question-answering",
        {"question": "Who?", "context": "It was Ada.", "answers": {"text": ["Ada"], "answer_start": [7]}},
        {"question": "Who?", "context": "It was Ada.", "answers": [{"text": "Ada", "start": 7}]},
    ),
    (
        "question-answering",
        {"question": "Who?", "context": "It was Ada.", "answers": {"text": [], "answer_start": []}},
        {"question": "Who?", "context": "It was Ada.", "answers": []},
    ),
    ("question-answering", {"question": "2+2?", "answer": "4"}, {"question": "2+2?", "answers": [{"text": "4"}]}),
    (
        "multiple-choice",
        {"question": "q", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "2"},
        {"question": "q", "choices": ["a", "b"], "label": 1},
    ),
    (
        "multiple-choice",
        {"goal": "g", "sol1": "a", "sol2": "b", "label": 0},
        {"question": "g", "choices": ["a", "b"], "label": 0},
    ),
    (
        "multiple-choice",
        {"question": "q", "A": "x", "B": "y", "C": "z", "answer": "B"},
        {"question": "q", "choices": ["x", "y", "z"], "label": 1},
    ),
    (
        "multiple-choice",
        {"contexts": ["Ann since Ann", "Ann since Bob"], "continuation": "slept.", "label": 1},
        {
            "question": "",
            "choices": ["Ann since Ann slept.", "Ann since Bob slept."],
            "label": 1,
            "contexts": ["Ann since Ann", "Ann since Bob"],
            "continuation": "slept.",
        },  # fmt: skip
    ),
    ("multiple-choice", {"good": "a", "bad": "b"}, {"question": "", "choices": ["a", "b"], "label": 0}),
    ("translation", {"source": "a", "target": "b"}, {"source": "a", "target": "b"}),
    ("summarization", {"article": "a", "highlights": "b"}, {"document": "a", "summary": "b"}),
    (
        "summarization",
        {"document": "a", "title": "t", "summaries": ["b", "c"]},
        {"document": "a", "summary": ["b", "c"]},
    ),
    (
        "dialogue",
        {"turns": [{"speaker": "user", "text": "hi", "state": {}}, {"speaker": "system", "text": "hello"}]},
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]},
    ),
    (
        "dialogue",
        {"conversations": [{"from": "system", "value": "be kind"}, {"from": "human", "value": "hi"}]},
        {"messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]},
    ),
    (
        "dialogue",
        {"instruction": "Add.", "input": "1, 2", "output": "3"},
        {"messages": [{"role": "user", "content": "Add.\n1, 2"}, {"role": "assistant", "content": "3"}]},
    ),
    ("text-generation", {"prompt": "a", "completion": " b"}, {"prompt": "a", "completion": " b"}),
    ("text-generation", {"context": "the last", "target": "word"}, {"prompt": "the last", "completion": " word"}),
    ("text-generation", {"text": "a"}, {"text": "a"}),
    *(
        ("text-generation", {"text": "a", "controls": given}, {"text": "a", "controls": kept})
        for given, kept in [({"mood": "warm"},) * 2, ('{"mood": "warm"}', {"mood": "warm"}), ("{warm", "{warm")]
    ),
]


@pytest.mark.parametrize(("task", "row", "expected"), CANONICAL)
def test_published_forms_become_canonical(task: str, row: dict[str, Any], expected: dict[str, Any]) -> None:
    assert _one(task, row) == expected


@pytest.mark.parametrize(("task", "row", "expected"), CANONICAL)
def test_canonical_rows_stay_as_they_are(task: str, row: dict[str, Any], expected: dict[str, Any]) -> None:
    assert _one(task, expected) == expected


def test_columns_are_named_and_joined() -> None:
    row = {"headline": "A", "body": "b", "kind": "x", "en": "one", "de": "eins"}
    assert _one("text-classification", row, {"text": "headline+body", "label": "kind"}) == {
        "text": "A\nb",
        "label": "x",
    }
    assert _one("translation", row, {"source": "de", "target": "en"}) == {"source": "eins", "target": "one"}
    inner = {"translation": {"en": "one", "zh": "一"}}
    assert _one("translation", inner, {"source": "zh", "target": "en"}) == {"source": "一", "target": "one"}


def test_rows_to_predict_need_no_labels() -> None:
    assert _one("text-classification", {"text": "a"}, is_labelled=False) == {"text": "a"}
    assert _one("token-classification", {"tokens": ["a"]}, is_labelled=False) == {"tokens": ["a"]}
    assert _one("question-answering", {"question": "a"}, is_labelled=False) == {"question": "a"}
    assert _one("multiple-choice", {"question": "a", "choices": ["b", "c"]}, is_labelled=False)["choices"] == ["b", "c"]
    assert _one("translation", {"source": "a"}, is_labelled=False) == {"source": "a"}
    assert _one("dialogue", {"prompt": "a"}, is_labelled=False) == {"messages": [{"role": "user", "content": "a"}]}


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("sentiment", {}, "'sentiment' is no task; choose one of text-classification"),
        ("text-classification", {"txt": "a", "label": "x"}, "row 1 has no field 'text' among 'txt', 'label'"),
        ("text-classification", {"text": "a", "lable": "x"}, "no field 'label' among"),
        ("text-classification", {"text": "  ", "label": "x"}, "'text' is blank"),
        ("text-classification", {"text": "a", "label": 1.5}, "'label' is 1.5, not text"),
        ("token-classification", {"tokens": ["a"], "tags": ["O", "O"]}, "1 tokens and 2 tags"),
        ("token-classification", {"tokens": ["a"], "tags": [3]}, "'tags' are numbers"),
        ("token-classification", {"tokens": ["a", "b"], "tags": ["B-X", "LOC"]}, "the tags mix 'B-X' and 'LOC'"),
        ("relation-extraction", {"text": "a b", "label": "x"}, "has no entities"),
        (
            "relation-extraction",
            {"text": "a", "head": [0, 2], "tail": [0, 1], "label": "x"},
            r"'head' is \[0, 2\] in a text",
        ),
        ("relation-extraction", {"text": "<e1>a</e1> b", "label": "x"}, "has only the marks"),
        (
            "question-answering",
            {"question": "q", "context": "abc", "answers": {"text": ["c"], "answer_start": [1]}},
            "'c' does not begin at character 1",
        ),
        (
            "multiple-choice",
            {"question": "q", "choices": ["a", "b"], "label": 2},
            "'label' is 2 and there are 2 choices",
        ),
        ("multiple-choice", {"question": "q", "choices": ["a"], "label": 0}, "give at least two"),
        ("translation", {"en": "a", "zh": "b"}, "source=en and target=zh"),
        ("summarization", {"document": "a", "summaries": []}, "empty list"),
        ("dialogue", {"messages": [{"role": "user", "content": ""}]}, "row 1, turn 1: 'content' is blank"),
        (
            "dialogue",
            {"turns": [{"speaker": name, "text": "x"} for name in "abc"]},
            "are three speakers",
        ),
        ("dialogue", {"text": "a"}, "has no 'messages'"),
    ],
)
def test_rows_that_do_not_fit_are_refused_in_one_line(task: str, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        _one(task, row)
    assert "\n" not in str(caught.value)


def test_messages_name_the_file_and_the_row() -> None:
    with pytest.raises(DataError, match="^train.csv: row 2 "):
        rows_for_task("text-classification", [{"text": "a", "label": "b"}, {}], where="train.csv")


def test_another_column_does_not_stand_in_for_a_missing_label() -> None:
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": None, "category": "books"}]
    with pytest.raises(DataError, match="row 2: 'label' is null, as it is not in other rows"):
        rows_for_task("text-classification", rows)
    unlabelled = [
        {**row, "label": None, "category": "books"} for row in rows
    ]  # a column that nobody fills is no column
    assert [row["label"] for row in rows_for_task("text-classification", unlabelled)] == ["books", "books"]


def test_labels_are_the_same_however_they_are_written() -> None:
    labels = ["caf\u00e9", "cafe\u0301 ", 1, 1.0, True, -3.0]
    rows = rows_for_task("text-classification", [{"text": "a", "label": label} for label in labels])
    assert [row["label"] for row in rows] == ["caf\u00e9", "caf\u00e9", "1", "1", "true", "-3"]
    with pytest.raises(DataError, match=r"'label' is 0.5, not text"):
        rows_for_task("text-classification", [{"text": "a", "label": 0.5}])


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "twice.csv").write_text("text,label,text\na,x,b\n", encoding="utf-8")
    with pytest.raises(DataError, match="has two columns 'text', and only one could be read"):
        read_rows(tmp_path / "twice.csv")
    (tmp_path / "unnamed.csv").write_text(",,text,label\n0,0,a,x\n", encoding="utf-8")  # two index columns of pandas
    assert read_rows(tmp_path / "unnamed.csv")[0]["text"] == "a"


def test_every_task_refuses_a_row_without_fields() -> None:
    for task in TASKS:
        with pytest.raises(DataError, match="row 1"):
            _one(task, {"unrelated": 1})


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("B-X I-X O I-Y", "B-X I-X O B-Y"),  # IOB2 with a slip
        ("I-X I-X B-X I-Y", "B-X I-X B-X B-Y"),  # IOB1
        ("B-X E-X S-Y O", "B-X I-X B-Y O"),  # BIOES
        ("B-X I-X L-X U-Y", "B-X I-X I-X B-Y"),  # BILOU
        ("B-X M-X E-X S-X", "B-X I-X I-X B-X"),  # BMES
        ("X X O Y", "B-X I-X O B-Y"),  # IO
        ("NOUN VERB NOUN NOUN", "B-NOUN B-VERB B-NOUN B-NOUN"),  # parts of speech
        ("O O", "O O"),
        ("B_X I_X", "B-X I-X"),
    ],
)
def test_tag_schemes_become_iob2(tags: str, expected: str) -> None:
    assert to_iob2([tags.split()]) == [expected.split()]
    assert to_iob2([expected.split()]) == [expected.split()]


@given(
    st.lists(st.sampled_from(["a", "b", "c"]), min_size=2, max_size=80),
    st.floats(0.05, 0.9),
    st.integers(0, 5),
)
def test_a_split_is_a_partition_with_the_shares_of_every_label(labels: list[str], fraction: float, seed: int) -> None:
    rows = [{"text": str(number), "label": label} for number, label in enumerate(labels)]
    first, second = split_rows(rows, fraction, seed)
    assert sorted([*first, *second], key=lambda row: int(row["text"])) == rows
    assert first
    assert second
    assert len(second) == min(max(round(fraction * len(rows)), 1), len(rows) - 1)
    taken, whole = Counter(row["label"] for row in second), Counter(labels)
    assert all(abs(taken[label] - fraction * count) < 2 for label, count in whole.items())
    assert split_rows(rows, fraction, seed) == (first, second)
    assert first == sorted(first, key=lambda row: int(row["text"]))


def test_questions_about_one_context_stay_together() -> None:
    rows = [{"question": str(n), "context": f"c{n % 7}", "answers": []} for n in range(70)]
    first, second = split_rows(rows, 0.3, 0)
    assert not {row["context"] for row in first} & {row["context"] for row in second}
    assert len(second) == 20


def test_a_split_needs_two_rows() -> None:
    with pytest.raises(DataError, match="cannot be divided"):
        split_rows([{"text": "a"}], 0.5, 0)
