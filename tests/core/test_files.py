from __future__ import annotations

import builtins
import errno
import hashlib
import json
import math
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.numpy import save_file

from chinchilla_lm.core import files
from chinchilla_lm.core.errors import DataError


class Crash(BaseException):
    """What a power cut is to the code: nothing below it runs."""


class CountedCalls:
    """Counts the calls that reach the disk and, at the chosen one, does as `fail` says instead."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, fail: Callable[[], None]) -> None:
        self.count, self.at, self.fail, self.is_dead = 0, at, fail, False
        for name in ("fsync", "replace", "rename", "unlink"):
            monkeypatch.setattr(os, name, self.wrap(getattr(os, name)))
        opened = builtins.open

        def open_counted(*args: Any, **kwargs: Any) -> Any:
            stream = opened(*args, **kwargs)
            if "w" in (args[1] if len(args) > 1 else kwargs.get("mode", "r")):
                stream = CountedStream(stream, self)
            return stream

        monkeypatch.setattr(builtins, "open", open_counted)

    def step(self) -> None:
        if self.is_dead:  # after a power cut, the clean-up does not run either
            raise Crash
        self.count += 1
        if self.count == self.at:
            self.fail()

    def wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.step()
            return call(*args, **kwargs)

        return counted

    def cut_power(self) -> None:
        self.is_dead = True
        raise Crash


class CountedStream:
    def __init__(self, stream: Any, calls: CountedCalls) -> None:
        self.stream, self.calls = stream, calls

    def write(self, content: bytes) -> int:
        self.stream.write(content[: len(content) // 2])
        self.stream.flush()
        self.calls.step()
        return self.stream.write(content[len(content) // 2 :])

    def __enter__(self) -> CountedStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def disk_calls_of_one_write(folder: Path) -> int:
    with pytest.MonkeyPatch.context() as monkeypatch:
        calls = CountedCalls(monkeypatch, at=-1, fail=lambda: None)
        files.write_bytes(folder / "counted", b"content")
    return calls.count


def test_a_crash_at_every_call_leaves_the_old_file_whole_or_the_new(tmp_path: Path) -> None:
    target = tmp_path / "law.json"
    steps = disk_calls_of_one_write(tmp_path)
    assert steps >= 4  # write, fsync, rename, fsync of the folder
    for at in range(1, steps + 1):
        target.write_bytes(b"old")
        with pytest.MonkeyPatch.context() as monkeypatch:
            calls = CountedCalls(monkeypatch, at, fail=lambda: calls.cut_power())  # noqa: B023 - called in this round
            with pytest.raises(Crash):
                files.write_bytes(target, b"new content")
        assert target.read_bytes() == (b"old" if at < steps else b"new content")


@pytest.mark.parametrize(("code", "words"), [(errno.ENOSPC, "the disk is full"), (errno.EACCES, "no permission")])
def test_an_error_at_every_call_is_one_line_and_leaves_no_litter(tmp_path: Path, code: int, words: str) -> None:
    target = tmp_path / "law.json"
    steps = disk_calls_of_one_write(tmp_path)

    def fail() -> None:
        raise OSError(code, os.strerror(code))

    for at in range(1, steps):
        target.write_bytes(b"old")
        with pytest.MonkeyPatch.context() as monkeypatch:
            CountedCalls(monkeypatch, at, fail)
            with pytest.raises(DataError) as caught:
                files.write_bytes(target, b"new content")
        message = str(caught.value)
        assert message.startswith(str(target))
        assert words in message
        assert "choose another folder" in message
        assert "\n" not in message
        if code == errno.ENOSPC:
            assert "11 bytes needed" in message
        assert target.read_bytes() == b"old"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["counted", "law.json"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(DataError, match="no permission"):
            files.write_text(tmp_path / "x", "x")
    finally:
        tmp_path.chmod(0o700)


def test_a_full_disk_in_earnest() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("/dev/full exists on Linux only")
    with pytest.raises(DataError, match="disk is full"), files.explain_os_error(Path("x"), needed_bytes=5):
        os.write(os.open("/dev/full", os.O_WRONLY), b"12345")


def test_an_error_of_the_disk_below_a_library_in_rust_is_one_line(tmp_path: Path) -> None:
    weights = {"w": np.zeros(1 << 18, dtype=np.float32)}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        with pytest.raises(SafetensorError):  # which is no OSError
            save_file(weights, tmp_path / "w")
        with pytest.raises(DataError, match=r"^model: File too large; check the disk"):
            save_in_rust(weights, tmp_path / "w")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    full = "Error while serializing: I/O error: No space left on device (os error 28)"  # as it says on a full disk
    with pytest.raises(DataError, match=r"^model: the disk is full \(5 B = 5 bytes needed, "):
        raise_explained(SafetensorError(full))
    with pytest.raises(ValueError, match="ours"):
        raise_explained(ValueError("a fault of ours, not of the disk"))


def save_in_rust(weights: dict[str, Any], path: Path) -> None:
    with files.explain_os_error(Path("model")):
        save_file(weights, path)


def raise_explained(error: Exception) -> None:
    with files.explain_os_error(Path("model"), needed_bytes=5):
        raise error


def test_a_write_cut_short_on_a_full_disk_says_so() -> None:
    cut = OSError("940032 requested and 667072 written")  # NumPy's tofile on a full disk: no error number
    needed = (files.free_bytes(Path("x")) or 0) * 4
    with pytest.raises(DataError, match="the disk is full"), files.explain_os_error(Path("x"), needed_bytes=needed):
        raise cut
    with pytest.raises(DataError, match="667072 written; check the disk"), files.explain_os_error(Path("x")):
        raise cut


def test_work_that_the_disk_cannot_hold_is_refused_before_it_begins(tmp_path: Path) -> None:
    free = files.free_bytes(tmp_path / "not" / "made")
    assert free is not None
    assert free > 0
    files.require_space(tmp_path / "run", free / 2, "checkpoints")
    with pytest.raises(DataError, match=r"run: checkpoints need about .*B, and .*B are free; free some space"):
        files.require_space(tmp_path / "run", 4.0 * free, "checkpoints")
    assert not any(tmp_path.iterdir())


def test_a_file_in_the_place_of_a_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="choose another"):
        files.write_text(tmp_path / "file" / "x", "x")
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    with pytest.raises(DataError, match="choose another"):
        files.write_text(tmp_path / "folder", "x")


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=50))
def test_text_is_written_as_given(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "made" / "text"
    files.write_text(path, text)
    assert path.read_bytes().decode("utf-8") == text


def test_json_keeps_the_order_of_its_keys(tmp_path: Path) -> None:
    files.write_json(tmp_path / "x.json", {"b": [1.5, "ü"], "a": None})
    assert (tmp_path / "x.json").read_text(encoding="utf-8") == '{\n "b": [\n  1.5,\n  "ü"\n ],\n "a": null\n}\n'
    assert list(files.read_json(tmp_path / "x.json")) == ["b", "a"]


@pytest.mark.parametrize("bad", [math.nan, [math.inf], {1, 2}, object()])
def test_json_refuses_what_it_cannot_hold(tmp_path: Path, bad: object) -> None:
    with pytest.raises(DataError, match=r"x\.json"):
        files.write_json(tmp_path / "x.json", {"loss": bad})
    assert list(tmp_path.iterdir()) == []


def test_reading_bad_json_says_so(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"torn": ')
    with pytest.raises(DataError, match=r"x\.json is not JSON"):
        files.read_json(tmp_path / "x.json")
    with pytest.raises(DataError, match="does not exist"):
        files.read_json(tmp_path / "absent.json")


def test_sha256_is_that_of_hashlib(tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "x").write_bytes(content)
    assert files.sha256_file(tmp_path / "x") == hashlib.sha256(content).hexdigest()


def test_a_folder_takes_its_name_when_finished(tmp_path: Path) -> None:
    final = tmp_path / "model"
    for version in ("first", "second"):
        temporary = files.temporary_beside(final)
        (temporary / "inner").mkdir(parents=True)
        files.write_text(temporary / "inner" / "version", version)
        files.replace_directory(temporary, final)
        assert (final / "inner" / "version").read_text() == version
        assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_crash_while_replacing_a_folder_never_shows_a_part(tmp_path: Path) -> None:
    def prepare(folder: Path, name: str) -> tuple[Path, Path]:
        final, temporary = folder / "model", folder / name
        for place, version in ((final, "old"), (temporary, "new")):
            place.mkdir(parents=True)
            (place / "a").write_text(version)
            (place / "b").write_text(version)
        return temporary, final

    for at in range(1, 20):
        temporary, final = prepare(tmp_path / str(at), ".model.1.tmp")
        with pytest.MonkeyPatch.context() as monkeypatch:
            calls = CountedCalls(monkeypatch, at, fail=lambda: calls.cut_power())  # noqa: B023 - called in this round
            try:
                files.replace_directory(temporary, final)
            except Crash:
                pass
            else:
                break
        versions = {(final / name).read_text() for name in ("a", "b")} if final.exists() else {"none"}
        assert versions in ({"old"}, {"new"}, {"none"})
    else:
        pytest.fail("the replacement never finished")


def test_an_error_while_replacing_a_folder_puts_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").touch()
    with pytest.raises(DataError, match="model"):
        files.replace_directory(tmp_path / "absent", tmp_path / "model")
    assert (tmp_path / "model" / "old").exists()


def test_only_the_leftovers_of_dead_processes_are_removed(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    dead_file, dead_folder = tmp_path / f".a.{gone.pid}.tmp", tmp_path / f".b.{gone.pid}.tmp"
    dead_file.touch()
    dead_folder.mkdir()
    (dead_folder / "x").touch()
    alive, other = files.temporary_beside(tmp_path / "c"), tmp_path / "notes.tmp"
    alive.touch()
    other.touch()
    assert files.clean_temporaries(tmp_path, "c") == []  # of one file alone, in a folder that is not ours
    assert files.clean_temporaries(tmp_path) == [dead_file, dead_folder]
    assert sorted(tmp_path.iterdir()) == sorted([alive, other])
    assert files.clean_temporaries(tmp_path / "absent") == []


def test_importing_the_package_reaches_no_heavy_library() -> None:
    code = (
        "import sys, chinchilla_lm, chinchilla_lm.core.records, chinchilla_lm.core.shapes\n"
        "print([name for name in ('torch', 'numpy', 'transformers', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
