"""What the torture tests share: a model with dropout on, random text, and a job's final state as bytes."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from chinchilla_lm.core.shapes import ModelShape
from chinchilla_lm.train.checkpoint import latest_checkpoint
from chinchilla_lm.train.config import BatchConfig, OptimizerConfig, RunConfig, ScheduleConfig, TrainConfig

STATE = ("weights.safetensors", "optimizer.safetensors", "random.safetensors")


class RandomText:
    """Windows of random tokens, a pure function of the step."""

    def __init__(self, config: TrainConfig) -> None:
        self._size = (config.batch.rows, config.shape.context + 1)
        self._vocab = config.shape.vocab

    def at(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        window = np.random.default_rng((0, step)).integers(0, self._vocab, self._size)
        return window[:, :-1], window[:, 1:]


@pytest.fixture(scope="session")
def text_for() -> Callable[[TrainConfig], RandomText]:
    return RandomText


@pytest.fixture(scope="session")
def small_config() -> TrainConfig:
    """A checkpoint of 0.2 MB."""
    shape = ModelShape(
        vocab=64, context=8, d_model=32, n_layers=1, n_heads=2, n_kv_heads=2, head_dim=16, d_ff=64, dropout=0.1
    )
    return TrainConfig(
        shape=shape,
        batch=BatchConfig(rows=2, micro_batch=2),
        optimizer=OptimizerConfig(lr_matrix=0.01, lr_embedding=0.01),
        schedule=ScheduleConfig(steps=8, warmup_steps=2, decay_steps=2),
        run=RunConfig(device="cpu", checkpoint_seconds=0.0, keep_checkpoints=3),
    )


@pytest.fixture(scope="session")
def big_config(small_config: TrainConfig) -> TrainConfig:
    """A checkpoint of 6.6 MB: kills land inside its writing. (With 0.3 MB even a naive writer passes.)"""
    shape = ModelShape(
        vocab=1024, context=16, d_model=128, n_layers=2, n_heads=4, n_kv_heads=4, head_dim=32, d_ff=256, dropout=0.1
    )
    return replace(
        small_config,
        shape=shape,
        schedule=ScheduleConfig(steps=60, warmup_steps=5, decay_steps=12),
        run=replace(small_config.run, keep_checkpoints=2),
    )


@pytest.fixture(scope="session")
def final_state() -> Callable[[Path], dict[str, bytes]]:
    """Read weights, optimizer and random state of a job folder's newest checkpoint."""

    def read(folder: Path) -> dict[str, bytes]:
        path, _ = latest_checkpoint(folder / "checkpoints")
        assert path is not None
        return {name: (path / name).read_bytes() for name in STATE}

    return read


@pytest.fixture(scope="session")
def die_with_parent() -> Callable[[], None]:
    """Ask Linux to kill this child when the test does, so that an interrupted test leaves nothing running."""
    return lambda: ctypes.CDLL(None).prctl(1, 9)
