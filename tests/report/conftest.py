"""A run directory made by code: a known law plus noise, written through the same records as a real run."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chinchilla_lm.core.files import write_bytes, write_json, write_text
from chinchilla_lm.core.records import append_record
from chinchilla_lm.laws.forms.additive import AdditiveLaw

LAW = AdditiveLaw(E=1.05, A=42.0, B=96.0, alpha=0.34, beta=0.31)
SHAPE = {
    "layout": "qwen3",
    "vocab": 1024,
    "context": 128,
    "d_model": 80,
    "n_layers": 4,
    "n_heads": 3,
    "n_kv_heads": 3,
    "head_dim": 32,
    "d_ff": 256,
    "is_tied": False,
}
CONFIG = """\
corpus = "complete-works.txt"
budget = "5m"
seed = 7

[sweep]
rungs = 3
sizes = [0.4, 1.0, 2.5]
"""
PLAN = """\
d_model = 80  # the size of least predicted loss for 195 s at measured speed
lr_peak = 0.0089  # k/d * sqrt(B/900) * (3.4e5/D)^0.2, k = 0.85 by the probe
batch_tokens = 2048  # D/3000
seed = 7
"""
BYTES_PER_TOKEN = 2.9
BACKTESTS = [
    dict(zip(("kind", "params", "flops", "predicted", "low", "high", "actual"), row, strict=True))
    for row in (
        ("run", 3.1e4, 1e12, 3.18, 3.08, 3.26, 3.1211),
        ("optimum", 7.3e4, 1e12, 3.0532, 2.96, 3.13, 3.0323),
        ("optimum", 1.23e5, 3e12, 2.7171, 2.66, 2.78, 2.7029),
    )
]

RunMaker = Callable[..., Path]


@pytest.fixture(scope="session")
def written_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs that were written once in this session, by their options."""
    return {"folder": tmp_path_factory.mktemp("runs")}


@pytest.fixture
def make_run(tmp_path: Path, written_runs: dict[str, Path]) -> RunMaker:
    """Make a whole run directory, or one that stopped after some stage; each test gets its own copy."""

    def make(name: str = "shakespeare-5m", extra: dict[str, Any] | None = None, **options: Any) -> Path:
        key = repr(sorted(options.items()))
        if key not in written_runs:
            written_runs[key] = write_run(written_runs["folder"] / str(len(written_runs)), **options)
        folder = Path(shutil.copytree(written_runs[key], tmp_path / name))
        if extra:
            write_json(folder / "eval.json", {**evaluation_record(), **extra})
        return folder

    return make


def write_run(folder: Path, *, until: str = "report", curve_points: int = 120, repeats: int = 1) -> Path:
    """Write the records of a run that got as far as `until`: prepare, sweep, forecast, train or report."""
    generator = np.random.default_rng(20261121)
    reached = ("prepare", "sweep", "forecast", "train", "report").index(until)
    write_text(folder / "config.toml", CONFIG)
    write_json(folder / "env.json", environment())
    _stage(folder, "prepare", 11.2, 0)
    _stage(folder, "measure", 8.4, 2e11)
    if reached >= 1:
        for trial in sweep_trials(generator, curve_points, repeats):
            append_record(folder / "sweep" / "records.jsonl", "trial/1", trial)
        _stage(folder, "sweep", 71.8, 5.9e12)
    if reached >= 2:
        write_json(folder / "law.json", law_record())
        write_json(folder / "forecast.json", forecast_record())
        write_text(folder / "plan.toml", PLAN)
        _stage(folder, "forecast", 1.9, 0)
    if reached >= 3:
        share = 1.0 if reached >= 4 else 0.4
        write_training(folder / "train" / "records.jsonl", generator, share)
        _stage(folder, "train", 181.5 * share, 1.31e13 * share)
    if reached >= 4:
        write_json(folder / "eval.json", evaluation_record())
        write_bytes(folder / "model" / "model.safetensors", b"weights")
        write_json(folder / "model" / "config.json", {"model_type": "qwen3"})
        _stage(folder, "evaluate", 9.7, 1.1e11)
    return folder


