"""Server-sent events: an answer as it is written, one `data:` line a chunk, until `data: [DONE]`.

Starlette's own streaming would do, but begins a task group for each answer, whose library it imports at the first: the
others waited 60 ms for it (2026-11-22).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from chinchilla_lm.serve.answers import Answer, Found, encode_json
from chinchilla_lm.serve.api_errors import ApiError
from chinchilla_lm.serve.runs import ClientLeft, Run

WRITE_SECONDS = 0.002
"""Between two writes of a stream: what has come meanwhile is written at once. No reader sees the difference, and a
small model, which writes thousands of tokens a second, leaves the event loop time for others."""
_LINE_ENDS = {"\u0085": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"}
"""JSON escapes a line feed, the standard's only end of a line beside a carriage return, and lets these pass; Python's
`str.splitlines`, and with it httpx's `iter_lines`, ends lines at them too."""


class EventStream(Response):
    """The answer of one run, streamed; ends the run when the client leaves."""

    media_type = "text/event-stream"

    def __init__(self, answer: Answer, run: Run, large_work: Executor, *, has_usage: bool) -> None:
        """Args: large_work: where large chunks are written; has_usage: a last chunk says how many tokens there were."""
        self.status_code, self.background = 200, None
        self._answer, self._run, self._large_work, self._has_usage = answer, run, large_work, has_usage
        self.init_headers({"x-accel-buffering": "no"})  # nginx would hold the chunks back

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write until the end."""
        watcher = asyncio.create_task(self._run.watch(receive))
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for text in self._texts():
                await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except ClientLeft:
            pass  # nobody reads what would follow
        finally:
            watcher.cancel()

    async def _texts(self) -> AsyncIterator[str]:
        """Yield the chunks; an error is one of them, because the status has been sent already."""
        try:
            for chunk in self._answer.first_chunks():
                yield _line({**chunk, **self._blank})
            async for found in self._run.events():
                if self._answer.is_large(found):
                    yield await asyncio.get_running_loop().run_in_executor(self._large_work, self._lines, found)
                else:
                    yield self._lines(found)
                if all(event.finish_reason is None for _, event in found):
                    await asyncio.sleep(WRITE_SECONDS)
            if self._has_usage:
                yield _line(self._answer.usage_chunk(self._run))
        except ApiError as error:
            yield _line(error.body)
        yield "data: [DONE]\n\n"

    def _lines(self, found: Found) -> str:
        return "".join(_line({**self._answer.chunk(place, event), **self._blank}) for place, event in found)

    @property
    def _blank(self) -> dict[str, None]:
        return {"usage": None} if self._has_usage else {}


def _line(chunk: dict[str, Any]) -> str:
    text = encode_json(chunk)
    for sign, escape in _LINE_ENDS.items():
        text = text.replace(sign, escape)
    return f"data: {text}\n\n"
