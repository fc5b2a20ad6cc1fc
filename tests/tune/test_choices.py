"""Multiple choice: prices of answers, their normalisation, encoders' own class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from chinchilla_lm.core.errors import ConfigError, DataError
from chinchilla_lm.tune.backbone import load_backbone
from chinchilla_lm.tune.choices import Choices, make_choices, part_ids
from chinchilla_lm.tune.config import TuneConfig
from chinchilla_lm.tune.task import TunedModel

Folder = Callable[[str], Path]
ROWS: list[dict[str, Any]] = [
    {"question": "Who ran to the river ?", "choices": ["the dog", "a good book", "shares"], "label": 0},
    {"question": "What fell ?", "choices": ["the bank", "shares on sunday"], "label": 1},
    {"question": "天气好吗？", "choices": ["很好", "film", "不", "bad stories"], "label": 0},
]


def make(folder: Path, **changes: Any) -> tuple[Any, Choices, TunedModel]:
    settings: dict[str, Any] = {"task": "multiple-choice", "train": "t", "out": "o", "max_tokens": 96, "lr": 1e-3}
    config = TuneConfig(model=str(folder), **settings | changes)
    backbone = load_backbone(config)
    task = make_choices(config, ROWS, backbone)
    torch.manual_seed(0)
    return backbone, task, TunedModel(backbone, task.make_head(backbone)).eval()


@pytest.mark.parametrize("normalisation", ["byte", "token", "sum"])
def test_probabilities_are_those_of_brute_force(tiny_folder: Folder, normalisation: str) -> None:
    _, task, model = make(tiny_folder("qwen3"), normalisation=normalisation)
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder("qwen3"))
    module = AutoModelForCausalLM.from_pretrained(tiny_folder("qwen3")).eval()
    units = {"byte": lambda text, ids: len(text.encode()), "token": lambda text, ids: len(ids), "sum": lambda *_: 1}
    for row, predicted in zip(ROWS, task.predict(model, ROWS), strict=True):
        prompt = f"Question: {row['question']}\nAnswer:"
        scores = []
        for choice in row["choices"]:
            context, answer = part_ids(tokenizer, prompt, choice)
            with torch.no_grad():
                logp_tv = module(torch.tensor([[*context, *answer]])).logits[0].log_softmax(dim=-1)
            price = sum(float(logp_tv[len(context) - 1 + i, token]) for i, token in enumerate(answer))
            scores.append(price / units[normalisation](choice, answer) * task.describe()["mean_units"])
        expected = torch.tensor(scores).softmax(dim=0)
        np.testing.assert_allclose(predicted["probabilities"], expected, atol=1e-4)
        assert predicted["answer"] == row["choices"][int(expected.argmax())]


@pytest.mark.parametrize("kind", ["qwen3", "gpt2", "t5", "bart", "bert"])
def test_micro_batches_sum_to_the_batch(tiny_folder: Folder, kind: str) -> None:
    """Questions with other numbers of choices and lengths beside them change nothing."""
    _, task, model = make(tiny_folder(kind))
    tensors = tuple(torch.from_numpy(array) for array in task.collate(task.encode(ROWS, is_training=True)))
    whole, count = task.objective(model, tensors)
    alone = []
    for row in ROWS:
        part = tuple(torch.from_numpy(array) for array in task.collate(task.encode([row], is_training=True)))
        alone.append(task.objective(model, part)[0])
    sliced = [task.objective(model, tuple(tensor[i : i + 1] for tensor in tensors))[0] for i in range(3)]
    assert count == 3
    torch.testing.assert_close(whole, sum(alone), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole, sum(sliced), rtol=1e-4, atol=1e-5)


def test_training_prefers_the_right_answer(tiny_folder: Folder) -> None:
    _, task, model = make(tiny_folder("qwen3"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batch = tuple(torch.from_numpy(array) for array in task.collate(task.encode(ROWS, is_training=True)))
    for _ in range(20):
        optimizer.zero_grad()
        task.objective(model, batch)[0].backward()
        optimizer.step()
    assert task.measure(task.predict(model, ROWS), ROWS).value == 1.0


def test_an_encoder_uses_its_own_class(tiny_folder: Folder) -> None:
    backbone, task, model = make(tiny_folder("bert"))
    assert task.hub_class == "AutoModelForMultipleChoice"
    assert type(backbone.module).__name__ == "BertForMultipleChoice"
    encoded = task.tokenizer([ROWS[0]["question"]] * 3, ROWS[0]["choices"], padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = backbone.module(**{name: tensor[None] for name, tensor in encoded.items()}).logits[0].softmax(dim=-1)
    np.testing.assert_allclose(task.predict(model, ROWS[:1])[0]["probabilities"], theirs, atol=1e-5)
    assert task.zero_shot(backbone, ROWS) is None


def test_empty_answers_are_never_chosen_and_all_empty_is_refused(tiny_folder: Folder) -> None:
    _, task, model = make(tiny_folder("qwen3"))
    row = {"question": "What fell ?", "choices": ["", "the bank"], "label": 0}
    assert task.predict(model, [row])[0]["choice"] == 1
    assert len(task.encode([row, *ROWS], is_training=True)) == 3
    with pytest.raises(DataError, match="all 1 training rows"):
        task.encode([row], is_training=True)


def test_a_long_question_loses_its_beginning(tiny_folder: Folder) -> None:
    _, task, _ = make(tiny_folder("qwen3"), max_tokens=40)
    item = task.encode([{"question": "warm " * 100, "choices": ["good", "bad"], "label": 0}], is_training=True)[0]
    assert item.targets["ids"].shape == (2, 39)
    assert "Answer:" in task.tokenizer.decode(item.targets["ids"][0])


def test_settings_that_do_not_fit_are_refused(tiny_folder: Folder) -> None:
    with pytest.raises(ConfigError, match="span"):
        make(tiny_folder("qwen3"), head="span")
    with pytest.raises(ConfigError, match="template"):
        make(tiny_folder("qwen3"), template="no field")
