"""From a checked body to the generator's words: prompts to token ids, fields to `Request`s, lengths to refusals.

Runs in a reader thread: tokenising and compiling a constraint may take a while.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from chinchilla_lm.core.errors import ConfigError, DataError
from chinchilla_lm.data.markers import EncodedRelation
from chinchilla_lm.data.span_windows import SpanWindow
from chinchilla_lm.generate.constraint import Constraint, JsonConstraint, LabelConstraint, RegexConstraint
from chinchilla_lm.generate.penalties import bad_word_ids
from chinchilla_lm.generate.request import Guidance, Request
from chinchilla_lm.generate.sampling import Sampling
from chinchilla_lm.generate.text import encode_prompt, encode_text
from chinchilla_lm.serve.answer_reader import MOST_WINDOWS, AnswerReader
from chinchilla_lm.serve.api_errors import ApiError, bad_field
from chinchilla_lm.serve.chat_template import TemplateFailed
from chinchilla_lm.serve.openai_schema import (
    ChatBody,
    CompletionBody,
    GenerationBody,
    Message,
    Question,
    RelatedText,
    ResponseFormat,
    TextPair,
)
from chinchilla_lm.serve.relation_reader import RelationReader
from chinchilla_lm.serve.served_model import ServedModel
from chinchilla_lm.serve.settings import Limits

FORM_FIELDS = ("response_format", "guided_json", "guided_regex", "guided_choice")
DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's default of max_tokens for completions
MOST_ENTRIES = 1 << 20
"""Log-probabilities in one answer, each 300 bytes while it is written (2026-11-22): one alternative to every token of
the largest body's prompts, as lm-eval asks, or 6 choices of 8,192 tokens with 20."""


def completion_requests(body: CompletionBody, served: ServedModel, limits: Limits) -> list[Request]:
    """Return one request for each prompt.

    Raises:
        ApiError: 400, naming the field.
    """
    prompts = read_prompts(body.prompt, served, limits, "prompt", reserve=0 if body.max_tokens == 0 else 1)
    _check_texts(len(prompts) * (body.best_of or body.n), limits)
    if body.best_of is not None and body.best_of < body.n:
        raise bad_field("best_of", f"must be >= n = {body.n}, got {body.best_of}")
    if body.max_tokens == 0 and not body.echo:
        raise bad_field("max_tokens", "must be >= 1 without echo, got 0")
    if body.best_of is not None and body.best_of > body.n and body.stream:
        raise bad_field("best_of", "cannot be streamed: the best are known at the end; leave out stream")
    guidance = None
    if body.guidance is not None:
        second_ids = _encode(body.guidance.prompt, served, limits, "guidance.prompt", reserve=1)
        guidance = _guidance(second_ids, body.guidance.scale, limits)
    options = {
        **_shared_options(body, served),
        "logprobs": body.logprobs,
        "echo": body.echo,
        "best_of": body.best_of,
        "guidance": guidance,
    }
    counts = [
        _new_tokens(body.max_tokens, DEFAULT_COMPLETION_TOKENS, _longer(ids, guidance), served, limits)
        for ids in prompts
    ]
    echoed = sum(map(len, prompts)) if body.echo else 0
    _check_entries("logprobs", body.logprobs, (echoed + sum(counts)) * (body.best_of or body.n))
    return [_request(body, served, ids, count, options) for ids, count in zip(prompts, counts, strict=True)]


def chat_requests(body: ChatBody, served: ServedModel, limits: Limits) -> list[Request]:
    """Return the one request of a chat.

    Raises:
        ApiError: 400, naming the field; also when the model has no chat template.
    """
    if served.template is None:
        raise ApiError(
            400,
            f"the model {served.name} has no chat template; ask /v1/completions, or add a chat_template.jinja",
            code="no_chat_template",
        )
    if body.max_tokens is not None and body.max_completion_tokens not in (None, body.max_tokens):
        raise bad_field("max_tokens", "and max_completion_tokens differ; give one of them")
    if body.top_logprobs is not None and not body.logprobs:
        raise bad_field("top_logprobs", "needs logprobs = true")
    turns = [_turn(message) for message in body.messages]
    ids = _render(turns, served, limits, "messages")
    _check_texts(body.n, limits)
    guidance = None
    if body.guidance is not None:
        others = [turn for turn in turns if turn["role"] not in ("system", "developer")]
        contrary = [{"role": "system", "content": body.guidance.system}, *others]
        guidance = _guidance(_render(contrary, served, limits, "guidance.system"), body.guidance.scale, limits)
    asked = body.max_completion_tokens if body.max_tokens is None else body.max_tokens
    count = _new_tokens(asked, served.capacity, _longer(ids, guidance), served, limits)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    _check_entries("top_logprobs", logprobs, count * body.n)
    options = {**_shared_options(body, served), "logprobs": logprobs, "guidance": guidance}
    return [_request(body, served, ids, count, options)]


