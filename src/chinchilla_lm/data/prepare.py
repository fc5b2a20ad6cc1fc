"""Text to a prepared folder: read, drop copies, divide, train a tokenizer, write tokens.

A stream from start to end: memory holds one document, one batch of pieces and about 300 bytes for each document; the
text passes through one temporary file beside the result. The manifest is written last: until then the folder is not
prepared, a job killed at any point is begun again by the same call, and no torn file is ever taken for a whole one.
The result depends on the texts and the arguments only, not on the machine or on how often it was killed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from tokenizers import Tokenizer

from chinchilla_lm.core.errors import ConfigError, DataError
from chinchilla_lm.core.files import clean_temporaries, explain_os_error, require_space, sha256_file, temporary_beside
from chinchilla_lm.data.documents import read_documents
from chinchilla_lm.data.encode import encode_pieces, split_pieces
from chinchilla_lm.data.formats import ReadTally
from chinchilla_lm.data.manifest import MANIFEST_FILE, Manifest, Recipe, Shard, load_manifest, save_manifest
from chinchilla_lm.data.selection import Entry, Selection, Span, select_text
from chinchilla_lm.data.shards import ShardWriter
from chinchilla_lm.data.tokenizer import END_OF_TEXT, check_vocab, sample_bytes, save_tokenizer, train_tokenizer

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all) of the text being encoded."""

TOKENIZER_FOLDER = "tokenizer"
# 350,000 tokens at 3 bytes a token: their losses scatter by some 2 nats, so the standard error of the mean is 0.003
# nats, or a few times that as neighbours are alike.
HELDOUT_BYTES = 1 << 20
# Pieces of training text that the tokenizer's sample is drawn from.
_SAMPLE_PIECE_BYTES = 1 << 16
# Text encoded at once: enough distinct words come back (see `encode`), and its ids are some tens of megabytes.
_BATCH_BYTES = 8 << 20
_SHARD_NAME = re.compile(r"(train|heldout)-\d{5}(\.offsets)?\.npy")


def prepare(
    sources: str | Sequence[str],
    out: Path | str,
    *,
    vocab: int,
    max_bytes: int | None = None,
    heldout_bytes: int = HELDOUT_BYTES,
    seed: int = 0,
    progress: Progress | None = None,
) -> Manifest:
    """Make a prepared folder, or return the one that the same call made before.

    Args:
        sources: as for `read_documents`.
        out: the folder to make; a finished folder of the same arguments is checked and returned.
        vocab: ids of the tokenizer, from 257; the text may be too small for so many (see the manifest).
        max_bytes: most training text, in bytes of UTF-8; None takes all.
        heldout_bytes: how much text to hold out (see `select_text`).
        seed: of the order of the documents and of the tokenizer's sample, from 0 to 2^63 - 1.
        progress: told how much of the text is encoded.

    Returns:
        The manifest, as `load_manifest` reads it.

    Raises:
        ConfigError: vocab, max_bytes, heldout_bytes or seed is out of range.
        DataError: the text cannot be read or is too small, the folder cannot be written, or it was prepared with other
            arguments.
    """
    out = Path(out)
    sources = (sources,) if isinstance(sources, str) else tuple(sources)
    recipe = Recipe(sources=sources, vocab=vocab, max_bytes=max_bytes, heldout_bytes=heldout_bytes, seed=seed)
    _check_recipe(recipe)
    if (out / MANIFEST_FILE).exists():
        return _load_equal(out, recipe)
    with explain_os_error(out):
        out.mkdir(parents=True, exist_ok=True)
    clean_temporaries(out)
    clean_temporaries(out / TOKENIZER_FOLDER)
    tally = ReadTally()
    with Spool(out) as spool:
        counts = spool.fill(sources, tally)
        selection = select_text(spool.entries, spool.read, heldout_bytes=heldout_bytes, max_bytes=max_bytes, seed=seed)
        tokenizer = train_tokenizer(_sample(selection.train, spool, sample_bytes(vocab), seed), vocab)
        save_tokenizer(tokenizer, out / TOKENIZER_FOLDER)
        shards = _write_splits(selection, spool, tokenizer, out, progress)
    notes = selection.notes + tally.describe() + _vocab_note(tokenizer, vocab)
    manifest = _manifest(out, recipe, selection, shards, tokenizer, {**counts, "empty": tally.empty, "notes": notes})
    save_manifest(manifest)
    _remove_other_shards(manifest)
    return manifest


