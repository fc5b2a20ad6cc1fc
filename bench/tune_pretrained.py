"""What was pretraining worth? A pretrained model and the same architecture from random weights, tuned alike.

    python bench/tune_pretrained.py --run RUN_DIR --data DATA_FOLDER --tasks sentiment-sst2,topic-agnews-small

RUN_DIR is a directory of `chinchilla run` (or a model folder). Both starts have the same tokenizer, training rows and
their order, head (its rows start from the label words' unembedding rows, trained or random), updates and learning
rates to choose from; each takes the rate that is best on the validation rows. Only the chosen training is measured on
the test rows, and the two are compared on the same rows: bootstrap interval of the difference, McNemar's test. TF-IDF +
logistic regression on the same rows stands beside them, where scikit-learn is installed. One seed.

A training that is finished is read, a stopped one resumes; OUT/results.jsonl gets a line a task.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from machine import print_table

if TYPE_CHECKING:
    from chinchilla_lm.tune.config import TuneConfig

SCHEMA = "tune_pretrained/1"
STARTS = ("scratch", "pretrained")


def main() -> None:
    options = parse_options()
    import torch

    torch.set_num_threads(options.threads)
    pretrained = model_folder(Path(options.run))
    folders = {"pretrained": pretrained, "scratch": make_scratch(pretrained, Path(options.out), options.seed)}
    for task in options.tasks.split(","):
        record = compare_starts(task, folders, options)
        from chinchilla_lm.core.records import append_record

        append_record(Path(options.out) / "results.jsonl", SCHEMA, record)
        show(record)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="a directory of `chinchilla run`, or a model folder")
    parser.add_argument("--data", required=True, help="the folder that holds sentiment-sst2/, ...")
    parser.add_argument(
        "--tasks", default="sentiment-sst2,topic-agnews-small", help="folders with {train,dev,test}.jsonl"
    )
    parser.add_argument("--rows", type=int, default=2000, help="training rows")
    parser.add_argument("--validation-rows", type=int, default=300)
    parser.add_argument("--test-rows", type=int, default=None, help="by default all")
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--rates", default="1e-4,3e-4,1e-3", help="learning rates that each start may choose from")
    parser.add_argument("--head", default="fresh", choices=("fresh", "label-words"))
    parser.add_argument("--method", default="full")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", default="runs/tune_pretrained")
    return parser.parse_args()


def model_folder(run: Path) -> Path:
    for folder in (run / "model", run):
        if (folder / "config.json").is_file():
            return folder
    sys.exit(f"{run} holds no model/config.json; name a finished run or a model folder")


def make_scratch(pretrained: Path, out: Path, seed: int) -> Path:
    """Save the same architecture as its pretraining began it: random weights by seed, the same tokenizer."""
    from chinchilla_lm.model.huggingface import save_model
    from chinchilla_lm.model.model_config import read_config
    from chinchilla_lm.model.transformer import Transformer, initialise

    folder = out / "scratch-model"
    if not (folder / "config.json").is_file():
        model = Transformer(read_config(pretrained))
        initialise(model, seed)
        save_model(model, folder, tokenizer_folder=pretrained)
    return folder


def compare_starts(task: str, folders: Mapping[str, Path], options: argparse.Namespace) -> dict[str, Any]:
    """Tune both starts, each at its own best rate, and compare their answers to the same test rows."""
    from chinchilla_lm.metrics.resampling import mcnemar
    from chinchilla_lm.tune.comparison import compare
    from chinchilla_lm.tune.splits import read_splits
    from chinchilla_lm.tune.stages import read_predictions

    began = time.process_time()
    configs = {start: choose_rate(task, start, folders[start], options) for start in STARTS}
    records = {start: measure_once(config) for start, (config, _) in configs.items()}
    rows = read_splits(configs["scratch"][0]).test
    answers = {
        start: read_predictions(Path(config.out), "after", len(rows)) or [] for start, (config, _) in configs.items()
    }
    measured = {start: measure(answers[start], rows) for start in STARTS}
    compared = compare(measured["scratch"], measured["pretrained"], draws=10_000, seed=options.seed)
    right = [
        [each["label"] == row["label"] for each, row in zip(answers[start], rows, strict=True)] for start in STARTS
    ]
    test = mcnemar(*right)
    return {
        "task": task,
        "rows": {name: each["used"] for name, each in records["pretrained"]["rows"].items()},
        "epochs": options.epochs,
        "method": options.method,
        "head": options.head,
        "seed": options.seed,
        "accuracy": {start: measured[start].values["accuracy"] for start in STARTS},
        "macro_f1": {start: measured[start].values["macro_f1"] for start in STARTS},
        "intervals": dict(zip(STARTS, (compared["intervals"][stage] for stage in ("before", "after")), strict=True)),
        "difference": compared["paired"],
        "mcnemar_p": test.p_value,
        "untouched": (records["pretrained"]["metrics_before"] or {}).get("accuracy"),
        "rates": {start: {"chosen": config.lr, "validation": tried} for start, (config, tried) in configs.items()},
        "tfidf": tfidf(configs["scratch"][0]),
        "cpu_seconds": time.process_time() - began,
    }


def choose_rate(
    task: str, start: str, model: Path, options: argparse.Namespace
) -> tuple[TuneConfig, dict[str, float | None]]:
    """Train at every rate without the test rows; the best on the validation rows, the smaller rate among equals."""
    from chinchilla_lm.tune.config import TuneConfig
    from chinchilla_lm.tune.learning import learn
    from chinchilla_lm.tune.splits import read_splits
    from chinchilla_lm.tune.tuning import prepare_lesson

    source = Path(options.data) / task
    tried: dict[float, float] = {}
    configs: dict[float, TuneConfig] = {}
    for rate in sorted(float(word) for word in options.rates.split(",")):
        config = TuneConfig(
            task="text-classification",
            model=str(model),
            train=str(source / "train.jsonl"),
            validation=str(source / "dev.jsonl"),
            test=str(source / "test.jsonl"),
            out=str(Path(options.out) / task / f"{start}-{rate:g}"),
            train_rows=options.rows,
            validation_rows=options.validation_rows,
            test_rows=options.test_rows,
            method=options.method,
            head=options.head,
            lr=rate,
            epochs=options.epochs,
            max_tokens=options.max_tokens,
            seed=options.seed,
            threads=options.threads,
        )
        splits = read_splits(replace(config, test=None))
        _, lesson = prepare_lesson(replace(config, test=None), splits)
        state, _ = learn(lesson)
        assert state.best_value is not None
        tried[rate], configs[rate] = state.best_value, config
        print(f"{task} {start} lr {rate:g}: validation {state.best_value:.4f}", file=sys.stderr, flush=True)
    best = max(tried, key=lambda rate: (tried[rate], -rate))
    return configs[best], {f"{rate:g}": value for rate, value in tried.items()}


def measure_once(config: TuneConfig) -> Mapping[str, Any]:
    """The run of the chosen rate: its training lies in the folder already, so that only the test rows are asked."""
    from chinchilla_lm.tune.tuning import tune

    return tune(config).record


def measure(answers: list[Any], rows: list[dict[str, Any]]) -> Any:
    from chinchilla_lm.metrics.classification import measure_classification

    gold = [row["label"] for row in rows]
    return measure_classification([each["label"] for each in answers], gold, sorted({*gold}))


def tfidf(config: TuneConfig) -> dict[str, Any] | None:
    try:
        from baselines import measure_tfidf
    except ImportError as error:
        print(f"no TF-IDF ({error})", file=sys.stderr)
        return None
    return measure_tfidf(config)


def show(record: Mapping[str, Any]) -> None:
    header = ("start", "lr", "validation", "test accuracy", "95 %", "macro F1")
    rows = []
    for start in STARTS:
        ends, rates = record["intervals"][start], record["rates"][start]
        rows.append(
            (
                start,
                f"{rates['chosen']:g}",
                f"{100 * max(rates['validation'].values()):.1f}",
                f"{100 * record['accuracy'][start]:.1f}",
                f"{100 * ends['low']:.1f} to {100 * ends['high']:.1f}",
                f"{100 * record['macro_f1'][start]:.1f}",
            )
        )
    if record["tfidf"]:
        ends = record["tfidf"]["interval"]
        spread = f"{100 * ends['low']:.1f} to {100 * ends['high']:.1f}"
        rows.append(("TF-IDF", "", "", f"{100 * record['tfidf']['accuracy']:.1f}", spread, ""))
    used = record["rows"]
    title = f"{record['task']}: {used['train']} training, {used['validation']} validation, {used['test']} test rows"
    print_table(f"{title}, {record['epochs']:g} epochs, {record['method']}, {record['head']} head", header, rows)
    paired = record["difference"]
    print(
        f"pretrained - scratch: {100 * paired['difference']:+.1f} points ({100 * paired['low']:+.1f} to "
        f"{100 * paired['high']:+.1f}), bootstrap p = {paired['p_value']:.2g}, McNemar p = {record['mcnemar_p']:.2g}; "
        f"{record['cpu_seconds']:.0f} CPU-s",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