def environment() -> dict[str, Any]:
    speeds = [
        {
            "d_model": width,
            "n_layers": layers,
            "params_matmul": params,
            "batch_tokens": 2048,
            "threads": 2,
            "step_seconds": 6 * params * 2048 / rate,
            "tokens_per_s": rate / (6 * params),
            "flops_per_s": rate,
        }
        for width, layers, params, rate in ((32, 2, 5.7e4, 3.1e10), (64, 3, 2.1e5, 5.6e10), (96, 4, 5.4e5, 7.2e10))
    ]
    return {
        "schema": "env/1",
        "cpu": "Some Processor 7 (2 cores)",
        "cores": 2,
        "memory_bytes": 8 << 30,
        "os": "Linux 6.1",
        "python": "3.11.9",
        "torch": "2.13.0",
        "version": "0.1.0",
        "dtype": "float32",
        "threads": 2,
        "matmul_flops_per_s": {"float32": 1.3e11, "bfloat16": 9.4e10},
        "speeds": speeds,
    }


def cost_ratio(params: float) -> float:
    """FLOPs / (params x tokens): 6 and attention, which weighs less in larger models."""
    return 6.0 + 90.0 / math.sqrt(params)


def best_size(flops: float) -> float:
    sizes = np.geomspace(1e3, 1e8, 4001)
    ratios = np.array([cost_ratio(size) for size in sizes])
    return float(sizes[np.argmin(LAW.loss(sizes, flops / (ratios * sizes)))])


def sweep_trials(generator: np.random.Generator, curve_points: int, repeats: int) -> list[dict[str, Any]]:
    trials = []
    designs = [(rung, flops, factor, "ladder", 1.0) for rung, flops in enumerate((3e11, 1e12, 3e12)) for factor in
               ((0.2, 0.45, 1.0, 2.2, 5.0) if rung == 0 else (0.4, 1.0, 2.5))]  # fmt: skip
    designs += [(0, 3e11, 1.0, "probe", scale) for scale in (0.5, 2.0)] + [(0, 3e11, 1.0, "repeat", 1.0)]
    for number, (rung, flops, factor, purpose, lr_scale) in enumerate(designs * repeats):
        params = round(best_size(flops) * factor)
        tokens = flops / (cost_ratio(params) * params)
        penalty = 0.03 if purpose == "probe" else 0.0
        loss = LAW.loss(params, tokens) * float(1 + 0.004 * generator.standard_normal() + penalty)
        seen = np.geomspace(tokens / curve_points, tokens, curve_points)
        path = np.minimum(math.log(1024), LAW.loss(np.full_like(seen, params), seen) * 1.02)
        noisy = path * (1 + 0.02 * generator.standard_normal(curve_points))
        trials.append(
            {
                "trial": f"t{number:03d}",
                "purpose": purpose,
                "rung": rung,
                "shape": SHAPE,
                "params_matmul": params,
                "params_total": params + 40_000,
                "tokens": round(tokens),
                "unique_tokens": 31_000_000,
                "epochs": 1.0,
                "flops": flops,
                "flops_spent": flops,
                "seconds": flops / 6e10,
                "steps": 1200,
                "batch_tokens": 512,
                "lr_peak": 0.01,
                "lr_scale": lr_scale,
                "seed": 7 + number,
                "loss": loss,
                "loss_se": 0.004,
                "bits_per_byte": loss / math.log(2) / BYTES_PER_TOKEN,
                "status": "done",
                "curve": [[float(x), float(y)] for x, y in zip(seen, noisy, strict=True)],
            }
        )
    return trials


def law_record() -> dict[str, Any]:
    rungs = []
    for flops in (3e11, 1e12, 3e12):
        params = best_size(flops)
        tokens = flops / (cost_ratio(params) * params)
        rungs.append({"flops": flops, "params": params, "tokens": tokens, "loss": LAW.loss(params, tokens)})
    slope = math.log(rungs[2]["loss"] / rungs[1]["loss"]) / math.log(rungs[2]["flops"] / rungs[1]["flops"])
    names = ("E", "A", "B", "alpha", "beta", "a", "b")
    intervals = {
        n: {"low": getattr(LAW, n) * 0.9, "high": getattr(LAW, n) * 1.1, "se": getattr(LAW, n) * 0.06} for n in names
    }
    return {
        "schema": "law/1",
        **LAW.to_dict(),
        "objective": 1.7e-5,
        "interval_level": 0.95,
        "n_runs": 11,
        "intervals": intervals,
        "line": {"intercept": math.log(rungs[2]["loss"]) - slope * math.log(rungs[2]["flops"]), "slope": slope},
        "rungs": rungs,
        "warnings": ["The forecast reaches 4.4 times past the most expensive rung."],
        "hash": LAW.hash(),
    }


