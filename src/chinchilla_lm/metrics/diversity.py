"""Free text: loss and perplexity of given text; how varied generated text is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from chinchilla_lm.core.errors import DataError
from chinchilla_lm.metrics.measures import Formula, Measures, divide, mean_of, merge, ratio_of
from chinchilla_lm.metrics.segmentation import split_units

# Holtzman et al. 2020 and Welleck et al. 2020 count repeated 4-grams.
_REPETITION_ORDER = 4
# exp(709) is the largest float; a loss above it is a broken model, whose perplexity is infinite.
_LARGEST_EXPONENT = 700.0


def measure_losses(
    loss_sums_n: Sequence[float], targets_n: Sequence[int], utf8_bytes_n: Sequence[int] | None = None
) -> Measures:
    """Measure the loss of given text.

    Args:
        loss_sums_n: of each row, the summed loss of its targets in nats.
        targets_n: of each row, how many tokens were targets.
        utf8_bytes_n: of each row, the length of their text, or None.

    Returns:
        loss (primary, nats a token; lower is better), perplexity, and bits_per_byte where bytes are given. A row's own
        score is its mean loss.

    Raises:
        DataError: no targets at all.
    """
    sums, targets = np.asarray(loss_sums_n, dtype=np.float64), np.asarray(targets_n, dtype=np.float64)
    assert sums.shape == targets.shape, f"{sums.shape} sums for {targets.shape} counts"
    if not targets.sum():
        raise DataError("0 target tokens cannot be measured; give rows with a completion")
    columns = [sums, targets]
    formulas = {
        "loss": ratio_of(0, 1),
        "perplexity": Formula(
            (0, 1), lambda sums: np.exp(np.minimum(divide(sums[..., 0], sums[..., 1]), _LARGEST_EXPONENT))
        ),
    }
    if utf8_bytes_n is not None:
        columns.append(np.asarray(utf8_bytes_n, dtype=np.float64) * math.log(2))
        formulas["bits_per_byte"] = ratio_of(0, 2)
    counts_nk = np.stack(columns, axis=1)
    sums_k = counts_nk.sum(axis=0)
    return Measures(
        values={name: float(formula(sums_k)) for name, formula in formulas.items()},
        primary="loss",
        higher_is_better=False,
        scores_n=tuple(divide(sums, targets).tolist()),
        counts_nk=counts_nk,
        formulas=formulas,
    )


def measure_text(predicted: Sequence[str], language: str = "en") -> Measures:
    """Measure generated text without a reference.

    Args:
        predicted: n texts.
        language: not needed by today's measures; words and single characters are told apart by script.

    Returns:
        distinct_2 (primary), distinct_1, distinct_3: distinct n-grams of all rows over all n-grams (Li et al. 2016;
        they fall as more text is counted, so compare equal numbers of rows only, and rows are not drawn again);
        repetition: mean share of a row's 4-grams that are repeated (Welleck et al. 2020, rep-4); length: mean units.

    Raises:
        DataError: no rows.
    """
    if not predicted:
        raise DataError("0 rows cannot be measured; give a file with at least one row")
    units_n = [split_units(text) for text in predicted]
    values = {f"distinct_{order}": _distinct(units_n, order) for order in (2, 1, 3)}
    repeated = [_repeated_share(units) for units in units_n]
    first = Measures(values=values, primary="distinct_2")
    lengths = [float(len(units)) for units in units_n]
    return merge(first, mean_of({"repetition": repeated, "length": lengths}, "repetition"))


def _distinct(units_n: Sequence[Sequence[str]], order: int) -> float:
    grams = [gram for units in units_n for gram in _grams(units, order)]
    return len(set(grams)) / len(grams) if grams else 0.0


def _repeated_share(units: Sequence[str]) -> float:
    grams = _grams(units, _REPETITION_ORDER)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _grams(units: Sequence[str], order: int) -> list[tuple[str, ...]]:
    return list(zip(*(units[start:] for start in range(order)), strict=False))
