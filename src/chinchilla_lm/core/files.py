"""Files that are whole or absent, never torn.

Every file is written under a temporary name in its own folder, flushed to the disk, renamed over the old one, and the
folder is flushed: after a crash at any point a reader finds the old content or the new, whole.
A full disk or a missing permission is one clear line. It never appends (see `chinchilla_lm.core.records`).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

from chinchilla_lm.core.errors import ChinchillaError, DataError
from chinchilla_lm.core.units import format_bytes

_TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp", re.DOTALL)
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")  # how Rust's standard library ends each message of the system
_HASH_BLOCK_BYTES = 1 << 20


def write_bytes(path: Path | str, content: bytes) -> None:
    """Write a file at once: readers see the old content or all of the new.

    Args:
        path: the file; missing parent folders are made.
        content: every byte of it.

    Raises:
        DataError: the disk is full, or the place may not be written.
    """
    write_blocks(path, (content,), needed_bytes=len(content))


def write_blocks(path: Path | str, blocks: Iterable[bytes | memoryview], *, needed_bytes: int | None = None) -> None:
    """Write a file at once, as `write_bytes`, whose content need not be whole in memory.

    Args:
        path: the file; missing parent folders are made.
        blocks: its bytes, in order; taken one at a time.
        needed_bytes: their sum where it is known, for the message about a full disk.

    Raises:
        DataError: the disk is full, or the place may not be written.
    """
    target = Path(path)
    temporary = temporary_beside(target)
    with explain_os_error(target, needed_bytes=needed_bytes):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as stream:
                for block in blocks:
                    stream.write(block)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        _flush_folder(target.parent)


def write_text(path: Path | str, text: str) -> None:
    """Write UTF-8 text at once, line ends as given (see `write_bytes`)."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path | str, value: Any) -> None:
    """Write one JSON document at once, keys in the order given, one space of indent.

    Args:
        path: the file.
        value: plain values.

    Raises:
        DataError: a value that JSON cannot hold (nan and inf included), or as `write_bytes`.
    """
    try:
        text = json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{path} cannot hold this value ({error}); JSON takes finite numbers, text, lists and tables"
        ) from None
    write_text(path, text + "\n")


def read_json(path: Path | str) -> Any:
    """Read one JSON document.

    Args:
        path: the file.

    Returns:
        Its value.

    Raises:
        DataError: the file is absent, unreadable or not JSON.
    """
    with explain_os_error(Path(path)):
        content = Path(path).read_bytes()
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, thousands of digits, nested too deep
        raise DataError(f"{path} is not JSON ({error}); delete it and run the command that wrote it again") from None


