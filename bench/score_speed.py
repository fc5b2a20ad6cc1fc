"""Choices priced per second: our scorer against lm-evaluation-harness's Hugging Face model, on the same requests.

    python bench/score_speed.py --model SMOLLM2_FOLDER --data DATA_FOLDER           # four sets of requests
    ... --only arc-easy --items 48 --rounds 3 --threads 1 --dtype bfloat16 --out score.json
    ... --difference --items 15   # 150 answers in float32: ours, theirs and float64, which of the two is nearer

Requests are pairs (context, continuation) as the harness makes them, given to both sides unchanged: zero-shot ARC-easy
(four whole answers after a question), 4-shot SST-2 (two words after four solved reviews), CommonsenseQA (five letters
after a question with its options) and banking77 (77 intents of 2 to 11 tokens after a request; one item for every
twelve of the others). Theirs is `lm_eval.models.huggingface.HFLM` with batch 16, which sorts by length and takes
one-token continuations of one context together; ours is `chinchilla_lm.evals.Scorer`. Same weights, dtype and threads.
Each variant runs in its own process, rounds are interleaved and who is first changes; a speed is the median of the
rounds, a speed-up the median of the rounds' ratios, by CPU seconds (other users of the machine change them less) and
by wall seconds. Loading is not counted, tokenising is, on both sides; each is warmed up on two requests.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from machine import describe_machine, print_report, print_table, run_child, write_result

SCRIPT = Path(__file__).resolve()
SETS = ("arc-easy", "sst2-4shot", "commonsenseqa", "banking77")
DIFFERENCE_SETS = ("arc-easy", "commonsenseqa-text", "lambada")
BATCH = 16
SHOTS = 4
ITEMS_A_MANY = 12  # of the other sets for one of banking77, which has 77 choices
Pairs = list[tuple[str, str]]
COMPARED = {
    "ours - float64": ("ours", "float64"),
    "hflm - float64": ("hflm", "float64"),
    "ours - hflm": ("ours", "hflm"),
}


def main() -> None:
    options = parse_options()
    if options.worker:
        work = {"ours": measure_ours, "hflm": measure_theirs, "float64": price_float64}[options.worker]
        write_result(options.result, work(requests_of(options, options.set), options))
        return
    report: dict[str, Any] = {"bench": "score_speed/2", "machine": describe_machine(options.threads), "sets": {}}
    names = options.only.split(",") if options.only else DIFFERENCE_SETS if options.difference else SETS
    if options.difference:
        report |= compare_prices(names, options)
        show_difference(report)
    else:
        report["sets"] = {name: compare_speed(name, options) for name in names}
        show_speed(report)
    print_report(report, options.out)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a Llama or Qwen3 folder")
    parser.add_argument("--data", required=True, help="holds mc-zeroshot-pack/, sentiment-sst2/, ...")
    parser.add_argument("--only", default="", help="comma list of: " + ",".join({*SETS, *DIFFERENCE_SETS}))
    parser.add_argument("--items", type=int, default=48, help="of each set; of banking77 a twelfth")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--difference", action="store_true")
    parser.add_argument("--out")
    parser.add_argument("--worker", choices=["ours", "hflm", "float64"], help=argparse.SUPPRESS)
    parser.add_argument("--set", help=argparse.SUPPRESS)
    parser.add_argument("--result", help=argparse.SUPPRESS)
    return parser.parse_args()


def requests_of(options: argparse.Namespace, name: str) -> Pairs:
    """The pairs of the first items."""
    from chinchilla_lm.data.labelled import read_rows
    from chinchilla_lm.evals.suites import find_suite, suite_items

    data, count = Path(options.data), options.items
    if name == "sst2-4shot":
        solved = read_rows(data / "sentiment-sst2/train.jsonl")[:SHOTS]
        shown = "".join(f"Review: {row['text']}\nSentiment: {row['label']}\n\n" for row in solved)
        rows = read_rows(data / "sentiment-sst2/test.jsonl")[:count]
        texts, answers = [f"{shown}Review: {row['text']}\nSentiment:" for row in rows], ("negative", "positive")
        return [(text, f" {answer}") for text in texts for answer in answers]
    if name == "banking77":
        rows = read_rows(data / "intent-banking77/test.jsonl")
        intents = sorted({row["label"].replace("_", " ") for row in rows})
        texts = [f"Query: {row['text']}\nIntent:" for row in rows[:: len(rows) // max(1, count // ITEMS_A_MANY)]]
        return [(text, f" {intent}") for text in texts[: max(1, count // ITEMS_A_MANY)] for intent in intents]
    if name == "commonsenseqa-text":
        rows = read_rows(data / "mc-commonsenseqa/dev.jsonl")[:count]
        return [(f"Question: {row['question']}\nAnswer:", f" {choice}") for row in rows for choice in row["choices"]]
    return [pair for item in suite_items(find_suite(name), data, limit=count) for pair in item.pairs]


def compare_speed(name: str, options: argparse.Namespace) -> dict[str, Any]:
    rounds = []
    for number in range(options.rounds):
        sides = ("ours", "hflm") if number % 2 == 0 else ("hflm", "ours")
        one = {side: run_child(SCRIPT, words_of(options, name, side), threads=options.threads) for side in sides}
        failed = [record["error"] for record in one.values() if "error" in record]
        if failed:
            sys.exit(f"{name}: {failed[0]}")
        rounds.append(one)
        said = ", ".join(f"{side} {record['choices_per_cpu_s']:.1f}" for side, record in one.items())
        print(f"{name}, round {number + 1}: {said} choices/CPU-s", file=sys.stderr, flush=True)
    record: dict[str, Any] = {
        "choices": rounds[0]["ours"]["choices"], "dtype": options.dtype,
        "rounds": [{side: {measure: found for measure, found in result.items() if measure != "prices"}
                    for side, result in one.items()} for one in rounds],
    }  # fmt: skip
    for measure in ("choices_per_cpu_s", "choices_per_s"):
        record[measure] = {side: statistics.median(one[side][measure] for one in rounds) for side in ("ours", "hflm")}
        record[f"ratio_{measure}"] = statistics.median(one["ours"][measure] / one["hflm"][measure] for one in rounds)
    differences = [abs(a - b) for a, b in zip(rounds[0]["ours"]["prices"], rounds[0]["hflm"]["prices"], strict=True)]
    record["largest_difference_nats"] = max(differences)
    return record


def compare_prices(names: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """Errors of each side in float32 against transformers in float64, set by set and together."""
    together: dict[str, list[float]] = {label: [] for label in COMPARED}
    sets = {}
    for name in names:
        prices = {}
        for side in ("ours", "hflm", "float64"):
            found = run_child(SCRIPT, words_of(options, name, side, dtype="float32"), threads=options.threads)
            if "error" in found:
                sys.exit(f"{name}, {side}: {found['error']}")
            prices[side] = found["prices"]
        errors = {label: [abs(a - b) for a, b in zip(prices[one], prices[two], strict=True)]
                  for label, (one, two) in COMPARED.items()}  # fmt: skip
        sets[name] = {label: summary_of(own) for label, own in errors.items()}
        for label, own in errors.items():
            together[label] += own
    return {"sets": sets, "together": {label: summary_of(own) for label, own in together.items()}}


def summary_of(errors: list[float]) -> dict[str, float]:
    root = math.sqrt(statistics.fmean(error * error for error in errors))
    return {"choices": len(errors), "largest_nats": max(errors), "root_mean_square_nats": root}


def words_of(options: argparse.Namespace, name: str, side: str, dtype: str | None = None) -> list[str]:
    words = ["--model", options.model, "--data", options.data, "--items", str(options.items), "--worker", side]
    return [*words, "--set", name, "--threads", str(options.threads), "--dtype", dtype or options.dtype]


def measure_ours(pairs: Pairs, options: argparse.Namespace) -> dict[str, Any]:
    import torch

    from chinchilla_lm.evals.loading import load_for_evaluation

    torch.set_num_threads(options.threads)
    scorer = load_for_evaluation(Path(options.model)).scorer(options.dtype)
    scorer.score(pairs[:2])
    return timed(pairs, lambda: [score.logprob for score in scorer.score(pairs)])


def measure_theirs(pairs: Pairs, options: argparse.Namespace) -> dict[str, Any]:
    import torch
    from lm_eval.api.instance import Instance

    model = harness_model(options)
    requests = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    with torch.inference_mode():
        model.loglikelihood(requests[:2], disable_tqdm=True)
        return timed(pairs, lambda: [price for price, _ in model.loglikelihood(requests, disable_tqdm=True)])


def harness_model(options: argparse.Namespace) -> Any:
    import logging

    import torch
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    torch.set_num_threads(options.threads)
    network = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype))
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    return HFLM(pretrained=network, tokenizer=tokenizer, batch_size=BATCH, device="cpu")


def price_float64(pairs: Pairs, options: argparse.Namespace) -> dict[str, Any]:
    """Transformers in float64, one whole sequence at a time, the harness's own tokens; rotary tables are float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(options.threads)
    network = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float64).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    prices = []
    with torch.inference_mode():
        for text, continuation in pairs:
            before = tokenizer(text, add_special_tokens=False).input_ids
            whole = tokenizer(text + continuation, add_special_tokens=False).input_ids
            logprobs_tv = torch.log_softmax(network(torch.tensor([whole[:-1]])).logits[0].double(), dim=-1)
            places = range(len(before), len(whole))
            prices.append(sum(float(logprobs_tv[place - 1, whole[place]]) for place in places))
    return {"prices": prices}


