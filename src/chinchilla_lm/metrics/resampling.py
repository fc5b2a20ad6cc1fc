"""Intervals and paired tests by drawing rows again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from chinchilla_lm.metrics.measures import Measures


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """After minus before of one value on the same rows."""

    name: str
    difference: float
    low: float
    high: float
    level: float
    p_value: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class McNemar:
    """Rows that only one of two models has right."""

    only_before: int
    only_after: int
    statistic: float | None
    p_value: float
    is_exact: bool


def interval(
    measures: Measures, level: float = 0.95, draws: int = 10_000, seed: int = 0, name: str | None = None
) -> tuple[float, float]:
    """Percentile bootstrap interval of the primary value, or of the value `name`."""
    raise NotImplementedError


def paired_difference(
    before: Measures, after: Measures, level: float = 0.95, draws: int = 10_000, seed: int = 0, name: str | None = None
) -> PairedDifference:
    """Paired bootstrap of after - before."""
    raise NotImplementedError


def mcnemar(correct_before_n: Sequence[bool], correct_after_n: Sequence[bool]) -> McNemar:
    """McNemar's test; exact below 25 discordant rows."""
    raise NotImplementedError
