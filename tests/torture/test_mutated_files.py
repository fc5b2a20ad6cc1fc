"""S6: what strangers' files may do to the readers is be refused, in one line. Nothing but our own errors comes out.

Each reader gets files that it can read, damaged at random: bytes flipped, cut, repeated, odd values put into tables.
The short form is part of every run; `make torture` goes on for FUZZ_SECONDS a reader (10 minutes by default).
"""

from __future__ import annotations

import contextlib
import copy
import gzip
import json
import os
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from chinchilla_lm.core.config import dump_toml, load_toml
from chinchilla_lm.core.errors import ChinchillaError
from chinchilla_lm.core.shapes import ModelShape
from chinchilla_lm.data.formats import ReadTally, read_texts
from chinchilla_lm.data.labelled import read_rows
from chinchilla_lm.data.task_rows import TASKS, rows_for_task
from chinchilla_lm.data.tokenizer import load_tokenizer, save_tokenizer, token_bytes, train_tokenizer
from chinchilla_lm.model.gguf import GgufText, read_gguf, write_gguf
from chinchilla_lm.model.gguf_tokenizer import build_tokenizer, describe_tokenizer
from chinchilla_lm.model.huggingface import load_model, save_model
from chinchilla_lm.model.model_config import SpecialIds, read_config
from chinchilla_lm.model.transformer import Transformer, initialise
from chinchilla_lm.serve.model_folder import check_model_folder
from chinchilla_lm.train.config import BatchConfig, OptimizerConfig, RunConfig, ScheduleConfig, TrainConfig

