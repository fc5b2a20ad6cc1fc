"""A table of finished runs: read from CSV, checked once, then trusted.

Columns: N `params`, D `tokens`, C `flops`, L `loss` (nats per token), U `unique_tokens`, under any of the names people
give them (`columns`). It refuses rows that are no runs, names the line, and never drops one without saying so.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from chinchilla_lm.core.errors import DataError, UnitError
from chinchilla_lm.core.units import parse_count
from chinchilla_lm.laws.columns import SIX_N_D, TEXT, Column, Duplicates, Layout, find_columns, places_of_conditions
from chinchilla_lm.laws.forms.law import Floats
from chinchilla_lm.laws.task_columns import TaskColumn, find_task_columns

# 6 N D leaves out attention, and N may count an embedding that costs nothing: published tables differ by up to a third.
_FLOPS_RATIO = (0.6, 1.7)
_ODD_RATIO = 10.0  # from the median run's C / 6ND; conventions alone change it by up to 5 between tiny and large models
_UNIT_RATIO = 300.0  # of the median run: no convention, so a thousand or a million is missing somewhere
_FEWEST_PARAMS, _FEWEST_TOKENS = 1e3, 1e4  # of the largest run; below, it is millions or billions that are counted
_LARGEST_LOSS = 13.0  # nats: ln of 442,000 words, above every tokenizer; a model that knows nothing stays below it
_SHOWN_LINES = 5
_COUNTS = ("params", "tokens", "unique_tokens", "flops")


@dataclass(frozen=True, kw_only=True)
class RunTable:
    """Finished runs as columns.

    Attributes:
        params: N of each run.
        tokens: D of each run.
        flops: C of each run; 6 N D where the file has no such column.
        loss: L of each run, nats per token.
        unique_tokens: U of each run, where the file has it.
        labels: name of each run, where the file has it; checkpoints of one run share it.
        lines: of each run in its file; empty where the table was not read from one.
        warnings: what a reader must know, one sentence each.
        tasks: what the runs score on suites, where the file has it.
    """

    params: Floats
    tokens: Floats
    flops: Floats
    loss: Floats
    unique_tokens: Floats | None = None
    labels: tuple[str, ...] | None = None
    lines: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()
    tasks: tuple[TaskColumn, ...] = ()

    def take(self, chosen: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> RunTable:
        """Return some of the runs, by a mask or by places, with the same warnings."""
        places = np.flatnonzero(chosen) if chosen.dtype == np.bool_ else chosen
        return RunTable(
            params=self.params[places],
            tokens=self.tokens[places],
            flops=self.flops[places],
            loss=self.loss[places],
            unique_tokens=None if self.unique_tokens is None else self.unique_tokens[places],
            labels=None if self.labels is None else tuple(self.labels[place] for place in places.tolist()),
            lines=tuple(self.lines[place] for place in places.tolist()) if self.lines else (),
            warnings=self.warnings,
            tasks=tuple(
                replace(task, accuracy_n=task.accuracy_n[places], error_n=task.error_n[places]) for task in self.tasks
            ),
        )


def read_runs(path: Path, layout: Layout | None = None) -> RunTable:
    """Read runs from a CSV file with a header.

    Args:
        path: the file; columns n_params, n_tokens, flops (may be left out) and loss, or common other names for them,
            between commas, semicolons or tabs.
        layout: the file's own names and units; None: common names and plain numbers.

    Returns:
        The runs, all numbers finite and > 0.

    Raises:
        DataError: no such file, a missing or doubled column, a row that is no run; it names the line.
    """
    layout = layout or Layout()
    header, rows = _read_rows(path)
    columns, notes = find_columns(header, layout, path)
    conditions = places_of_conditions(header, layout, path)
    kept = [(line, row) for line, row in rows if _meets(row, conditions)]
    if not kept:
        why = f"no line with {' and '.join(layout.where)}" if rows else "a header and no runs"
        raise DataError(f"{path} has {why}; " + ("check --where" if rows else "add one line a run"))
    if len(kept) < len(rows):
        notes.append(f"{len(rows) - len(kept)} of {len(rows)} lines do not have {' and '.join(layout.where)}: left out")
    lines = tuple(line for line, _ in kept)
    table = _parse(kept, columns, len(header), path)
    product = 6.0 * table["params"] * table["tokens"]
    _check_sizes(table, columns, layout, path)
    if "flops" in columns:
        _check_flops(table["flops"] / product, lines, columns, path)
        notes += _ratio_warnings(table["flops"] / product)
    elif layout.columns.get("flops", "").lower() != SIX_N_D:
        notes.append("no flops column: 6 * params * tokens stands in for it")
    notes += _loss_warnings(table["loss"], lines)
    place = columns.get("run")
    labels = None if place is None else tuple(row[place.place].strip() for _, row in kept)
    tasks, task_notes = find_task_columns(header, kept, path)
    notes += task_notes
    made = RunTable(
        params=table["params"],
        tokens=table["tokens"],
        flops=table.get("flops", product),
        loss=table["loss"],
        unique_tokens=table.get("unique_tokens"),
        labels=labels,
        lines=lines,
        tasks=tasks,
    )
    return _settle_duplicates(made, layout.duplicates, path, notes)


def _read_rows(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the header and (line, cells) of every line that is not empty."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            first = lines.readline()
            lines.seek(0)
            reader = csv.reader(lines, delimiter=_delimiter(first))
            rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{path} cannot be read ({reason}); give a CSV file with n_params,n_tokens,loss") from error
    if not rows:
        raise DataError(f"{path} is empty; it needs a header n_params,n_tokens,flops,loss and one line a run")
    header = [" ".join(name.split()) for name in rows[0][1]]
    if all(_is_float(name) for name in header):
        raise DataError(f"{path} begins with numbers; its first line must be a header such as n_params,n_tokens,loss")
    return header, rows[1:]


def _delimiter(first: str) -> str:
    """Return what separates the cells: the comma, unless the header has none."""
    return next((mark for mark in (",", ";", "\t") if mark in first), ",")


def _meets(row: Sequence[str], conditions: Sequence[tuple[int, str]]) -> bool:
    return all(place < len(row) and row[place].strip() == value for place, value in conditions)


def _parse(
    rows: Sequence[tuple[int, list[str]]], columns: Mapping[str, Column], width: int, path: Path
) -> dict[str, Floats]:
    for line, row in rows:
        if len(row) > width and any(cell.strip() for cell in row[width:]):
            raise DataError(
                f"{path}:{line}: {len(row)} cells under a header of {width}; quote numbers with commas, or remove them"
            )
        if "run" in columns and len(row) <= columns["run"].place:
            raise DataError(f"{path}:{line}: run is nothing, and must name the run; complete or remove the line")
    numbers = {name: column for name, column in columns.items() if name not in TEXT and name != "step"}
    return {
        name: np.array([_number(row, line, (name, column), path) for line, row in rows], dtype=np.float64)
        for name, column in numbers.items()
    }


def _number(row: Sequence[str], line: int, named: tuple[str, Column], path: Path) -> float:
    name, column = named
    text = row[column.place].strip() if column.place < len(row) else ""
    try:
        value = float(text) * column.scale
    except ValueError:
        value = _count_or_nan(text) if name in _COUNTS and column.scale == 1 else math.nan
    if not (math.isfinite(value) and value > 0):
        shown = repr(text[:40]) if text else "nothing"
        remedy = ": write 3.1 with a point" if text.replace(",", "", 1).isdigit() and "," in text else ""
        raise DataError(
            f"{path}:{line}: {name} is {shown}, and must be a finite number > 0; correct or remove the line{remedy}"
        )
    return value


def _count_or_nan(text: str) -> float:
    """Read a cell that states its own unit, such as 70B."""
    try:
        return parse_count(text)
    except UnitError:
        return math.nan


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _check_sizes(table: Mapping[str, Floats], columns: Mapping[str, Column], layout: Layout, path: Path) -> None:
    """Refuse sizes that are no counts, unless their unit was stated."""
    for name, fewest in (("params", _FEWEST_PARAMS), ("tokens", _FEWEST_TOKENS)):
        column = columns[name]
        largest = float(table[name].max())
        if largest < fewest and column.scale == 1 and name not in layout.units:
            raise DataError(
                f"{path}: {name} end at {largest:g}, too few for a language model; say what they count with "
                f"--{name}-unit B or M (1 if they are right)"
            )


def _check_flops(ratio: Floats, lines: Sequence[int], columns: Mapping[str, Column], path: Path) -> None:
    """Refuse compute that is not counted as the sizes are."""
    middle = float(np.median(ratio))
    if not 1 / _UNIT_RATIO < middle < _UNIT_RATIO:
        raise DataError(
            f"{path}: flops of the median run are {middle:.3g} times 6 * params * tokens, so a unit is missing; state "
            "it with --params-unit, --tokens-unit or --flops-unit, or take --flops-column 6ND"
        )
    off = np.abs(np.log(ratio / middle))
    worst = int(off.argmax())
    if off[worst] > math.log(_ODD_RATIO):
        count = int((off > math.log(_ODD_RATIO)).sum())
        more = f" (and {count - 1} more lines)" if count > 1 else ""
        raise DataError(
            f"{path}:{lines[worst]}{more}: flops are {ratio[worst]:.3g} times 6 * params * tokens, and in the median "
            f"run {middle:.3g} times; correct the line, or count all runs by --flops-column 6ND"
        )


def _ratio_warnings(ratio: Floats) -> list[str]:
    odd = np.flatnonzero((ratio < _FLOPS_RATIO[0]) | (ratio > _FLOPS_RATIO[1]))
    if not len(odd):
        return []
    return [
        f"flops of {len(odd)} of {len(ratio)} runs differ from 6 * params * tokens by a factor of up to "
        f"{max(float(ratio[odd].max()), 1 / float(ratio[odd].min())):.3g}; check units and how params are counted"
    ]


def _loss_warnings(loss: Floats, lines: Sequence[int]) -> list[str]:
    high = np.flatnonzero(loss > _LARGEST_LOSS)
    if not len(high):
        return []
    first = int(high[0])
    return [
        f"{len(high)} losses lie above {_LARGEST_LOSS:g} nats per token, where a model knows nothing (line "
        f"{lines[first]}: {loss[first]:.4g}); remove runs that diverged, and take the logarithm of a perplexity"
    ]


def _settle_duplicates(table: RunTable, duplicates: Duplicates, path: Path, notes: list[str]) -> RunTable:
    """Refuse, keep or drop lines that repeat another exactly, and attach the notes."""
    columns = [table.params, table.tokens, table.flops, table.loss]
    columns += [] if table.unique_tokens is None else [table.unique_tokens]
    rows = np.column_stack(columns)
    _, first, inverse = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    is_repeat = first[inverse.reshape(-1)] != np.arange(len(rows))
    repeats = np.flatnonzero(is_repeat)
    if not len(repeats):
        return _noted(table, notes)
    named = [f"{table.lines[place]} (as {table.lines[first[inverse.reshape(-1)[place]]]})" for place in repeats]
    shown = ", ".join(named[:_SHOWN_LINES]) + (" ..." if len(named) > _SHOWN_LINES else "")
    said = f"{len(named)} lines repeat" if len(named) > 1 else "1 line repeats"
    if duplicates == "refuse":
        raise DataError(
            f"{path}:{table.lines[repeats[0]]}: {said} another exactly: {shown}; two runs never "
            "give every digit alike, so remove them, or pass --duplicates drop (keep, if they are runs of their own)"
        )
    if duplicates == "drop":
        return _noted(table.take(~is_repeat), [*notes, f"{said} another exactly: {shown}: left out"])
    return _noted(table, [*notes, f"{said} another exactly, counted twice: {shown}"])


def _noted(table: RunTable, notes: Sequence[str]) -> RunTable:
    return replace(table, warnings=tuple(notes))
