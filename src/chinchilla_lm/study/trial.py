"""One trial of a sweep: a size trained at one compute, cooled down and evaluated. Runs in a worker process.

A size that stands on several rungs is one trunk (constant rate) with a cooldown branch at each rung's horizon; the
trunk's state before its last branch is a checkpoint that the next rung continues.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from chinchilla_lm.core.errors import TrainingDiverged
from chinchilla_lm.core.shapes import ModelShape
from chinchilla_lm.data.loader import TokenBatches, heldout_windows
from chinchilla_lm.data.manifest import Manifest, load_manifest
from chinchilla_lm.evals.item_sets import read_item_sets, score_item_sets
from chinchilla_lm.evals.perplexity import evaluate
from chinchilla_lm.laws.count import count_parameters, training_flops_per_token
from chinchilla_lm.model.huggingface import save_model
from chinchilla_lm.model.transformer import Transformer
from chinchilla_lm.study.asking import asking_flops
from chinchilla_lm.train.config import TrainConfig
from chinchilla_lm.train.recipe import RecipeOptions, recipe_for, trunk_branch_step, warmup_steps
from chinchilla_lm.train.schedule import branch_schedule
from chinchilla_lm.train.segment import train_segment

# Held-out tokens that every trial and the final model are scored on, the same windows for all: at 294k the paired
# standard error between two models was .04 % (dev/LOG.md); at 64k it is still under a third of the seed noise.
HELDOUT_TOKENS = 65_536
# A trunk has the batch and rate of its first horizon and may grow to this much of it: one rung up, and rounding.
# Loss is flat (.4 %) in batches from D/8000 to D/2000 tokens and rises 1.5 to 3 % above D/1200, where too few updates
# are left (dev/LOG.md 2026-11-21): a trunk may have a batch that is small for its last horizon, never a large one.
_TRUNK_GROWTH = 4.0
_CURVE_POINTS = 60


@dataclass(frozen=True, kw_only=True)
class TrialSpec:
    """What a worker is told.

    Attributes:
        trial: name, unique in the sweep.
        purpose: "probe" of the learning rate, "ladder" rung, or "repeat" of a run with another seed.
        rung: index, 0 the cheapest.
        flops: compute of the whole run (trunk from step 0 and branch).
        shape: the model.
        design_tokens: the trunk's first horizon, which its batch and rate are derived from.
        lr_scale: k.
        seed: of weights and data order.
        dtype: of matmuls.
        threads: of this worker.
        device: "auto", "cpu" or "cuda".
        start: checkpoint of the trunk to continue, below the trunks' folder; None begins one.
    """

    trial: str
    purpose: Literal["probe", "ladder", "repeat"]
    rung: int
    flops: float
    shape: ModelShape
    design_tokens: float
    lr_scale: float = 1.0
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    threads: int = 1
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    start: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for the registry."""
        return asdict(self)


def trunk_reaches(design_tokens: float, tokens: float) -> bool:
    """Say whether a trunk of that first horizon may grow to one of `tokens`."""
    return tokens <= design_tokens * _TRUNK_GROWTH


