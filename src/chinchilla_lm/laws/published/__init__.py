"""Laws that others published, by name, with what their N counts and where they come from.

A published law's loss holds for its own text and tokenizer only; its size and tokens travel better than its loss.
Nothing here corrects a source: where a paper contradicts itself, the note says so. Constants that no source at hand
confirmed are left out: Krajewski et al. 2024 on fine-grained experts, and the power law of batch sizes known only as
an exponent.
"""

from __future__ import annotations

from chinchilla_lm.laws.published.allocations import ALLOCATIONS
from chinchilla_lm.laws.published.loss_laws import LOSS_LAWS
from chinchilla_lm.laws.published.record import PublishedLaw, row_named

__all__ = ["PUBLISHED_LAWS", "PublishedLaw", "published_law"]

PUBLISHED_LAWS = {row.name: row for row in (*LOSS_LAWS, *ALLOCATIONS)}


def published_law(name: str) -> PublishedLaw:
    """Look a law up.

    Args:
        name: such as "besiroglu2024"; case does not matter.

    Returns:
        The law and its source.

    Raises:
        PlanError: an unknown name; the message holds the nearest one.
    """
    return row_named(name, PUBLISHED_LAWS, kind="law", otherwise=", or give a law.json")
