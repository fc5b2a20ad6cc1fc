"""Answers: exact match and F1 of SQuAD and of CMRC 2018."""

from __future__ import annotations

from collections.abc import Sequence

from chinchilla_lm.metrics.measures import Measures


def measure_answers(
    predicted_texts: Sequence[str], gold_answer_lists: Sequence[Sequence[str]], language: str = "en"
) -> Measures:
    """An answer text a row ("" = no answer; an empty gold list = none). Primary: f1; also exact_match; both in [0, 1]."""
    raise NotImplementedError
