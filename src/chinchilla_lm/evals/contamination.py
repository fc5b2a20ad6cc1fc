"""Was a test item in the training text? Runs of equal tokens, found in the prepared folder's own shards.

An item counts as found when a run of `WINDOW` of its tokens stands anywhere in the training tokens. The first and the
last token of an item are left out: beside other text they may be cut differently. Hashes find candidates, which are
then compared token by token, so that nothing is counted by chance.

Source: Brown et al. 2020, appendix C (13-grams).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from chinchilla_lm.data.manifest import load_manifest
from chinchilla_lm.data.shards import open_tokens

WINDOW = 13
_CHUNK = 1 << 22
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd: 2^64 / golden ratio


@dataclass(frozen=True, kw_only=True)
class Contamination:
    """What was found.

    Attributes:
        checked: items of `window` tokens or more, the outer two left out.
        short: items that are shorter, of which nothing is known.
        found: checked items with a run in the training tokens.
        window: tokens of a run.
        items: numbers of those found.
    """

    checked: int
    short: int
    found: int
    window: int
    items: tuple[int, ...]


def find_in_training(texts: Sequence[str], tokenizer: Tokenizer, folder: Path, window: int = WINDOW) -> Contamination:
    """Look for test texts in the training tokens of a prepared folder.

    Args:
        texts: of the items.
        tokenizer: the folder's own.
        folder: written by `chinchilla prepare`.
        window: tokens of a run, >= 2.

    Raises:
        DataError: the folder is not whole.
    """
    assert window >= 2, window
    encoded = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    runs: dict[tuple[int, ...], set[int]] = {}
    short = 0
    for number, encoding in enumerate(encoded):
        inner = encoding.ids[1:-1]
        short += len(inner) < window
        for start in range(len(inner) - window + 1):
            runs.setdefault(tuple(inner[start : start + window]), set()).add(number)
    found = _search(runs, folder, window) if runs else set()
    return Contamination(
        checked=len(texts) - short, short=short, found=len(found), window=window, items=tuple(sorted(found))
    )


def _search(runs: dict[tuple[int, ...], set[int]], folder: Path, window: int) -> set[int]:
    wanted = np.sort(_hashes(np.array(list(runs), dtype=np.uint64), window))
    tokens, found = open_tokens(load_manifest(folder, verify=False), "train"), set()
    for first in range(0, len(tokens), _CHUNK):  # chunks overlap by a run; a document may stand on two shards
        part = tokens.read(first, min(first + _CHUNK + window - 1, len(tokens)))
        if len(part) < window:
            continue
        hashes = _hashes(np.lib.stride_tricks.sliding_window_view(part, window), window)
        places = np.minimum(np.searchsorted(wanted, hashes), len(wanted) - 1)
        for start in np.flatnonzero(wanted[places] == hashes):
            found |= runs.get(tuple(int(token) for token in part[start : start + window]), set())
    return found


def _hashes(windows_nw: np.ndarray, window: int) -> np.ndarray:
    """One number a run; equal runs have equal numbers."""
    hashes = np.zeros(len(windows_nw), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for place in range(window):
            hashes = (hashes ^ windows_nw[:, place].astype(np.uint64)) * _MULTIPLIER
            hashes ^= hashes >> np.uint64(29)
    return hashes
