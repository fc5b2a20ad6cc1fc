"""Tensors as safetensors files, one at a time: the library reads what we write and writes what we read."""

from __future__ import annotations

import io
import tracemalloc

import pytest
import safetensors.torch
import torch
from torch import nn

from chinchilla_lm.train.checkpoint import load_checkpoint, save_checkpoint
from chinchilla_lm.train.tensor_files import BLOCK_BYTES, read_layout, read_tensor, tensor_blocks


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    """Every type, with odd sizes between wide ones, and shapes that break the careless."""
    draw = torch.Generator().manual_seed(0)
    types = (torch.float64, torch.int64, torch.float32, torch.int32, torch.bfloat16, torch.float16)
    made = {f"{dtype}": (torch.randn(3, 5, generator=draw) * 100).to(dtype) for dtype in types}
    made |= {f"{dtype}": torch.arange(7).to(dtype) for dtype in (torch.int16, torch.int8, torch.uint8, torch.bool)}
    made |= {"scalar": torch.tensor(3.5), "empty": torch.zeros(0, 4), '名/é"\n': torch.ones(1)}
    made |= {"turned": torch.randn(6, 4, generator=draw).t(), "learned": nn.Parameter(torch.randn(2, generator=draw))}
    return made | {"of three blocks": torch.randn(BLOCK_BYTES // 2 + 1, generator=draw)}


def test_the_library_reads_what_we_write(tensors):
    blocks = list(tensor_blocks(tensors))
    found = safetensors.torch.load(b"".join(blocks))
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name
    assert max(map(len, blocks)) <= BLOCK_BYTES


def test_we_read_what_the_library_writes(tensors):
    portable = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    stream = io.BytesIO(safetensors.torch.save(portable, metadata={"format": "pt"}))
    layout = read_layout(stream)
    assert layout.keys() == tensors.keys()
    for name in sorted(layout):  # in any order
        assert layout[name].shape == tensors[name].shape
        found = read_tensor(stream, layout[name])
        assert found.dtype == tensors[name].dtype
        assert torch.equal(found, tensors[name]), name


def test_each_tensor_begins_at_a_multiple_of_its_item(tensors):
    layout = read_layout(io.BytesIO(b"".join(tensor_blocks(tensors))))
    assert not [name for name, stored in layout.items() if stored.start % stored.dtype.itemsize]


def test_a_state_is_saved_and_loaded_without_a_second_copy(tmp_path):
    """Bytes that Python holds at once; 64 MiB of weights and moments were once two copies of that."""
    model = nn.Linear(2048, 2048)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    before = model.weight.detach().clone()
    tracemalloc.start()
    try:
        path = save_checkpoint(tmp_path, 1, model, optimizer, {})
        with torch.no_grad():
            model.weight.zero_()
        load_checkpoint(path, model, optimizer)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 4 * BLOCK_BYTES
    assert torch.equal(model.weight, before)
