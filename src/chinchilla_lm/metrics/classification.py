"""Labels of whole rows: accuracy, F1, Matthews' correlation, and calibration where probabilities are given.

Symbols: n rows, c classes. Classes that occur neither in the gold labels nor among the predictions of the rows drawn
are left out of macro averages (as in scikit-learn's f1_score).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from chinchilla_lm.core.errors import DataError
from chinchilla_lm.metrics.calibration import measure_calibration
from chinchilla_lm.metrics.measures import Floats, Formula, Measures, divide, f1_of, mean_of, merge, ratio_of


def measure_classification(
    predicted: Sequence[str], gold: Sequence[str], labels: Sequence[str], probabilities: Any = None
) -> Measures:
    """Measure one label a row.

    Args:
        predicted: n labels; one that is not among `labels` (a generated answer) counts as wrong.
        gold: n labels.
        labels: all c of them, in the order of the columns of `probabilities`.
        probabilities: (n, c), or None.

    Returns:
        accuracy (primary), macro_f1, mcc (in [-1, 1]); with probabilities also ece, brier and nll.

    Raises:
        DataError: a gold label that is not among the labels, or no rows.

    Source: MCC of several classes: Gorodkin 2004, eq. 8.
    """
    classes = [*labels, None]  # the last: a prediction that is no label
    place = {label: number for number, label in enumerate(labels)}
    gold_n = np.array([_place_of(label, place) for label in gold], dtype=np.int64)
    predicted_n = np.array([place.get(label, len(labels)) for label in predicted], dtype=np.int64)
    _check_rows(len(predicted_n), len(gold_n))
    hits = (gold_n == predicted_n).astype(np.float64)
    predicted_nc, gold_nc = np.eye(len(classes))[predicted_n], np.eye(len(classes))[gold_n]
    measures = _from_tables(predicted_nc, gold_nc, hits, [str(label) for label in labels])
    if probabilities is None:
        return measures
    return merge(measures, measure_calibration(probabilities, gold_n))


def measure_multilabel(
    predicted: Sequence[Sequence[str]],
    gold: Sequence[Sequence[str]],
    labels: Sequence[str],
    probabilities: Any = None,
) -> Measures:
    """Measure a set of labels a row.

    Args:
        predicted: n sets of labels.
        gold: n sets of labels.
        labels: all c of them.
        probabilities: (n, c) of each label by itself, or None.

    Returns:
        micro_f1 (primary), macro_f1 (over all of `labels` that occur), example_f1 (a row's own F1, 1 where both sets
        are empty), exact_match, hamming_loss; with probabilities also brier (mean over labels).

    Raises:
        DataError: a gold label that is not among the labels, or no rows.
    """
    place = {label: number for number, label in enumerate(labels)}
    _check_rows(len(predicted), len(gold))
    gold_nc = _sets_to_table(gold, place, is_gold=True)
    predicted_nc = _sets_to_table(predicted, place, is_gold=False)
    hits_nc = gold_nc * predicted_nc
    both_n, either_n = hits_nc.sum(axis=1), predicted_nc.sum(axis=1) + gold_nc.sum(axis=1)
    example_n = np.where(either_n == 0, 1.0, f1_of(both_n, either_n, 0))
    wrong_nc = np.abs(gold_nc - predicted_nc)
    scores = {
        "example_f1": example_n,
        "exact_match": (wrong_nc.sum(axis=1) == 0).astype(np.float64),
        "hamming_loss": wrong_nc.mean(axis=1),
    }
    if probabilities is not None:
        scores["brier"] = ((np.asarray(probabilities, dtype=np.float64) - gold_nc) ** 2).mean(axis=1)
    width = len(labels)
    counts_nk = np.concatenate((hits_nc, predicted_nc, gold_nc), axis=1)
    formulas = {
        "micro_f1": Formula(tuple(range(3 * width)), lambda sums: _micro_f1(sums, width)),
        "macro_f1": Formula(tuple(range(3 * width)), lambda sums: _macro_f1(sums, width)),
    }
    sums_k = counts_nk.sum(axis=0)
    first = Measures(
        values={name: float(formula(sums_k)) for name, formula in formulas.items()},
        primary="micro_f1",
        scores_n=tuple(example_n.tolist()),
        counts_nk=counts_nk,
        formulas=formulas,
        per_class=per_class_of(sums_k, labels),
    )
    return merge(first, mean_of({name: column.tolist() for name, column in scores.items()}, "example_f1"))


def measure_choices(predicted: Sequence[int], gold: Sequence[int]) -> Measures:
    """Measure multiple choice: accuracy of the chosen index.

    Raises:
        DataError: no rows.
    """
    _check_rows(len(predicted), len(gold))
    return mean_of(
        {"accuracy": [float(choice == right) for choice, right in zip(predicted, gold, strict=True)]}, "accuracy"
    )


def per_class_of(sums_k: Floats, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return precision, recall, f1, support of each class.

    Args:
        sums_k: hits of c classes, then predicted, then gold.
        names: of the c classes.
    """
    width = len(names)
    hits, predicted, gold = sums_k[:width], sums_k[width : 2 * width], sums_k[2 * width : 3 * width]
    precision, recall, f1 = divide(hits, predicted), divide(hits, gold), f1_of(hits, predicted, gold)
    return {
        name: {
            "precision": float(precision[place]),
            "recall": float(recall[place]),
            "f1": float(f1[place]),
            "support": float(gold[place]),
        }
        for place, name in enumerate(names)
    }


