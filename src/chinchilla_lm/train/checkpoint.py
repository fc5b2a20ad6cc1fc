"""Checkpoints: whole or absent, checked before use, exact.

A checkpoint is a folder `step-000001234/`:

    weights.safetensors    parameters and persistent buffers, by name
    optimizer.safetensors  "exp_avg/<parameter name>", "exp_avg_sq/...", "step/..."
    random.safetensors     torch's generators: "cpu", "cuda:0", ... as bytes
    state.json             step, and what the caller added
    manifest.json          SHA-256 and size of each file above; written last

It is written under a temporary name, every file flushed, and renamed when it is complete: a crash at any instant leaves
the older checkpoints as they were. One flipped bit anywhere is found before the first step. No pickle. Tensors go to
the disk and come back one at a time (`train.tensor_files`): neither needs a second copy of the state in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from chinchilla_lm.core.errors import CheckpointError, DataError
from chinchilla_lm.core.files import (
    clean_temporaries,
    explain_os_error,
    replace_directory,
    require_space,
    temporary_beside,
    write_blocks,
    write_bytes,
)
from chinchilla_lm.core.units import format_bytes
from chinchilla_lm.train.tensor_files import BLOCK_BYTES, StoredTensor, read_layout, read_tensor, tensor_blocks

_SCHEMA = "checkpoint/1"
_CONTENT = ("weights.safetensors", "optimizer.safetensors", "random.safetensors", "state.json")
_FOLDER = re.compile(r"step-(\d{9,})")


def save_checkpoint(
    folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, extra: Mapping[str, Any]
) -> Path:
    """Write the whole state of a run, so that training from it is bit-identical to never having stopped.

    Args:
        folder: where the run's checkpoints live; made when missing.
        step: updates done, >= 0.
        model: its parameters and persistent buffers are written.
        optimizer: its tensors are written, by parameter name; its rates come from the config.
        extra: plain JSON values of the caller.

    Returns:
        The checkpoint's folder. One that had the same step is replaced.

    Raises:
        CheckpointError: it could not be written; older checkpoints are untouched.
    """
    tensors = {
        "weights.safetensors": _weights(model),
        "optimizer.safetensors": _optimizer_tensors(model, optimizer),
        "random.safetensors": _random_state(),
    }
    state = _canonical({"schema": _SCHEMA, "step": step, "extra": dict(extra)})
    final = Path(folder) / f"step-{step:09d}"
    temporary = temporary_beside(final)
    try:
        with explain_os_error(Path(folder)):
            clean_temporaries(folder)
        for leftover in Path(folder).glob(f".step-*.{os.getpid()}.tmp"):  # of a killed process with our number (PID 1)
            shutil.rmtree(leftover, ignore_errors=True)
        written = {}
        for name in _CONTENT:
            passed, named = _Passed(), tensors.get(name)
            blocks = (state,) if named is None else tensor_blocks(named)
            size = len(state) if named is None else sum(tensor.nbytes for tensor in named.values())
            write_blocks(temporary / name, passed.through(blocks), needed_bytes=size)
            written[name] = passed.description()
        write_bytes(temporary / "manifest.json", _canonical(_manifest(step, written)))
        replace_directory(temporary, final)
    except DataError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(f"checkpoint of step {step} not written, older ones are kept: {error}") from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return final


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> dict[str, Any]:
    """Put a checkpoint into a model, an optimizer and torch's random state, in place.

    Args:
        path: a folder that `save_checkpoint` wrote.
        model: of the same shape.
        optimizer: over the same parameters; None leaves it and the random state out (to evaluate only).

    Returns:
        The caller's `extra`, with "step".

    Raises:
        CheckpointError: a file is corrupt, or belongs to another model; nothing was changed.
    """
    with _verified(path) as streams:
        weights, expected = read_layout(streams["weights.safetensors"]), _weights(model)
        _check_tensors(path, "weight", weights, {name: tensor.shape for name, tensor in expected.items()})
        state = json.load(streams["state.json"])
        if optimizer is not None:
            moments = read_layout(streams["optimizer.safetensors"])
            _check_moments(path, moments, model, optimizer)
            _restore_optimizer(streams["optimizer.safetensors"], moments, model, optimizer)
            _restore_random_state(streams["random.safetensors"])
        with torch.no_grad():
            for name, tensor in expected.items():
                tensor.copy_(read_tensor(streams["weights.safetensors"], weights[name]))
    return {**state["extra"], "step": state["step"]}


def latest_checkpoint(folder: Path) -> tuple[Path | None, tuple[str, ...]]:
    """Find the newest checkpoint whose every byte is right.

    Args:
        folder: where the run's checkpoints live; it need not exist.

    Returns:
        (path or None, one line for each newer checkpoint that was refused).
    """
    refused: list[str] = []
    for path in reversed(list_checkpoints(folder)):
        try:
            with _verified(path):
                return path, tuple(refused)
        except CheckpointError as error:
            refused.append(str(error))
    return None, tuple(refused)


def list_checkpoints(folder: Path) -> list[Path]:
    """List checkpoint folders, oldest first, valid or not."""
    if not Path(folder).is_dir():
        return []
    return sorted((path for path in Path(folder).iterdir() if _FOLDER.fullmatch(path.name)), key=_step_of)


def prune_checkpoints(folder: Path, *, newest_step: int, keep: int) -> None:
    """Keep the `keep` newest checkpoints up to `newest_step`; those beyond it were refused at the start, and go.

    Args:
        folder: where the run's checkpoints live.
        newest_step: step of the checkpoint just written.
        keep: >= 1.
    """
    paths = list_checkpoints(folder)
    kept = [path for path in paths if _step_of(path) <= newest_step][-keep:]
    for path in paths:
        if path not in kept:
            doomed = temporary_beside(path)
            with explain_os_error(path):
                path.rename(doomed)  # a kill during the removal must not leave half a checkpoint under its name
            shutil.rmtree(doomed, ignore_errors=True)


def require_room(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, *, keep: int, further_bytes: int = 0
) -> None:
    """Refuse a job before its first update when the disk cannot hold its checkpoints.

    Args:
        folder: where they will live; those that are there count as written.
        model: as for `save_checkpoint`.
        optimizer: it need not have made its moments yet.
        keep: how many stay, >= 1; one more is written before the oldest goes.
        further_bytes: what the job writes beside them.

    Raises:
        CheckpointError: with what is needed and what is free.
    """
    is_adam = isinstance(optimizer, torch.optim.AdamW)
    moments = sum(
        parameter.nbytes * (2 if is_adam and group.get("rule") != "muon" else 1)
        for group in optimizer.param_groups
        for parameter in group["params"]
    )
    size = sum(tensor.nbytes for tensor in _weights(model).values()) + moments
    there = sum(file.stat().st_size for path in list_checkpoints(folder) for file in path.iterdir())
    content = f"{keep + 1} checkpoints of {format_bytes(size)} (one is written while {keep} stay)"
    content += f" and {format_bytes(further_bytes)} beside them" if further_bytes else ""
    try:
        require_space(folder, (keep + 1) * size + further_bytes - there, content)
    except DataError as error:
        raise CheckpointError(str(error)) from None


def _step_of(path: Path) -> int:
    match = _FOLDER.fullmatch(path.name)
    assert match is not None, path
    return int(match[1])


# Verifying


class _Passed:
    """How many bytes went by, and their SHA-256."""

    def __init__(self) -> None:
        self._digest, self._count = hashlib.sha256(), 0

    def through(self, blocks: Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
        for block in blocks:
            self._digest.update(block)
            self._count += len(block)
            yield block

    def description(self) -> dict[str, Any]:
        return {"bytes": self._count, "sha256": self._digest.hexdigest()}


def _manifest(step: int, files: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    return {"schema": _SCHEMA, "step": step, "files": dict(files)}


def _canonical(value: Any) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False, sort_keys=True) + "\n").encode()


@contextlib.contextmanager
def _verified(path: Path) -> Generator[Mapping[str, BinaryIO]]:
    """Open every file of a checkpoint at its beginning, or refuse it.

    What is checked is what is used: the open files stay the same ones even if others get their names.
    """
    path = Path(path)
    if not path.is_dir() or not _FOLDER.fullmatch(path.name):
        raise CheckpointError(f"{path} is not a checkpoint; give a folder named step-... below checkpoints/")
    with contextlib.ExitStack() as opened:
        try:
            streams = {name: opened.enter_context((path / name).open("rb")) for name in _CONTENT}
            manifest_bytes = (path / "manifest.json").read_bytes()
            found = {name: _describe(stream) for name, stream in streams.items()}
        except OSError as error:
            raise _corrupt(
                path, str(error.filename and Path(error.filename).name), error.strerror or "unreadable"
            ) from None
        _check_manifest(path, manifest_bytes, _manifest(_step_of(path), found))
        yield streams


def _describe(stream: BinaryIO) -> dict[str, Any]:
    """Read a file to its end, and go back to its beginning."""
    passed = _Passed()
    for _ in passed.through(iter(lambda: stream.read(BLOCK_BYTES), b"")):
        pass
    stream.seek(0)
    return passed.description()


def _check_manifest(path: Path, manifest_bytes: bytes, expected: Mapping[str, Any]) -> None:
    if manifest_bytes == _canonical(expected):
        return
    try:
        manifest = json.loads(manifest_bytes)
    except ValueError:
        manifest = None
    recorded = manifest.get("files") if isinstance(manifest, dict) else None
    for name in _CONTENT:
        if isinstance(recorded, dict) and recorded.get(name) != expected["files"][name]:
            raise _corrupt(path, name, "its bytes do not have the SHA-256 of the manifest")
    raise _corrupt(path, "manifest.json", f"it does not describe this folder in schema {_SCHEMA}")


def _corrupt(path: Path, name: str, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path}/{name} is corrupt ({reason}); delete {path.name} and resume from an older checkpoint"
    )


# Collecting and restoring tensors


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, a shared one once."""
    persistent = model.state_dict(keep_vars=True)
    named: dict[str, Tensor] = dict(model.named_parameters())
    named.update((name, buffer) for name, buffer in model.named_buffers() if name in persistent)
    return named


