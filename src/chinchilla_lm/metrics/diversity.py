"""Free text: loss, perplexity, distinct-n, repetition."""

from __future__ import annotations

from collections.abc import Sequence

from chinchilla_lm.metrics.measures import Measures


def measure_losses(
    loss_sums_n: Sequence[float], targets_n: Sequence[int], utf8_bytes_n: Sequence[int] | None = None
) -> Measures:
    """Loss of n rows (sum in nats, target tokens). Primary: loss (lower is better); also perplexity, bits_per_byte."""
    raise NotImplementedError


def measure_text(predicted: Sequence[str], language: str = "en") -> Measures:
    """Primary: distinct_2; also distinct_1, distinct_3, repetition, length. Join to others with `measures.merge`."""
    raise NotImplementedError
