"""The texts of one HTTP request while they are written: read together, ended together.

A run ends when all its texts are finished, its time is over, its client has left, or the server stops; in the last
three the scheduler is told to cancel, so that no text is written for nobody.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from starlette.types import Receive

from chinchilla_lm.core.errors import ChinchillaError
from chinchilla_lm.generate.request import Event
from chinchilla_lm.serve.api_errors import ApiError

if TYPE_CHECKING:
    from chinchilla_lm.generate.ticket import Ticket
    from chinchilla_lm.serve.metrics import Metrics


class ClientLeft(Exception):  # noqa: N818 - it says what happened
    """The client closed the connection before the answer; nobody reads what follows."""


class Run:
    """Several tickets read as one series of events. Attributes: `prompt_tokens`, `completion_tokens` so far."""

    def __init__(self, tickets: Sequence[Ticket], metrics: Metrics, timeout_s: float) -> None:
        """Starts the clock."""
        self.prompt_tokens = sum(len(ticket.request.prompt_ids) for ticket in tickets)
        self.completion_tokens = 0
        self._tickets = list(tickets)
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._began = time.monotonic()
        self._queue: asyncio.Queue[tuple[int, Event | None | BaseException]] = asyncio.Queue()
        self._last_seen: dict[tuple[int, int], float] = {}

    async def events(self) -> AsyncIterator[tuple[int, Event]]:
        """Yield (prompt's place, event) as they come, until all texts are finished.

        Raises:
            ApiError: 504 when the time is over, 503 when the server stops, 500 when the model fails.
        """
        readers = [asyncio.create_task(self._read(place, ticket)) for place, ticket in enumerate(self._tickets)]
        unfinished = len(readers)
        try:
            while unfinished:
                place, found = await self._next()
                if found is None:
                    unfinished -= 1
                elif isinstance(found, BaseException):
                    raise found
                else:
                    self._note(place, found)
                    yield place, found
            self._metrics.count_tokens(prompt=self.prompt_tokens, completion=self.completion_tokens)
        finally:
            self.cancel()
            for reader in readers:
                reader.cancel()

    def cancel(self) -> None:
        """Tell the scheduler that nobody wants the rest; harmless when all is finished."""
        for ticket in self._tickets:
            if not ticket.is_finished:
                ticket.cancel()

    def abort(self) -> None:
        """End it now because the server stops."""
        error = ApiError(503, "the server is shutting down and did not finish this text; try another server, or later")
        self._queue.put_nowait((0, error))

    async def _next(self) -> tuple[int, Event | None | BaseException]:
        left = self._timeout_s - (time.monotonic() - self._began)
        try:
            if self._queue.empty():
                return await asyncio.wait_for(self._queue.get(), max(0.0, left))
            return self._queue.get_nowait()
        except TimeoutError:
            raise ApiError(
                504,
                f"the text was not finished within {self._timeout_s:g} s, the server's limit; ask for fewer tokens",
                code="request_timeout",
            ) from None

    async def _read(self, place: int, ticket: Ticket) -> None:
        try:
            async for event in ticket.aevents():
                if event.finish_reason == "cancelled":
                    self.abort()  # by the scheduler's own closing: whoever cancels here reads no more
                self._queue.put_nowait((place, event))
            self._queue.put_nowait((place, None))
        except ChinchillaError as error:
            self._queue.put_nowait((place, ApiError(500, str(error))))

    def _note(self, place: int, event: Event) -> None:
        if event.is_echo and event.finish_reason is None:
            return
        now, text = time.monotonic(), (place, event.index)
        last = self._last_seen.get(text)
        if last is None:
            self._metrics.count_first_token(now - self._began)
        elif event.token_ids:
            self._metrics.count_next_tokens(now - last, len(event.token_ids))
        self._last_seen[text] = now
        prompt = len(self._tickets[place].request.prompt_ids) if event.is_echo else 0
        self.completion_tokens += max(0, len(event.token_ids) - prompt)


async def collect(run: Run, receive: Receive) -> list[tuple[int, Event]]:
    """Return all events of a run.

    Raises:
        ClientLeft: the client went away; the run is cancelled.
        ApiError: as `Run.events`.
    """

    async def read() -> list[tuple[int, Event]]:
        return [one async for one in run.events()]

    reader = asyncio.create_task(read())
    watcher = asyncio.create_task(until_disconnect(receive))
    try:
        await asyncio.wait({reader, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not reader.done():
            raise ClientLeft
        return reader.result()
    finally:
        watcher.cancel()
        if not reader.done():
            reader.cancel()
            run.cancel()


async def until_disconnect(receive: Receive) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
