"""Runs of training tokens in test items, against a search through the whole stream."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from chinchilla_lm.core.errors import DataError
from chinchilla_lm.data import shards
from chinchilla_lm.data.manifest import load_manifest
from chinchilla_lm.data.prepare import prepare
from chinchilla_lm.data.shards import open_tokens
from chinchilla_lm.data.tokenizer import load_tokenizer
from chinchilla_lm.evals import contamination
from chinchilla_lm.evals.contamination import find_in_training

OPTIONS = {"vocab": 320, "heldout_bytes": 1500}
WORDS = ["the", "sea", "was", "calm", "and", "a", "sailor", "sang", "of", "whales", "near", "an", "old", "ship"]
WORDS += ["while", "cooks", "said", "no"]


@pytest.fixture(scope="module")
def documents() -> list[str]:
    draws = random.Random(0)
    return [" ".join(draws.choices(WORDS, k=60)) for _ in range(80)]


@pytest.fixture(scope="module")
def text(documents, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for number, document in enumerate(documents):
        (folder / f"{number:03}.txt").write_text(document)
    return folder


@pytest.fixture(scope="module")
def prepared(text, tmp_path_factory) -> Path:
    return prepare([str(text)], tmp_path_factory.mktemp("prepared"), **OPTIONS).folder


def brute_force(texts: list[str], folder: Path, window: int) -> tuple[int, ...]:
    manifest = load_manifest(folder)
    tokenizer, stream = load_tokenizer(manifest.tokenizer_folder), open_tokens(manifest, "train")
    known = ",".join(map(str, stream.read(0, len(stream)).tolist())) + ","
    found = []
    for number, text in enumerate(texts):
        inner = tokenizer.encode(text, add_special_tokens=False).ids[1:-1]
        runs = [inner[start : start + window] for start in range(len(inner) - window + 1)]
        if any(f",{','.join(map(str, run))}," in f",{known}" for run in runs):
            found.append(number)
    return tuple(found)


def made_texts(documents: list[str]) -> list[str]:
    draws = random.Random(1)
    own = [" ".join(draws.choices(WORDS, k=draws.randint(1, 20))) for _ in range(150)]
    pieces = [document.split() for document in documents]
    copied = [" ".join(piece[start : start + 18]) for piece in pieces for start in (0, 30)]
    changed = [one.replace("sea", "lake").replace("the", "a") for one in copied]
    return own + copied + changed


@pytest.mark.parametrize("window", [2, 5, 13])
def test_what_is_found_is_what_a_search_through_the_stream_finds(prepared, documents, window):
    texts = made_texts(documents)
    tokenizer = load_tokenizer(load_manifest(prepared).tokenizer_folder)
    result = find_in_training(texts, tokenizer, prepared, window)
    assert result.items == brute_force(texts, prepared, window)
    assert result.found == len(result.items) > 0
    assert result.found < result.checked
    lengths = [len(tokenizer.encode(text, add_special_tokens=False).ids) - 2 for text in texts]
    assert result.short == sum(length < window for length in lengths)
    assert result.checked + result.short == len(texts)


def test_a_run_over_the_border_of_two_shards_or_chunks_is_found(prepared, documents, text, tmp_path, monkeypatch):
    texts = made_texts(documents)
    tokenizer = load_tokenizer(load_manifest(prepared).tokenizer_folder)
    whole = find_in_training(texts, tokenizer, prepared, 5)
    monkeypatch.setattr(contamination, "_CHUNK", 7)
    assert find_in_training(texts, tokenizer, prepared, 5) == whole
    monkeypatch.setattr(contamination, "_CHUNK", 100)
    monkeypatch.setattr(shards, "SHARD_TOKENS", 111)
    cut = prepare([str(text)], tmp_path / "cut", **OPTIONS).folder
    assert len([shard for shard in load_manifest(cut).shards if shard.split == "train"]) > 20
    assert find_in_training(texts, tokenizer, cut, 5) == whole


def test_hashes_that_collide_count_nothing(prepared, documents, monkeypatch):
    texts = made_texts(documents)[:40]
    tokenizer = load_tokenizer(load_manifest(prepared).tokenizer_folder)
    plain = find_in_training(texts, tokenizer, prepared, 5)
    monkeypatch.setattr(contamination, "_hashes", lambda windows, window: np.zeros(len(windows), dtype=np.uint64))
    assert find_in_training(texts, tokenizer, prepared, 5) == plain


def test_short_items_and_no_items_are_not_searched(prepared):
    tokenizer = load_tokenizer(load_manifest(prepared).tokenizer_folder)
    result = find_in_training(["the sea", ""], tokenizer, prepared)
    assert (result.checked, result.short, result.found, result.window) == (0, 2, 0, 13)
    assert find_in_training([], tokenizer, prepared).checked == 0


def test_a_folder_that_is_not_prepared_is_refused(tmp_path, prepared):
    tokenizer = load_tokenizer(load_manifest(prepared).tokenizer_folder)
    with pytest.raises(DataError) as found:
        find_in_training(["the sea was calm and the sailor sang of whales " * 3], tokenizer, tmp_path)
    assert "\n" not in str(found.value)
