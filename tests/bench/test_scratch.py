"""A bench's temporary folder does not outlive the bench."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
sys.path.insert(0, str(BENCH))

from scratch import scratch  # noqa: E402

SCRIPT = """
import sys, time
from scratch import scratch
with scratch("x") as folder:
    (folder / "f32.gguf").write_bytes(b"0" * 1000)
    print(folder, flush=True)
    time.sleep(60)
"""


def start(place: Path) -> tuple[subprocess.Popen[str], Path]:
    paths = os.pathsep.join([str(BENCH), *sys.path])
    environment = {**os.environ, "TMPDIR": str(place), "PYTHONPATH": paths}
    job = subprocess.Popen([sys.executable, "-c", SCRIPT], env=environment, stdout=subprocess.PIPE, text=True)
    assert job.stdout is not None
    return job, Path(job.stdout.readline().strip())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_bench_leaves_nothing(tmp_path: Path, number: int) -> None:
    job, folder = start(tmp_path)
    assert (folder / "f32.gguf").is_file()
    job.send_signal(number)
    job.wait(20)
    assert not list(tmp_path.iterdir())


def test_the_next_run_removes_what_a_killed_one_left_and_nothing_of_a_living_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    killed, left = start(tmp_path)
    living, used = start(tmp_path)
    try:
        killed.kill()
        killed.wait(20)
        assert left.is_dir()
        (tmp_path / "chinchilla-bench-x-notes").mkdir()
        with scratch("x") as folder:
            assert folder.parent == tmp_path
            assert sorted(tmp_path.iterdir()) == sorted([used, folder, tmp_path / "chinchilla-bench-x-notes"])
    finally:
        living.kill()
        living.wait(20)
