"""What no client should send: 400 with OpenAI's error shape for all of it, never a 5xx, and the server lives on."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib.util
import json
import random
import string
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.serve.conftest import run_live

from chinchilla_lm.serve.api_errors import ApiError
from chinchilla_lm.serve.openai_schema import CompletionBody
from chinchilla_lm.serve.settings import Limits, ServerSettings
from chinchilla_lm.serve.strict_json import JsonRefused, parse_json
from chinchilla_lm.serve.translate import completion_requests

PLAIN = {"model": "tiny", "prompt": "The sea", "max_tokens": 4}
GOOD: list[tuple[str, dict[str, Any]]] = [
    (
        "/v1/completions",
        {
            "model": "tiny",
            "prompt": "The sea",
            "max_tokens": 2,
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 5,
            "min_p": 0.1,
            "n": 1,
            "stop": ["x"],
            "logprobs": 1,
            "echo": False,
            "seed": 1,
            "logit_bias": {"5": 1},
            "stream": False,
            "stream_options": None,
            "presence_penalty": 0.1,
            "frequency_penalty": 0.1,
            "repetition_penalty": 1.1,
            "bad_words": ["hello"],
            "best_of": 2,
            "response_format": {"type": "text"},
        },
    ),
    ("/v1/completions", PLAIN | {"guidance": {"prompt": "A cook", "scale": 1.5}, "n": 2, "stream": True}),
    ("/v1/completions", PLAIN | {"guided_choice": [" yes", " no"], "logprobs": 2}),
    ("/v1/completions", PLAIN | {"guided_regex": "[ab]{3}", "guidance": {"prompt": "b", "scale": -2}}),
    ("/v1/completions", PLAIN | {"guided_json": {"type": "object", "properties": {"a": {"enum": [1, "b"]}}}}),
    (
        "/v1/completions",
        PLAIN | {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "array"}}}},
    ),
    ("/v1/completions", PLAIN | {"prompt": [[1, 2], [3]], "response_format": {"type": "regex", "regex": "a|b"}}),
    (
        "/v1/chat/completions",
        {
            "model": "tiny",
            "messages": [
                {"role": "user", "content": "hello"},
                {"role": "assistant", "content": [{"type": "text", "text": "a"}]},
            ],
            "max_completion_tokens": 2,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": 1,
            "response_format": {"type": "labels", "labels": ["a", "b"]},
        },
    ),
    (
        "/v1/chat/completions",
        {
            "model": "tiny",
            "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hello", "name": "me"}],
            "max_tokens": 3,
            "guidance": {"system": "Be rude.", "scale": 2},
            "guided_choice": ["yes", "no"],
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    ),
    ("/v1/embeddings", {"model": "tiny", "input": ["a", "b"], "encoding_format": "float"}),
    ("/v1/embeddings", {"model": "tiny", "input": [[1, 2], [3]], "encoding_format": "base64", "user": "me"}),
    ("/v1/classify", {"model": "tiny", "input": "a"}),
    ("/v1/classify", {"model": "tiny", "input": [{"text": "a", "text_pair": "b"}]}),
    ("/v1/classify", {"model": "tiny", "input": {"question": "who", "context": "the sailor"}}),
    ("/v1/classify", {"model": "tiny", "input": {"text": "a b", "head": [0, 1], "tail": [2, 3]}}),
    ("/tokenize", {"prompt": "The sea", "add_special_tokens": True, "return_token_strs": True}),
    ("/detokenize", {"tokens": [1, 2, 3], "model": "tiny"}),
]
NEEDS_LIBRARY = ("guided_json", "guided_regex", "json_schema", '"regex"')
ODD_VALUES = [
    *(None, True, False, 0, 1, -1, 5.5, -0.0, 2**31, 2**63, 2**64, -(2**63), 1e308, float("1e-320"), 2**40),
    *("", "a", "\x00", "\ud7ff", "🚀" * 50, "1", "x" * 3000, "<|endoftext|>", "a\nb"),
    *(
        [],
        {},
        [[]],
        [[[]]],
        [None],
        [1, "a"],
        [[1], ["a"]],
        [2**40],
        [-1],
        [1.5],
        [0] * 300,
        [[0] * 150] * 3,
        ["a"] * 130,
    ),
    *({"a": 1}, {"": None}, {"type": "json_schema"}, {"type": "regex", "regex": "("}, {"type": "regex", "regex": "a*"}),
]
PROBES = {
    "nan": b'{"model":"tiny","prompt":"a","temperature":NaN}',
    "infinity": b'{"model":"tiny","prompt":"a","temperature":-Infinity}',
    "overflow": b'{"model":"tiny","prompt":"a","temperature":1e999}',
    "surrogate": b'{"model":"tiny","prompt":"\\ud800"}',
    "surrogate in a name": b'{"model":"tiny","prompt":"a","\\udfff":1}',
    "deep lists": b'{"model":"tiny","prompt":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "nested 200": b'{"model":"tiny","prompt":' + b"[" * 200 + b"]" * 200 + b"}",
    "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "bad UTF-8": b'{"model":"tiny","prompt":"\xff\xfe"}',
    "overlong UTF-8": b'{"model":"tiny","prompt":"\xc0\xaf"}',
    "5000 digits": b'{"model":"tiny","prompt":"a","max_tokens":' + b"9" * 5000 + b"}",
    "twice": b'{"model":"tiny","prompt":"a","prompt":"b"}',
    "empty": b"",
    "not json": b"prompt=a",
    "two documents": b'{"model":"tiny","prompt":"a"}{}',
    "a list": b"[]",
    "UTF-16": '{"model":"tiny","prompt":"a"}'.encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf" + b'{"model":"tiny","prompt":"a"}',
    "a million values": b'{"model":"tiny","prompt":[' + b"1," * 1_000_000 + b"1]}",
    "temperature below 0": b'{"model":"tiny","prompt":"a","temperature":-1}',
    "no new tokens": b'{"model":"tiny","prompt":"a","max_tokens":0}',
    "id outside": b'{"model":"tiny","prompt":[100000]}',
    "empty prompts": b'{"model":"tiny","prompt":[]}',
    "unknown form": b'{"model":"tiny","prompt":"a","response_format":{"type":"yaml"}}',
}


def post(live, path: str, content: bytes, **headers: str) -> httpx2.Response:
    return live.client.post(path, content=content, headers={"content-type": "application/json", **headers})


def check_answer(answer: httpx2.Response) -> None:
    assert answer.status_code < 500, answer.text
    assert '"server_error"' not in answer.text  # a stream's status has been sent before
    if answer.status_code >= 400:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        assert "\n" not in error["message"]


@pytest.mark.parametrize("probe", PROBES.values(), ids=PROBES.keys())
def test_a_malformed_body_is_a_400(live, probe):
    answer = post(live, "/v1/completions", probe)
    assert answer.status_code == 400 if len(probe) < live.server._limits.max_body_bytes else 413
    check_answer(answer)
    assert live.get("/health").status_code == 200


# Nothing may follow at once, after a word, in a form that cannot be followed at all.
IMPOSSIBLE = {
    "bad words against the labels": {"guided_choice": ["0"], "bad_words": ["0"]},
    "bad words against the end of an expression": {"guided_regex": "hello, 0", "bad_words": ["0"]},
    "a schema of nothing but itself": {"guided_json": {"$ref": "#"}},
}


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("wish", IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys())
def test_a_form_without_a_way_out_is_the_clients_error(live, wish, is_streamed):
    answer = live.post("/v1/completions", {"model": "tiny", "prompt": "The", "stream": is_streamed, **wish})
    check_answer(answer)
    assert answer.status_code == (200 if is_streamed and "bad_words" in wish else 400)
    last = json.loads(answer.text.split("data: ")[-2] if answer.status_code == 200 else answer.text)
    assert last["error"]["type"] == "invalid_request_error"
    assert "relax one" in last["error"]["message"] or "cannot be enforced" in last["error"]["message"]


def test_the_prompts_of_a_body_share_its_bad_words(live):
    body = CompletionBody(model="tiny", prompt=("a",) * 128, bad_words=("sea", "cook"))
    requests = completion_requests(body, live.served, Limits())
    assert len(requests[0].bad_words) == 4
    assert all(one.bad_words is requests[0].bad_words for one in requests)  # 128 times, long ones took 80 s to spell


def test_more_log_probabilities_than_an_answer_holds_are_refused(live):
    body = CompletionBody(model="tiny", prompt=((5,) * 180,) * 128, echo=True, max_tokens=10, logprobs=20, n=4)
    with pytest.raises(ApiError, match="20 for each of up to 97280 tokens are more than 1048576 log-probabilities"):
        completion_requests(body, live.served, Limits(max_texts=512))
    assert len(completion_requests(dataclasses.replace(body, n=2), live.served, Limits(max_texts=512))) == 128


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"stop": ["a"] * 17}, "0 to 16 entries, got 17"), ({"prompt": []}, "got 0"), ({"stop": 5}, "got 5")],
)
def test_a_list_that_is_wrong_is_told_what_is_wrong_with_it(live, wrong, said):
    answer = live.post("/v1/completions", PLAIN | wrong)
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]


def test_a_body_of_another_kind_is_refused(live):
    good = b'{"prompt": "The sea"}'
    assert post(live, "/tokenize", good, **{"content-type": "text/plain"}).status_code == 415
    assert post(live, "/tokenize", good, **{"content-encoding": "gzip"}).status_code == 415
    assert post(live, "/tokenize", good).status_code == 200


def test_unknown_routes_and_methods_have_the_error_shape(live):
    assert live.get("/v1/nothing").status_code == 404
    wrong = live.get("/v1/completions")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    check_answer(wrong)
    for path in ("/page/../../cli/serve.py", "/page/%2e%2e/app.py", "//etc/passwd", "/%00", "/" + "a" * 5000):
        answer = live.get(path)
        assert answer.status_code == 404, path
        check_answer(answer)


def test_the_good_bodies_are_good(live):
    has_library = importlib.util.find_spec("llguidance") is not None
    for path, body in GOOD:
        if has_library or not any(name in json.dumps(body) for name in NEEDS_LIBRARY):
            assert live.post(path, body).status_code == (404 if path == "/v1/classify" else 200), (path, body)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_mutated_bodies_never_break_the_server(live, seed):
    mutate_and_ask(live, random.Random(seed))


@pytest.fixture(scope="module")
def drafted(tiny_folder):
    with run_live(tiny_folder, ServerSettings(port=0, limits=Limits(slots=4)), draft="int8") as running:
        yield running


@pytest.mark.torture
@pytest.mark.parametrize("which", ["live", "drafted"])
def test_ten_thousand_mutations_never_break_the_server(which, request):
    """S1: 10,000 mutations, no 5xx, no hang, memory bounded, the server still answers."""
    live = request.getfixturevalue(which)
    before = resident_bytes()
    statuses: dict[int, int] = {}
    for seed in range(10_000):
        status = mutate_and_ask(live, random.Random(f"{which} {seed}"))
        statuses[status] = statuses.get(status, 0) + 1
    grown = resident_bytes() - before
    print(f"statuses {statuses}, memory grown by {grown / 2**20:.1f} MB")
    assert grown < 50 << 20
    assert live.get("/health").status_code == 200


def mutate_and_ask(live, rng: random.Random) -> int:
    path, good = rng.choice(GOOD)
    body = json.loads(json.dumps(good))
    for _ in range(rng.randint(1, 3)):
        mutate(body, rng)
    content = json.dumps(body, allow_nan=True).encode()
    if rng.random() < 0.2:  # also below JSON
        content = bytearray(content)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(content)) if content else 0
            if content and rng.random() < 0.5:
                content[at] = rng.randrange(256)
            else:
                del content[at : at + 1]
    answer = post(live, path, bytes(content))
    check_answer(answer)
    return answer.status_code


def mutate(body: Any, rng: random.Random) -> None:
    """Change one value, name or entry somewhere in a body."""
    while isinstance(body, (dict, list)) and body:
        place = rng.choice(list(body)) if isinstance(body, dict) else rng.randrange(len(body))
        if isinstance(body[place], (dict, list)) and body[place] and rng.random() < 0.5:
            body = body[place]
            continue
        kind = rng.random()
        if kind < 0.7:
            body[place] = copy.deepcopy(rng.choice(ODD_VALUES))
        elif kind < 0.85:
            del body[place]
        elif isinstance(body, dict):
            body["".join(rng.choices(string.printable, k=rng.randint(0, 8)))] = copy.deepcopy(rng.choice(ODD_VALUES))
        else:
            body.append(copy.deepcopy(rng.choice(ODD_VALUES)))
        return


def resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096


@given(st.recursive(st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(), st.lists, max_leaves=20))
def test_strict_json_reads_what_python_writes(value):
    assert parse_json(json.dumps(value).encode()) == value


@given(st.binary(max_size=60))
def test_strict_json_refuses_or_reads_any_bytes(content):
    with contextlib.suppress(JsonRefused):  # nothing else may come out
        parse_json(content)


@pytest.mark.torture
def test_schemathesis_finds_no_server_error(live):
    """S1: schemathesis over the served /openapi.json."""
    schemathesis = pytest.importorskip("schemathesis")
    from schemathesis.checks import not_a_server_error

    schema = schemathesis.openapi.from_url(live.url + "/openapi.json")
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(max_examples=150, suppress_health_check=list(HealthCheck), deadline=None)
        @given(case=operation.as_strategy())
        def ask(case):
            # Its 10 s are too few for 91 texts to the end of the context, which is work and no hang.
            case.call_and_validate(checks=[not_a_server_error], timeout=120)

        ask()
