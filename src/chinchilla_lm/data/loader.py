"""Batches of a prepared folder: which tokens a step sees, as a pure function of (seed, step).

The tokens of a split are one long stream, cut into windows of context + 1 tokens that start every `context` tokens: the
last target of a window is the first input of the next, so that each token is a target once an epoch. An epoch
shifts the grid by a random phase and permutes the windows. Nothing is stored between steps: a job that resumes, or that
runs on more machines, sees the same batches.

Shapes: b rows, t context, n windows.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Literal

import numpy as np

from chinchilla_lm.core.errors import DataError
from chinchilla_lm.data.manifest import Manifest, load_manifest
from chinchilla_lm.data.shards import TokenStream, open_tokens
from chinchilla_lm.data.tokenizer import load_tokenizer, token_bytes

# Philox keys: 0 draws the order of an epoch, 1 its phase.
_ORDER, _PHASE = 0, 1


class TokenBatches:
    """Training batches; every rank of a job makes one with its own `rank` and the same other arguments.

    Args:
        source: a prepared folder, its manifest, or one array of token ids.
        split: "train" or "heldout" (ignored for an array).
        context: t, targets a window.
        rows: windows a step over all ranks (the global batch has rows * context tokens).
        seed: of the order; any integer from 0 to 2^63 - 1.
        rank: this process, from 0 to world - 1.
        world: processes; divides `rows`.

    Raises:
        DataError: the tokens do not fill one window, or `world` does not divide `rows`.
    """

    def __init__(
        self,
        source: Path | str | Manifest | np.ndarray,
        *,
        split: Literal["train", "heldout"] = "train",
        context: int,
        rows: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._stream = _open(source, split)
        self.context, self.rows, self.seed = context, rows, seed
        if rows <= 0 or rows % world or not 0 <= rank < world:
            raise DataError(f"rows = {rows} must be a multiple of world = {world} (rank {rank}); change the batch")
        self._own_rows = range(rank * rows // world, (rank + 1) * rows // world)
        self.windows = count_windows(len(self._stream), context, split)
        # The same for every epoch, whatever its phase, so that epochs have equal lengths.
        self._phases = min(context, len(self._stream) - self.windows * context)
        self._starts = functools.lru_cache(maxsize=2)(self._draw_epoch)  # two: a batch may cross an epoch's end

    @property
    def tokens(self) -> int:
        """Tokens of the split: the unique tokens of a job."""
        return len(self._stream)

    def at(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Return this rank's rows of the batch of a step.

        Args:
            step: from 0; any order of calls gives the same batches.

        Returns:
            (inputs_bt, targets_bt), int64, b = rows / world; targets are the inputs moved on by one.
        """
        inputs_bt = np.empty((len(self._own_rows), self.context), dtype=np.int64)
        targets_bt = np.empty_like(inputs_bt)
        for row, global_row in enumerate(self._own_rows):
            epoch, place = divmod(step * self.rows + global_row, self.windows)
            start = int(self._starts(epoch)[place])
            window = self._stream.read(start, start + self.context + 1)
            inputs_bt[row] = window[:-1]
            targets_bt[row] = window[1:]
        return inputs_bt, targets_bt

    def _draw_epoch(self, epoch: int) -> np.ndarray:
        """Return the first token of each window of an epoch, in the order in which they are seen; (n,) int64."""
        phase = _generator(self.seed, epoch, _PHASE).integers(self._phases)
        order = _generator(self.seed, epoch, _ORDER).permutation(self.windows)
        return phase + order * self.context


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class HeldOut:
    """Fixed windows to measure a loss on; n windows of t targets."""

    inputs_nt: np.ndarray
    """(n, t) int64 ids."""
    targets_nt: np.ndarray
    """(n, t) int64 ids: the inputs moved on by one."""
    target_bytes_n: np.ndarray
    """(n,) int64: bytes of text that a window's targets stand for; end-of-text tokens count as targets of 0 bytes."""

    @property
    def tokens(self) -> int:
        """Targets in all windows."""
        return self.targets_nt.size

    @property
    def bytes(self) -> int:
        """Bytes of text in all windows' targets: bits per byte = nats * tokens / (ln 2 * bytes)."""
        return int(self.target_bytes_n.sum())


def heldout_windows(folder: Path | str | Manifest, context: int, max_tokens: int | None = None) -> HeldOut:
    """Cut the held-out split into windows that do not overlap: the same for every model of one folder and context.

    Args:
        folder: a prepared folder (or its manifest).
        context: t, targets a window; windows start every t tokens.
        max_tokens: most targets; fewer windows are then spread evenly over the whole split, so that every part of it
            is heard. None takes all.

    Returns:
        The windows, in the order of the split.

    Raises:
        DataError: the split, or max_tokens, is smaller than one window.
    """
    manifest = _manifest(folder)
    stream = open_tokens(manifest, "heldout")
    available = count_windows(len(stream), context, "heldout", phases=1)
    wanted = available if max_tokens is None else min(available, max_tokens // context)
    if wanted == 0:
        raise DataError(f"max_tokens = {max_tokens} is less than one window of {context}; ask for at least {context}")
    starts_n = np.arange(wanted, dtype=np.int64) * available // wanted * context
    windows_ns = np.stack([stream.read(start, start + context + 1) for start in starts_n.tolist()]).astype(np.int64)
    bytes_v = token_bytes(load_tokenizer(manifest.tokenizer_folder)).astype(np.int64)
    targets_nt = np.ascontiguousarray(windows_ns[:, 1:])
    return HeldOut(
        inputs_nt=np.ascontiguousarray(windows_ns[:, :-1]),
        targets_nt=targets_nt,
        target_bytes_n=bytes_v[targets_nt].sum(axis=1),
    )


def count_windows(tokens: int, context: int, split: str = "train", *, phases: int | None = None) -> int:
    """Return how many windows of context + 1 tokens an epoch has, whatever the phase of its grid.

    Args:
        tokens: length of the stream.
        context: targets a window.
        split: named in the error.
        phases: positions that the grid may start at; by default `context` (all), fewer when the stream is that short.

    Raises:
        DataError: there is no window.
    """
    if context < 1 or tokens < context + 1:
        raise DataError(
            f"the {split} split has {tokens} tokens and a window of context {context} needs {context + 1} (at least 2);"
            " prepare more text, or choose a shorter context"
        )
    last_phase = (context if phases is None else phases) - 1
    return max(1, (tokens - 1 - last_phase) // context)


def _open(source: Path | str | Manifest | np.ndarray, split: str) -> TokenStream:
    if isinstance(source, np.ndarray):
        return TokenStream([source])
    return open_tokens(_manifest(source), split)


def _manifest(source: Path | str | Manifest) -> Manifest:
    return source if isinstance(source, Manifest) else load_manifest(source)


def _generator(seed: int, epoch: int, purpose: int) -> np.random.Generator:
    """Return the generator of one purpose in one epoch: Philox is a keyed hash, so that any epoch is drawn directly."""
    return np.random.Generator(np.random.Philox(key=[seed, 2 * epoch + purpose]))
