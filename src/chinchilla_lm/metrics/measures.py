"""What every task's measure returns: values, and enough of each row to draw rows again.

Symbols: n rows of a test set, k sufficient statistics a row, d bootstrap draws.
A measure such as F1 or BLEU is no mean over rows, but a function of sums over rows: `counts_nk` holds what is summed, a
formula turns sums into the value. Drawing rows again is then a matrix product, not a second run of the library.
It never reads files, draws or trains.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Formula:
    """A value from sums of rows; which columns it reads is said, so that the rest need not be summed."""

    columns: tuple[int, ...]
    compute: Callable[[Floats], Floats]
    """Sums of those columns (..., len(columns)) -> values (...)."""

    def __call__(self, sums: Floats) -> Floats:
        """Return the values from sums (..., k) of all columns."""
        return self.compute(sums[..., list(self.columns)])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measures:
    """The measures of one set of predictions, rows in the order of the test set."""

    values: dict[str, float]
    """By name, in [0, 1] unless the measure says another unit (sacreBLEU: 0 to 100; loss: nats; perplexity)."""
    primary: str
    """The key of `values` that early stopping, search and the paired test look at."""
    higher_is_better: bool = True
    """Of the primary."""
    scores_n: tuple[float, ...] | None = None
    """One number a row whose mean is the primary, or approximates it (a row's own F1, chrF)."""
    counts_nk: Floats | None = None
    """What is summed over rows; None where rows cannot be drawn again."""
    formulas: Mapping[str, Formula] = dataclasses.field(default_factory=dict)
    """By name in `values`: how it follows from sums of rows of `counts_nk`."""
    per_class: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    """By class: precision, recall, f1 and support, or what the task has in their place."""

    @property
    def value(self) -> float:
        """The primary value."""
        return self.values[self.primary]

    @property
    def from_counts(self) -> Formula | None:
        """The primary's formula, or None."""
        return self.formulas.get(self.primary)

    def as_record(self) -> dict[str, Any]:
        """Return what a record holds: values, primary, higher_is_better and per_class, plain and finite (nan: None)."""
        per_class = {name: _finite(row) for name, row in self.per_class.items()}
        return {
            "values": _finite(self.values),
            "primary": self.primary,
            "higher_is_better": self.higher_is_better,
            "per_class": per_class,
        }


def merge(first: Measures, *others: Measures) -> Measures:
    """Join measures of the same rows; the first one's primary, row scores and classes stay.

    Args:
        first: whose primary counts.
        others: of the same number of rows; names that are already there are left out.

    Returns:
        One record with all values and formulas.
    """
    values, formulas, counts = dict(first.values), dict(first.formulas), first.counts_nk
    for other in others:
        for name, value in other.values.items():
            if name in values:
                continue
            values[name] = value
            if name in other.formulas and other.counts_nk is not None:
                offset = 0 if counts is None else counts.shape[1]
                formula = other.formulas[name]
                formulas[name] = Formula(tuple(place + offset for place in formula.columns), formula.compute)
        if other.counts_nk is not None:
            assert counts is None or len(counts) == len(other.counts_nk), "measures of different rows"
            counts = other.counts_nk if counts is None else np.concatenate((counts, other.counts_nk), axis=1)
    return dataclasses.replace(first, values=values, formulas=formulas, counts_nk=counts)


def mean_of(scores_by_name: Mapping[str, Sequence[float]], primary: str, higher_is_better: bool = True) -> Measures:
    """Return the measures that are plain means of a score a row.

    Args:
        scores_by_name: n scores for each name.
        primary: one of the names.
        higher_is_better: of the primary.
    """
    columns = [np.asarray(scores, dtype=np.float64) for scores in scores_by_name.values()]
    counts_nk = np.stack([*columns, np.ones(len(columns[0]))], axis=1)
    formulas = {name: ratio_of(place, len(columns)) for place, name in enumerate(scores_by_name)}
    sums_k = counts_nk.sum(axis=0)
    return Measures(
        values={name: float(formula(sums_k)) for name, formula in formulas.items()},
        primary=primary,
        higher_is_better=higher_is_better,
        scores_n=tuple(float(score) for score in scores_by_name[primary]),
        counts_nk=counts_nk,
        formulas=formulas,
    )


def ratio_of(above: int, below: int) -> Formula:
    """Return the formula sums[above] / sums[below], 0 where the divisor is 0."""
    return Formula((above, below), lambda sums: divide(sums[..., 0], sums[..., 1]))


def divide(above: npt.ArrayLike, below: npt.ArrayLike) -> Floats:
    """Return above / below, and 0 where below is 0 (the convention of scikit-learn and seqeval)."""
    top, bottom = np.broadcast_arrays(np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64))
    return np.divide(top, bottom, out=np.zeros(top.shape), where=bottom != 0)


def f1_of(hits: npt.ArrayLike, predicted: npt.ArrayLike, gold: npt.ArrayLike) -> Floats:
    """Return 2 hits / (predicted + gold), 0 where there is neither."""
    return divide(2 * np.asarray(hits, dtype=np.float64), np.asarray(predicted) + np.asarray(gold))


def _finite(numbers: Mapping[str, float]) -> dict[str, Any]:
    return {name: float(number) if np.isfinite(number) else None for name, number in numbers.items()}
