"""Our suites against lm-evaluation-harness's own task files through its own Hugging Face model, item by item.

    python bench/suite_parity.py --model SMOLLM2_FOLDER --data DATA_FOLDER --out runs/parity    # ten suites, 100 items
    ... --only copa,blimp --items 60      # some of them; finished ones are not run again
    ... --show                            # only print the tables of OUT/results.jsonl

The harness's rows come from its hub; here the shared files are written, in the hub's columns, into a temporary folder,
and each task is the harness's own file (`include:` of its YAML, so prompts, choices, targets and metrics are its own)
with only the place of its data changed. Three columns, all in float32 on the same rows:

    ours            our suite's wording, our scorer
    ours, as asked  our scorer on the very strings that the harness asked: what differs from `harness` is the engine
    harness         its wording, `lm_eval.models.huggingface.HFLM`

so that `ours` - `as asked` is the wording and `as asked` - `harness` the arithmetic. Aimed at: within 1.5 points.
An answer's log-probability is compared too, where both were asked the same string.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lines import check_inputs, latest_records, print_tables, say
from machine import child_environment

SCRIPT = Path(__file__).resolve()
SCHEMA = "suite_parity/2"
TASK_FILES = {
    "piqa": "piqa/piqa.yaml",
    "copa": "super_glue/copa/default.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
    "arc-easy": "arc/arc_easy.yaml",
    "arc-challenge": "arc/arc_challenge.yaml",
    "lambada": "lambada/lambada_openai.yaml",
    "blimp": "blimp/_template_yaml",
    "commonsenseqa": "commonsense_qa/default.yaml",
    "winogrande": "winogrande/default.yaml",
    "boolq": "super_glue/boolq/default.yaml",
}
LETTERS = "ABCDEFGH"
GOAL_POINTS = 1.5
HARNESS_BATCH = 8  # of a sequence of 250 tokens: 400 MB of logits, of which the harness holds two copies
SIDES = ("harness", "ours")  # in this order: ours also prices the strings that the harness asked


def main() -> None:
    options = parse_options()
    results = Path(options.out) / "results.jsonl"
    suites = options.only.split(",")
    if options.worker:
        run_side(options.worker, suites, options)
        return
    for side in () if options.show else SIDES:
        missing = [suite for suite in suites if line_name(suite, side, options) not in latest_records(results)]
        if missing:  # one process for all, which loads its model once
            words = [sys.executable, str(SCRIPT), "--model", options.model, "--data", options.data, "--out"]
            words += [options.out, "--items", str(options.items), "--threads", str(options.threads)]
            words += ["--only", ",".join(missing), "--worker", side]
            code = subprocess.run(words, env=child_environment(options.threads), check=False).returncode
            if code != 0:  # the same command goes on with what is missing
                sys.exit(f"{side}: exit code {code}, see above")
    show(latest_records(results), options)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="a Llama or Qwen3 folder")
    parser.add_argument("--data", default="", help="the folder that holds mc-zeroshot-pack/, pairs-blimp/, ...")
    parser.add_argument("--out", default="runs/parity")
    parser.add_argument("--only", default=",".join(TASK_FILES))
    parser.add_argument("--items", type=int, default=100, help="of each suite, from its beginning")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--show", action="store_true", help="run nothing")
    parser.add_argument("--worker", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = [name for name in options.only.split(",") if name not in TASK_FILES]
    if unknown:
        parser.error(f"no suite {unknown[0]!r}; choose from {', '.join(TASK_FILES)}")
    check_inputs(parser, options)
    return options


def line_name(suite: str, side: str, options: argparse.Namespace) -> str:
    return f"{suite}-{options.items}-{side}"


def run_side(side: str, suites: Sequence[str], options: argparse.Namespace) -> None:
    """Load one side's model, and append a record a suite."""
    import torch

    from chinchilla_lm.core.records import append_record

    torch.set_num_threads(options.threads)
    results = Path(options.out) / "results.jsonl"
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HF_DATASETS_CACHE"] = folder  # before the harness imports `datasets`
        asker = Harness(options, Path(folder)) if side == "harness" else Ours(options)
        for suite in suites:
            started, cpu_started = time.monotonic(), time.process_time()
            measured = asker.run(suite, rows_of(suite, options))
            seconds = {"wall_seconds": time.monotonic() - started, "cpu_seconds": time.process_time() - cpu_started}
            name = line_name(suite, side, options)
            fields = {"name": name, "suite": suite, "side": side, "model": options.model, **measured, **seconds}
            append_record(results, SCHEMA, fields, sync=True)
            say(f"{name}: {seconds['cpu_seconds']:.0f} CPU-s")


