"""The recipe: every training setting as a function of the shape and the tokens, so that no size needs tuning.

Symbols: d d_model, D training tokens, B tokens in a batch, N matmul parameters, k the learning-rate scale.
A law is only as good as the recipe is even over sizes: a rate or a batch that is right at one size and wrong at
another bends the curve that is extrapolated (Delphi 2026 failed once for just that: "fix the recipe, not the curve").
One number is left to measure: k, which the study probes once at its cheapest rung. It is pure arithmetic, no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from chinchilla_lm.core.shapes import ModelShape
from chinchilla_lm.laws.count import count_parameters
from chinchilla_lm.train.config import BatchConfig, OptimizerConfig, RunConfig, ScheduleConfig, TrainConfig

RECIPE_VERSION = "v2"

# eta = (0.85 k / d) sqrt(B / 900) (3.4e5 / D)^0.2, so that k = 1 is near the optimum of our own model: with Muon
# 0.85 / d was .2 % better than 0.6 / d at d = 64, C = 2e12, and 1.2 / d .3 % at d = 128, C = 1e13 (LOG 2026-11-22).
# Exponents: 1/d for hidden matrices and head (Everett et al. 2024), sqrt(B) (Malladi et al. 2022), D^-0.15..-0.3
# measured here and by Marin (dev/LOG.md).
_ANCHOR_RATE = 0.85
_ANCHOR_BATCH_TOKENS = 900.0
_ANCHOR_TOKENS = 3.4e5
_TOKENS_EXPONENT = 0.2
_EMBEDDING_WIDTH = 64.0  # eta_embedding = eta d / 64: the embedding's rate does not shrink with width

# Step law (Li et al. 2025, arXiv 2503.04715): 0.58 D^0.571 tokens; the second bound keeps >= 400 updates. With Muon a
# batch of 1536 tokens cost .4 % of loss against 512 at D = 1.1M and trained 1.6 times as fast (dev/LOG.md 2026-11-22).
_STEP_LAW_FACTOR = 0.58
_STEP_LAW_EXPONENT = 0.571
_LEAST_UPDATES = 400

_COOLDOWN_FRACTION = 0.2  # Haegele et al. 2024: 10-20 % of the steps
_WARMUP_FRACTION = 0.03
_LEAST_WARMUP_STEPS = 10
_CLIP_NORM = 1.0
_SMALL_BATCH_TOKENS = 32768  # below it beta2 = .99: a half-life of few tokens makes Adam noisy (Porian et al. 2024)
_MICRO_BATCH_TOKENS = 4096  # of one pass on a CPU: activations stay in the cache; larger ones were slower (dev/LOG.md)


@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """What the recipe takes from outside the law.

    Attributes:
        lr_scale: k, the measured learning-rate scale, > 0 (1: the anchor's).
        schedule: "wsd" for anything that a law is fitted to; sweep and final run share it.
        dtype: of matmuls.
        threads: CPU threads.
        seed: of weights and data order.
        device: "auto", "cpu" or "cuda".
    """

    lr_scale: float = 1.0
    schedule: Literal["wsd", "cosine", "linear"] = "wsd"
    dtype: Literal["float32", "bfloat16"] = "float32"
    threads: int = 1
    seed: int = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"


def batch_rows(tokens: float, context: int) -> int:
    """Give the windows of one update.

    Args:
        tokens: training tokens D, > 0.
        context: targets in a window.

    Returns:
        Rows, >= 1: min(0.58 D^0.571, D / 400) tokens, rounded to whole windows.

    Source: Li et al. 2025, step law; the second bound: dev/LOG.md.
    """
    batch_tokens = min(_STEP_LAW_FACTOR * tokens**_STEP_LAW_EXPONENT, tokens / _LEAST_UPDATES)
    return max(1, round(batch_tokens / context))


def learning_rate(d_model: int, batch_tokens: float, tokens: float, lr_scale: float = 1.0) -> float:
    """Give the peak rate of hidden matrices and head.

    Args:
        d_model: width.
        batch_tokens: tokens in one update.
        tokens: training tokens D.
        lr_scale: k.

    Returns:
        eta = (0.85 k / d) sqrt(B / 900) (3.4e5 / D)^0.2.
    """
    batch_factor = math.sqrt(batch_tokens / _ANCHOR_BATCH_TOKENS)
    return _ANCHOR_RATE * lr_scale / d_model * batch_factor * (_ANCHOR_TOKENS / tokens) ** _TOKENS_EXPONENT


def weight_decay(d_model: int, batch_tokens: float, tokens: float, params: float) -> float:
    """Give the decoupled weight decay of matrices.

    Args:
        d_model: width.
        batch_tokens: tokens in one update.
        tokens: training tokens D.
        params: matmul parameters N.

    Returns:
        lambda = B / (eta D tau), tau = 1.084 (D/N)^-0.527: the weights' memory is a fixed part of the run.

    Source: Bergsma et al. 2025 (arXiv 2505.13738), Power Lines.
    """
    timescale = 1.084 * (tokens / params) ** -0.527
    return batch_tokens / (learning_rate(d_model, batch_tokens, tokens) * tokens * timescale)


def recipe_for(
    shape: ModelShape, tokens: float, options: RecipeOptions, *, rows: int | None = None, decay_from: int | None = None
) -> TrainConfig:
    """Derive a whole training config.

    Args:
        shape: the model.
        tokens: training tokens wanted; the config trains the nearest whole number of updates.
        options: what the law does not set.
        rows: batch rows, when a trunk has fixed them; None: `batch_rows`.
        decay_from: update at which the cooldown starts, when a trunk has fixed it; None: the last 20 %.

    Returns:
        The config; `config.tokens` says exactly how many tokens it trains.
    """
    rows = batch_rows(tokens, shape.context) if rows is None else rows
    batch_tokens = rows * shape.context
    steps = max(2, round(tokens / batch_tokens))
    params = count_parameters(shape).matmul
    lr_matrix = learning_rate(shape.d_model, batch_tokens, tokens, options.lr_scale)
    is_wsd = options.schedule == "wsd"
    decay_steps = max(1, round(_COOLDOWN_FRACTION * steps) if decay_from is None else steps - decay_from)
    return TrainConfig(
        shape=shape,
        batch=BatchConfig(
            rows=rows, micro_batch=max(1, min(rows, _MICRO_BATCH_TOKENS // shape.context)), seed=options.seed
        ),
        optimizer=OptimizerConfig(
            rule="muon",
            lr_matrix=lr_matrix,
            lr_embedding=lr_matrix * shape.d_model / _EMBEDDING_WIDTH,
            beta1=0.9,
            beta2=0.99 if batch_tokens < _SMALL_BATCH_TOKENS else 0.95,
            weight_decay=weight_decay(shape.d_model, batch_tokens, tokens, params),
            clip_norm=_CLIP_NORM,
        ),
        schedule=ScheduleConfig(
            kind=options.schedule,
            steps=steps,
            warmup_steps=min(steps - decay_steps if is_wsd else steps, warmup_steps(steps)),
            decay_steps=decay_steps if is_wsd else 0,
        ),
        run=RunConfig(
            dtype=options.dtype,
            device=options.device,
            threads=options.threads,
            seed=options.seed,
        ),
    )


def warmup_steps(steps: int) -> int:
    """Give the updates of linear warm-up: 3 % of the run, at least 10."""
    return max(_LEAST_WARMUP_STEPS, round(_WARMUP_FRACTION * steps))


def trunk_branch_step(horizon_steps: int) -> int:
    """Give the update at which the cooldown of a run of `horizon_steps` leaves its trunk."""
    return horizon_steps - max(1, round(_COOLDOWN_FRACTION * horizon_steps))
