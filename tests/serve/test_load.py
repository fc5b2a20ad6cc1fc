"""S3 and the count: no accepted request is lost, overload is said at once, answers do not depend on the company."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from tests.serve.conftest import Live, run_live, wait_until

from chinchilla_lm.serve.settings import Limits, ServerSettings


def bodies(count: int) -> list[dict]:
    words = ["The sea", "hello", "The cook wrote in", "你好", "sailor said nothing. " * 5]
    return [
        {"model": "tiny", "prompt": f"{words[i % len(words)]} {i}", "max_tokens": 1 + i % 13, "temperature": 0}
        for i in range(count)
    ]


def ask_all(live: Live, asked: list[dict], threads: int) -> list[str]:
    def ask(body: dict) -> str:
        answer = live.post("/v1/completions", body)
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"][0]["text"]

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(ask, asked))


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_sixteen_at_a_time_equal_one_at_a_time(tiny_folder, count):
    asked = bodies(count)
    with run_live(tiny_folder, ServerSettings(port=0, limits=Limits(slots=8, queue=32))) as live:
        together = ask_all(live, asked, 16)
        alone = ask_all(live, asked, 1)
    assert together == alone
    assert len(together) == count


def test_overload_is_429_and_no_accepted_request_is_lost(tiny_folder):
    limits = Limits(slots=2, queue=3)
    with run_live(tiny_folder, ServerSettings(port=0, limits=limits)) as live:
        body = {"model": "tiny", "prompt": "The sea", "max_tokens": 150, "temperature": 0, "logit_bias": {"0": -100}}
        with ThreadPoolExecutor(24) as pool:
            answers = list(pool.map(lambda _: live.post("/v1/completions", body), range(72)))
        statuses = [answer.status_code for answer in answers]
        assert set(statuses) == {200, 429}
        assert statuses.count(200) >= limits.max_requests
        assert len({answer.json()["choices"][0]["text"] for answer in answers if answer.status_code == 200}) == 1
        for answer in answers:
            if answer.status_code == 429:
                assert answer.headers["retry-after"] == "1"
                assert answer.json()["error"]["code"] == "queue_full"
        assert live.post("/v1/completions", body).status_code == 200  # places are given back


@pytest.mark.torture
def test_sixty_four_clients_on_eight_slots(tiny_folder):
    """S3: 64 clients, 8 slots, queue 32; refused ones come back after Retry-After; every one is answered in the end."""
    with run_live(tiny_folder, ServerSettings(port=0, limits=Limits(slots=8, queue=32))) as live:
        refused = []

        def insist(body: dict) -> str:
            for _ in range(1000):
                answer = live.post("/v1/completions", body)
                if answer.status_code == 200:
                    return answer.json()["choices"][0]["text"]
                assert answer.status_code in (429, 503)
                assert int(answer.headers["retry-after"]) >= 1
                refused.append(answer.status_code)
                wait_until(lambda: True)
            raise AssertionError("never served")

        asked = [body | {"max_tokens": 100} for body in bodies(640)]
        with ThreadPoolExecutor(64) as pool:
            texts = list(pool.map(insist, asked))
        print(f"640 answered, {len(refused)} refused on the way")
        assert texts[:50] == ask_all(live, asked[:50], 1)


def test_embeddings_and_lists_are_answered_while_texts_are_written(live):
    body = {"model": "tiny", "prompt": "The sea", "max_tokens": 180, "n": 4, "logit_bias": {"0": -100}}
    with ThreadPoolExecutor(4) as pool:
        long = [pool.submit(live.post, "/v1/completions", body) for _ in range(4)]
        for _ in range(5):
            assert live.post("/v1/embeddings", {"model": "tiny", "input": "a"}).status_code == 200
            assert live.get("/v1/models").status_code == 200
        assert [one.result().status_code for one in long] == [200] * 4


def test_metrics_count_what_happened(live):
    from prometheus_client.parser import text_string_to_metric_families

    def samples() -> dict[tuple, float]:
        page = live.get("/metrics")
        families = text_string_to_metric_families(page.text)
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in families
            for sample in family.samples
        }

    before = samples()
    asked = live.post("/v1/completions", {"model": "tiny", "prompt": "The sea", "max_tokens": 7, "temperature": 0})
    live.post("/v1/completions", {"model": "tiny"})
    live.get("/made/up/path")
    after = samples()
    usage = asked.json()["usage"]

    def grown(name: str, **labels: str) -> float:
        key = (name, tuple(sorted(labels.items())))
        return after[key] - before.get(key, 0)

    route = "/v1/completions"
    assert grown("chinchilla_requests_total", route=route, method="POST", status="200") == 1
    assert grown("chinchilla_requests_total", route=route, method="POST", status="400") == 1
    assert grown("chinchilla_requests_total", route="other", method="GET", status="404") == 1
    assert grown("chinchilla_tokens_total", kind="completion") == usage["completion_tokens"]
    assert grown("chinchilla_tokens_total", kind="prompt") == usage["prompt_tokens"]
    assert grown("chinchilla_time_to_first_token_seconds_count") == 1
    assert after["chinchilla_slots", ()] == 4


def test_a_metrics_page_needs_no_new_client(live):
    assert live.get("/metrics").headers["content-type"].startswith("text/plain; version=0.0.4")
    assert httpx2.get(live.url + "/metrics").status_code == 200
