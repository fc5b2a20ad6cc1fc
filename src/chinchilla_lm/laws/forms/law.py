"""What every form of scaling law has in common: arrays, the protocol of a law, and one check.

Symbols in this folder: N `params`, D `tokens`, C `flops` (training), L `loss` in nats per token; E, A, B, alpha, beta
as in the papers; k `flops_per_param_token` with C = k N D (6 in the papers). At the optimum N* = G (C/k)^a and
D* = (C/k)^b / G. A law is a value. It never fits, reads files or draws, nor converts between conventions of N: it
stores its own.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import numpy.typing as npt

from chinchilla_lm.core.errors import PlanError
from chinchilla_lm.laws.count import ParamsConvention

Floats = npt.NDArray[np.float64]


class Law(Protocol):
    """Anything that splits a budget into a size and a number of tokens."""

    @property
    def params_convention(self) -> ParamsConvention:
        """Which weights N counts."""
        ...

    def optimum(self, flops: float, flops_per_param_token: float = 6.0) -> tuple[float, float]:
        """Return (params, tokens) of least loss for a budget."""
        ...


def require_positive(number: float, name: str) -> None:
    """Refuse a number that is no amount.

    Raises:
        PlanError: not finite and > 0.
    """
    if not (math.isfinite(number) and number > 0):
        raise PlanError(f"{name} must be finite and > 0, got {number!r}; write a number such as 1e20")
