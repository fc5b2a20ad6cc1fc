"""The tiny models of conftest are what they say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer


@pytest.mark.parametrize("kind", ["qwen3", "llama", "gpt2", "bert", "t5", "bart"])
def test_a_tiny_folder_loads_with_the_auto_classes(tiny_folder: Callable[[str], Path], kind: str) -> None:
    folder = tiny_folder(kind)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    batch = tokenizer(["a warm film"], return_tensors="pt")
    batch.pop("token_type_ids", None)
    with torch.no_grad():
        encoder = model.get_encoder() if kind in ("t5", "bart") else model
        states = encoder(**batch).last_hidden_state
    assert states.shape[-1] == 32
    assert torch.isfinite(states).all()
    assert tokenizer.pad_token is not None
