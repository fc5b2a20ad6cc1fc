"""A model folder is checked before anything of it is used: it may come from a stranger.

Refused: pickled files, links that leave the folder, files larger than their kind ever is, JSON that is not strict,
auto_map and *_implementation (code from elsewhere), a config.json that asks for more weights than the files can hold.
What is left is read by `model.huggingface`, which knows model types, bounds and tensors. Never runs a folder's code.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from chinchilla_lm.core.errors import ModelError
from chinchilla_lm.core.shapes import ModelShape
from chinchilla_lm.model.model_config import read_config
from chinchilla_lm.serve.strict_json import JsonRefused, parse_json

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".msgpack", ".h5")
MOST_ENTRIES = 10_000
# Bytes, each at least 8 times the largest file of its kind that is known.
_LARGEST_BYTES = {
    "config.json": 1 << 20,
    "generation_config.json": 1 << 20,
    "special_tokens_map.json": 1 << 20,
    "tokenizer_config.json": 8 << 20,
    "chat_template.jinja": 1 << 20,
    "model.safetensors.index.json": 32 << 20,
    "tokenizer.json": 256 << 20,
}
_STRICT = ("config.json", "generation_config.json", "special_tokens_map.json", "tokenizer_config.json")


def find_model_folder(place: Path) -> Path:
    """Return the folder itself, or model/ of a run directory.

    Raises:
        ModelError: neither holds a config.json.
    """
    for folder in (place / "model", place):
        if (folder / "config.json").is_file():
            return folder
    raise ModelError(f"{place} holds no config.json; name a model folder or a run directory")


def check_model_folder(folder: Path) -> dict[str, dict[str, Any]]:
    """Refuse a folder that is not safe to load.

    Args:
        folder: as `find_model_folder` gives it.

    Returns:
        The small JSON files by name; {} for an absent one.

    Raises:
        ModelError: what is wrong and what to do.
        DataError: config.json is absent.
    """
    _check_entries(folder)
    tables = {name: _read_table(folder / name) for name in _STRICT}
    for name, table in tables.items():
        for key, value in table.items():
            if value is not None and (key == "auto_map" or key.endswith("_implementation")):
                raise ModelError(
                    f"{folder / name} has {key}, which runs code from elsewhere; only built-in layouts are read"
                )
    _check_size_of_weights(folder, read_config(folder))
    return tables


def _check_entries(folder: Path) -> None:
    root = folder.resolve()
    for count, entry in enumerate(os.scandir(folder)):
        if count >= MOST_ENTRIES:
            raise ModelError(f"{folder} has more than {MOST_ENTRIES} entries; name the folder of one model")
        if entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(root):
            raise ModelError(
                f"{entry.path} is a link that leaves the folder; copy the model with `cp -rL` and serve the copy"
            )
        if entry.name.lower().endswith(PICKLE_SUFFIXES):
            raise ModelError(
                f"{entry.path} may hold pickled code; keep only .safetensors, .json and .jinja files in the folder"
            )
        most = _LARGEST_BYTES.get(entry.name)
        if most is not None and (size := entry.stat().st_size) > most:
            raise ModelError(f"{entry.path} has {size} bytes and may have {most}; check where the model comes from")


def _read_table(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        table = parse_json(path.read_bytes())
    except JsonRefused as error:
        raise ModelError(f"{path}: {error}") from None
    if not isinstance(table, dict):
        raise ModelError(f"{path} is not a table; save the model again")
    return table


def _check_size_of_weights(folder: Path, shape: ModelShape) -> None:
    # Modules of a huge shape would take seconds to lay out, even without memory, before names are compared.
    least_weights = shape.vocab * shape.d_model + shape.n_layers * shape.d_model * (2 * shape.d_ff + shape.head_dim)
    held_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if held_bytes < least_weights:  # a weight takes a byte or more
        raise ModelError(
            f"{folder}: config.json describes at least {least_weights} weights, the .safetensors files have only "
            f"{held_bytes} bytes; config.json and the weights must belong together"
        )
