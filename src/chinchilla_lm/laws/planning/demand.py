"""Serving: what tokens read and written after training cost, in units of training cost.

Reading a prompt (prefill) and writing an answer (decode) both take 2 N FLOPs a token, but decode keeps a device waiting
for memory: its share of the peak is a hundredth where training's is a half. So a decode token may cost as much device
time as tens of training tokens, and the best model to train shrinks. Symbols: I = `training_equivalent`, the number of
tokens whose 2 N FLOPs at training's speed cost as much.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from chinchilla_lm.core.errors import PlanError


@dataclass(frozen=True, kw_only=True)
class Demand:
    """Tokens to be served over a model's life.

    Attributes:
        prefill_tokens: read, >= 0.
        decode_tokens: written, >= 0.
        prefill_cost: cost of a FLOP of reading over one of training, > 0: MFU of training / MFU of prefill, times the
            ratio of prices where another device serves. 1 counts FLOPs alone.
        decode_cost: the same of writing.

    Source: Sardana et al. 2024 (arXiv 2401.00448), their costs in FLOPs and in money.
    """

    prefill_tokens: float = 0.0
    decode_tokens: float = 0.0
    prefill_cost: float = 1.0
    decode_cost: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what is no demand.

        Raises:
            PlanError: a number out of its range.
        """
        for name in ("prefill_tokens", "decode_tokens"):
            tokens = getattr(self, name)
            if not (math.isfinite(tokens) and tokens >= 0):
                raise PlanError(f"{name}={tokens!r} must be finite and >= 0; leave it out for none")
        for name in ("prefill_cost", "decode_cost"):
            cost = getattr(self, name)
            if not (math.isfinite(cost) and cost > 0):
                raise PlanError(f"{name}={cost!r} must be finite and > 0; 1 counts FLOPs alone")

    @property
    def tokens(self) -> float:
        """All that is served."""
        return self.prefill_tokens + self.decode_tokens

    @property
    def training_equivalent(self) -> float:
        """I, such that serving costs 2 N I FLOPs at training's speed and price."""
        return self.prefill_tokens * self.prefill_cost + self.decode_tokens * self.decode_cost

    def flops(self, params: float) -> float:
        """Return the FLOPs of serving a model of `params` params, 2 N a token."""
        return 2 * params * self.tokens

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        names = ("prefill_tokens", "decode_tokens", "prefill_cost", "decode_cost")
        return {name: getattr(self, name) for name in names}


def demand_at_speeds(
    prefill_tokens: float, decode_tokens: float, *, training_mfu: float, prefill_mfu: float, decode_mfu: float
) -> Demand:
    """Weigh serving by the device time it takes.

    Args:
        prefill_tokens: read, >= 0.
        decode_tokens: written, >= 0.
        training_mfu: share of the device's peak that training reaches, in (0, 1].
        prefill_mfu: that reading reaches.
        decode_mfu: that writing reaches; about .01 (Sardana et al. 2024).

    Returns:
        The demand, each token in units of training's device time.

    Raises:
        PlanError: a share outside (0, 1], or a count that is no amount.
    """
    for name, mfu in (("mfu", training_mfu), ("prefill_mfu", prefill_mfu), ("decode_mfu", decode_mfu)):
        if not 0 < mfu <= 1:
            raise PlanError(f"{name}={mfu!r} must be in (0, 1]; write for example 0.4, or 0.01 for decode")
    return Demand(
        prefill_tokens=prefill_tokens,
        decode_tokens=decode_tokens,
        prefill_cost=training_mfu / prefill_mfu,
        decode_cost=training_mfu / decode_mfu,
    )