class Spool:
    """The distinct documents of a corpus in one temporary file, to be read in any order; removed at the end.

    Args:
        folder: where the file is; its disk needs room for the uncompressed text.
    """

    def __init__(self, folder: Path) -> None:
        self.entries: list[Entry] = []
        self._path = temporary_beside(folder / "corpus")

    def __enter__(self) -> Spool:
        with explain_os_error(self._path):
            self._stream = open(self._path, "w+b")
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        with contextlib.suppress(OSError):  # on a full disk, what the buffer still holds; nothing reads it any more
            self._stream.close()
        self._path.unlink(missing_ok=True)
        if kind is not None:
            with contextlib.suppress(OSError):  # a folder with finished parts in it stays
                self._path.parent.rmdir()

    def fill(self, sources: Sequence[str], tally: ReadTally) -> dict[str, int]:
        """Read all documents; of equal texts the first is kept, as held-out text if any copy is.

        Returns:
            The counts "documents" and "duplicates".
        """
        by_digest: dict[bytes, int] = {}
        documents, end = 0, 0
        for document in read_documents(sources, tally):
            documents += 1
            content = document.text.encode("utf-8")
            digest = hashlib.sha256(content).digest()
            place = by_digest.setdefault(digest, len(self.entries))
            if place < len(self.entries):
                if document.split == "heldout":
                    self.entries[place] = dataclasses.replace(self.entries[place], split="heldout")
                continue
            with explain_os_error(self._path, needed_bytes=len(content)):
                self._stream.write(content)
            self.entries.append(Entry(start=end, stop=end + len(content), digest=digest, split=document.split))
            end += len(content)
        return {"documents": documents, "duplicates": documents - len(self.entries)}

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes of a span."""
        with explain_os_error(self._path):
            self._stream.seek(start)
            return self._stream.read(stop - start)


def _check_recipe(recipe: Recipe) -> None:
    """Refuse what no step can do, before the text is read."""
    check_vocab(recipe.vocab)
    if not 0 <= recipe.seed < 2**63:
        raise ConfigError(f"seed = {recipe.seed} must be from 0 to 2^63 - 1; 0 is as good as any")
    if recipe.heldout_bytes <= 0:
        raise ConfigError(f"heldout_bytes = {recipe.heldout_bytes} must be > 0; {HELDOUT_BYTES} is the default")
    if recipe.max_bytes is not None and recipe.max_bytes <= 0:
        raise ConfigError(f"max_bytes = {recipe.max_bytes} must be > 0; leave it out to take all text")
    if not recipe.sources:
        raise ConfigError("sources is empty; name a file, a folder, a glob, 'stdlib' or 'hf:NAME'")


def _load_equal(out: Path, recipe: Recipe) -> Manifest:
    manifest = load_manifest(out)
    if manifest.recipe_hash == recipe.hash():
        return manifest
    was, now = dataclasses.asdict(manifest.recipe), dataclasses.asdict(recipe)
    key = next(key for key in now if now[key] != was[key])
    raise DataError(
        f"{out} was prepared with {key} = {was[key]!r}, not {now[key]!r}; choose another folder, or delete this one"
    )


def _sample(spans: Sequence[Span], spool: Spool, wanted: int, seed: int) -> Iterator[str]:
    """Yield pieces of text drawn from all of it until they have `wanted` bytes."""
    counts = np.array([-(-(stop - start) // _SAMPLE_PIECE_BYTES) for start, stop in spans], dtype=np.int64)
    ends = np.cumsum(counts)
    drawn = np.random.Generator(np.random.Philox(key=seed)).permutation(int(ends[-1]))
    size = 0
    for piece in drawn.tolist():
        if size >= wanted:
            return
        place = int(np.searchsorted(ends, piece, side="right"))
        start, stop = spans[place]
        first = start + (piece - int(ends[place] - counts[place])) * _SAMPLE_PIECE_BYTES
        content = spool.read(first, min(first + _SAMPLE_PIECE_BYTES, stop))
        size += len(content)
        yield content.decode("utf-8", errors="ignore")  # a piece may begin and end inside a character


def _write_splits(
    selection: Selection, spool: Spool, tokenizer: Tokenizer, out: Path, progress: Progress | None
) -> tuple[Shard, ...]:
    end_of_text = np.array([tokenizer.token_to_id(END_OF_TEXT)])
    heldout_bytes, train_bytes = _size(selection.heldout), _size(selection.train)
    done = 0
    # END_OF_TEXT written in a document is ordinary text: only we say where documents end.
    tokenizer.encode_special_tokens = True
    shards: list[Shard] = []
    for split, spans in (("heldout", selection.heldout), ("train", selection.train)):
        if split == "train":  # minutes of work; the held-out text has shown how many tokens a byte is
            shard_bytes_per_byte = sum(shard.size_bytes for shard in shards) / heldout_bytes
            require_space(out, shard_bytes_per_byte * train_bytes, "the shards of the training text")
        with ShardWriter(out, split, vocab=tokenizer.get_vocab_size()) as writer:
            for pieces, starts, size in _batches(spans, spool):
                for ids, starts_document in zip(encode_pieces(tokenizer, pieces), starts, strict=True):
                    if starts_document:
                        ids = np.concatenate([end_of_text, ids])
                    writer.add(ids, starts_document=starts_document)
                done += size
                if progress is not None:
                    progress(done, heldout_bytes + train_bytes)
        shards += writer.shards
    return tuple(shards)


def _batches(spans: Sequence[Span], spool: Spool) -> Iterator[tuple[list[str], list[bool], int]]:
    """Yield (pieces of documents, whether each begins one, bytes in all), some megabytes at a time."""
    pieces: list[str] = []
    starts: list[bool] = []
    size = 0
    for start, stop in spans:
        for number, piece in enumerate(split_pieces(spool.read(start, stop).decode("utf-8"))):
            pieces.append(piece)
            starts.append(number == 0)
            size += len(piece.encode("utf-8"))
            if size >= _BATCH_BYTES:
                yield pieces, starts, size
                pieces, starts, size = [], [], 0
    if pieces:
        yield pieces, starts, size


def _manifest(
    out: Path,
    recipe: Recipe,
    selection: Selection,
    shards: tuple[Shard, ...],
    tokenizer: Tokenizer,
    counts: dict,
) -> Manifest:
    sizes = {split: _size(getattr(selection, split)) for split in ("train", "heldout")}
    tokens = {split: sum(shard.tokens for shard in shards if shard.split == split) for split in ("train", "heldout")}
    return Manifest(
        folder=out,
        kept=selection.documents,
        available_bytes=selection.available_bytes,
        bytes=sizes["train"] + sizes["heldout"],
        train_bytes=sizes["train"],
        heldout_bytes=sizes["heldout"],
        tokens=tokens["train"] + tokens["heldout"],
        train_tokens=tokens["train"],
        heldout_tokens=tokens["heldout"],
        train_documents=len(selection.train),
        heldout_documents=len(selection.heldout),
        vocab=tokenizer.get_vocab_size(),
        tokenizer=TOKENIZER_FOLDER,
        tokenizer_sha256=sha256_file(out / TOKENIZER_FOLDER / "tokenizer.json"),
        shards=shards,
        recipe=recipe,
        recipe_hash=recipe.hash(),
        **counts,
    )


def _size(spans: Sequence[Span]) -> int:
    return sum(stop - start for start, stop in spans)


def _vocab_note(tokenizer: Tokenizer, vocab: int) -> tuple[str, ...]:
    found = tokenizer.get_vocab_size()
    return () if found == vocab else (f"the text has pairs for {found} ids only, not {vocab}; give more text for more",)


def _remove_other_shards(manifest: Manifest) -> None:
    """Remove shards that an earlier, killed call with other arguments left."""
    listed = {name for shard in manifest.shards for name in (shard.file, shard.offsets_file)}
    for path in manifest.folder.iterdir():
        if _SHARD_NAME.fullmatch(path.name) and path.name not in listed:
            path.unlink(missing_ok=True)
