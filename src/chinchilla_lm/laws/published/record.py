"""What a published row holds, and how a row is found."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from chinchilla_lm.core.errors import PlanError
from chinchilla_lm.laws.forms.record import AnyLaw

Row = TypeVar("Row")


@dataclass(frozen=True, kw_only=True)
class PublishedLaw:
    """A law as its authors gave it.

    Attributes:
        name: what `--law` takes.
        law: the constants; `law.params_convention` says which weights N counts.
        source: paper and table.
        largest_flops: training FLOPs of the largest run behind it, or None where the source does not say.
        note: what surprises a reader, or "".
    """

    name: str
    law: AnyLaw
    source: str
    largest_flops: float | None = None
    note: str = ""


def row_named(name: str, rows: Mapping[str, Row], *, kind: str, otherwise: str = "") -> Row:
    """Look a row up; case does not matter.

    Args:
        name: such as "besiroglu2024".
        rows: by name.
        kind: what they are, for the message.
        otherwise: what else may be done, for the message.

    Raises:
        PlanError: an unknown name; the message holds the nearest one.
    """
    row = rows.get(name.strip().lower())
    if row is not None:
        return row
    near = difflib.get_close_matches(name.strip().lower(), rows, n=1, cutoff=0.3)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise PlanError(f"{kind} {name!r} is unknown; {hint}choose from {', '.join(rows)}{otherwise}")
