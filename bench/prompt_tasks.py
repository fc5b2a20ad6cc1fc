"""What a model answers when asked, without a gradient: sets, shots and scoring rules in one resumable command.

    python bench/prompt_tasks.py --model SMOLLM2_FOLDER --data DATA_FOLDER --out runs/prompt_tasks    # all lines
    ... --only sst2-4,agnews-4     # some of them
    ... --tiny                     # a few rows a line: does it run?
    python bench/prompt_tasks.py --out runs/prompt_tasks --show    # only print the table

A line is a set with a number of shots: 0 (one draw) or 4 and 8 (five draws of balanced demonstrations), the wording
that `chinchilla prompt` takes by default, all scoring rules that it can serve, and `auto`, which chooses on dev rows
that are neither test rows nor demonstrations. The rows of a line are few enough for about 90 s on one core (900 tokens
a second read in bfloat16); test, dev and demonstration rows are drawn by the seed, from separate files where a set has
them. A figure is the mean over draws +- their standard deviation; the standard error over rows stands beside it, and
with 100 rows it is 4 to 5 points. LAMBADA and BLiMP are zero-shot suites, scored as `chinchilla eval --suite` does.
Each line runs in its own process and is appended to OUT/results.jsonl when finished; finished lines are skipped.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lines import check_inputs, latest_records, line_named, print_tables, run_lines
from machine import child_environment

SCRIPT = Path(__file__).resolve()
SCHEMA = "prompt_task/1"
DRAWS = 5
SEED = 0
# 77 choices of three tokens each make a row of banking77 cost half a CPU second, the others a tenth or less.
TINY_ROWS, TINY_ITEMS = (6, 0), 4
CLASSIFICATION, CHOICE = "text-classification", "multiple-choice"
CLOSED_RULES = ("sum", "byte", "pmi", "cc", "bc")
CHOICE_RULES = ("sum", "token", "char", "byte", "pmi")


@dataclass(frozen=True, kw_only=True)
class Line:
    """One set with so many shots. `rows`: test rows, dev rows. No `train` file: all rows come from the test file."""

    name: str
    task: str
    test: str
    train: str | None = None
    shots: int = 0
    rows: tuple[int, int] = (0, 0)


_SST2 = {"task": CLASSIFICATION, "test": "sentiment-sst2/test.jsonl", "train": "sentiment-sst2/train.jsonl"}
_AGNEWS = {"task": CLASSIFICATION, "test": "topic-agnews-small/test.jsonl", "train": "topic-agnews-small/train.jsonl"}
_BANKING = {"task": CLASSIFICATION, "test": "intent-banking77/test.jsonl", "train": "intent-banking77/train.jsonl"}
_CSQA = {"task": CHOICE, "test": "mc-commonsenseqa/dev.jsonl", "train": "mc-commonsenseqa/train.jsonl"}
_ARC = {"task": CHOICE, "test": "mc-zeroshot-pack/arc_easy.jsonl"}
_PIQA = {"task": CHOICE, "test": "mc-zeroshot-pack/piqa.jsonl"}
_COPA = {"task": CHOICE, "test": "mc-zeroshot-pack/copa.jsonl"}
LINES = (
    Line(name="sst2-4", shots=4, rows=(150, 64), **_SST2),
    Line(name="agnews-4", shots=4, rows=(100, 64), **_AGNEWS),
    Line(name="sst2-0", rows=(500, 128), **_SST2),
    Line(name="agnews-0", rows=(400, 128), **_AGNEWS),
    Line(name="commonsenseqa-0", rows=(400, 128), **_CSQA),
    Line(name="arc-easy-0", rows=(300, 128), **_ARC),
    Line(name="piqa-0", rows=(200, 100), **_PIQA),
    Line(name="copa-0", rows=(60, 40), **_COPA),
    Line(name="lambada", task="suite", test="lambada", rows=(300, 0)),
    Line(name="blimp", task="suite", test="blimp", rows=(1340, 0)),
    Line(name="banking77-0", rows=(200, 0), **_BANKING),
    Line(name="sst2-8", shots=8, rows=(150, 64), **_SST2),
    Line(name="agnews-8", shots=8, rows=(100, 64), **_AGNEWS),
    Line(name="commonsenseqa-4", shots=4, rows=(120, 64), **_CSQA),
    Line(name="arc-easy-4", shots=4, rows=(80, 48), **_ARC),
    Line(name="piqa-4", shots=4, rows=(60, 32), **_PIQA),
    Line(name="copa-4", shots=4, rows=(50, 32), **_COPA),
    Line(name="banking77-4", shots=4, rows=(30, 0), **_BANKING),
)


def main() -> None:
    options = parse_options()
    results = Path(options.out) / "results.jsonl"
    if options.worker:
        run_line(line_named(options.worker, LINES), options)
        return
    names = [name for name in options.only.split(",") if name] or [line.name for line in LINES]
    if not options.show:
        run_lines([line_named(name, LINES).name for name in names], results, lambda name: command_of(name, options),
                  child_environment(options.threads))  # fmt: skip
    show(finished(results))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="a Llama or Qwen3 folder, such as SmolLM2-135M-Instruct")
    parser.add_argument("--data", default="", help="the folder that holds sentiment-sst2/, mc-zeroshot-pack/, ...")
    parser.add_argument("--out", default="runs/prompt_tasks")
    parser.add_argument("--only", default="", help="comma list of: " + ",".join(line.name for line in LINES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tiny", action="store_true", help="a few rows a line")
    parser.add_argument("--show", action="store_true", help="run nothing")
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    check_inputs(parser, options)
    return options


def command_of(name: str, options: argparse.Namespace) -> list[str]:
    words = [sys.executable, str(SCRIPT), "--model", options.model, "--data", options.data, "--out", options.out]
    return [*words, "--threads", str(options.threads), "--worker", name, *(["--tiny"] if options.tiny else [])]


def run_line(line: Line, options: argparse.Namespace) -> None:
    import torch

    from chinchilla_lm.core.records import append_record
    from chinchilla_lm.evals.loading import load_for_evaluation

    torch.set_num_threads(options.threads)
    started, cpu_started = time.monotonic(), time.process_time()
    scorer = load_for_evaluation(Path(options.model)).scorer()
    measured = run_suite_line(line, scorer, options) if line.task == "suite" else run_prompt_line(line, scorer, options)
    fields = {
        "name": line.name, "set": line.test, "shots": line.shots, "is_tiny": options.tiny, "seed": SEED,
        "weights": scorer.engine.weights, "threads": options.threads, **measured,
        "wall_seconds": time.monotonic() - started, "cpu_seconds": time.process_time() - cpu_started,
    }  # fmt: skip
    append_record(Path(options.out) / "results.jsonl", SCHEMA, fields, sync=True)


def run_suite_line(line: Line, scorer: Any, options: argparse.Namespace) -> dict[str, Any]:
    from chinchilla_lm.evals.suite_run import run_suite
    from chinchilla_lm.evals.suites import find_suite, suite_items

    suite = find_suite(line.test)
    limit = TINY_ITEMS if options.tiny else line.rows[0]
    result = run_suite(scorer, suite, suite_items(suite, Path(options.data), limit=limit, seed=SEED))
    return {"rows": result.items, "template": "suite", "values": result.values, "errors": result.errors}


def run_prompt_line(line: Line, scorer: Any, options: argparse.Namespace) -> dict[str, Any]:
    from chinchilla_lm.evals.prompted import PromptRows, PromptSettings, answer_by_choice
    from chinchilla_lm.evals.template_choice import fitting_templates
    from chinchilla_lm.prompt.demonstrations import DemoSettings

    tests, pool, dev, labelled = rows_of(line, options)
    template = fitting_templates(line.task, "en", labelled)[0]
    draws = DRAWS if line.shots else 1
    settings = PromptSettings(
        extra_rules=CLOSED_RULES if template.is_closed else CHOICE_RULES,
        demonstrations=DemoSettings(shots=line.shots, draws=draws, seed=SEED),
    )
    result = answer_by_choice(scorer, template, PromptRows(tests=tests, pool=pool, dev=dev), settings)
    by_rule = {rule: [draw.by_rule[rule] for draw in result.draws] for rule in result.draws[0].by_rule}
    return {
        "rows": len(tests), "dev_rows": len(dev), "template": template.name, "by_rule": by_rule,
        "auto": [draw.by_rule[draw.rule] for draw in result.draws], "auto_rules": [draw.rule for draw in result.draws],
        "cut_rows": result.cut_rows,
    }  # fmt: skip


def rows_of(line: Line, options: argparse.Namespace) -> tuple[list[Any], list[Any], list[Any], list[Any]]:
    """Test, demonstration and dev rows, which share no row, and all of the test file's, for their labels."""
    from chinchilla_lm.data.labelled import read_rows, rows_for_task

    def canonical(file: str) -> list[Any]:
        return rows_for_task(line.task, read_rows(Path(options.data) / file))

    tests_n, dev_n = TINY_ROWS if options.tiny else line.rows
    everything = canonical(line.test)
    labelled = list(everything)
    draws = random.Random(SEED)
    draws.shuffle(everything)
    tests, rest = everything[:tests_n], everything[tests_n:]
    if line.train is not None:
        rest = canonical(line.train)
        draws.shuffle(rest)
    dev, pool = rest[:dev_n], rest[dev_n:]
    return tests, pool if line.shots else [], dev, labelled


