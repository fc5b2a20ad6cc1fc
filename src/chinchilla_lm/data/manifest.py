"""The manifest of a prepared folder: what is in it, and proof that it is whole.

    manifest.json             this record; written last, so that a folder with it is finished
    tokenizer/                Hugging Face files
    train-00000.npy           token ids (uint16, or uint32 above 65,536 ids), one long stream over the train-*.npy
    train-00000.offsets.npy   where documents start in that shard (uint64)
    heldout-00000.npy ...     the same for the text that no model trains on

It never writes tokens (see `chinchilla_lm.data.prepare`) and never repairs a folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from chinchilla_lm.core.config import from_mapping
from chinchilla_lm.core.errors import ConfigError, DataError
from chinchilla_lm.core.files import explain_os_error, read_json, sha256_file, write_json

MANIFEST_FILE = "manifest.json"
SCHEMA = "manifest/1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a folder was asked to hold; equal recipes are the same folder."""

    sources: tuple[str, ...]
    vocab: int
    max_bytes: int | None
    heldout_bytes: int
    seed: int

    def hash(self) -> str:
        """Return the SHA-256 of the recipe's JSON, as 64 hexadecimal digits."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode("utf-8")).hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of tokens and the file of its documents' starts."""

    file: str
    split: str
    tokens: int
    documents: int
    size_bytes: int
    sha256: str
    offsets_file: str
    offsets_sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """A finished prepared folder. Bytes are of UTF-8 text; tokens include one end-of-text token a document."""

    folder: Path
    documents: int
    """Documents read."""
    empty: int
    duplicates: int
    """Exact copies left out."""
    kept: int
    """Documents of which the train or the held-out split has text."""
    available_bytes: int
    """Unique text that training may use: `train_bytes`, had max_bytes not limited it."""
    bytes: int
    train_bytes: int
    heldout_bytes: int
    tokens: int
    train_tokens: int
    heldout_tokens: int
    train_documents: int
    heldout_documents: int
    vocab: int
    """Ids of the tokenizer; fewer than the recipe asks when the text is too small for them."""
    tokenizer: str
    """Folder of the tokenizer, below `folder`."""
    tokenizer_sha256: str
    shards: tuple[Shard, ...]
    recipe: Recipe
    recipe_hash: str
    notes: tuple[str, ...]
    """What a person should know: files left out, characters replaced, how the held-out text was chosen."""

    @property
    def tokenizer_folder(self) -> Path:
        """The Hugging Face folder of the tokenizer."""
        return self.folder / self.tokenizer

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, without `folder`: a prepared folder may be moved."""
        fields = dataclasses.asdict(self)
        del fields["folder"]
        return {"schema": SCHEMA, **fields}


def save_manifest(manifest: Manifest) -> None:
    """Write manifest.json at once; the folder is finished from then on."""
    write_json(manifest.folder / MANIFEST_FILE, manifest.to_dict())


def load_manifest(folder: Path | str, verify: bool = True) -> Manifest:
    """Read the manifest of a prepared folder.

    Args:
        folder: as `prepare` made it.
        verify: read every file and compare its SHA-256 (about 1 GB a second); otherwise compare the sizes only.

    Raises:
        DataError: the folder is not prepared or not finished, its manifest is of a newer version, or a file is absent,
            torn or changed.
    """
    folder = Path(folder)
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise DataError(
            f"{folder} has no {MANIFEST_FILE}: it was not prepared to the end; run `chinchilla prepare` again"
        )
    record = read_json(path)
    schema = record.pop("schema", None) if isinstance(record, dict) else None
    if schema != SCHEMA:
        raise DataError(f"{path} has schema {schema!r} and this version reads {SCHEMA!r}; {_way_out(folder)}")
    try:
        manifest = from_mapping(Manifest, {**record, "folder": str(folder)}, where=str(path))
    except ConfigError as error:
        raise DataError(f"{error}; {_way_out(folder)}") from None
    for shard in manifest.shards:
        _check_shard(folder, shard, verify)
    tokenizer_file = manifest.tokenizer_folder / "tokenizer.json"
    if not tokenizer_file.is_file() or sha256_file(tokenizer_file) != manifest.tokenizer_sha256:
        raise DataError(f"{tokenizer_file} is absent or not the file that was written; {_way_out(folder)}")
    return manifest


def _check_shard(folder: Path, shard: Shard, verify: bool) -> None:
    path = folder / shard.file
    if not path.is_file() or not (folder / shard.offsets_file).is_file():
        raise DataError(f"{path} or its offsets are absent; {_way_out(folder)}")
    with explain_os_error(path):
        size_bytes = path.stat().st_size
    if size_bytes != shard.size_bytes:
        raise DataError(f"{path} has {size_bytes} bytes and {shard.size_bytes} were written; {_way_out(folder)}")
    if not verify:
        return
    for name, sha256 in ((shard.file, shard.sha256), (shard.offsets_file, shard.offsets_sha256)):
        if sha256_file(folder / name) != sha256:
            raise DataError(f"{folder / name} is not what was written (its SHA-256 differs); {_way_out(folder)}")


def _way_out(folder: Path) -> str:
    return f"delete {folder} and prepare again"