def _names_of_optimized(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, nn.Parameter]:
    optimized = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in optimized}


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{key}/{name}": value
        for name, parameter in _names_of_optimized(model, optimizer).items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _check_moments(
    path: Path, moments: Mapping[str, StoredTensor], model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Check that each state tensor belongs to an optimized parameter; before the first update there is none."""
    keys = sorted({full_name.partition("/")[0] for full_name in moments})
    by_muon = {id(p) for group in optimizer.param_groups if group.get("rule") == "muon" for p in group["params"]}
    shapes = {
        f"{key}/{name}": torch.Size() if key == "step" else parameter.shape
        for key in keys
        for name, parameter in _names_of_optimized(model, optimizer).items()
        if key == "exp_avg" or id(parameter) not in by_muon  # Muon keeps the mean of gradients alone
    }
    _check_tensors(path, "optimizer state", moments, shapes)


def _check_tensors(
    path: Path, what: str, found: Mapping[str, StoredTensor], expected: Mapping[str, torch.Size]
) -> None:
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is not in this model" for name in sorted(found) if name not in expected]
    problems += [
        f"{name} has shape {list(found[name].shape)}, this model has {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name].shape != shape
    ]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise CheckpointError(
            f"{path} holds another model: {what} {problems[0]}{more}; resume with the config that the run began with"
        )


def _restore_optimizer(
    stream: BinaryIO, moments: Mapping[str, StoredTensor], model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    named = _names_of_optimized(model, optimizer)
    optimizer.state.clear()
    for full_name, stored in moments.items():
        key, _, name = full_name.partition("/")
        parameter = named[name]
        optimizer.state[parameter][key] = read_tensor(stream, stored).to(parameter.device)


def _random_state() -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state.update((f"cuda:{i}", generator) for i, generator in enumerate(torch.cuda.get_rng_state_all()))
    return state


def _restore_random_state(stream: BinaryIO) -> None:
    state = {name: read_tensor(stream, stored) for name, stored in read_layout(stream).items()}
    torch.set_rng_state(state["cpu"])
    for name, generator in state.items():
        if name != "cpu" and torch.cuda.is_available() and torch.device(name).index < torch.cuda.device_count():
            torch.cuda.set_rng_state(generator, name)
