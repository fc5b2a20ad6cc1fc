"""Shards: token ids on disk, written as a stream and read through the memory map.

A split is one long stream of ids; shard k holds tokens [k * n, (k + 1) * n), so that a document may cross a border.
A shard file appears under its name only when it is whole.
"""

from __future__ import annotations

import bisect
import contextlib
import io
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from chinchilla_lm.core.errors import DataError
from chinchilla_lm.core.files import explain_os_error, sha256_file, temporary_beside, write_bytes
from chinchilla_lm.data.manifest import Manifest, Shard

# 128 MiB of uint16: a terabyte is some thousand files, and one is checked in a fifth of a second.
SHARD_TOKENS = 1 << 26
# What uint16 holds.
_UINT16_VOCAB = 1 << 16


class TokenStream:
    """Several arrays of token ids, read as one."""

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        """Take the parts in their order; they are not copied."""
        self._parts = [np.asarray(part) for part in parts]
        self._ends = list(itertools.accumulate(len(part) for part in self._parts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the ids from `start` (included) to `stop` (not included), 0 <= start <= stop <= len(self)."""
        first = bisect.bisect_right(self._ends, start)
        if first < len(self._ends) and stop <= self._ends[first]:
            before = self._ends[first] - len(self._parts[first])
            return self._parts[first][start - before : stop - before]
        assert 0 <= start <= stop <= len(self), (start, stop, len(self))
        pieces = []
        for part, end in zip(self._parts[first:], self._ends[first:], strict=True):
            before = end - len(part)
            pieces.append(part[max(start - before, 0) : max(stop - before, 0)])
            if stop <= end:
                break
        return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.uint16)


def open_tokens(manifest: Manifest, split: str) -> TokenStream:
    """Open a split of a prepared folder through the memory map: it takes no memory until it is read.

    Raises:
        DataError: the manifest has no such split, or a shard cannot be opened.
    """
    shards = [shard for shard in manifest.shards if shard.split == split]
    if not shards:
        raise DataError(f"split {split!r} is not in {manifest.folder}; its splits are 'train' and 'heldout'")
    return TokenStream([_open_array(manifest.folder / shard.file) for shard in shards])


def document_offsets(manifest: Manifest, split: str) -> np.ndarray:
    """Return where each document of a split starts in its stream; (documents,) uint64, at each an end-of-text token."""
    starts, before = [], 0
    for shard in (shard for shard in manifest.shards if shard.split == split):
        starts.append(_open_array(manifest.folder / shard.offsets_file) + np.uint64(before))
        before += shard.tokens
    return np.concatenate(starts) if starts else np.empty(0, dtype=np.uint64)


class ShardWriter:
    """Writes the stream of one split; a context manager that removes an unfinished file when the block fails.

    Args:
        folder: the prepared folder.
        split: the first part of the files' names.
        vocab: ids are below it; decides the width.
        shard_tokens: most tokens a file.
    """

    def __init__(self, folder: Path, split: str, *, vocab: int, shard_tokens: int | None = None) -> None:
        self.shards: list[Shard] = []
        self._folder, self._split = folder, split
        self._dtype = np.dtype("<u2" if vocab <= _UINT16_VOCAB else "<u4")
        self._shard_tokens = SHARD_TOKENS if shard_tokens is None else shard_tokens
        self._stream: io.BufferedWriter | None = None
        self._tokens = 0
        self._offsets: list[int] = []

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        try:
            if kind is None:
                self._close_shard()
        finally:
            if self._stream is not None:
                with contextlib.suppress(OSError):  # on a full disk, what the buffer still holds
                    self._stream.close()
                temporary_beside(self._path).unlink(missing_ok=True)

    def add(self, ids: np.ndarray, *, starts_document: bool) -> None:
        """Append ids to the stream.

        Args:
            ids: (n,) any integer dtype, n > 0.
            starts_document: the first of them begins a document.
        """
        ids = ids.astype(self._dtype)
        while len(ids):
            if self._stream is None:
                self._open_shard()
            assert self._stream is not None
            if starts_document:
                self._offsets.append(self._tokens)
                starts_document = False
            written, ids = np.split(ids, [self._shard_tokens - self._tokens])
            with explain_os_error(self._path, needed_bytes=written.nbytes):
                self._stream.write(written.tobytes())
            self._tokens += len(written)
            if self._tokens == self._shard_tokens:
                self._close_shard()

    @property
    def _path(self) -> Path:
        return self._folder / f"{self._split}-{len(self.shards):05d}.npy"

    def _open_shard(self) -> None:
        with explain_os_error(self._path):
            self._stream = open(temporary_beside(self._path), "wb")  # noqa: SIM115 - open between calls
            self._stream.write(self._header(self._shard_tokens))
        self._tokens, self._offsets = 0, []

    def _close_shard(self) -> None:
        if self._stream is None:
            return
        path = self._path
        with explain_os_error(path):
            self._stream.flush()
            self._stream.seek(0)
            self._stream.write(self._header(self._tokens))
            self._stream.flush()
            os.fsync(self._stream.fileno())
            size_bytes = os.fstat(self._stream.fileno()).st_size
            self._stream.close()
            os.replace(temporary_beside(path), path)  # the folder itself is flushed with the offsets, just below
        self._stream = None
        offsets_path = path.with_suffix(".offsets.npy")
        offsets = io.BytesIO()
        np.save(offsets, np.array(self._offsets, dtype="<u8"))
        write_bytes(offsets_path, offsets.getvalue())
        self.shards.append(
            Shard(
                file=path.name,
                split=self._split,
                tokens=self._tokens,
                documents=len(self._offsets),
                size_bytes=size_bytes,
                sha256=sha256_file(path),
                offsets_file=offsets_path.name,
                offsets_sha256=sha256_file(offsets_path),
            )
        )

    def _header(self, tokens: int) -> bytes:
        """Return the .npy header; NumPy leaves room in it for the length to change, so all have one size."""
        header = io.BytesIO()
        fields = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": (tokens,)}
        np.lib.format.write_array_header_1_0(header, fields)
        assert header.tell() == 128, header.tell()
        return header.getvalue()


def _open_array(path: Path) -> np.ndarray:
    with explain_os_error(path):
        try:
            # A memmap's own indexing costs 1 us a slice more than the plain array below it.
            return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False)).view(np.ndarray)
        except ValueError as error:
            raise DataError(f"{path} is not a shard ({error}); delete its folder and prepare again") from None
