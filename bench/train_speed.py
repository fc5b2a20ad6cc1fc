"""Training speed at one model size: ours, GPT-2 written out, nanoGPT, Hugging Face, nanochat, and the matmul limit.

    python bench/train_speed.py                                        # ours, GPT-2, Hugging Face
    python bench/train_speed.py --nanogpt CLONE --nanochat CLONE --compile --rounds 3 --out speed.json

Each variant runs in its own process; rounds are interleaved (every variant once, then all again). The figure of a
variant is the median step of its best round, because other users of a machine only ever slow a round down. All rounds
are in the JSON. Tokens per CPU second are steadier where others use the machine too. Foreign cores are what other
processes took while the round ran. The matmul limit is the best of one measurement a round.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from pathlib import Path

from machine import busy_cpu_seconds, describe_machine, matmul_limit, print_report, print_table, run_child, write_result

WARM_UP_STEPS = 4
SCRIPT = Path(__file__).resolve()


def main() -> None:
    options = parse_options()
    if options.worker == "limit":
        write_result(
            options.result, {"limits": matmul_limit(options.threads), "machine": describe_machine(options.threads)}
        )
        return
    if options.worker:
        write_result(options.result, measure_variant(options))
        return
    variants = choose_variants(options)
    rounds: dict[str, list[dict]] = {name: [] for name in variants}
    limits: dict[str, float] = {}
    for round_index in range(options.rounds):
        started = run_child(SCRIPT, ["--worker", "limit", "--threads", str(options.threads)], threads=options.threads)
        limits = {dtype: max(rate, limits.get(dtype, 0.0)) for dtype, rate in started["limits"].items()}
        for name in variants:
            record = run_variant(name, options)
            rounds[name].append(record)
            shown = record.get("error") or f"{record['tokens_per_s']:,.0f} tokens/s"
            print(f"round {round_index + 1}: {name}: {shown}", file=sys.stderr, flush=True)
    report = {
        "bench": "train_speed/1",
        "size": options.size,
        "machine": started["machine"],
        "limits": limits,
        "variants": summarise(rounds, options.size, limits),
    }
    show(report)
    print_report(report, options.out)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--size", choices=["small", "medium"], default="small", help="1.1 M or 13.8 M matmul parameters"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12, help="timed steps a round")
    parser.add_argument(
        "--compile", action="store_true", help="also the torch.compile variants (each compiles for 10-100 s)"
    )
    parser.add_argument("--only", default="", help="comma list of project names, such as ours,nanogpt")
    parser.add_argument("--nanogpt", help="a clone of github.com/karpathy/nanoGPT")
    parser.add_argument("--nanochat", help="a clone of github.com/karpathy/nanochat")
    parser.add_argument("--out", help="write the JSON here as well")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--result", help=argparse.SUPPRESS)
    return parser.parse_args()


def choose_variants(options: argparse.Namespace) -> list[str]:
    """Names "project dtype form"; form is "plain", "compiled" (torch.compile) or, ours, "kernels" (our C++ loops)."""
    projects = ["ours", "gpt2-architecture", "hf-gpt2", "hf-llama"]
    projects += [name for name in ("nanogpt", "nanochat") if getattr(options, name)]
    if options.only:
        projects = [name for name in projects if name in options.only.split(",")]
    variants = []
    for project in projects:
        forms = [*(["kernels"] if project == "ours" else []), "plain", *(["compiled"] if options.compile else [])]
        variants += [f"{project} {dtype} {form}" for form in forms for dtype in ("float32", "bfloat16")]
    return variants


def run_variant(name: str, options: argparse.Namespace) -> dict:
    project, dtype, _ = name.split()
    arguments = [
        "--worker",
        name,
        "--size",
        options.size,
        "--threads",
        str(options.threads),
        "--steps",
        str(options.steps),
    ]
    clone = getattr(options, project, None)
    if clone:
        arguments += [f"--{project}", str(Path(clone).resolve())]
    extra = {"NANOCHAT_DTYPE": dtype}
    if project == "ours":
        extra["THP_MEM_ALLOC_ENABLE"] = "1"  # as our command sets it; no peer does
    return run_child(SCRIPT, arguments, threads=options.threads, extra=extra)


def measure_variant(options: argparse.Namespace) -> dict:
    import torch
    from train_steps import STEPS, WORKS

    torch.set_num_threads(options.threads)
    project, dtype, form = options.worker.split()
    clone = getattr(options, project, None)
    work = WORKS[options.size]
    step = STEPS[project](work, Path(clone) if clone else None, dtype=dtype, form=form)
    started = time.perf_counter()
    losses = [step.run()]
    first_seconds = time.perf_counter() - started
    losses += [step.run() for _ in range(WARM_UP_STEPS - 1)]
    busy, own, wall = busy_cpu_seconds(), time.process_time(), time.perf_counter()
    seconds = []
    for _ in range(options.steps):
        started = time.perf_counter()
        losses.append(step.run())
        seconds.append(time.perf_counter() - started)
    wall, cpu = time.perf_counter() - wall, time.process_time() - own
    foreign = None if busy is None else max(0.0, (busy_cpu_seconds() or busy) - busy - cpu) / wall
    return {
        "step_seconds": seconds,
        "tokens_per_s": work.batch_tokens / statistics.median(seconds),
        "tokens_per_cpu_second": work.batch_tokens * options.steps / cpu,
        "first_step_seconds": first_seconds,
        "matmul_params": step.matmul_params,
        "params": step.params,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "foreign_cores": foreign,
        "first_loss": losses[0],
        "last_loss": losses[-1],
    }


def summarise(rounds: dict[str, list[dict]], size: str, limits: dict[str, float]) -> dict[str, dict]:
    from train_steps import WORKS

    summary = {}
    for name, records in rounds.items():
        good = [record for record in records if "error" not in record]
        if not good:
            summary[name] = {"error": records[0]["error"]}
            continue
        best = max(good, key=lambda record: record["tokens_per_s"])
        rate = best["tokens_per_s"] * WORKS[size].flops_per_token(best["matmul_params"])
        summary[name] = {
            "tokens_per_s": best["tokens_per_s"],
            "tokens_per_cpu_second": max(record["tokens_per_cpu_second"] for record in good),
            "of_float32_limit": rate / limits["float32"],
            "of_bfloat16_limit": rate / limits["bfloat16"],
            "rounds_tokens_per_s": [record["tokens_per_s"] for record in good],
            "best_round": best,
        }
    return summary


def show(report: dict) -> None:
    limits = report["limits"]
    rows = []
    for name, record in report["variants"].items():
        if "error" in record:
            print(f"{name} failed: {record['error']}", file=sys.stderr)
            continue
        best = record["best_round"]
        rows.append(
            [
                name,
                f"{record['tokens_per_s']:,.0f}",
                " ".join(f"{value:,.0f}" for value in record["rounds_tokens_per_s"]),
                f"{record['tokens_per_cpu_second']:,.0f}",
                f"{record['of_float32_limit']:.0%}",
                f"{record['of_bfloat16_limit']:.0%}",
                f"{best['matmul_params'] / 1e6:.3f} M",
                f"{best['peak_memory_bytes'] / 2**20:,.0f} MiB",
                f"{best['first_step_seconds']:.1f} s",
            ]
        )
    machine = report["machine"]
    print_table(
        f"Training speed, size {report['size']}, {machine['cpu']}, {machine['threads']} threads, "
        f"torch {machine['torch']}; matmul limit "
        f"{limits['float32'] / 1e9:.0f} GFLOP/s float32, {limits['bfloat16'] / 1e9:.0f} bfloat16",
        ["variant", "tokens/s", "rounds", "per CPU s", "of fp32", "of bf16", "matmul N", "memory", "first step"],
        rows,
    )


if __name__ == "__main__":
    main()
