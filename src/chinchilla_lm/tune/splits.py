"""The rows of a run: what is trained on, what decides, and what is only measured; drawn by seed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from chinchilla_lm.data.labelled import read_rows, rows_for_task, split_rows
from chinchilla_lm.tune.config import TuneConfig


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Canonical rows: what is trained on, what decides, and what is only measured.

    Attributes:
        test: the validation rows where the config names no test file; `evaluated_on` then says so.
        counts: for the record: split -> {used, available, file}.
    """

    train: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    test: list[dict[str, Any]]
    evaluated_on: str
    counts: dict[str, dict[str, Any]]


def read_splits(config: TuneConfig) -> Splits:
    """Read, check and draw the rows of a config.

    Raises:
        DataError: a file that cannot be read, or a row that does not fit the task.
    """

    def read(source: str) -> list[dict[str, Any]]:
        return rows_for_task(config.task, read_rows(source), config.columns, where=source)

    train = read(config.train)
    counts: dict[str, dict[str, Any]] = {"train": {"available": len(train), "file": config.train}}
    if config.validation is not None:
        validation = read(config.validation)
        counts["validation"] = {"available": len(validation), "file": config.validation}
        validation = draw_rows(validation, config.validation_rows, config.seed)
        train = draw_rows(train, config.train_rows, config.seed)
    else:
        train = draw_rows(train, config.train_rows, config.seed)
        train, validation = split_rows(train, config.validation_fraction, config.seed)
        counts["validation"] = {"available": len(validation), "file": config.train, "remark": "held out of train"}
        validation = draw_rows(validation, config.validation_rows, config.seed)
    test, evaluated_on = validation, "validation"
    if config.test is not None:
        test, evaluated_on = read(config.test), "test"
        counts["test"] = {"available": len(test), "file": config.test}
        test = draw_rows(test, config.test_rows, config.seed)
        counts["test"]["used"] = len(test)
    counts["train"]["used"], counts["validation"]["used"] = len(train), len(validation)
    return Splits(train=train, validation=validation, test=test, evaluated_on=evaluated_on, counts=counts)


def draw_rows(rows: list[dict[str, Any]], count: int | None, seed: int) -> list[dict[str, Any]]:
    """Draw `count` rows by seed, in their order; a larger count has those of a smaller one among them."""
    if count is None or count >= len(rows):
        return rows
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    return [rows[i] for i in sorted(order[:count])]
