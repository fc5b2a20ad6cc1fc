"""Every task on real rows, before and after: one command, one line of results a tuning, resumable.

    python bench/tune_tasks.py --model SMOLLM2_FOLDER --data DATA_FOLDER --out runs/tune_tasks    # all lines
    ... --only sst2,ner      # some of them
    ... --part 1/2           # every other line, for two processes side by side
    ... --seed 1             # other training rows, order and head; kept apart, in OUT/seed-1
    ... --tiny               # a few rows and two updates: does it run?
    python bench/tune_tasks.py --out runs/tune_tasks --show    # only print the table

Each line runs in its own process on one thread (so that peak memory is its own) and is appended to OUT/results.jsonl
when it is finished; finished lines are skipped, a stopped one resumes. The amounts of rows are chosen so that a line
takes at most about six minutes on one core at 400 training tokens a second and 1,200 tokens a second read; all of them
are recorded, and nothing but the validation rows chooses a checkpoint. The test rows are the first ones that the seed
draws of each set's own test file. Classification sets also show TF-IDF + logistic regression on the same rows.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

from lines import check_inputs, latest_records, line_named, print_tables, run_lines
from machine import child_environment
from tune_sets import LINES, Line

SCRIPT = Path(__file__).resolve()
SCHEMA = "tune_task/1"
THREADS = 1


TINY_ROWS = (8, 4, 6)


def main() -> None:
    options = parse_options()
    results = Path(options.out) / "results.jsonl"
    if options.worker:
        run_line(line_named(options.worker, LINES), options)
        return
    if not options.show:
        run_lines([line.name for line in chosen_lines(options)], results,
                  lambda name: [*command_of(options), "--worker", name], environment())  # fmt: skip
    show(finished(results))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="a model folder, such as SmolLM2-135M-Instruct")
    parser.add_argument("--data", default="", help="the folder that holds sentiment-sst2/, ner-wnut17/, ...")
    parser.add_argument("--out", default="runs/tune_tasks")
    parser.add_argument("--only", default="", help="comma list of: " + ",".join(line.name for line in LINES))
    parser.add_argument("--part", default="1/1", help="this process's share of the lines, such as 1/2")
    parser.add_argument("--seed", type=int, default=0, help="draws the rows, their order and the head")
    parser.add_argument("--tiny", action="store_true", help="a few rows and two updates a line")
    parser.add_argument("--show", action="store_true", help="run nothing")
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.tiny and not options.worker:
        options.out = str(Path(options.out) / "tiny")  # so that a trial is never taken for the line itself
    if options.seed and not options.worker:
        options.out = str(Path(options.out) / f"seed-{options.seed}")
    check_inputs(parser, options)
    return options


def chosen_lines(options: argparse.Namespace) -> list[Line]:
    part, parts = (int(word) for word in options.part.split("/"))
    names = [name for name in options.only.split(",") if name]
    lines = [line_named(name, LINES) for name in names] if names else list(LINES)
    return lines[part - 1 :: parts]


def command_of(options: argparse.Namespace) -> list[str]:
    words = [sys.executable, str(SCRIPT), "--model", options.model, "--data", options.data, "--out", options.out]
    words += ["--seed", str(options.seed)]
    return [*words, "--tiny"] if options.tiny else words


def environment() -> dict[str, str]:
    return child_environment(THREADS)


def config_of(line: Line, options: argparse.Namespace) -> Any:
    """The whole request, as `chinchilla tune` would make it."""
    from chinchilla_lm.tune.config import TuneConfig

    folder = Path(options.data) / line.folder
    if line.derive is not None:
        line.derive(folder, Path(options.out) / "sets" / line.name)
        folder = Path(options.out) / "sets" / line.name
    train, validation, test = TINY_ROWS if options.tiny else line.rows
    settings = dict(line.settings)
    if options.tiny:
        settings = {**settings, "steps": 2, "max_tokens": 128, "max_new_tokens": 4, "bootstrap_draws": 100}
        settings["rows"] = 4
    return TuneConfig(
        task=line.task,  # type: ignore[arg-type]
        model=options.model,
        train=str(folder / line.train),
        validation=None if line.validation is None else str(folder / line.validation),
        test=str(folder / line.test),
        out=str(Path(options.out) / line.name),
        train_rows=train,
        validation_rows=validation,
        test_rows=test,
        threads=THREADS,
        seed=options.seed,
        **settings,
    )


def run_line(line: Line, options: argparse.Namespace) -> None:
    """Tune, measure the baseline, append the result."""
    from rich.console import Console

    from chinchilla_lm.cli.display import StudyDisplay
    from chinchilla_lm.core.files import read_json
    from chinchilla_lm.core.records import append_record
    from chinchilla_lm.report.tune_page import write_tune_page

    started = time.monotonic()
    config = config_of(line, options)
    with StudyDisplay(Console(stderr=True, highlight=False)) as display:
        tune_line(line, config, options, display)
    write_tune_page(config.out)
    record = read_json(Path(config.out) / "tune.json")
    names = ("task", "method", "backbone", "metric", "metrics_before", "metrics_after", "intervals", "paired", "rows")
    kept = {
        name: record.get(name)
        for name in (*names, "settings", "cost", "best", "evaluated_on", "warnings", "augmentation")
    }
    wall_seconds = time.monotonic() - started
    baseline = measure_baseline(line, config) if line.has_baseline else None
    fields = {
        "name": line.name,
        "set": line.folder,
        "is_tiny": options.tiny,
        **kept,
        "baseline": baseline,
        "wall_seconds": wall_seconds,
    }
    append_record(Path(options.out) / "results.jsonl", SCHEMA, fields, sync=True)


def tune_line(line: Line, config: Any, options: argparse.Namespace, display: Any) -> None:
    """Tune on the real rows, or on them and added ones."""
    from chinchilla_lm.tune.augmentation import Augmentation, tune_augmented
    from chinchilla_lm.tune.tuning import tune

    if line.augment is None:
        tune(config, display)
        return
    synonyms = None if line.synonyms is None else str(Path(options.data) / line.synonyms)
    tune_augmented(config, Augmentation(**line.augment, synonyms=synonyms), display)


def measure_baseline(line: Line, config: Any) -> dict[str, Any] | None:
    """TF-IDF + logistic regression on the same rows; None where scikit-learn is absent."""
    try:
        from baselines import measure_tfidf
    except ImportError as error:
        print(f"{line.name}: no baseline ({error})", file=sys.stderr)
        return None
    return measure_tfidf(config)


def finished(results: Path) -> list[dict[str, Any]]:
    return list(latest_records(results, [line.name for line in LINES]).values())


def show(records: list[dict[str, Any]]) -> None:
    """Print the table; in Markdown on stdout, aligned on stderr."""
    header = ("set", "method", "rows", "metric", "before", "after, 95 %", "difference, 95 %", "p", "TF-IDF", "time")
    rows = [row_of(record) for record in records]
    print_tables("Fine-tuning, before and after", header, rows)


def row_of(record: dict[str, Any]) -> tuple[str, ...]:
    from chinchilla_lm.report.tune_words import metric_name, write, write_points

    metric = str(record["metric"])

    def shown(value: Any) -> str:
        return write(metric, value) if isinstance(value, int | float) else "–"

    def with_macro(values: dict[str, Any] | None) -> str:
        """Of several labels a row the mean over labels too."""
        values = values or {}
        return f"; macro {shown(values.get('macro_f1'))}" if metric == "micro_f1" and values else ""

    def ends(table: dict[str, Any] | None) -> str:
        table = table or {}
        return f" ({shown(table.get('low'))} to {shown(table.get('high'))})" if "low" in table else ""

    def change_of(table: dict[str, Any]) -> str:
        change, low, high = (write_points(metric, table.get(name)) for name in ("difference", "low", "high"))
        return f"{change} ({low} to {high})"

    before, after = ((record.get(f"metrics_{stage}") or {}).get(metric) for stage in ("before", "after"))
    paired, rows = record.get("paired") or {}, record.get("rows") or {}
    intervals = record.get("intervals") or {}
    baseline = (record.get("baseline") or {}).get(metric)
    p_value = paired.get("p_value")
    return (
        record["name"] + (" (tiny)" if record.get("is_tiny") else ""),
        str(record["method"]),
        f"{(rows.get('train') or {}).get('used', '?')} / {(rows.get('test') or {}).get('used', '?')}",
        metric_name(metric),
        shown(before) + with_macro(record.get("metrics_before")),
        shown(after) + ends(intervals.get("after")) + with_macro(record.get("metrics_after")),
        change_of(paired) if paired else "–",
        f"{p_value:.2g}" if isinstance(p_value, float) else "–",
        shown(baseline) + with_macro(record.get("baseline")),
        f"{record.get('wall_seconds', float('nan')):.0f} s",
    )


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.path.insert(0, str(SCRIPT.parent.parent / "src"))
    main()
