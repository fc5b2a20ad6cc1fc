"""Prompt and completion in tokens: every completion token a target once, no prompt token ever; cuts by the rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla_lm.generate.engine import shared_prefix
from chinchilla_lm.tune.completion import split_text
from chinchilla_lm.tune.completion_tokens import IGNORED, PairEncoder, lead_ids
from chinchilla_lm.tune.prompts_generative import move_spaces

from .conftest import make_tokenizer

TOKENIZER = make_tokenizer("decoder")


def text_of(ids: Any) -> str:
    return str(TOKENIZER.decode(ids))


WORDS = st.text(alphabet="abc dog the.,\n你好北京", max_size=40)


@given(prompt=WORDS, completion=WORDS)
@settings(max_examples=200, deadline=None)
def test_every_completion_token_is_a_target_once_and_no_prompt_token_is(prompt: str, completion: str):
    prompt, spaces = move_spaces(prompt)
    encoder = PairEncoder(TOKENIZER, 1000)
    pair = encoder.encode(prompt, spaces + completion)
    assert pair is not None
    whole = encoder.bare(prompt + spaces + completion)
    alone = encoder.bare(prompt)
    boundary = shared_prefix(whole, alone)
    wanted = [*whole[boundary:], encoder.end_id]
    assert pair.targets[pair.targets != IGNORED].tolist() == wanted
    # each target stands one place before the token it names, and the inputs are the text itself
    assert pair.ids.tolist()[-len(wanted) :] == wanted
    assert np.array_equal(pair.inputs[1:], pair.ids[1:-1])
    assert (pair.targets[: pair.boundary - 1] == IGNORED).all()


@given(prompt=WORDS, completion=WORDS.filter(str.strip))
@settings(max_examples=100, deadline=None)
def test_a_prompt_that_ends_in_spaces_trains_as_one_that_does_not(prompt: str, completion: str):
    completion = completion.lstrip()
    encoder = PairEncoder(TOKENIZER, 1000)
    head, spaces = move_spaces(prompt + " ")
    assert head + spaces == prompt + " "
    assert not head.endswith(" ")
    pair = encoder.encode(head, spaces + completion)
    assert pair is not None
    # the whole text is tokenised as one: "dog" behind a space is the token of " dog"
    text = head + spaces + completion
    assert text_of(pair.ids[-len(encoder.bare(text)) - 1 : -1]) == text


def test_a_token_that_joins_prompt_and_completion_is_a_target():
    encoder = PairEncoder(TOKENIZER, 1000)
    whole = encoder.bare("the cat sat")
    pair = encoder.encode("the ca", "t sat")
    assert pair is not None
    assert whole[:1] == encoder.bare("the")
    assert pair.ids.tolist() == [*whole, encoder.end_id]
    assert text_of(pair.targets[pair.targets != IGNORED][:-1]).endswith("cat sat")


def test_without_a_prompt_all_tokens_are_targets_behind_a_start_token():
    encoder = PairEncoder(TOKENIZER, 1000)
    pair = encoder.encode("", "the dog")
    assert pair is not None
    assert pair.inputs[0] == TOKENIZER.eos_token_id  # this tokenizer has no start token
    assert pair.targets.tolist() == [*encoder.bare("the dog"), TOKENIZER.eos_token_id]


@given(size=st.integers(2, 30))
@settings(max_examples=30, deadline=None)
def test_a_long_text_becomes_rows_that_name_each_token_once(size: int):
    encoder = PairEncoder(TOKENIZER, size)
    text = "the cat sat on the mat , and the dog ran to the river near Paris ."
    pieces = split_text(encoder, text)
    assert all(2 <= len(piece.ids) <= size for piece in pieces)
    named = [token for piece in pieces for token in piece.targets.tolist()]
    assert named == [*encoder.bare(text), encoder.end_id]


@given(size=st.integers(4, 60))
@settings(max_examples=60, deadline=None)
def test_a_long_field_loses_its_end_before_the_completion_loses_anything(size: int):
    encoder = PairEncoder(TOKENIZER, size)
    document, answer = "one two three four five six seven eight nine ten " * 3, " a cat"

    def fill(text: str) -> str:
        return f"Text: {text}\nSummary:"

    pair = encoder.encode(fill(document), answer, encoder.shortener(document, fill))
    frame, wanted = encoder.bare(fill("")), [*encoder.bare(answer), encoder.end_id]
    if len(frame) >= size:
        assert pair is None
        return
    assert pair is not None
    assert len(pair.ids) <= size
    named = pair.targets[pair.targets != IGNORED].tolist()
    assert named == wanted[: len(named)]
    if len(frame) + len(wanted) <= size:
        assert named == wanted
        text = text_of(pair.ids[: pair.boundary])
        assert text.startswith("Text:")
        assert text.endswith("\nSummary:")
        assert document.startswith(text[6:].removesuffix("\nSummary:").lstrip())
    else:
        assert pair.is_completion_cut
    assert pair.is_prompt_cut


def test_a_free_prompt_loses_its_beginning():
    encoder = PairEncoder(TOKENIZER, 12)
    prompt = "the dog ran to the river near Paris and the cat sat on the mat"
    pair = encoder.encode(prompt, " good")
    assert pair is not None
    assert len(pair.ids) == 12
    ends = encoder.bare(prompt)[-(12 - 1 - len(encoder.bare(" good"))) :]
    assert pair.ids[: pair.boundary].tolist() == ends


def test_what_a_tokenizer_puts_around_a_text_is_kept_before_and_left_out_after():
    bart = make_tokenizer("bart")
    assert lead_ids(bart) == [bart.bos_token_id]
    pair = PairEncoder(bart, 100).encode("the dog", " ran")
    assert pair is not None
    assert pair.ids[0] == bart.bos_token_id
    assert pair.ids.tolist().count(bart.eos_token_id) == 1


@pytest.mark.parametrize("room", [1, 5, 11])
def test_a_prompt_leaves_room_for_what_will_be_written(room: int):
    encoder = PairEncoder(TOKENIZER, 12)
    ids = encoder.encode_prompt("the dog ran to the river near Paris and the cat sat", None, room)
    assert len(ids) == 12 - room
    assert encoder.bare("the dog ran to the river near Paris and the cat sat")[-len(ids) :] == ids
