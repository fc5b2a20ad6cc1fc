"""`chinchilla train`: one config, one prepared folder, one model folder; no sweep and no forecast."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from chinchilla_lm.core.config import load_toml
from chinchilla_lm.core.errors import CheckpointError, ConfigError
from chinchilla_lm.core.files import read_json, write_json
from chinchilla_lm.data.loader import TokenBatches, heldout_windows
from chinchilla_lm.data.manifest import Manifest, load_manifest
from chinchilla_lm.evals.item_sets import ItemSet, score_item_sets
from chinchilla_lm.evals.perplexity import evaluate
from chinchilla_lm.model.huggingface import save_model
from chinchilla_lm.model.transformer import Transformer
from chinchilla_lm.study.asking import SuiteChoice, check_suites, keep_item_sets
from chinchilla_lm.study.progress import Progress
from chinchilla_lm.study.trial import HELDOUT_TOKENS
from chinchilla_lm.train.config import TrainConfig
from chinchilla_lm.train.job import JobResult, run_job
from chinchilla_lm.train.loop import StepRecord

RESULT_FILE = "train.json"
NO_SUITES = SuiteChoice(names=())


def train_from_config(
    config_file: Path, data: Path, out: Path, progress: Progress, suites: SuiteChoice = NO_SUITES
) -> dict[str, Any]:
    """Train what a config says and save the model; an interrupted job continues, a finished one is only read.

    Args:
        config_file: TOML of a TrainConfig, such as a run's plan.toml.
        data: a prepared folder.
        out: records, train.json and model/ go here, and checkpoints until the model is saved.
        progress: told what happens.
        suites: that the model is asked at each evaluation.

    Returns:
        loss, loss_se, bits_per_byte, suites (where there are any), tokens, tokens_per_s, model_dir.

    Raises:
        ConfigError: the config's vocabulary is not the text's, or no such suite.
        CheckpointError: the folder holds another job.
        ChinchillaError: as `run_job`.
    """
    config = load_toml(TrainConfig, config_file)
    check_suites(suites)
    manifest = load_manifest(data)
    if (finished := _finished(out, config, manifest)) is not None:
        return finished
    if manifest.vocab != config.shape.vocab:
        raise ConfigError(
            f"{config_file}: shape.vocab = {config.shape.vocab}, and {data} was prepared with {manifest.vocab}; "
            f"prepare the text with --vocab {config.shape.vocab}, or change the config"
        )
    steps = config.schedule.steps
    progress.stage("train", f"{config.tokens:,} tokens, {steps:,} steps of {config.batch_tokens:,}")
    job = train_on_prepared(
        config,
        manifest,
        out,
        item_sets=keep_item_sets(out / "suites", suites, manifest, config.shape.context),
        progress=lambda step: progress.advance(step.step / steps, step.loss, (steps - step.step) * step.step_seconds),
    )
    save_model(job.model, out / "model", tokenizer_folder=manifest.tokenizer_folder)
    assert job.evaluation is not None
    result = {
        **{name: job.evaluation[name] for name in ("loss", "loss_se", "bits_per_byte")},
        **{name: job.evaluation[name] for name in ("suites",) if name in job.evaluation},
        "tokens": job.tokens,
        "tokens_per_s": job.tokens_per_s,
    }
    write_json(out / RESULT_FILE, {"schema": "train/1", **_identity(config, manifest), **result})
    _remove_checkpoints(out)
    return {**result, "model_dir": str(out / "model")}


def _finished(out: Path, config: TrainConfig, manifest: Manifest) -> dict[str, Any] | None:
    """Read the result of a job that is done, whose checkpoints are gone; None while there is one to do.

    Raises:
        CheckpointError: the folder holds another job's model.
    """
    if not (out / RESULT_FILE).is_file() or not (out / "model" / "config.json").is_file():
        return None
    result = read_json(out / RESULT_FILE)
    for name, value in _identity(config, manifest).items():
        if result.pop(name, None) != value:
            raise CheckpointError(f"{out} holds the model of another {name}; train in a new folder, or restore it")
    del result["schema"]
    _remove_checkpoints(out)
    return {**result, "model_dir": str(out / "model")}


def _identity(config: TrainConfig, manifest: Manifest) -> dict[str, str]:
    """Name what decides the weights."""
    shards = "".join(shard.sha256 for shard in manifest.shards)
    return {"config": config.fingerprint(), "text": hashlib.sha256(shards.encode()).hexdigest()[:16]}


def _remove_checkpoints(out: Path) -> None:
    """Two of weights and moments are several times the size of model/, which holds the same weights."""
    shutil.rmtree(out / "checkpoints", ignore_errors=True)


def train_on_prepared(
    config: TrainConfig,
    manifest: Manifest,
    folder: Path,
    *,
    progress: Callable[[StepRecord], None],
    peak_flops_per_s: float | None = None,
    item_sets: Sequence[ItemSet] = (),
) -> JobResult:
    """Train a config on a prepared text, evaluated on its fixed held-out windows; a finished job is only loaded.

    Args:
        config: what to train.
        manifest: of the prepared text.
        folder: records and checkpoints.
        progress: called after every update.
        peak_flops_per_s: of this machine in this dtype, for the MFU.
        item_sets: suites that the model is asked at each evaluation, by the same code as a finished one.

    Returns:
        As `run_job`.

    Raises:
        ChinchillaError: as `run_job`.
    """
    heldout = heldout_windows(manifest, config.shape.context, HELDOUT_TOKENS)

    def measure(model: Transformer) -> dict[str, Any]:
        result = evaluate(model, heldout)
        measured = {"loss": result.loss, "loss_se": result.loss_se, "bits_per_byte": result.bits_per_byte}
        if not item_sets:
            return measured
        return {**measured, "suites": score_item_sets(model, item_sets, manifest.tokenizer_folder)}

    return run_job(
        config,
        batches=TokenBatches(manifest, context=config.shape.context, rows=config.batch.rows, seed=config.batch.seed),
        heldout_evaluate=measure,
        folder=folder,
        progress=progress,
        peak_flops_per_s=peak_flops_per_s,
    )
