"""One training job: the policy around THE loop. Resume, record, evaluate, save, stop on a signal.

`run_job` trains a config in a folder; killed at any instant, the same call continues to bit-identical weights:

    folder/records.jsonl    step/1 and evaluation/1 records
    folder/checkpoints/     see `train.checkpoint`

Parts of a run, for sweeps, are in `train.segment`; the loop itself is `train.loop`.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from chinchilla_lm.core.errors import CheckpointError, ChinchillaError
from chinchilla_lm.laws.count import training_flops_per_token
from chinchilla_lm.model.transformer import Transformer
from chinchilla_lm.train.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    prune_checkpoints,
    require_room,
    save_checkpoint,
)
from chinchilla_lm.train.config import TrainConfig
from chinchilla_lm.train.loop import Batches, StepRecord, train
from chinchilla_lm.train.objective import Objective, next_token_objective
from chinchilla_lm.train.placement import Placement, choose_placement
from chinchilla_lm.train.recording import JobRecords
from chinchilla_lm.train.segment import build_training, plan_loop


class Interrupted(ChinchillaError):  # noqa: N818 - it says what happened, and it is no fault
    """Stopped by a signal, state saved. The exit code is the shell's: 128 + the signal's number."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """A finished job.

    Attributes:
        model: trained, in eval mode.
        step: updates done.
        tokens: targets trained on.
        loss: training loss of the last update, nats per token.
        evaluation: what `heldout_evaluate` said of the final weights; None without one.
        elapsed_seconds: wall time of the job over all its resumes; work lost to a kill is not in it.
        tokens_per_s: over the updates alone.
        flops: spent on the updates (exact convention of `laws.count`).
        mfu: share of peak_flops_per_s that the updates reached; None without a peak.
        resumed_from: step of the checkpoint it continued from; None for a fresh start.
        warnings: one line each, such as a corrupt checkpoint that was passed over.
    """

    model: Transformer
    step: int
    tokens: int
    loss: float
    evaluation: Mapping[str, Any] | None
    elapsed_seconds: float
    tokens_per_s: float
    flops: float
    mfu: float | None
    resumed_from: int | None
    warnings: tuple[str, ...]


def run_job(
    config: TrainConfig,
    *,
    batches: Batches,
    heldout_evaluate: Callable[[Transformer], Mapping[str, Any]] | None,
    folder: Path,
    progress: Callable[[StepRecord], None] | None = None,
    peak_flops_per_s: float | None = None,
    objective: Objective = next_token_objective,
) -> JobResult:
    """Train to the end of the schedule, continuing whatever the folder holds; a finished job is only loaded.

    Args:
        config: what to train; equal to the one that began the folder, except for the `run` settings that do not
            change the weights.
        batches: a pure function of the step.
        heldout_evaluate: called every `run.evaluate_every` updates and at the end; its keys go into evaluation records.
        folder: of this job alone; made when missing.
        progress: called after every update.
        peak_flops_per_s: of this machine in this dtype, for the MFU.
        objective: what to learn.

    Returns:
        The trained model and what it took. torch's global random state is used and left changed.

    Raises:
        Interrupted: SIGINT or SIGTERM came; the state is saved and the same call continues.
        TrainingDiverged: the loss or gradient is not finite.
        CheckpointError: the folder holds another run, or the disk cannot hold the checkpoints.
    """
    steps = config.schedule.steps
    job = _open_job(config, batches, Path(folder), peak_flops_per_s)
    resumed_from = job.state.step or None
    _train_to_end(job, batches, objective, heldout_evaluate, progress)
    evaluation = job.records.evaluation_at(steps)
    if evaluation is None and heldout_evaluate:
        evaluation = job.evaluate(heldout_evaluate)
    job.model.eval()
    state = job.state
    tokens_per_s = state.tokens / state.train_seconds
    return JobResult(
        model=job.model,
        step=state.step,
        tokens=state.tokens,
        loss=state.loss,
        evaluation=evaluation,
        elapsed_seconds=state.elapsed_seconds(),
        tokens_per_s=tokens_per_s,
        flops=state.tokens * training_flops_per_token(config.shape),
        mfu=job.records.mfu(tokens_per_s),
        resumed_from=resumed_from,
        warnings=job.warnings,
    )


def _train_to_end(
    job: _Job,
    batches: Batches,
    objective: Objective,
    heldout_evaluate: Callable[[Transformer], Mapping[str, Any]] | None,
    progress: Callable[[StepRecord], None] | None,
) -> None:
    """Make the updates that are left, with what is recorded, measured and saved between them."""
    steps, every = job.config.schedule.steps, job.config.run.evaluate_every
    plan = plan_loop(job.config, start_step=job.state.step, start_tokens=job.state.tokens, stop_step=steps)
    updates = train(job.model, batches, objective, job.optimizer, plan, job.placement)
    with deferred_signals() as stop, contextlib.closing(updates):
        for record in updates:
            job.state.add(record)
            job.records.add_step(record, job.state.elapsed_seconds())
            if progress is not None:
                progress(record)
            is_last = record.step == steps
            if heldout_evaluate and not is_last and every > 0 and record.step % every == 0:
                job.evaluate(heldout_evaluate)
            is_old = job.state.unsaved_seconds() >= job.config.run.checkpoint_seconds
            if is_last or stop.number is not None or is_old:
                job.save()
            if stop.number is not None:
                message = f"stopped at step {record.step} of {steps}, state saved: the same command resumes"
                raise Interrupted(message, stop.number)


# Saving and resuming


@dataclass(kw_only=True)
class _State:
    """Where the job is; what a checkpoint adds to weights, optimizer and random state."""

    first_batch: str
    step: int = 0
    tokens: int = 0
    loss: float = math.nan
    train_seconds: float = 0.0
    elapsed_before: float = 0.0
    began: float = field(default_factory=time.monotonic)
    saved: float = field(default_factory=time.monotonic)

    def add(self, record: StepRecord) -> None:
        self.step, self.tokens, self.loss = record.step, record.tokens, record.loss
        self.train_seconds += record.step_seconds

    def elapsed_seconds(self) -> float:
        return self.elapsed_before + time.monotonic() - self.began

    def unsaved_seconds(self) -> float:
        return time.monotonic() - self.saved


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What the updates change, and where it is kept."""

    config: TrainConfig
    folder: Path
    placement: Placement
    model: Transformer
    optimizer: torch.optim.Optimizer
    state: _State
    records: JobRecords
    warnings: tuple[str, ...]

    def evaluate(self, heldout_evaluate: Callable[[Transformer], Mapping[str, Any]]) -> Mapping[str, Any]:
        """Evaluate without moving torch's random state, or evaluating more often would change the trained weights."""
        devices = [torch.cuda.current_device()] if self.placement.device == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            self.model.eval()
            measured = heldout_evaluate(self.model)
            self.model.train()
        return self.records.add_evaluation(self.state.step, self.state.tokens, measured)

    def save(self) -> None:
        checkpoints, state = self.folder / "checkpoints", self.state
        extra = {
            "tokens": state.tokens,
            "loss": state.loss,
            "train_seconds": state.train_seconds,
            "elapsed_seconds": state.elapsed_seconds(),
            "config": self.config.fingerprint(),
            "trunk": self.config.trunk_fingerprint(),
            "first_batch": state.first_batch,
        }
        save_checkpoint(checkpoints, state.step, self.model, self.optimizer, extra)
        prune_checkpoints(checkpoints, newest_step=state.step, keep=self.config.run.keep_checkpoints)
        state.saved = time.monotonic()


