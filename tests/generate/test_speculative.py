from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from tokenizers import Tokenizer

from chinchilla_lm.core.errors import ConfigError
from chinchilla_lm.generate.completion import complete
from chinchilla_lm.generate.constraint import LabelConstraint
from chinchilla_lm.generate.engine import Engine
from chinchilla_lm.generate.request import Request, join_events
from chinchilla_lm.generate.sampling import GREEDY, Sampling
from chinchilla_lm.generate.speculative import Speculator
from chinchilla_lm.model.transformer import Transformer

PENALISED = Sampling(temperature=0.0, repetition_penalty=1.3, frequency_penalty=0.4, logit_bias={3: 0.5})


@pytest.fixture(scope="module")
def sibling(model: Transformer, random_model: Callable[..., Transformer]) -> Transformer:
    """The model with noise: it agrees now and then."""
    sibling = random_model()
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in sibling.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.03)
    return sibling


@pytest.mark.parametrize("guesses", [1, 3, 6])
@pytest.mark.parametrize("sampling", [GREEDY, PENALISED], ids=["plain", "penalised"])
def test_greedy_text_is_the_same_with_a_draft(
    model: Transformer, sibling: Transformer, tokenizer: Tokenizer, guesses: int, sampling: Sampling
) -> None:
    request = Request(
        prompt_ids=(5, 77, 200), max_tokens=500, sampling=sampling, stop_ids=(), stop=("zzzz",), logprobs=2
    )
    expected = join_events(complete(Engine(model, slots=1), tokenizer, request))
    speculator = Speculator(Engine(model, slots=1), Engine(sibling, slots=1), guesses=guesses)
    actual = join_events(speculator.complete(tokenizer, request))
    assert actual[0].token_ids == expected[0].token_ids
    assert len(actual[0].token_ids) == 93  # to the end of the context
    assert (actual[0].text, actual[0].finish_reason) == (expected[0].text, expected[0].finish_reason)
    for ours, theirs in zip(actual[0].logprobs, expected[0].logprobs, strict=True):
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
    acceptance = speculator.acceptance
    assert 0 < acceptance.rate < 1
    assert acceptance.tokens == 93
    assert acceptance.passes == 93 - 1 - acceptance.accepted


def test_a_draft_that_is_the_model_is_always_right(model: Transformer) -> None:
    speculator = Speculator(Engine(model, slots=1), Engine(model, slots=1), guesses=4)
    for sampling in (GREEDY, Sampling(temperature=1.0, seed=3)):
        assert len([*speculator.decode([5, 6], sampling)]) == 94
    assert speculator.acceptance.rate > 0.98  # less than 1 only by rounding: one pass reads 5 tokens, the other 1


@pytest.mark.parametrize("guesses", [1, 2])
def test_sampled_texts_have_the_distribution_of_the_model(
    random_model: Callable[..., Transformer], guesses: int
) -> None:
    """Texts of 3 tokens over 5 words against the exact product of softmaxes."""
    target = random_model(vocab=5, d_model=16, n_layers=1, n_heads=2, n_kv_heads=2, context=8, scale=0.5)
    draft = random_model(vocab=5, d_model=16, n_layers=1, n_heads=2, n_kv_heads=2, context=8, scale=0.5, seed=77)
    draws, prompt_ids = 1500, [1, 4]
    speculator = Speculator(Engine(target, slots=1), Engine(draft, slots=1), guesses=guesses)
    counts = np.zeros(125)
    for seed in range(draws):
        texts = speculator.decode(prompt_ids, Sampling(temperature=0.9, top_k=4, seed=seed))
        a, b, c = (next(texts)[0] for _ in range(3))
        counts[a * 25 + b * 5 + c] += 1
    texts_nt = torch.cartesian_prod(*[torch.arange(5)] * 3)
    with torch.no_grad():
        logits_ntv = target(torch.cat([torch.tensor([prompt_ids]).expand(125, -1), texts_nt], 1))[:, 1:4].double() / 0.9
    logits_ntv[logits_ntv < logits_ntv.topk(4).values[..., -1:]] = -torch.inf
    exact = logits_ntv.softmax(-1).gather(-1, texts_nt[..., None])[..., 0].prod(-1).numpy()
    assert 0.1 < speculator.acceptance.rate < 0.95
    assert counts[exact == 0].sum() == 0
    common = exact * draws >= 5  # the usual rule for the chi-square approximation
    expected = [*(exact[common] * draws), exact[~common].sum() * draws]
    assert stats.chisquare([*counts[common], counts[~common].sum()], expected).pvalue > 0.001


def test_a_draft_with_a_shorter_context_only_helps_less(
    model: Transformer, random_model: Callable[..., Transformer]
) -> None:
    speculator = Speculator(Engine(model, slots=1), Engine(random_model(context=20), slots=1))
    tokens = [token for token, _ in speculator.decode([5, 6], GREEDY)]
    engine = Engine(model, slots=1)
    logits_v = engine.prefill(0, [5, 6])
    expected = []
    for _ in range(94):
        expected.append(int(logits_v.argmax()))
        if len(expected) < 94:
            logits_v = engine.decode([0], expected[-1:])[0]
    assert tokens == expected


def test_what_a_draft_cannot_serve_is_refused(
    model: Transformer, tokenizer: Tokenizer, random_model: Callable[..., Transformer]
) -> None:
    with pytest.raises(ConfigError, match="vocabulary of 12 must be the model's of 257"):
        Speculator(Engine(model, slots=1), Engine(random_model(vocab=12), slots=1))
    speculator = Speculator(Engine(model, slots=1), Engine(model, slots=1))
    for wish in ({"n": 2}, {"constraint": LabelConstraint(labels=("a",))}):
        with pytest.raises(ConfigError, match="a draft serves one choice"):
            next(speculator.complete(tokenizer, Request(prompt_ids=(1,), **wish)))  # type: ignore[arg-type]
