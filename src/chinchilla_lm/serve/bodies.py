"""Request bodies: read within limits of size, time and all clients' sum, parsed strictly, declared fields only.

A small body is parsed at once. A large one is parsed in the thread for large work, where others wait only for other
large ones: Python's parser keeps the interpreter's lock (a text of 2 MB: 3 ms, 2026-11-22), so a document with a text
that no prompt can be is refused before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import Executor
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request

from chinchilla_lm.serve.api_errors import ApiError
from chinchilla_lm.serve.fields import read_fields
from chinchilla_lm.serve.openai_schema import UNSUPPORTED
from chinchilla_lm.serve.prompt_bound import PromptBound, least_tokens_in_json
from chinchilla_lm.serve.runs import ClientLeft
from chinchilla_lm.serve.settings import Limits
from chinchilla_lm.serve.strict_json import JsonRefused, parse_json

Body = TypeVar("Body")


LARGE_BODY_BYTES = 1 << 15
"""From here on a body is parsed by itself: a hundred times that of a short question, 0.3 ms to parse."""


class BodyReader:
    """Reads bodies for all routes; knows how many bytes are held at this moment."""

    def __init__(self, limits: Limits, bound: PromptBound, large_work: Executor) -> None:
        """Args: bound: of the prompts' tokens; large_work: where large bodies are parsed."""
        self._limits, self._bound, self._large_work = limits, bound, large_work
        self._held_bytes = 0

    async def read(
        self,
        request: Request,
        body: type[Body],
        unsupported: Mapping[str, str] = UNSUPPORTED,
        *,
        most_tokens: int | None = None,
    ) -> Body:
        """Return a request's body; its size is noted in the exchange.

        Args:
            request: POST.
            body: its declaration.
            unsupported: other servers' fields.
            most_tokens: of any text in it, >= 1; None: texts of any length are read.

        Raises:
            ApiError: 400, 408, 413, 415 or 503.
            ClientLeft: before the end of the body.
        """
        self._check_headers(request)
        try:
            async with asyncio.timeout(self._limits.body_timeout_s):
                content = await self._read_bytes(request)
        except TimeoutError:
            limit = f"{self._limits.body_timeout_s:g} s"
            raise ApiError(408, f"the body did not arrive within {limit}; send it faster") from None
        except ClientDisconnect:
            raise ClientLeft from None
        request.scope["exchange"].body_bytes = len(content)
        if len(content) < LARGE_BODY_BYTES:
            return _parse(content, body, unsupported)

        def parse() -> Body:
            least = 0 if most_tokens is None else least_tokens_in_json(self._bound, content, most_tokens)
            if most_tokens is not None and least:
                message = f"the body has a text of at least {least} tokens and may have {most_tokens}; shorten it"
                raise ApiError(400, message, code="context_length_exceeded")
            return _parse(content, body, unsupported)

        return await asyncio.get_running_loop().run_in_executor(self._large_work, parse)

    def _check_headers(self, request: Request) -> None:
        kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
        if kind != "application/json":  # a page of another site could send any other kind without asking
            raise ApiError(415, f"content-type must be application/json, got {kind[:80]!r}; set the header")
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise ApiError(415, "compressed bodies are not read; send it plain")
        length = request.headers.get("content-length", "0")
        if length.isdigit() and int(length[:20]) > self._limits.max_body_bytes:
            raise self._too_large()

    async def _read_bytes(self, request: Request) -> bytes:
        parts: list[bytes] = []
        size = 0
        try:
            async for part in request.stream():
                size += len(part)
                self._held_bytes += len(part)
                if size > self._limits.max_body_bytes:
                    raise self._too_large()
                if self._held_bytes > self._limits.max_bodies_bytes:
                    raise ApiError(503, "too many large bodies at once; try again")
                parts.append(part)
        finally:
            self._held_bytes -= size
        return b"".join(parts)

    def _too_large(self) -> ApiError:
        most = self._limits.max_body_bytes
        return ApiError(413, f"the body may have {most} bytes; send less, or start the server with --max-body-bytes")


def _parse(content: bytes, body: type[Body], unsupported: Mapping[str, str]) -> Body:
    try:
        return read_fields(body, parse_json(content), unsupported=unsupported)
    except JsonRefused as error:
        raise ApiError(400, f"the body was refused: {error}", code="invalid_json") from None
