"""Labels: accuracy, F1, MCC and calibration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chinchilla_lm.metrics.measures import Measures


def measure_classification(
    predicted: Sequence[str], gold: Sequence[str], labels: Sequence[str], probabilities: Any = None
) -> Measures:
    """One label a row. probabilities: (n, len(labels)). Primary: accuracy; also macro_f1, micro_f1, mcc, ece, brier, nll."""
    raise NotImplementedError


def measure_multilabel(
    predicted: Sequence[Sequence[str]], gold: Sequence[Sequence[str]], labels: Sequence[str], probabilities: Any = None
) -> Measures:
    """A set of labels a row. probabilities: (n, len(labels)). Primary: micro_f1; also macro_f1, example_f1, exact_match."""
    raise NotImplementedError


def measure_choices(predicted: Sequence[int], gold: Sequence[int]) -> Measures:
    """Multiple choice. Primary: accuracy."""
    raise NotImplementedError