def candidate_records() -> list[dict[str, Any]]:
    rows = []
    for width, params, rate in (
        (48, 1.2e5, 4.4e10), (64, 2.1e5, 5.6e10), (72, 2.8e5, 6.7e10),
        (80, 360448, 7.2e10), (96, 5.4e5, 7.4e10), (112, 7.7e5, 7.6e10),
    ):  # fmt: skip
        tokens = 181.5 * rate / (cost_ratio(params) * params)
        loss = LAW.loss(params, tokens)
        rows.append({"d_model": width, "params_matmul": params, "tokens": tokens, "seconds": 181.5, "loss": loss})
    return rows


def forecast_record() -> dict[str, Any]:
    flops, params = 1.31e13, 360_448
    tokens = flops / (cost_ratio(params) * params)
    additive = LAW.loss(params, tokens)
    loss = additive * 0.992
    bits = 1 / math.log(2) / BYTES_PER_TOKEN
    return {
        "schema": "forecast/1",
        "written_at": "2026-11-21T20:14:03Z",
        "law_hash": LAW.hash(),
        "params_matmul": params,
        "params_total": params + 98_304,
        "tokens": tokens,
        "flops": flops,
        "shape": SHAPE,
        "loss": loss,
        "low": loss * 0.98,
        "high": loss * 1.02,
        "level": 0.9,
        "sources": {"additive": additive, "line": additive * 0.984},
        "backtests": BACKTESTS,
        "established": True,
        "reasons": [],
        "flat_band": {"params_low": 2.4e5, "params_high": 5.5e5, "loss_penalty": 0.005},
        "candidates": candidate_records(),
        "unit": "nats per token",
        "bits_per_byte": {"predicted": loss * bits, "low": loss * 0.98 * bits, "high": loss * 1.02 * bits},
    }


def write_training(path: Path, generator: np.random.Generator, share: float) -> None:
    forecast = forecast_record()
    total = round(forecast["tokens"] / 2048)
    for step in range(1, round(total * share) + 1, 4):
        tokens = step * 2048
        level = LAW.loss(forecast["params_matmul"], tokens) * (1.03 - 0.04 * max(0.0, step / total - 0.8) / 0.2)
        loss = min(math.log(1024), level) * float(1 + 0.012 * generator.standard_normal())
        fields = {
            "step": step,
            "tokens": tokens,
            "loss": loss,
            "lr": 0.0089,
            "grad_norm": 0.6,
            "tokens_per_s": 21_400.0,
        }
        append_record(path, "step/1", {**fields, "mfu": 0.55, "elapsed_seconds": tokens / 21_400})
    for tenth in range(1, round(10 * share) + 1):
        tokens = forecast["tokens"] * tenth / 10
        loss = evaluation_record()["loss"] if tenth == 10 else LAW.loss(forecast["params_matmul"], tokens) * 1.02
        fields = {
            "step": round(tokens / 2048),
            "tokens": round(tokens),
            "loss": loss,
            "loss_se": 0.011,
            "bits_per_byte": 1.5,
        }
        append_record(path, "evaluation/1", fields)


def evaluation_record() -> dict[str, Any]:
    forecast = forecast_record()
    loss = forecast["loss"] * 0.9957
    return {
        "schema": "eval/1",
        "loss": loss,
        "loss_se": 0.011,
        "bits_per_byte": loss / math.log(2) / BYTES_PER_TOKEN,
        "tokens": 131_072,
        "bytes": 380_109,
        "predicted": {key: forecast[key] for key in ("loss", "low", "high")},
        "inside": True,
        "error_percent": 100 * (1 / 0.9957 - 1),
        "samples": [
            {
                "prompt": "KING:\n",
                "text": "What says the duke? I have not seen the day\nThat so much sorrow came to such an end.",
                "temperature": 0.8,
            },
            {
                "prompt": "The sea",
                "text": " was dark, and all the ships were gone\nBefore the morning bell.",
                "temperature": 0.8,
            },
        ],
        "transformers_check": {"loss": loss + 2e-7, "difference": 2e-7},
    }


def _stage(folder: Path, name: str, seconds: float, flops: float) -> None:
    append_record(
        folder / "stages.jsonl",
        "stage/1",
        {"stage": name, "seconds": seconds, "flops": flops, "cpu_seconds": seconds * 1.9},
    )
