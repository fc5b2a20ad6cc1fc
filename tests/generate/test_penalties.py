from __future__ import annotations

import tracemalloc
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tokenizers import Tokenizer

from chinchilla_lm.core.errors import ConfigError
from chinchilla_lm.generate.penalties import Penalties, bad_word_ids
from chinchilla_lm.generate.sampling import GREEDY, Sampling, choose_tokens, token_probabilities

VOCAB = 40
tokens = st.integers(0, VOCAB - 1)


def _our_distribution(
    logits_v: torch.Tensor, sampling: Sampling, prompt_ids: list[int], text_ids: list[int], bad_words: list[list[int]]
) -> torch.Tensor:
    penalties = Penalties(sampling, prompt_ids, bad_words, VOCAB)
    for token in text_ids:
        penalties.push(token)
    return token_probabilities(penalties.apply(logits_v)[None], sampling)[0]


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    prompt_ids=st.lists(tokens, min_size=1, max_size=8),
    text_ids=st.lists(tokens, max_size=8),
    bad_words=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3), max_size=3),
    bias=st.dictionaries(tokens, st.sampled_from([-100.0, -1.5, 0.5, 4.0]), max_size=3),
    repetition=st.sampled_from([0.5, 1.0, 1.3, 2.0]),
    temperature=st.sampled_from([0.3, 1.0, 1.9]),
    top_k=st.sampled_from([0, 1, 5, 30]),
    top_p=st.sampled_from([0.2, 0.7, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.4, 1.0]),
)
def test_the_distribution_equals_the_one_of_transformers(
    seed: int,
    prompt_ids: list[int],
    text_ids: list[int],
    bad_words: list[list[int]],
    bias: dict[int, float],
    repetition: float,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
) -> None:
    from transformers.generation import logits_process as theirs

    logits_v = torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed)) * 3
    chain = theirs.LogitsProcessorList()
    if bias:
        chain.append(theirs.SequenceBiasLogitsProcessor({(token,): value for token, value in bias.items()}))
    if repetition != 1:
        chain.append(theirs.RepetitionPenaltyLogitsProcessor(repetition))
    if bad_words:
        chain.append(theirs.NoBadWordsLogitsProcessor([list(word) for word in {tuple(word) for word in bad_words}]))
    chain.append(theirs.TemperatureLogitsWarper(temperature))
    if top_k:
        chain.append(theirs.TopKLogitsWarper(top_k))
    if top_p < 1:
        chain.append(theirs.TopPLogitsWarper(top_p))
    if min_p:
        chain.append(theirs.MinPLogitsWarper(min_p))
    expected_v = chain(torch.tensor([[*prompt_ids, *text_ids]]), logits_v[None].clone()).softmax(-1)[0]
    sampling = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition,
        logit_bias=bias,
    )
    torch.testing.assert_close(_our_distribution(logits_v, sampling, prompt_ids, text_ids, bad_words), expected_v)


@settings(max_examples=50, deadline=None)
@given(
    text_ids=st.lists(st.integers(0, 5), max_size=20),
    presence=st.sampled_from([-2.0, 0.0, 0.7]),
    frequency=st.sampled_from([-0.3, 0.0, 1.1]),
)
def test_presence_and_frequency_follow_openai_and_leave_the_prompt_alone(
    text_ids: list[int], presence: float, frequency: float
) -> None:
    logits = np.linspace(-2, 2, VOCAB)
    counts = Counter(text_ids)
    expected = [logits[t] - counts[t] * frequency - (counts[t] > 0) * presence for t in range(VOCAB)]
    penalties = Penalties(Sampling(presence_penalty=presence, frequency_penalty=frequency), [7, 7, 8], (), VOCAB)
    for token in text_ids:
        penalties.push(token)
    actual = penalties.apply(torch.tensor(logits, dtype=torch.float32))
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_the_logits_given_are_not_changed_and_a_copy_has_its_own_past() -> None:
    sampling = Sampling(repetition_penalty=2.0, presence_penalty=1.0, logit_bias={1: 3.0})
    penalties = Penalties(sampling, [2], [[3], [4, 5]], VOCAB)
    logits_v = torch.ones(VOCAB)
    before = penalties.apply(logits_v)
    penalties.copy().push(4)
    assert torch.equal(penalties.apply(logits_v), before)
    assert torch.equal(logits_v, torch.ones(VOCAB))


