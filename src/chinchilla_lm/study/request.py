"""What a study is asked for: text, a budget, and the few choices that a law does not make."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from chinchilla_lm.core.errors import BudgetError, ConfigError
from chinchilla_lm.core.units import parse_budget

# A process, its imports and a first look at the machine take longer than this; a study in less has nothing to plan.
LEAST_SECONDS = 20.0


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """The request, stored as config.toml in the run directory; the same request resumes it, another is refused.

    Attributes:
        corpus: files, folders, globs, "stdlib" or "hf:NAME".
        budget: what sweep and final run may spend together, with its unit: "5m", "2h", "1e15".
        seed: of weights, data order and held-out split, >= 0.
        vocab: entries of the tokenizer; 0: by the vocabulary law.
        context: tokens in a window; 0: by the compute.
        threads: processor cores to use; 0: all.
        dtype: of matmuls; "auto": the faster one, measured.
        sweep_share: part of the budget for the sweep, in (0, 0.8].
        least_rung_flops: the cheapest rung wanted, > 0; a budget too small for it goes down to a tenth and says so:
            runs below 1e12 FLOPs are mostly off the law (dev/LOG.md).
        suite: what the ladder's models and the final one are asked; empty: "own-words", where it costs at most 2 % of
            the budget; "none": nothing.
        suite_data: folder of the suites' files; empty: the Hugging Face hub.
        suite_items: most items of each suite, >= 1.
    """

    corpus: tuple[str, ...]
    budget: str
    seed: int = 0
    vocab: int = 0
    context: int = 0
    threads: int = 0
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    sweep_share: float = 0.25
    least_rung_flops: float = 3e11
    suite: tuple[str, ...] = ()
    suite_data: str = ""
    suite_items: int = 500

    def __post_init__(self) -> None:
        if not self.corpus:
            raise ConfigError("corpus is empty; name a file, a folder, a glob, stdlib or hf:NAME")
        parse_budget(self.budget)
        for name in ("seed", "vocab", "context", "threads"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} = {getattr(self, name)} must be >= 0; leave it out for the default")
        if 0 < self.vocab < 257:
            raise ConfigError(
                f"vocab = {self.vocab} must be at least 257 (256 bytes and the end of text), or 0: by law"
            )
        if 0 < self.context < 16:
            raise ConfigError(f"context = {self.context} must be at least 16, or 0: by the compute")
        if not 0 < self.sweep_share <= 0.8:
            raise ConfigError(f"sweep_share = {self.sweep_share} must lie in (0, 0.8]; 0.25 is the default")
        if not self.least_rung_flops > 0:
            raise ConfigError(f"least_rung_flops = {self.least_rung_flops} must be > 0; 3e11 is the default")
        if self.suite_items < 1:
            raise ConfigError(f"suite_items = {self.suite_items} must be >= 1; 500 is the default")

    @property
    def n_threads(self) -> int:
        """Cores to use: those asked for, or all that this process may run on."""
        return self.threads or len(os.sched_getaffinity(0))


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """A budget in what the study counts: wall seconds or training FLOPs.

    Attributes:
        kind: "seconds" or "flops".
        amount: of it, > 0.
    """

    kind: Literal["seconds", "flops"]
    amount: float


def allowance_of(config: StudyConfig, device_name: str) -> Allowance:
    """Turn the budget into seconds on this machine or FLOPs.

    Args:
        config: the request.
        device_name: what computes here, such as "cpu" or "NVIDIA H200".

    Returns:
        The allowance.

    Raises:
        BudgetError: too little for any study, money without a price, or hours of a device that is not here.
    """
    budget = parse_budget(config.budget)
    if budget.kind == "dollars":
        raise BudgetError(
            f"budget {config.budget!r} is money, and a run spends time; give minutes such as 20m, "
            "or ask `chinchilla plan --budget '$50' --price P --hardware H` what it buys"
        )
    if budget.kind == "device_hours":
        if budget.device is None or budget.device.lower() not in device_name.lower():
            raise BudgetError(
                f"budget {config.budget!r} is for {budget.device}, and this machine computes on {device_name}; "
                "give minutes such as 20m, or plan for that device with `chinchilla plan`"
            )
        return Allowance(kind="seconds", amount=budget.amount * 3600)
    if budget.kind == "seconds" and budget.amount < LEAST_SECONDS:
        raise BudgetError(
            f"budget {config.budget!r} is {budget.amount:g} s, and a sweep with a final run needs at least "
            f"{LEAST_SECONDS:.0f} s on any machine; give 5m or more"
        )
    return Allowance(kind="flops" if budget.kind == "flops" else "seconds", amount=budget.amount)
