from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from chinchilla_lm.core.errors import ConfigError
from chinchilla_lm.generate.beam import BeamSearch, search_beams
from chinchilla_lm.generate.engine import Engine
from chinchilla_lm.model.huggingface import load_model, save_model
from chinchilla_lm.model.transformer import Transformer

PROMPTS = [[1, 2, 3], [9], [4, 4, 8, 11, 6], [10, 3]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, random_model: Callable[..., Transformer]) -> Path:
    folder = tmp_path_factory.mktemp("beams") / "model"
    save_model(random_model("llama", vocab=12, scale=0.4), folder)
    return folder


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize(("beams", "length_penalty"), [(3, 1.0), (4, 0.0), (3, 2.0), (2, -1.0)])
def test_beams_equal_those_of_transformers(
    folder: Path, beams: int, length_penalty: float, early_stopping: bool | str
) -> None:
    from transformers import AutoModelForCausalLM

    peer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    engine = Engine(load_model(folder), slots=5, weights="float32")
    settings = BeamSearch(beams=beams, length_penalty=length_penalty, early_stopping=early_stopping)  # type: ignore[arg-type]
    for prompt_ids in PROMPTS:
        theirs = peer.generate(
            torch.tensor([prompt_ids]),
            num_beams=beams,
            num_return_sequences=beams,
            max_new_tokens=14,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
            do_sample=False,
            eos_token_id=[0, 5],
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
        )
        ours = search_beams(engine, prompt_ids, settings, max_tokens=14, stop_ids=[0, 5])
        assert len(ours) == beams
        for beam, sequence, score in zip(ours, theirs.sequences, theirs.sequences_scores, strict=True):
            row = sequence[len(prompt_ids) :].tolist()
            end = next((place for place, token in enumerate(row) if token in (0, 5)), len(row))
            assert list(beam.token_ids) == row[:end]
            assert beam.score == pytest.approx(float(score), rel=1e-5, abs=1e-5)


def test_many_beams_find_the_likeliest_text(folder: Path) -> None:
    model = load_model(folder).eval()
    engine = Engine(model, slots=144, weights="float32")
    best = search_beams(engine, [1, 2], BeamSearch(beams=144), max_tokens=3)[0]
    texts = torch.cartesian_prod(*[torch.arange(12)] * 3)
    with torch.no_grad():
        logprobs = model(torch.cat([torch.tensor([[1, 2]]).expand(len(texts), -1), texts], 1)).log_softmax(-1)
    sums = logprobs[:, 1:4].gather(-1, texts[..., None]).sum((1, 2))
    assert list(best.token_ids) == texts[sums.argmax()].tolist()
    assert best.score * 3 == pytest.approx(float(sums.max()), abs=1e-4)


def test_more_beams_than_slots_are_refused(folder: Path) -> None:
    engine = Engine(load_model(folder), slots=2)
    with pytest.raises(ConfigError, match="3 beams need as many slots, and the engine has 2"):
        search_beams(engine, [1], BeamSearch(beams=3), max_tokens=4)
    with pytest.raises(ConfigError, match="beams must be >= 1, got 0"):
        BeamSearch(beams=0)