def read_prompts(
    prompt: str | Sequence[Any], served: ServedModel, limits: Limits, where: str, *, reserve: int
) -> list[tuple[int, ...]]:
    """Return the token ids of each prompt.

    Args:
        prompt: a text, texts, token ids, or lists of token ids.
        served: the model.
        limits: of length and number.
        where: the field's name.
        reserve: tokens that must fit after the prompt.

    Raises:
        ApiError: 400: too many, too long, empty, or an id that the model does not have.
    """
    many: Sequence[Any] = [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt
    return [
        _encode(one, served, limits, name, reserve=reserve)
        if isinstance(one, str)
        else _check_ids(one, served, limits, name, reserve=reserve)
        for name, one in _named(many, limits, where)
    ]


def read_pairs(given: Any, served: ServedModel, limits: Limits, where: str) -> list[tuple[int, ...]]:
    """Return the token ids of each pair of texts, with the prompt that the folder's tokenizer puts around them.

    Args:
        given: a pair or several: {text, text_pair}, or a list of two texts.
        served: a model that was tuned on pairs.
        limits: of length and number.
        where: the field's name.

    Raises:
        ApiError: 400: a single text, too many pairs, or too long.
    """
    is_one = isinstance(given, TextPair) or (isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], str))
    pairs = [given] if is_one else list(given) if isinstance(given, tuple) else [given]
    found = []
    for name, pair in _named(pairs, limits, where):
        if isinstance(pair, TextPair):
            texts = (pair.text, pair.text_pair)
        elif isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(one, str) for one in pair):
            texts = pair
        else:
            raise bad_field(name, 'must be a pair: this model was tuned on two texts; send {"text", "text_pair"}')
        most = most_prompt_tokens(served, limits, 0)
        least = sum(served.bound.least_tokens(text, most) for text in texts)
        if least > most:
            raise _too_long(name, f"at least {least}", most, served)
        ids = served.tokenizer.encode_batch_fast([texts])[0].ids
        if not ids:
            raise bad_field(name, "is two empty texts, and this model has no prompt around them; write a text")
        found.append(_check_ids(tuple(ids), served, limits, name, reserve=0))
    return found


def read_questions(
    given: Any, reader: AnswerReader, served: ServedModel, limits: Limits, where: str
) -> list[tuple[Question, list[SpanWindow]]]:
    """Return each question with the windows of its context.

    Raises:
        ApiError: 400: something else than {question, context}, too many, or a context of too many windows.
    """
    found = []
    for name, one in _named(given if isinstance(given, tuple) else [given], limits, where):
        if not isinstance(one, Question):
            raise bad_field(name, 'must be {"question", "context"}: this model answers with a slice of the context')
        most = MOST_WINDOWS * served.capacity
        if served.bound.least_tokens(one.context, most) > most:
            raise bad_field(name, f"is longer than {MOST_WINDOWS} windows; send parts of it", "context_length_exceeded")
        try:
            windows = reader.windows(one.question, one.context)
        except DataError as error:
            raise bad_field(name, str(error), "context_length_exceeded") from None
        if len(windows) > MOST_WINDOWS:
            message = f"takes {len(windows)} windows and may take {MOST_WINDOWS}; send parts of the context"
            raise bad_field(name, message, "context_length_exceeded")
        found.append((one, windows))
    return found


