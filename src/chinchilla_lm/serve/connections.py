"""Connections that cannot be held for nothing: uvicorn's HTTP/1.1 protocol with the timers and the limit it lacks.

Source: uvicorn 0.54 keeps half-sent headers open for ever (300 of 300 after 20 s) and never gives up on a reader that
stopped; here the first is closed after `header_timeout_s`, the second after `write_timeout_s`.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from chinchilla_lm.serve.api_errors import RETRY_AFTER_SECONDS
from chinchilla_lm.serve.metrics import Metrics
from chinchilla_lm.serve.settings import Limits

_FULL = (
    "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n"
    f"retry-after: {RETRY_AFTER_SECONDS}\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%s"
)
_FULL_BODY = '{"error":{"message":"too many connections; try again","type":"server_error","param":null,"code":null}}'


def guarded_protocol(limits: Limits, metrics: Metrics) -> type[asyncio.Protocol]:
    """Return a protocol class for uvicorn's `http` setting, with these limits."""

    class Guarded(GuardedProtocol):
        """`GuardedProtocol` of one server."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.limits, self.metrics = limits, metrics

    return Guarded


class GuardedProtocol(H11Protocol):
    """One connection. Overrides uvicorn's callbacks: the only place where its timers can be set."""

    limits: Limits
    metrics: Metrics

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """As uvicorn calls it."""
        super().__init__(*arguments, **options)
        self._header_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._is_refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock of the headers, or refuse."""
        if len(self.connections) >= self.limits.max_connections:
            self._is_refused = True
            transport.write((_FULL % (len(_FULL_BODY), _FULL_BODY)).encode())
            transport.close()
            return
        super().connection_made(_Gathering(transport, self.loop))  # type: ignore[arg-type] - has what is used of one
        self.metrics.connections.inc()
        self._header_timer = self._later(self.limits.header_timeout_s)

    def data_received(self, data: bytes) -> None:
        """A request that has begun stops the clock; other bytes start it."""
        if self._is_refused:
            return
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._header_timer = self._stop(self._header_timer)
        elif self._header_timer is None:
            self._header_timer = self._later(self.limits.header_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all clocks."""
        if self._is_refused:
            return
        self._header_timer = self._stop(self._header_timer)
        self._write_timer = self._stop(self._write_timer)
        self.metrics.connections.dec()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client does not read: give it a while."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self._later(self.limits.write_timeout_s)

    def resume_writing(self) -> None:
        """It reads again."""
        super().resume_writing()
        if not self.transport.is_closing():
            self._write_timer = self._stop(self._write_timer)

    def on_response_complete(self) -> None:
        """A connection that closes now may wait for its reader only so long."""
        super().on_response_complete()
        self._bound_closing()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection."""
        super().timeout_keep_alive_handler()
        self._bound_closing()

    def shutdown(self) -> None:
        """Close for the server's end."""
        super().shutdown()
        self._bound_closing()

    def _bound_closing(self) -> None:
        if self.transport.is_closing() and self._write_timer is None:
            self._write_timer = self._later(self.limits.write_timeout_s)

    def _later(self, seconds: float) -> asyncio.TimerHandle:
        return self.loop.call_later(seconds, self.transport.abort)

    @staticmethod
    def _stop(timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()


class _Gathering:
    """A transport that sends the head of an answer together with what follows at once.

    Each send gives Python's lock away, and beside running texts the event loop then waits for it again.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, content: bytes) -> None:
        if content.startswith(b"HTTP/1.1 ") and not content.startswith(b"HTTP/1.1 1"):  # a client waits for a 100
            self._flush()
            self._head = content
            self._loop.call_soon(self._flush)
        elif content:
            content, self._head = self._head + content, b""
            self._transport.write(content)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)
