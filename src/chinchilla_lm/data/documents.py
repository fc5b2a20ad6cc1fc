"""Documents from wherever the user keeps text: files, folders, globs, the standard library, the Hugging Face hub.

Sources are read in the order given, the files of a folder in the order of their names: the same sources give the same
documents. Which files of a folder are text is decided by `choose_files`, and what was left out is said in the tally.
It never changes the text and never removes copies (see `chinchilla_lm.data.prepare`).
"""

from __future__ import annotations

import dataclasses
import glob
import os
import re
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from chinchilla_lm.core.errors import DataError
from chinchilla_lm.data.formats import (
    COMPRESSIONS,
    DEFAULT_FIELD,
    PLAIN_SUFFIXES,
    TABLE_SUFFIXES,
    ReadTally,
    read_texts,
    replace_surrogates,
    suffixes_of,
)

Split = Literal["train", "heldout"]

STANDARD_LIBRARY = "stdlib"
HUB_PREFIX = "hf:"
# Names that corpora are published with, as the first or last word of a file's name.
_SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "heldout",
    "valid": "heldout",
    "validation": "heldout",
    "dev": "heldout",
    "heldout": "heldout",
    "test": "test",
}
_SPLIT_SUFFIXES = (".txt", *TABLE_SUFFIXES)
# Files at the top of a folder that describe it.
_ABOUT = re.compile(r"(readme|licen[cs]e|copying|notice|changelog)\b.*", re.IGNORECASE)
# Packages of the standard library that are tests: tables of cases and deliberately broken sources, and absent from
# some distributions. idlelib, lib2to3 and the rest are ordinary code and are kept.
_TEST_FOLDERS = frozenset({"test", "tests", "idle_test"})
_NOT_STANDARD_FOLDERS = frozenset({"site-packages", "dist-packages", "__pycache__"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Document:
    """One text, whole and unchanged."""

    text: str
    id: str
    """Where it came from: a path and, in a file of many, "#" and its number."""
    split: Split | None = None
    """What its file's name says: "heldout" for val*, "train" for train* beside such files."""


def read_documents(sources: str | Sequence[str], tally: ReadTally | None = None) -> Iterator[Document]:
    """Read every document that is not empty.

    Args:
        sources: each a file (.txt .md .py .jsonl, also .gz or .zst of these, .parquet), a folder, a glob, "stdlib" (the
            running interpreter's standard library), or "hf:NAME[:CONFIG][:SPLIT]". "#FIELD" at the end names the text
            field of records; it is "text" otherwise.
        tally: counts what was left out or replaced.

    Yields:
        Documents, source by source.

    Raises:
        DataError: a source does not exist, holds no text, or cannot be read.
    """
    tally = ReadTally() if tally is None else tally
    for source in [sources] if isinstance(sources, str) else sources:
        read = _read_hub if source.startswith(HUB_PREFIX) else _read_files
        for document in read(source, tally):
            if document.text.strip():
                yield document
            else:
                tally.empty += 1


def choose_files(paths: Sequence[Path], root: Path, tally: ReadTally) -> list[tuple[Path, Split | None]]:
    """Decide which files of a folder are the corpus.

    1. Only files whose suffix is known. If any is .jsonl or .parquet, only those: the rest describes them.
    2. If .txt, .jsonl or .parquet files are named train* beside val* or test* (or all are named so), only those: val,
       valid, validation, dev and heldout become the held-out text, test files are left for the user.
    3. Otherwise README, LICENSE and the like at the top of the folder are left out, unless nothing else is there.

    Args:
        paths: all files, sorted.
        root: the folder.
        tally: its notes say what was left out.

    Returns:
        (path, what its name says) of each file to read.
    """
    known = [path for path in paths if suffixes_of(path)[0]]
    tables = [path for path in known if suffixes_of(path)[0] in TABLE_SUFFIXES]
    chosen = tables or known
    words = {path: _split_word(path) for path in chosen}
    named = [path for path in chosen if words[path]]
    if "train" in words.values() and len(set(words.values()) - {None}) > 1 or (chosen and len(named) == len(chosen)):
        kept = [path for path in named if words[path] != "test"]
    else:
        words = dict.fromkeys(chosen)
        kept = [path for path in chosen if path.parent != root or not _ABOUT.fullmatch(path.name)] or chosen
    left_out = [path for path in known if path not in set(kept)]
    if left_out:
        tally.notes.append(f"{root}: {len(left_out)} files were left out, the first is {left_out[0].name}")
    return [(path, words[path]) for path in kept]  # type: ignore[misc]


def _read_files(source: str, tally: ReadTally) -> Iterator[Document]:
    name, field = _split_field(source)
    files, root = _find_files(name, tally)
    is_empty = True
    for path, split in files:
        relative = path.relative_to(root).as_posix() if path.is_relative_to(root) and path != root else str(path)
        for place, text in read_texts(path, field, tally):
            is_empty = False
            yield Document(text=text, id=relative + place, split=split)
    if is_empty:
        reason = "; ".join(tally.describe()) or f"{len(files)} files"
        raise DataError(f"{source!r} holds no text that can be read ({reason}); {_forms()}")


def _find_files(name: str, tally: ReadTally) -> tuple[list[tuple[Path, Split | None]], Path]:
    """Return the files of a source and the folder that their ids leave out."""
    path = Path(name).expanduser()
    if name == STANDARD_LIBRARY:
        root = Path(sysconfig.get_path("stdlib"))
        skipped = _TEST_FOLDERS | _NOT_STANDARD_FOLDERS
        return [(file, None) for file in _walk(root, skipped) if file.suffix == ".py"], root
    if path.is_dir():
        return choose_files(_walk(path), path, tally), path
    if path.exists():
        if not suffixes_of(path)[0]:
            raise DataError(f"{name!r} has a suffix that is not known; {_forms()}")
        return [(path, None)], path.parent
    if glob.has_magic(name):
        matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
        root = Path(os.path.commonpath(matches)) if matches else path
        return choose_files([match for match in matches if match.is_file()], root, tally), root
    raise DataError(f"{name!r} does not exist; {_forms()}")


def _walk(root: Path, skipped: frozenset[str] = frozenset()) -> list[Path]:
    """Return the files below a folder by name, without hidden ones; links to folders may loop and are not followed."""
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in skipped and not name.startswith(".")]
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted((path for path in found if path.is_file()), key=lambda path: path.relative_to(root).as_posix())


def _split_word(path: Path) -> str | None:
    suffix, _ = suffixes_of(path)
    if suffix not in _SPLIT_SUFFIXES:
        return None
    words = re.findall("[a-z]+", path.name.lower().split(suffix)[0]) or [""]
    return _SPLIT_WORDS.get(words[0]) or _SPLIT_WORDS.get(words[-1])


def _split_field(source: str) -> tuple[str, str]:
    """Divide SOURCE#FIELD; a path that has # in it is a path."""
    name, mark, field = source.rpartition("#")
    if not mark or not name or not field or Path(source).exists():
        return source, DEFAULT_FIELD
    return name, field


def _forms() -> str:
    suffixes = " ".join(PLAIN_SUFFIXES + TABLE_SUFFIXES)
    return f"give a file ({suffixes}, also {' '.join(COMPRESSIONS)}), a folder, a glob, 'stdlib' or 'hf:NAME'"


def _read_hub(source: str, tally: ReadTally) -> Iterator[Document]:
    try:
        import datasets  # an optional package  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise DataError(f"{source!r} needs the package datasets; pip install 'chinchilla-lm[data]'") from None
    rest, field = _split_field(source.removeprefix(HUB_PREFIX))
    name, config, split = (rest.split(":") + ["", ""])[:3]
    try:
        rows = datasets.load_dataset(name, config or None, split=split or "train", streaming=True)
        for number, row in enumerate(rows, start=1):
            if not isinstance(row.get(field), str | None) or field not in row:
                fields = ", ".join(map(repr, list(row)[:8]))
                raise DataError(f"{source!r} has no text in field {field!r} of {fields}; write hf:NAME#FIELD")
            yield Document(text=replace_surrogates(row[field] or "", tally), id=f"{rest}#{number}")
    except (OSError, ValueError) as error:  # unknown name, config or split; no network
        reason = str(error).splitlines()[0]
        raise DataError(f"{source!r} cannot be read ({reason}); check hf:NAME:CONFIG:SPLIT and the network") from None
