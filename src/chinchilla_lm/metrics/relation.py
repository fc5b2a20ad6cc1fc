"""Relations: SemEval-2010 task 8's macro F1."""

from __future__ import annotations

from collections.abc import Sequence

from chinchilla_lm.metrics.measures import Measures


def measure_relation(predicted: Sequence[str], gold: Sequence[str], negative: str | None = None) -> Measures:
    """One relation a row. negative: the label of no relation (default: Other, no_relation, NA, ... found in gold). Primary: macro_f1; also micro_f1, accuracy."""
    raise NotImplementedError
