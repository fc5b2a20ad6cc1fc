"""Scores against a plain forward pass of the whole sequence, one pair at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.random_models import random_model
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from chinchilla_lm.core.errors import DataError
from chinchilla_lm.core.shapes import ModelShape
from chinchilla_lm.evals.scorer import Scorer, TokenPair
from chinchilla_lm.model.transformer import Transformer

CONTEXT = 48
LINES = ["the sea was calm and the sailor sang", "a whale came near the ship", "你好，大海", "the cook said no"] * 20


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.train_from_iterator(
        LINES,
        trainers.BpeTrainer(
            vocab_size=330,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return made


@pytest.fixture(scope="module")
def model(tokenizer) -> Transformer:
    shape = {"d_model": 32, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "head_dim": 16, "d_ff": 64}
    return random_model(ModelShape(vocab=tokenizer.get_vocab_size(), context=CONTEXT, **shape), spread=0.3)


@pytest.fixture(scope="module")
def scorer(model, tokenizer) -> Scorer:
    return Scorer(model, tokenizer, start_id=0, weights="float32", slots=3)


@torch.inference_mode()
def brute_force(model: Transformer, text_ids: list[int], continuation_ids: list[int]) -> tuple[float, bool]:
    """One whole sequence, one forward pass, float64 softmax."""
    ids = text_ids + continuation_ids
    logprobs_tv = torch.log_softmax(model(torch.tensor([ids[:-1]]))[0].double(), dim=-1)[len(text_ids) - 1 :]
    picked = [float(row[token]) for row, token in zip(logprobs_tv, continuation_ids, strict=True)]
    greedy = logprobs_tv.argmax(dim=-1).tolist() == continuation_ids
    return sum(picked), greedy


PAIRS = [
    ("the sea was", " calm"),
    ("the sea was", " calm and the sailor sang"),
    ("the sea was", " not"),
    ("the cook said", " no"),
    ("", "a whale came near"),
    ("the sea was calm. the cook said", " no"),
    ("the sea was calm. the cook said", " yes"),
    ("the sea was", " calm"),
    ("你好，", "大海"),
    ("a", "b"),
]


def test_scores_are_those_of_whole_sequences(scorer, model, tokenizer):
    scores = scorer.score(PAIRS)
    for (text, continuation), score in zip(PAIRS, scores, strict=True):
        joint = tokenizer.encode(text + continuation).ids
        own = tokenizer.encode(text).ids
        boundary = 0
        while boundary < min(len(own), len(joint) - 1) and own[boundary] == joint[boundary]:
            boundary += 1
        logprob, is_greedy = brute_force(model, joint[:boundary] or [0], joint[boundary:])
        assert score.logprob == pytest.approx(logprob, abs=2e-4)
        assert score.is_greedy == is_greedy
        assert score.tokens == len(joint) - boundary
        assert score.cut_tokens == 0


def test_order_duplicates_and_the_number_of_slots_change_nothing(model, tokenizer, scorer):
    alone = [Scorer(model, tokenizer, start_id=0, weights="float32", slots=1).score([pair])[0] for pair in PAIRS]
    order = np.random.default_rng(5).permutation(len(PAIRS))
    shuffled = scorer.score([PAIRS[i] for i in order])
    for place, i in enumerate(order):
        assert shuffled[place] == alone[i]  # the step's arithmetic is the same in any batch


def test_a_beginning_that_texts_share_changes_nothing(model, tokenizer):
    shown = "the sea was calm and the sailor sang. the cook said no. "  # read once and copied to the other slots
    texts = [
        f"{start}{shown}{word} said" for start in ("", "a whale came near. ") for word in ("the cook", "a ship", "a")
    ]
    pairs = [(text, ending) for text in texts for ending in (" no", " the sea was calm")]
    together = Scorer(model, tokenizer, start_id=0, weights="float32", slots=4)
    for _ in range(2):  # the second time the slots hold the end of the first
        for pair, score in zip(pairs, together.score(pairs), strict=True):
            assert Scorer(model, tokenizer, start_id=0, weights="float32", slots=1).score([pair])[0] == score


@pytest.mark.parametrize("slots", [1, 4, 16])
def test_many_choices_of_few_texts_are_those_of_whole_sequences(model, tokenizer, slots):
    words = ["no", "sea", "calm and", "the ship", "whale came near the sea", "大海", "a", "cook said no the cook"]
    labels = [f" {one} {two}" for one in words for two in words] + [f" {one}" for one in words]  # 72 of 1 to 13 tokens
    pairs = [(text, label) for text in ("", "the sea was", "the cook said no. a") for label in labels]
    scorer = Scorer(model, tokenizer, start_id=0, weights="float32", slots=slots)
    order = np.random.default_rng(1).permutation(len(pairs))
    shuffled = [pairs[place] for place in order]
    told: list[int] = []
    scores = scorer.score(shuffled, told.append)
    assert sum(told) == len(pairs)
    assert min(told) > 0
    for encoded, score in zip(scorer.encode(shuffled), scores, strict=True):
        logprob, is_greedy = brute_force(model, list(encoded.text), list(encoded.continuation))
        assert score.logprob == pytest.approx(logprob, abs=1e-5)
        assert (score.is_greedy, score.tokens) == (is_greedy, len(encoded.continuation))


def _passes(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """New tokens of each slot, in each pass from now on."""
    passes: list[list[int]] = []
    forward = scorer.engine._form.forward

    def counted(slots, pasts, ids, last_only):
        passes.append([len(row) for row in ids])
        return forward(slots, pasts, ids, last_only)

    monkeypatch.setattr(scorer.engine._form, "forward", counted)
    return passes


def test_choices_of_one_token_cost_no_pass_and_no_last_token_is_read(model, tokenizer, monkeypatch):
    scorer = Scorer(model, tokenizer, start_id=0, weights="float32", slots=4)
    passes = _passes(scorer, monkeypatch)
    text, other = (5, 6, 7, 8), (9, 8, 7)
    scorer.score_ids([TokenPair(one, (token,), 0) for one in (text, other) for token in range(50)])
    assert passes == [[4, 3]]
    scorer.score_ids([TokenPair(text, (token,), 0) for token in range(50, 99)])
    assert passes == [[4, 3]], "a text of the call before is not read again"
    scorer.score_ids([TokenPair(text, (token, 3, 2), 0) for token in range(8)])
    assert passes == [[4, 3], [2, 2, 2, 2], [2, 2, 2, 2]], "idle slots take the continuations of the only text"
    scorer.engine.clear(0)
    scorer.engine.prefill(1, [1, 2, 3])  # as other users of the engine do
    del passes[:]
    again = scorer.score_ids([TokenPair(text, (token, 3), 0) for token in range(2)])
    assert [one.logprob for one in again] == pytest.approx(
        [brute_force(model, list(text), [token, 3])[0] for token in range(2)], abs=1e-5
    )


def test_rows_of_unequal_length_are_batched_by_length_in_plain_torch(model, tokenizer):
    from chinchilla_lm.generate.torch_form import TorchForm

    form = TorchForm(model, 4, CONTEXT, "float32")
    ids = [[1, 2, 3], [4], [5, 6, 7], [8]]
    together = form.forward(range(4), [0] * 4, ids, False)
    alone = torch.cat([TorchForm(model, 1, CONTEXT, "float32").forward([0], [0], [row], False) for row in ids])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_probabilities_of_all_single_tokens_sum_to_one(model, tokenizer):
    scorer = Scorer(model, tokenizer, start_id=0, weights="float32", slots=2)
    text = tuple(tokenizer.encode("the sea").ids)
    scores = scorer.score_ids([TokenPair(text, (token,), 0) for token in range(scorer.engine.vocab)])
    assert sum(np.exp(score.logprob) for score in scores) == pytest.approx(1, abs=1e-5)
    assert sum(score.is_greedy for score in scores) == 1


def test_a_long_text_is_cut_at_its_beginning_and_told(scorer, model, tokenizer):
    text = " the sea" * 60
    score = scorer.score([(text, " was calm")])[0]
    own, joint = tokenizer.encode(text).ids, tokenizer.encode(text + " was calm").ids
    rest = joint[len(own) :]
    kept = CONTEXT - (len(rest) - 1)
    assert score.cut_tokens == len(own) - kept
    assert score.logprob == pytest.approx(brute_force(model, own[-kept:], rest)[0], abs=2e-4)


def test_what_cannot_be_priced_is_refused(scorer):
    with pytest.raises(DataError, match="pair 2 has an empty continuation"):
        scorer.score([("a", "b"), ("a", "")])
    with pytest.raises(DataError, match="does not fit the context of 48"):
        scorer.score([("a", " the sea" * 80)])


@settings(max_examples=30)
@given(st.text(max_size=12), st.text(min_size=1, max_size=6))
def test_the_boundary_splits_the_joint_tokens(scorer, tokenizer, text, continuation):
    (pair,) = scorer.encode([(text, continuation)])
    joint = tokenizer.encode(text + continuation).ids
    whole = (*pair.text, *pair.continuation)
    assert whole in (tuple(joint), (0, *joint))
    own = tokenizer.encode(text).ids
    if pair.text != (0,):
        assert list(pair.text) == own[: len(pair.text)]


def test_many_continuations_of_one_text_are_shared_out_over_the_slots_and_priced_as_alone(scorer):
    continuations = [f" {first} {second}" for first in ("the", "a", "no") for second in ("sea", "cook", "ship", "said")]
    together = scorer.score([("", own) for own in continuations])
    for own, score in zip(continuations, together, strict=True):
        alone = scorer.score([("", own)])[0]
        assert score.tokens == alone.tokens
        assert score.logprob == pytest.approx(alone.logprob, abs=1e-4)
