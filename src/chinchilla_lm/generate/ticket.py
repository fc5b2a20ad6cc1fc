"""What a caller holds of a submitted request: its events, in threads or in asyncio, and the right to cancel.

The scheduler's worker publishes; any other thread reads. Never runs a model.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace

from chinchilla_lm.generate.request import Choice, Event, Request, TokenLogprob, join_events
from chinchilla_lm.generate.sequence import TextSequence


class Ticket:
    """A request in the scheduler's hands. Read its events once, in one place.

    Attributes:
        request: what was asked.
        sequences: its choices in progress.
        prompt_logprobs: of the prompt once one choice has scored it, if the request asks for them.
    """

    def __init__(self, request: Request, sequences: list[TextSequence], wake_scheduler: Callable[[], None]) -> None:
        """Made by `Scheduler.submit`."""
        self.request, self.sequences = request, sequences
        self.prompt_logprobs: list[TokenLogprob] = []
        self.is_cancelled = False
        self._wake_scheduler = wake_scheduler
        self._changed = threading.Condition()
        self._events: deque[tuple[float, Event]] = deque()  # with the time.monotonic() of their publishing
        self._withheld: list[list[Event]] = [[] for _ in sequences]
        self._unfinished = len(sequences)
        self._error: Exception | None = None
        self._listener: Callable[[], object] | None = None
        self._tells_end_only = False
        self._has_told = False  # since the listener last looked

    @property
    def is_finished(self) -> bool:
        """Every choice has had its last event, or the request failed."""
        return self._unfinished == 0 or self._error is not None

    def cancel(self) -> None:
        """End the request soon; its choices end with the reason "cancelled". May be called from any thread, again."""
        self.is_cancelled = True
        self._wake_scheduler()

    def events(self) -> Iterator[Event]:
        """Yield the events as they come; leaving the iteration early cancels the request.

        Raises:
            ChinchillaError: what made the request fail.
        """
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._events or self.is_finished)
                    if not self._events:
                        break
                    event = self._events.popleft()[1]
                yield event
        finally:
            if not self.is_finished:
                self.cancel()
        if self._error is not None:
            raise self._error

    async def aevents(self) -> AsyncIterator[Event]:
        """`events` for asyncio; closing it (a client that left) cancels the request."""
        news = asyncio.Event()
        self.listen(news.set)
        try:
            while True:
                news.clear()
                is_finished, events = self.look()
                for _, event in events:
                    yield event
                if is_finished:
                    break
                if not events:
                    await news.wait()
        finally:
            self._listener = None
            if not self.is_finished:
                self.cancel()
        if self._error is not None:
            raise self._error

    def listen(self, listener: Callable[[], None], *, at_end: bool = False) -> None:
        """Have a function called in this thread's event loop when there is news after a `look`; replaces the last.

        Args:
            listener: called without delay.
            at_end: the only news is the end.
        """
        loop = asyncio.get_running_loop()
        self._listener, self._tells_end_only = lambda: loop.call_soon_threadsafe(listener), at_end

    def look(self) -> tuple[bool, tuple[tuple[float, Event], ...]]:
        """Return whether it is finished, and what has come since the last look, without waiting.

        Returns:
            Finished or not; (time.monotonic() of its publishing, event) of each. If there are events, look once more
            before waiting: a failure comes after them.

        Raises:
            ChinchillaError: what made the request fail.
        """
        with self._changed:
            is_finished, events, error = self._unfinished == 0, tuple(self._events), self._error
            self._events.clear()
            self._has_told = False
        if error is not None and not events:
            raise error
        return is_finished, events

    def take(self) -> tuple[Event, ...]:
        """Return the events that have come since the last look, without waiting."""
        with self._changed:
            events = tuple(event for _, event in self._events)
            self._events.clear()
        return events

    def result(self) -> list[Choice]:
        """Wait for the end; return the n choices.

        Raises:
            ChinchillaError: what made the request fail.
        """
        return join_events(self.events())

    def publish(self, sequence: TextSequence, event: Event) -> None:
        """For the worker: pass on an event, or keep it until the best choices are known."""
        with self._changed:
            if self.request.choices > self.request.n:
                self._withheld[sequence.index].append(event)
            else:
                self._events.append((time.monotonic(), event))
            if event.finish_reason is not None:
                self._unfinished -= 1
                if self._unfinished == 0 and self.request.choices > self.request.n:
                    self._events.extend((time.monotonic(), best) for best in self._best_choices())
            self._tell()

    def fail(self, error: Exception) -> None:
        """For the worker: the request ends with an error."""
        with self._changed:
            self._error = error
            self._tell()

    def _best_choices(self) -> list[Event]:
        ranked = sorted(self.sequences, key=lambda sequence: (-sequence.mean_logprob, sequence.index))
        best = [join_events(self._withheld[sequence.index])[0] for sequence in ranked[: self.request.n]]
        return [
            Event(
                index=index,
                text=choice.text,
                token_ids=choice.token_ids,
                logprobs=choice.logprobs,
                finish_reason=choice.finish_reason,
                is_echo=self.request.echo,
            )
            for index, choice in enumerate(replace(choice, index=place) for place, choice in enumerate(best))
        ]

    def _tell(self) -> None:
        self._changed.notify_all()
        is_news = self.is_finished or not self._tells_end_only
        listener = self._listener  # read once: a reader that leaves takes it away meanwhile
        if listener is not None and is_news and not self._has_told:
            self._has_told = True  # each call wakes the loop: one is enough until it looks
            try:
                listener()
            except RuntimeError:  # the reader's event loop is closed: nobody will read on
                self.is_cancelled = True
