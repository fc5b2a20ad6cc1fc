"""Reading a record that may be old or partial: a part that is absent or of another kind is read as nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from chinchilla_lm.report.rundir import is_number

Record = Mapping[str, Any]


def table_of(record: Record, name: str) -> Record:
    """Return a nested table, empty where it is absent or of another kind."""
    found = record.get(name)
    return found if isinstance(found, Mapping) else {}


def tables_of(record: Record, name: str) -> list[Record]:
    """Return the tables of a list, without what is no table."""
    found = record.get(name)
    return [each for each in found if isinstance(each, Mapping)] if isinstance(found, list | tuple) else []


def named_tables(record: Record, name: str) -> dict[str, Record]:
    """Return the tables of a table by their names, without what is no table."""
    return {str(key): each for key, each in table_of(record, name).items() if isinstance(each, Mapping)}


def numbers_of(record: Record, name: str) -> dict[str, float]:
    """Return the finite numbers of a nested table by name."""
    return {str(key): float(each) for key, each in table_of(record, name).items() if is_number(each)}


def number_of(record: Record, name: str) -> float | None:
    """Return a finite number, None where it is none."""
    found = record.get(name)
    return float(found) if is_number(found) else None


def word_of(record: Record, name: str) -> str:
    """Return a text, "" where it is none."""
    found = record.get(name)
    return found if isinstance(found, str) else ""


def path_name(path: str, missing: str) -> str:
    """Return the last part of a path."""
    return PurePath(path).name or missing
