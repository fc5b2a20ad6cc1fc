"""A crash, a full disk or a broken disk at *every* system call of a save: an older checkpoint always loads.

The fault layer stands between `core.files` and the operating system: it counts opens, writes, flushes, renames, folder
makings and removals, and strikes at the n-th. A struck write has written half of its bytes.
"""

from __future__ import annotations

import builtins
import errno
import itertools
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from chinchilla_lm.core.errors import CheckpointError, ChinchillaError
from chinchilla_lm.model.transformer import Transformer, initialise
from chinchilla_lm.train.checkpoint import (
    latest_checkpoint,
    list_checkpoints,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from chinchilla_lm.train.config import TrainConfig
from chinchilla_lm.train.optimizer import build_optimizer

CRASHED = 99
CALLS = ("fsync", "replace", "rename", "mkdir", "unlink", "rmdir")
FAULTS = {"crash": None, "disk full": errno.ENOSPC, "disk broken": errno.EIO}


class Faults:
    """Counts calls; strikes at call number `strike_at` (from 0). Its log says what was done, in order."""

    def __init__(self, strike_at: int | None = None, error: int | None = None) -> None:
        self.strike_at, self.error = strike_at, error
        self.log: list[tuple[str, str]] = []

    def is_struck(self, call: str, target: Any) -> bool:
        self.log.append((call, name_of(target)))
        return len(self.log) - 1 == self.strike_at

    def strike(self) -> None:
        if self.error is None:
            os._exit(CRASHED)
        raise OSError(self.error, os.strerror(self.error))

    @contextmanager
    def installed(self) -> Iterator[None]:
        real = {name: getattr(os, name) for name in CALLS}
        real_open = builtins.open

        def wrap(call: str) -> Callable[..., Any]:
            def faulty(*arguments: Any, **options: Any) -> Any:
                if self.is_struck(call, arguments[0]):
                    self.strike()
                return real[call](*arguments, **options)

            return faulty

        def faulty_open(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            if "w" not in mode:
                return real_open(file, mode, *arguments, **options)
            if self.is_struck("open", file):
                self.strike()
            return FaultyStream(real_open(file, mode, *arguments, **options), self)

        for name in CALLS:
            setattr(os, name, wrap(name))
        builtins.open = faulty_open  # type: ignore[assignment]
        try:
            yield
        finally:
            builtins.open = real_open
            for name in CALLS:
                setattr(os, name, real[name])


class FaultyStream:
    def __init__(self, stream: Any, faults: Faults) -> None:
        self._stream, self._faults = stream, faults

    def write(self, content: bytes) -> int:
        if self._faults.is_struck("write", self._stream.fileno()):
            self._stream.write(content[: len(content) // 2])
            self._stream.flush()
            self._faults.strike()
        return self._stream.write(content)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __enter__(self) -> FaultyStream:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()


def name_of(target: Any) -> str:
    path = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else os.fspath(target)
    return Path(path).name


class Run:
    """A job folder with checkpoints of steps 1 and 2, and the state that a third save would write."""

    def __init__(self, folder: Path, config: TrainConfig) -> None:
        self.folder, self.config = folder, config
        self.model = Transformer(config.shape)
        initialise(self.model, 0)
        self.optimizer = build_optimizer(self.model, config.optimizer)
        self.weights: dict[int, torch.Tensor] = {}
        for step in (1, 2):
            self.update(step)
            save_checkpoint(folder, step, self.model, self.optimizer, {})

    def update(self, step: int) -> None:
        for parameter in self.model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step))
        self.optimizer.step()
        self.weights[step] = self.model.embedding.detach().clone()

    def save(self, step: int) -> None:
        save_checkpoint(self.folder, step, self.model, self.optimizer, {})
        prune_checkpoints(self.folder, newest_step=step, keep=2)

    def loaded_step(self) -> int:
        """Load the newest valid checkpoint; it must be bit-identical to what was saved at its step."""
        path, _ = latest_checkpoint(self.folder)
        assert path is not None
        model = Transformer(self.config.shape)
        step = load_checkpoint(path, model, build_optimizer(model, self.config.optimizer))["step"]
        assert torch.equal(model.embedding, self.weights[step])
        return step


needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the fault layer names files through /proc")


@needs_proc
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_some_calls_of_a_save_leaves_a_whole_checkpoint(small_config, tmp_path, fault):
    assert strike_calls(tmp_path, small_config, fault, step=3, stride=6) >= 7


@needs_proc
@pytest.mark.torture
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("step", [3, 2], ids=["new step", "same step again"])
def test_a_fault_at_every_call_of_a_save_leaves_a_whole_checkpoint(small_config, tmp_path, fault, step, capsys):
    began = time.monotonic()
    struck = strike_calls(tmp_path, small_config, fault, step, stride=1)
    with capsys.disabled():
        print(f"\n{fault}, step {step}: {struck} points, all with a whole checkpoint, {time.monotonic() - began:.0f} s")
    assert struck >= 40  # 5 files of open, write, fsync, replace and fsync of the folder; then the folder's own


def strike_calls(folder: Path, config: TrainConfig, fault: str, step: int, stride: int) -> int:
    """Save under a fault at every `stride`-th call; return how many calls were struck."""
    for struck, point in enumerate(itertools.count(0, stride)):
        run = Run(folder / f"{point}", config)
        if step == 3:
            run.update(3)
        faults = Faults(point, FAULTS[fault])
        is_struck = crash_in_child(run, faults, step) if fault == "crash" else fail_here(run, faults, step)
        # Saving a step again may lose that step, never the one before it.
        assert run.loaded_step() in ((2, 3) if step == 3 else (1, 2))
        if not is_struck:
            return struck
        run.save(step)  # the next save works, and tidies up
        assert run.loaded_step() == step
        assert all(path.name.startswith("step-") for path in run.folder.iterdir()), list(run.folder.iterdir())
    raise AssertionError("unreachable")


def crash_in_child(run: Run, faults: Faults, step: int) -> bool:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with faults.installed():
                run.save(step)
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, CRASHED)
    return code == CRASHED


def fail_here(run: Run, faults: Faults, step: int) -> bool:
    """Save with an error injected: it is raised as one clear line, or it struck the tidying up and is harmless."""
    message = None
    try:
        with faults.installed():
            run.save(step)
    except ChinchillaError as error:
        message = str(error)
    if message is not None:
        assert "\n" not in message
        assert ("the disk is full" in message) == (faults.error == errno.ENOSPC)
        assert ";" in message, "a message says the way out"
        return True
    assert run.loaded_step() == step
    return len(faults.log) > faults.strike_at


@needs_proc
def test_a_power_cut_cannot_reorder_the_save(small_config, tmp_path):
    """Everything is on the disk before the folder gets its name; the name is on the disk before the save returns."""
    run = Run(tmp_path / "run", small_config)
    run.update(3)
    faults = Faults()
    with faults.installed():
        save_checkpoint(run.folder, 3, run.model, run.optimizer, {})
    temporary = f".step-000000003.{os.getpid()}.tmp"
    named = faults.log.index(("rename", temporary))
    flushed = [name for call, name in faults.log[:named] if call == "fsync"]
    for name in ("weights.safetensors", "optimizer.safetensors", "random.safetensors", "state.json", "manifest.json"):
        assert flushed.count(name) >= 1
    assert flushed[-1] == temporary
    opened = [name for call, name in faults.log if call == "open"]
    assert "manifest" in opened[-1]
    assert ("fsync", "run") in faults.log[named:]


def test_a_file_too_large_for_the_disk_is_one_clear_line(small_config, tmp_path):
    """No injection: the kernel itself refuses the write (RLIMIT_FSIZE)."""
    run = Run(tmp_path / "run", small_config)
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
            run.save(3)
        except CheckpointError as error:
            os.write(write_end, str(error).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    os.waitpid(pid, 0)
    with os.fdopen(read_end) as stream:
        message = stream.read()
    assert "checkpoint of step 3 not written, older ones are kept" in message
    assert "File too large" in message
    assert [path.name[-1] for path in list_checkpoints(run.folder)] == ["1", "2"]
    assert run.loaded_step() == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_one_clear_line(small_config, tmp_path):
    run = Run(tmp_path / "run", small_config)
    run.folder.chmod(0o500)
    with pytest.raises(CheckpointError, match="no permission"):
        run.save(3)
    run.folder.chmod(0o700)
    assert run.loaded_step() == 2