def finished(results: Path) -> list[dict[str, Any]]:
    latest = latest_records(results)
    return [latest[line.name] for line in LINES if line.name in latest]


def show(records: list[dict[str, Any]]) -> None:
    """Print the table; in Markdown on stdout, aligned on stderr."""
    rules = ("sum", "token", "char", "byte", "pmi", "cc", "bc")
    header = ("line", "rows", *rules, "auto", "behind best", "row error", "CPU-s")
    rows = [row_of(record, rules) for record in records]
    print_tables("Accuracy by prompt, %, mean +- standard deviation over draws", header, rows)
    for verdict in goals({record["name"]: record for record in records}):
        print(verdict)


def row_of(record: dict[str, Any], rules: tuple[str, ...]) -> tuple[str, ...]:
    cost = f"{record['cpu_seconds']:.0f}"
    if "values" in record:
        first = f"{100 * record['values']['acc']:.1f}"
        error = f"{100 * record['errors']['acc']:.1f}"
        return (record["name"], str(record["rows"]), first, *[""] * len(rules), "", error, cost)
    by_rule = record["by_rule"]
    cells = [percent(by_rule[rule]) if rule in by_rule else "" for rule in rules]
    auto, best = statistics.fmean(record["auto"]), max(statistics.fmean(one) for one in by_rule.values())
    error = 100 * math.sqrt(auto * (1 - auto) / record["rows"])
    chosen = ",".join(sorted(set(record["auto_rules"])))
    behind = f"{100 * (best - auto):.1f}"
    auto_cell = f"{percent(record['auto'])} ({chosen})"
    return (record["name"], str(record["rows"]), *cells, auto_cell, behind, f"{error:.1f}", cost)


