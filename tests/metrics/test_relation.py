"""Relations against what the official scorer of SemEval-2010 task 8 prints."""

from __future__ import annotations

import pytest

from chinchilla_lm.metrics.relation import measure_relation

# A confusion matrix on the official test set (2,717 rows) for which scorer 1.2 printed macro F1 83.62 %, micro F1
# 84.36 %, accuracy 79.68 % (rows: actual, columns: predicted, relations in the order below, (e1,e2) then (e2,e1)).
_RELATIONS = (
    "Cause-Effect",
    "Component-Whole",
    "Content-Container",
    "Entity-Destination",
    "Entity-Origin",
    "Instrument-Agency",
    "Member-Collection",
    "Message-Topic",
    "Product-Producer",
)
_CONFUSION = """
125 2 0 2 0 0 0 0 0 0 0 0 0 0 1 0 0 0 4
0 177 0 0 0 0 0 0 7 0 0 0 0 0 0 0 1 0 9
0 0 131 3 4 1 0 0 0 0 1 0 3 4 4 0 0 0 11
1 0 7 109 0 2 1 0 0 0 0 5 0 7 5 0 0 3 10
0 0 0 0 141 1 4 0 2 0 0 0 0 0 0 1 0 0 4
0 0 0 0 1 32 0 0 0 1 0 0 0 1 0 0 0 0 4
0 0 2 0 5 0 270 0 0 0 0 0 0 0 1 0 0 0 13
0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 1
0 4 1 0 0 0 4 0 185 0 0 0 0 0 1 1 3 1 11
2 0 0 0 0 0 2 0 0 40 0 0 0 0 1 0 0 0 2
0 0 0 0 0 0 0 0 0 0 15 1 0 1 0 0 3 0 2
1 0 1 11 0 0 2 0 1 0 0 89 0 0 0 1 0 5 23
0 0 0 0 0 0 1 0 1 0 0 0 20 3 0 1 0 0 6
0 0 2 1 0 0 0 0 0 0 0 0 0 193 1 0 1 0 3
1 0 0 1 0 0 0 0 2 0 0 0 0 1 194 0 1 0 10
0 0 0 1 0 0 0 0 1 0 0 0 0 0 1 45 0 0 3
0 4 1 0 0 0 0 0 2 0 1 0 0 1 1 0 93 1 4
0 0 0 1 0 1 2 0 1 1 0 3 0 1 1 1 0 97 14
9 6 13 16 20 4 21 0 24 3 4 9 11 36 35 10 12 12 209
"""
_F1_PERCENT = (91.52, 78.05, 85.64, 90.15, 85.07, 73.24, 82.72, 84.30, 81.90)


def _rows() -> tuple[list[str], list[str]]:
    labels = [f"{name}({direction})" for name in _RELATIONS for direction in ("e1,e2", "e2,e1")] + ["Other"]
    predicted, gold = [], []
    for actual, line in zip(labels, _CONFUSION.strip().split("\n"), strict=True):
        for guess, count in zip(labels, map(int, line.split()), strict=True):
            predicted += [guess] * count
            gold += [actual] * count
    return predicted, gold


def test_agrees_with_the_official_scorer() -> None:
    measures = measure_relation(*_rows())
    assert measures.primary == "macro_f1"
    assert measures.value == pytest.approx(0.8362, abs=5e-5)
    assert measures.values["micro_f1"] == pytest.approx(0.8436, abs=5e-5)
    assert measures.values["accuracy"] == pytest.approx(0.7968, abs=5e-5)
    for name, percent in zip(_RELATIONS, _F1_PERCENT, strict=True):
        assert measures.per_class[name]["f1"] == pytest.approx(percent / 100, abs=5e-5)


def test_the_wrong_direction_is_wrong() -> None:
    assert measure_relation(["A-B(e1,e2)"], ["A-B(e2,e1)"]).value == 0.0


def test_no_relation_counts_in_neither_f1() -> None:
    measures = measure_relation(["no_relation", "per:city"], ["no_relation", "per:city"])
    assert list(measures.per_class) == ["per:city"]
    assert measures.values["micro_f1"] == 1.0
    assert measure_relation(["x", "x"], ["x", "nothing"], negative="nothing").values["micro_f1"] == pytest.approx(2 / 3)