def sha256_file(path: Path | str) -> str:
    """Return the SHA-256 of a file's bytes, as 64 hexadecimal digits.

    Raises:
        DataError: the file is absent or unreadable.
    """
    digest = hashlib.sha256()
    with explain_os_error(Path(path)), open(path, "rb") as stream:
        while block := stream.read(_HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def temporary_beside(path: Path | str) -> Path:
    """Return the name under which this process prepares `path`, in the same folder (so that a rename is atomic)."""
    target = Path(path)
    return target.with_name(f".{target.name}.{os.getpid()}.tmp")


def replace_directory(temporary: Path | str, final: Path | str) -> None:
    """Give a finished folder its final name; a folder that had the name is replaced and removed.

    Every file in it is flushed first. POSIX cannot swap two filled folders at once: between two renames a crash leaves
    no folder under the final name, and never a partial one.

    Args:
        temporary: the finished folder, on the same disk (see `temporary_beside`).
        final: its name.

    Raises:
        DataError: the disk is full, or the place may not be written.
    """
    source, target = Path(temporary), Path(final)
    with explain_os_error(target):
        for folder, _, names in os.walk(source):
            for name in names:
                _flush_file(Path(folder, name))
            _flush_folder(Path(folder))
        replaced = target.with_name(f".{target.name}.replaced.{os.getpid()}.tmp")
        has_old = target.exists()
        if has_old:
            shutil.rmtree(replaced, ignore_errors=True)
            os.rename(target, replaced)
        try:
            os.rename(source, target)
        except OSError:
            if has_old:
                os.rename(replaced, target)
            raise
        _flush_folder(target.parent)
        shutil.rmtree(replaced, ignore_errors=True)


def clean_temporaries(folder: Path | str, name: str = "") -> list[Path]:
    """Remove what crashed processes left half written in a folder (not in its subfolders).

    Args:
        folder: where to look; an absent folder has nothing to clean.
        name: of the one file or folder whose leavings go, in a folder that is not ours alone.

    Returns:
        The files and folders removed: those named by `temporary_beside` whose process is gone.
    """
    removed: list[Path] = []
    if not Path(folder).is_dir():
        return removed
    for path in sorted(Path(folder).iterdir()):
        match = _TEMPORARY.fullmatch(path.name)
        if match is None or not path.name.startswith(f".{name}") or is_alive(int(match[1])):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        removed.append(path)
    return removed


def require_space(folder: Path | str, needed_bytes: float, content: str) -> None:
    """Refuse work whose files the disk cannot hold, before it begins.

    Args:
        folder: where they will be; it need not exist yet.
        needed_bytes: an estimate of what will be on the disk at once, over what is there now.
        content: what they are, in the plural, for the message.

    Raises:
        DataError: less than that is free. A disk that does not say how much is free refuses nothing.
    """
    free = free_bytes(folder)
    if free is not None and needed_bytes > free:
        raise DataError(
            f"{folder}: {content} need about {format_bytes(needed_bytes)}, and {format_bytes(free)} are free; "
            "free some space, or choose another folder"
        )


def free_bytes(path: Path | str) -> int | None:
    """Return how much this user may still write on the disk of a path, which need not exist; None if it is not said."""
    place = Path(path).absolute()
    with contextlib.suppress(OSError):
        return shutil.disk_usage(next(folder for folder in (place, *place.parents) if folder.exists())).free
    return None


@contextlib.contextmanager
def explain_os_error(path: Path, needed_bytes: int | None = None) -> Generator[None]:
    """Turn the operating system's errors about `path` into one line that says the way out.

    Args:
        path: the file or folder that the block reads or writes.
        needed_bytes: how much the block writes, for the message about a full disk.

    Raises:
        DataError: in place of an OSError, or of what a library written in Rust (safetensors, tokenizers) makes of one.
    """
    try:
        yield
    except OSError as error:
        raise _explanation(path, error, needed_bytes) from error
    except Exception as error:  # safetensors raises its own class and tokenizers a bare Exception
        found = None if isinstance(error, ChinchillaError) else _RUST_ERROR.search(str(error))
        if found is None:
            raise
        number = int(found[1])
        raise _explanation(path, OSError(number, os.strerror(number)), needed_bytes) from error


def _explanation(path: Path, error: OSError, needed_bytes: int | None) -> ChinchillaError:
    free = free_bytes(path)
    has_room = free is None or needed_bytes is None or free >= needed_bytes
    is_cut_short = error.errno is None and not has_room  # NumPy's tofile gives no number
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or is_cut_short:
        needed = [] if needed_bytes is None else [f"{format_bytes(needed_bytes)} = {needed_bytes} bytes needed"]
        sizes = ", ".join(needed if free is None else [*needed, f"{format_bytes(free)} free"])
        said = f" ({sizes})" if sizes else ""
        return DataError(f"{path}: the disk is full{said}; free some space, or choose another folder")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return DataError(f"{path}: no permission ({error.strerror}); choose another folder, or change its permissions")
    if error.errno == errno.ENOENT:
        return DataError(f"{path} does not exist; check the path, or run the command that writes it")
    if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
        return DataError(f"{path}: {error.strerror}; a file and a folder have the same name, so choose another")
    return DataError(f"{path}: {error.strerror or error}; check the disk, or choose another folder")


def _flush_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_folder(folder: Path) -> None:
    """Flush the folder's entries, so that a rename survives a power cut; file systems that cannot, need not."""
    try:
        _flush_file(folder)
    except OSError as error:
        if error.errno not in (
            errno.EINVAL,
            errno.EACCES,
            errno.EPERM,
            errno.EISDIR,
        ):  # EACCES: Windows opens no folder
            raise


def is_alive(pid: int) -> bool:
    """Whether a process of this number runs here, ours or another's."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
