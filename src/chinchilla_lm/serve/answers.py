"""From events to OpenAI's answers: whole ones, and the chunks of streams.

Symbols: `place` is a prompt's place in the request; a choice's index is place * n + event.index. Never runs a model.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from chinchilla_lm.generate.request import Event, Request, TokenLogprob, join_events
from chinchilla_lm.generate.text import TextStream
from chinchilla_lm.serve.guards import new_id
from chinchilla_lm.serve.runs import Run
from chinchilla_lm.serve.served_model import ServedModel

Found = Sequence[tuple[int, Event]]
LARGE_ENTRIES = 1 << 13
"""Log-probabilities that are written at once; more would hold up the event loop (6 ms, 2026-11-22)."""
encode_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


class Answer:
    """Makes the answer of one request, whole or in chunks; remembers where each streamed text is."""

    def __init__(self, served: ServedModel, requests: Sequence[Request], *, is_chat: bool) -> None:
        """Takes the requests in the order of the prompts."""
        self._served, self._requests, self._is_chat = served, list(requests), is_chat
        self._head = {
            "id": ("chatcmpl-" if is_chat else "cmpl-") + new_id(),
            "created": int(time.time()),
            "model": served.name,
        }
        self._offsets: dict[int, _Offsets] = {}

    def is_large(self, found: Found) -> bool:
        """Whether these events hold so many log-probabilities that they are written in another thread."""
        entries = sum(len(event.logprobs) * (1 + (self._requests[at].logprobs or 0)) for at, event in found)
        return entries > LARGE_ENTRIES

    def whole(self, found: Found, run: Run) -> bytes:
        """Return the body of an answer that is not streamed, as JSON."""
        name = "chat.completion" if self._is_chat else "text_completion"
        head = encode_json({**self._head, "object": name}).removesuffix("}")
        # One by one: the encoder lets no other thread run.
        choices = ",".join(encode_json(choice) for choice in self._choices(found))
        return f'{head},"choices":[{choices}],"usage":{encode_json(usage(run))}}}'.encode()

    def _choices(self, found: Found) -> Iterator[dict[str, Any]]:
        for place, request in enumerate(self._requests):
            for choice in join_events(event for at, event in found if at == place):
                index = place * request.n + choice.index
                logprobs = self._logprobs(place, index, choice.logprobs)
                if self._is_chat:
                    message = {"role": "assistant", "content": choice.text, "refusal": None}
                    words: dict[str, Any] = {"message": message}
                else:
                    words = {"text": choice.text}
                yield {"index": index, **words, "logprobs": logprobs, "finish_reason": choice.finish_reason}

    def first_chunks(self) -> list[dict[str, Any]]:
        """Return what a chat's stream begins with: each choice's role."""
        if not self._is_chat:
            return []
        delta = {"role": "assistant", "content": ""}
        choices = range(sum(request.n for request in self._requests))
        return [
            self._chunk({"index": index, "delta": delta, "logprobs": None, "finish_reason": None}) for index in choices
        ]

    def chunk(self, place: int, event: Event) -> dict[str, Any]:
        """Return the chunk of one event."""
        index = place * self._requests[place].n + event.index
        logprobs = self._logprobs(place, index, event.logprobs)
        words: dict[str, Any] = {"text": event.text}
        if self._is_chat:
            words = {"delta": {"content": event.text} if event.text or event.token_ids else {}}
        return self._chunk({"index": index, **words, "logprobs": logprobs, "finish_reason": event.finish_reason})

    def usage_chunk(self, run: Run) -> dict[str, Any]:
        """Return the last chunk of a stream that asked for it."""
        return {**self._head, "object": self._chunk_name, "choices": [], "usage": usage(run)}

    @property
    def _chunk_name(self) -> str:
        return "chat.completion.chunk" if self._is_chat else "text_completion"

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        return {**self._head, "object": self._chunk_name, "choices": [choice]}

    def _logprobs(self, place: int, index: int, logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if self._requests[place].logprobs is None:
            return None
        if self._is_chat:
            return {"content": [self._chat_entry(one) for one in logprobs], "refusal": None}
        if index not in self._offsets:
            self._offsets[index] = _Offsets(self._served, self._requests[place])
        label = self._served.token_text.label
        return {
            "tokens": [label(one.token) for one in logprobs],
            "token_logprobs": [one.logprob for one in logprobs],
            "top_logprobs": [self._top_table(one) for one in logprobs],
            "text_offset": self._offsets[index].of(one.token for one in logprobs),
        }

    def _top_table(self, one: TokenLogprob) -> dict[str, float] | None:
        if one.logprob is None:
            return None
        table: dict[str, float] = {}
        # The chosen token is always in the table, as in OpenAI's; of two tokens that look the same the likelier counts.
        for token, logprob in (*one.top, (one.token, one.logprob)):
            table.setdefault(self._served.token_text.label(token), logprob)
        return table

    def _chat_entry(self, one: TokenLogprob) -> dict[str, Any]:
        top = [self._entry(token, logprob) for token, logprob in one.top]
        return {**self._entry(one.token, one.logprob), "top_logprobs": top}

    def _entry(self, token: int, logprob: float | None) -> dict[str, Any]:
        label, content = self._served.token_text.label(token), self._served.token_text.bytes(token)
        return {"token": label, "logprob": logprob, "bytes": list(content)}


class _Offsets:
    """Where each token of a text begins, in characters, over several events."""

    def __init__(self, served: ServedModel, request: Request) -> None:
        self._stream = TextStream(served.tokenizer, () if request.echo else request.prompt_ids)
        self._characters = 0

    def of(self, tokens: Iterable[int]) -> list[int]:
        offsets: list[int] = []
        for token in tokens:
            offsets.append(self._characters)
            self._characters += len(self._stream.push(token))
        return offsets


def usage(run: Run) -> dict[str, int]:
    """Return the tokens of a request."""
    return {
        "prompt_tokens": run.prompt_tokens,
        "completion_tokens": run.completion_tokens,
        "total_tokens": run.prompt_tokens + run.completion_tokens,
    }
