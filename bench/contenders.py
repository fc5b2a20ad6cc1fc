"""The contenders of equal_time.py that run as their own programs: ours, nanoGPT, nanochat (others: contenders_hf.py).

A contender has two halves. `train(task)` does all that a user would do, from text to a trained model in `task.folder`,
in about `task.seconds`; `load(task)` gives a `Scorer`. Peers that must be told a number of steps are first timed on a
few steps; that time is not charged to them, so that each gets the learning-rate decay that its authors intend.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from scoring import Scorer

# Trained at the end of a budget rather than past it: what is left for process exit and a last checkpoint.
SAFETY = 0.97
CALIBRATION_STEPS = 25
# The size that our law picks for a few minutes on two cores; peers' tuned variants get it for free.
TUNED = {"vocab": 2048, "context": 128, "n_layer": 4, "n_head": 4, "n_embd": 128}
TOKENIZER_SAMPLE_CHARACTERS = 4_000_000


@dataclass
class Task:
    """What a contender gets. `folder` holds its files; `texts` has train.jsonl, train.txt and heldout.json."""

    folder: Path
    texts: Path
    seconds: float
    threads: int
    clone: Path | None
    started: float
    uncharged: float = field(default=0.0)

    @property
    def left(self) -> float:
        """Charged seconds left."""
        return self.seconds - (time.time() - self.started - self.uncharged)

    @contextlib.contextmanager
    def not_charged(self) -> Iterator[None]:
        before = time.time()
        try:
            yield
        finally:
            self.uncharged += time.time() - before

    @property
    def train_text(self) -> str:
        return (self.texts / "train.txt").read_text(encoding="utf-8")

    @property
    def heldout_texts(self) -> list[str]:
        return json.loads((self.texts / "heldout.json").read_text(encoding="utf-8"))


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A row of the table. `needs` names the option that gives a clone; `why` says where its settings come from."""

    train: Callable[[Task], dict]
    load: Callable[[Task], Scorer]
    needs: str | None = None
    why: str


