"""Which column of a CSV file holds what, and in which unit: names that people use, and units that are stated.

A unit is never guessed from the size of the numbers: it stands in the header (`tokens (B)`, `params_millions`) or is
given. It reads no file.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from chinchilla_lm.core.errors import DataError

Duplicates = Literal["refuse", "keep", "drop"]

# Lower case; the first is the name that DESIGN gives.
ALIASES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "params": ("n_params", "params", "parameters", "n", "model_size", "params_matmul", "num_params"),
        "tokens": ("n_tokens", "tokens", "d", "num_tokens", "training_tokens", "train_tokens"),
        "flops": ("flops", "c", "compute", "training_flops", "train_flops"),
        "loss": ("loss", "l", "final_loss", "val_loss", "validation_loss", "eval_loss"),
        "unique_tokens": ("n_unique_tokens", "unique_tokens", "u"),
        "run": ("run", "run_id", "run_name"),
        "step": ("step", "steps"),
    }
)
REQUIRED = ("params", "tokens", "loss")
TEXT = ("run",)
SIX_N_D = "6nd"  # instead of a column of flops

_COUNT_UNITS = {
    "1": 1.0, "k": 1e3, "thousand": 1e3, "thousands": 1e3, "m": 1e6, "million": 1e6, "millions": 1e6,
    "b": 1e9, "g": 1e9, "billion": 1e9, "billions": 1e9, "t": 1e12, "trillion": 1e12, "trillions": 1e12,
}  # fmt: skip
# A petaFLOP/s-day is 1e15 * 86400 FLOPs (Kaplan et al. 2020).
_FLOPS_UNITS = {
    "flop": 1.0, "flops": 1.0, "gflop": 1e9, "gflops": 1e9, "tflop": 1e12, "tflops": 1e12, "pflop": 1e15,
    "pflops": 1e15, "eflop": 1e18, "eflops": 1e18, "zflop": 1e21, "zflops": 1e21, "pf-days": 8.64e19,
    "pf-day": 8.64e19, "pfs-days": 8.64e19, "petaflop-days": 8.64e19,
}  # fmt: skip
_LOSS_UNITS = {"nats": 1.0, "nat": 1.0, "bits": math.log(2), "bit": math.log(2)}
UNITS: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "params": _COUNT_UNITS,
        "tokens": _COUNT_UNITS,
        "unique_tokens": _COUNT_UNITS,
        "flops": {**_COUNT_UNITS, **_FLOPS_UNITS},
        "loss": _LOSS_UNITS,
    }
)
_SHOWN_UNITS = {"flops": "1, B, T, PFLOP, EFLOP or PF-days", "loss": "nats or bits"}
_IN_BRACKETS = re.compile(r"(.*?)\s*[(\[]\s*(?:in\s+)?([\w-]+)\s*[)\]]")
_BEHIND_NAME = re.compile(r"(.{2,}?)(?:[_ ]in)?[_ ](thousands?|millions?|billions?|trillions?|[mbt])")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a file's reader is told beyond the file.

    Attributes:
        columns: the file's own name for any of params, tokens, flops, loss, unique_tokens, run and step; "6ND" for
            flops takes 6 * params * tokens.
        units: of params, tokens, unique_tokens and flops ("M", "B", "PF-days", "1" for plain numbers) and of loss.
        where: COLUMN=VALUE pairs that a row must have to be read.
        duplicates: what becomes of a line that repeats another exactly.
        tokens_per_step: reads tokens from the column of steps, in which a file without tokens counts them.
    """

    columns: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    units: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    where: Sequence[str] = ()
    duplicates: Duplicates = "refuse"
    tokens_per_step: float | None = None


@dataclass(frozen=True, kw_only=True)
class Column:
    """Where a quantity stands: its `place` in a row, the `name` in the header, and what one of its numbers counts."""

    place: int
    name: str
    scale: float = 1.0


def find_columns(header: Sequence[str], layout: Layout, path: Path) -> tuple[dict[str, Column], list[str]]:
    """Find every column and its unit.

    Args:
        header: names as in the file.
        layout: what was stated beside it.
        path: for the message.

    Returns:
        Columns by quantity, and a sentence for each unit that the header states.

    Raises:
        DataError: a missing or doubled column, an unknown unit, or units that contradict each other.
    """
    found: dict[str, Column] = {}
    notes: list[str] = []
    for quantity in ALIASES:
        column = _find(quantity, header, layout, path)
        if column is None:
            continue
        given = layout.units.get(quantity)
        stated = _stated_unit(quantity, column.name, own_name=layout.columns.get(quantity))
        if given is not None:
            scale = _scale(quantity, given)
            if stated is not None and scale != _scale(quantity, stated):
                raise DataError(
                    f"{path}: the header {column.name!r} and --{_option(quantity)}-unit {given} disagree; "
                    "leave out one of them"
                )
        else:
            scale = 1.0 if stated is None else _scale(quantity, stated)
        if stated is not None and scale != 1:
            notes.append(f"{quantity}: each number counts {scale:.3g}, as its header {column.name!r} says")
        found[quantity] = Column(place=column.place, name=column.name, scale=scale)
    if layout.tokens_per_step is not None and "tokens" in found:
        raise DataError(
            f"{path} has tokens in column {found['tokens'].name!r}; leave out --tokens-per-step, or rename the column"
        )
    if "tokens" not in found:
        found["tokens"] = _tokens_by_step(found, header, layout, path)
    return found, notes


