"""Which text trains and which is held out: whole documents, chosen by a seeded hash of their content.

The order of a document depends on (seed, text) only: not on the names, the number or the order of files. The training
text of a small `max_bytes` is the beginning of that of a larger one, and the held-out text is the same for both.
It reads bytes only to find where to cut a document.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence

from chinchilla_lm.core.errors import DataError
from chinchilla_lm.data.documents import Split

# Held out when no file is named so: at most this share of the text ...
MAX_HELDOUT_SHARE = 0.10
# ... and this much of it when a document has to be cut.
TAIL_SHARE = 0.05
# Below this, 5 % of the text is no window of 64 tokens at all.
MIN_TEXT_BYTES = 1_000
# How far back from a cut a paragraph or a line end is looked for.
_CUT_BYTES = 1 << 16


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A distinct document: where its UTF-8 text is, its SHA-256, and what its file's name says."""

    start: int
    stop: int
    digest: bytes
    split: Split | None

    @property
    def length(self) -> int:
        """Bytes of text."""
        return self.stop - self.start


Span = tuple[int, int]
"""Start and end of a document's text, or of the part of it that is used."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """The spans of each split in their order, and what was decided."""

    train: tuple[Span, ...]
    heldout: tuple[Span, ...]
    documents: int
    """Of which at least a part is in either split (the largest may be in both)."""
    available_bytes: int
    notes: tuple[str, ...]


def select_text(
    entries: Sequence[Entry],
    read: Callable[[int, int], bytes],
    *,
    heldout_bytes: int,
    max_bytes: int | None,
    seed: int,
) -> Selection:
    """Divide distinct documents into training and held-out text.

    Held out are, in seeded order until `heldout_bytes`: documents whose files say so; else any, but never more than
    10 % of the text; else (every document is larger than that) the end of the largest document. Training takes the
    others in seeded order until `max_bytes`, the last of them cut at a paragraph or line end.

    Args:
        entries: documents without copies.
        read: returns the bytes of a span.
        heldout_bytes: how much to hold out, > 0.
        max_bytes: most training text; None takes all.
        seed: of the order.

    Raises:
        DataError: no text remains to train on, or it is too small to hold some out.
    """
    order = sorted(entries, key=lambda entry: _rank(entry, seed))
    total = sum(entry.length for entry in order)
    if total < MIN_TEXT_BYTES:
        raise DataError(f"the corpus has {total} bytes of text and {MIN_TEXT_BYTES} are the least; give more text")
    train, held, notes = _hold_out(order, read, heldout_bytes, total)
    available_bytes = _size(train)
    if available_bytes == 0:
        raise DataError(
            "every document is held out or left out by its file's name; name the files to train on directly"
        )
    if max_bytes is not None and max_bytes < available_bytes:
        train = _limit(train, read, max_bytes)
        if not train:
            raise DataError(f"max_bytes = {max_bytes} leaves no text to train on; give at least {MIN_TEXT_BYTES}")
        notes.append(
            f"max_bytes took {len(train)} documents, {_size(train)} of {available_bytes} bytes, the last one cut"
        )
    return Selection(
        train=tuple(train),
        heldout=tuple(held),
        documents=len({start for start, _ in (*train, *held)} & {entry.start for entry in entries}),
        available_bytes=available_bytes,
        notes=tuple(notes),
    )


def _hold_out(
    order: Sequence[Entry], read: Callable[[int, int], bytes], heldout_bytes: int, total: int
) -> tuple[list[Span], list[Span], list[str]]:
    """Return the spans left to train on, those held out, and what was decided."""
    hinted = [entry for entry in order if entry.split == "heldout"]
    candidates = [entry for entry in order if entry.split != "heldout"]
    if hinted:
        heldout = _take(hinted, heldout_bytes, limit=total)
        note = f"held out {len(heldout)} of the {len(hinted)} documents whose files are named so"
    else:
        heldout = _take(candidates, heldout_bytes, limit=int(MAX_HELDOUT_SHARE * total))
        note = f"held out {len(heldout)} documents, chosen by a hash of their text"
    taken = {entry.digest for entry in heldout}
    train = [(entry.start, entry.stop) for entry in candidates if entry.digest not in taken]
    if not heldout:
        return _cut_tail(train, read, min(heldout_bytes, int(TAIL_SHARE * total)))
    return train, [(entry.start, entry.stop) for entry in heldout], [note]


def _rank(entry: Entry, seed: int) -> bytes:
    return hashlib.sha256(seed.to_bytes(8, "little") + entry.digest).digest()


def _size(spans: Sequence[Span]) -> int:
    return sum(stop - start for start, stop in spans)


def _take(entries: Sequence[Entry], wanted: int, limit: int) -> list[Entry]:
    """Take entries in order until `wanted` bytes, passing over those that would exceed `limit`."""
    taken: list[Entry] = []
    size = 0
    for entry in entries:
        if size >= wanted:
            break
        if size + entry.length <= limit:
            taken.append(entry)
            size += entry.length
    return taken


def _cut_tail(
    train: Sequence[Span], read: Callable[[int, int], bytes], tail_bytes: int
) -> tuple[list[Span], list[Span], list[str]]:
    """Hold out the last `tail_bytes` of the largest document."""
    start, stop = max(train, key=lambda span: span[1] - span[0])
    border = cut_before(read, start, stop - tail_bytes)
    spans = [(start, border) if span == (start, stop) else span for span in train]
    share = f"{100 * (stop - border) / (stop - start):.1f} %"
    return (
        spans,
        [(border, stop)],
        [f"no document is small enough to hold out whole: held out the last {share} of the largest"],
    )


def _limit(train: Sequence[Span], read: Callable[[int, int], bytes], max_bytes: int) -> list[Span]:
    """Take spans in order until `max_bytes`, the last one up to a line end."""
    taken: list[Span] = []
    left = max_bytes
    for start, stop in train:
        if stop - start > left:
            border = cut_before(read, start, start + left)
            return [*taken, (start, border)] if border > start else taken
        taken.append((start, stop))
        left -= stop - start
    return taken


def cut_before(read: Callable[[int, int], bytes], start: int, target: int) -> int:
    """Return the last good place to cut in the 64 KiB up to `target`: a paragraph, a line, a word or a character."""
    first = max(start, target - _CUT_BYTES)
    content = read(first, target + 1)
    window, next_byte = content[: target - first], content[target - first :]
    for mark in (b"\n\n", b"\n", b" "):
        if (end := window.rfind(mark)) > 0:
            return first + end + len(mark)
    end = len(window)
    if next_byte and next_byte[0] & 0xC0 == 0x80:  # `target` is inside a character: go back to its first byte
        while end > 0 and window[end - 1] & 0xC0 == 0x80:
            end -= 1
        end -= 1
    return first + max(end, 0)