def _from_tables(predicted_nc: Floats, gold_nc: Floats, hits_n: Floats, labels: list[str]) -> Measures:
    """Measure one-hot tables whose last column is "no label at all"."""
    width = len(labels)
    hits_nc = predicted_nc * gold_nc
    parts = (hits_nc[:, :width], predicted_nc[:, :width], gold_nc[:, :width])
    counts_nk = np.concatenate((*parts, hits_n[:, None], np.ones((len(hits_n), 1))), axis=1)
    hit, row = 3 * width, 3 * width + 1
    formulas = {
        "accuracy": ratio_of(hit, row),
        "macro_f1": Formula(tuple(range(3 * width)), lambda sums: _macro_f1(sums, width)),
        "mcc": Formula(tuple(range(width, row + 1)), lambda sums: _mcc(sums, width)),
    }
    sums_k = counts_nk.sum(axis=0)
    return Measures(
        values={name: float(formula(sums_k)) for name, formula in formulas.items()},
        primary="accuracy",
        scores_n=tuple(hits_n.tolist()),
        counts_nk=counts_nk,
        formulas=formulas,
        per_class=per_class_of(sums_k, labels),
    )


def _macro_f1(sums: Floats, width: int) -> Floats:
    hits, predicted, gold = (sums[..., start * width : (start + 1) * width] for start in range(3))
    occurs = (predicted + gold) > 0
    return divide(f1_of(hits, predicted, gold).sum(axis=-1), occurs.sum(axis=-1))


def _micro_f1(sums: Floats, width: int) -> Floats:
    hits, predicted, gold = (sums[..., start * width : (start + 1) * width].sum(axis=-1) for start in range(3))
    return f1_of(hits, predicted, gold)


def _mcc(sums: Floats, width: int) -> Floats:
    predicted, gold = sums[..., :width], sums[..., width : 2 * width]
    hits, rows = sums[..., -2], sums[..., -1]
    strange = rows - predicted.sum(axis=-1)  # predictions that are no label: a class of their own
    covariance = hits * rows - (predicted * gold).sum(axis=-1)
    spread_predicted = rows**2 - (predicted**2).sum(axis=-1) - strange**2
    spread_gold = rows**2 - (gold**2).sum(axis=-1)
    return divide(covariance, np.sqrt(np.maximum(spread_predicted * spread_gold, 0)))


def _sets_to_table(sets: Sequence[Sequence[str]], place: dict[str, int], is_gold: bool) -> Floats:
    table_nc = np.zeros((len(sets), len(place)))
    for row, names in enumerate(sets):
        for name in names:
            if is_gold or name in place:
                table_nc[row, _place_of(name, place)] = 1
    return table_nc


def _place_of(label: str, place: dict[str, int]) -> int:
    if label not in place:
        known = ", ".join(map(repr, list(place)[:8]))
        raise DataError(f"the label {label!r} is not among {known}; give training rows that have it, or remove it")
    return place[label]


def _check_rows(predicted: int, gold: int) -> None:
    assert predicted == gold, f"{predicted} predictions for {gold} rows"
    if not gold:
        raise DataError("0 rows cannot be measured; give a file with at least one row")
