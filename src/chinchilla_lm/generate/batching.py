"""The scheduler: many requests share one engine, in one worker thread that decodes all running texts at once.

Each round of the worker drops what was cancelled, gives free slots to waiting choices, reads a part of the unread
prompts (prefilling.py: a limited part, so that a long prompt does not stop the others' text), and adds one token to
every running text (with a draft often several: speculative.py). A text leaves its slot when it ends and another enters
at once (continuous batching: Yu et al. 2022, Orca, section 3.1). What a slot has read stays there: a prompt that begins
with the same tokens does not read them again, in that slot or, by copying, in another.

A request's output does not depend on the others: each choice has its own random numbers, and the engine's rows are
independent: bit for bit in form "kernels", up to rounding in form "torch" (with bfloat16 weights 1 of 40 texts of 50
tokens was another beside seven others, with float32 none of 80, 2026-11-22). A request that fails ends with its error;
the others go on. Never speaks HTTP.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer

from chinchilla_lm.core.errors import ConfigError, ModelError
from chinchilla_lm.generate.engine import Engine
from chinchilla_lm.generate.prefilling import Part, choose_parts, read_together
from chinchilla_lm.generate.request import QueueFull, Request
from chinchilla_lm.generate.sequence import TextSequence
from chinchilla_lm.generate.slots import Lane, Running, choose_slot, prompts_of, room_after
from chinchilla_lm.generate.speculative import Speculator, take_tokens
from chinchilla_lm.generate.text import end_of_text_ids
from chinchilla_lm.generate.ticket import Ticket


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Counts since the start; `running`, `waiting` and `slots_busy` are of this moment.

    Attributes:
        running, waiting: choices in slots, and choices not yet there.
        slots, slots_busy: of the engine.
        accepted, rejected: requests submitted, and requests refused because the line was full.
        finished, cancelled, failed: requests that ended so.
        prompt_tokens: tokens of admitted prompts, of which `prompt_tokens_reused` were in a cache already.
        tokens_generated: tokens chosen, end-of-text tokens included.
        decode_steps, decode_rows: forward passes of decoding, and their texts in sum.
        draft_guesses, draft_kept: tokens that the draft guessed, and those that were right.
    """

    running: int = 0
    waiting: int = 0
    slots: int = 0
    slots_busy: int = 0
    accepted: int = 0
    rejected: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    prompt_tokens_reused: int = 0
    tokens_generated: int = 0
    decode_steps: int = 0
    decode_rows: int = 0
    draft_guesses: int = 0
    draft_kept: int = 0


