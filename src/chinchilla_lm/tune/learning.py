"""The training of one task: THE loop, and around it validation on the task's metric, early stopping, exact resuming.

    folder/records.jsonl    step/1, and evaluation/1 with the validation's measures
    folder/checkpoints/     newest states, for resuming; see `train.checkpoint`. Whoever writes the run's result then
                            calls `forget_states`
    folder/best/            the weights of the best validation so far

A checkpoint holds the parameters that learn, not those that are frozen: a LoRA's is small. Killed at any instant, the
same call continues to bit-identical weights: what was done after the last checkpoint is done again, the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn

from chinchilla_lm.core.errors import CheckpointError
from chinchilla_lm.metrics.measures import Measures
from chinchilla_lm.train.checkpoint import (
    latest_checkpoint,
    list_checkpoints,
    load_checkpoint,
    prune_checkpoints,
    require_room,
    save_checkpoint,
)
from chinchilla_lm.train.config import ScheduleConfig
from chinchilla_lm.train.job import Interrupted, deferred_signals
from chinchilla_lm.train.loop import LoopPlan, StepRecord, train
from chinchilla_lm.train.objective import Objective
from chinchilla_lm.train.placement import Placement
from chinchilla_lm.train.recording import JobRecords
from chinchilla_lm.tune.batches import TaskBatches
from chinchilla_lm.tune.config import TuneConfig
from chinchilla_lm.tune.freezing import thaw
from chinchilla_lm.tune.task import TunedModel

_KEPT = 2  # newest states, while the training runs: one that a disk has spoilt does not lose it

Validate = Callable[[], Measures]
Told = Callable[[StepRecord, float | None], None]
"""Called after every update with (record, the last validation's value)."""


@dataclass(kw_only=True)
class Progressed:
    """Where the training is; what a checkpoint adds to weights, optimizer and random state.

    Attributes:
        step: updates done.
        tokens: targets trained on.
        loss: of the last update, nats.
        train_seconds: wall time of the updates, over all resumes.
        elapsed_seconds: wall time with validations, over all resumes; what a kill lost is not in it.
        best_step: updates of the best validation; None before the first.
        best_value: its primary measure.
        best_nll: its mean negative log-likelihood, where the task measures one; it decides between equals.
        misses: validations since then that were not better.
        is_finished: stopped early, or all steps done.
    """

    step: int = 0
    tokens: int = 0
    loss: float | None = None
    train_seconds: float = 0.0
    elapsed_seconds: float = 0.0
    best_step: int | None = None
    best_value: float | None = None
    best_nll: float | None = None
    misses: int = 0
    is_finished: bool = False


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What `learn` needs.

    Attributes:
        config: resolved: steps, micro_batch, evaluate_every, device, dtype are set.
        model: its trainable parameters are those of the optimizer.
        optimizer: groups with "lr_peak".
        batches: a pure function of the step.
        objective: of the task.
        validate: measures the model on the validation rows; None: the last weights are kept.
        folder: the run directory.
        fingerprint: of everything that decides the weights.
        validates_start: measure before the first update too, so that training can only gain.
    """

    config: TuneConfig
    model: TunedModel
    optimizer: torch.optim.Optimizer
    batches: TaskBatches
    objective: Objective
    validate: Validate | None
    folder: Path
    fingerprint: str
    validates_start: bool = False


def learn(lesson: Lesson, tell: Told | None = None) -> tuple[Progressed, tuple[str, ...]]:
    """Train to the end or until validations stop improving; the model then has the best validation's weights.

    Returns:
        (what it took, warnings).

    Raises:
        Interrupted: SIGINT or SIGTERM; the state is saved and the same call continues.
        TrainingDiverged: the loss or gradient is not finite.
        CheckpointError: the folder holds another run, or a checkpoint cannot be written.
    """
    config, learned = lesson.config, learned_part(lesson.optimizer, lesson.model)
    assert config.steps is not None, "resolve the config first"
    fill_moments(lesson.optimizer)
    state, warnings = _resume(lesson, learned)
    if not state.is_finished:
        _require_room(lesson, learned)
    records = JobRecords(
        lesson.folder / "records.jsonl", steps=config.steps, flops_per_token=0.0, peak_flops_per_s=None
    )
    records.cut(state.step, state.tokens)
    clock = _Clock(before=state.elapsed_seconds)
    if state.step == 0 and lesson.validates_start and not state.is_finished:
        _check(lesson, learned, state, records)
    if not state.is_finished:
        _train(lesson, learned, state, records, (clock, tell))
    if state.best_step is not None:
        _restore_best(lesson.folder / "best", learned, state)
    lesson.model.eval()
    return state, warnings


def forget_states(folder: Path) -> None:
    """Remove the states for resuming of a finished run, which is only read: of a full tuning three times its weights.

    What a continuation and a reader need stays: best/ (or final/) and model/.
    """
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def learned_part(optimizer: torch.optim.Optimizer, model: nn.Module) -> nn.Module:
    """A module over the same parameters as the optimizer's, named as in the model with / for the dots."""
    optimized = {id(p) for group in optimizer.param_groups for p in group["params"]}
    named = {name.replace(".", "/"): p for name, p in model.named_parameters() if id(p) in optimized}
    part = nn.Module()
    for name, parameter in named.items():
        part.register_parameter(name, parameter)
    return part


def fill_moments(optimizer: torch.optim.Optimizer) -> None:
    """Give every parameter the state it would get at its first gradient, all zero.

    A checkpoint then always holds the same tensors, also of weights that this task never reads (the output matrix of an
    untied model under a classifier, BERT's pooler under a tagger) or that are still frozen.
    """
    is_adam = isinstance(optimizer, torch.optim.AdamW)
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        state = optimizer.state[parameter]
        if is_adam and not state:
            state["step"] = torch.zeros((), device=parameter.device)
        for key in ("exp_avg", "exp_avg_sq") if is_adam else ("momentum_buffer",):
            state.setdefault(key, torch.zeros_like(parameter))


def schedule_of(config: TuneConfig) -> ScheduleConfig:
    """The learning rate over the run: a warm-up by share, then the config's shape."""
    assert config.steps is not None, "resolve the config first"
    warmup_steps = min(config.steps - 1, math.ceil(config.warmup * config.steps)) if config.warmup else 0
    kind = "wsd" if config.schedule == "constant" else config.schedule
    return ScheduleConfig(kind=kind, steps=config.steps, warmup_steps=max(0, warmup_steps))


@dataclass(kw_only=True)
class _Clock:
    before: float
    began: float = field(default_factory=time.monotonic)
    saved: float = field(default_factory=time.monotonic)

    def elapsed(self) -> float:
        return self.before + time.monotonic() - self.began


def _train(
    lesson: Lesson,
    learned: nn.Module,
    state: Progressed,
    records: JobRecords,
    watchers: tuple[_Clock, Told | None],
) -> None:
    config, (clock, tell) = lesson.config, watchers
    assert config.steps is not None and config.evaluate_every is not None, config  # noqa: PT018 - one fact: resolved
    last_value = state.best_value
    lesson.model.train()  # in every part: transformers hands its modules over in evaluation mode, without dropout
    updates = train(
        lesson.model, lesson.batches, lesson.objective, lesson.optimizer, _plan(lesson, state), _place(config)
    )
    _thaw(lesson, state.step)
    with deferred_signals() as stop, contextlib.closing(updates):
        for record in updates:
            state.step, state.tokens, state.loss = record.step, record.tokens, record.loss
            state.train_seconds += record.step_seconds
            is_last = record.step == config.steps
            records.add_step(record, clock.elapsed())
            if lesson.validate and (is_last or record.step % config.evaluate_every == 0):
                last_value = _check(lesson, learned, state, records)
            state.is_finished = is_last or 0 < config.patience <= state.misses
            state.elapsed_seconds = clock.elapsed()
            if tell is not None:
                tell(record, last_value)
            is_due = time.monotonic() - clock.saved >= config.checkpoint_seconds
            if state.is_finished or stop.number is not None or is_due:
                _save(lesson, learned, state)
                clock.saved = time.monotonic()
            if state.is_finished:
                break
            if stop.number is not None:
                message = f"stopped at step {state.step} of {config.steps}, state saved: the same command resumes"
                raise Interrupted(message, stop.number)
            _thaw(lesson, state.step)


def _plan(lesson: Lesson, state: Progressed) -> LoopPlan:
    assert lesson.config.micro_batch is not None, "resolve the config first"
    return LoopPlan(
        schedule=schedule_of(lesson.config),
        micro_batch=lesson.config.micro_batch,
        clip_norm=lesson.config.clip_norm,
        start_step=state.step,
        start_tokens=state.tokens,
    )


def _place(config: TuneConfig) -> Placement:
    return Placement(device=config.device, dtype=getattr(torch, config.dtype), threads=config.threads)


def _thaw(lesson: Lesson, step: int) -> None:
    if lesson.config.method == "gradual":
        thaw(lesson.model, step, lesson.batches.steps_per_epoch)


def _check(lesson: Lesson, learned: nn.Module, state: Progressed, records: JobRecords) -> float:
    """Validate without moving torch's random state; note and save what is better than everything before."""
    assert lesson.validate is not None
    devices = [torch.cuda.current_device()] if lesson.config.device == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        lesson.model.eval()
        measures = lesson.validate()
        lesson.model.train()
    sign, nll = (1 if measures.higher_is_better else -1), measures.values.get("nll")
    is_better = state.best_value is None or sign * measures.value > sign * state.best_value
    # Among equals, which a few hundred rows often give, the likelier answers; but no equal beats the untouched model.
    is_likelier = nll is not None and state.best_nll is not None and nll < state.best_nll
    is_chosen = is_better or (measures.value == state.best_value and state.best_step != 0 and is_likelier)
    state.misses = 0 if is_better else state.misses + 1
    if is_chosen:
        state.best_step, state.best_value, state.best_nll = state.step, measures.value, nll
        without_moments = torch.optim.SGD(learned.parameters(), lr=0.0)
        save_checkpoint(lesson.folder / "best", state.step, learned, without_moments, {"value": measures.value})
        prune_checkpoints(lesson.folder / "best", newest_step=state.step, keep=1)
    measured = {"metrics": measures.as_record()["values"], "value": measures.value, "is_best": is_chosen}
    records.add_evaluation(state.step, state.tokens, measured)
    return measures.value


def _restore_best(folder: Path, learned: nn.Module, state: Progressed) -> None:
    """Give the model the best validation's weights.

    A better validation replaces what is in best/ at once, a checkpoint follows up to a minute later. Killed between the
    two, and gone on with other threads or micro-batches, the run may find that validation no better; the weights that
    the last checkpoint calls the best are gone then, and those that beat them are taken.
    """
    found = list_checkpoints(folder)
    wanted = folder / f"step-{state.best_step:09d}"
    restored = load_checkpoint(wanted if wanted in found or not found else found[-1], learned, None)
    state.best_step, state.best_value = restored["step"], restored["value"]


def _save(lesson: Lesson, learned: nn.Module, state: Progressed) -> None:
    extra = {"state": asdict(state), "fingerprint": lesson.fingerprint, "first_batch": _digest(lesson.batches)}
    folder = lesson.folder / "checkpoints"
    save_checkpoint(folder, state.step, learned, lesson.optimizer, extra)
    prune_checkpoints(folder, newest_step=state.step, keep=1 if state.is_finished else _KEPT)


def _require_room(lesson: Lesson, learned: nn.Module) -> None:
    """A better checkpoint of best/ is written while the old one stays."""
    best = 0 if lesson.validate is None else 2 - len(list_checkpoints(lesson.folder / "best"))
    weights = sum(parameter.nbytes for parameter in learned.parameters())
    require_room(
        lesson.folder / "checkpoints", learned, lesson.optimizer, keep=_KEPT, further_bytes=max(0, best) * weights
    )


def _resume(lesson: Lesson, learned: nn.Module) -> tuple[Progressed, tuple[str, ...]]:
    path, refused = latest_checkpoint(lesson.folder / "checkpoints")
    if path is None:
        return Progressed(), refused
    extra = load_checkpoint(path, learned, lesson.optimizer)
    if extra["fingerprint"] != lesson.fingerprint or extra["first_batch"] != _digest(lesson.batches):
        raise CheckpointError(
            f"{lesson.folder} holds a tuning of another config, model or rows; write to a new folder, or restore them"
        )
    return Progressed(**extra["state"]), refused


def _digest(batches: TaskBatches) -> str:
    """Name the rows and their encoding by the bytes of the first batch."""
    digest = hashlib.sha256()
    for array in batches.at(0):
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]
