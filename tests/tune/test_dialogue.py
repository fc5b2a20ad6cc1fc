"""Dialogues: the masks are transformers' where the template marks them, and the same by rendering where it does not."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from chinchilla_lm.core.errors import ConfigError, DataError
from chinchilla_lm.tune.backbone import load_backbone
from chinchilla_lm.tune.config import TuneConfig
from chinchilla_lm.tune.dialogue import DialogueTask, chosen_turn, make_dialogue
from chinchilla_lm.tune.dialogue_tokens import (
    PLAIN_CHAT_TEMPLATE,
    encode_dialogue,
    ensure_chat_template,
    mask_dialogue,
    reply_prompt,
)
from chinchilla_lm.tune.task import IGNORED, TunedModel

from .conftest import make_tokenizer

MARKED = (
    "{% for m in messages %}<{{ m['role'] }}>{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}{{ eos_token }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
UNMARKED = re.sub(r"{% (end)?generation %}", "", MARKED)
# The form of Qwen3's: an assistant's turn is dressed only while it is the last.
REWRITING = UNMARKED.replace(
    "{% if m['role'] == 'assistant' %}", "{% if m['role'] == 'assistant' %}{% if loop.last %}I say {% endif %}"
).replace("<assistant>{% endif %}", "<assistant>I say {% endif %}")


def talk(*turns: str, system: str | None = None) -> list[dict[str, str]]:
    head = [] if system is None else [{"role": "system", "content": system}]
    return head + [{"role": ("user", "assistant")[n % 2], "content": turn} for n, turn in enumerate(turns)]


TALKS = [
    talk("the cat", "sat on the mat", "the dog", "ran to the river"),
    talk("你好", "世界", system="good books"),
    talk("Who ?", "Anna Smith", "the play", "was great", "the end"),
]
ROWS = [{"messages": messages} for messages in TALKS]


def tokenizer_with(template: str | None) -> Any:
    tokenizer = make_tokenizer("decoder")
    tokenizer.chat_template = template
    return tokenizer


def make(folder: Path, **more: Any) -> tuple[DialogueTask, TunedModel]:
    config = TuneConfig(task="dialogue", model=str(folder), train="a", out="b", method="full", **more)
    backbone = load_backbone(config)
    return make_dialogue(config, ROWS, backbone), TunedModel(backbone, None).eval()


@pytest.mark.parametrize("template", [MARKED, PLAIN_CHAT_TEMPLATE])
@pytest.mark.parametrize("messages", TALKS)
def test_masks_equal_those_of_apply_chat_template(template: str, messages: list[dict[str, str]]):
    tokenizer = tokenizer_with(template)
    wanted = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
    ids, mask, _ = mask_dialogue(tokenizer, messages, wanted)
    theirs = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    assert ids.tolist() == theirs["input_ids"]
    assert mask.astype(int).tolist() == theirs["assistant_masks"]
    said = "".join(messages[n]["content"] + tokenizer.eos_token for n in wanted)
    assert str(tokenizer.decode(ids[mask])).replace(" ", "") == said.replace(" ", "")


@pytest.mark.parametrize("messages", TALKS)
def test_masks_found_by_rendering_equal_the_marked_ones(messages: list[dict[str, str]]):
    wanted = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
    marked = mask_dialogue(tokenizer_with(MARKED), messages, wanted)
    found = mask_dialogue(tokenizer_with(UNMARKED), messages, wanted)
    assert found[0].tolist() == marked[0].tolist()
    assert found[1].tolist() == marked[1].tolist()
    assert found[2] == marked[2] == tuple(wanted)


@pytest.mark.parametrize("template", [MARKED, UNMARKED, REWRITING, PLAIN_CHAT_TEMPLATE])
@pytest.mark.parametrize("max_tokens", [1000, 70, 40])
def test_every_assistant_turn_is_a_target_exactly_once(template: str, max_tokens: int):
    tokenizer = tokenizer_with(template)
    messages = talk(*(f"{word} {word}" for word in ["cat", "mat", "dog", "river", "book", "film", "good", "bad"]))
    windows, lost = encode_dialogue(tokenizer, messages, max_tokens)
    assert sorted(turn for window in windows for turn in window.turns) == [1, 3, 5, 7]
    assert lost == 0
    assert all(len(window.ids) <= max_tokens for window in windows)
    named = sorted(
        reply.strip()
        for window in windows
        for reply in str(tokenizer.decode(window.targets[window.targets != IGNORED])).split(tokenizer.eos_token)[:-1]
    )
    assert named == sorted(messages[n]["content"] for n in (1, 3, 5, 7))
    if template == REWRITING:
        assert len(windows) == 4


def test_a_turn_that_fits_nowhere_is_counted():
    tokenizer = tokenizer_with(MARKED)
    messages = talk("the cat", "sat", "the dog", "ran to the river near Paris " * 20)
    windows, lost = encode_dialogue(tokenizer, messages, 40)
    assert lost == 1
    assert [window.turns for window in windows] == [(1,)]


def test_the_system_message_stays_when_old_turns_go():
    tokenizer = tokenizer_with(MARKED)
    messages = talk("one " * 10, "two " * 10, "the cat", system="good books")
    ids = reply_prompt(tokenizer, messages, 40)
    text = tokenizer.decode(ids)
    assert text == "<system>good books<user>the cat<assistant>"  # jinja takes the breaks after its marks
    assert len(reply_prompt(tokenizer, talk("one " * 50), 10)) == 10


def test_a_model_without_a_template_gets_one_that_is_saved_with_it(tmp_path: Path):
    from transformers import AutoTokenizer

    tokenizer = tokenizer_with(None)
    assert not ensure_chat_template(tokenizer)
    assert ensure_chat_template(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = loaded.apply_chat_template(TALKS[0][:3], tokenize=False, add_generation_prompt=True)
    assert text == "User: the cat\nAssistant: sat on the mat<|endoftext|>\nUser: the dog\nAssistant:"


def test_the_loss_is_that_of_transformers_and_the_reply_its_greedy_one(tiny_folder: Callable[[str], Path]):
    from transformers import AutoModelForCausalLM

    task, model = make(tiny_folder("qwen3"), max_new_tokens=6)
    assert not task.has_own_template
    predictions = task.predict(model, ROWS)
    theirs = AutoModelForCausalLM.from_pretrained(tiny_folder("qwen3")).eval()
    for row, prediction in zip(ROWS, predictions, strict=True):
        ids, mask, _ = mask_dialogue(task.tokenizer, row["messages"], [])
        labels = torch.tensor([[token if wanted else IGNORED for token, wanted in zip(ids, mask, strict=True)]])
        count = int((labels != IGNORED).sum())
        loss = theirs(input_ids=torch.tensor(ids)[None], labels=labels).loss.item() * count
        assert prediction["tokens"] == count
        assert prediction["loss"] == pytest.approx(loss, rel=2e-5)
        turn = chosen_turn(row)
        assert turn == prediction["turn"]
        prompt = task.tokenizer.apply_chat_template(
            row["messages"][:turn], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        out = theirs.generate(**prompt, max_new_tokens=6, do_sample=False, eos_token_id=task.tokenizer.eos_token_id)
        text = task.tokenizer.decode(out[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
        assert prediction["text"] == str(text).strip()
    measures = task.measure(predictions, ROWS)
    assert measures.primary == "loss"
    assert measures.values["perplexity"] == pytest.approx(math.exp(measures.values["loss"]))
    assert "distinct_2" in measures.values


def test_packed_dialogues_have_the_same_loss(tiny_folder: Callable[[str], Path]):
    plain, model = make(tiny_folder("qwen3"))
    packed, _ = make(tiny_folder("qwen3"), is_packed=True)
    items = plain.encode(ROWS, is_training=True)
    losses = [task.objective(model, tuple(map(torch.from_numpy, task.collate(items)))) for task in (plain, packed)]
    assert losses[0][1] == losses[1][1]
    assert losses[0][0].item() == pytest.approx(losses[1][0].item(), rel=1e-5)
    assert len(packed.collate(items)[0]) < len(items)


def test_dialogues_without_a_reply_are_refused(tiny_folder: Callable[[str], Path]):
    task, _ = make(tiny_folder("qwen3"))
    with pytest.raises(DataError, match="all 1 training rows"):
        task.encode([{"messages": talk("the cat")}], is_training=True)
    with pytest.raises(DataError, match="lacks 'messages'"):
        task.encode([{"text": "the cat"}], is_training=True)
    with pytest.raises(ConfigError, match="chat template"):
        make(tiny_folder("qwen3"), template="{messages}")
    with pytest.raises(ConfigError, match="needs a decoder"):
        make(tiny_folder("t5"))
