"""Does the learning curve's law know what twice the labels buy? Backtest on real sets, where twice the labels exist.

    python bench/learning_curves.py --data DATA_FOLDER [--only sentiment-rt,...]

The learner is TF-IDF + a linear support vector machine, because it is quick enough to learn hundreds of times; the law
and its intervals are those of `chinchilla tune --fractions`. For every set and every largest part n of its training
rows, the law is fitted on parts n/16 to n and asked for 2n rows; the truth is the mean of models trained on 2n rows.
Hits are how often the 90 % interval holds it, and the error is compared with what people assume: that the last doubling
repeats.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import numpy as np
from baselines import text_of
from machine import print_table
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.svm import LinearSVC

from chinchilla_lm.data.labelled import read_rows, rows_for_task
from chinchilla_lm.metrics.classification import measure_classification
from chinchilla_lm.metrics.measures import Measures
from chinchilla_lm.tune.curve_law import CurvePoint, fit_curve

_SETS = ("sentiment-rt", "sentiment-sst2", "topic-agnews-small", "topic-csl-zh", "intent-banking77")
_PARTS = (16, 8, 4, 2, 1)
_DRAWS_OF_TRUTH = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the folder that holds sentiment-rt/, topic-csl-zh/, ...")
    parser.add_argument("--only", default=",".join(_SETS), help="comma list of sets")
    options = parser.parse_args()
    table, hits, errors, naive = [], [], [], []
    for name in options.only.split(","):
        train, test = read_set(Path(options.data, name))
        learner = Learner(train, test, is_chinese=name.endswith("-zh"))
        for largest in (len(train) // 8, len(train) // 4, len(train) // 2):
            points = [
                CurvePoint(rows=largest // part, measures=learner.measure(largest // part, draw))
                for part in _PARTS
                for draw in range(2 if part >= 4 else 1)
            ]
            law = fit_curve(points, draws=200)
            truth = float(np.mean([learner.measure(2 * largest, draw).value for draw in range(_DRAWS_OF_TRUTH)]))
            by_rows = {point.rows: point.measures.value for point in points}
            repeat = by_rows[largest] + by_rows[largest] - by_rows[largest // 2]
            is_hit = law.doubled.low <= truth <= law.doubled.high
            hits.append(is_hit)
            errors.append(abs(law.doubled.value - truth))
            naive.append(abs(repeat - truth))
            ends = f"{100 * law.doubled.low:.1f} to {100 * law.doubled.high:.1f}"
            table.append(
                (name, str(2 * largest), f"{100 * law.doubled.value:.1f} ({ends})", f"{100 * truth:.1f}",
                 f"{100 * repeat:.1f}", "yes" if is_hit else "NO")
            )  # fmt: skip
    header = ("set", "rows", "law, 90 %", "truth", "last doubling repeated", "in the interval")
    print_table("Twice the labels: forecast and truth, accuracy in %", header, table)
    print(
        f"{sum(hits)} of {len(hits)} in the 90 % interval; mean error {100 * np.mean(errors):.2f} points, of the"
        f" repeated doubling {100 * np.mean(naive):.2f}"
    )


def read_set(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    parts = [
        rows_for_task("text-classification", read_rows(folder / f"{part}.jsonl"), where=part)
        for part in ("train", "test")
    ]
    return parts[0], parts[1]


class Learner:
    """TF-IDF + a linear SVM on so many rows; each draw is another order of the rows.

    The weights of words come from all training texts at once (their labels unseen), which saves reading them again.
    """

    def __init__(self, train: list[dict[str, Any]], test: list[dict[str, Any]], is_chinese: bool) -> None:
        units = {"analyzer": "char", "ngram_range": (1, 2)} if is_chinese else {"ngram_range": (1, 2)}
        vectors = TfidfVectorizer(sublinear_tf=True, min_df=2, **units)
        self.train_nv = vectors.fit_transform([text_of(row) for row in train])
        self.test_nv = vectors.transform([text_of(row) for row in test])
        self.train_labels, self.test_labels = [row["label"] for row in train], [row["label"] for row in test]
        self.labels = sorted({*self.train_labels, *self.test_labels})
        self.known: dict[tuple[int, int], Measures] = {}

    def measure(self, rows: int, draw: int) -> Measures:
        if (rows, draw) not in self.known:
            order = list(range(len(self.train_labels)))
            random.Random(draw).shuffle(order)
            part = order[:rows]
            model = LinearSVC(C=0.5).fit(self.train_nv[part], [self.train_labels[number] for number in part])
            predicted = [str(label) for label in model.predict(self.test_nv)]
            self.known[rows, draw] = measure_classification(predicted, self.test_labels, self.labels)
        return self.known[rows, draw]


if __name__ == "__main__":
    main()
