"""One row of a stranger's file: its fields by any of their usual names, checked, with errors that name the row."""

from __future__ import annotations

import ast
import json
import re
import unicodedata
from collections.abc import Collection, Mapping
from typing import Any

from chinchilla_lm.core.errors import DataError

Row = dict[str, Any]
_LONGEST_NUMBER = 18  # digits of a whole number in a cell; Python refuses to read thousands
# Escapes in JSON can make surrogates, and UTF-8 cannot hold them.
_SURROGATE = re.compile("[\ud800-\udfff]")


class Fields:
    """A row with what is known of it: how its columns are called, where it is, and whether it must be labelled.

    Attribute `filled`: columns that some row of the file fills.
    """

    def __init__(
        self,
        row: Row,
        columns: Mapping[str, str],
        place: str,
        is_labelled: bool = True,
        filled: Collection[str] = (),
    ) -> None:
        self.row, self.columns, self.place, self.is_labelled = row, columns, place, is_labelled
        self.filled = filled

    def is_mapped(self, name: str) -> bool:
        """Say whether the user named this canonical field's column."""
        return name in self.columns

    def has(self, *names: str) -> bool:
        """Say whether the row has all of these fields, and not as null."""
        return all(self.row.get(name) is not None for name in names)

    def value(self, name: str, *usual: str) -> Any:
        """Return a field's value: of the column that the user named, else the first of the usual names that is there.

        Args:
            name: canonical.
            usual: names to look for; the canonical one by default.

        Raises:
            DataError: none is there, or the one that other rows fill is null here: the next usual name may be another
                thing.
        """
        if name in self.columns:
            wanted = self.columns[name]
            if "+" in wanted and wanted not in self.row:
                return "\n".join(self.as_text(self._at(part.strip(), name), part) for part in wanted.split("+"))
            return self._at(wanted, name)
        for candidate in usual or (name,):
            if self.row.get(candidate) is not None:
                return self.row[candidate]
            if candidate in self.row and candidate in self.filled:
                raise DataError(
                    f"{self.place}: {candidate!r} is null, as it is not in other rows; correct or delete it"
                )
        raise DataError(
            f"{self.place} has no field {name!r} among {self._names()}; name the column that holds it: {name}=COLUMN"
        )

    def text(self, name: str, *usual: str) -> str:
        """Return a text that is not blank (see `value`)."""
        return self.as_text(self.value(name, *usual), name)

    def texts(self, name: str, *usual: str) -> list[str]:
        """Return a list of texts, none of them empty; a cell of a table may hold it as JSON."""
        value = self.value(name, *usual)
        if isinstance(value, str):
            value = self.parse_list(value, name)
        if not isinstance(value, list) or not value:
            raise DataError(f'{self.place}: {name!r} is {_short(value)}, not a list of texts; write ["...", "..."]')
        return [self.as_text(entry, name) for entry in value]

    def as_text(self, value: Any, name: str) -> str:
        """Return a value that must be text and not blank."""
        if not isinstance(value, str):
            raise DataError(f"{self.place}: {name!r} is {_short(value)}, not text; write it in quotation marks")
        if not value.strip():
            raise DataError(f"{self.place}: {name!r} is blank; give it text, or delete the row")
        return _SURROGATE.sub("\ufffd", value)

    def as_label(self, value: Any, name: str) -> str:
        """Return a label as text: whole numbers and truth values by their name, letters composed (NFC)."""
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
            return str(int(value))  # a column of numbers of which one is missing is one of floats
        return unicodedata.normalize("NFC", self.as_text(value, name).strip())

    def as_number(self, value: Any, name: str) -> int:
        """Return a whole number; a cell of a table may hold it as text."""
        if isinstance(value, str) and value.strip().isdecimal() and len(value) <= _LONGEST_NUMBER:
            return int(value)
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise DataError(f"{self.place}: {name!r} is {_short(value)}, not a whole number; correct or delete the row")
        return value

    def parse_list(self, value: str, name: str) -> Any:
        """Return the list that a cell of a table holds as JSON or as Python writes it."""
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            pass
        try:
            return ast.literal_eval(value)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            raise DataError(f'{self.place}: {name!r} is {_short(value)}, not a list; write ["...", "..."]') from None

    def _at(self, column: str, name: str) -> Any:
        if self.row.get(column) is None:
            raise DataError(
                f"{self.place} has no column {column!r} (for {name!r}) among {self._names()}; correct its name"
            )
        return self.row[column]

    def _names(self) -> str:
        names = ", ".join(map(repr, list(self.row)[:10]))
        return names or "no fields"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