def places_of_conditions(header: Sequence[str], layout: Layout, path: Path) -> list[tuple[int, str]]:
    """Return (place, value) of each COLUMN=VALUE of the layout.

    Raises:
        DataError: a condition that is not of this kind, or names no column.
    """
    conditions: list[tuple[int, str]] = []
    for text in layout.where:
        name, is_pair, value = text.partition("=")
        if not is_pair or not name.strip():
            raise DataError(f"--where {text!r} is no condition; write COLUMN=VALUE, such as split=final")
        conditions.append((_place_of(name, header, path, f"--where {text}"), value.strip()))
    return conditions


def _find(quantity: str, header: Sequence[str], layout: Layout, path: Path) -> Column | None:
    own_name = layout.columns.get(quantity)
    if own_name is not None:
        if quantity == "flops" and own_name.strip().lower() == SIX_N_D:
            return None
        place = _place_of(own_name, header, path, f"--{_option(quantity)}-column")
        return Column(place=place, name=header[place])
    # Each heading's plain name and, where it states a unit, the name without it.
    bare = [_split_unit(name)[0] for name in header]
    for alias in ALIASES[quantity]:
        places = [place for place, name in enumerate(bare) if name == alias]
        if len(places) > 1:
            names = ", ".join(repr(header[place]) for place in places)
            raise DataError(f"{path} has {len(places)} columns named {alias!r} ({names}); rename all but one")
        if places:
            return Column(place=places[0], name=header[places[0]])
    if quantity not in REQUIRED or (quantity == "tokens" and layout.tokens_per_step is not None):
        return None
    raise _missing(quantity, header, path)


def _missing(quantity: str, header: Sequence[str], path: Path) -> DataError:
    lower = [name.lower() for name in header]
    near = [
        match
        for alias in ALIASES[quantity]
        if len(alias) > 1
        for match in difflib.get_close_matches(alias, lower, n=1, cutoff=0.6)
    ]
    hint = f"did you mean {header[lower.index(near[0])]!r}? " if near else ""
    steps = ", or count steps with --tokens-per-step 524288" if quantity == "tokens" and "step" in lower else ""
    return DataError(
        f"{path} has no column {ALIASES[quantity][0]!r} for {quantity}; {hint}rename it, or name it with "
        f"--{_option(quantity)}-column{steps} (it has {_one_line(', '.join(header))})"
    )


def _tokens_by_step(found: Mapping[str, Column], header: Sequence[str], layout: Layout, path: Path) -> Column:
    assert layout.tokens_per_step is not None
    if "step" not in found:
        raise DataError(
            f"{path} has no column 'step' for --tokens-per-step; leave it out, or name the column with --step-column "
            f"(it has {_one_line(', '.join(header))})"
        )
    return Column(place=found["step"].place, name=found["step"].name, scale=layout.tokens_per_step)


def _place_of(name: str, header: Sequence[str], path: Path, option: str) -> int:
    lower = [heading.lower() for heading in header]
    wanted = name.strip().lower()
    if lower.count(wanted) > 1:
        raise DataError(f"{path} has {lower.count(wanted)} columns named {name.strip()!r}; rename all but one")
    if wanted in lower:
        return lower.index(wanted)
    near = difflib.get_close_matches(wanted, lower, n=1, cutoff=0.5)
    hint = f"did you mean {header[lower.index(near[0])]!r}? " if near else ""
    raise DataError(
        f"{path} has no column {name.strip()!r}, which {option} names; {hint}it has {_one_line(', '.join(header))}"
    )


def _split_unit(name: str) -> tuple[str, str | None]:
    """Return a heading's lower-case name and the unit that it states: `tokens (B)`, `params_millions`, `N [M]`."""
    lower = name.strip().lower()
    for pattern in (_IN_BRACKETS, _BEHIND_NAME):
        match = pattern.fullmatch(lower)
        if match is not None and _is_known(match[1].strip(), match[2]):
            return match[1].strip(), match[2]
    return lower, None


def _is_known(name: str, unit: str) -> bool:
    return any(name in aliases and unit in UNITS.get(quantity, {}) for quantity, aliases in ALIASES.items())


def _stated_unit(quantity: str, name: str, own_name: str | None) -> str | None:
    unit = _split_unit(name)[1]
    if unit is None and own_name is not None:
        match = _IN_BRACKETS.fullmatch(name.strip().lower())
        unit = match[2] if match is not None and match[2] in UNITS.get(quantity, {}) else None
    return unit


def _scale(quantity: str, unit: str) -> float:
    scale = UNITS[quantity].get(unit.strip().lower())
    if scale is None:
        shown = _SHOWN_UNITS.get(quantity, "1, k, M, B or T")
        raise DataError(f"--{_option(quantity)}-unit {unit!r} is unknown; write {shown}")
    return scale


def _option(quantity: str) -> str:
    return quantity.replace("_", "-")


def _one_line(text: str, most: int = 300) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[:most] + " ..."
