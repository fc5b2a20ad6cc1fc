"""Measuring this machine: matmul limits, seconds per step over shapes, alone and with all workers busy."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from chinchilla_lm import __version__
from chinchilla_lm.laws.count import count_parameters
from chinchilla_lm.laws.shapes import nearest_shape
from chinchilla_lm.study.ladder import LEAST_WIDTH, optimal_tokens
from chinchilla_lm.study.pool import WorkerPool
from chinchilla_lm.study.speeds import MachineSpeeds, speed_table
from chinchilla_lm.train.config import TrainConfig
from chinchilla_lm.train.recipe import RecipeOptions, recipe_for
from chinchilla_lm.train.speed import measure_all, measure_matmul

DTypeName = Literal["float32", "bfloat16"]
# The measured sizes are a factor 4 apart; what lies between is interpolated.
_SIZE_RATIO = 4.0


def device_name() -> str:
    """Name what computes here."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu_name()


def describe_machine(threads: int) -> dict[str, Any]:
    """Return the machine's facts for env.json, its matmul limits measured."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {
        "schema": "env/1",
        "device": device_name(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "os": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "version": __version__,
        "threads": threads,
        "matmul_flops_per_s": {name: measure_matmul(name, threads, device) for name in ("float32", "bfloat16")},
    }


def sizes_to_measure(smallest: float, largest: float, *, vocab: int, context: int) -> list[TrainConfig]:
    """Derive the configs whose speed is measured: sizes a factor 4 apart that span the ladder and the final run.

    Each has the batch of its own optimal run, since small batches are slow and small models have them.

    Args:
        smallest: matmul parameters of the smallest trial expected.
        largest: of the largest final model expected.
        vocab: of the tokenizer, about.
        context: tokens in a window.
    """
    shapes = []
    params = smallest
    while True:
        shape = nearest_shape(params, vocab=vocab, context=context, d_min=LEAST_WIDTH)
        if shape not in shapes:
            shapes.append(shape)
        if params >= largest:
            break
        params = min(params * _SIZE_RATIO, largest)
    return [recipe_for(shape, optimal_tokens(count_parameters(shape).matmul), RecipeOptions()) for shape in shapes]


def choose_dtype(config: TrainConfig, threads: int, seconds: float) -> tuple[DTypeName, list[dict[str, Any]]]:
    """Measure float32 against bfloat16 on one shape; return the faster and both points."""
    points = measure_all([with_run(config, threads=threads, dtype=name) for name in ("float32", "bfloat16")], seconds)
    is_bfloat16_faster = points[1]["tokens_per_s"] > points[0]["tokens_per_s"]
    return ("bfloat16" if is_bfloat16_faster else "float32"), points


def measure_speeds(
    configs: Sequence[TrainConfig],
    pool: WorkerPool,
    *,
    threads: int,
    worker_threads: int,
    dtype: DTypeName,
    seconds_each: float,
) -> list[dict[str, Any]]:
    """Measure each config on all threads, and in every worker at once.

    Returns:
        env.json's speeds; "role" says "whole" or "worker".
    """
    whole = measure_all([with_run(config, threads=threads, dtype=dtype) for config in configs], seconds_each)
    points = [{**point, "role": "whole"} for point in whole]
    theirs = [with_run(config, threads=worker_threads, dtype=dtype) for config in configs]
    for event in pool.run(do_measure, [(theirs, seconds_each)] * pool.n_workers):
        if event.kind == "done":
            points += [{**point, "role": "worker"} for point in event.result]
        elif event.kind == "failed":
            raise RuntimeError(event.error)
    return points


def do_measure(task: tuple[list[TrainConfig], float], report: Callable[[float, float], None]) -> list[dict[str, Any]]:
    """Measure in a worker process."""
    configs, seconds_each = task
    return measure_all(configs, seconds_each)


def machine_speeds(points: Sequence[dict[str, Any]], n_workers: int) -> MachineSpeeds:
    """Build the planner's tables from env.json's speeds."""
    return MachineSpeeds(
        worker=speed_table([point for point in points if point["role"] == "worker"]),
        whole=speed_table([point for point in points if point["role"] == "whole"]),
        n_workers=n_workers,
    )


def with_run(config: TrainConfig, *, threads: int, dtype: DTypeName) -> TrainConfig:
    """Return a config placed otherwise."""
    return replace(config, run=replace(config.run, threads=threads, dtype=dtype))


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
