"""A table of finished runs: read from CSV, checked once, then trusted.

Columns: N `params`, D `tokens`, C `flops`, L `loss` (nats per token), under any of the names people give them.
It refuses rows that are not numbers > 0, and never drops one.
"""

from __future__ import annotations

import csv
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chinchilla_lm.core.errors import DataError
from chinchilla_lm.laws.forms.law import Floats

# Lower case; the first is the name that DESIGN gives.
_ALIASES = {
    "params": ("n_params", "params", "parameters", "n", "model_size", "params_matmul", "num_params"),
    "tokens": ("n_tokens", "tokens", "d", "num_tokens", "training_tokens", "train_tokens"),
    "flops": ("flops", "c", "compute", "training_flops", "train_flops"),
    "loss": ("loss", "l", "final_loss", "val_loss", "validation_loss", "eval_loss"),
}
# 6 N D leaves out attention, and N may count an embedding that costs nothing: published tables differ by up to a third.
_FLOPS_RATIO = (0.6, 1.7)


@dataclass(frozen=True, kw_only=True)
class RunTable:
    """Finished runs as columns.

    Attributes:
        params: N of each run.
        tokens: D of each run.
        flops: C of each run; 6 N D where the file has no such column.
        loss: L of each run, nats per token.
        warnings: what a reader must know, one sentence each.
    """

    params: Floats
    tokens: Floats
    flops: Floats
    loss: Floats
    warnings: tuple[str, ...] = ()


def read_runs(path: Path, columns: Mapping[str, str] | None = None) -> RunTable:
    """Read runs from a CSV file with a header.

    Args:
        path: the file; columns n_params, n_tokens, flops (may be left out) and loss, or common other names for them.
        columns: the file's own name for any of "params", "tokens", "flops" and "loss".

    Returns:
        The runs, all numbers finite and > 0.

    Raises:
        DataError: no such file, a missing or doubled column, a row that is no run; it names the line.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            rows = list(csv.reader(lines))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{path} cannot be read ({reason}); give a CSV file with n_params,n_tokens,loss") from error
    if not rows or not any(rows[0]):
        raise DataError(f"{path} is empty; it needs a header n_params,n_tokens,flops,loss and one line a run")
    header = [name.strip() for name in rows[0]]
    places = {column: _place(column, header, (columns or {}).get(column), path) for column in _ALIASES}
    table: dict[str, list[float]] = {column: [] for column, place in places.items() if place is not None}
    line_numbers: list[int] = []
    for number, row in enumerate(rows[1:], start=2):
        if not any(cell.strip() for cell in row):
            continue
        line_numbers.append(number)
        for column in table:
            table[column].append(_number(row, places[column], column, f"{path}:{number}"))
    if not line_numbers:
        raise DataError(f"{path} has a header and no runs; add one line a run")
    arrays = {column: np.array(values, dtype=np.float64) for column, values in table.items()}
    product = 6.0 * arrays["params"] * arrays["tokens"]
    flops = arrays.get("flops", product)
    warnings = (*_flops_warnings(flops, product, "flops" in arrays), *_repeat_warnings(arrays, line_numbers))
    return RunTable(
        params=arrays["params"], tokens=arrays["tokens"], flops=flops, loss=arrays["loss"], warnings=warnings
    )


def _place(column: str, header: list[str], own_name: str | None, path: Path) -> int | None:
    """Return where a column stands; None for an absent flops."""
    lower = [name.lower() for name in header]
    names = (own_name.strip().lower(),) if own_name is not None else _ALIASES[column]
    for name in names:
        if lower.count(name) > 1:
            raise DataError(f"{path} has {lower.count(name)} columns named {name!r}; rename all but one")
        if name in lower:
            return lower.index(name)
    if column == "flops" and own_name is None:
        return None
    near = difflib.get_close_matches(names[0], lower, n=1, cutoff=0.5)
    hint = f"did you mean {header[lower.index(near[0])]!r}? " if near else ""
    raise DataError(
        f"{path} has no column {names[0]!r} for {column}; {hint}rename it, or name it with --{column}-column "
        f"(it has {_one_line(', '.join(header))})"
    )


def _one_line(text: str, most: int = 300) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[:most] + " ..."


def _number(row: list[str], place: int | None, column: str, where: str) -> float:
    assert place is not None
    text = row[place].strip() if place < len(row) else ""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        shown = repr(text) if text else "nothing"
        raise DataError(f"{where}: {column} is {shown}, and must be a finite number > 0; correct or remove the line")
    return value


def _flops_warnings(flops: Floats, product: Floats, is_given: bool) -> list[str]:
    if not is_given:
        return ["no flops column: 6 * params * tokens stands in for it"]
    ratio = flops / product
    odd = np.flatnonzero((ratio < _FLOPS_RATIO[0]) | (ratio > _FLOPS_RATIO[1]))
    if not len(odd):
        return []
    return [
        f"flops of {len(odd)} of {len(flops)} runs differ from 6 * params * tokens by a factor of up to "
        f"{max(float(ratio[odd].max()), 1 / float(ratio[odd].min())):.3g}; check units and how params are counted"
    ]


def _repeat_warnings(arrays: Mapping[str, Floats], line_numbers: list[int]) -> list[str]:
    first: dict[tuple[float, ...], int] = {}
    repeats: list[str] = []
    for number, run in zip(line_numbers, zip(*arrays.values(), strict=True), strict=True):
        key = tuple(float(value) for value in run)
        if key in first:
            repeats.append(f"{number} (as {first[key]})")
        first.setdefault(key, number)
    if not repeats:
        return []
    shown = ", ".join(repeats[:5]) + (" ..." if len(repeats) > 5 else "")
    return [f"{len(repeats)} lines repeat another exactly and count twice: {shown}; remove them if they are one run"]
