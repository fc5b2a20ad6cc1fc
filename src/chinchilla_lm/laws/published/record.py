"""What a published row holds."""

from __future__ import annotations

from dataclasses import dataclass

from chinchilla_lm.laws.forms.record import AnyLaw


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
