"""What the benchmarks share: the machine, its measured matmul limit, child processes, tables.

Every variant runs in its own process with OMP_NUM_THREADS set, and hands its figures back as a JSON file: nothing
parses printed text.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

SOURCE_ROOT = Path(__file__).resolve().parent.parent / "src"
# 2048^3 is the usual square; the others are a block's and the head's matmuls of the 13.8 M model of train_speed.py.
LIMIT_SHAPES = ((2048, 2048, 2048), (2048, 1536, 384), (2048, 384, 1536), (2048, 8192, 384))
LIMIT_REPEATS = 20


def child_environment(threads: int, extra: dict[str, str] | None = None) -> dict[str, str]:
    """The environment of a variant: threads pinned, our source first on the path."""
    paths = [str(SOURCE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "RAYON_NUM_THREADS": str(threads),  # the tokenizers of Hugging Face
        "TOKENIZERS_PARALLELISM": "true",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(paths),
        **(extra or {}),
    }


def run_child(
    script: Path,
    arguments: Sequence[str],
    *,
    threads: int,
    extra: dict[str, str] | None = None,
    cwd: Path | None = None,
) -> dict:
    """Run `python script ... --result FILE`; return the JSON that it wrote, or {"error": last line of stderr}."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, str(script), *arguments, "--result", str(result)]
        finished = subprocess.run(
            command, env=child_environment(threads, extra), cwd=cwd, capture_output=True, text=True, check=False
        )
        if finished.returncode == 0 and result.exists():
            return json.loads(result.read_text())
        lines = finished.stderr.strip().splitlines() or ["no message"]
        return {"error": lines[-1][:300], "trace": lines[-20:]}


def write_result(path: str, record: dict) -> None:
    Path(path).write_text(json.dumps(record, allow_nan=False))


def print_report(report: dict, out: str | Path | None) -> None:
    """Print a report as JSON on stdout, and write it to a file where one is named."""
    text = json.dumps(report, indent=1)
    print(text)
    if out:
        Path(out).write_text(text)


def matmul_limit(threads: int) -> dict[str, float]:
    """Measured FLOP/s of the best of LIMIT_SHAPES, float32 and bfloat16, median of LIMIT_REPEATS."""
    import torch

    torch.set_num_threads(threads)
    limits = {}
    for dtype in (torch.float32, torch.bfloat16):
        rates = []
        for rows, columns, inner in LIMIT_SHAPES:
            a, b = torch.randn(rows, inner).to(dtype), torch.randn(inner, columns).to(dtype)
            seconds = [_seconds_of(lambda a=a, b=b: a @ b) for _ in range(LIMIT_REPEATS)]
            rates.append(2 * rows * columns * inner / statistics.median(seconds))
        limits[str(dtype).removeprefix("torch.")] = max(rates)
    return limits


def _seconds_of(action) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def describe_machine(threads: int) -> dict:
    import torch

    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "os": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def busy_cpu_seconds() -> float | None:
    """CPU seconds that the whole machine has spent; the difference to our own is what others took. None off Linux."""
    try:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _idle, _iowait, irq, softirq = (float(field) for field in fields[:7])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print aligned columns to stderr: the first left, the others right."""
    cells = [list(header), *[[str(cell) for cell in row] for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    print(f"\n{title}", file=sys.stderr)
    for row in cells:
        first, *others = (
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join([first, *others]).rstrip(), file=sys.stderr)
