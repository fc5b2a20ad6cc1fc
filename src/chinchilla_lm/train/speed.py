"""Measured speeds: what this machine multiplies and trains, in the very loop that will train.

Planning by a data sheet is wrong by 5-10x on tiny models, so the study asks the machine. MFU is against the measured
matmul limit, never against a guessed GPU.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from chinchilla_lm.laws.count import count_parameters, training_flops_per_token
from chinchilla_lm.train.config import TrainConfig
from chinchilla_lm.train.loop import train
from chinchilla_lm.train.objective import next_token_objective
from chinchilla_lm.train.placement import choose_placement
from chinchilla_lm.train.segment import build_training, plan_loop

_WARMUP_STEPS = 2
_LEAST_STEPS = 3
# Of the updates' durations: with the median two quiet five-minute jobs ended 13 % early, with the lower quartile one
# ended 12 % late (dev/LOG.md 2026-11-21).
_QUANTILE = 0.4
_PATIENCE = 4.0  # times the seconds asked for, after which one measured update must do
# Sides of the matmuls tried: the limit is the best of what a small and a wide model can ask for.
_MATMUL_SIZES = (512, 1024, 2048)
_MATMUL_SECONDS = 0.15


@dataclass(frozen=True, kw_only=True)
class StepSpeed:
    """One shape's measured training speed.

    Attributes:
        config: what was trained.
        step_seconds: 40th percentile of the updates.
        tokens_per_s: batch tokens over that.
        flops_per_s: useful FLOPs (exact convention) over that.
    """

    config: TrainConfig
    step_seconds: float
    tokens_per_s: float
    flops_per_s: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields of one entry of env.json's speeds."""
        shape = self.config.shape
        return {
            "d_model": shape.d_model,
            "n_layers": shape.n_layers,
            "params_matmul": count_parameters(shape).matmul,
            "flops_per_token": training_flops_per_token(shape),
            "batch_tokens": self.config.batch_tokens,
            "dtype": self.config.run.dtype,
            "form": self.config.run.form,
            "threads": self.config.run.threads,
            "step_seconds": self.step_seconds,
            "tokens_per_s": self.tokens_per_s,
            "flops_per_s": self.flops_per_s,
        }


def measure_matmul(dtype: str, threads: int, device: str = "cpu") -> float:
    """Measure the best rate of square matmuls, FLOPs per second (2 n^3 each).

    Args:
        dtype: "float32" or "bfloat16".
        threads: of torch on a CPU.
        device: "cpu" or "cuda".
    """
    torch.set_num_threads(threads)
    best = 0.0
    for size in _MATMUL_SIZES:
        a, b = (torch.randn(size, size, device=device).to(getattr(torch, dtype)) for _ in range(2))
        rate, began = 0.0, time.perf_counter()
        while time.perf_counter() - began < _MATMUL_SECONDS:
            started = time.perf_counter()
            torch.mm(a, b).flatten()[0].item()
            rate = max(rate, 2 * size**3 / (time.perf_counter() - started))
        best = max(best, rate)
    return best


def measure_steps(config: TrainConfig, seconds: float) -> StepSpeed:
    """Train a fresh model on random tokens for about `seconds` and take their 40th percentile.

    Args:
        config: shape, batch, dtype, threads and form are obeyed; nothing is written.
        seconds: to measure for, after two warm-up updates (a compiler's time is not counted).

    Returns:
        The speed.
    """
    placement = choose_placement(config.run)
    model, optimizer = build_training(config, placement)
    durations: list[float] = []
    plan = plan_loop(config, start_step=0, start_tokens=0, stop_step=config.schedule.steps)
    began = time.perf_counter()
    updates = train(model, _RandomBatches(config), next_token_objective, optimizer, plan, placement)
    for record in updates:
        durations.append(record.step_seconds)
        measured = durations[_WARMUP_STEPS:]
        has_enough = len(measured) >= _LEAST_STEPS and sum(measured) >= seconds
        if has_enough or (measured and time.perf_counter() - began > _PATIENCE * seconds):
            break
    updates.close()
    step_seconds = float(np.quantile(durations[_WARMUP_STEPS:] or durations, _QUANTILE))
    tokens_per_s = config.batch_tokens / step_seconds
    return StepSpeed(
        config=config,
        step_seconds=step_seconds,
        tokens_per_s=tokens_per_s,
        flops_per_s=tokens_per_s * training_flops_per_token(config.shape),
    )


def measure_all(configs: Sequence[TrainConfig], seconds_each: float) -> list[dict[str, Any]]:
    """Measure several configs one after another; see `measure_steps` and `StepSpeed.to_dict`."""
    return [measure_steps(config, seconds_each).to_dict() for config in configs]


class _RandomBatches:
    """Random tokens, a few batches reused: speed does not depend on which tokens they are."""

    def __init__(self, config: TrainConfig) -> None:
        rng = np.random.default_rng(0)
        ids = rng.integers(config.shape.vocab, size=(4, config.batch.rows, config.shape.context + 1), dtype=np.int64)
        self._batches = [(np.ascontiguousarray(x[:, :-1]), np.ascontiguousarray(x[:, 1:])) for x in ids]

    def at(self, step: int, /) -> tuple[np.ndarray[Any, Any], ...]:
        return self._batches[step % len(self._batches)]
