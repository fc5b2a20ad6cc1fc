"""Labelled rows from wherever the user keeps them: files of tables, JSON, CoNLL, or the Hugging Face hub.

    read_rows("train.jsonl.gz") -> list of dicts as they are in the file
    rows_for_task("text-classification", rows) -> list of dicts in the task's canonical form (see `task_rows`)
    split_rows(rows, fraction, seed) -> (the larger part, the smaller part), by label where there is one

Files come from strangers: decompression is bounded and bytes that are not UTF-8 are refused, as for plain text. Rows
are kept in memory: a labelled set that does not fit there is a corpus.
"""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from chinchilla_lm.core.errors import DataError
from chinchilla_lm.core.files import explain_os_error
from chinchilla_lm.data.documents import HUB_PREFIX
from chinchilla_lm.data.formats import COMPRESSIONS, MAX_LINE_BYTES, ReadTally, decode_text, open_decompressed
from chinchilla_lm.data.task_rows import TASKS, Row, rows_for_task

__all__ = ["TASKS", "Row", "read_rows", "rows_for_task", "split_rows"]

_CONLL_SUFFIXES = (".conll", ".conll03", ".iob", ".iob2", ".bio")
SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", *_CONLL_SUFFIXES)
_DOCUMENT_START = "-DOCSTART-"


def read_rows(source: str | Path) -> list[Row]:
    """Read every row as it is.

    Args:
        source: a file of `SUFFIXES`, also .gz or .zst of these (not of Parquet), or "hf:NAME[:CONFIG][:SPLIT]" (split
            train by default). Tables need a header; CoNLL files have the token first and the tag last on a line, and
            become {tokens, tags}; JSON is a list of objects, or SQuAD's nested form, which is flattened.

    Returns:
        One dict a row, in order; at least one.

    Raises:
        DataError: the source is absent, torn, not UTF-8, empty, or a line breaks the format.
    """
    if str(source).startswith(HUB_PREFIX):
        return _read_hub(str(source))
    path = Path(source).expanduser()
    suffix = _suffix_of(path)
    if path.is_dir():
        names = ", ".join(sorted(file.name for file in path.iterdir() if _suffix_of(file))[:6]) or "none that is known"
        raise DataError(f"{path} is a folder; give one of its files ({names})")
    with explain_os_error(path):
        if not suffix and path.exists():
            raise DataError(
                f"{path} has a suffix that is not known; give {' '.join(SUFFIXES)}, also .gz .zst, or hf:NAME"
            )
        rows = _read_parquet(path) if suffix == ".parquet" else _read_text(path, suffix)
    if not rows:
        raise DataError(f"{path} has no rows; give a file with at least one")
    return rows


