"""The same text, the same minutes, the same machine: who predicts the same held-out bytes best?

    python bench/equal_time.py --corpus DIR --minutes 5 --nanogpt CLONE --nanochat CLONE --out equal_time.json
    python bench/equal_time.py --corpus DIR --minutes 5 --only ours,hf-llama-tuned

Every contender gets the text as files and so many minutes of wall time for everything: reading, tokenising, choosing,
training, saving. It runs alone in its own process, pinned to --threads cores. Afterwards the same code scores all of
them in bits per byte on the same documents, none of which is in the training text. Peers that need a number of steps
are timed on a few steps first, and not charged for that. Hugging Face's Trainer needs `pip install accelerate`;
nanochat needs `pip install rustbpe tiktoken filelock`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import sys
import time
from pathlib import Path

from contenders import (
    Contender,
    Task,
    load_nanochat,
    load_nanogpt_characters,
    load_nanogpt_tuned,
    load_ours,
    train_nanochat_runcpu,
    train_nanochat_tuned,
    train_nanogpt_characters,
    train_nanogpt_tuned,
    train_ours,
)
from contenders_hf import HUGGING_FACE
from machine import busy_cpu_seconds, describe_machine, print_report, print_table, run_child, write_result
from scratch import scratch

SCRIPT = Path(__file__).resolve()
CONTENDERS = {
    "ours": Contender(train=train_ours, load=load_ours, why="chinchilla run --corpus X --budget Ym, nothing else"),
    "nanogpt-char": Contender(
        train=train_nanogpt_characters, load=load_nanogpt_characters, needs="nanogpt", why="README, CPU settings"
    ),
    "nanogpt-tuned": Contender(
        train=train_nanogpt_tuned, load=load_nanogpt_tuned, needs="nanogpt", why="own BPE 2,048, context 128, batch 16"
    ),
    **HUGGING_FACE,
    "nanochat-runcpu": Contender(
        train=train_nanochat_runcpu, load=load_nanochat, needs="nanochat", why="runs/runcpu.sh, steps by time"
    ),
    "nanochat-tuned": Contender(
        train=train_nanochat_tuned, load=load_nanochat, needs="nanochat", why="depth 2, width 128, vocabulary 2,048"
    ),
}


def main() -> None:
    options = parse_options()
    if options.worker:
        write_result(options.result, work(options))
        return
    with contextlib.ExitStack() as stack:
        folder = Path(options.folder or stack.enter_context(scratch("equal_time"))).resolve()
        measure(options, folder)


def measure(options: argparse.Namespace, folder: Path) -> None:
    texts = prepare_texts(options, folder / "texts")
    names = [name for name in CONTENDERS if not options.only or name in options.only.split(",")]
    results = {}
    for name in names:
        print(f"{name}: {CONTENDERS[name].why}", file=sys.stderr, flush=True)
        results[name] = {"why": CONTENDERS[name].why, **run_contender(name, folder, options)}
        print(f"  {results[name].get('bits_per_byte') or results[name]['error']}", file=sys.stderr, flush=True)
    report = {
        "bench": "equal_time/1",
        "minutes": options.minutes,
        "machine": describe_machine(options.threads),
        "texts": texts,
        "contenders": results,
    }
    show(report)
    print_report(report, options.out)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", action="append", help="as `chinchilla run --corpus`; may be given several times")
    parser.add_argument("--minutes", type=float, default=5.0, help="wall time of each contender, everything included")
    parser.add_argument("--threads", type=int, default=2, help="cores of each contender")
    parser.add_argument("--only", default="", help=f"comma list of {', '.join(CONTENDERS)}")
    parser.add_argument("--train-bytes", type=float, default=30e6, help="most training text")
    parser.add_argument("--heldout-bytes", type=float, default=200e3, help="most held-out text")
    parser.add_argument("--nanogpt", help="a clone of github.com/karpathy/nanoGPT")
    parser.add_argument("--nanochat", help="a clone of github.com/karpathy/nanochat")
    parser.add_argument("--folder", help="where to work; kept. By default a temporary folder, removed at the end")
    parser.add_argument("--out", help="write the JSON here as well")
    parser.add_argument("--worker", choices=["train", "score"], help=argparse.SUPPRESS)
    parser.add_argument("--name", help=argparse.SUPPRESS)
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--result", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.worker and not options.corpus:
        parser.error("--corpus is needed: a file, a folder or a glob of text")
    return options


def prepare_texts(options: argparse.Namespace, folder: Path) -> dict:
    """Write train.jsonl and train.txt (the same documents) and heldout.json; no document is in both."""
    sys.path.insert(0, str(SCRIPT.parent.parent / "src"))
    from chinchilla_lm.data.documents import read_documents

    folder.mkdir(parents=True)
    documents = list(read_documents(options.corpus))
    marked = [document for document in documents if document.split == "heldout"]
    # Without a held-out file: every tenth document by the hash of its text.
    heldout = marked or [d for d in documents if int(hashlib.sha256(d.text.encode()).hexdigest(), 16) % 10 == 0]
    kept = {document.text for document in heldout}
    train = _first_bytes(
        [d.text for d in documents if d.text not in kept and d.split != "heldout"], options.train_bytes
    )
    # Pieces of the start of many documents rather than all of one.
    pieces = _first_bytes([document.text[:10_000] for document in heldout], options.heldout_bytes)
    if not train or not pieces:
        raise SystemExit("the corpus has too few documents to hold some out; give more files, or a file named val*")
    (folder / "train.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in train), encoding="utf-8")
    (folder / "train.txt").write_text("\n\n".join(train), encoding="utf-8")
    (folder / "heldout.json").write_text(json.dumps(pieces), encoding="utf-8")
    return {
        "corpus": [Path(source).name for source in options.corpus],
        "train_documents": len(train),
        "train_bytes": sum(len(text.encode()) for text in train),
        "heldout_documents": len(pieces),
        "heldout_bytes": sum(len(text.encode()) for text in pieces),
    }


def _first_bytes(texts: list[str], most: float) -> list[str]:
    """Keep texts while they fit; the one that does not is cut."""
    kept, room = [], int(most)
    for text in texts:
        if room <= 0:
            break
        part = text.encode()[:room].decode(errors="ignore")
        kept.append(part)
        room -= len(part.encode())
    return [text for text in kept if text.strip()]


def run_contender(name: str, folder: Path, options: argparse.Namespace) -> dict:
    contender = CONTENDERS[name]
    if contender.needs and not getattr(options, contender.needs):
        return {"error": f"left out: give a clone with --{contender.needs} DIR"}
    own = folder / name
    own.mkdir(parents=True)
    arguments = [
        "--name",
        name,
        "--folder",
        str(folder),
        "--minutes",
        str(options.minutes),
        "--threads",
        str(options.threads),
    ]
    if contender.needs:
        arguments += [f"--{contender.needs}", str(Path(getattr(options, contender.needs)).resolve())]
    pinned = set(sorted(os.sched_getaffinity(0))[: options.threads])
    all_cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, pinned)  # children inherit it
    try:
        started, busy = time.time(), busy_cpu_seconds() or 0.0
        children = os.times()
        trained = run_child(
            SCRIPT, ["--worker", "train", "--started", str(started), *arguments], threads=options.threads, cwd=own
        )
        wall = time.time() - started
        spent = os.times()
        own_cpu = spent.children_user + spent.children_system - children.children_user - children.children_system
        if "error" in trained:
            return trained
        foreign = max(0.0, (busy_cpu_seconds() or 0.0) - busy - own_cpu) / wall
        scored = run_child(SCRIPT, ["--worker", "score", *arguments], threads=options.threads, cwd=own)
    finally:
        os.sched_setaffinity(0, all_cores)
    charged = wall - trained["uncharged_seconds"]
    return {**scored, "charged_seconds": charged, "cpu_seconds": own_cpu, "foreign_cores": foreign, "training": trained}


def work(options: argparse.Namespace) -> dict:
    folder = Path(options.folder)
    contender = CONTENDERS[options.name]
    clone = getattr(options, contender.needs) if contender.needs else None
    task = Task(
        folder=folder / options.name,
        texts=folder / "texts",
        seconds=options.minutes * 60,
        threads=options.threads,
        clone=Path(clone) if clone else None,
        started=options.started or time.time(),
    )
    if options.worker == "train":
        return {**contender.train(task), "uncharged_seconds": task.uncharged}
    from scoring import score_documents

    return score_documents(contender.load(task), task.heldout_texts)


def show(report: dict) -> None:
    texts = report["texts"]
    rows, failures = [], []
    ranked = sorted(report["contenders"].items(), key=lambda item: item[1].get("bits_per_byte", float("inf")))
    for name, record in ranked:
        if "error" in record:
            failures.append(f"{name}: {record['error']}")
            continue
        training = record["training"]
        rows.append(
            [
                name,
                f"{record['bits_per_byte']:.4f}",
                f"{record['charged_seconds']:.0f} s",
                f"{record['params'] / 1e6:.2f} M",
                f"{training['tokens'] / 1e6:.2f} M" if training.get("tokens") else "",
                f"{record['foreign_cores']:.2f}",
                record["why"],
            ]
        )
    print_table(
        f"Bits per byte after {report['minutes']:g} minutes on {report['machine']['threads']} cores of "
        f"{report['machine']['cpu']}: {texts['train_bytes'] / 1e6:.1f} MB of training text, "
        f"{texts['heldout_bytes'] / 1e3:.0f} kB held out",
        ["contender", "bits/byte", "charged", "params", "tokens", "foreign cores", "settings"],
        rows,
    )
    for failure in failures:
        print(failure, file=sys.stderr)


if __name__ == "__main__":
    main()
