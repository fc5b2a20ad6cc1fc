"""Bit flips and truncations of a checkpoint: all found by SHA-256 before the first step, and the older one is used."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from pathlib import Path

import pytest

from chinchilla_lm.core.errors import CheckpointError
from chinchilla_lm.model.transformer import Transformer
from chinchilla_lm.train.checkpoint import latest_checkpoint, list_checkpoints, load_checkpoint
from chinchilla_lm.train.job import run_job
from chinchilla_lm.train.optimizer import build_optimizer


@pytest.fixture
def job_folder(small_config, text_for, tmp_path) -> Path:
    """Two whole checkpoints of a job that is not finished: steps 3 and 4 of 8."""
    config = replace(small_config, run=replace(small_config.run, keep_checkpoints=2))

    def stop(record):
        if record.step == 5:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        run_job(config, batches=text_for(config), heldout_evaluate=None, folder=tmp_path / "cut", progress=stop)
    return tmp_path / "cut"


def test_60_random_faults_are_found(job_folder, small_config, capsys):
    damage_and_check(job_folder, small_config, 60, capsys)


@pytest.mark.torture
def test_1000_random_faults_are_found(job_folder, small_config, capsys):
    damage_and_check(job_folder, small_config, 1000, capsys)


def test_a_damaged_job_goes_on_to_the_same_bits(job_folder, small_config, text_for, final_state, tmp_path):
    newest = list_checkpoints(job_folder / "checkpoints")[-1]
    with (newest / "optimizer.safetensors").open("r+b") as stream:
        stream.seek(5000)
        byte = stream.read(1)[0]
        stream.seek(5000)
        stream.write(bytes([byte ^ 16]))
    batches = text_for(small_config)
    result = run_job(small_config, batches=batches, heldout_evaluate=None, folder=job_folder)
    assert result.resumed_from == 3
    assert "optimizer.safetensors is corrupt" in result.warnings[0]
    run_job(small_config, batches=batches, heldout_evaluate=None, folder=tmp_path / "whole")
    assert final_state(job_folder) == final_state(tmp_path / "whole")


def test_every_third_byte_of_the_manifest_counts(job_folder):
    newest = list_checkpoints(job_folder / "checkpoints")[-1]
    manifest = newest / "manifest.json"
    content = manifest.read_bytes()
    for place in range(0, len(content), 3):
        manifest.write_bytes(content[:place] + bytes([content[place] ^ (1 << place % 8)]) + content[place + 1 :])
        assert latest_checkpoint(newest.parent)[0] != newest, place
        manifest.write_bytes(content[:place])
        assert latest_checkpoint(newest.parent)[0] != newest, place
    manifest.write_bytes(content)
    assert latest_checkpoint(newest.parent)[0] == newest


def damage_and_check(job_folder: Path, config, count: int, capsys) -> None:
    """Damage the newest checkpoint in `count` ways, one at a time; each must be refused, and the older one found."""
    older, newest = list_checkpoints(job_folder / "checkpoints")
    model = Transformer(config.shape)
    optimizer = build_optimizer(model, config.optimizer)
    chance, found, began = random.Random(0), 0, time.monotonic()
    for number in range(count):
        # Half of the faults by file, so that the small ones get their share; half by byte, as a disk would.
        files = sorted(newest.iterdir())
        sizes = [path.stat().st_size for path in files]
        (path,) = [chance.choice(files)] if number % 2 else chance.choices(files, sizes)
        whole = path.read_bytes()
        path.write_bytes(damaged(whole, chance))
        latest, refused = latest_checkpoint(newest.parent)
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(newest, model, optimizer)
        is_named = path.name in refused[0] or path.name == "manifest.json"  # whose damage may look like another file's
        found += latest == older and len(refused) == 1 and is_named and "\n" not in str(caught.value)
        path.write_bytes(whole)
    with capsys.disabled():
        print(f"\n{found} of {count} faults found and passed over, {time.monotonic() - began:.0f} s")
    assert found == count
    assert latest_checkpoint(newest.parent) == (newest, ())
    assert not optimizer.state, "nothing was loaded from a damaged checkpoint"
    assert not any(parameter.any() for name, parameter in model.named_parameters() if "norm" not in name)


def damaged(content: bytes, chance: random.Random) -> bytes:
    kind = chance.choice(["flip", "flip", "truncate", "zero block"])
    place = chance.randrange(len(content))
    if kind == "flip":
        return content[:place] + bytes([content[place] ^ (1 << chance.randrange(8))]) + content[place + 1 :]
    if kind == "truncate":
        return content[:place]
    block = content[place : place + 512]
    lost = bytes(len(block)) if any(block) else b"\xff" * len(block)
    return content[:place] + lost + content[place + 512 :]