def _open_job(config: TrainConfig, batches: Batches, folder: Path, peak_flops_per_s: float | None) -> _Job:
    """Build the model and the optimizer, and bring them to where the folder's newest checkpoint is."""
    placement = choose_placement(config.run)
    model, optimizer = build_training(config, placement)
    state, warnings = _resume(config, batches, folder, model, optimizer)
    if state.step < config.schedule.steps:
        require_room(folder / "checkpoints", model, optimizer, keep=config.run.keep_checkpoints)
    records = JobRecords(
        folder / "records.jsonl",
        steps=config.schedule.steps,
        flops_per_token=training_flops_per_token(config.shape),
        peak_flops_per_s=peak_flops_per_s,
    )
    records.cut(state.step, state.tokens)
    return _Job(
        config=config, folder=folder, placement=placement, model=model, optimizer=optimizer,
        state=state, records=records, warnings=warnings,
    )  # fmt: skip


def _resume(
    config: TrainConfig, batches: Batches, folder: Path, model: Transformer, optimizer: torch.optim.Optimizer
) -> tuple[_State, tuple[str, ...]]:
    path, warnings = latest_checkpoint(folder / "checkpoints")
    state = _State(first_batch=_batch_digest(batches))
    if path is not None:
        extra = load_checkpoint(path, model, optimizer)
        if extra["config"] != config.fingerprint():
            raise CheckpointError(
                f"{folder} holds a run of another config (shape, batch, optimizer, schedule, dtype or seed differ); "
                "train in a new folder, or restore the config"
            )
        if extra["first_batch"] != state.first_batch:
            raise CheckpointError(
                f"{folder} holds a run on other text (its first batch differs); "
                "train in a new folder, or prepare the same text with the same settings"
            )
        state = _State(
            first_batch=state.first_batch,
            step=extra["step"],
            tokens=extra["tokens"],
            loss=extra["loss"],
            train_seconds=extra["train_seconds"],
            elapsed_before=extra["elapsed_seconds"],
        )
    return state, warnings


def _batch_digest(batches: Batches) -> str:
    """Name the data by the bytes of the first batch."""
    digest = hashlib.sha256()
    for array in batches.at(0):
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


# Signals


@dataclass
class _StopRequest:
    number: int | None = None


@contextlib.contextmanager
def deferred_signals() -> Iterator[_StopRequest]:
    """Note SIGINT and SIGTERM so that the step in progress ends whole; a second one stops at once."""
    request = _StopRequest()

    def note(number: int, frame: FrameType | None) -> None:
        if request.number is not None:
            raise KeyboardInterrupt
        request.number = number

    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield request
        return
    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