def run_logged(command: list[str], log: Path, *, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Run a program, keep its output in a file, and return it."""
    finished = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    log.write_text(finished.stdout)
    if finished.returncode:
        tail = [line for line in finished.stdout.strip().splitlines() if line.strip()][-1:]
        raise SystemExit(f"{Path(command[0]).name} failed: {tail[0] if tail else 'no output'} (all of it in {log})")
    return finished.stdout


# --- ours


def train_ours(task: Task) -> dict:
    """The command a user types; sweep, forecast, training, saving and evaluation are all in the budget."""
    budget = f"{task.seconds / 60:g}m" if task.seconds >= 60 else f"{task.seconds:g}s"
    code = "import sys; from chinchilla_lm.cli.main import main; sys.exit(main())"
    out = task.folder / "run"
    command = [sys.executable, "-c", code, "run", "--corpus", str(task.texts / "train.jsonl"), "--budget", budget]
    run_logged([*command, "--out", str(out), "--json"], task.folder / "log.txt")
    record = json.loads((out / "eval.json").read_text())
    forecast = json.loads((out / "forecast.json").read_text())
    return {
        "steps": None,
        "params": forecast["params_total"],
        "own_eval": record,
        "forecast": {name: forecast[name] for name in ("loss", "low", "high", "params_matmul", "tokens")},
    }


def load_ours(task: Task) -> Scorer:
    from chinchilla_lm.data.tokenizer import END_OF_TEXT, load_tokenizer
    from chinchilla_lm.model.huggingface import load_model

    folder = task.folder / "run" / "model"
    model, tokenizer = load_model(folder).eval(), load_tokenizer(folder)
    return Scorer(
        encode=lambda text: tokenizer.encode(text).ids,
        decode=tokenizer.decode,
        start_id=tokenizer.token_to_id(END_OF_TEXT),
        context=model.shape.context,
        logits=model,
        params=sum(parameter.numel() for parameter in model.parameters()),
    )


# --- nanoGPT: its own train.py in a copy of the clone, on a data folder of its own form (train.bin, val.bin, meta.pkl)


def train_nanogpt_characters(task: Task) -> dict:
    """README, "I only have a macbook": characters, context 64, batch 12, 4 layers of width 128, lr 1e-3."""
    text = task.train_text
    # Its prepare.py takes the characters of the whole file, validation included; so do we, for the held-out text.
    characters = sorted(set(text).union(*task.heldout_texts))
    ids = {character: index for index, character in enumerate(characters)}
    (task.folder / "characters.json").write_text(json.dumps(characters), encoding="utf-8")
    settings = {"block_size": 64, "batch_size": 12, "n_layer": 4, "n_head": 4, "n_embd": 128}
    return _train_nanogpt(task, [ids[character] for character in text], len(characters), settings)


def train_nanogpt_tuned(task: Task) -> dict:
    """A hand-tuned variant: byte-level BPE of 2,048 trained on the text, context 128, batch 16, the same schedule."""
    tokenizer = train_bpe(task, TUNED["vocab"])
    encodings = tokenizer.encode_batch(list(split_text(task.train_text)))
    ids = [token for encoding in encodings for token in encoding.ids]
    settings = {"block_size": TUNED["context"], "batch_size": 16} | {
        name: TUNED[name] for name in ("n_layer", "n_head", "n_embd")
    }
    return _train_nanogpt(task, ids, TUNED["vocab"], settings)


def _train_nanogpt(task: Task, ids: list[int], vocab: int, settings: dict[str, int]) -> dict:
    import numpy as np

    assert task.clone is not None
    work = task.folder / "nanoGPT"
    shutil.copytree(task.clone, work, ignore=shutil.ignore_patterns(".git"))
    data = work / "data" / "bench"
    data.mkdir()
    cut = len(ids) * 9 // 10  # its prepare.py keeps the last tenth for validation
    np.array(ids[:cut], dtype=np.uint16).tofile(data / "train.bin")
    np.array(ids[cut:], dtype=np.uint16).tofile(data / "val.bin")
    (data / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": vocab}))  # the only form that its train.py reads
    options = {
        "device": "cpu",
        "compile": False,
        "dataset": "bench",
        "dropout": 0.0,
        "eval_iters": 20,
        "log_interval": 1,
    }
    options |= settings

    def run(name: str, extra: dict) -> str:
        arguments = [f"--{key}={value}" for key, value in (options | extra).items()]
        command = [sys.executable, "train.py", "config/train_shakespeare_char.py", *arguments]
        return run_logged(command, task.folder / f"{name}.txt", cwd=work)

    with task.not_charged():
        started = time.time()
        count = CALIBRATION_STEPS
        output = run(
            "calibration", {"max_iters": count, "lr_decay_iters": count, "eval_interval": 10**9, "out_dir": "c"}
        )
        wall = time.time() - started
    step_seconds = statistics.median(float(x) / 1000 for x in re.findall(r"time ([\d.]+)ms", output)[5:])
    evaluation_seconds = 40 * step_seconds / 3  # 2 x 20 forward passes, each about a third of a step
    start_seconds = max(0.0, wall - step_seconds * (count + 1) - evaluation_seconds)
    # Its checkpoints are written at evaluations, and the best is kept; it also evaluates before the first step.
    seconds = task.left * SAFETY - start_seconds
    evaluations = max(1, min(8, int(0.1 * seconds / evaluation_seconds) - 1))
    interval = max(1, int((seconds - (evaluations + 1) * evaluation_seconds) / step_seconds / evaluations))
    steps = evaluations * interval
    schedule = {"max_iters": steps, "lr_decay_iters": steps, "warmup_iters": min(100, steps // 10)}
    run("log", schedule | {"eval_interval": interval, "out_dir": "out"})
    step_tokens = settings["block_size"] * settings["batch_size"]
    return {"steps": steps, "step_seconds": step_seconds, "tokens": steps * step_tokens}


def load_nanogpt_characters(task: Task) -> Scorer:
    characters = json.loads((task.folder / "characters.json").read_text(encoding="utf-8"))
    ids = {character: index for index, character in enumerate(characters)}
    return _load_nanogpt(
        task,
        encode=lambda text: [ids[character] for character in text],
        decode=lambda tokens: "".join(characters[token] for token in tokens),
        start_id=ids["\n"],
    )


def load_nanogpt_tuned(task: Task) -> Scorer:
    tokenizer = read_bpe(task)
    return _load_nanogpt(
        task,
        encode=lambda text: tokenizer.encode(text).ids,
        decode=tokenizer.decode,
        start_id=tokenizer.encode("\n").ids[0],
    )


def _load_nanogpt(task: Task, *, encode, decode, start_id: int) -> Scorer:
    import torch

    sys.path.insert(0, str(task.folder / "nanoGPT"))
    from model import GPT, GPTConfig  # type: ignore[import-not-found]

    # Its checkpoint is a pickle; this one we have just made, and weights_only reads no code.
    saved = torch.load(task.folder / "nanoGPT" / "out" / "ckpt.pt", map_location="cpu", weights_only=True)
    model = GPT(GPTConfig(**saved["model_args"])).eval()
    model.load_state_dict({name.removeprefix("_orig_mod."): tensor for name, tensor in saved["model"].items()})
    return Scorer(
        encode=encode,
        decode=decode,
        start_id=start_id,
        context=saved["model_args"]["block_size"],
        logits=lambda ids_bt: model(ids_bt, ids_bt)[0],  # with targets it returns the logits of every position
        params=sum(parameter.numel() for parameter in model.parameters()),
    )


# --- nanochat: its own tok_train and base_train in a base folder of our making


def train_nanochat_runcpu(task: Task) -> dict:
    """runs/runcpu.sh as it stands (depth 6, head_dim 64, context 512, 16,384 tokens a step, vocabulary 32,768)."""
    return _train_nanochat(task, vocab=32768, options={
        "depth": 6, "head-dim": 64, "window-pattern": "L", "max-seq-len": 512, "device-batch-size": 32,
        "total-batch-size": 16384,
    })  # fmt: skip


def train_nanochat_tuned(task: Task) -> dict:
    """A hand-tuned variant: depth 2 of width 128, heads of 32, context 256, 2,048 tokens a step, vocabulary 2,048."""
    return _train_nanochat(task, vocab=TUNED["vocab"], options={
        "depth": 2, "aspect-ratio": 64, "head-dim": 32, "window-pattern": "L", "max-seq-len": 256,
        "device-batch-size": 8, "total-batch-size": 2048,
    })  # fmt: skip


def _train_nanochat(task: Task, *, vocab: int, options: dict[str, object]) -> dict:
    assert task.clone is not None
    base = task.folder / "base"
    _write_parquets(task, base / "base_data_climbmix")
    stubs = task.folder / "stubs"
    stubs.mkdir()
    (stubs / "wandb.py").write_text("")  # imported, never used with --run=dummy
    env = {
        "NANOCHAT_BASE_DIR": str(base),
        "PYTHONPATH": os.pathsep.join([str(task.clone), str(stubs), os.environ.get("PYTHONPATH", "")]),
    }
    module = [sys.executable, "-m"]
    run_logged(
        [*module, "scripts.tok_train", f"--vocab-size={vocab}"], task.folder / "tokenizer.txt", cwd=task.clone, env=env
    )
    common = {
        **options,
        "device-type": "cpu",
        "eval-every": -1,
        "core-metric-every": -1,
        "sample-every": -1,
        "run": "dummy",
    }

    def run(name: str, steps: int) -> str:
        arguments = [
            f"--{key}={value}" for key, value in {**common, "num-iterations": steps, "model-tag": name}.items()
        ]
        return run_logged(
            [*module, "scripts.base_train", *arguments], task.folder / f"{name}.txt", cwd=task.clone, env=env
        )

    with task.not_charged():  # it also fills torch.compile's cache, so that the charged run compiles from the cache
        run("first", 1)
        started = time.time()
        output = run("calibration", 6)
        wall = time.time() - started
    times = [float(x) / 1000 for x in re.findall(r"dt: ([\d.]+)ms", output)]
    step_seconds = statistics.median(times[1:])
    start_seconds = max(0.0, wall - step_seconds * 6)
    steps = max(1, int((task.left * SAFETY - start_seconds) / step_seconds))
    run("final", steps)
    return {"steps": steps, "step_seconds": step_seconds, "tokens": steps * int(str(options["total-batch-size"]))}


def _write_parquets(task: Task, folder: Path) -> None:
    """Its data form: parquet files with a column text; the last file is for validation.

    Its loader keeps of a document what fits one row and drops the rest, so whole books would be wasted on it: the text
    is given in pieces of about 2,000 characters.
    """
    import pyarrow
    from pyarrow import parquet

    folder.mkdir(parents=True)
    pieces = list(split_text(task.train_text, 2000))
    cut = max(1, len(pieces) // 50)
    for name, part in (("shard_00000.parquet", pieces[cut:]), ("shard_00001.parquet", pieces[:cut])):
        parquet.write_table(pyarrow.table({"text": part}), folder / name, row_group_size=1024)


def load_nanochat(task: Task) -> Scorer:
    import torch

    os.environ["NANOCHAT_BASE_DIR"] = str(task.folder / "base")
    sys.path.insert(0, str(task.clone))
    from nanochat.checkpoint_manager import build_model, find_last_step  # type: ignore[import-not-found]

    folder = task.folder / "base" / "base_checkpoints" / "final"
    model, tokenizer, _ = build_model(str(folder), find_last_step(str(folder)), torch.device("cpu"), "eval")
    return Scorer(
        encode=tokenizer.encode,
        decode=tokenizer.decode,
        start_id=tokenizer.get_bos_token_id(),
        context=model.config.sequence_len,
        logits=model,
        params=sum(parameter.numel() for parameter in model.parameters()),
    )


# --- shared by the tuned variants


def split_text(text: str, characters: int = 20_000) -> Iterator[str]:
    """Cut a text into pieces at line ends where there are some, so that a tokenizer works on all cores."""
    start = 0
    while start < len(text):
        end = text.rfind("\n", start, start + characters) + 1
        end = end if end > start else min(len(text), start + characters)
        yield text[start:end]
        start = end


def train_bpe(task: Task, vocab: int):
    """A byte-level BPE on a sample of the text, saved in the contender's folder."""
    from chinchilla_lm.data.tokenizer import save_tokenizer, train_tokenizer

    tokenizer = train_tokenizer(split_text(task.train_text[:TOKENIZER_SAMPLE_CHARACTERS]), vocab)
    save_tokenizer(tokenizer, task.folder / "tokenizer")
    return tokenizer


def read_bpe(task: Task):
    from chinchilla_lm.data.tokenizer import load_tokenizer

    return load_tokenizer(task.folder / "tokenizer")
