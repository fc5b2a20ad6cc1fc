"""What was pretraining worth? A pretrained model and the same architecture from random weights, tuned alike.

    python bench/tune_pretrained.py --run RUN_DIR --data DATA_FOLDER --sets agnews,sgd

RUN_DIR is a directory of `chinchilla run` (or a model folder). Both starts have the same tokenizer, training rows and
their order, form of head, updates and learning rates to choose from; each takes the rate that is best on the validation
rows. Only the chosen training is measured on the test rows, and the two are compared on the same rows by the paired
bootstrap. TF-IDF + logistic regression on the same rows stands beside classifiers, where scikit-learn is installed. One
seed. A dialogue's measure is its held-out loss (lower is better).

A training that is finished is read, a stopped one resumes; OUT/results.jsonl gets a line a task.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from machine import print_table

if TYPE_CHECKING:
    from chinchilla_lm.tune.config import TuneConfig

SCHEMA = "tune_pretrained/2"
STARTS = ("scratch", "pretrained")


@dataclass(frozen=True, kw_only=True)
class LabelledSet:
    """Files of one task below DATA_FOLDER. `lower_is_better`: of its primary measure."""

    folder: str
    task: str = "text-classification"
    ending: str = ".jsonl"
    lower_is_better: bool = False

    @property
    def is_classification(self) -> bool:
        return self.task == "text-classification"


SETS = {
    "sst2": LabelledSet(folder="sentiment-sst2"),
    "agnews": LabelledSet(folder="topic-agnews-small"),
    "clinc150": LabelledSet(folder="intent-clinc150"),
    "wnut17": LabelledSet(folder="ner-wnut17", task="token-classification", ending=".conll"),
    "sgd": LabelledSet(folder="dialogue-sgd", task="dialogue", ending=".jsonl.gz", lower_is_better=True),
}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One start at its best rate; `tried`: validation measure by rate."""

    config: TuneConfig
    task: Any
    tried: Mapping[str, float]


def main() -> None:
    options = parse_options()
    import torch

    torch.set_num_threads(options.threads)
    pretrained = model_folder(Path(options.run))
    folders = {"pretrained": pretrained, "scratch": make_scratch(pretrained, Path(options.out), options.seed)}
    for name in options.sets.split(","):
        record = compare_starts(name, folders, options)
        from chinchilla_lm.core.records import append_record

        append_record(Path(options.out) / "results.jsonl", SCHEMA, record)
        show(record)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="a directory of `chinchilla run`, or a model folder")
    parser.add_argument("--data", required=True, help="the folder that holds sentiment-sst2/, ...")
    parser.add_argument("--sets", default="agnews,sgd", help="comma list of " + ", ".join(SETS))
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


def compare_starts(name: str, folders: Mapping[str, Path], options: argparse.Namespace) -> dict[str, Any]:
    """Tune both starts, each at its own best rate, and compare their answers to the same test rows."""
    from chinchilla_lm.tune.comparison import compare
    from chinchilla_lm.tune.splits import read_splits
    from chinchilla_lm.tune.stages import read_predictions

    began = time.process_time()
    chosen = {start: choose_rate(name, start, folders[start], options) for start in STARTS}
    records = {start: measure_once(choice.config) for start, choice in chosen.items()}
    rows = read_splits(chosen["scratch"].config).test
    measured = {
        start: choice.task.measure(
            read_predictions(Path(choice.config.out) / "predictions" / "after.jsonl", rows) or [], rows
        )
        for start, choice in chosen.items()
    }
    compared = compare(measured["scratch"], measured["pretrained"], draws=10_000, seed=options.seed)
    return {
        "set": name,
        "metric": compared["metric"],
        "higher_is_better": compared["higher_is_better"],
        "rows": {split: each["used"] for split, each in records["pretrained"]["rows"].items()},
        "epochs": options.epochs,
        "method": options.method,
        "head": options.head,
        "seed": options.seed,
        "values": {start: measured[start].value for start in STARTS},
        "intervals": dict(zip(STARTS, (compared["intervals"][stage] for stage in ("before", "after")), strict=True)),
        "difference": compared["paired"],
        "rates": {start: {"chosen": one.config.lr, "validation": one.tried} for start, one in chosen.items()},
        "tfidf": tfidf(chosen["scratch"].config) if SETS[name].is_classification else None,
        "cpu_seconds": time.process_time() - began,
    }


