"""A server with a draft: the same greedy texts, one at a time, and plain words for what it cannot do."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.serve.conftest import connect, make_folder, raw_request, run_live, wait_until

from chinchilla_lm.core.errors import ConfigError
from chinchilla_lm.serve.served_model import load_served_model
from chinchilla_lm.serve.settings import Limits, ServerSettings

ONE = Limits(slots=1, queue=8)


def bodies() -> list[dict]:
    return [
        {"model": "tiny", "prompt": f"The sea {index}", "max_tokens": 20, "temperature": 0, "echo": index % 2 == 0}
        for index in range(6)
    ]


@pytest.fixture(scope="module")
def drafted(tiny_folder):
    with run_live(tiny_folder, ServerSettings(port=0, limits=ONE), draft=tiny_folder) as running:
        yield running


def test_greedy_texts_are_those_without_a_draft(drafted, live):
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda body: drafted.post("/v1/completions", body).json()["choices"], bodies()))
    assert found == [live.post("/v1/completions", body).json()["choices"] for body in bodies()]
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 9, "temperature": 0}
    answers = [one.post("/v1/chat/completions", chat).json() for one in (drafted, live)]
    assert answers[0]["choices"] == answers[1]["choices"]
    assert drafted.served.scheduler._speculator.acceptance.rate > 0.9  # the draft is the model itself


def test_what_a_draft_cannot_serve_is_refused(drafted):
    for more in ({"n": 2}, {"response_format": {"type": "labels", "labels": ["a"]}}, {"echo": True, "logprobs": 1}):
        answer = drafted.post("/v1/completions", bodies()[0] | more)
        assert answer.status_code == 400
        assert "draft" in answer.json()["error"]["message"]


def test_a_text_for_a_client_that_left_stops(drafted):
    body = {"model": "tiny", "prompt": "The", "max_tokens": 180, "logit_bias": {"0": -100}, "stream": True}
    with connect(drafted) as connection:
        connection.sendall(raw_request("/v1/completions", body))
        connection.recv(10)
    wait_until(lambda: drafted.served.scheduler.statistics().running == 0)
    assert drafted.post("/v1/completions", bodies()[0]).status_code == 200
    wait_until(lambda: "chinchilla_running 0.0" in drafted.get("/metrics").text)


def test_a_draft_that_does_not_fit_is_refused(tiny_folder, tmp_path):
    with pytest.raises(ConfigError, match="slots is 8"):
        load_served_model(tiny_folder, draft=tiny_folder)
    short = make_folder(tmp_path, context=64)
    with pytest.raises(ConfigError, match="context of 64 is shorter"):
        load_served_model(tiny_folder, limits=ONE, draft=short)
