"""Records: JSON lines that programs read, one object a line, each with a versioned schema.

    {"schema": "trial/1", "trial": "a3", "loss": 3.21}

A line is appended with one write, so that two processes cannot mix theirs, and a crash can tear only the last one:
it is skipped when read and cut off before the next is appended. It never rewrites a whole line.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from chinchilla_lm.core.errors import DataError
from chinchilla_lm.core.files import explain_os_error

_TAIL_BLOCK_BYTES = 1 << 16


def append_record(path: Path | str, schema: str, fields: Mapping[str, Any], *, sync: bool = False) -> None:
    """Append one record as one JSON line.

    Args:
        path: the file of records; it and its parent folders are made when missing.
        schema: name and version, such as "trial/1".
        fields: the record's other keys, plain finite values.
        sync: wait until the disk has it.

    Raises:
        DataError: a value that JSON cannot hold (nan and inf included), a full disk or a missing permission.
    """
    assert "schema" not in fields, f"the schema {schema!r} is an argument, not a field"
    _split_schema(schema)
    try:
        text = json.dumps({"schema": schema, **fields}, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{path}: record {schema} cannot be written ({error}); give finite numbers and plain values"
        ) from None
    line = text.encode("utf-8") + b"\n"
    target = Path(path)
    with explain_os_error(target, needed_bytes=len(line)):
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(target, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            _append_line(descriptor, line)
            if sync:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_records(path: Path | str, schema: str | None = None) -> list[dict[str, Any]]:
    """Read a file of records in order.

    Args:
        path: the file.
        schema: keep only records with this schema's name ("trial/1" also accepts none newer than 1); None keeps all.

    Returns:
        One dict a record, its "schema" included; a torn last line is left out.

    Raises:
        DataError: the file is absent, a whole line is not a record, or a record is newer than `schema`.
    """
    with explain_os_error(Path(path)):
        content = Path(path).read_bytes()
    records: list[dict[str, Any]] = []
    for number, line in enumerate(
        content.split(b"\n")[:-1], start=1
    ):  # after the last newline: nothing, or a torn line
        record = _parse_line(line, f"{path}:{number}")
        if schema is None:
            records.append(record)
            continue
        wanted, newest = _split_schema(schema)
        name, version = _split_schema(record["schema"])
        if name != wanted:
            continue
        if version > newest:
            raise DataError(
                f"{path}:{number} has schema {record['schema']!r}, newer than {schema!r}; upgrade chinchilla-lm"
            )
        records.append(record)
    return records


def _append_line(descriptor: int, line: bytes) -> None:
    # The lock lets nobody take another's half-written line for a torn one.
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    end = _cut_torn_line(descriptor)
    try:
        rest = line
        while rest:  # once, except on a nearly full disk, which takes a part and then says why
            rest = rest[os.write(descriptor, rest) :]
    except OSError:
        os.ftruncate(descriptor, end)
        raise


def _cut_torn_line(descriptor: int) -> int:
    """Truncate the file to its last newline; return its length."""
    end = size = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - _TAIL_BLOCK_BYTES)
        block = os.pread(descriptor, end - start, start)
        newline = block.rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end < size:
        os.ftruncate(descriptor, end)
    return end


def _parse_line(line: bytes, where: str) -> dict[str, Any]:
    try:
        record: Any = json.loads(line)
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, thousands of digits, too deep
        raise DataError(f"{where} is not JSON ({error}); delete that line, or restore the file") from None
    if not isinstance(record, dict) or not isinstance(cast("dict[str, Any]", record).get("schema"), str):
        raise DataError(f"{where} is not a record (no schema); delete that line, or restore the file")
    return cast("dict[str, Any]", record)


def _split_schema(schema: str) -> tuple[str, int]:
    name, _, version = schema.partition("/")
    if not name or not version.isascii() or not version.isdigit():
        raise DataError(f"schema {schema!r} is not a name and a version; write one such as 'trial/1'")
    return name, int(version)
