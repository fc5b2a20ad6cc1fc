"""kill -9 at random instants of a job: the same call goes on to the same bits.

Each cycle forks (imports are paid once), lets the child resume and train, and kills it at a random moment after its
first update. The job saves after every update, so that kills land in saves as often as in updates. The same test must
*fail* for a naive writer (straight to the final file, no random state): otherwise it would prove nothing.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
import torch._dynamo  # the first optimizer imports it (1.3 s): once before the forks, not in each child

from chinchilla_lm.core.errors import CheckpointError
from chinchilla_lm.train import checkpoint, job
from chinchilla_lm.train.config import ScheduleConfig

UNLOADABLE, BROKEN = 3, 4


@dataclass
class Tally:
    kills: int = 0
    unloadable: int = 0
    finals: list[bool] = field(default_factory=list)  # is each finished run bit-identical to the undisturbed one?


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kills_leave_no_trace_in_the_weights(torture, tmp_path):
    tally = torture(kills=4, steps=8, folder=tmp_path)
    assert tally.unloadable == 0
    assert tally.finals
    assert all(tally.finals)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_naive_writer_fails_the_same_test(torture, tmp_path):
    tally = torture(kills=4, steps=8, folder=tmp_path, patch=write_naively)
    assert tally.unloadable > 0 or not all(tally.finals)


@pytest.mark.torture
def test_200_kills_leave_no_trace_in_the_weights(torture, tmp_path):
    tally = torture(kills=200, steps=60, folder=tmp_path)
    assert tally.kills >= 200
    assert tally.unloadable == 0
    assert tally.finals
    assert all(tally.finals)


@pytest.mark.torture
def test_40_kills_break_a_naive_writer(torture, tmp_path):
    tally = torture(kills=40, steps=60, folder=tmp_path, patch=write_naively)
    assert tally.unloadable > 0


@pytest.mark.torture
def test_40_kills_break_a_writer_without_random_state(torture, tmp_path):
    tally = torture(kills=40, steps=60, folder=tmp_path, patch=forget_random_state)
    assert tally.unloadable == 0
    assert not all(tally.finals)


@pytest.fixture
def torture(big_config, text_for, final_state, die_with_parent, capsys) -> Callable[..., Tally]:
    """Kill jobs until there were enough kills, and let the last one finish."""

    def run(*, kills: int, steps: int, folder: Path, patch: Callable[[], None] = lambda: None) -> Tally:
        schedule = ScheduleConfig(steps=steps, warmup_steps=2, decay_steps=4)
        config = replace(big_config, schedule=schedule)
        began = time.monotonic()

        def child(at: Path, report: Callable[[Any], None]) -> int:
            die_with_parent()
            patch()
            try:
                job.run_job(config, batches=text_for(config), heldout_evaluate=None, folder=at, progress=report)
            except CheckpointError:
                return UNLOADABLE
            return 0

        assert cycle(child, folder / "whole", None) == 0
        update_seconds = (time.monotonic() - began) / steps  # with its save
        size = sum(path.stat().st_size for path in sorted((folder / "whole" / "checkpoints").rglob("*.safetensors")))
        reference = read_final(folder / "whole", final_state)
        chance, tally = random.Random(0), Tally()
        while tally.kills < kills or not tally.finals:
            at = folder / f"job-{len(tally.finals)}"
            wait = chance.uniform(0, 3) * update_seconds  # so a run takes some 40 kills, on any machine
            outcome = cycle(child, at, wait if tally.kills < kills else None)
            assert outcome != BROKEN
            if outcome == UNLOADABLE:
                tally.unloadable += 1
                shutil.rmtree(at)
            elif outcome == 0:
                tally.finals.append(read_final(at, final_state) == reference)
                shutil.rmtree(at)
            else:
                tally.kills += 1
                if patch is not write_naively:
                    _, refused = checkpoint.latest_checkpoint(at / "checkpoints")
                    tally.unloadable += len(refused)
        with capsys.disabled():
            print(
                f"\n{tally.kills} kills, {tally.unloadable} unloadable, {sum(tally.finals)} of {len(tally.finals)} "
                f"finished runs bit-identical, {size / 1e6:.1f} MB on disk, {time.monotonic() - began:.0f} s"
            )
        return tally

    return run


def cycle(child: Callable[[Path, Callable[[Any], None]], int], at: Path, kill_after_seconds: float | None) -> int:
    """Fork a child that trains in `at`; kill it so long after its first update. Return its exit code, or -9."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = BROKEN
        try:
            os.close(read_end)
            code = child(at, lambda record: os.write(write_end, b"."))
        except BaseException:
            os.write(2, traceback.format_exc().encode())  # unbuffered: _exit flushes nothing
        finally:
            os._exit(code)
    os.close(write_end)
    if kill_after_seconds is not None and os.read(read_end, 1):
        time.sleep(kill_after_seconds)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    os.close(read_end)
    return os.waitstatus_to_exitcode(status)


