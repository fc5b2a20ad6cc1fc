"""Intervals and paired tests by drawing the rows of a test set again (the bootstrap), and McNemar's test.

Symbols: n rows, u distinct rows, k statistics, d draws.
Rows are drawn with replacement; for a paired difference both models get the same draw. Rows with equal statistics are
drawn together by one multinomial, which is the same distribution: an interval of accuracy costs milliseconds.
What it does not know: rows that depend on each other (the questions of one paragraph) make intervals too narrow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from chinchilla_lm.metrics.measures import Floats, Formula, Measures

# Koehn 2004 draws 1,000; ten times as many bring the Monte-Carlo error of a p-value of .05 to .002.
DRAWS = 10_000
# Below so many discordant rows the normal approximation of McNemar's test is poor (Dietterich 1998 and most textbooks).
LEAST_DISCORDANT = 25
# A draw by multinomial costs one binomial a distinct row, some 8 times a drawn row (measured 2026-11-22).
_BINOMIAL_COST = 8
_BLOCK_NUMBERS = 1 << 21


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """After minus before of one value on the same rows."""

    name: str
    difference: float
    low: float
    high: float
    level: float
    p_value: float
    """Two-sided, of no difference: the level at which the interval just touches 0."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class McNemar:
    """Rows that only one of two models has right."""

    only_before: int
    only_after: int
    statistic: float | None
    """Chi-square with continuity correction; None for the exact test."""
    p_value: float
    is_exact: bool


def interval(
    measures: Measures, level: float = 0.95, draws: int = DRAWS, seed: int = 0, name: str | None = None
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a value.

    Args:
        measures: of at least one row, with counts.
        level: of confidence, in (0, 1).
        draws: bootstrap draws.
        seed: of the draws.
        name: which value, one of `measures.formulas`; the primary by default.

    Returns:
        (low, high) in the value's unit.

    Source: Efron and Tibshirani 1993, section 13.3.
    """
    formula, counts_nk = _statistics(measures, name or measures.primary)
    drawn_d = np.concatenate([formula.compute(sums_dk) for sums_dk in draw_sums(counts_nk, draws, seed)])
    low, high = np.quantile(drawn_d, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_difference(
    before: Measures,
    after: Measures,
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
    name: str | None = None,
) -> PairedDifference:
    """Say how much a value changed on the same rows, and how sure that is.

    Args:
        before: measures of the first model's predictions.
        after: measures of the second's, on the same rows in the same order.
        level: of confidence.
        draws: bootstrap draws.
        seed: of the draws.
        name: which value; before's primary by default.

    Returns:
        The difference with its percentile interval and two-sided p-value (Koehn 2004; Efron and Tibshirani 1993,
        section 15.4), at least 1 / (draws + 1).
    """
    name = name or before.primary
    first, before_nk = _statistics(before, name)
    second, after_nk = _statistics(after, name)
    assert len(before_nk) == len(after_nk), f"{len(before_nk)} rows before, {len(after_nk)} after"
    width = before_nk.shape[1]
    blocks = []
    for sums_dk in draw_sums(np.concatenate((before_nk, after_nk), axis=1), draws, seed):
        blocks.append(second.compute(sums_dk[:, width:]) - first.compute(sums_dk[:, :width]))
    drawn_d = np.concatenate(blocks)
    low, high = np.quantile(drawn_d, [(1 - level) / 2, (1 + level) / 2])
    tail = min(np.count_nonzero(drawn_d <= 0), np.count_nonzero(drawn_d >= 0))
    return PairedDifference(
        name=name,
        difference=after.values[name] - before.values[name],
        low=float(low),
        high=float(high),
        level=level,
        p_value=min(1.0, 2 * (tail + 1) / (draws + 1)),
    )


def mcnemar(correct_before_n: Sequence[bool], correct_after_n: Sequence[bool]) -> McNemar:
    """Test whether two models are right equally often, by the rows that only one has right.

    Args:
        correct_before_n: of each row, whether the first model is right.
        correct_after_n: the second, on the same rows.

    Returns:
        The counts and the p-value: binomial below 25 discordant rows, chi-square with continuity correction above.

    Source: McNemar 1947; Edwards 1948 (correction).
    """
    before, after = np.asarray(correct_before_n, dtype=bool), np.asarray(correct_after_n, dtype=bool)
    assert before.shape == after.shape, f"{before.shape} before, {after.shape} after"
    from scipy import stats  # 0.5 s, and `import chinchilla_lm` must not wait for it

    only_before, only_after = int(np.sum(before & ~after)), int(np.sum(after & ~before))
    discordant = only_before + only_after
    if discordant < LEAST_DISCORDANT:
        p_value = float(stats.binomtest(only_before, discordant).pvalue) if discordant else 1.0
        statistic = None
    else:
        statistic = (max(abs(only_before - only_after) - 1, 0)) ** 2 / discordant
        p_value = float(stats.chi2.sf(statistic, 1))
    return McNemar(
        only_before=only_before,
        only_after=only_after,
        statistic=statistic,
        p_value=p_value,
        is_exact=statistic is None,
    )


def draw_sums(counts_nk: Floats, draws: int, seed: int) -> Iterator[Floats]:
    """Draw n of n rows with replacement, `draws` times, and sum them.

    Args:
        counts_nk: one row of statistics a row.
        draws: how often.
        seed: of the draws.

    Yields:
        Sums (some of the d, k), all draws in order.
    """
    generator = np.random.default_rng(seed)
    rows = len(counts_nk)
    assert rows, "no rows to draw from"
    counts_uk, times_u = np.unique(counts_nk, axis=0, return_counts=True)
    is_grouped = len(counts_uk) * _BINOMIAL_COST < rows
    block = max(1, _BLOCK_NUMBERS // (len(counts_uk) if is_grouped else rows))
    for start in range(0, draws, block):
        size = min(block, draws - start)
        if is_grouped:
            yield generator.multinomial(rows, times_u / rows, size=size) @ counts_uk
            continue
        drawn = generator.integers(rows, size=(size, rows)) + rows * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * rows).reshape(size, rows) @ counts_nk


def _statistics(measures: Measures, name: str) -> tuple[Formula, Floats]:
    """Return a value's formula and the columns that it reads."""
    assert name in measures.formulas, f"{name} has no formula: {list(measures.formulas)}"
    assert measures.counts_nk is not None, f"{name} has a formula and no counts"
    formula = measures.formulas[name]
    return formula, measures.counts_nk[:, list(formula.columns)]