def timed(pairs: Pairs, price: Any) -> dict[str, Any]:
    started, cpu_started = time.perf_counter(), time.process_time()
    prices = price()
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    return {
        "choices": len(pairs),
        "choices_per_s": len(pairs) / seconds,
        "choices_per_cpu_s": len(pairs) / cpu_seconds,
        "prices": prices,
    }


def show_speed(report: dict[str, Any]) -> None:
    rows = [
        (
            name,
            str(record["choices"]),
            *(f"{record['choices_per_cpu_s'][side]:.1f}" for side in ("ours", "hflm")),
            f"{record['ratio_choices_per_cpu_s']:.2f}",
            f"{record['ratio_choices_per_s']:.2f}",
            f"{record['largest_difference_nats']:.1e}",
        )
        for name, record in report["sets"].items()
    ]
    header = ("set", "choices", "ours/CPU-s", "HFLM/CPU-s", "speed-up", "by wall", "largest |diff|, nats")
    print_table("Choices priced per second", header, rows)


def show_difference(report: dict[str, Any]) -> None:
    measures = ("largest_nats", "root_mean_square_nats")
    rows = [
        (name, str(record["ours - hflm"]["choices"]),
         *(f"{record[label][measure]:.1e}" for label in COMPARED for measure in measures))
        for name, record in [*report["sets"].items(), ("together", report["together"])]
    ]  # fmt: skip
    header = ("set", "answers", *(word for label in COMPARED for word in (label, "rms")))
    print_table("Whole log-likelihoods in float32, nats: largest difference, root mean square", header, rows)


if __name__ == "__main__":
    main()