def trunk_config(spec: TrialSpec) -> TrainConfig:
    """Derive the trunk: the recipe's settings at its first horizon, a constant rate long enough for one rung up."""
    options = RecipeOptions(
        lr_scale=spec.lr_scale, dtype=spec.dtype, threads=spec.threads, seed=spec.seed, device=spec.device
    )
    config = recipe_for(spec.shape, spec.design_tokens, options)
    steps = max(4, round(_TRUNK_GROWTH * config.schedule.steps))
    warmup = min(warmup_steps(config.schedule.steps), steps // 2)
    return replace(config, schedule=replace(config.schedule, steps=steps, warmup_steps=warmup, decay_steps=0))


@dataclass(frozen=True, kw_only=True)
class TrialPlaces:
    """Where a trial reads and writes.

    Attributes:
        prepared: the prepared text.
        trunks: folder for the trunks' checkpoints.
        drafts: where a ladder trial leaves its model, in a folder named by its parameters; a longer trained one of the
            same size replaces it. None keeps none.
        suites: folder of the items that a ladder trial's model is asked (see `evals.item_sets`); it may be absent.
    """

    prepared: Path
    trunks: Path
    drafts: Path | None = None
    suites: Path | None = None


def run_trial(
    spec: TrialSpec, places: TrialPlaces, progress: Callable[[float, float], None] | None = None
) -> dict[str, Any]:
    """Train, cool down and evaluate one trial.

    Args:
        spec: what to train.
        places: where it reads and writes.
        progress: called with (fraction of this trial done, training loss).

    Returns:
        The trial record (schema trial/1), plus "checkpoint": the trunk before its branch, below the trunks. A run that
        diverged is a record with status "diverged" and no loss.
    """
    started = time.monotonic()
    trunk = trunk_config(spec)
    branch_step, horizon = _steps(spec, trunk)
    manifest = load_manifest(places.prepared, verify=False)  # the controller has checked every shard
    batches = TokenBatches(manifest, context=spec.shape.context, rows=trunk.batch.rows, seed=trunk.batch.seed)

    def report(step: Any) -> None:
        if progress is not None:
            progress(min(step.step / horizon, 0.999), step.loss)  # done only when it is evaluated

    start = None if spec.start is None else places.trunks / spec.start
    try:
        grown = train_segment(
            trunk,
            batches=batches,
            start=start,
            stop_step=branch_step,
            save_to=places.trunks / spec.trial,
            progress=report,
        )
        assert grown.checkpoint is not None
        cooled = branch_schedule(trunk.schedule, branch_step=branch_step, decay_steps=horizon - branch_step)
        branch = train_segment(
            replace(trunk, schedule=cooled), batches=batches, start=grown.checkpoint, progress=report
        )
    except TrainingDiverged as error:
        return {**_facts(spec, trunk, horizon), "status": "diverged", "reason": str(error), "flops_spent": spec.flops}
    measured, measuring_flops = _measure(spec, branch.model, manifest, places)
    curve = [*grown.curve, *branch.curve]
    thin = max(1, len(curve) // _CURVE_POINTS)
    return {
        **_facts(spec, trunk, horizon),
        "status": "done",
        "flops_spent": grown.flops + branch.flops + measuring_flops,
        "seconds": time.monotonic() - started,
        "epochs": branch.tokens / batches.tokens,
        "unique_tokens": batches.tokens,
        **measured,
        "curve": [[tokens, round(loss, 5)] for tokens, loss in (*curve[::thin], curve[-1])],
        "checkpoint": grown.checkpoint.relative_to(places.trunks).as_posix(),
    }


def _steps(spec: TrialSpec, trunk: TrainConfig) -> tuple[int, int]:
    """Give the step where the cooldown branches off, and the last one."""
    horizon = max(2, round(spec.flops / training_flops_per_token(spec.shape) / trunk.batch_tokens))
    branch_step = max(trunk.schedule.warmup_steps, trunk_branch_step(horizon))
    return branch_step, max(horizon, branch_step + 1)


def _measure(
    spec: TrialSpec, model: Transformer, manifest: Manifest, places: TrialPlaces
) -> tuple[dict[str, Any], float]:
    """Evaluate a trial's model, ask it the suites, keep it as a draft; return what was found, and the suites' FLOPs."""
    model.compute_dtype = torch.float32  # as the final model is: losses of one law are measured alike
    result = evaluate(model, heldout_windows(manifest, spec.shape.context, HELDOUT_TOKENS))
    measured: dict[str, Any] = {
        "loss": result.loss,
        "loss_se": result.loss_se,
        "bits_per_byte": result.bits_per_byte,
    }
    if spec.purpose != "ladder":
        return measured, 0.0
    item_sets = () if places.suites is None else read_item_sets(places.suites)
    if item_sets:
        measured["suites"] = score_item_sets(model, item_sets, manifest.tokenizer_folder)
    if places.drafts is not None:
        folder = places.drafts / str(count_parameters(spec.shape).total)
        save_model(model, folder, tokenizer_folder=manifest.tokenizer_folder)
    return measured, asking_flops(item_sets, spec.shape)


def _facts(spec: TrialSpec, trunk: TrainConfig, horizon: int) -> dict[str, Any]:
    tokens = horizon * trunk.batch_tokens
    count = count_parameters(spec.shape)
    return {
        "trial": spec.trial,
        "purpose": spec.purpose,
        "rung": spec.rung,
        "shape": spec.shape.to_dict(),
        "params_matmul": count.matmul,
        "params_total": count.total,
        "tokens": tokens,
        "flops": tokens * training_flops_per_token(spec.shape),
        "steps": horizon,
        "batch_tokens": trunk.batch_tokens,
        "design_tokens": spec.design_tokens,
        "lr_peak": trunk.optimizer.lr_matrix,
        "lr_scale": spec.lr_scale,
        "seed": spec.seed,
    }
