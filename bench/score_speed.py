"""Choices priced per second: our scorer against lm-evaluation-harness's Hugging Face model, on the same requests.

    python bench/score_speed.py --model SMOLLM2_FOLDER --data DATA_FOLDER           # three sets of requests
    ... --only arc-easy --items 48 --rounds 3 --threads 1 --dtype bfloat16 --out score.json
    ... --difference        # log-likelihoods of both in float32, and which of the two is nearer to float64

Requests: zero-shot ARC-easy (four whole answers after a question), 4-shot SST-2 (two words after four solved reviews)
and CommonsenseQA (five letters after a question with its options): pairs (context, continuation) as the harness makes
them, given to both sides unchanged. Theirs is `lm_eval.models.huggingface.HFLM` with batch 16, which sorts by length
and takes one-token continuations of one context together; ours is `chinchilla_lm.evals.Scorer`. Same weights, dtype and
threads. Each variant runs in its own process, rounds are interleaved, and the speed-up is the median of the rounds'
ratios of CPU seconds (other users of the machine change them less than wall seconds, which are recorded too). Loading
is not counted, tokenising is, on both sides; each is warmed up on two requests.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from machine import describe_machine, print_table, run_child, write_result

SCRIPT = Path(__file__).resolve()
SETS = ("arc-easy", "sst2-4shot", "commonsenseqa")
BATCH = 16
SHOTS = 4
Pairs = list[tuple[str, str]]


def main() -> None:
    options = parse_options()
    if options.worker:
        work = {"ours": measure_ours, "hflm": measure_theirs, "float64": price_float64}[options.worker]
        write_result(options.result, work(requests_of(options, options.set), options))
        return
    report: dict[str, Any] = {"bench": "score_speed/1", "machine": describe_machine(options.threads), "sets": {}}
    for name in options.only.split(","):
        report["sets"][name] = compare_prices(name, options) if options.difference else compare_speed(name, options)
    (show_difference if options.difference else show_speed)(report)
    text = json.dumps(report, indent=1)
    print(text)
    if options.out:
        Path(options.out).write_text(text)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a Llama or Qwen3 folder")
    parser.add_argument("--data", required=True, help="holds mc-zeroshot-pack/, sentiment-sst2/, mc-commonsenseqa/")
    parser.add_argument("--only", default=",".join(SETS))
    parser.add_argument("--items", type=int, default=48, help="of each set")
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
    from chinchilla_lm.evals.suites import find_suite, suite_items

    if name != "sst2-4shot":
        items = suite_items(find_suite(name), Path(options.data), limit=options.items)
        return [pair for item in items for pair in item.pairs]
    rows = [json.loads(line) for line in (Path(options.data) / "sentiment-sst2/test.jsonl").read_text().splitlines()]
    solved = (Path(options.data) / "sentiment-sst2/train.jsonl").read_text().splitlines()[:SHOTS]
    shown = "".join(f"Review: {row['text']}\nSentiment: {row['label']}\n\n" for row in map(json.loads, solved))
    labels = ("negative", "positive")
    return [
        (f"{shown}Review: {row['text']}\nSentiment:", f" {label}") for row in rows[: options.items] for label in labels
    ]


def compare_speed(name: str, options: argparse.Namespace) -> dict[str, Any]:
    rounds = []
    for number in range(options.rounds):
        one = {side: run_child(SCRIPT, words_of(options, name, side), threads=options.threads)
               for side in ("ours", "hflm")}  # fmt: skip
        failed = [record["error"] for record in one.values() if "error" in record]
        if failed:
            sys.exit(f"{name}: {failed[0]}")
        rounds.append(one)
        said = ", ".join(f"{side} {record['choices_per_cpu_s']:.1f}" for side, record in one.items())
        print(f"{name}, round {number + 1}: {said} choices/CPU-s", file=sys.stderr, flush=True)
    record: dict[str, Any] = {"choices": rounds[0]["ours"]["choices"], "dtype": options.dtype}
    for measure in ("choices_per_cpu_s", "choices_per_s"):
        record[measure] = {side: statistics.median(one[side][measure] for one in rounds) for side in ("ours", "hflm")}
        record[f"ratio_{measure}"] = statistics.median(one["ours"][measure] / one["hflm"][measure] for one in rounds)
    differences = [abs(a - b) for a, b in zip(rounds[0]["ours"]["prices"], rounds[0]["hflm"]["prices"], strict=True)]
    record["largest_difference_nats"] = max(differences)
    return record


def compare_prices(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Largest error of each side in float32 against transformers in float64."""
    prices = {}
    for side in ("ours", "hflm", "float64"):
        found = run_child(SCRIPT, words_of(options, name, side, dtype="float32"), threads=options.threads)
        if "error" in found:
            sys.exit(f"{name}, {side}: {found['error']}")
        prices[side] = found["prices"]
    pairs = {"ours - hflm": ("ours", "hflm"), "ours - float64": ("ours", "float64"),
             "hflm - float64": ("hflm", "float64")}  # fmt: skip
    record: dict[str, Any] = {"choices": len(prices["ours"])}
    for label, (one, two) in pairs.items():
        errors = [abs(a - b) for a, b in zip(prices[one], prices[two], strict=True)]
        record[label] = {"largest_nats": max(errors), "mean_nats": statistics.fmean(errors)}
    return record


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
    labels = ("ours - hflm", "ours - float64", "hflm - float64")
    rows = [
        (name, str(record["choices"]), *(f"{record[label]['largest_nats']:.1e}" for label in labels))
        for name, record in report["sets"].items()
    ]
    print_table("Largest |difference| of whole log-likelihoods, nats, float32", ("set", "choices", *labels), rows)


if __name__ == "__main__":
    main()
