"""One file to texts: plain text, JSON lines and Parquet, each as it is or compressed with gzip or zstd.

Files come from strangers: decompression, line length and the size of one document are bounded, and bytes that are not
text are skipped and counted, never guessed at. The text itself is untouched, but for the byte order mark of a file
and for bytes that are not UTF-8 (replaced by U+FFFD when they are rare). It knows nothing of folders or splits.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from chinchilla_lm.core.errors import DataError
from chinchilla_lm.core.files import explain_os_error
from chinchilla_lm.core.units import format_bytes

PLAIN_SUFFIXES = (".txt", ".md", ".py")
TABLE_SUFFIXES = (".jsonl", ".parquet")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
DEFAULT_FIELD = "text"

# A document is in memory some four times while it is read; a longer plain file is cut into parts, a longer line is
# refused.
MAX_LINE_BYTES = 64 << 20
MAX_DOCUMENT_BYTES = 64 << 20
# Prose compresses 3 to 5 times, logs some 20; gzip ends at 1,032 (zlib's technical notes), and a bomb is close to that.
MAX_RATIO = 200
# The ratio of a small file says nothing.
_RATIO_FREE_BYTES = 64 << 20
# Text with a few damaged bytes is still text; Latin-1 or GBK read as UTF-8 has far more.
MAX_BAD_SHARE = 1e-3
# The line between documents in published plain-text corpora such as TinyStories.
_SEPARATOR_LINE = re.compile(rb"(?:(?<=\n)|\A)<\|endoftext\|>\r?\n")
_LAST_SEPARATOR_LINE = re.compile(_SEPARATOR_LINE.pattern + rb"|(?:(?<=\n)|\A)<\|endoftext\|>\Z")
_SURROGATE = re.compile("[\ud800-\udfff]")
_PARQUET_ROWS = 256


@dataclasses.dataclass(kw_only=True)
class ReadTally:
    """What a reader met; it grows while documents are read."""

    files: int = 0
    empty: int = 0
    replaced_characters: int = 0
    binary_names: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def describe(self) -> tuple[str, ...]:
        """Return what a person should know, one sentence each."""
        lines = list(self.notes)
        if self.replaced_characters:
            lines.append(f"{self.replaced_characters} characters that are not UTF-8 were replaced by U+FFFD")
        if self.binary_names:
            lines.append(
                f"{len(self.binary_names)} files or records were skipped as binary or not UTF-8 (convert them with"
                f" iconv), the first is {self.binary_names[0]}"
            )
        return tuple(lines)


def suffixes_of(path: Path) -> tuple[str, str | None]:
    """Return (format suffix, compression suffix or None) of a file name, in lower case; the first is "" if unknown."""
    name = path.name.lower()
    stem, last = os.path.splitext(name)
    compression = last if last in COMPRESSIONS else None
    suffix = os.path.splitext(stem)[1] if compression else last
    if suffix not in PLAIN_SUFFIXES + TABLE_SUFFIXES or (suffix == ".parquet" and compression):
        return "", compression
    return suffix, compression


def read_texts(path: Path, field: str, tally: ReadTally) -> Iterator[tuple[str, str]]:
    """Read the texts of one file.

    Args:
        path: a file whose name `suffixes_of` knows.
        field: where a record's text is, in .jsonl and .parquet.
        tally: grows.

    Yields:
        (place in the file, text); the place is "" for the whole file, else "#" and a number from 1.

    Raises:
        DataError: the file cannot be read, is torn, breaks a limit, or has records without the field.
    """
    suffix, _ = suffixes_of(path)
    tally.files += 1
    with explain_os_error(path):
        if suffix == ".parquet":
            yield from _read_parquet(path, field, tally)
            return
        with open_decompressed(path) as stream:
            if suffix == ".jsonl":
                yield from _read_json_lines(path, stream, field, tally)
            else:
                yield from _read_plain(path, stream, suffix, tally)


def decode_text(content: bytes, name: str, tally: ReadTally) -> str | None:
    """Decode UTF-8, or return None (and count it) for bytes that are not text."""
    if b"\0" in content:
        tally.binary_names.append(name)
        return None
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("utf-8", errors="replace")
    bad = text.count("\ufffd") - content.count("\ufffd".encode())
    if bad >= MAX_BAD_SHARE * len(text):
        tally.binary_names.append(name)
        return None
    tally.replaced_characters += bad
    return text


def replace_surrogates(text: str, tally: ReadTally) -> str:
    r"""Replace lone surrogates, which JSON's \ud800 makes and UTF-8 cannot hold."""
    text, replaced = _SURROGATE.subn("\ufffd", text)
    tally.replaced_characters += replaced
    return text


