"""What a reader must know of a run's rows: repeated ones, labels that nobody taught, what was cut or left out.

Sentences for "warnings" of tune.json. Nothing is changed by them: rows are measured as they are given.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from chinchilla_lm.tune.label_sets import labels_of
from chinchilla_lm.tune.splits import Splits
from chinchilla_lm.tune.task import Item, Row

# What a row is asked for; everything else is what the model reads. A completion is part of its text.
_GOLD = ("id", "label", "tags", "answers", "target", "summary")
_SHOWN_LABELS = 3
# What tasks note in `describe` of their training rows.
_CUTS = {
    "texts_cut": "texts of training rows were cut to fit max_tokens",
    "prompts_cut": "prompts of training rows were cut to fit max_tokens",
    "answers_cut": "answers of training rows were cut to fit max_tokens, and do not teach where they end",
    "turns_lost": "assistant turns fit max_tokens with no message before them, and were left out",
}


def row_warnings(
    splits: Splits, labels: Sequence[str], items: Sequence[Item], described: Mapping[str, Any]
) -> list[str]:
    """Return one sentence for each doubt about the rows of a run.

    Args:
        splits: its rows.
        labels: that the model can give; empty for a task without.
        items: what was trained on.
        described: of the task.
    """
    warnings = []
    measured = {"validation": splits.validation, splits.evaluated_on: splits.test}
    trained = {_key(row) for row in splits.train}
    for name, rows in measured.items():
        repeated = sum(_key(row) in trained for row in rows)
        if repeated:
            flattered = "the choice of the best step" if name != splits.evaluated_on else "the numbers"
            warnings.append(
                f"{repeated} of {len(rows)} {name} rows are also among the training rows, which flatters {flattered}."
            )
        unknown = sorted({label for row in rows for label in _labels_of(row)} - {*labels}) if labels else []
        if unknown:
            count = sum(not {*_labels_of(row)} <= {*labels} for row in rows)
            names = ", ".join(map(repr, unknown[:_SHOWN_LABELS])) + (", ..." if len(unknown) > _SHOWN_LABELS else "")
            warnings.append(
                f"{count} of {len(rows)} {name} rows have labels that no training row has ({names}): they count as "
                "missed."
            )
    given = sum(splits.counts.get(name, {}).get("used", 0) for name in ("train", "replayed"))
    if left_out := given - len({item.row for item in items}):
        warnings.append(f"{left_out} of {given} training rows were left out: nothing of their answer could be learned.")
    return warnings + [f"{described[name]} {words}." for name, words in _CUTS.items() if described.get(name)]


def _key(row: Row) -> int:
    """What the model reads of a row, as a number: sets of texts would hold them a second time."""
    return hash(json.dumps({name: row[name] for name in row if name not in _GOLD}, sort_keys=True, default=str))


def _labels_of(row: Row) -> list[str]:
    if "tags" in row:
        return list(row["tags"])
    return labels_of(row) if isinstance(row.get("label"), str | list) else []
