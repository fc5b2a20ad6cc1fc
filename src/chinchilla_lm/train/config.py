"""The training config: what plan.toml holds, value by value.

A config is frozen and complete: the trainer obeys it and derives nothing but `batch_tokens` and `tokens`. It is
loaded strictly (`chinchilla_lm.core.config`): an unknown key is an error. Nothing here reaches torch.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from chinchilla_lm.core.errors import ConfigError
from chinchilla_lm.core.shapes import ModelShape


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """The global batch: `rows` windows of `shape.context` target tokens each.

    Attributes:
        rows: windows in one update, over all devices and passes, >= 1.
        micro_batch: rows that one device takes in one pass, in 1..rows; it changes memory, not the result.
        seed: order of the training windows, >= 0.
    """

    rows: int
    micro_batch: int
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self.rows >= 1, "batch.rows", self.rows, "must be >= 1", "write the windows per update")
        _require(
            1 <= self.micro_batch <= self.rows,
            "batch.micro_batch",
            self.micro_batch,
            f"must lie in 1..rows = 1..{self.rows}",
            "write batch.rows to take the batch in one pass",
        )
        _require(self.seed >= 0, "batch.seed", self.seed, "must be >= 0", "write 0")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Two peak learning rates, and what all groups share (see `train.optimizer`).

    Attributes:
        rule: for matrices in blocks: "adamw", or "muon" (`train.muon`); all else follows AdamW.
        lr_matrix: peak rate of matrices in blocks, of the head, of norms and biases, > 0.
        lr_embedding: peak rate of embedding tables, > 0.
        momentum: Muon's decay of the mean of gradients, in [0, 1).
        beta1: AdamW's decay of the mean of gradients, in [0, 1).
        beta2: AdamW's decay of the mean of squared gradients, in [0, 1).
        epsilon: added to the root of the second moment, > 0. 1e-10: small enough to need no width rule.
        weight_decay: on matrices and head only; decoupled as in torch: an update shrinks a weight by lr * weight_decay.
        clip_norm: the global gradient norm is scaled down to this, > 0; inf: never.
    """

    rule: Literal["adamw", "muon"] = "adamw"
    lr_matrix: float
    lr_embedding: float
    momentum: float = 0.95
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-10
    weight_decay: float = 0.0
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        for name in ("lr_matrix", "lr_embedding", "epsilon", "clip_norm"):
            value = getattr(self, name)
            _require(value > 0, f"optimizer.{name}", value, "must be > 0", "write a positive number such as 0.01")
        for name in ("momentum", "beta1", "beta2"):
            value = getattr(self, name)
            _require(0 <= value < 1, f"optimizer.{name}", value, "must lie in [0, 1)", "write 0.9 or 0.95")
        _require(
            self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, "must be >= 0", "write 0.0 for none"
        )


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning rate over the run; its formula is `train.schedule.learning_rate_factor`.

    Attributes:
        kind: "wsd" (warm-up, constant, 1-sqrt cooldown), "cosine" or "linear" (both decay from the warm-up to the end).
        steps: length of the whole schedule in updates, >= 1.
        warmup_steps: updates of linear warm-up, >= 0.
        decay_steps: updates of cooldown, wsd only (0: none, the rate stays constant); others decay all the way: 0.
        final_fraction: the factor that the decay ends at, in [0, 1].
    """

    kind: Literal["wsd", "cosine", "linear"] = "wsd"
    steps: int
    warmup_steps: int = 0
    decay_steps: int = 0
    final_fraction: float = 0.0

    def __post_init__(self) -> None:
        _require(self.steps >= 1, "schedule.steps", self.steps, "must be >= 1", "write the number of updates")
        _require(
            0 <= self.warmup_steps <= self.steps,
            "schedule.warmup_steps",
            self.warmup_steps,
            f"must lie in 0..steps = 0..{self.steps}",
            "warm up over 2-5 % of the steps",
        )
        _require(
            0 <= self.decay_steps <= self.steps - self.warmup_steps,
            "schedule.decay_steps",
            self.decay_steps,
            f"must lie in 0..steps - warmup_steps = 0..{self.steps - self.warmup_steps}",
            "cool down over 20 % of the steps",
        )
        _require(
            self.kind == "wsd" or self.decay_steps == 0,
            "schedule.decay_steps",
            self.decay_steps,
            f"must be 0 for {self.kind}, which decays from the warm-up to the end",
            'leave it out, or write kind = "wsd"',
        )
        _require(
            0 <= self.final_fraction <= 1,
            "schedule.final_fraction",
            self.final_fraction,
            "must lie in [0, 1]",
            "write 0.0 to decay to zero",
        )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How the run is carried out: number format, threads, how often it looks at itself.

    Attributes:
        dtype: of matmuls and activations; the weights and the optimizer stay float32.
        device: "auto" takes the GPU where there is one.
        form: of the modules: our CPU kernels, torch.compile ("inductor"), plain torch, or the fastest that works here.
        threads: of torch on a CPU, >= 1. The last bits of a result depend on it.
        evaluate_every: updates between evaluations, >= 0 (0: only at the end).
        checkpoint_seconds: between checkpoints, >= 0 (0: after every update).
        keep_checkpoints: how many newest ones stay, >= 1.
        seed: of the initial weights and of dropout, >= 0.
    """

    dtype: Literal["float32", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    form: Literal["auto", "plain", "kernels", "inductor"] = "auto"
    threads: int = 1
    evaluate_every: int = 0
    checkpoint_seconds: float = 60.0
    keep_checkpoints: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (
            ("threads", 1),
            ("evaluate_every", 0),
            ("checkpoint_seconds", 0),
            ("keep_checkpoints", 1),
            ("seed", 0),
        ):
            value = getattr(self, name)
            _require(value >= least, f"run.{name}", value, f"must be >= {least}", f"write {least} or more")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run. plan.toml is this record, each value with a comment naming the law that chose it."""

    shape: ModelShape
    batch: BatchConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    run: RunConfig = field(default_factory=RunConfig)

    @property
    def batch_tokens(self) -> int:
        """Target tokens in one update."""
        return self.batch.rows * self.shape.context

    @property
    def tokens(self) -> int:
        """Target tokens of the whole schedule."""
        return self.batch_tokens * self.schedule.steps

    def fingerprint(self) -> str:
        """Name what decides the trained weights: all but how often the run looks at itself and the micro-batch.

        Returns:
            16 hex digits, equal for two configs that train the same model.
        """
        return _digest(self._deciding())

    def trunk_fingerprint(self) -> str:
        """Name what a trunk and its branches share: all but how long the schedule is and how it decays."""
        schedule = {"kind": self.schedule.kind, "warmup_steps": self.schedule.warmup_steps}
        return _digest({**self._deciding(), "schedule": schedule})

    def _deciding(self) -> dict[str, Any]:
        deciding = asdict(self)
        deciding["batch"].pop("micro_batch")
        deciding["run"] = {"dtype": self.run.dtype, "seed": self.run.seed}
        return deciding


def _digest(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _require(is_right: bool, name: str, value: object, rule: str, way_out: str) -> None:
    if not is_right:
        raise ConfigError(f"{name} = {value!r} {rule}; {way_out}")
