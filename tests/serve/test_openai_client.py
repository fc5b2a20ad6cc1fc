"""The official OpenAI client drives every route, streamed and not; the answers are those of our own generator."""

from __future__ import annotations

import base64
import struct

import openai
import pytest
import torch

from chinchilla_lm.generate.completion import generate
from chinchilla_lm.generate.sampling import GREEDY
from chinchilla_lm.serve.answers import LARGE_ENTRIES

PROMPTS = ["The sea", "The sailor said hello, and the", "你好", "1872"]


@pytest.fixture(scope="module")
def client(live) -> openai.OpenAI:
    return openai.OpenAI(base_url=live.url + "/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def greedy_texts(live) -> dict[str, str]:
    model, tokenizer = live.served.trunk, live.served.tokenizer
    return {prompt: generate(model, tokenizer, prompt, max_tokens=12, sampling=GREEDY).text for prompt in PROMPTS}


def ask(client: openai.OpenAI, prompt, **options):
    return client.completions.create(model="tiny", prompt=prompt, max_tokens=12, temperature=0, **options)


def test_a_completion_is_what_our_generator_writes(client, greedy_texts):
    answer = ask(client, PROMPTS[0])
    assert answer.choices[0].text == greedy_texts[PROMPTS[0]]
    assert answer.object == "text_completion"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_streamed_chunks_join_to_the_whole(client, greedy_texts):
    chunks = list(ask(client, PROMPTS[1], stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == greedy_texts[PROMPTS[1]]
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-1] in ("stop", "length")
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == ask(client, PROMPTS[1]).usage.completion_tokens


def test_a_list_of_prompts_is_answered_in_its_order(client, greedy_texts):
    answer = ask(client, PROMPTS)
    assert [choice.text for choice in answer.choices] == [greedy_texts[prompt] for prompt in PROMPTS]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]


def test_token_ids_mean_the_same_as_text(client, live, greedy_texts):
    ids = [live.served.tokenizer.encode(prompt).ids for prompt in PROMPTS]
    assert ask(client, ids[0]).choices[0].text == greedy_texts[PROMPTS[0]]
    assert [choice.text for choice in ask(client, ids).choices] == [greedy_texts[prompt] for prompt in PROMPTS]


def test_several_choices_of_several_prompts_have_one_index_each(client):
    answer = client.completions.create(model="tiny", prompt=PROMPTS[:2], max_tokens=5, n=3, seed=7, temperature=1)
    assert [choice.index for choice in answer.choices] == list(range(6))
    again = client.completions.create(model="tiny", prompt=PROMPTS[:2], max_tokens=5, n=3, seed=7, temperature=1)
    assert [choice.text for choice in answer.choices] == [choice.text for choice in again.choices]
    streamed = client.completions.create(
        model="tiny", prompt=PROMPTS[:2], max_tokens=5, n=3, seed=7, temperature=1, stream=True
    )
    texts = dict.fromkeys(range(6), "")
    for chunk in streamed:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert list(texts.values()) == [choice.text for choice in answer.choices]


def test_best_of_returns_n(client):
    answer = client.completions.create(model="tiny", prompt="The", max_tokens=5, n=2, best_of=4, temperature=1, seed=1)
    assert len(answer.choices) == 2


def test_echo_with_logprobs_scores_the_prompt(client, live):
    """The log-probabilities are those of the model's own forward pass."""
    prompt = PROMPTS[1]
    ids = live.served.tokenizer.encode(prompt).ids
    answer = client.completions.create(model="tiny", prompt=prompt, max_tokens=1, temperature=0, echo=True, logprobs=3)
    with torch.no_grad():
        logprobs_tv = live.served.trunk(torch.tensor([ids]))[0].log_softmax(-1)
    expected = [float(logprobs_tv[place, token]) for place, token in enumerate(ids[1:])]
    found = answer.choices[0].logprobs
    assert answer.choices[0].text.startswith(prompt)
    assert len(found.tokens) == len(ids) + 1
    assert found.token_logprobs[0] is None
    assert found.token_logprobs[1:-1] == pytest.approx(expected, abs=1e-4)
    assert found.token_logprobs[-1] == pytest.approx(float(logprobs_tv[-1].max()), abs=1e-4)
    assert all(prompt.startswith(token, at) for token, at in zip(found.tokens[:-1], found.text_offset, strict=False))


def test_an_answer_of_many_logprobs_is_that_of_few(client, live):
    """It is written in another thread, whole and streamed."""
    prompts = [[1 + (place + shift) % 200 for place in range(150)] for shift in range(4)]
    options = {"model": "tiny", "max_tokens": 8, "temperature": 0, "echo": True, "logprobs": 20}
    few = [client.completions.create(prompt=prompt, **options).choices[0] for prompt in prompts]
    many = client.completions.create(prompt=prompts, **options).choices
    assert len(many) * 158 * 21 > LARGE_ENTRIES > 158 * 21
    assert [(one.text, one.logprobs, one.finish_reason) for one in many] == [
        (one.text, one.logprobs, one.finish_reason) for one in few
    ]
    found = [([], []) for _ in prompts]
    for chunk in client.completions.create(prompt=prompts, stream=True, **options):
        found[chunk.choices[0].index][0].extend(chunk.choices[0].logprobs.top_logprobs)
        found[chunk.choices[0].index][1].extend(chunk.choices[0].logprobs.text_offset)
    assert found == [(one.logprobs.top_logprobs, one.logprobs.text_offset) for one in few]


def test_echo_without_new_tokens_only_scores(client):
    answer = client.completions.create(model="tiny", prompt="The sea", max_tokens=0, echo=True, logprobs=0)
    assert answer.choices[0].text == "The sea"
    assert answer.usage.completion_tokens == 0


def test_a_stop_string_ends_the_text_before_it(client, greedy_texts):
    whole = greedy_texts[PROMPTS[1]]
    stop = whole[4:6]
    answer = ask(client, PROMPTS[1], stop=[stop])
    assert answer.choices[0].text == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_a_bias_of_100_forces_a_token(client, live):
    token = live.served.tokenizer.encode(" sea").ids[0]
    answer = client.completions.create(
        model="tiny", prompt="The", max_tokens=3, temperature=0, logit_bias={str(token): 100}
    )
    assert answer.choices[0].text == " sea sea sea"


def test_a_chat_is_the_completion_of_its_template(client, live):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    ]
    chat = client.chat.completions.create(model="tiny", messages=messages, max_completion_tokens=9, temperature=0)
    plain = client.completions.create(
        model="tiny", prompt="system: Be brief.\nuser: Hi\nassistant: ", max_tokens=9, temperature=0
    )
    assert chat.choices[0].message.role == "assistant"
    assert chat.choices[0].message.content == plain.choices[0].text
    chunks = list(
        client.chat.completions.create(
            model="tiny", messages=messages, max_completion_tokens=9, temperature=0, stream=True
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == plain.choices[0].text


def test_a_chat_gives_logprobs(client):
    answer = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "Hi"}],
        max_tokens=4,
        temperature=0,
        logprobs=True,
        top_logprobs=2,
    )
    entries = answer.choices[0].logprobs.content
    assert all(len(entry.top_logprobs) == 2 for entry in entries)
    assert all(entry.logprob == entry.top_logprobs[0].logprob for entry in entries)  # greedy takes the likeliest
    assert (
        b"".join(bytes(entry.bytes) for entry in entries).decode(errors="replace") == answer.choices[0].message.content
    )