def read_related(
    given: Any, reader: RelationReader, served: ServedModel, limits: Limits, where: str
) -> list[EncodedRelation]:
    """Return each text with its two entities as the model reads it.

    Raises:
        ApiError: 400: something else than {text, head, tail}, too many, too long, or entities outside the text.
    """
    found = []
    for name, one in _named(given if isinstance(given, tuple) else [given], limits, where):
        if not isinstance(one, RelatedText):
            raise bad_field(name, 'must be {"text", "head", "tail"}: this model names the relation of two entities')
        if served.bound.least_tokens(one.text, served.capacity) > served.capacity:
            raise bad_field(
                name, "is longer than the model reads; send the part of the entities", "context_length_exceeded"
            )
        try:
            found.append(reader.encode(asdict(one)))
        except DataError as error:
            raise bad_field(name, str(error)) from None
    return found


def read_constraint(body: GenerationBody) -> Constraint | None:
    """Return what `response_format`, or a `guided_` field as vLLM has it, asks for.

    Raises:
        ApiError: 400: several forms, or the part that a type needs is missing or belongs to another type.
    """
    given = [name for name in FORM_FIELDS if getattr(body, name) is not None]
    if len(given) > 1:
        raise bad_field(given[1], f"and {given[0]} both give the text a form; give one of them")
    if body.guided_json is not None:
        return JsonConstraint(schema=body.guided_json, is_compact=True)
    if body.guided_regex is not None:
        return RegexConstraint(pattern=body.guided_regex)
    if body.guided_choice is not None:
        return LabelConstraint(labels=body.guided_choice)
    return _read_form(body.response_format)


def _read_form(form: ResponseFormat | None) -> Constraint | None:
    if form is None:
        return None
    parts = {"json_schema": form.json_schema, "regex": form.regex, "labels": form.labels}
    for name, part in parts.items():
        if (part is not None) != (form.type == name):
            rule = "is missing" if part is None else f"belongs to type {name}, not {form.type}"
            raise bad_field(f"response_format.{name}", f"{rule}; give exactly what the type needs")
    if form.json_schema is not None:
        return JsonConstraint(schema=form.json_schema.schema, is_compact=True)  # else it may idle in blanks
    if form.regex is not None:
        return RegexConstraint(pattern=form.regex)
    if form.labels is not None:
        return LabelConstraint(labels=form.labels)
    return JsonConstraint(schema={"type": "object"}, is_compact=True) if form.type == "json_object" else None


def _shared_options(body: GenerationBody, served: ServedModel) -> dict[str, Any]:
    """What all texts of a body share, made once: 256 long bad words take half a second to spell."""
    try:
        bad_words = bad_word_ids(served.tokenizer, body.bad_words) if body.bad_words else ()
    except ConfigError as error:
        raise ApiError(400, str(error)) from None
    return {"bad_words": bad_words, "constraint": read_constraint(body)}


def _request(
    body: GenerationBody, served: ServedModel, ids: tuple[int, ...], max_tokens: int, options: dict[str, Any]
) -> Request:
    bias = body.logit_bias or {}
    outside = next((token for token in bias if token >= served.vocab), None)
    if outside is not None:
        raise bad_field(f"logit_bias.{outside}", f"must be a token id below {served.vocab}")
    if body.stream_options is not None and not body.stream:
        raise bad_field("stream_options", "needs stream = true")
    try:
        sampling = Sampling(
            temperature=body.temperature,
            top_k=body.top_k,
            top_p=body.top_p,
            min_p=body.min_p,
            repetition_penalty=body.repetition_penalty,
            presence_penalty=body.presence_penalty,
            frequency_penalty=body.frequency_penalty,
            logit_bias=bias,
            seed=random.getrandbits(63) if body.seed is None else body.seed,
        )
        return Request(
            prompt_ids=ids,
            max_tokens=max_tokens,
            sampling=sampling,
            stop=(body.stop,) if isinstance(body.stop, str) else body.stop or (),
            n=body.n,
            **options,
        )
    except ConfigError as error:
        raise ApiError(400, str(error)) from None


def _guidance(second_ids: tuple[int, ...], scale: float, limits: Limits) -> Guidance:
    if limits.slots < 2:
        raise bad_field("guidance", "needs 2 slots and this server has 1; start it with --slots 2 or more")
    return Guidance(prompt_ids=second_ids, scale=scale)


def _longer(ids: tuple[int, ...], guidance: Guidance | None) -> tuple[int, ...]:
    return ids if guidance is None else max(ids, guidance.prompt_ids, key=len)


