"""Before against after on the same rows: the fields of tune.json that say whether tuning helped, and how sure that is.

It reads predictions and measures, never models; the page and the model card read what it returns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from chinchilla_lm.metrics.calibration import reliability
from chinchilla_lm.metrics.measures import Measures
from chinchilla_lm.metrics.resampling import interval, mcnemar, paired_difference
from chinchilla_lm.tune.task import Prediction, Row

LEVEL = 0.95
# A page shows a dozen; a record of some hundred lets another look be taken.
_MOST_EXAMPLES = 200
_GOLD_FIELDS = ("label", "tags", "answers", "target", "summary", "completion")
_TEXT_FIELDS = ("text", "tokens", "question", "source", "document", "prompt", "messages")
# Under which name the tasks' predictions hold what the model says, the first that is there.
_SAID_FIELDS = ("label", "tags", "answer", "predicted", "text", "choice")


def compare(before: Measures | None, after: Measures, *, draws: int, seed: int) -> dict[str, Any]:
    """Return "metrics_before", "metrics_after", "intervals", "paired", "per_class" and the primary's name.

    Args:
        before: None where the untouched model cannot be asked.
        after: on the same rows.
        draws: of the bootstrap.
        seed: of its draws.
    """
    stages = {"before": before, "after": after}
    records = {name: measures.as_record() for name, measures in stages.items() if measures is not None}
    return {
        "metric": after.primary,
        "higher_is_better": after.higher_is_better,
        "metrics_before": records["before"]["values"] if before is not None else None,
        "metrics_after": records["after"]["values"],
        "intervals": {
            name: _interval(measures, draws, seed)
            for name, measures in stages.items()
            if measures is not None and _is_drawable(measures)
        },
        "paired": _paired(before, after, draws, seed) if before is not None else None,
        "per_class": {name: record["per_class"] for name, record in records.items()},
    }


def changed_examples(
    rows: Sequence[Row],
    before: tuple[Sequence[Prediction], Measures],
    after: tuple[Sequence[Prediction], Measures],
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """List rows whose score changed, the largest changes first, and count both kinds.

    Returns:
        (examples with row, text, gold, before, after, kind "fixed" or "broken"; {"fixed": n, "broken": n}).
    """
    old_n, new_n = before[1].scores_n, after[1].scores_n
    if old_n is None or new_n is None:
        return [], {}
    sign = 1 if after[1].higher_is_better else -1
    gains = [(sign * (new - old), row) for row, (old, new) in enumerate(zip(old_n, new_n, strict=True)) if new != old]
    gains.sort(key=lambda pair: (-abs(pair[0]), pair[1]))
    counts = {"fixed": sum(gain > 0 for gain, _ in gains), "broken": sum(gain < 0 for gain, _ in gains)}
    examples: list[dict[str, Any]] = []
    for wanted in ("fixed", "broken"):
        chosen = [row for gain, row in gains if (gain > 0) == (wanted == "fixed")][: _MOST_EXAMPLES // 2]
        for row in chosen:
            said = {"before": _said(before[0][row]), "after": _said(after[0][row])}
            scores = {"before_score": old_n[row], "after_score": new_n[row]}
            examples.append({**describe_row(row, rows[row]), **said, **scores, "kind": wanted})
    return examples, counts


def calibration_of(predictions: Sequence[Prediction], measures: Measures) -> dict[str, Any] | None:
    """Return the calibration error and the reliability bins of predictions that carry a "probability"; else None."""
    if "ece" not in measures.values or measures.scores_n is None:
        return None
    confidence_n = [each.get("probability") for each in predictions]
    if any(not isinstance(each, float) for each in confidence_n):
        return None
    bins = reliability(np.array(confidence_n, dtype=np.float64), np.array(measures.scores_n))
    filled = [
        {"confidence": each.confidence, "accuracy": each.accuracy, "count": each.rows} for each in bins if each.rows
    ]
    return {"error": measures.values["ece"], "bins": filled}


def prediction_lines(rows: Sequence[Row], predictions: Sequence[Prediction]) -> Iterator[dict[str, Any]]:
    """Yield the lines of a predictions file: row number, text, gold, and the prediction's own fields."""
    for number, (row, prediction) in enumerate(zip(rows, predictions, strict=True)):
        yield {**describe_row(number, row), "prediction": dict(prediction), "predicted": _said(prediction)}


def describe_row(number: int, row: Row) -> dict[str, Any]:
    """Return {row, text, gold, tokens?} of a row of any task."""
    gold = next((row[name] for name in _GOLD_FIELDS if name in row), None)
    if "choices" in row and isinstance(gold, int):
        gold = row["choices"][gold]
    text = next((row[name] for name in _TEXT_FIELDS if row.get(name)), "")
    if isinstance(text, list):
        words = [str(word.get("content", "")) if isinstance(word, Mapping) else str(word) for word in text]
        described: dict[str, Any] = {"row": number, "text": " ".join(words), "gold": gold}
        return described | ({"tokens": list(text)} if "tokens" in row else {})
    if row.get("text_pair"):
        text = f"{text} | {row['text_pair']}"
    return {"row": number, "text": text, "gold": gold}


def _said(prediction: Prediction) -> Any:
    return next((prediction[name] for name in _SAID_FIELDS if name in prediction), prediction)


def _is_drawable(measures: Measures) -> bool:
    return measures.counts_nk is not None and measures.from_counts is not None


def _interval(measures: Measures, draws: int, seed: int) -> dict[str, float]:
    low, high = interval(measures, LEVEL, draws, seed)
    return {"low": low, "high": high, "level": LEVEL}


def _paired(before: Measures, after: Measures, draws: int, seed: int) -> dict[str, Any] | None:
    if not (_is_drawable(before) and _is_drawable(after)) or before.primary != after.primary:
        return None
    found = paired_difference(before, after, LEVEL, draws, seed)
    return {
        "difference": found.difference,
        "low": found.low,
        "high": found.high,
        "level": found.level,
        "p_value": found.p_value,
        "method": f"paired bootstrap, {draws} draws",
        "mcnemar": _mcnemar(before, after),
    }


def _mcnemar(before: Measures, after: Measures) -> dict[str, Any] | None:
    """McNemar's test where every row is right or wrong, else None."""
    old_n, new_n = before.scores_n, after.scores_n
    if old_n is None or new_n is None or not {*old_n, *new_n} <= {0.0, 1.0}:
        return None
    found = mcnemar([score == 1 for score in old_n], [score == 1 for score in new_n])
    return {
        "statistic": found.statistic,
        "p_value": found.p_value,
        "is_exact": found.is_exact,
        "fixed": found.only_after,
        "broken": found.only_before,
    }