def _read_plain(path: Path, stream: BinaryIO, suffix: str, tally: ReadTally) -> Iterator[tuple[str, str]]:
    """Yield a file as one document; .txt is divided at separator lines, and what is too long at line ends."""
    rest, number, is_last = b"", 0, False
    while not is_last:
        content = rest + stream.read(MAX_DOCUMENT_BYTES - len(rest))
        is_last = not stream.peek(1) if isinstance(stream, io.BufferedReader) else True
        if number == 0:
            content = content.removeprefix(b"\xef\xbb\xbf")
        separator = _LAST_SEPARATOR_LINE if is_last else _SEPARATOR_LINE
        parts = separator.split(content) if suffix == ".txt" else [content]
        rest = b"" if is_last else parts.pop()
        if not is_last and not parts:
            end = _last_break(rest)
            parts, rest = [rest[:end]], rest[end:]
        is_whole = is_last and number == 0 and len(parts) == 1
        for part in parts:
            number += 1
            place = "" if is_whole else f"#{number}"
            text = decode_text(part, f"{path}{place}", tally)
            if text is not None:
                yield place, text


def _last_break(content: bytes) -> int:
    """Return where to cut bytes that are too long: after the last line end, else the last space, else a character."""
    for mark in (b"\n", b" "):
        if (end := content.rfind(mark) + 1) > len(content) // 2:
            return end
    end = len(content) - 1
    while end > len(content) - 4 and content[end] & 0xC0 == 0x80:  # a continuation byte
        end -= 1
    return end


def _read_json_lines(path: Path, stream: BinaryIO, field: str, tally: ReadTally) -> Iterator[tuple[str, str]]:
    number = 0
    while line := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        place = f"#{number}"
        if len(line) > MAX_LINE_BYTES:
            limit = format_bytes(MAX_LINE_BYTES)
            raise DataError(f"{path}: line {number} is longer than {limit}; split that document into several lines")
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            continue
        content = decode_text(line, f"{path}{place}", tally)
        if content is None:
            continue
        try:
            record = json.loads(content)
        except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
            raise DataError(f"{path}: line {number} is not JSON ({error}); correct or delete that line") from None
        text = _field_of(record, field, f"{path}: line {number}")
        has_escapes = "\\ud" in content or "\\uD" in content  # as they are written, the search is 50 times faster
        yield place, replace_surrogates(text, tally) if has_escapes else text


def _field_of(record: Any, field: str, where: str) -> str:
    """Return a record's text; null is an empty document."""
    if not isinstance(record, dict) or field not in record:
        fields = ", ".join(map(repr, list(record)[:8])) if isinstance(record, dict) else f"a {type(record).__name__}"
        raise DataError(f"{where} has no field {field!r} but {fields}; name the text field as SOURCE#FIELD")
    text = record[field]
    if text is not None and not isinstance(text, str):
        raise DataError(f"{where}: {field!r} is {type(text).__name__}, not text; name the text field as SOURCE#FIELD")
    return text or ""


def _read_parquet(path: Path, field: str, tally: ReadTally) -> Iterator[tuple[str, str]]:
    import pyarrow as pa  # 0.2 s, and most corpora have none
    import pyarrow.parquet as parquet

    limit = _decompressed_limit(path)
    number, read_bytes = 0, 0
    try:
        table = parquet.ParquetFile(path)
        if field not in table.schema_arrow.names:
            _field_of(dict.fromkeys(table.schema_arrow.names), field, str(path))
        for batch in table.iter_batches(batch_size=_PARQUET_ROWS, columns=[field]):
            read_bytes += batch.nbytes
            _check_ratio(path, read_bytes, limit)
            for text in batch.column(0).to_pylist():
                number += 1
                yield f"#{number}", _field_of({field: text}, field, f"{path}: row {number}")
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the operating system, not of the content
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{path} is not a whole Parquet file of UTF-8 text ({reason}); download or write it again"
        ) from None


def open_decompressed(path: Path) -> BinaryIO:
    """Open a file's content, decompressed and bounded.

    Raises:
        DataError: while it is read: the file is torn, or grows as only a bomb does.
    """
    _, compression = suffixes_of(path)
    if compression is None:
        return open(path, "rb")
    return io.BufferedReader(_Decompressed(path, COMPRESSIONS[compression]), buffer_size=1 << 20)


class _Decompressed(io.RawIOBase):
    """Bytes of a compressed file; refuses a torn file, and one that grows as only a bomb does."""

    def __init__(self, path: Path, codec: str) -> None:
        import pyarrow as pa  # 0.2 s; it reads both codecs, several members included

        self._path, self._codec = path, codec
        self._limit = _decompressed_limit(path)
        self._read_bytes = 0
        self._file = pa.OSFile(str(path), "rb")
        self._stream = pa.CompressedInputStream(self._file, codec) if self._file.size() else self._file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            count = self._stream.readinto(buffer)  # its read() never frees its bytes when it fails (pyarrow 26.0)
        except OSError as error:
            raise DataError(
                f"{self._path} is not a whole {self._codec} file ({error}); download it again, or compress it again"
            ) from None
        self._read_bytes += count
        _check_ratio(self._path, self._read_bytes, self._limit)
        return count

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
            self._file.close()
        super().close()


def _decompressed_limit(path: Path) -> int:
    return max(_RATIO_FREE_BYTES, MAX_RATIO * path.stat().st_size)


def _check_ratio(path: Path, read_bytes: int, limit: int) -> None:
    if read_bytes > limit:
        raise DataError(
            f"{path} decompresses to more than {format_bytes(limit)}, over {MAX_RATIO} times its size, as only"
            " bombs do; decompress it yourself if you trust it"
        )