def _render(turns: list[dict[str, str]], served: ServedModel, limits: Limits, where: str) -> tuple[int, ...]:
    assert served.template is not None
    try:
        prompt = served.template.render(turns)
    except TemplateFailed as error:
        raise bad_field(where, str(error), "chat_template_refused") from None
    ids = _encode(prompt, served, limits, where, reserve=1, add_special_tokens=False)
    if not ids:
        raise bad_field(where, "make an empty prompt with this model's chat template; write a message")
    return ids


def _encode(
    text: str, served: ServedModel, limits: Limits, where: str, *, reserve: int, add_special_tokens: bool = True
) -> tuple[int, ...]:
    most = most_prompt_tokens(served, limits, reserve)
    least = served.bound.least_tokens(text, most) if len(text) > most else 0
    if least > most:  # certainly too long: not worth tokenising
        raise _too_long(where, f"at least {least}", most, served)
    if add_special_tokens:
        ids = encode_prompt(served.tokenizer, text)
    else:
        ids = encode_text(served.tokenizer, text, add_special_tokens=False)
    if not ids and add_special_tokens:
        raise bad_field(where, "is empty, and this model has no token that starts a text; write a prompt")
    if len(ids) > most:
        raise _too_long(where, str(len(ids)), most, served)
    return tuple(ids)


def _check_ids(
    ids: tuple[int, ...], served: ServedModel, limits: Limits, where: str, *, reserve: int
) -> tuple[int, ...]:
    most = most_prompt_tokens(served, limits, reserve)
    if len(ids) > most:
        raise _too_long(where, str(len(ids)), most, served)
    outside = next((token for token in ids if token >= served.vocab), None)
    if outside is not None:
        raise bad_field(where, f"token id {outside} must be below {served.vocab}, the model's vocabulary")
    return ids


def most_prompt_tokens(served: ServedModel, limits: Limits, reserve: int) -> int:
    """Return the most tokens of a prompt after which `reserve` must fit."""
    room = served.capacity - reserve
    return room if limits.max_prompt_tokens is None else min(room, limits.max_prompt_tokens)


def _too_long(where: str, tokens: str, most: int, served: ServedModel) -> ApiError:
    message = f"has {tokens} tokens and may have {most} (the context is {served.capacity}); shorten it"
    return bad_field(where, message, "context_length_exceeded")


def _new_tokens(asked: int | None, default: int, ids: tuple[int, ...], served: ServedModel, limits: Limits) -> int:
    room = served.capacity - len(ids)
    if asked is None:
        return min(default, room, limits.max_tokens or room)
    if limits.max_tokens is not None and asked > limits.max_tokens:
        raise bad_field("max_tokens", f"must be at most {limits.max_tokens} on this server, got {asked}")
    if asked > room:
        message = (
            f"{asked} new tokens after {len(ids)} of the prompt exceed the context of {served.capacity}; ask for at "
        )
        raise bad_field("max_tokens", f"{message}most {room}", "context_length_exceeded")
    return asked


def _named(given: Sequence[Any], limits: Limits, where: str) -> list[tuple[str, Any]]:
    """The texts of a field, each with the name that a refusal gives it; too many are refused."""
    _check_texts(len(given), limits)
    return [(where if len(given) == 1 else f"{where}[{index}]", one) for index, one in enumerate(given)]


def _check_texts(texts: int, limits: Limits) -> None:
    if texts > limits.max_texts:
        raise ApiError(
            400,
            f"the request asks for {texts} texts and may ask for {limits.max_texts}; send several requests",
            param="n",
        )


def _check_entries(where: str, logprobs: int | None, tokens: int) -> None:
    if logprobs is not None and tokens * (1 + logprobs) > MOST_ENTRIES:
        message = f"{logprobs} for each of up to {tokens} tokens are more than {MOST_ENTRIES} log-probabilities"
        raise bad_field(where, f"{message}; ask for fewer tokens, choices or alternatives")


def _turn(message: Message) -> dict[str, str]:
    content = message.content
    joined = content if isinstance(content, str) else "".join(part.text for part in content)
    turn = {"role": message.role, "content": joined}
    return turn if message.name is None else {**turn, "name": message.name}