def test_draws_follow_the_penalised_softmax() -> None:
    draws = 20_000
    logits_v = torch.linspace(-1, 1, 8)
    sampling = Sampling(
        temperature=0.8, repetition_penalty=1.4, frequency_penalty=0.5, logit_bias={0: 1.0}, top_p=0.9, seed=3
    )
    penalties = Penalties(sampling, [7], [[5]], 8)
    for token in (6, 6, 2):
        penalties.push(token)
    penalised_v = penalties.apply(logits_v)
    generator = torch.Generator().manual_seed(sampling.seed)
    counts = np.bincount(choose_tokens(penalised_v.expand(draws, -1), sampling, generator).numpy(), minlength=8)
    logits = [0.0 + 1.0 - 1.0, -5 / 7, (-3 / 7) * 1.4 - 0.5, -1 / 7, 1 / 7, -np.inf, (5 / 7) / 1.4 - 1.0, 1 / 1.4]
    weights = np.exp(np.array(logits) / 0.8)
    probabilities = weights / weights.sum()
    order = np.argsort(-probabilities)
    kept = order[: int(np.searchsorted(np.cumsum(probabilities[order]), 0.9)) + 1]
    expected = np.zeros(8)
    expected[kept] = probabilities[kept] / probabilities[kept].sum()
    assert counts[expected == 0].sum() == 0
    assert stats.chisquare(counts[kept], expected[kept] * draws).pvalue > 0.001


def test_a_token_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"token 40 must be in \[0, 40\)"):
        Penalties(Sampling(logit_bias={40: 1.0}), [0], (), VOCAB)
    with pytest.raises(ConfigError, match=r"token 99 must be in \[0, 40\)"):
        Penalties(Sampling(), [0], [[1, 99]], VOCAB)


def test_bad_words_are_spelled_with_and_without_a_space(tokenizer: Tokenizer) -> None:
    spellings = bad_word_ids(tokenizer, ["ab"])
    assert [tokenizer.decode(list(ids)) for ids in spellings] == ["ab", " ab"]
    with pytest.raises(ConfigError, match="must not be empty"):
        bad_word_ids(tokenizer, [" "])


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": 0.009},
        {"repetition_penalty": 101.0},
        {"repetition_penalty": float("nan")},
        {"presence_penalty": 2.1},
        {"frequency_penalty": float("nan")},
        {"logit_bias": {-1: 0.0}},
        {"logit_bias": {1: 101.0}},
    ],
)
def test_a_wrong_setting_is_refused_with_its_rule(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} must be"):
        Sampling(**wrong)  # type: ignore[arg-type]


def test_many_texts_share_their_bad_words_and_a_prompt_that_no_penalty_looks_at() -> None:
    words = tuple(tuple(range(place, place + 250)) for place in range(200))
    prompt_ids = tuple(range(5000))
    tracemalloc.start()
    held = [Penalties(GREEDY, prompt_ids, words, 5000) for _ in range(50)]
    held_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held_bytes < len(held) * 10_000  # a list for each word had 400,000, the prompt's tokens 300,000


def test_of_long_bad_words_only_the_end_is_forbidden() -> None:
    past = Penalties(GREEDY, (1, 2), ((1, 2, 3), (7, 2, 4), (2, 5), (6,)), 8)
    assert (past.apply(torch.zeros(8)) == -torch.inf).nonzero().flatten().tolist() == [3, 5, 6]
    past.push(5)
    assert (past.apply(torch.zeros(8)) == -torch.inf).nonzero().flatten().tolist() == [6]
