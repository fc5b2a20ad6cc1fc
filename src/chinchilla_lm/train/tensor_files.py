"""Safetensors files written and read one tensor at a time: a model and its moments never exist twice in memory.

The library's own functions build the whole file in memory, or map it. Written through a generator of blocks, a file can
be hashed and flushed on the way; read from an open stream, what was checked is what is used. The format is the
library's: it reads these files, and its own are read here.

Source: the format, https://huggingface.co/docs/safetensors/index#format.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

import torch
from torch import Tensor

BLOCK_BYTES = 1 << 20
"""Largest block that is written, or hashed, at once: it stays in the cache between the two."""
_TYPES = {
    "F64": torch.float64,
    "I64": torch.int64,
    "F32": torch.float32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}
_LENGTH_BYTES = 8  # the file begins with the header's length, little-endian


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Where a tensor lies in a file.

    Attributes:
        dtype, shape: of the tensor.
        start: of its first byte, counted from the beginning of the file.
    """

    dtype: torch.dtype
    shape: torch.Size
    start: int


def tensor_blocks(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """Yield a safetensors file block by block; a tensor on another device, or not contiguous, is copied in its turn.

    Args:
        tensors: by name, on any device, of the types that every safetensors reader knows.
    """
    # The widest types first, as the library writes: each tensor then begins at a multiple of its item's size.
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header, end = {}, 0
    for name in names:
        start, end = end, end + tensors[name].nbytes
        said = {"dtype": _NAMES[tensors[name].dtype], "shape": list(tensors[name].shape), "data_offsets": [start, end]}
        header[name] = said
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    yield len(text).to_bytes(_LENGTH_BYTES, "little") + text
    for name in names:
        content = _bytes_of(tensors[name].detach().cpu().contiguous())
        for start in range(0, len(content), BLOCK_BYTES):
            yield content[start : start + BLOCK_BYTES]


def read_layout(stream: BinaryIO) -> dict[str, StoredTensor]:
    """Read what a file holds, by name.

    Args:
        stream: a whole safetensors file, whose bytes the caller has checked; its position is moved.
    """
    stream.seek(0)
    length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
    header = json.loads(stream.read(length))
    return {
        name: StoredTensor(
            dtype=_TYPES[said["dtype"]],
            shape=torch.Size(said["shape"]),
            start=_LENGTH_BYTES + length + said["data_offsets"][0],
        )
        for name, said in header.items()
        if name != "__metadata__"
    }


def read_tensor(stream: BinaryIO, stored: StoredTensor) -> Tensor:
    """Read one tensor into memory of its own, on the CPU; `stream` as given to `read_layout`."""
    tensor = torch.empty(stored.shape, dtype=stored.dtype)
    content = _bytes_of(tensor)
    stream.seek(stored.start)
    count = stream.readinto(content)  # type: ignore[attr-defined]
    assert count == len(content), (stored, count)
    return tensor


def _bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, in place."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data