def read_final(folder: Path, final_state: Callable[[Path], dict[str, bytes]]) -> dict[str, bytes]:
    naive = folder / "checkpoints" / NAIVE_NAME
    if not naive.exists():
        return {name: content for name, content in final_state(folder).items() if name != "random.safetensors"}
    tensors = safetensors.torch.load_file(naive)
    parts: dict[str, dict[str, torch.Tensor]] = {"weights.safetensors": {}, "optimizer.safetensors": {}}
    for name, tensor in tensors.items():
        part, _, own_name = name.partition("|")
        parts[f"{part}.safetensors"][own_name] = tensor
    return {name: safetensors.torch.save(part) for name, part in parts.items()}


# The mutants

NAIVE_NAME = "latest.safetensors"


def forget_random_state() -> None:
    """Mutant: all as it should be, but dropout starts anew at each resume."""
    checkpoint._restore_random_state = lambda state: None  # type: ignore[assignment]


def write_naively() -> None:
    """Mutant: one file, written in place as torch.save would, without the random state."""
    job.save_checkpoint = naive_save  # type: ignore[assignment]
    job.load_checkpoint = naive_load  # type: ignore[assignment]
    job.latest_checkpoint = lambda folder: (folder / NAIVE_NAME if (folder / NAIVE_NAME).exists() else None, ())
    job.prune_checkpoints = lambda folder, **_: None


def naive_save(folder, step, model, optimizer, extra):
    tensors = {f"weights|{name}": tensor for name, tensor in checkpoint._weights(model).items()}
    moments = checkpoint._optimizer_tensors(model, optimizer)
    tensors.update((f"optimizer|{name}", tensor) for name, tensor in moments.items())
    metadata = {key: repr(value) for key, value in {**extra, "step": step}.items()}
    whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    content = safetensors.torch.save(whole, metadata)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / NAIVE_NAME).open("wb") as stream:
        for first in range(0, len(content), 1 << 16):
            stream.write(content[first : first + (1 << 16)])
    return folder / NAIVE_NAME


def naive_load(path, model, optimizer):
    try:
        with safetensors.safe_open(path, framework="pt") as stream:
            metadata = {key: eval(value) for key, value in stream.metadata().items()}
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - not a dict
    except (safetensors.SafetensorError, ValueError, OSError) as error:
        raise CheckpointError(str(error)) from None
    with torch.no_grad():
        for name, tensor in checkpoint._weights(model).items():
            tensor.copy_(tensors[f"weights|{name}"])
    parameters = dict(model.named_parameters())
    optimizer.state.clear()
    for name, tensor in tensors.items():
        part, _, own_name = name.partition("|")
        if part == "optimizer":
            key, _, of = own_name.partition("/")
            optimizer.state[parameters[of]][key] = tensor.clone()
    return metadata
