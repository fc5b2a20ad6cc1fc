from __future__ import annotations

import json
import math
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_lm.core.errors import DataError
from chinchilla_lm.core.records import append_record, read_records

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
records = st.dictionaries(st.text(max_size=6).filter(lambda key: key != "schema"), plain, max_size=4)


@given(st.lists(records, max_size=4))
def test_records_read_back_exactly(tmp_path_factory: pytest.TempPathFactory, written: list[dict[str, Any]]) -> None:
    path = tmp_path_factory.mktemp("records") / "r.jsonl"
    path.touch()
    for fields in written:
        append_record(path, "trial/1", fields)
    assert read_records(path) == [{"schema": "trial/1", **fields} for fields in written]
    assert len(path.read_bytes().splitlines()) >= len(written)


def test_a_last_line_torn_anywhere_is_skipped_and_then_repaired(tmp_path: Path) -> None:
    whole = tmp_path / "whole.jsonl"
    append_record(whole, "trial/1", {"trial": 1, "note": "ä" * 3})
    first = whole.read_bytes()
    append_record(whole, "trial/1", {"trial": 2})
    content = whole.read_bytes()
    for length in range(len(first), len(content)):
        torn = tmp_path / "torn.jsonl"
        torn.write_bytes(content[:length])
        assert [record["trial"] for record in read_records(torn)] == [1]
        append_record(torn, "trial/1", {"trial": 3}, sync=True)
        assert [record["trial"] for record in read_records(torn)] == [1, 3]


def test_a_torn_first_line_longer_than_a_block_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(b"x" * 200_000)
    assert read_records(path) == []
    append_record(path, "trial/1", {"trial": 1})
    assert [record["trial"] for record in read_records(path)] == [1]


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    append_record(path, "trial/1", {})
    for bad in (b"{torn\n", b"[1]\n", b'{"loss": 1}\n', b"\xff\n"):
        path.write_bytes(path.read_bytes().splitlines(keepends=True)[0] + bad)
        with pytest.raises(DataError, match=r"r\.jsonl:2"):
            read_records(path)


def test_a_schema_selects_its_records_and_refuses_newer_ones(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    for schema in ("step/1", "evaluation/1", "step/2"):
        append_record(path, schema, {"of": schema})
    assert [record["of"] for record in read_records(path, "step/2")] == ["step/1", "step/2"]
    assert [record["of"] for record in read_records(path, "evaluation/1")] == ["evaluation/1"]
    with pytest.raises(DataError, match=r"r\.jsonl:3 .*'step/2'.*upgrade"):
        read_records(path, "step/1")


@pytest.mark.parametrize("bad", [math.nan, math.inf, {1, 2}, b"bytes", [1, [-math.inf]]])
def test_what_json_cannot_hold_is_refused_and_nothing_is_written(tmp_path: Path, bad: object) -> None:
    path = tmp_path / "r.jsonl"
    with pytest.raises(DataError, match="trial/1"):
        append_record(path, "trial/1", {"loss": bad})
    assert not path.exists()


@pytest.mark.parametrize("schema", ["trial", "trial/x", "/1", "trial/-1"])
def test_a_schema_without_a_version_is_refused(tmp_path: Path, schema: str) -> None:
    with pytest.raises(DataError, match="name and a version"):
        append_record(tmp_path / "r.jsonl", schema, {})


def test_one_record_is_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[bytes] = []
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, line: (writes.append(bytes(line)), write(descriptor, line))[1])
    append_record(tmp_path / "r.jsonl", "trial/1", {"note": "n" * 100_000})
    assert len(writes) == 1
    assert json.loads(writes[0])["schema"] == "trial/1"


def test_a_disk_that_fills_while_appending_leaves_the_old_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "r.jsonl"
    append_record(path, "trial/1", {"trial": 1})
    old = path.read_bytes()
    write = os.write

    def fill(descriptor: int, line: bytes) -> int:
        if len(line) < 10:
            raise OSError(28, "No space left on device")
        return write(descriptor, line[: len(line) - 5])

    monkeypatch.setattr(os, "write", fill)
    with pytest.raises(DataError, match="disk is full"):
        append_record(path, "trial/1", {"trial": 2})
    assert path.read_bytes() == old


def _append_many(path: Path, writer: int) -> None:
    for number in range(50):
        append_record(path, "trial/1", {"writer": writer, "number": number, "padding": "p" * 5000})


def test_two_processes_do_not_mix_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_append_many, args=(path, writer)) for writer in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = [(record["writer"], record["number"]) for record in read_records(path)]
    assert sorted(found) == [(writer, number) for writer in range(2) for number in range(50)]
