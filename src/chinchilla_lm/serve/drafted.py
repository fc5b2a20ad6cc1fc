"""A scheduler for a model with a draft: one text at a time, several tokens a pass (speculative decoding).

For one user at a machine: a text comes sooner than alone in `Scheduler`, several do not (see generate/speculative.py).
The same four public parts as `Scheduler`, so that the server does not know which it has.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import replace

import torch
from tokenizers import Tokenizer

from chinchilla_lm.core.errors import ConfigError
from chinchilla_lm.generate.batching import Statistics
from chinchilla_lm.generate.engine import Engine
from chinchilla_lm.generate.request import Event, QueueFull, Request
from chinchilla_lm.generate.sequence import TextSequence
from chinchilla_lm.generate.slots import room_after
from chinchilla_lm.generate.speculative import Speculator
from chinchilla_lm.generate.ticket import Ticket


class DraftedScheduler:
    """Runs requests one after the other. All public methods may be called from any thread."""

    def __init__(
        self, target: Engine, draft: Engine, tokenizer: Tokenizer, *, queue_limit: int, stop_ids: tuple[int, ...]
    ) -> None:
        """Start the worker thread.

        Args:
            target: the model, with one slot; used by the worker alone from now on.
            draft: a smaller one with the same tokenizer.
            tokenizer: of both.
            queue_limit: most requests that wait.
            stop_ids: tokens that end a text if a request names none.

        Raises:
            ConfigError: the vocabularies differ.
        """
        self._speculator = Speculator(target, draft)
        self._target, self._tokenizer, self._queue_limit, self._stop_ids = target, tokenizer, queue_limit, stop_ids
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Ticket, TextSequence]] = deque()
        self._running: Ticket | None = None
        self._counts = Statistics(slots=1)
        self._is_closing = False
        self._thread = threading.Thread(target=self._work, name="chinchilla-drafted", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> Ticket:
        """Put a request in line.

        Raises:
            QueueFull: the line is full, or the scheduler is closing.
            ConfigError: the request asks for what a draft cannot serve, or the prompt does not fit.
        """
        room = room_after(request, self._target)
        if request.choices != 1 or request.constraint is not None or (request.echo and request.logprobs is not None):
            raise ConfigError(
                "a server with a draft writes one choice without response_format or log-probabilities of the prompt; "
                "leave these out, or ask a server without a draft"
            )
        sequence = TextSequence(
            request, 0, self._tokenizer, vocab=self._target.vocab, room=room, stop_ids=self._stop_ids
        )
        ticket = Ticket(request, [sequence], self._wake)
        with self._changed:
            if self._is_closing or len(self._waiting) > self._queue_limit:
                self._count(rejected=1)
                raise QueueFull("the server is shutting down, or too many requests wait already; try again later")
            self._count(accepted=1)
            self._waiting.append((ticket, sequence))
            self._changed.notify()
        return ticket

    def drain(self, timeout_s: float) -> bool:
        """Take no more requests and wait; what has not finished in time is cancelled. Returns whether all finished."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join(timeout_s)
        if not self._thread.is_alive():
            return True
        with self._changed:
            for ticket in [*(ticket for ticket, _ in self._waiting), *([self._running] if self._running else [])]:
                ticket.is_cancelled = True
        self._thread.join()
        return False

    def statistics(self) -> Statistics:
        """Return the counts as they are now."""
        with self._changed:
            running = int(self._running is not None)
            return replace(self._counts, running=running, slots_busy=running, waiting=len(self._waiting))

    @property
    def is_alive(self) -> bool:
        """The worker runs."""
        return self._thread.is_alive()

    @torch.inference_mode()
    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_closing)
                if not self._waiting:
                    return
                self._running, sequence = self._waiting.popleft()
                self._count(prompt_tokens=len(self._running.request.prompt_ids))
            self._write(self._running, sequence)
            with self._changed:
                self._running = None

    def _write(self, ticket: Ticket, sequence: TextSequence) -> None:
        try:
            if not ticket.is_cancelled:
                for event in self._speculator.complete(self._tokenizer, ticket.request, stop_ids=self._stop_ids):
                    ticket.publish(sequence, event)
                    with self._changed:
                        self._count(tokens_generated=0 if event.is_echo else len(event.token_ids))
                    if ticket.is_cancelled:
                        break
        except Exception as error:  # whatever it is, it is this request's: the others go on
            ticket.fail(error)
            with self._changed:
                self._count(failed=1)
            return
        is_cut = not ticket.is_finished
        if is_cut:
            ticket.publish(sequence, Event(index=0, text="", finish_reason="cancelled"))
        with self._changed:
            self._count(cancelled=int(is_cut), finished=int(not is_cut))

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify()

    def _count(self, **more: int) -> None:
        """Add to counters; the lock is held."""
        self._counts = replace(self._counts, **{name: getattr(self._counts, name) + more[name] for name in more})
