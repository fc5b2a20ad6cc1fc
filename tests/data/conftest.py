from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

_SYLLABLES = ["ka", "lo", "mi", "ren", "ta", "shu", "vo", "ne", "pri", "us", "\u4e2d", "\u6587"]


def _make_texts(documents: int, *, words: int = 120, seed: int = 0) -> list[str]:
    """Invented prose: words of a few syllables, sentences, lines, paragraphs."""
    random = np.random.default_rng(seed)
    texts = []
    for number in range(documents):
        count = int(random.integers(words // 2, words * 2))
        chosen = ["".join(random.choice(_SYLLABLES, random.integers(1, 4))) for _ in range(count)]
        ends = random.choice([" ", " ", " ", ", ", ".\n", ".\n\n", "  ", "\t\n "], count)
        texts.append(f"{number} " + "".join(word + end for word, end in zip(chosen, ends, strict=True)))
    return texts


def _write_json_lines(path: Path, texts: Sequence[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="session")
def make_texts():
    return _make_texts


@pytest.fixture(scope="session")
def write_json_lines():
    return _write_json_lines


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return _make_texts(60)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory, texts) -> Path:
    return _write_json_lines(tmp_path_factory.mktemp("corpus") / "corpus.jsonl", texts)
