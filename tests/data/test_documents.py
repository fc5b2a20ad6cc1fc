from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from chinchilla_lm.core.errors import DataError
from chinchilla_lm.data import formats
from chinchilla_lm.data.documents import read_documents
from chinchilla_lm.data.formats import ReadTally


def json_lines(*texts: str | None, field: str = "text") -> str:
    return "".join(json.dumps({field: text, "other": 1}) + "\n" for text in texts)


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def texts(source: str | Path, tally: ReadTally | None = None) -> list[str]:
    return [document.text for document in read_documents(str(source), tally)]


@pytest.mark.parametrize("suffix", [".txt", ".md", ".py"])
@pytest.mark.parametrize("compress", [None, gzip.compress, zstd])
def test_a_plain_file_is_one_document_with_every_byte(tmp_path, suffix, compress):
    text = "one\r\ntwo \t\n\n\u00e9\u4e2d\U0001f600\u2028 end"
    ending = {None: "", gzip.compress: ".gz", zstd: ".zst"}[compress]
    content = text.encode()
    path = write(tmp_path / f"a{suffix}{ending}", compress(content) if compress else content)
    (document,) = read_documents(str(path))
    assert (document.text, document.id, document.split) == (text, path.name, None)


@pytest.mark.parametrize("compress", [lambda content: content, gzip.compress, zstd])
def test_json_lines_are_documents_and_null_is_empty(tmp_path, compress):
    name = {gzip.compress: "a.jsonl.gz", zstd: "a.jsonl.zst"}.get(compress, "a.jsonl")
    content = ("\ufeff" + json_lines("one\n", None, "two") + "\n" + json_lines("three").rstrip("\n")).encode()
    tally = ReadTally()
    assert texts(write(tmp_path / name, compress(content)), tally) == ["one\n", "two", "three"]
    assert (tally.files, tally.empty) == (1, 1)


def test_several_members_of_a_compressed_file_are_all_read(tmp_path):
    for name, compress in (("a.txt.gz", gzip.compress), ("a.txt.zst", zstd)):
        assert texts(write(tmp_path / name, compress(b"one ") + compress(b"two"))) == ["one two"]


def test_parquet_rows_are_documents_and_another_field_is_named_with_a_hash(tmp_path):
    table = pa.table({"content": ["one", None, "two"], "text": ["x", "y", "z"], "n": [1, 2, 3]})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert texts(tmp_path / "a.parquet") == ["x", "y", "z"]
    assert texts(f"{tmp_path / 'a.parquet'}#content") == ["one", "two"]
    with pytest.raises(DataError, match="no field 'body' but 'content', 'text', 'n'"):
        texts(f"{tmp_path / 'a.parquet'}#body")
    with pytest.raises(DataError, match="'n' is int, not text"):
        texts(f"{tmp_path / 'a.parquet'}#n")


def test_a_folder_is_read_in_the_order_of_names_without_hidden_files(tmp_path):
    for name in ("b/2.txt", "a.md", "b/1.py", ".hidden/x.txt", "b/.y.txt", "c.bin", "b/10.txt"):
        write(tmp_path / name, name)
    found = list(read_documents(str(tmp_path)))
    assert [document.id for document in found] == ["a.md", "b/1.py", "b/10.txt", "b/2.txt"]
    assert texts(f"{tmp_path}/b/*.txt") == ["b/10.txt", "b/2.txt"]
    assert texts(f"{tmp_path}/**/*.py") == ["b/1.py"]
    assert [d.text for d in read_documents([f"{tmp_path}/b/2.txt", f"{tmp_path}/a.md"])] == ["b/2.txt", "a.md"]


def test_files_that_describe_a_folder_are_not_its_text(tmp_path):
    write(tmp_path / "jsonl/README.md", "about")
    write(tmp_path / "jsonl/meta.json", "{}")
    write(tmp_path / "jsonl/notes.txt", "notes")
    write(tmp_path / "jsonl/x.jsonl", json_lines("text"))
    tally = ReadTally()
    assert texts(tmp_path / "jsonl", tally) == ["text"]
    assert "2 files were left out, the first is README.md" in tally.describe()[0]
    write(tmp_path / "plain/README.md", "about")
    write(tmp_path / "plain/LICENSE.txt", "rights")
    write(tmp_path / "plain/input.txt", "text")
    write(tmp_path / "plain/part/README.md", "a page")
    assert texts(tmp_path / "plain") == ["text", "a page"]
    write(tmp_path / "alone/README.md", "all there is")
    assert texts(tmp_path / "alone") == ["all there is"]


