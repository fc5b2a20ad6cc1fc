"""What a model writes: by the weights as they are now, and never nothing where every training answer is something."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from chinchilla_lm.tune.backbone import load_backbone
from chinchilla_lm.tune.config import TuneConfig
from chinchilla_lm.tune.freezing import choose_parameters, make_optimizer
from chinchilla_lm.tune.task import TunedModel
from chinchilla_lm.tune.writing import Writing, make_writer

PROMPT = [7, 90, 33, 12, 60]


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_text_after_an_update_is_that_of_the_updated_weights(
    method: Any, dtype: torch.dtype, tiny_folder: Callable[[str], Path]
):
    config = TuneConfig(
        task="translation", model=str(tiny_folder("qwen3")), train="a", out="b", method=method, lr=0.3, backbone="own"
    )
    backbone: Any = load_backbone(config, dtype=dtype)
    model = TunedModel(backbone, None)
    optimizer = make_optimizer(choose_parameters(model, config), config)
    model.eval()
    with torch.no_grad():
        before = backbone.generate([PROMPT], 8, ())
    model.train()
    ids_bt = torch.tensor([PROMPT])
    for _ in range(3):  # LoRA's B is 0: the first update moves B alone
        backbone.token_losses(ids_bt, ids_bt.roll(-1, 1), torch.tensor([5])).sum().backward()
        for group in optimizer.param_groups:
            group["lr"] = group["lr_peak"]
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        after = backbone.generate([PROMPT], 8, ())
        backbone._engine = None
        fresh = backbone.generate([PROMPT], 8, ())
    assert after == fresh
    assert after != before


def test_a_line_break_before_the_first_word_does_not_end_an_answer(tiny_folder: Callable[[str], Path]):
    config = TuneConfig(task="translation", model=str(tiny_folder("qwen3")), train="a", out="b", method="full")
    backbone: Any = load_backbone(config)
    backbone.eval()
    (first, *_), end = backbone.generate([PROMPT], 3, ())[0], backbone.tokenizer.eos_token_id
    writing = Writing(max_tokens=6, stop_ids=(end, first), opening_ids=(first,))
    assert backbone.generate([PROMPT], 6, (end, first)) == [[]]
    expected = backbone.generate([[*PROMPT, first]], 6, (end, first))
    assert expected != [[]]
    assert make_writer(backbone, writing)([PROMPT]) == expected
    closed = Writing(max_tokens=6, stop_ids=(end, first))
    assert make_writer(backbone, closed)([PROMPT]) == [[]]


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize(("kind", "form"), [("qwen3", "own"), ("gpt2", "hub"), ("t5", "hub"), ("bart", "hub")])
def test_an_answer_does_not_end_before_it_begins(kind: str, form: Any, beams: int, tiny_folder: Callable[[str], Path]):
    config = TuneConfig(
        task="translation", model=str(tiny_folder(kind)), train="a", out="b", method="full", backbone=form
    )
    backbone: Any = load_backbone(config)
    backbone.eval()
    (first, *_) = backbone.generate([PROMPT], 3, ())[0]  # the likeliest first token is the end: over-learnt
    assert backbone.generate([PROMPT], 6, (first,)) == [[]]
    writing = Writing(max_tokens=6, stop_ids=(first,), may_be_empty=False, beams=beams)
    (answer,) = make_writer(backbone, writing)([PROMPT])
    name = "AutoModelForSeq2SeqLM" if kind in ("t5", "bart") else "AutoModelForCausalLM"
    theirs = getattr(transformers, name).from_pretrained(tiny_folder(kind)).eval()
    options = {"max_new_tokens": 6, "min_new_tokens": 1, "do_sample": False, "eos_token_id": [first], "pad_token_id": 0}
    out_t = theirs.generate(torch.tensor([PROMPT]), num_beams=beams, **options)[0].tolist()
    expected = out_t[1 if name == "AutoModelForSeq2SeqLM" else len(PROMPT) :]
    assert answer
    assert answer == (expected[: expected.index(first)] if first in expected else expected)
    drawn = Writing(max_tokens=6, stop_ids=(first,), may_be_empty=False, temperature=0.05)
    assert all(make_writer(backbone, drawn)([[*PROMPT, *range(place)]])[0] for place in range(1, 8))


def test_line_breaks_before_the_first_word_do_not_make_an_empty_answer(tiny_folder: Callable[[str], Path]):
    config = TuneConfig(task="translation", model=str(tiny_folder("qwen3")), train="a", out="b", method="full")
    backbone: Any = load_backbone(config)
    backbone.eval()
    (first, *_), end = backbone.generate([PROMPT], 3, ())[0], backbone.tokenizer.eos_token_id
    (behind, *_) = backbone.generate([[*PROMPT, first]], 3, ())[0]
    writing = Writing(max_tokens=6, stop_ids=(behind, end, first), opening_ids=(first,), may_be_empty=False)
    (answer,) = make_writer(backbone, writing)([PROMPT])
    logits_v = backbone.next_token_logits([[*PROMPT, first]])[0]
    logits_v[[behind, end]] = -torch.inf
    token = int(logits_v.argmax())
    if token == first:
        logits_v = backbone.next_token_logits([[*PROMPT, first, first]])[0]
        logits_v[[behind, end]] = -torch.inf
        token = int(logits_v.argmax())
    assert answer[0] == token
    assert len(answer) <= 6
