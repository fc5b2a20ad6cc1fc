"""Spans in tagged text: seqeval's strict F1, and nervaluate's partial ones.

Spans are read by seqeval in strict mode under IOB2: an I- without its B- is no span (seqeval's default mode would take
it for one, and reports higher numbers). The package is imported when a measure is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from chinchilla_lm.core.errors import DataError
from chinchilla_lm.metrics.classification import per_class_of
from chinchilla_lm.metrics.measures import Floats, Formula, Measures, divide, f1_of, ratio_of

Span = tuple[str, int, int]
"""Type, first token, token after the last."""


def measure_tagging(predicted_tags: Sequence[Sequence[str]], gold_tags: Sequence[Sequence[str]]) -> Measures:
    """Measure IOB2 tags.

    Args:
        predicted_tags: of each row, one tag a token.
        gold_tags: the same lengths.

    Returns:
        f1 (primary), precision and recall of spans with equal type and ends, all types together; macro_f1 over types;
        partial_f1 (overlap counts half), type_f1 (type right, any overlap), exact_f1 (ends right, any type), as in
        SemEval-2013 task 9.1; token_accuracy. A row's own score is its span F1, 1 where both have no span.

    Raises:
        DataError: no rows, rows of different lengths, or a package is absent.
    """
    if not gold_tags:
        raise DataError("0 rows cannot be measured; give a file with at least one row")
    for number, (predicted, gold) in enumerate(zip(predicted_tags, gold_tags, strict=True), start=1):
        if len(predicted) != len(gold):
            raise DataError(f"row {number} has {len(gold)} tags and {len(predicted)} predictions; predict one a token")
    predicted_spans, gold_spans = spans_of(predicted_tags), spans_of(gold_tags)
    types = sorted({span[0] for row in (*predicted_spans, *gold_spans) for span in row})
    counts_nk = _count(predicted_spans, gold_spans, types)
    tokens = [(sum(map(str.__eq__, *pair)), len(pair[1])) for pair in zip(predicted_tags, gold_tags, strict=True)]
    counts_nk = np.concatenate((counts_nk, np.array(tokens, dtype=np.float64)), axis=1)
    formulas = _formulas(len(types))
    sums_k = counts_nk.sum(axis=0)
    values = {name: float(formula(sums_k)) for name, formula in formulas.items()}
    return Measures(
        values=values | _partial_values(predicted_spans, gold_spans, types),
        primary="f1",
        scores_n=tuple(map(_span_f1, predicted_spans, gold_spans)),
        counts_nk=counts_nk,
        formulas=formulas,
        per_class=per_class_of(sums_k, types),
    )


def spans_of(tags: Sequence[Sequence[str]]) -> list[set[Span]]:
    """Return the spans of each row of IOB2 tags, strictly."""
    try:
        from seqeval.scheme import IOB2, Entities  # an optional package
    except ImportError:
        raise DataError("span F1 needs the package seqeval; pip install 'chinchilla-lm[tune]'") from None
    rows = Entities([list(row) for row in tags], IOB2).entities
    return [{(span.tag, span.start, span.end) for span in row} for row in rows]


def _count(predicted_spans: Sequence[set[Span]], gold_spans: Sequence[set[Span]], types: Sequence[str]) -> Floats:
    """Return hits by type, then predicted, then gold, of each row."""
    place = {name: number for number, name in enumerate(types)}
    counts_nk = np.zeros((len(gold_spans), 3 * len(types)))
    for row, (predicted, gold) in enumerate(zip(predicted_spans, gold_spans, strict=True)):
        for part, spans in enumerate((predicted & gold, predicted, gold)):
            for span in spans:
                counts_nk[row, part * len(types) + place[span[0]]] += 1
    return counts_nk


def _formulas(width: int) -> dict[str, Formula]:
    columns = tuple(range(3 * width))

    def parts(sums: Floats) -> tuple[Floats, Floats, Floats]:
        return sums[..., :width], sums[..., width : 2 * width], sums[..., 2 * width :]

    def totals(sums: Floats) -> tuple[Floats, Floats, Floats]:
        hits, predicted, gold = parts(sums)
        return hits.sum(axis=-1), predicted.sum(axis=-1), gold.sum(axis=-1)

    def macro(sums: Floats) -> Floats:
        hits, predicted, gold = parts(sums)
        return divide(f1_of(hits, predicted, gold).sum(axis=-1), ((predicted + gold) > 0).sum(axis=-1))

    return {
        "f1": Formula(columns, lambda sums: f1_of(*totals(sums))),
        "precision": Formula(columns, lambda sums: divide(totals(sums)[0], totals(sums)[1])),
        "recall": Formula(columns, lambda sums: divide(totals(sums)[0], totals(sums)[2])),
        "macro_f1": Formula(columns, macro),
        "token_accuracy": ratio_of(3 * width, 3 * width + 1),
    }


def _partial_values(
    predicted_spans: Sequence[set[Span]], gold_spans: Sequence[set[Span]], types: Sequence[str]
) -> dict[str, float]:
    try:
        from nervaluate import Evaluator  # an optional package
    except ImportError:
        raise DataError("partial span F1 needs the package nervaluate; pip install 'chinchilla-lm[tune]'") from None
    if not types:
        return {"partial_f1": 0.0, "type_f1": 0.0, "exact_f1": 0.0}
    evaluator: Any = Evaluator(_as_dicts(gold_spans), _as_dicts(predicted_spans), tags=list(types), loader="dict")
    overall = evaluator.evaluate()["overall"]
    names = {"partial_f1": "partial", "type_f1": "ent_type", "exact_f1": "exact"}
    return {name: float(overall[strategy].f1) for name, strategy in names.items()}


def _as_dicts(spans: Sequence[set[Span]]) -> list[list[dict[str, Any]]]:
    # nervaluate's ends are inclusive
    return [[{"label": kind, "start": start, "end": end - 1} for kind, start, end in sorted(row)] for row in spans]


def _span_f1(predicted: set[Span], gold: set[Span]) -> float:
    if not predicted and not gold:
        return 1.0
    return 2 * len(predicted & gold) / (len(predicted) + len(gold))