class Scheduler:
    """Runs requests on an engine, several at a time. All public methods may be called from any thread."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        *,
        queue_limit: int = 64,
        stop_ids: tuple[int, ...] | None = None,
        draft: Engine | None = None,
    ) -> None:
        """Start the worker thread.

        Args:
            engine: used by the worker alone from now on.
            draft: of a smaller model with the same tokenizer and as many slots, to guess tokens; texts stay the same.
            tokenizer: of the engine's model.
            queue_limit: most requests that wait for a slot, >= 0; more are refused.
            stop_ids: tokens that end a text if a request names none; None takes the tokenizer's end-of-text token.
        """
        if queue_limit < 0:
            raise ConfigError(f"queue_limit must be >= 0, got {queue_limit}; 64 lets as many requests wait")
        self._engine, self._tokenizer, self._queue_limit = engine, tokenizer, queue_limit
        self._stop_ids = end_of_text_ids(tokenizer) if stop_ids is None else stop_ids
        self._speculator = None if draft is None else Speculator(engine, draft)
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Ticket, deque[TextSequence]]] = deque()
        self._running: list[Running] = []
        self._free = deque(range(engine.slots))  # the longest unused first
        self._counts: Counter[str] = Counter()
        self._turn = 0  # whose prompt is read next
        self._is_closing = False
        self._thread = threading.Thread(target=self._work, name="chinchilla-scheduler", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> Ticket:
        """Put a request in line.

        Raises:
            QueueFull: the line is full, or the scheduler is closing.
            ModelError: a prompt does not fit the engine.
            ConfigError: a token is outside the vocabulary, or the constraint cannot be enforced.
        """
        room = room_after(request, self._engine)
        sequences = [
            TextSequence(request, index, self._tokenizer, vocab=self._engine.vocab, room=room, stop_ids=self._stop_ids)
            for index in range(request.choices)
        ]
        ticket = Ticket(request, sequences, self._wake)
        with self._changed:
            if self._is_closing:
                raise QueueFull("the server is shutting down and takes no more requests; try another, or later")
            if len(self._waiting) >= self._queue_limit + len(self._free):
                self._count(rejected=1)
                raise QueueFull(f"{len(self._waiting)} requests wait already, which is the limit; try again later")
            self._count(accepted=1)
            self._waiting.append((ticket, deque(sequences)))
            self._changed.notify()
        return ticket

    def drain(self, timeout_s: float) -> bool:
        """Take no more requests, wait for those accepted, end the worker; what has not finished in time is cancelled.

        Returns:
            Whether all finished in time.
        """
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join(timeout_s)
        if not self._thread.is_alive():
            return True
        with self._changed:
            for ticket in self._tickets():
                ticket.is_cancelled = True
        self._thread.join()
        return False

    def statistics(self) -> Statistics:
        """Return the counts as they are now."""
        with self._changed:
            return Statistics(
                **self._counts,
                slots=self._engine.slots,
                running=len(self._running),
                waiting=sum(len(sequences) for _, sequences in self._waiting),
                slots_busy=self._engine.slots - len(self._free),
            )

    @property
    def is_alive(self) -> bool:
        """The worker runs; False after `drain`, or if a bug of ours ended it."""
        return self._thread.is_alive()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify()

    def _tickets(self) -> list[Ticket]:
        return [*(ticket for ticket, _ in self._waiting), *(running.ticket for running in self._running)]

    def _count(self, **more: int) -> None:
        """Add to counters; the lock is held."""
        for name, count in more.items():
            self._counts[name] += count

    # The worker's side: only its thread calls what follows.

    @torch.inference_mode()
    def _work(self) -> None:
        try:
            while self._wait_for_work():
                self._drop_cancelled()
                self._admit()
                self._prefill()
                self._decode()
        except BaseException as error:  # a bug of ours: nobody shall wait for ever
            with self._changed:
                self._is_closing = True
                for ticket in self._tickets():
                    ticket.fail(ModelError(f"the scheduler stopped: {error!r}; restart it and report this"))
            raise

    def _wait_for_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._running or self._is_closing)
            return bool(self._waiting or self._running)

    def _drop_cancelled(self) -> None:
        with self._changed:
            if not any(ticket.is_cancelled for ticket in self._tickets()):
                return
            kept: deque[tuple[Ticket, deque[TextSequence]]] = deque()
            dropped = [running for running in self._running if running.ticket.is_cancelled]
            waiting = [(ticket, sequence) for ticket, line in self._waiting for sequence in line if ticket.is_cancelled]
            kept.extend((ticket, line) for ticket, line in self._waiting if not ticket.is_cancelled)
            self._waiting = kept
            for running in dropped:
                self._release(running)
        for ticket, sequence in [*((running.ticket, running.sequence) for running in dropped), *waiting]:
            self._publish_end(ticket, sequence)

    def _publish_end(self, ticket: Ticket, sequence: TextSequence) -> None:
        if not ticket.is_finished:
            ticket.publish(sequence, sequence.cancel())
            if ticket.is_finished:
                with self._changed:
                    self._count(cancelled=1)

    def _admit(self) -> None:
        """Give free slots to waiting choices: requests in the order they came, one choice of each in turn."""
        with self._changed:
            while self._waiting:
                ticket, line = self._waiting[0]
                prompts = prompts_of(ticket.request)
                if len(prompts) > len(self._free):
                    break
                self._waiting.popleft()
                sequence = line.popleft()
                if line:
                    self._waiting.append((ticket, line))
                lanes = [self._open_lane(prompt, is_scored=sequence.needs_prompt_logprobs) for prompt in prompts]
                self._running.append(Running(ticket, sequence, lanes))

    def _open_lane(self, prompt_ids: tuple[int, ...], *, is_scored: bool) -> Lane:
        slot, shared = choose_slot(self._engine, self._free, prompt_ids)
        self._free.remove(slot)
        reused = 0 if is_scored else min(shared, len(prompt_ids) - 1)
        self._count(prompt_tokens=len(prompt_ids), prompt_tokens_reused=reused)
        return Lane(slot, prompt_ids, filled=reused)

    def _prefill(self) -> None:
        """Read a part of the prompts that are not read yet: several at once, each in turn."""
        unread = [running for running in self._running if not running.is_prefilled]
        if not unread:
            return
        parts, copied = choose_parts(self._engine, unread, self._turn)
        self._turn += len(parts)
        with self._changed:
            self._count(prompt_tokens_reused=copied)
        alone = [part for part in parts if part.running.must_score]
        together = [part for part in parts if part not in alone]
        if together:
            try:
                read_together(self._engine, together)
            except Exception:  # one prompt's fault (a nan) must not end the others: each alone
                alone += together
        for part in alone:
            self._read_alone(part)
        for part in parts:
            if not part.running.ticket.is_finished and part.running.is_prefilled:
                self._begin(part.running)

    def _read_alone(self, part: Part) -> None:
        if part.running.ticket.is_finished:  # another choice of it failed just now
            return
        try:
            part.running.prefill(self._engine, part.end - part.lane.filled)
        except Exception as error:  # whatever it is, it is this request's: the others go on
            self._fail(part.running, error)

    def _begin(self, running: Running) -> None:
        try:
            event = running.begin()
            if event is not None:
                running.ticket.publish(running.sequence, event)
            self._advance(running)
        except Exception as error:  # see _read_alone
            self._fail(running, error)

    def _decode(self) -> None:
        """Add one token, or more if a draft guesses right, to every text whose prompt is read."""
        ready = [running for running in self._running if running.is_prefilled]
        lanes = [(lane, running) for running in ready for lane in running.lanes]
        if not lanes:
            return
        with self._changed:
            self._count(decode_steps=1, decode_rows=len(lanes))
        guesses = {} if self._speculator is None else self._speculator.guess(ready)
        lengths = [self._engine.length(lane.slot) for lane, _ in lanes]
        rows = [[running.sequence.token_ids[-1], *guesses.get(running, ())] for _, running in lanes]
        try:
            logits_wv = self._engine.extend_many([lane.slot for lane, _ in lanes], rows)
        except Exception:  # one text's fault (a nan) must not end the others: each alone
            for (lane, _), length in zip(lanes, lengths, strict=True):
                self._engine.truncate(lane.slot, length)
            for running in ready:
                self._decode_alone(running)
            return
        for (lane, _), rows_tv in zip(lanes, logits_wv.split_with_sizes([len(row) for row in rows]), strict=True):
            lane.rows_tv = rows_tv
        for running in ready:
            self._take(running, guesses.get(running, []))

    def _decode_alone(self, running: Running) -> None:
        if running.ticket.is_finished:
            return
        try:
            running.decode(self._engine)
        except Exception as error:  # see _decode
            self._fail(running, error)
        else:
            self._take(running, [])

    def _take(self, running: Running, guesses: list[int]) -> None:
        kept = take_tokens(self._engine, running, guesses, lambda: self._try_advance(running))
        if guesses and self._speculator is not None:
            self._speculator.note(len(guesses), kept)
            with self._changed:
                self._count(draft_guesses=len(guesses), draft_kept=kept)

    def _try_advance(self, running: Running) -> None:
        if running.ticket.is_finished:  # another choice of it failed just now
            return
        try:
            self._advance(running)
        except Exception as error:  # see _read_alone
            self._fail(running, error)

    def _advance(self, running: Running) -> None:
        """Choose the next token, pass on its text, and free the slots after the last."""
        if running.sequence.finish_reason is None:
            event = running.advance()
            with self._changed:
                self._count(tokens_generated=1)
            if event is not None:
                running.ticket.publish(running.sequence, event)
        if running.sequence.finish_reason is not None:
            with self._changed:
                self._release(running)
                if running.ticket.is_finished:
                    self._count(finished=1)

    def _fail(self, running: Running, error: Exception) -> None:
        """End the whole request with its error; its other choices are dropped."""
        running.ticket.fail(error)
        with self._changed:
            self._count(failed=1)
            self._waiting = deque(entry for entry in self._waiting if entry[0] is not running.ticket)
            for other in [other for other in self._running if other.ticket is running.ticket]:
                for lane in other.lanes:
                    self._engine.clear(lane.slot)
                self._release(other)

    def _release(self, running: Running) -> None:
        """Give its slots back, with what they hold; the lock is held."""
        self._running.remove(running)
        self._free.extend(lane.slot for lane in running.lanes)