@pytest.mark.parametrize(
    "expected",
    [
        {"train-00.jsonl": "train", "train-01.jsonl": "train", "val.jsonl": "heldout", "test.jsonl": "left out"},
        {"train.txt": "train", "valid.txt": "heldout", "README.md": "left out"},
        {"T-train.txt": "train", "T-valid.txt": "heldout"},
        {"train-00000-of-00002.parquet": "train", "validation-00000-of-00001.parquet": "heldout"},
        {"train.txt": "train", "test.txt": "left out"},
        {"dev.txt": "heldout", "test.txt": "left out"},
        {"test.txt": None, "other.txt": None},
        {"train.py": None, "test_train.py": None, "val.py": None},
        {"training_notes.txt": None, "diary.txt": None},
    ],
)
def test_split_names_decide_what_is_held_out_and_test_files_are_left_to_the_user(tmp_path, expected):
    for name in expected:
        if name.endswith(".parquet"):
            parquet.write_table(pa.table({"text": [name]}), tmp_path / name)
        else:
            write(tmp_path / name, json_lines(name) if name.endswith(".jsonl") else name)
    found = {document.text: document.split for document in read_documents(str(tmp_path))}
    assert found == {name: split for name, split in expected.items() if split != "left out"}


def test_a_named_file_is_read_whatever_its_name(tmp_path):
    path = write(tmp_path / "test.txt", "x")
    assert texts(path) == ["x"]
    with pytest.raises(DataError, match=r"holds no text that can be read \(.*1 files were left out"):
        texts(tmp_path)


def test_the_standard_library_is_code_without_tests_in_a_fixed_order():
    ids = [document.id for document in read_documents("stdlib")]
    assert ids == sorted(ids)
    assert {"json/decoder.py", "this.py"} <= set(ids)
    assert not any(part in {"test", "tests", "site-packages"} for name in ids for part in name.split("/"))


def test_separator_lines_divide_a_text_file(tmp_path):
    content = "one\n<|endoftext|>\ntwo <|endoftext|> still two\n<|endoftext|>\r\nthree\n<|endoftext|>"
    assert texts(write(tmp_path / "a.txt", content)) == ["one\n", "two <|endoftext|> still two\n", "three\n"]
    assert texts(write(tmp_path / "a.py", content)) == [content]


@pytest.mark.parametrize("text", ["line of text\n" * 40, "words and words " * 30, "\u4e2d\u6587" * 150])
def test_a_long_file_is_cut_into_parts_that_hold_every_character(tmp_path, monkeypatch, text):
    monkeypatch.setattr(formats, "MAX_DOCUMENT_BYTES", 100)
    found = list(read_documents(str(write(tmp_path / "a.txt", text))))
    assert "".join(document.text for document in found) == text
    assert [document.id for document in found] == [f"a.txt#{k}" for k in range(1, len(found) + 1)]
    assert max(len(document.text.encode()) for document in found) <= 100
    if "\n" in text:
        assert all(document.text.endswith("\n") for document in found)


def test_documents_of_a_long_file_are_not_cut_at_the_border_of_a_block(tmp_path, monkeypatch):
    parts = [f"{'story ' * (3 + k % 7)}{k}\n" for k in range(50)]
    path = write(tmp_path / "a.txt", "<|endoftext|>\n".join(parts))
    for limit in range(80, 140):  # a border falls at every place of a separator
        monkeypatch.setattr(formats, "MAX_DOCUMENT_BYTES", limit)
        assert texts(path) == parts


