"""TF-IDF + logistic regression (scikit-learn) on the very rows that a tuning saw: what a model must beat.

Rows with several labels get one logistic regression a label; a relation's entities are marked in its text.

    measure_tfidf(config) -> {"accuracy": ..., "macro_f1": ..., "settings": {...}}
    python bench/baselines.py --data DATA_FOLDER          # the table of shared/data's README figures, whole sets

Vocabulary and weights come from the training rows, the units (words or characters) and the penalty from the validation
rows, the measures from the test rows. It is given every advantage that the tuned model has, and a validation grid.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from machine import print_table
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import Pipeline, make_pipeline

from chinchilla_lm.data.labelled import read_rows, rows_for_task
from chinchilla_lm.metrics.classification import measure_classification, measure_multilabel
from chinchilla_lm.metrics.measures import Measures
from chinchilla_lm.metrics.relation import measure_relation
from chinchilla_lm.metrics.resampling import interval

if TYPE_CHECKING:
    from chinchilla_lm.tune.config import TuneConfig

Rows = list[dict[str, Any]]

# Words with pairs of words; runs of characters, which also serve scripts without spaces.
_UNITS = {
    "words": {"analyzer": "word", "ngram_range": (1, 2), "token_pattern": r"(?u)\b\w+\b"},
    "characters": {"analyzer": "char_wb", "ngram_range": (1, 4)},
}
_PENALTIES = (1.0, 10.0, 100.0)  # scikit-learn's C, the inverse of the penalty
_SETS = ("sentiment-rt", "sentiment-sst2", "topic-agnews-small", "topic-csl-zh", "intent-clinc150")


def measure_tfidf(config: TuneConfig) -> dict[str, Any]:
    """Fit on the training rows of a tuning, choose on its validation rows, measure on its test rows."""
    from chinchilla_lm.tune.splits import read_splits  # imports torch, which the table below does not need

    splits = read_splits(config)
    return fit_and_measure(splits.train, splits.validation, splits.test)


def fit_and_measure(train: Rows, validation: Rows, test: Rows) -> dict[str, Any]:
    """Return the measures on the test rows, the interval of accuracy, and what was chosen."""
    best: tuple[float, str, float, Pipeline] | None = None
    for units, options in _UNITS.items():
        for penalty in _PENALTIES:
            pipeline = make_pipeline(TfidfVectorizer(sublinear_tf=True, **options), classifier_of(train, penalty))
            pipeline.fit([text_of(row) for row in train], targets_of(train))
            score = measure_rows(pipeline, train, validation).value
            if best is None or score > best[0]:
                best = (score, units, penalty, pipeline)
    assert best is not None
    score, units, penalty, pipeline = best
    measures = measure_rows(pipeline, train, test)
    low, high = interval(measures)
    chosen = {"units": units, "C": penalty, f"validation_{measures.primary}": score}
    return {**measures.values, "interval": {"low": low, "high": high, "level": 0.95}, "settings": chosen}


def classifier_of(train: Rows, penalty: float) -> Any:
    regression = LogisticRegression(C=penalty, max_iter=1000)
    return OneVsRestClassifier(regression) if has_sets(train) else regression


def targets_of(train: Rows) -> Any:
    """The labels of rows, or their table (row, label) of zeros and ones."""
    if not has_sets(train):
        return [row["label"] for row in train]
    return np.array([[name in row["label"] for name in labels_of(train)] for row in train], dtype=np.int64)


def measure_rows(pipeline: Pipeline, train: Rows, rows: Rows) -> Measures:
    """Measure what a fitted pipeline says of rows; labels that training never saw count as missed."""
    gold, said = [row["label"] for row in rows], pipeline.predict([text_of(row) for row in rows])
    known = labels_of(train)
    labels = sorted({*known, *labels_of(rows)})
    if "head" in rows[0]:
        return measure_relation([str(label) for label in said], gold)
    if not has_sets(train):
        return measure_classification([str(label) for label in said], gold, labels)
    sets = [[name for name, is_said in zip(known, row, strict=True) if is_said] for row in said]
    return measure_multilabel(sets, gold, labels)


def has_sets(rows: Rows) -> bool:
    return any(not isinstance(row["label"], str) for row in rows)


def labels_of(rows: Rows) -> list[str]:
    return sorted(
        {name for row in rows for name in ([row["label"]] if isinstance(row["label"], str) else row["label"])}
    )


def text_of(row: dict[str, Any]) -> str:
    """The row's text; of a relation with a word of its own at each end of both entities."""
    if "head" in row:
        ends = [(row[name][side], f" {name}{side} ") for name in ("head", "tail") for side in (0, 1)]
        text = row["text"]
        for place, word in sorted(ends, reverse=True):
            text = text[:place] + word + text[place:]
        return text
    return "\n".join(row[name] for name in ("text", "text_pair") if row.get(name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the folder that holds sentiment-rt/, topic-csl-zh/, ...")
    parser.add_argument("--only", default=",".join(_SETS), help="comma list of sets")
    options = parser.parse_args()
    table = []
    for name in options.only.split(","):
        folder = Path(options.data, name)
        parts = [
            rows_for_task("text-classification", read_rows(folder / f"{part}.jsonl"), where=part)
            for part in ("train", "dev", "test")
        ]
        found = fit_and_measure(*parts)
        ends = found["interval"]
        table.append(
            (
                name,
                str(len(parts[0])),
                f"{100 * found['accuracy']:.1f} ({100 * ends['low']:.1f} to {100 * ends['high']:.1f})",
                f"{100 * found['macro_f1']:.1f}",
                f"{found['settings']['units']}, C = {found['settings']['C']:g}",
            )
        )
    print_table("TF-IDF + logistic regression", ("set", "rows", "accuracy, 95 %", "macro F1", "chosen"), table)


if __name__ == "__main__":
    main()
