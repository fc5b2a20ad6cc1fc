"""The bodies of every POST route: OpenAI's fields that this server honours, and a few of other servers'.

A field that is not here is refused (see `fields`); what OpenAI has and we lack is named with what to do instead. The
documentation page and /openapi.json are made from these declarations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from chinchilla_lm.generate.request import LARGEST_SCALE
from chinchilla_lm.generate.sampling import LARGEST_BIAS, LARGEST_PENALTY, REPETITION_RANGE
from chinchilla_lm.serve.fields import (
    anything,
    boolean,
    choice,
    either,
    integer,
    many,
    number,
    number_by_id,
    objects,
    optional,
    text,
    wanted,
)

MOST_TOKENS = 1 << 24  # of a context: model_config's own bound; the model's is checked when the prompt is known
MOST_CHARACTERS = 1 << 27  # of a text; the largest body that a server may be set to take is smaller
MOST_LOGPROBS = 20  # OpenAI's bound
MOST_CHOICES = 128  # OpenAI's bound
MOST_STOPS = 16  # OpenAI takes 4
LONGEST_STOP = 256
MOST_INPUTS = 2048  # OpenAI's bound on embeddings; `Limits.max_texts` is lower

_TOKEN_IDS = many(integer(0, MOST_TOKENS))
_PROMPT = either(
    "a string, a list of strings, a list of token ids or a list of such lists",
    text(),
    many(text(), most=MOST_INPUTS),
    _TOKEN_IDS,
    many(_TOKEN_IDS, most=MOST_INPUTS),
)
_STOP = either(
    "a string or a list of strings", text(1, LONGEST_STOP), many(text(1, LONGEST_STOP), least=0, most=MOST_STOPS)
)


@dataclass(frozen=True, kw_only=True)
class JsonSchemaPart:
    """`response_format.json_schema`."""

    name: str = wanted(text(1, 64))
    schema: Any = wanted(anything())
    description: str = optional(text(0, 4096), "")
    strict: bool = optional(boolean(), True)


@dataclass(frozen=True, kw_only=True)
class ResponseFormat:
    """The form that the text must have; `regex` and `labels` are ours."""

    type: str = wanted(choice("text", "json_object", "json_schema", "regex", "labels"))
    json_schema: JsonSchemaPart | None = optional(objects(JsonSchemaPart))
    regex: str | None = optional(text(1, 4096))
    labels: tuple[str, ...] | None = optional(many(text(1, 1024), most=1024))


@dataclass(frozen=True, kw_only=True)
class PromptGuidance:
    """Steering away from a second prompt (ours): log-probabilities are second + scale * (first - second)."""

    prompt: str = wanted(text())
    scale: float = wanted(number(-LARGEST_SCALE, LARGEST_SCALE))


@dataclass(frozen=True, kw_only=True)
class ChatGuidance:
    """The same away from the conversation under another system message."""

    system: str = wanted(text())
    scale: float = wanted(number(-LARGEST_SCALE, LARGEST_SCALE))


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """`include_usage`: a last chunk with the number of tokens."""

    include_usage: bool = optional(boolean(), False)
    include_obfuscation: bool = optional(choice(False), False)


@dataclass(frozen=True, kw_only=True)
class GenerationBody:
    """What completions and chat share: how tokens are chosen, how many texts, where they end."""

    model: str = wanted(text(1, 512))
    temperature: float = optional(number(0, 2), 1.0)
    top_p: float = optional(number(0, 1, excludes_least=True), 1.0)
    top_k: int = optional(integer(0, MOST_TOKENS), 0)
    min_p: float = optional(number(0, 1), 0.0)
    repetition_penalty: float = optional(number(*REPETITION_RANGE), 1.0)
    presence_penalty: float = optional(number(-LARGEST_PENALTY, LARGEST_PENALTY), 0.0)
    frequency_penalty: float = optional(number(-LARGEST_PENALTY, LARGEST_PENALTY), 0.0)
    logit_bias: dict[int, float] | None = optional(number_by_id(-LARGEST_BIAS, LARGEST_BIAS))
    bad_words: tuple[str, ...] = optional(many(text(1, LONGEST_STOP), least=0, most=256), ())
    seed: int | None = optional(integer(0, (1 << 63) - 1))
    stop: str | tuple[str, ...] | None = optional(_STOP)
    n: int = optional(integer(1, MOST_CHOICES), 1)
    stream: bool = optional(boolean(), False)
    stream_options: StreamOptions | None = optional(objects(StreamOptions))
    response_format: ResponseFormat | None = optional(objects(ResponseFormat))
    guided_json: Any = optional(anything())
    guided_regex: str | None = optional(text(1, 4096))
    guided_choice: tuple[str, ...] | None = optional(many(text(1, 1024), most=1024))
    user: str | None = optional(text(0, 512))


@dataclass(frozen=True, kw_only=True)
class CompletionBody(GenerationBody):
    """POST /v1/completions."""

    prompt: str | tuple[Any, ...] = wanted(_PROMPT)
    max_tokens: int | None = optional(integer(0, MOST_TOKENS))
    best_of: int | None = optional(integer(1, MOST_CHOICES))
    echo: bool = optional(boolean(), False)
    guidance: PromptGuidance | None = optional(objects(PromptGuidance))
    logprobs: int | None = optional(integer(0, MOST_LOGPROBS))


@dataclass(frozen=True, kw_only=True)
class TextPart:
    """One part of a message."""

    type: str = wanted(choice("text"))
    text: str = wanted(text())


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn of a chat."""

    role: str = wanted(choice("system", "developer", "user", "assistant"))
    content: str | tuple[TextPart, ...] = wanted(
        either("a string or a list of text parts", text(), many(objects(TextPart)))
    )
    name: str | None = optional(text(1, 64))


