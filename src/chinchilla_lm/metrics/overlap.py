"""Translations and summaries: BLEU, chrF, ROUGE."""

from __future__ import annotations

from collections.abc import Sequence

from chinchilla_lm.metrics.measures import Measures


def measure_translation(
    predicted: Sequence[str], references: Sequence[str] | Sequence[Sequence[str]], language: str = "en"
) -> Measures:
    """language: of the target. Primary: bleu (0 to 100); also chrf (0 to 100)."""
    raise NotImplementedError


def measure_summary(
    predicted: Sequence[str], references: Sequence[str] | Sequence[Sequence[str]], language: str = "en"
) -> Measures:
    """Primary: rouge_l; also rouge_1, rouge_2, all F1 in [0, 1], the best of the references; Chinese on characters."""
    raise NotImplementedError
