"""Some steps of a run, from a checkpoint to a checkpoint: what a sweep is made of.

How a sweep gets the cooled losses of one model at several horizons from one trunk:

    trunk = TrainConfig(..., schedule=ScheduleConfig(kind="wsd", steps=longest, warmup_steps=w))  # no cooldown
    checkpoint = None
    for horizon in horizons:                                   # rising; each ends with decay_steps of cooldown
        branch_step = horizon - decay_steps
        grown = train_segment(trunk, batches=batches, start=checkpoint, stop_step=branch_step, save_to=trunk_folder)
        checkpoint = grown.checkpoint
        cooled = branch_schedule(trunk.schedule, branch_step=branch_step, decay_steps=decay_steps)
        branch = train_segment(replace(trunk, schedule=cooled), batches=batches, start=checkpoint)
        loss = evaluate(branch.model, heldout).loss            # flops spent: grown.flops + branch.flops

A branch is bit-identical to an independent run under the branch's schedule: the learning rate, the batch and the random
state of each step are the same. An independent run is `train_segment(config, batches=batches)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from chinchilla_lm.core.errors import CheckpointError
from chinchilla_lm.laws.count import training_flops_per_token
from chinchilla_lm.model.compiling import compile_blocks
from chinchilla_lm.model.transformer import Transformer, initialise
from chinchilla_lm.train.checkpoint import load_checkpoint, save_checkpoint
from chinchilla_lm.train.config import TrainConfig
from chinchilla_lm.train.loop import Batches, LoopPlan, StepRecord, train
from chinchilla_lm.train.objective import next_token_objective
from chinchilla_lm.train.optimizer import build_optimizer
from chinchilla_lm.train.placement import Placement, choose_placement
from chinchilla_lm.train.recording import is_recorded


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Some steps of a run.

    Attributes:
        model: after `step` updates.
        step: updates done since the run began.
        tokens: targets trained on since the run began.
        curve: (tokens, training loss) of recorded steps of this segment.
        seconds: wall time of this segment's updates.
        flops: spent in this segment.
        checkpoint: the state after it, where `save_to` was given.
    """

    model: Transformer
    step: int
    tokens: int
    curve: tuple[tuple[int, float], ...]
    seconds: float
    flops: float
    checkpoint: Path | None


def train_segment(
    config: TrainConfig,
    *,
    batches: Batches,
    start: Path | None = None,
    stop_step: int | None = None,
    save_to: Path | None = None,
    progress: Callable[[StepRecord], None] | None = None,
) -> Segment:
    """Train some steps of a run: from a checkpoint (or the first step) to a step (or the schedule's end).

    Args:
        config: its schedule decides this segment's learning rates. A trunk and its branches differ in nothing else.
        batches: a pure function of the step.
        start: a checkpoint that a segment of the same trunk saved; None begins the run.
        stop_step: updates since the run began after which to stop; None: schedule.steps.
        save_to: folder for a checkpoint of the state after the segment; None saves nothing.
        progress: called after every update.

    Returns:
        The model and what the segment took.

    Raises:
        CheckpointError: `start` belongs to another trunk, or is beyond stop_step.
        TrainingDiverged: the loss or gradient is not finite.
    """
    placement = choose_placement(config.run)
    model, optimizer = build_training(config, placement)
    stop_step = config.schedule.steps if stop_step is None else stop_step
    start_step = tokens = start_tokens = 0
    if start is not None:
        extra = load_checkpoint(start, model, optimizer)
        start_step, tokens, start_tokens = extra["step"], extra["tokens"], extra["tokens"]
        if extra["trunk"] != config.trunk_fingerprint() or start_step > stop_step:
            raise CheckpointError(
                f"{start} (step {start_step}) does not lead to step {stop_step} of this config; "
                "give a checkpoint of the same shape, batch, optimizer, warm-up and seed, at or before that step"
            )
    plan = plan_loop(config, start_step=start_step, start_tokens=tokens, stop_step=stop_step)
    seconds, curve = 0.0, []
    for step in train(model, batches, next_token_objective, optimizer, plan, placement):
        tokens, seconds = step.tokens, seconds + step.step_seconds
        if is_recorded(step.step, config.schedule.steps):
            curve.append((step.tokens, step.loss))
        if progress is not None:
            progress(step)
    extra = {"tokens": tokens, "trunk": config.trunk_fingerprint()}
    return Segment(
        model=model,
        step=stop_step,
        tokens=tokens,
        curve=tuple(curve),
        seconds=seconds,
        flops=(tokens - start_tokens) * training_flops_per_token(config.shape),
        checkpoint=save_checkpoint(save_to, stop_step, model, optimizer, extra) if save_to is not None else None,
    )


def build_training(config: TrainConfig, placement: Placement) -> tuple[Transformer, torch.optim.AdamW]:
    """Make the model, in the form its config asks for, and its optimizer as before the first step; seed dropout."""
    torch.set_num_threads(placement.threads)
    model = Transformer(config.shape)
    initialise(model, config.run.seed)
    model.to(placement.device)
    model.compute_dtype = placement.dtype
    compile_blocks(model, config.run.form)
    torch.manual_seed(config.run.seed)
    return model, build_optimizer(model, config.optimizer, placement.dtype)


def plan_loop(config: TrainConfig, *, start_step: int, start_tokens: int, stop_step: int) -> LoopPlan:
    """Give the loop its part of the config."""
    return LoopPlan(
        schedule=config.schedule,
        micro_batch=config.batch.micro_batch,
        clip_norm=config.optimizer.clip_norm,
        start_step=start_step,
        stop_step=stop_step,
        start_tokens=start_tokens,
    )