def test_a_form_is_kept(client):
    answer = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "yes or no?"}],
        extra_body={"response_format": {"type": "labels", "labels": ["yes", "no"]}},
    )
    assert answer.choices[0].message.content in ("yes", "no")


def test_a_json_schema_is_kept(client):
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    answer = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "json"}],
        seed=3,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    )
    assert answer.choices[0].message.content in ('{"a":1}', '{"a":2}')


def test_embeddings_are_unit_means_of_hidden_states(client, live):
    answer = client.embeddings.create(model="tiny", input=["The sea", "hello"], encoding_format="float")
    ids = live.served.tokenizer.encode("The sea").ids
    with torch.no_grad():
        mean_d = live.served.trunk.hidden(torch.tensor([ids]))[0].mean(0)
    assert answer.data[0].embedding == pytest.approx((mean_d / mean_d.norm()).tolist(), abs=1e-5)
    packed = live.post("/v1/embeddings", {"model": "tiny", "input": "The sea", "encoding_format": "base64"}).json()
    raw = base64.b64decode(packed["data"][0]["embedding"])
    assert struct.unpack(f"<{len(raw) // 4}f", raw) == pytest.approx(answer.data[0].embedding, abs=1e-6)


def test_the_model_is_listed_and_found(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="is not served"):
        client.models.retrieve("large")


def test_another_models_name_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="gpt-4", prompt="a")
    assert caught.value.code == "model_not_found"


def test_an_unknown_field_is_refused_and_the_right_one_named(client):
    with pytest.raises(openai.BadRequestError, match="did you mean max_tokens") as caught:
        client.completions.create(model="tiny", prompt="a", extra_body={"max_token": 3})
    assert caught.value.param == "max_token"


def test_what_openai_has_and_we_lack_is_said(client):
    with pytest.raises(openai.BadRequestError, match="response_format"):
        client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "a"}],
            tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}],
        )


def test_a_prompt_beyond_the_context_is_refused_with_the_numbers(client, live):
    ids = [5] * live.served.capacity
    with pytest.raises(openai.BadRequestError, match="has 192 tokens and may have 191") as caught:
        client.completions.create(model="tiny", prompt=ids)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="ask for at most 92"):
        client.completions.create(model="tiny", prompt=ids[:100], max_tokens=93)


def test_tokenize_and_detokenize_are_inverse(live):
    text = "The sea 你好 🚀"
    tokens = live.post("/tokenize", {"prompt": text}).json()["tokens"]
    assert tokens == live.served.tokenizer.encode(text).ids
    assert live.post("/detokenize", {"tokens": tokens}).json() == {"prompt": text}
    words = live.post("/tokenize", {"prompt": "The sea", "return_token_strs": True}).json()["token_strs"]
    assert "".join(words) == "The sea"


def test_classification_without_a_head_is_not_found(live):
    answer = live.post("/v1/classify", {"model": "tiny", "input": "a"})
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "no_classification_head"
