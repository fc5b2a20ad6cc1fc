"""How much would more labels help? The same tuning on nested parts of the rows, and the law through its errors.

    out/                                   the run on all rows, an ordinary one, with "learning_curve" in tune.json
    out/fractions/rows-000250-0/           a part: records and predictions on the same test rows; no weights are kept

Parts are nested and keep the shares of the labels; small ones, whose training is luckiest, are drawn twice. A part is
tuned for more epochs than the whole (the square root of how much smaller it is, four times at most), because the same
few epochs of few rows would be hardly any training: the curve is to show what rows are worth, not updates. The best
validation decides in each. Killed at any instant, the same call continues.
"""

from __future__ import annotations

import gc
import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from chinchilla_lm.core.errors import CheckpointError, DataError
from chinchilla_lm.core.files import write_json, write_text
from chinchilla_lm.metrics.measures import Measures
from chinchilla_lm.tune.comparison import prediction_lines
from chinchilla_lm.tune.config import TuneConfig
from chinchilla_lm.tune.curve_law import CurvePoint, fit_curve
from chinchilla_lm.tune.learning import learn
from chinchilla_lm.tune.splits import Splits, read_splits
from chinchilla_lm.tune.stages import Display, Silent, read_predictions
from chinchilla_lm.tune.task import Task, TunedModel
from chinchilla_lm.tune.tuning import TuneResult, prepare_lesson, tune

FRACTIONS = (0.125, 0.25, 0.5)
# Parts up to a quarter are drawn twice: together they cost less than the half.
_TWICE_UP_TO = 0.25
_MOST_EPOCHS = 4.0
_LEAST_ROWS = 8
# bench/learning_curves.py: the three of fifteen forecasts that missed began at 1 to 5 rows a label; 10 leaves room.
_LEAST_PER_LABEL = 10


def tune_fractions(
    config: TuneConfig, fractions: Sequence[float] = FRACTIONS, display: Display | None = None
) -> TuneResult:
    """Tune on all rows and on nested parts of them, and forecast what twice the rows would bring.

    Args:
        config: of the run on all rows.
        fractions: of the training rows, each in (0, 1).
        display: told what happens.

    Returns:
        The run on all rows; its record has "learning_curve" (`curve_law.CurveLaw.as_record`).

    Raises:
        DataError: a part would have fewer than eight rows.
        FitError: fewer than two different fractions.
        ChinchillaError: as `tune`.
    """
    display = display or Silent()
    splits = read_splits(config)
    counts = {fraction: round(fraction * len(splits.train)) for fraction in sorted(set(fractions))}
    for fraction, count in counts.items():
        if not 0 < fraction < 1 or count < _LEAST_ROWS:
            raise DataError(
                f"a part of {fraction:g} of {len(splits.train)} rows has {count}; give fractions in (0, 1) with at"
                f" least {_LEAST_ROWS} rows"
            )
    result = tune(config, display)
    points = [CurvePoint(rows=len(splits.train), measures=_measure_again(config, splits, result))]
    head = result.record.get("head")
    if head in ("label-words", "fresh"):  # the rule would choose another one for few rows
        config = replace(config, head=head)
    for fraction, count in counts.items():
        for draw in range(2 if fraction <= _TWICE_UP_TO else 1):
            display.stage("part", f"{count} of {len(splits.train)} rows" + (", other rows" if draw else ""))
            points.append(CurvePoint(rows=count, measures=_tune_part(config, splits, count, draw, display)))
    law = fit_curve(points, seed=config.seed)
    curve = law.as_record()
    curve["warnings"] += _label_warnings(splits, min(counts.values()))
    record = {**result.record, "learning_curve": curve}
    write_json(result.folder / "tune.json", record)
    display.stage("law", law.sentence())
    return TuneResult(folder=result.folder, record=record)


def nested_order(rows: Sequence[Any], seed: int) -> list[int]:
    """Order rows so that every beginning has nearly the shares of the labels of the whole.

    Args:
        rows: with or without "label".
        seed: of the order within a label.

    Returns:
        Indices of all rows.
    """
    generator = random.Random(seed)
    strata: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        strata.setdefault(json.dumps(row.get("label"), ensure_ascii=False), []).append(number)
    keyed = []
    for members in strata.values():
        generator.shuffle(members)
        # Rows of a label come at equal distances, from a random start within the first distance.
        start = generator.random()
        keyed += [((place + start) / len(members), number) for place, number in enumerate(members)]
    return [number for _, number in sorted(keyed)]


def config_of_part(config: TuneConfig, count: int, whole: int, folder: Path) -> TuneConfig:
    """Return the config of a part: more epochs the smaller it is, at most four times.

    Args:
        config: of the whole.
        count: rows of the part.
        whole: rows of the whole.
        folder: its run directory.
    """
    factor = min(_MOST_EPOCHS, (whole / count) ** 0.5)
    steps = None if config.steps is None else max(1, round(config.steps * factor * count / whole))
    rows = min(config.rows, count)
    micro_batch = None if config.micro_batch is None else min(config.micro_batch, rows)
    epochs = config.epochs * factor
    return replace(config, epochs=epochs, steps=steps, rows=rows, micro_batch=micro_batch, out=str(folder))


def _label_warnings(splits: Splits, least: int) -> list[str]:
    """Doubt a smallest part that hardly shows each label."""
    labels = len({json.dumps(row["label"], ensure_ascii=False) for row in splits.train if "label" in row})
    if least >= _LEAST_PER_LABEL * labels:
        return []
    return [
        f"The smallest part has {least} rows for {labels} labels: such curves bend, and forecasts were too low there."
    ]


def _tune_part(config: TuneConfig, splits: Splits, count: int, draw: int, display: Display) -> Measures:
    """Train on a part and measure on the whole's test rows; predictions that are there are read."""
    folder = Path(config.out) / "fractions" / f"rows-{count:06d}-{draw}"
    order = nested_order(splits.train, config.seed + draw)
    part = replace(splits, train=[splits.train[number] for number in sorted(order[:count])])
    own = replace(config_of_part(config, count, len(splits.train), folder), seed=config.seed + draw)
    task, lesson = prepare_lesson(own, part)
    predictions = read_predictions(folder / "predictions.jsonl", splits.test)
    if predictions is None:
        steps = lesson.config.steps or 1
        learn(lesson, lambda record, _: display.advance(record.step / steps, record.loss, None))
        predictions = _predict(task, lesson.model, splits)
        lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in prediction_lines(splits.test, predictions))
        write_text(folder / "predictions.jsonl", "".join(lines))
        for name in ("checkpoints", "best"):
            shutil.rmtree(folder / name, ignore_errors=True)
    del lesson
    gc.collect()  # the next part loads its own model
    return task.measure(predictions, splits.test)


def _measure_again(config: TuneConfig, splits: Splits, result: TuneResult) -> Measures:
    """Measure the whole run's own predictions, for the counts that the record does not hold."""
    task, _ = prepare_lesson(config, splits)
    path = result.folder / "predictions" / "after.jsonl"
    predictions = read_predictions(path, splits.test)
    if predictions is None:
        raise CheckpointError(f"{path} is not of the test rows as they are now; write to a new folder, or restore them")
    return task.measure(predictions, splits.test)


def _predict(task: Task, model: TunedModel, splits: Splits) -> list[dict[str, Any]]:
    model.eval()
    with torch.no_grad():
        return task.predict(model, splits.test)
