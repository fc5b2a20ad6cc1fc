"""A few worker processes side by side, each with its own threads: the sweep's engine on one machine.

Two single-threaded workers train tiny models faster than one process on two threads. A worker that dies (out of memory,
kill -9) is replaced and its task is given once more; a worker whose controller is gone ends itself at its next report.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Literal

from chinchilla_lm.core.errors import ChinchillaError

_REPORT_EVERY_SECONDS = 0.5
_MOST_ATTEMPTS = 2

# A task is a module-level function (argument, report) -> result; report(fraction, loss) may be called at any rate.
Task = Callable[[Any, Callable[[float, float], None]], Any]


@dataclass(frozen=True, kw_only=True)
class PoolEvent:
    """What happened to one task.

    Attributes:
        kind: "progress", "done", "failed" (the task raised) or "lost" (its worker died and it is given again).
        index: of the task in the list given.
        fraction: of it done, for "progress".
        loss: last training loss, for "progress".
        result: what the task returned, for "done".
        error: what it raised, for "failed".
    """

    kind: Literal["progress", "done", "failed", "lost"]
    index: int
    fraction: float = 0.0
    loss: float = 0.0
    result: Any = None
    error: str = ""


class WorkerPool:
    """Worker processes that live from `with` to its end, so that each imports torch once."""

    def __init__(self, n_workers: int) -> None:
        """Starts nothing yet.

        Args:
            n_workers: processes.
        """
        self.n_workers = n_workers
        self._workers: list[_Worker] = []

    def __enter__(self) -> WorkerPool:
        """Start the workers."""
        self._workers = [_Worker() for _ in range(self.n_workers)]
        return self

    def __exit__(self, *_: object) -> None:
        """End the workers at once, whatever they do."""
        for worker in self._workers:
            worker.end()

    def run(self, task: Task, arguments: Sequence[Any]) -> Iterator[PoolEvent]:
        """Do the task for each argument, in order of start, as workers become free.

        Args:
            task: a function of a module, so that it can be sent by name.
            arguments: picklable; the longest first keeps all workers busy to the end.

        Yields:
            Events until every task is done or failed.

        Raises:
            ChinchillaError: a task's worker died twice.
        """
        waiting = deque(range(len(arguments)))
        attempts = [0] * len(arguments)
        left = len(arguments)
        while left:
            for worker in tuple(self._workers):
                if worker.index is None and waiting:
                    index = waiting.popleft()
                    attempts[index] += 1
                    try:
                        worker.give(index, task, arguments[index])
                    except OSError:  # it died while it waited: nothing is lost yet
                        self._replace(worker).give(index, task, arguments[index])
            for event in self._next_events():
                if event.kind == "lost":
                    if attempts[event.index] >= _MOST_ATTEMPTS:
                        raise ChinchillaError(
                            f"the worker of task {event.index + 1} died twice (out of memory?); the same command "
                            "resumes, with fewer --threads if memory is short"
                        )
                    waiting.appendleft(event.index)
                left -= event.kind in ("done", "failed")
                yield event

    def _next_events(self) -> list[PoolEvent]:
        busy = {worker.pipe: worker for worker in self._workers if worker.index is not None}
        events: list[PoolEvent] = []
        for ready in wait(list(busy), timeout=_REPORT_EVERY_SECONDS):
            worker = busy[ready]  # type: ignore[index]
            index = worker.index
            assert index is not None
            try:
                kind, *content = worker.pipe.recv()
            except (EOFError, OSError):  # the worker is dead
                self._replace(worker)
                events.append(PoolEvent(kind="lost", index=index))
                continue
            if kind == "progress":
                events.append(PoolEvent(kind="progress", index=index, fraction=content[0], loss=content[1]))
                continue
            worker.index = None
            is_done = kind == "done"
            events.append(
                PoolEvent(
                    kind="done" if is_done else "failed",
                    index=index,
                    result=content[0] if is_done else None,
                    error="" if is_done else content[0],
                )
            )
        return events

    def _replace(self, worker: _Worker) -> _Worker:
        """Start a worker in the place of a dead one."""
        fresh = self._workers[self._workers.index(worker)] = _Worker()
        worker.end()
        return fresh


class _Worker:
    """One process, its pipe, and the task it has."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.index: int | None = None
        self.process: SpawnProcess = context.Process(target=_serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    def give(self, index: int, task: Task, argument: Any) -> None:
        self.index = index
        self.pipe.send((task, argument))

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _serve(pipe: Connection) -> None:
    """Do tasks until the controller is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the controller decides
    last_report = 0.0

    def report(fraction: float, loss: float) -> None:
        nonlocal last_report
        if time.monotonic() - last_report >= _REPORT_EVERY_SECONDS:
            last_report = time.monotonic()
            pipe.send(("progress", fraction, loss))

    while True:
        try:
            task, argument = pipe.recv()
        except EOFError:
            return
        try:
            answer = ("done", task(argument, report))
        except BrokenPipeError:
            return
        except ChinchillaError as error:
            answer = ("failed", str(error))
        except Exception:  # a bug of ours: the controller must see where
            answer = ("failed", traceback.format_exc())
        try:
            pipe.send(answer)
        except BrokenPipeError:
            return
