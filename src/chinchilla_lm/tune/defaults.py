"""What a config leaves open, decided by rule, each value with its reason.

The rules are those of the literature for models of 0.1 to 1 billion parameters; a run records every value it took.
"""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from chinchilla_lm.core.errors import ConfigError
from chinchilla_lm.tune.config import Method, TuneConfig

# Peak rates by method. Full: Devlin et al. 2019, appendix A.3. LoRA needs about ten times that of full tuning (Schulman
# et al. 2025, "LoRA Without Regret"; 5e-4 and 1e-3 measured on SmolLM2-135M). Head: Kumar et al. 2022 probe at 1e-3.
# BitFit: Ben Zaken et al. 2022, section 4. Prompt tuning and (IA)3: the papers' 0.3 and 3e-3 are for Adafactor on T5;
# these are peft's examples. Prefix tuning: Li and Liang 2021, table 5.
_RATES: dict[Method, float] = {
    "full": 3e-5,
    "head": 1e-3,
    "top-k": 5e-5,
    "gradual": 5e-5,
    "pattern": 5e-5,
    "lora": 5e-4,
    "bitfit": 1e-3,
    "prompt": 1e-2,
    "prefix": 1e-3,
    "ia3": 5e-3,
    "peft": 5e-4,  # LoRA's, whose kin most tuners are; others have their own, such as 1e-2 for VeRA
}
# SGD's gradient is not divided by its size: Howard and Ruder 2018 fine-tune with 0.01 and momentum 0.9.
_SGD_RATE = 1e-2
_LONGEST_TOKENS = 512
# Padded tokens of one pass: activations of a 135M model then take about 2 GB in bfloat16.
_PASS_TOKENS = 4096
# Kinds of heads that no words of the model give a start (`describe` of their tasks), and updates that are few for them.
_HEADS_FROM_NOISE = ("span", "linear", "markers")
_FEW_UPDATES = 100


def resolve(config: TuneConfig, *, context: int) -> tuple[TuneConfig, dict[str, str]]:
    """Fill in every None that does not depend on the rows.

    Args:
        config: as it was written.
        context: most tokens the model reads.

    Returns:
        (the config with lr, dtype, device, max_tokens set; name -> why, for those that were set here).
    """
    chosen: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    if config.lr is None:
        is_sgd = config.optimizer == "sgd"
        chosen["lr"] = _SGD_RATE if is_sgd else _RATES[config.method]
        reasons["lr"] = "the rate of SGD" if is_sgd else f"the rate of method {config.method}"
    if config.max_tokens is None:
        chosen["max_tokens"] = min(_LONGEST_TOKENS, context)
        reasons["max_tokens"] = f"{_LONGEST_TOKENS}, or the model's context of {context}"
    elif config.max_tokens > context:
        raise ConfigError(f"max_tokens = {config.max_tokens} must be <= the model's context of {context}; lower it")
    if config.device == "auto":
        chosen["device"] = "cuda" if torch.cuda.is_available() else "cpu"
        reasons["device"] = "what this machine has"
    device = chosen.get("device", config.device)
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError('device = "cuda" is not on this machine; write "cpu" or "auto"')
    if config.dtype == "auto":
        chosen["dtype"] = "bfloat16" if device == "cuda" or has_fast_bfloat16() else "float32"
        reasons["dtype"] = "the faster one of this processor"
    return replace(config, **chosen), reasons


def resolve_for_rows(config: TuneConfig, *, longest: int, steps_per_epoch: int) -> tuple[TuneConfig, dict[str, str]]:
    """Fill in what depends on the rows: micro_batch, steps, evaluate_every.

    Args:
        config: after `resolve`.
        longest: tokens of the longest training example.
        steps_per_epoch: updates in one epoch.
    """
    chosen: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    if config.micro_batch is None:
        chosen["micro_batch"] = max(1, min(config.rows, _PASS_TOKENS // max(1, longest)))
        reasons["micro_batch"] = f"at most {_PASS_TOKENS} tokens in a pass; the longest example has {longest}"
    if config.steps is None:
        chosen["steps"] = max(1, round(config.epochs * steps_per_epoch))
        reasons["steps"] = f"{config.epochs:g} epochs of {steps_per_epoch} updates"
    if config.evaluate_every is None:
        chosen["evaluate_every"] = steps_per_epoch
        reasons["evaluate_every"] = "once an epoch"
    return replace(config, **chosen), reasons


def doubt_length(config: TuneConfig, head: str, updates: int) -> tuple[str, ...]:
    """Say it where a head from noise had so few updates that it may only have begun to learn.

    Args:
        config: resolved.
        head: its kind, as the task describes it.
        updates: that were done. A run that stopped early had enough of them.

    Returns:
        Warnings for the record: one or none.

    Source: Mosbach et al. 2021 (small sets need more updates). Measured on SmolLM2-135M, 300 rows of SQuAD, spans by
        LoRA: F1 47 after 76 updates of 8 rows and 56 after 152 of 4, the same two epochs (150 validation rows).
    """
    if head not in _HEADS_FROM_NOISE or updates >= _FEW_UPDATES or updates != config.steps:
        return ()
    return (
        f"{updates} updates are few for a head that starts from noise: take more epochs, or fewer rows in an update "
        f"(rows = {max(1, config.rows // 2)})",
    )


def has_fast_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware (AMX or AVX-512 BF16)."""
    cpuinfo = Path("/proc/cpuinfo")
    if platform.system() != "Linux" or not cpuinfo.is_file():
        return False
    flags = cpuinfo.read_text(encoding="utf-8", errors="replace")
    return "amx_bf16" in flags or "avx512_bf16" in flags
