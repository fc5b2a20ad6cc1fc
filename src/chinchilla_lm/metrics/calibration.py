"""Are probabilities honest? Expected calibration error, Brier score and log loss of class probabilities.

Symbols: n rows, c classes, b bins. It never changes probabilities.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from chinchilla_lm.metrics.measures import Floats, Formula, Measures, divide, ratio_of

# Guo et al. 2017 and torchmetrics use 15 bins of equal width.
BINS = 15
# The log loss of a probability that was rounded to 0 would be infinite; scikit-learn clips too.
_LEAST_PROBABILITY = 1e-12


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """Rows whose top probability lies in (low, high]."""

    low: float
    high: float
    rows: int
    confidence: float
    """Mean top probability; 0 for an empty bin."""
    accuracy: float
    """Share that is right; 0 for an empty bin."""


def calibration_error(confidence_n: npt.ArrayLike, correct_n: npt.ArrayLike, bins: int = BINS) -> float:
    """Return the expected calibration error: the mean over rows of |accuracy - confidence| of their bin.

    Args:
        confidence_n: top probabilities in [0, 1].
        correct_n: whether the top class is right.
        bins: of equal width.

    Returns:
        In [0, 1]; 0 is honest.

    Source: Naeini et al. 2015; Guo et al. 2017, eq. 3.
    """
    gaps_nb = _gaps(np.asarray(confidence_n, dtype=np.float64), np.asarray(correct_n, dtype=np.float64), bins)
    return float(np.abs(gaps_nb.sum(axis=0)).sum() / max(len(gaps_nb), 1))


def reliability(confidence_n: npt.ArrayLike, correct_n: npt.ArrayLike, bins: int = BINS) -> tuple[ReliabilityBin, ...]:
    """Return the bins of a reliability diagram, from 0 to 1 (arguments as `calibration_error`)."""
    confidence, correct = np.asarray(confidence_n, dtype=np.float64), np.asarray(correct_n, dtype=np.float64)
    place_n = _bin_of(confidence, bins)
    found = []
    for place in range(bins):
        in_bin = place_n == place
        rows = int(in_bin.sum())
        found.append(
            ReliabilityBin(
                low=place / bins,
                high=(place + 1) / bins,
                rows=rows,
                confidence=float(confidence[in_bin].mean()) if rows else 0.0,
                accuracy=float(correct[in_bin].mean()) if rows else 0.0,
            )
        )
    return tuple(found)


def measure_calibration(probabilities_nc: npt.ArrayLike, gold_n: npt.ArrayLike) -> Measures:
    """Measure probabilities of one class a row.

    Args:
        probabilities_nc: rows that sum to 1.
        gold_n: the true class of each row, an index.

    Returns:
        ece (primary), brier (sum over classes of squared error, in [0, 2]) and nll (nats); lower is better.

    Source: Brier 1950; Guo et al. 2017.
    """
    probabilities = np.asarray(probabilities_nc, dtype=np.float64)
    gold = np.asarray(gold_n, dtype=np.int64)
    rows = np.arange(len(gold))
    assert probabilities.shape[0] == len(gold), f"{probabilities.shape} for {len(gold)} rows"
    correct = (probabilities.argmax(axis=1) == gold).astype(np.float64)
    gaps_nb = _gaps(probabilities.max(axis=1), correct, BINS)
    brier = (probabilities**2).sum(axis=1) - 2 * probabilities[rows, gold] + 1
    nll = -np.log(np.maximum(probabilities[rows, gold], _LEAST_PROBABILITY))
    counts_nk = np.column_stack([gaps_nb, brier, nll, np.ones(len(gold))])
    last = BINS + 2
    formulas = {
        "ece": Formula((*range(BINS), last), lambda sums: divide(np.abs(sums[..., :-1]).sum(axis=-1), sums[..., -1])),
        "brier": ratio_of(BINS, last),
        "nll": ratio_of(BINS + 1, last),
    }
    sums_k = counts_nk.sum(axis=0)
    return Measures(
        values={name: float(formula(sums_k)) for name, formula in formulas.items()},
        primary="ece",
        higher_is_better=False,
        counts_nk=counts_nk,
        formulas=formulas,
    )


def _gaps(confidence_n: Floats, correct_n: Floats, bins: int) -> Floats:
    """Return correct - confidence in the column of each row's bin."""
    gaps_nb = np.zeros((len(confidence_n), bins))
    gaps_nb[np.arange(len(confidence_n)), _bin_of(confidence_n, bins)] = correct_n - confidence_n
    return gaps_nb


def _bin_of(confidence_n: Floats, bins: int) -> npt.NDArray[np.int64]:
    """Return the bin (low, high] of each; 0 belongs to the first."""
    return np.clip(np.ceil(confidence_n * bins).astype(np.int64) - 1, 0, bins - 1)
