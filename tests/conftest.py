"""What every test may ask for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# No test asserts a time, hypothesis's deadline of 200 ms included: a busy machine is no bug.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

# Libraries that ask the Hub about local folders too would wait for a network. To let them:
# `HF_HUB_OFFLINE=0 pytest -m network`.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

SHARED_DATA_VARIABLE = "CHINCHILLA_SHARED_DATA"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of shared test corpora; tests that need it are skipped where it is absent."""
    named = os.environ.get(SHARED_DATA_VARIABLE)
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the shared corpora are absent: {folder} is no folder; set {SHARED_DATA_VARIABLE} to theirs")
    return folder


LINES = ["the sea was calm and the sailor sang", "a whale came near the ship", "the cook said no", "question answer:"]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A model folder: 2 layers of width 32, a context of 512, random weights that are not near zero, 300 tokens."""
    import json  # what follows takes seconds to import, and most tests do without

    import torch
    from tests.random_models import random_model
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from chinchilla_lm.core.shapes import ModelShape
    from chinchilla_lm.model.huggingface import save_model

    torch.set_num_threads(1)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(LINES * 10, trainer)
    shape = {"d_model": 32, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "head_dim": 16, "d_ff": 64}
    model = random_model(
        ModelShape(vocab=tokenizer.get_vocab_size(), context=512, **shape), spread=0.3, seed=1, start=3
    )
    folder = tmp_path_factory.mktemp("tiny") / "model"
    save_model(model, folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"eos_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(special))
    return folder