_NO_TOOLS = "describe the tool in a message and ask for JSON with response_format"
_MESSAGE_UNSUPPORTED: dict[str, str] = {
    **dict.fromkeys(("tool_calls", "function_call", "tool_call_id"), _NO_TOOLS),
    **dict.fromkeys(("refusal", "audio", "annotations", "reasoning", "reasoning_content"), "leave it out"),
}


@dataclass(frozen=True, kw_only=True)
class ChatBody(GenerationBody):
    """POST /v1/chat/completions."""

    messages: tuple[Message, ...] = wanted(many(objects(Message, _MESSAGE_UNSUPPORTED), most=4096))
    max_tokens: int | None = optional(integer(1, MOST_TOKENS))
    max_completion_tokens: int | None = optional(integer(1, MOST_TOKENS))
    guidance: ChatGuidance | None = optional(objects(ChatGuidance))
    logprobs: bool = optional(boolean(), False)
    top_logprobs: int | None = optional(integer(0, MOST_LOGPROBS))


@dataclass(frozen=True, kw_only=True)
class EmbeddingBody:
    """POST /v1/embeddings."""

    model: str = wanted(text(1, 512))
    input: str | tuple[Any, ...] = wanted(_PROMPT)
    encoding_format: str = optional(choice("float", "base64"), "float")
    user: str | None = optional(text(0, 512))


@dataclass(frozen=True, kw_only=True)
class TextPair:
    """Two texts of one question, such as premise and hypothesis."""

    text_pair: str = wanted(text())
    text: str = wanted(text())  # last: from here on the name is the field's


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question whose answer is a slice of the context."""

    question: str = wanted(text(1))
    context: str = wanted(text(1))


_SPAN = many(integer(0, MOST_CHARACTERS), least=2, most=2)


@dataclass(frozen=True, kw_only=True)
class RelatedText:
    """A text with two entities, characters [start, end), whose relation is asked."""

    head: tuple[int, int] = wanted(_SPAN)
    tail: tuple[int, int] = wanted(_SPAN)
    head_type: str | None = optional(text(1, 256))
    tail_type: str | None = optional(text(1, 256))
    text: str = wanted(text(1))  # last: from here on the name is the field's


_CLASSIFIED = either(
    "a string, token ids, {text, text_pair}, {question, context}, {text, head, tail}, or a list of one of these",
    text(),
    many(text(), most=MOST_INPUTS),
    _TOKEN_IDS,
    many(_TOKEN_IDS, most=MOST_INPUTS),
    many(many(text(), least=2, most=2), most=MOST_INPUTS),
    objects(TextPair),
    many(objects(TextPair), most=MOST_INPUTS),
    objects(Question),
    many(objects(Question), most=MOST_INPUTS),
    objects(RelatedText),
    many(objects(RelatedText), most=MOST_INPUTS),
)


@dataclass(frozen=True, kw_only=True)
class ClassifyBody:
    """POST /v1/classify."""

    model: str = wanted(text(1, 512))
    input: str | tuple[Any, ...] | TextPair | Question | RelatedText = wanted(_CLASSIFIED)
    user: str | None = optional(text(0, 512))


@dataclass(frozen=True, kw_only=True)
class TokenizeBody:
    """POST /tokenize."""

    prompt: str = wanted(text())
    add_special_tokens: bool = optional(boolean(), True)
    return_token_strs: bool = optional(boolean(), False)
    model: str | None = optional(text(1, 512))


@dataclass(frozen=True, kw_only=True)
class DetokenizeBody:
    """POST /detokenize."""

    tokens: tuple[int, ...] = wanted(many(integer(0, MOST_TOKENS), least=0))
    model: str | None = optional(text(1, 512))


UNSUPPORTED: dict[str, str] = {
    **dict.fromkeys(("tools", "tool_choice", "functions", "function_call", "parallel_tool_calls"), _NO_TOOLS),
    **dict.fromkeys(("audio", "modalities", "prediction", "web_search_options"), "this server writes text only"),
    "suffix": "put all text into the prompt",
    "dimensions": "cut the vector yourself and normalise it again",
    "store": "nothing is stored; leave it out",
    "metadata": "nothing is stored; leave it out",
    "service_tier": "there is one; leave it out",
    "reasoning_effort": "the model has no such setting; leave it out",
    "use_beam_search": "use best_of",
    "min_tokens": "use logit_bias against the end-of-text token",
    "ignore_eos": "use logit_bias against the end-of-text token",
    "guided_grammar": 'use response_format {"type": "regex"} or {"type": "json_schema"}',
    "structured_outputs": 'use response_format {"type": "json_schema"}, {"type": "regex"} or {"type": "labels"}',
}
"""Fields of other servers and what to do instead."""
