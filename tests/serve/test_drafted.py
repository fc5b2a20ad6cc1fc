"""A server with a draft: the same texts, whatever is asked; how a draft is found."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.serve.conftest import connect, make_folder, raw_request, run_live, wait_until

from chinchilla_lm.core.errors import ConfigError
from chinchilla_lm.serve.draft import find_draft
from chinchilla_lm.serve.served_model import load_served_model
from chinchilla_lm.serve.settings import Limits, ServerSettings

MORE = (
    {},
    {"temperature": 0},
    {"temperature": 0, "echo": True, "logprobs": 1},
    {"n": 2},
    {"response_format": {"type": "labels", "labels": ["a", "the"]}},
    {"top_p": 0.8, "stop": ["e"]},
)


def bodies() -> list[dict]:
    return [
        {"model": "tiny", "prompt": f"The sea {index}", "max_tokens": 20, "seed": index} | more
        for index, more in enumerate(MORE * 2)
    ]


@pytest.fixture(scope="module", params=["int8", "itself"])
def drafted(tiny_folder, request):
    word = "int8" if request.param == "int8" else str(tiny_folder)
    with run_live(tiny_folder, ServerSettings(port=0, limits=Limits(slots=3)), draft=word) as running:
        yield running


def test_texts_are_those_without_a_draft(drafted, live):
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda body: drafted.post("/v1/completions", body).json()["choices"], bodies()))
    assert found == [live.post("/v1/completions", body).json()["choices"] for body in bodies()]
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 9, "seed": 1}
    answers = [one.post("/v1/chat/completions", chat).json() for one in (drafted, live)]
    assert answers[0]["choices"] == answers[1]["choices"]
    counts = drafted.served.scheduler.statistics()
    assert counts.draft_kept > 0.4 * counts.draft_guesses > 0  # random weights rounded to int8 agree so often
    assert f"chinchilla_draft_kept_total {counts.draft_kept:.1f}" in drafted.get("/metrics").text


def test_a_text_for_a_client_that_left_stops(drafted):
    body = {"model": "tiny", "prompt": "The", "max_tokens": 180, "logit_bias": {"0": -100}, "stream": True}
    with connect(drafted) as connection:
        connection.sendall(raw_request("/v1/completions", body))
        connection.recv(10)
    wait_until(lambda: drafted.served.scheduler.statistics().running == 0)
    assert drafted.post("/v1/completions", bodies()[0]).status_code == 200
    wait_until(lambda: "chinchilla_running 0.0" in drafted.get("/metrics").text)


def test_auto_takes_the_largest_draft_of_a_run(tiny_folder, tmp_path):
    with pytest.raises(ConfigError, match="has no drafts/"):
        find_draft(tmp_path, "auto")
    for name in ("9000", "12000", "notes"):
        shutil.copytree(tiny_folder, tmp_path / "drafts" / name)
    (tmp_path / "drafts" / "50000").mkdir()  # cut off before it was written
    assert find_draft(tmp_path, "auto").name == "12000"
    shutil.copytree(tiny_folder, tmp_path / "model")
    served = load_served_model(tmp_path, draft="auto", limits=Limits(slots=2))
    served.close(1.0)


def test_a_draft_with_another_tokenizer_is_refused(tiny_folder, tmp_path):
    other = make_folder(tmp_path)
    text = (other / "tokenizer.json").read_text(encoding="utf-8")
    (other / "tokenizer.json").write_text(text.replace("<|endoftext|>", "<|endoftext!|>"), encoding="utf-8")
    with pytest.raises(ConfigError, match="another tokenizer"):
        load_served_model(tiny_folder, draft=str(other))
