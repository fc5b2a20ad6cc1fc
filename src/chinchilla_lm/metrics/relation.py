"""Relations between two marked entities: the macro F1 of SemEval-2010 task 8, and micro F1 without "no relation"."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from chinchilla_lm.core.errors import DataError
from chinchilla_lm.metrics.classification import per_class_of
from chinchilla_lm.metrics.measures import Floats, Formula, Measures, divide, f1_of, ratio_of

# How published sets write that there is no relation: SemEval-2010, TACRED, NYT10, ACE and FewRel.
NEGATIVES = ("Other", "no_relation", "NA", "None", "NONE", "NO_RELATION", "none", "other")
# Component-Whole(e2,e1): the name and the direction.
_DIRECTED = re.compile(r"(.+)\((e1,e2|e2,e1)\)")


def measure_relation(predicted: Sequence[str], gold: Sequence[str], negative: str | None = None) -> Measures:
    """Measure one relation a row.

    A relation NAME(e1,e2) and NAME(e2,e1) are one class whose hits need the right direction; without directions a
    class is a label.

    Args:
        predicted: n labels.
        gold: n labels.
        negative: the label of no relation, left out of both F1; by default the first of `NEGATIVES` in the gold labels.

    Returns:
        macro_f1 (primary; SemEval-2010 task 8's official score over the classes that occur), micro_f1, accuracy.

    Raises:
        DataError: no rows.

    Source: Hendrickx et al. 2010, section 4, and its scorer 1.2, "(9+1)-way evaluation taking directionality into
        account".
    """
    assert len(predicted) == len(gold), f"{len(predicted)} predictions for {len(gold)} rows"
    if not gold:
        raise DataError("0 rows cannot be measured; give a file with at least one row")
    if negative is None:
        negative = next((name for name in NEGATIVES if name in set(gold)), None)
    classes = sorted({_class_of(label) for label in (*gold, *predicted) if label != negative})
    place = {name: number for number, name in enumerate(classes)}
    width = len(classes)
    counts_nk = np.zeros((len(gold), 3 * width + 2))
    for row, (guess, right) in enumerate(zip(predicted, gold, strict=True)):
        if guess != negative:
            counts_nk[row, width + place[_class_of(guess)]] = 1
        if right != negative:
            counts_nk[row, 2 * width + place[_class_of(right)]] = 1
            counts_nk[row, place[_class_of(right)]] = guess == right
        counts_nk[row, 3 * width :] = guess == right, 1
    formulas = _formulas(width)
    sums_k = counts_nk.sum(axis=0)
    return Measures(
        values={name: float(formula(sums_k)) for name, formula in formulas.items()},
        primary="macro_f1",
        scores_n=tuple(counts_nk[:, -2].tolist()),
        counts_nk=counts_nk,
        formulas=formulas,
        per_class=per_class_of(sums_k, classes),
    )


def _formulas(width: int) -> dict[str, Formula]:
    columns = tuple(range(3 * width))

    def parts(sums: Floats) -> list[Floats]:
        return [sums[..., start * width : (start + 1) * width] for start in range(3)]

    def macro(sums: Floats) -> Floats:
        hits, predicted, gold = parts(sums)
        return divide(f1_of(hits, predicted, gold).sum(axis=-1), ((predicted + gold) > 0).sum(axis=-1))

    return {
        "macro_f1": Formula(columns, macro),
        "micro_f1": Formula(columns, lambda sums: f1_of(*(part.sum(axis=-1) for part in parts(sums)))),
        "accuracy": ratio_of(3 * width, 3 * width + 1),
    }


def _class_of(label: str) -> str:
    match = _DIRECTED.fullmatch(label)
    return match[1] if match else label