def test_rare_damage_is_replaced_and_counted_and_other_bytes_are_skipped(tmp_path):
    good = "word " * 1000
    tally = ReadTally()
    assert texts(write(tmp_path / "a.txt", good.encode() + b"\xff\xfe" + "\ufffd".encode()), tally) == [
        good + "\ufffd" * 3
    ]
    assert tally.replaced_characters == 2  # the third was in the text
    for content in (
        ("caf\u00e9 " * 50).encode("latin-1"),
        "\u4e2d\u6587".encode("gbk") * 9,
        b"PK\0\1",
        good.encode("utf-16"),
    ):
        write(tmp_path / "b.txt", content)
        tally = ReadTally()
        with pytest.raises(DataError, match="skipped as binary or not UTF-8"):
            texts(tmp_path / "b.txt", tally)
        assert tally.binary_names == [str(tmp_path / "b.txt")]


def test_lone_surrogates_of_json_become_replacement_characters(tmp_path):
    tally = ReadTally()
    path = write(tmp_path / "a.jsonl", '{"text": "a\\ud800b \\ud83d\\ude00"}\n')
    assert texts(path, tally) == ["a\ufffdb \U0001f600"]
    assert tally.replaced_characters == 1


def test_a_bomb_a_torn_file_and_an_endless_line_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "_RATIO_FREE_BYTES", 1 << 16)
    for name, compress in (("a.txt.gz", gzip.compress), ("a.jsonl.zst", zstd)):
        write(tmp_path / name, compress(b"0" * (1 << 22)))
        with pytest.raises(DataError, match="as only bombs do; decompress it yourself"):
            texts(tmp_path / name)
    parquet.write_table(pa.table({"text": ["0" * 10_000] * 4_000}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="as only bombs do"):
        texts(tmp_path / "a.parquet")
    torn = gzip.compress(json_lines(*map(str, range(9999))).encode())[:-10]
    with pytest.raises(DataError, match="not a whole gzip file"):
        texts(write(tmp_path / "b.jsonl.gz", torn))
    with pytest.raises(DataError, match="not a whole zstd file"):
        texts(write(tmp_path / "b.txt.zst", b"no zstd"))
    with pytest.raises(DataError, match="not a whole Parquet file"):
        texts(write(tmp_path / "b.parquet", b"PAR1 no"))
    monkeypatch.setattr(formats, "MAX_LINE_BYTES", 1000)
    with pytest.raises(DataError, match="line 2 is longer than"):
        texts(write(tmp_path / "c.jsonl", json_lines("x", "y" * 1000)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}\n{"text": "b', "line 2 is not JSON"),
        ('["a"]', "no field 'text' but a list"),
        ('{"body": "a"}', "no field 'text' but 'body'; name the text field as SOURCE#FIELD"),
        ('{"text": 3}', "'text' is int, not text"),
        ("[" * 100_000, "line 1 is not JSON"),
    ],
)
def test_broken_records_are_named_by_their_line(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        texts(write(tmp_path / "a.jsonl", content))


@pytest.mark.parametrize("source", ["no-such-file.txt", "no*such", "{}/empty", "{}/x.docx", "{}/y.parquet.gz"])
def test_what_cannot_be_read_is_refused_in_one_line_with_the_way_out(tmp_path, source):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "x.docx", "x")
    write(tmp_path / "y.parquet.gz", "x")
    with pytest.raises(DataError) as error:
        texts(source.format(tmp_path))
    assert "give a file (.txt" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_hub_source_without_its_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'chinchilla-lm\[data\]'"):
        texts("hf:roneneldan/TinyStories")


def test_a_path_with_a_hash_in_its_name_is_a_path(tmp_path):
    assert texts(write(tmp_path / "c#.txt", "sharp")) == ["sharp"]


def test_a_hub_source_is_read_by_split_and_field(tmp_path):
    pytest.importorskip("datasets")
    write(tmp_path / "hub/train.jsonl", json_lines("one", "two", field="body"))
    write(tmp_path / "hub/validation.jsonl", json_lines("three", field="body"))
    assert texts(f"hf:{tmp_path}/hub#body") == ["one", "two"]
    assert texts(f"hf:{tmp_path}/hub::validation#body") == ["three"]
    with pytest.raises(DataError, match="no text in field 'text' of 'body', 'other'"):
        texts(f"hf:{tmp_path}/hub")
    with pytest.raises(DataError, match="cannot be read"):
        texts(f"hf:{tmp_path}/hub::nosuch")