FUZZ_SECONDS = float(os.environ.get("FUZZ_SECONDS", "600"))
SHORT_EXAMPLES = 60
TEXT = "The sailor said hello, and the sea said nothing. 你好，大海 🚀 is what the cook wrote in 1872. " * 20
SHAPE = ModelShape(vocab=300, context=16, d_model=8, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=4, d_ff=12)
ODD_BYTES = [b"\0", b"\xff", b"\n", b"[" * 3000, b'{"a":' * 3000, b"9" * 5000, b"1e999", b"NaN", b"-1", b'"', b"null"]
ODD_BYTES += [b"\xed\xa0\x80", b"\\ud800", b",", b"=", b"[[a]]\n", b"a.b = 1\n", b"true", b"''", b"\t", b"0x", b"\x7f"]
ODD_VALUES: list[Any] = [None, True, False, 0, -1, 1, 5.5, 1e308, 2**31, 2**63, 2**64, -(2**63), 10**400, "", "a", "1"]
ODD_VALUES += [[], {}, [[]], [None], [1, "a"], {"a": 1}, "\x00", "🚀", "x" * 5000, [0] * 300, {"": None}, "\ud800"]


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A reader under test: `make` writes good files once; `read` reads them; `spoil` damages one at random."""

    make: Callable[[Path], None]
    read: Callable[[Path, random.Random], None]


def make_config(folder: Path) -> None:
    config = TrainConfig(
        shape=SHAPE,
        batch=BatchConfig(rows=2, micro_batch=2),
        optimizer=OptimizerConfig(lr_matrix=0.01, lr_embedding=0.01),
        schedule=ScheduleConfig(steps=8, warmup_steps=2, decay_steps=2),
        run=RunConfig(device="cpu"),
    )
    (folder / "train.toml").write_text(dump_toml(config))


def read_config_file(folder: Path, _: random.Random) -> None:
    load_toml(TrainConfig, folder / "train.toml")


def make_model(folder: Path) -> None:
    model = Transformer(SHAPE)
    initialise(model, seed=0)
    save_tokenizer(train_tokenizer([TEXT], SHAPE.vocab), folder / "tokenizer")
    save_model(model, folder / "model", tokenizer_folder=folder / "tokenizer")
    for path in (folder / "model").iterdir():
        shutil.copyfile(path, folder / path.name)
    shutil.rmtree(folder / "model")
    shutil.rmtree(folder / "tokenizer")


def read_model(folder: Path, rng: random.Random) -> None:
    if rng.random() < 0.5:
        check_model_folder(folder)
    read_config(folder)
    load_model(folder)


def make_gguf(folder: Path) -> None:
    save_tokenizer(train_tokenizer([TEXT], SHAPE.vocab), folder / "tokenizer")
    text = GgufText(
        tokenizer=describe_tokenizer(folder / "tokenizer", SHAPE.vocab), special=SpecialIds(bos=0, eos=0, pad=0)
    )
    model = Transformer(SHAPE)
    initialise(model, seed=0)
    write_gguf(model, folder / "m.gguf", text, name="tiny")
    shutil.rmtree(folder / "tokenizer")


def read_gguf_file(folder: Path, _: random.Random) -> None:
    found = read_gguf(folder / "m.gguf")[1]
    build_tokenizer(found.tokenizer).encode(TEXT)


ROWS = [{"text": f"{word} wrote 你好", "label": word[:1], "id": index} for index, word in enumerate(TEXT.split()[:20])]


def make_tables(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (folder / "rows.jsonl").write_text(lines)
    (folder / "rows.json").write_text(json.dumps(ROWS))
    (folder / "escaped.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS))
    (folder / "packed.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (folder / "rows.csv").write_text("text,label\n" + "".join(f'"{row["text"]}",{row["label"]}\n' for row in ROWS))
    (folder / "rows.tsv").write_text("text\tlabel\n" + "".join(f"{row['text']}\t{row['label']}\n" for row in ROWS))
    (folder / "rows.conll").write_text("The\tO\nsailor\tB-PER\n\nThe\tO\nsea\tB-LOC\n")
    question = {"id": "1", "question": "who", "answers": [{"text": "sea", "answer_start": 4}]}
    squad = {"data": [{"title": "t", "paragraphs": [{"context": "the sea", "qas": [question]}]}]}
    (folder / "squad.json").write_text(json.dumps(squad))
    parquet.write_table(pa.Table.from_pylist(ROWS), folder / "rows.parquet")
    (folder / "packed.txt.zst").write_bytes(pa.compress(TEXT.encode(), codec="zstd", asbytes=True))
    (folder / "plain.txt").write_text(TEXT)


def read_tables(folder: Path, rng: random.Random) -> None:
    """Only the damaged file: it is the newest."""
    path = max(folder.iterdir(), key=lambda one: one.stat().st_mtime_ns)
    if path.name.endswith((".txt", ".txt.zst", ".jsonl", ".jsonl.gz", ".parquet")):
        with contextlib.suppress(ChinchillaError):
            list(read_texts(path, rng.choice(["text", "label"]), ReadTally()))
    if ".txt" not in path.name:
        rows_for_task(rng.choice(list(TASKS)), read_rows(path))


def make_tokenizer(folder: Path) -> None:
    save_tokenizer(train_tokenizer([TEXT], 300), folder)


def read_tokenizer(folder: Path, _: random.Random) -> None:
    tokenizer = load_tokenizer(folder)
    token_bytes(tokenizer)


READERS = {
    "config": Reader(make=make_config, read=read_config_file),
    "model folder": Reader(make=make_model, read=read_model),
    "gguf": Reader(make=make_gguf, read=read_gguf_file),
    "tables": Reader(make=make_tables, read=read_tables),
    "tokenizer": Reader(make=make_tokenizer, read=read_tokenizer),
}


@pytest.fixture(params=READERS)
def fuzzed(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[int, int], None]:
    """Run so many examples from a seed."""
    reader = READERS[request.param]
    good, tried = tmp_path / "good", tmp_path / "tried"
    good.mkdir()
    reader.make(good)
    shutil.copytree(good, tried)
    reader.read(good, random.Random(0))  # undamaged, it is read

    def check(example: int) -> None:
        rng = random.Random(example)
        path = rng.choice(sorted(tried.iterdir()))
        content = path.read_bytes()
        path.write_bytes(damage(content, path.suffix == ".json", rng))
        refusal = ""
        try:
            reader.read(tried, rng)
        except ChinchillaError as error:
            refusal = str(error)
        finally:
            path.write_bytes(content)
        assert "\n" not in refusal, refusal

    def run(examples: int, first: int) -> None:
        quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
        given_seed = given(example=st.integers(0, 2**63))(check)
        seed(first)(settings(max_examples=examples, database=None, suppress_health_check=quiet)(given_seed))()

    return run


def test_a_damaged_file_is_read_or_refused(fuzzed):
    fuzzed(SHORT_EXAMPLES, 0)


@pytest.mark.torture
def test_damaged_files_are_read_or_refused_for_minutes(fuzzed, capsys):
    began, rounds = time.monotonic(), 0
    while time.monotonic() - began < FUZZ_SECONDS:
        rounds += 1
        fuzzed(500, rounds)
    with capsys.disabled():
        print(f"\n{500 * rounds} damaged files in {time.monotonic() - began:.0f} s")


def damage(content: bytes, is_json: bool, rng: random.Random) -> bytes:
    """Change a file in one to four places: values of a table, or bytes."""
    if is_json and rng.random() < 0.6:
        table = json.loads(content)
        for _ in range(rng.randint(1, 3)):
            mutate_value(table, rng)
        return json.dumps(table).encode()
    changed = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = min(int(rng.random() ** rng.choice([1, 4]) * len(changed)), max(0, len(changed) - 1))  # headers count more
        length = rng.choice([1, 1, 4, 8, 50])
        kind = rng.randrange(6)
        if kind == 0 and changed:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del changed[at : at + length]
        elif kind == 2:
            changed[at:at] = rng.choice(ODD_BYTES)
        elif kind == 3:
            changed[at : at + length] = rng.choice([b"\xff", b"\0", b"\x7f", bytes([rng.randrange(256)])]) * length
        elif kind == 4:
            changed[at:at] = changed[at : at + 50]
        else:
            del changed[at:]
    return bytes(changed)


def mutate_value(table: Any, rng: random.Random) -> None:
    """Change one value, name or entry somewhere in a JSON document."""
    while isinstance(table, (dict, list)) and table:
        place = rng.choice(list(table)) if isinstance(table, dict) else rng.randrange(len(table))
        if isinstance(table[place], (dict, list)) and table[place] and rng.random() < 0.7:
            table = table[place]
            continue
        odd = copy.deepcopy(rng.choice(ODD_VALUES))
        kind = rng.random()
        if kind < 0.7:
            table[place] = odd
        elif kind < 0.85:
            del table[place]
        elif isinstance(table, dict):
            table[rng.choice(["a", "", "vocab", "\n"])] = odd
        else:
            table.append(odd)
        return