def choose_rate(name: str, start: str, model: Path, options: argparse.Namespace) -> Choice:
    """Train at every rate without the test rows; the best on the validation rows, the smaller rate among equals."""
    from chinchilla_lm.tune.learning import learn
    from chinchilla_lm.tune.splits import read_splits
    from chinchilla_lm.tune.tuning import prepare_lesson

    found: list[tuple[float, Choice]] = []
    tried: dict[str, float] = {}
    for rate in sorted(float(word) for word in options.rates.split(",")):
        config = make_config(name, model, Path(options.out) / name / f"{start}-{rate:g}", rate, options)
        blind = replace(config, test=None)
        task, lesson = prepare_lesson(blind, read_splits(blind))
        state, _ = learn(lesson)
        assert state.best_value is not None
        tried[f"{rate:g}"] = state.best_value
        sign = -1 if SETS[name].lower_is_better else 1
        found.append((sign * state.best_value, Choice(config=config, task=task, tried=tried)))
        print(f"{name} {start} lr {rate:g}: validation {state.best_value:.4f}", file=sys.stderr, flush=True)
    return max(found, key=lambda pair: pair[0])[1]


def make_config(name: str, model: Path, out: Path, rate: float, options: argparse.Namespace) -> TuneConfig:
    from chinchilla_lm.tune.config import TuneConfig

    each = SETS[name]
    source = Path(options.data) / each.folder
    return TuneConfig(
        task=each.task,  # type: ignore[arg-type]
        model=str(model),
        train=str(source / f"train{each.ending}"),
        validation=str(source / f"dev{each.ending}"),
        test=str(source / f"test{each.ending}"),
        out=str(out),
        train_rows=options.rows,
        validation_rows=options.validation_rows,
        test_rows=options.test_rows,
        method=options.method,
        head=options.head if each.is_classification else "auto",
        lr=rate,
        epochs=options.epochs,
        max_tokens=options.max_tokens,
        seed=options.seed,
        threads=options.threads,
    )


def measure_once(config: TuneConfig) -> Mapping[str, Any]:
    """The run of the chosen rate: its training lies in the folder already, so that only the test rows are asked."""
    from chinchilla_lm.tune.tuning import tune

    return tune(config).record


def tfidf(config: TuneConfig) -> dict[str, Any] | None:
    try:
        from baselines import measure_tfidf
    except ImportError as error:
        print(f"no TF-IDF ({error})", file=sys.stderr)
        return None
    return measure_tfidf(config)


def show(record: Mapping[str, Any]) -> None:
    scale, unit = (1, "nats") if SETS[record["set"]].lower_is_better else (100, "points")
    digits = ".3f" if scale == 1 else ".1f"
    header = ("start", "lr", "validation", f"test {record['metric']}", "95 %")
    rows = []
    for start in STARTS:
        ends, rates = record["intervals"][start], record["rates"][start]
        spread = f"{scale * ends['low']:{digits}} to {scale * ends['high']:{digits}}"
        validation = scale * rates["validation"][f"{rates['chosen']:g}"]
        value = scale * record["values"][start]
        rows.append((start, f"{rates['chosen']:g}", f"{validation:{digits}}", f"{value:{digits}}", spread))
    if record["tfidf"]:
        ends = record["tfidf"]["interval"]
        spread = f"{100 * ends['low']:.1f} to {100 * ends['high']:.1f}"
        rows.append(("TF-IDF", "", "", f"{100 * record['tfidf']['accuracy']:.1f}", spread))
    used = record["rows"]
    title = f"{record['set']}: {used['train']} training, {used['validation']} validation, {used['test']} test rows"
    print_table(f"{title}, {record['epochs']:g} epochs, {record['method']}", header, rows)
    paired = {key: scale * record["difference"][key] for key in ("difference", "low", "high")}
    print(
        f"pretrained - scratch: {paired['difference']:+{digits}} {unit} ({paired['low']:+{digits}} to "
        f"{paired['high']:+{digits}}), bootstrap p = {record['difference']['p_value']:.2g}; "
        f"{record['cpu_seconds']:.0f} CPU-s",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