def split_rows(rows: Sequence[Row], fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Divide rows by a seeded draw.

    Rows with a label are drawn label by label (a set of labels counts as one label); questions about one context stay
    together, because a model that has read the context has seen half of the answer.

    Args:
        rows: in canonical form.
        fraction: of the rows in the second part, in (0, 1).
        seed: of the draw.

    Returns:
        (first, second), each in the order of the rows, none empty.

    Raises:
        DataError: fewer than two rows or contexts.
    """
    if not 0 < fraction < 1:
        raise DataError(f"a fraction of {fraction} divides nothing; give a number between 0 and 1")
    groups: dict[Any, list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(row["context"] if "question" in row and "context" in row else number, []).append(number)
    if len(groups) < 2:
        raise DataError(f"{len(rows)} rows in {len(groups)} groups cannot be divided; give a separate validation file")
    strata: dict[Any, list[list[int]]] = {}
    for members in groups.values():
        strata.setdefault(_stratum(rows[members[0]]), []).append(members)
    taken = set(_draw(list(strata.values()), fraction, random.Random(seed)))
    return (
        [row for number, row in enumerate(rows) if number not in taken],
        [row for number, row in enumerate(rows) if number in taken],
    )


def _draw(strata: list[list[list[int]]], fraction: float, generator: random.Random) -> list[int]:
    """Take the fraction of every stratum; rounding is settled so that the whole is right (largest remainders)."""
    total = sum(map(len, strata))
    wanted = min(max(round(fraction * total), 1), total - 1)
    exact = [fraction * len(stratum) for stratum in strata]
    takes = [int(share) for share in exact]
    order = sorted(range(len(strata)), key=lambda place: (takes[place] - exact[place], generator.random()))
    for place in order * 2:
        if sum(takes) >= wanted:
            break
        if takes[place] < len(strata[place]):
            takes[place] += 1
    drawn = []
    for stratum, take in zip(strata, takes, strict=True):
        drawn += [number for members in generator.sample(stratum, take) for number in members]
    return drawn


def _stratum(row: Row) -> Any:
    label = row.get("label")
    if isinstance(label, list):
        return tuple(sorted(cast("list[str]", label)))
    return label if isinstance(label, str) else None  # the number of a choice is no kind of row


def _suffix_of(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    last = suffixes[-1] if suffixes else ""
    return last if last in SUFFIXES else ""


def _read_text(path: Path, suffix: str) -> list[Row]:
    with open_decompressed(path) as stream:
        content = stream.read()
    tally = ReadTally()
    text = decode_text(content.removeprefix(b"\xef\xbb\xbf"), str(path), tally)
    if text is None or tally.replaced_characters:
        raise DataError(f"{path} is not UTF-8 text; convert it with iconv (often from GB18030 or CP1252)")
    if suffix == ".jsonl":
        return _parse_json_lines(path, text)
    if suffix == ".json":
        return _parse_json(path, text)
    if suffix in _CONLL_SUFFIXES:
        return _parse_conll(path, text)
    return _parse_table(path, text, is_tabbed=suffix == ".tsv")


def _parse_json_lines(path: Path, text: str) -> list[Row]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
            raise DataError(f"{path}: line {number} is not JSON ({error}); correct or delete that line") from None
        rows.append(_checked(row, f"{path}: line {number}"))
    return rows


def _parse_json(path: Path, text: str) -> list[Row]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
        raise DataError(f"{path} is not JSON ({error}); a file of one object a line is named .jsonl") from None
    if isinstance(content, dict) and isinstance(content.get("data"), list):
        content = content["data"]
    if not isinstance(content, list):
        raise DataError(f"{path} is JSON but no list of rows; write [{{...}}, {{...}}], or one object a line as .jsonl")
    rows = [_checked(row, f"{path}: row {number}") for number, row in enumerate(content, start=1)]
    if rows and all("paragraphs" in row for row in rows):
        return _flatten_squad(path, rows)
    return rows


def _flatten_squad(path: Path, articles: Sequence[Row]) -> list[Row]:
    try:
        return [
            {"title": article.get("title", ""), "context": paragraph["context"], **question}
            for article in articles
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} looks like SQuAD but lacks {error}; give data/paragraphs/context, qas") from None


def _parse_table(path: Path, text: str, is_tabbed: bool) -> list[Row]:
    """Parse CSV with its quotes, or TSV, where a quotation mark is mostly text (GLUE)."""
    csv.field_size_limit(MAX_LINE_BYTES)
    header_line = text.split("\n", 1)[0]
    delimiter = "\t" if is_tabbed or ("\t" in header_line and "," not in header_line) else ","
    if delimiter == "," and "," not in header_line and ";" in header_line:  # what European spreadsheets write
        delimiter = ";"
    quoting = csv.QUOTE_NONE if is_tabbed else csv.QUOTE_MINIMAL
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting)
    rows: list[Row] = []
    header: list[str] = []
    try:
        for cells in reader:
            if not any(cells):
                continue
            if not header:
                header = [cell.strip() for cell in cells]
                _refuse_twice(path, header)
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"{path}: line {reader.line_num} has {len(cells)} columns where the header has {len(header)}"
                    f" ({', '.join(header)}); quote fields that contain {delimiter!r}, or correct that line"
                )
            rows.append(dict(zip(header, map(_unquoted, cells) if is_tabbed else cells, strict=True)))
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num} is not {path.suffix[1:]} ({error}); correct it") from None
    return rows


def _refuse_twice(path: Path, header: Sequence[str]) -> None:
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise DataError(f"{path} has two columns {twice[0]!r}, and only one could be read; rename or delete the other")


def _unquoted(cell: str) -> str:
    is_quoted = len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in cell[1:-1].replace('""', "")
    return cell[1:-1].replace('""', '"') if is_quoted else cell


def _parse_conll(path: Path, text: str) -> list[Row]:
    rows: list[Row] = []
    tokens: list[str] = []
    tags: list[str] = []
    for number, line in enumerate([*text.split("\n"), ""], start=1):
        line = line.removesuffix("\r")
        if line.startswith("# ") and " = " in line:  # a comment of CoNLL-U
            continue
        if not line.strip() or line.startswith(_DOCUMENT_START):
            if tokens:
                rows.append({"tokens": tokens, "tags": tags})
            tokens, tags = [], []
            continue
        cells = line.split("\t") if "\t" in line else line.split()
        if len(cells) < 2 or not cells[0] or not cells[-1]:
            raise DataError(
                f"{path}: line {number} is {line!r}; write TOKEN, a tab and TAG, and a blank line after a text"
            )
        tokens.append(cells[0])
        tags.append(cells[-1])
    return rows


def _read_parquet(path: Path) -> list[Row]:
    import pyarrow as pa  # 0.2 s, and most sets are JSON lines
    import pyarrow.parquet as parquet

    try:
        return parquet.read_table(path).to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the operating system, not of the content
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path} is not a whole Parquet file ({reason}); download or write it again") from None


def _read_hub(source: str) -> list[Row]:
    try:
        import datasets  # an optional package  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise DataError(f"{source!r} needs the package datasets; pip install 'chinchilla-lm[data]'") from None
    name, config, split = (source.removeprefix(HUB_PREFIX).split(":") + ["", ""])[:3]
    try:
        table = datasets.load_dataset(name, config or None, split=split or "train")
    except (OSError, ValueError) as error:  # unknown name, config or split; no network
        reason = str(error).splitlines()[0]
        raise DataError(f"{source!r} cannot be read ({reason}); check hf:NAME:CONFIG:SPLIT and the network") from None
    features = cast("Mapping[str, Any]", table.features)
    return [{field: _named(value, features[field]) for field, value in row.items()} for row in cast("Any", table)]


def _named(value: Any, feature: Any) -> Any:
    """Return the names of classes that the hub stores as numbers; -1 means that there is none."""
    if hasattr(feature, "int2str"):
        return feature.int2str(value) if isinstance(value, int) and value >= 0 else None
    inner = getattr(feature, "feature", None)
    if inner is not None and isinstance(value, list) and hasattr(inner, "int2str"):
        return [_named(entry, inner) for entry in value]
    return value


def _checked(row: Any, where: str) -> Row:
    if not isinstance(row, dict):
        raise DataError(f"{where} is a {type(row).__name__}, not an object; write {{...}} with named fields")
    return cast("Row", row)
