"""Methods of peft on a module of transformers: what learns, that generation sees it, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from chinchilla_lm.core.errors import ConfigError
from chinchilla_lm.tune.backbone import load_backbone
from chinchilla_lm.tune.config import TuneConfig
from chinchilla_lm.tune.freezing import choose_parameters, make_optimizer
from chinchilla_lm.tune.task import TunedModel

pytest.importorskip("peft")
CONFIG = TuneConfig(task="text-generation", model="m", train="t", out="o", backbone="hub", lr=0.05, virtual_tokens=3)
IDS = torch.arange(3, 35).view(2, 16)
LENGTHS = torch.tensor([16, 16])


def make_model(folder: Path, method: Any) -> tuple[TunedModel, TuneConfig, list[dict[str, Any]]]:
    config = replace(CONFIG, model=str(folder), method=method)
    backbone: Any = load_backbone(config)
    model = TunedModel(backbone, None)
    return model, config, choose_parameters(model, config)


@pytest.mark.parametrize(
    ("kind", "method"),
    [("qwen3", "prompt"), ("gpt2", "prompt"), ("llama", "prefix"), ("qwen3", "ia3"), ("gpt2", "lora"), ("t5", "lora")],
)
def test_only_what_the_method_adds_is_trained_and_the_loss_falls(tiny_folder, kind, method):
    model, config, groups = make_model(tiny_folder(kind), method)
    optimizer = make_optimizer(groups, config)
    trained = {id(p) for group in groups for p in group["params"]}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = []
    for _ in range(8):
        loss = model.backbone.token_losses(IDS, IDS.roll(-1, 1), LENGTHS).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (id(parameter) not in trained), name


@pytest.mark.parametrize(
    ("kind", "method"), [("qwen3", "prompt"), ("gpt2", "prompt"), ("llama", "prefix"), ("llama", "ia3")]
)
def test_generation_continues_as_the_states_say(tiny_folder, kind, method):
    """Greedy texts by peft's cache equal those chosen one token at a time from the states of the whole text."""
    model, _, _ = make_model(tiny_folder(kind), method)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0.0 if method != "ia3" else 1.0, 0.5)
    backbone: Any = model.eval().backbone
    prompts = [[5, 9, 11, 40], [7, 8]]
    written = backbone.generate(prompts, 6, [1])
    for prompt, answer in zip(prompts, written, strict=True):
        text = list(prompt)
        for token in answer:
            assert int(backbone.next_token_logits([text])[0].argmax()) == token
            text.append(token)


def test_what_does_not_fit_is_refused_in_one_line(tiny_folder):
    for kind in ("bert", "t5"):
        with pytest.raises(ConfigError, match="decoders"):
            make_model(tiny_folder(kind), "prompt")