def percent(accuracies: list[float]) -> str:
    mean = f"{100 * statistics.fmean(accuracies):.1f}"
    return f"{mean} +- {100 * statistics.stdev(accuracies):.1f}" if len(accuracies) > 1 else mean


def goals(records: dict[str, dict[str, Any]]) -> list[str]:
    """What was aimed at, met or missed: 4-shot calibrated means, their spread against raw, auto against hindsight."""
    lines = []
    for name, least in (("sst2-4", 0.80), ("agnews-4", 0.70)):
        if name in records:
            by_rule = records[name]["by_rule"]
            raw, calibrated = by_rule["sum"], by_rule["bc"]
            is_met = statistics.fmean(calibrated) >= least
            ratio = statistics.stdev(calibrated) / max(statistics.stdev(raw), 1e-9)
            lines.append(
                f"{'met' if is_met else 'MISSED'}: {name} bc {percent(calibrated)}, goal {100 * least:.0f}; "
                f"{'met' if ratio <= 0.5 else 'MISSED'}: spread {ratio:.2f} of raw's ({percent(raw)}), goal 0.5"
            )
    asked = [record for record in records.values() if "auto" in record]
    if asked:
        behind = {
            record["name"]: max(statistics.fmean(one) for one in record["by_rule"].values())
            - statistics.fmean(record["auto"])
            for record in asked
        }
        worst = max(behind, key=behind.__getitem__)
        within = sum(value <= 0.01 for value in behind.values())
        lines.append(
            f"auto within 1 point of the best rule in hindsight: {within} of {len(behind)} lines, mean "
            f"{100 * statistics.fmean(behind.values()):.1f}, worst {worst} {100 * behind[worst]:.1f}"
        )
    return lines


if __name__ == "__main__":
    main()
