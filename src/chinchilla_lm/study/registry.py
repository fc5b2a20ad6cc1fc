"""The durable list of a sweep's trials: what was asked, what is done. One writer, the controller.

SQLite in WAL mode with full synchronisation: a kill at any instant loses no finished trial, and none is run twice.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from chinchilla_lm.core.errors import DataError
from chinchilla_lm.core.files import free_bytes
from chinchilla_lm.core.units import format_bytes

_SCHEMA_VERSION = 1
_PRIMARY_CODE = 0xFF  # of SQLite's extended error codes, such as SQLITE_IOERR_SHMSIZE
_SHARED_MEMORY_BYTES = 1 << 16  # more than the file beside the registry that WAL begins with (32 KiB)
_TABLE = """CREATE TABLE IF NOT EXISTS trial (
    name TEXT PRIMARY KEY, spec TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, result TEXT)"""


class Registry:
    """Trials by name, each with its spec and, when finished, its result."""

    def __init__(self, path: Path) -> None:
        """Opens the registry, or makes it.

        Raises:
            DataError: the file is no registry of this version.
        """
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._transaction() as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, _SCHEMA_VERSION):
                raise DataError(
                    f"{path} has registry version {version}, not {_SCHEMA_VERSION}; use a new run directory"
                )
            connection.execute(_TABLE)
            connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")

    def result(self, name: str, spec: dict[str, Any]) -> dict[str, Any] | None:
        """Return a finished trial's result, or None; a trial of that name with another spec is an error.

        What the stored spec holds beyond this one does not count.

        Raises:
            DataError: the name was used for another spec.
        """
        with self._transaction() as connection:
            row = connection.execute("SELECT spec, result FROM trial WHERE name = ?", (name,)).fetchone()
        if row is None:
            return None
        stored = json.loads(row[0])
        if any(name not in stored or stored[name] != value for name, value in json.loads(_plain(spec)).items()):
            raise DataError(f"{self._path}: trial {name!r} was asked for with other settings; use a new run directory")
        return None if row[1] is None else json.loads(row[1])

    def begin(self, name: str, spec: dict[str, Any]) -> int:
        """Note that a trial is started; return how many times it has been."""
        with self._transaction() as connection:
            connection.execute("INSERT OR IGNORE INTO trial (name, spec) VALUES (?, ?)", (name, _plain(spec)))
            connection.execute("UPDATE trial SET attempts = attempts + 1 WHERE name = ?", (name,))
            return connection.execute("SELECT attempts FROM trial WHERE name = ?", (name,)).fetchone()[0]

    def finish(self, name: str, result: dict[str, Any]) -> None:
        """Store a trial's result, durably."""
        with self._transaction() as connection:
            connection.execute("UPDATE trial SET result = ? WHERE name = ?", (_plain(result), name))

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self._path, timeout=30.0)) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")
                with connection:
                    yield connection
        except sqlite3.Error as error:
            raise _explanation(self._path, error) from error


def _explanation(path: Path, error: sqlite3.Error) -> DataError:
    """Only a broken file is worth deleting: the registry is all that knows the finished trials."""
    code = getattr(error, "sqlite_errorcode", 0) & _PRIMARY_CODE
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return DataError(f"{path} cannot be used ({error}); delete the run directory's sweep folder")
    free = free_bytes(path) or 0
    if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and free < _SHARED_MEMORY_BYTES):
        return DataError(f"{path}: the disk is full ({format_bytes(free)} free); free some space, then resume the run")
    return DataError(f"{path} cannot be used ({error}); check the disk and who else uses the run, then resume it")


def _plain(value: dict[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False)
