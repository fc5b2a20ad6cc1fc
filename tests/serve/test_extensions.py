"""Extensions of the OpenAI interface: steering by a second prompt, and forms asked for as vLLM has them."""

from __future__ import annotations

import json
import re

import pytest

from chinchilla_lm.generate.completion import complete
from chinchilla_lm.generate.engine import Engine
from chinchilla_lm.generate.request import Guidance, Request, join_events
from chinchilla_lm.generate.sampling import Sampling
from chinchilla_lm.generate.text import encode_prompt


def test_guidance_steers_as_the_generator_does(live):
    served = live.served
    body = {"model": "tiny", "prompt": "The sea", "max_tokens": 12, "temperature": 0, "n": 2}
    found = live.post("/v1/completions", body | {"guidance": {"prompt": "A cook", "scale": 3}}).json()["choices"]
    request = Request(
        prompt_ids=tuple(encode_prompt(served.tokenizer, "The sea")),
        max_tokens=12,
        sampling=Sampling(temperature=0),
        guidance=Guidance(prompt_ids=tuple(encode_prompt(served.tokenizer, "A cook")), scale=3.0),
    )
    engine = Engine(served.trunk, slots=2)
    expected = join_events(complete(engine, served.tokenizer, request))[0].text
    assert [one["text"] for one in found] == [expected, expected]
    plain = live.post("/v1/completions", body).json()["choices"][0]["text"]
    assert expected != plain
    neutral = live.post("/v1/completions", body | {"guidance": {"prompt": "A cook", "scale": 1}}).json()["choices"]
    assert neutral[0]["text"] == plain


def test_guidance_in_a_chat_is_another_system_message(live):
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hello"}]
    chat = {"model": "tiny", "messages": messages, "max_tokens": 8, "temperature": 0}
    texts = [
        live.post("/v1/chat/completions", chat | more).json()["choices"][0]["message"]["content"]
        for more in ({}, {"guidance": {"system": "Be rude.", "scale": 1}}, {"guidance": {"system": "x", "scale": 4}})
    ]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"prompt": "A", "scale": 101}, "scale"),
        ({"prompt": "A"}, "scale"),
        ({"prompt": "A " * 400, "scale": 2}, "guidance.prompt"),
        ({"system": "A", "scale": 2}, "system"),
    ],
)
def test_wrong_guidance_is_refused(live, wrong, words):
    answer = live.post("/v1/completions", {"model": "tiny", "prompt": "a", "guidance": wrong})
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("guided", "pattern"),
    [
        ({"guided_choice": [" yes", " no"]}, r" yes| no"),
        ({"guided_regex": "[ab]{3}"}, r"[ab]{3}"),
        ({"guided_json": {"type": "array", "items": {"enum": [1, 2]}, "maxItems": 3}}, r"\[[12,]*\]"),
    ],
)
def test_a_form_may_be_asked_for_as_vllm_has_it(live, guided, pattern):
    if "guided_choice" not in guided:
        pytest.importorskip("llguidance")
    body = {"model": "tiny", "prompt": "a", "max_tokens": 30, "seed": 1} | guided
    assert re.fullmatch(pattern, live.post("/v1/completions", body).json()["choices"][0]["text"])
    both = live.post("/v1/completions", body | {"response_format": {"type": "json_object"}})
    assert both.status_code == 400
    assert "give one of them" in both.json()["error"]["message"]


def test_a_stream_keeps_its_lines_whatever_signs_the_text_has(live):
    signs = "a\u2028b\u0085c\u2029d\n\re\x0b\x1c"
    body = {"model": "tiny", "prompt": "The", "max_tokens": 40, "guided_regex": re.escape(signs), "stream": True}
    with live.client.stream("POST", "/v1/completions", json=body) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == signs
