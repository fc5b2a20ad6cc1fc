"""Spans: strict and partial F1."""

from __future__ import annotations

from collections.abc import Sequence

from chinchilla_lm.metrics.measures import Measures


def measure_tagging(predicted_tags: Sequence[Sequence[str]], gold_tags: Sequence[Sequence[str]]) -> Measures:
    """IOB2 tags a row. Primary: f1 (seqeval strict, micro); also precision, recall, partial_f1, type_f1, exact_f1, token_accuracy."""
    raise NotImplementedError
