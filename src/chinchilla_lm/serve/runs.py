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

from chinchilla_lm.core.errors import ChinchillaError, ConfigError
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
        self._news = asyncio.Event()
        self._ending: Exception | None = None
        self._last_seen: dict[tuple[int, int], float] = {}

    async def events(self, *, at_end: bool = False) -> AsyncIterator[list[tuple[int, Event]]]:
        """Yield what has come since the last time, as (prompt's place, event), until all texts are finished.

        Args:
            at_end: a text's events are wanted only when it is finished.

        Raises:
            ApiError: 504 when the time is over, 503 when the server stops, 500 when the model fails, 400 when the
                request forbids every next token.
            ClientLeft: as `end` was told.
        """
        left = max(0.0, self._timeout_s - (time.monotonic() - self._began))
        timer = asyncio.get_running_loop().call_later(left, self.end, self._too_late())
        try:
            for ticket in self._tickets:
                ticket.listen(self._news.set, at_end=at_end)
            unfinished = dict(enumerate(self._tickets))
            while unfinished:
                self._news.clear()
                found = self._look(unfinished)
                if self._ending is not None:
                    raise self._ending
                if found:
                    yield found
                else:
                    await self._news.wait()
            self._metrics.count_tokens(prompt=self.prompt_tokens, completion=self.completion_tokens)
        finally:
            timer.cancel()
            self.cancel()

    def cancel(self) -> None:
        """Tell the scheduler that nobody wants the rest; harmless when all is finished."""
        for ticket in self._tickets:
            if not ticket.is_finished:
                ticket.cancel()

    def abort(self) -> None:
        """End it now because the server stops."""
        self.end(
            ApiError(503, "the server is shutting down and did not finish this text; try another server, or later")
        )

    def end(self, reason: Exception) -> None:
        """End it now: whoever reads the events gets this error."""
        self._ending = self._ending or reason
        self._news.set()

    async def watch(self, receive: Receive) -> None:
        """End it when the client leaves; to be cancelled when the answer is complete."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self.end(ClientLeft())

    def _look(self, unfinished: dict[int, Ticket]) -> list[tuple[int, Event]]:
        """Return all tickets' news; those that are finished leave `unfinished`."""
        found: list[tuple[int, Event]] = []
        for place, ticket in list(unfinished.items()):
            try:
                is_finished, events = ticket.look()
            except ChinchillaError as error:
                # A form that cannot be followed any further is the client's; all else is ours.
                self.end(ApiError(400 if isinstance(error, ConfigError) else 500, str(error)))
                break
            for published, event in events:
                if event.finish_reason == "cancelled":
                    self.abort()  # by the scheduler's own closing: whoever cancels here reads no more
                self._note(place, event, published)
                found.append((place, event))
            if is_finished:
                del unfinished[place]
        return found

    def _too_late(self) -> ApiError:
        message = f"the text was not finished within {self._timeout_s:g} s, the server's limit; ask for fewer tokens"
        return ApiError(504, message, code="request_timeout")

    def _note(self, place: int, event: Event, published: float) -> None:
        if event.is_echo and event.finish_reason is None:
            return
        text = (place, event.index)
        last = self._last_seen.get(text)
        if last is None:
            self._metrics.count_first_token(published - self._began)
        elif event.token_ids:
            self._metrics.count_next_tokens(published - last, len(event.token_ids))
        self._last_seen[text] = published
        prompt = len(self._tickets[place].request.prompt_ids) if event.is_echo else 0
        self.completion_tokens += max(0, len(event.token_ids) - prompt)


async def collect(run: Run, receive: Receive) -> list[tuple[int, Event]]:
    """Return all events of a run.

    Raises:
        ClientLeft: the client went away; the run is cancelled.
        ApiError: as `Run.events`.
    """
    watcher = asyncio.create_task(run.watch(receive))
    try:
        return [one async for some in run.events(at_end=True) for one in some]
    finally:
        watcher.cancel()
