"""P2: lm-eval's local-completions asks the server and gets the scores that lm-eval computes in its own process."""

from __future__ import annotations

import pytest
from tests.serve.conftest import CONTEXT

PAIRS = [
    ("The sailor said", " hello, and the sea"),
    ("The sea", " said nothing."),
    ("你好，", "大海 🚀"),
    ("The cook wrote in", " 1872."),
    ("", "The sailor"),
    ("The sailor said hello. " * 60, "And the sea?"),  # cut to the context by lm-eval
]


@pytest.mark.slow
def test_scores_through_the_server_are_those_in_process(live, tiny_folder):
    pytest.importorskip("lm_eval", reason="needs the extra eval")
    pytest.importorskip("tenacity", reason="needs lm-eval[api]")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    remote = LocalCompletionsAPI(
        model="tiny",
        base_url=f"{live.url}/v1/completions",
        tokenizer=str(tiny_folder),
        tokenizer_backend="huggingface",
        max_length=CONTEXT,  # it sends one less, the continuation included, to have room for a token
        batch_size=2,
        num_concurrent=1,
    )
    # It does not count the last token of the continuation: both now read CONTEXT - 1 tokens at most.
    local = HFLM(pretrained=str(tiny_folder), device="cpu", max_length=CONTEXT - 2, dtype="float32", batch_size=1)
    asked = [
        Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=index) for index, pair in enumerate(PAIRS)
    ]
    expected, found = local.loglikelihood(asked), remote.loglikelihood(asked)
    for (their_score, their_greedy), (our_score, our_greedy) in zip(expected, found, strict=True):
        assert our_score == pytest.approx(their_score, abs=1e-4)
        assert our_greedy == their_greedy
    wishes = {"until": ["sea"], "max_gen_toks": 12, "temperature": 0.0}
    asked = [
        Instance(request_type="generate_until", doc={}, arguments=(context, dict(wishes)), idx=index)
        for index, (context, _) in enumerate(PAIRS[:4])
    ]
    expected_texts, found_texts = local.generate_until(asked), remote.generate_until(asked)
    assert len(expected_texts) == len(found_texts) == 4
    assert found_texts == expected_texts
