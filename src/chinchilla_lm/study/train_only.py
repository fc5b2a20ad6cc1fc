"""`chinchilla train`: one config, one prepared folder, one model folder; no sweep and no forecast."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from chinchilla_lm.core.config import load_toml
from chinchilla_lm.core.errors import ConfigError
from chinchilla_lm.data.loader import TokenBatches, heldout_windows
from chinchilla_lm.data.manifest import load_manifest
from chinchilla_lm.evals.perplexity import evaluate
from chinchilla_lm.model.huggingface import save_model
from chinchilla_lm.study.progress import Progress
from chinchilla_lm.study.trial import HELDOUT_TOKENS
from chinchilla_lm.train.config import TrainConfig
from chinchilla_lm.train.job import run_job


def train_from_config(config_file: Path, data: Path, out: Path, progress: Progress) -> dict[str, Any]:
    """Train what a config says and save the model; an interrupted job continues.

    Args:
        config_file: TOML of a TrainConfig, such as a run's plan.toml.
        data: a prepared folder.
        out: records, checkpoints and model/ go here.
        progress: told what happens.

    Returns:
        loss, loss_se, bits_per_byte, tokens, tokens_per_s, model_dir.

    Raises:
        ConfigError: the config's vocabulary is not the text's.
        ChinchillaError: as `run_job`.
    """
    config = load_toml(TrainConfig, config_file)
    manifest = load_manifest(data)
    if manifest.vocab != config.shape.vocab:
        raise ConfigError(
            f"{config_file}: shape.vocab = {config.shape.vocab}, and {data} was prepared with {manifest.vocab}; "
            f"prepare the text with --vocab {config.shape.vocab}, or change the config"
        )
    context, steps = config.shape.context, config.schedule.steps
    heldout = heldout_windows(manifest, context, HELDOUT_TOKENS)
    progress.stage("train", f"{config.tokens:,} tokens, {steps:,} steps of {config.batch_tokens:,}")
    job = run_job(
        config,
        batches=TokenBatches(manifest, context=context, rows=config.batch.rows, seed=config.batch.seed),
        heldout_evaluate=lambda model: _fields(evaluate(model, heldout)),
        folder=out,
        progress=lambda step: progress.advance(step.step / steps, step.loss, (steps - step.step) * step.step_seconds),
    )
    save_model(job.model, out / "model", tokenizer_folder=manifest.tokenizer_folder)
    assert job.evaluation is not None
    return {
        **{name: job.evaluation[name] for name in ("loss", "loss_se", "bits_per_byte")},
        "tokens": job.tokens,
        "tokens_per_s": job.tokens_per_s,
        "model_dir": str(out / "model"),
    }


def _fields(result: Any) -> dict[str, float]:
    return {"loss": result.loss, "loss_se": result.loss_se, "bits_per_byte": result.bits_per_byte}