def rows_of(suite: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The shared file's first rows (of BLiMP one of every paradigm in turn); both sides get these."""
    from chinchilla_lm.data.labelled import read_rows
    from chinchilla_lm.evals.suites import find_suite

    rows = read_rows(Path(options.data) / find_suite(suite).files[0])
    step = max(1, len(rows) // options.items) if suite == "blimp" else 1
    return rows[::step][: options.items]


class Ours:
    """Our scorer on our suite's items, and on the pairs of the harness's record of the same rows."""

    def __init__(self, options: argparse.Namespace) -> None:
        from chinchilla_lm.evals.loading import load_for_evaluation

        self._scorer = load_for_evaluation(Path(options.model)).scorer("float32")
        self._asked = latest_records(Path(options.out) / "results.jsonl")
        self._options = options

    def run(self, suite: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        from chinchilla_lm.evals.suites import find_suite

        items = [find_suite(suite).convert(row) for row in rows]
        asked = self._asked[line_name(suite, "harness", self._options)]["pairs"]
        own = [[list(pair) for pair in item.pairs] for item in items]
        every = [tuple(pair) for item_pairs in (*own, *asked) for pair in item_pairs]
        scores = iter(self._scorer.score(every))  # equal pairs are priced once
        found = {}
        for label, pairs in (("own", own), ("as_asked", asked)):
            marks: dict[str, list[int]] = {}
            prices = []
            for item, item_pairs in zip(items, pairs, strict=True):
                item_scores = [next(scores) for _ in item_pairs]
                prices.append([score.logprob for score in item_scores])
                for metric, mark in marks_of(item, item_scores).items():
                    marks.setdefault(metric, []).append(mark)
            found[label] = {"marks": marks, "prices": prices}
        return {**found, "items_asked_otherwise": sum(a != b for a, b in zip(own, asked, strict=True))}


def marks_of(item: Any, scores: Sequence[Any]) -> dict[str, int]:
    """Right or wrong, by the harness's two rules; lengths are those of the choices themselves."""
    if item.gold is None:
        return {"acc": int(scores[0].is_greedy)}
    sums = [score.logprob for score in scores]
    rates = [score.logprob / characters for score, (characters, _) in zip(scores, item.lengths, strict=True)]
    return {
        "acc": int(sums.index(max(sums)) == item.gold),
        "acc_norm": int(rates.index(max(rates)) == item.gold),
    }


class Harness:
    """The harness's own model, tasks and metrics."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        import logging

        import torch
        from lm_eval.models.huggingface import HFLM
        from transformers import AutoModelForCausalLM, AutoTokenizer

        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        network = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(options.model)
        self._model = HFLM(pretrained=network, tokenizer=tokenizer, batch_size=HARNESS_BATCH, device="cpu")
        self._folder = folder

    def run(self, suite: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        import lm_eval
        from lm_eval.tasks import TaskManager

        place = self._folder / suite
        place.mkdir()
        (place / "rows.jsonl").write_text("".join(json.dumps(hub_row(suite, row)) + "\n" for row in rows))
        own = Path(lm_eval.__file__).parent / "tasks" / TASK_FILES[suite]
        (place / "parity.yaml").write_text(
            f"include: {own}\ntag: []\ntask: parity\ndataset_path: json\ndataset_name: null\n"
            f"dataset_kwargs:\n  data_files:\n    test: {place}/rows.jsonl\n"
            "training_split: null\nvalidation_split: null\ntest_split: test\nshould_decontaminate: false\n"
        )
        manager = TaskManager(include_path=str(place), include_defaults=False)  # its own index takes 9 s to make
        found = lm_eval.simple_evaluate(
            model=self._model, tasks=["parity"], task_manager=manager, bootstrap_iters=0, log_samples=True
        )
        assert found is not None
        samples = sorted(found["samples"]["parity"], key=lambda sample: sample["doc_id"])
        metrics = [name for name in ("acc", "acc_norm") if name in samples[0]]
        return {
            "marks": {name: [int(sample[name]) for sample in samples] for name in metrics},
            "pairs": [[list(pair) for pair in sample["arguments"]] for sample in samples],
            "prices": [[price for price, _ in sample["filtered_resps"]] for sample in samples],
        }


def hub_row(suite: str, row: dict[str, Any]) -> dict[str, Any]:
    """A row of the shared file in the columns of the hub's set."""
    if suite == "blimp":
        return {"sentence_good": row["good"], "sentence_bad": row["bad"], "UID": row["uid"]}
    if suite == "lambada":
        return {"text": row["text"]}
    if suite == "piqa":
        return {"goal": row["context"], "sol1": row["choices"][0], "sol2": row["choices"][1], "label": row["label"]}
    if suite == "copa":
        premise, _, connector = row["context"].rpartition(", ")
        return {"premise": premise + ".", "choice1": row["choices"][0], "choice2": row["choices"][1],
                "question": {"because": "cause", "therefore": "effect"}[connector], "label": row["label"]}  # fmt: skip
    if suite == "winogrande":  # the harness puts an option before the blank's place: here all that stands before it
        first, second = row["contexts"]
        return {"sentence": f"_ {row['continuation']}", "option1": first, "option2": second,
                "answer": str(row["label"] + 1)}  # fmt: skip
    if suite == "boolq":
        passage, _, question = row["context"].removeprefix("Passage: ").rpartition("\nQuestion: ")
        return {"passage": passage, "question": question.removesuffix("?"), "label": row["label"]}
    choices = {"text": row["choices"], "label": list(LETTERS[: len(row["choices"])])}
    question = row.get("context") or row["question"]
    return {"question": question, "question_stem": question, "choices": choices, "answerKey": LETTERS[row["label"]]}


def show(records: dict[str, dict[str, Any]], options: argparse.Namespace) -> None:
    header = ("suite", "items", "ours, %", "as asked, %", "harness, %", "wording, points", "engine, points",
              "items differ", "of them by engine", "other strings", "largest difference, nats",
              f"within {GOAL_POINTS}: as asked", "own wording", "CPU-s, ours / theirs")  # fmt: skip
    rows, differing = [], {}
    for suite in options.only.split(","):
        ours, theirs = (records.get(line_name(suite, side, options), {}) for side in ("ours", "harness"))
        for metric in theirs["marks"] if ours and theirs else ():
            rows.append(row_about(suite, metric, ours, theirs))
            differing[f"{suite} {metric}"] = differing_items(metric, ours, theirs)
    print_tables("Our suites and lm-evaluation-harness, float32, the same items", header, rows)
    told = {name: items for name, items in differing.items() if items}
    print("\nItems that differ, from 0, * where the same string was judged differently: " + json.dumps(told))


def differing_items(metric: str, ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Numbers of the items that one side has right and the other not."""
    three = zip(ours["own"]["marks"][metric], ours["as_asked"]["marks"][metric], theirs["marks"][metric], strict=True)
    return [
        f"{number}{'*' if asked != harness else ''}"
        for number, (own, asked, harness) in enumerate(three)
        if not own == asked == harness
    ]


def row_about(suite: str, metric: str, ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[str, ...]:
    own, asked, marks = ours["own"]["marks"][metric], ours["as_asked"]["marks"][metric], theirs["marks"][metric]
    gaps = [abs(one - two) for mine, its in zip(ours["as_asked"]["prices"], theirs["prices"], strict=True)
            for one, two in zip(mine, its, strict=True)]  # fmt: skip
    first, second, third = (100 * sum(one) / len(one) for one in (own, asked, marks))
    return (
        f"{suite} {metric}", str(len(marks)), f"{first:.2f}", f"{second:.2f}", f"{third:.2f}",
        f"{first - second:+.2f}", f"{second - third:+.2f}",
        str(sum(a != b for a, b in zip(own, marks, strict=True))),
        str(sum(a != b for a, b in zip(asked, marks, strict=True))),
        str(ours["items_asked_otherwise"]), f"{max(gaps):.1e}",
        *("yes" if abs(mine - third) <= GOAL_POINTS else "NO" for mine in (second, first)),
        f"{ours['cpu_seconds']:.0f} / {theirs['cpu_seconds']:.0f}",
    )  # fmt: skip


if __name__ == "__main__":
    main()
