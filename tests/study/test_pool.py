"""The worker pool: every task once, also when workers die or tasks fail."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from chinchilla_lm.core.errors import ChinchillaError, DataError
from chinchilla_lm.study.pool import WorkerPool


def square(number, report):
    report(0.5, float(number))
    return number * number


def die_once(folder, report):
    marker = Path(folder) / "died"
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


def die(argument, report):
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(argument, report):
    raise DataError("no text; give some")


@pytest.fixture(scope="module")
def pool():
    with WorkerPool(2) as workers:
        yield workers


def test_every_task_is_done_once(pool):
    done = {event.index: event.result for event in pool.run(square, range(7)) if event.kind == "done"}
    assert done == {index: index * index for index in range(7)}


def test_a_killed_worker_is_replaced_and_its_task_done(pool, tmp_path):
    kinds = [(event.kind, event.result) for event in pool.run(die_once, [str(tmp_path)])]
    assert ("lost", None) in kinds
    assert kinds[-1] == ("done", "survived")


def test_a_worker_that_died_while_it_waited_is_replaced(pool):
    for worker in pool._workers:
        os.kill(worker.process.pid, signal.SIGKILL)
        worker.process.join()
    assert [event.result for event in pool.run(square, [3]) if event.kind == "done"] == [9]
    assert all(event.kind != "failed" for event in pool.run(square, range(3)))


def test_a_task_that_kills_its_workers_is_given_up_with_a_clear_line(pool):
    with pytest.raises(ChinchillaError, match="died twice.*resumes"):
        list(pool.run(die, [None]))


def test_an_error_of_a_task_comes_back_as_its_line():
    with WorkerPool(1) as workers:
        events = list(workers.run(refuse, [None]))
    assert [(event.kind, event.error) for event in events] == [("failed", "no text; give some")]
