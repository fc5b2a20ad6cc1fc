"""A tiny job: a model of a few thousand parameters, text that can be learnt, and a factory of configs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from chinchilla_lm.core.shapes import ModelShape
from chinchilla_lm.train.config import BatchConfig, OptimizerConfig, RunConfig, ScheduleConfig, TrainConfig

VOCAB, CONTEXT, ROWS = 32, 8, 4


class CountingText:
    """Windows of 0, 1, 2, ... modulo the vocabulary from a random start: a pure function of the step."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def at(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        starts = np.random.default_rng((self.seed, step)).integers(0, VOCAB, (ROWS, 1))
        window = (starts + np.arange(CONTEXT + 1)) % VOCAB
        return window[:, :-1], window[:, 1:]


@pytest.fixture
def batches() -> CountingText:
    return CountingText()


@pytest.fixture
def other_batches() -> CountingText:
    return CountingText(seed=1)


@pytest.fixture(scope="session")
def make_config() -> Callable[..., TrainConfig]:
    """Make a config; keyword arguments go to the part that has the field."""
    shape = ModelShape(
        vocab=VOCAB, context=CONTEXT, d_model=16, n_layers=2, n_heads=2, n_kv_heads=2, head_dim=8, d_ff=32, dropout=0.1
    )
    config = TrainConfig(
        shape=shape,
        batch=BatchConfig(rows=ROWS, micro_batch=ROWS),
        optimizer=OptimizerConfig(lr_matrix=0.02, lr_embedding=0.02, weight_decay=0.1),
        schedule=ScheduleConfig(steps=12, warmup_steps=2, decay_steps=4),
        run=RunConfig(device="cpu", checkpoint_seconds=1e9),
    )

    def make(**changes: Any) -> TrainConfig:
        made = config
        for part in ("shape", "batch", "optimizer", "schedule", "run"):
            record = getattr(made, part)
            mine = {name: changes.pop(name) for name in list(changes) if hasattr(record, name)}
            made = replace(made, **{part: replace(record, **mine)})
        assert not changes, changes
        return made

    return make
