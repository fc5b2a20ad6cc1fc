"""Laws along the compute-optimal path alone: a size, or a loss, for each budget. Symbols: see `forms.law`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from chinchilla_lm.laws.count import ParamsConvention
from chinchilla_lm.laws.forms.law import require_positive


@dataclass(frozen=True, kw_only=True)
class PowerLine:
    """ln L = intercept + slope * ln C along the compute-optimal path: a law without a floor (E = 0).

    Attributes:
        intercept: ln of the loss (nats per token) at C = 1.
        slope: change of ln L per unit of ln C, < 0 when compute helps.
    """

    intercept: float
    slope: float

    def loss(self, flops: float) -> float:
        """Return the optimal loss (nats per token) at C > 0."""
        return math.exp(self.intercept + self.slope * math.log(flops))


@dataclass(frozen=True, kw_only=True)
class AllocationLaw:
    """N* = coefficient * C^exponent, D* = C / (k N*): a size for each budget, and no loss away from it.

    Attributes:
        coefficient: params at C = 1, > 0.
        exponent: a, in (0, 1).
        params_convention: which weights N counts.
        line: the loss at the optimum where the source states one, else None.

    Source: the form of Kaplan et al. 2020 (arXiv 2001.08361), section 6, and of Hoffmann et al. 2022, table 2.
    """

    coefficient: float
    exponent: float
    params_convention: ParamsConvention = "total"
    line: PowerLine | None = None

    @property
    def a(self) -> float:
        """Exponent of the optimal size."""
        return self.exponent

    @property
    def b(self) -> float:
        """Exponent of the optimal number of tokens."""
        return 1 - self.exponent

    def optimum(self, flops: float, flops_per_param_token: float = 6.0) -> tuple[float, float]:
        """Split C = k N D as the source did.

        Args:
            flops: training budget C, > 0.
            flops_per_param_token: k, > 0.

        Returns:
            (params, tokens), unrounded; k * params * tokens == flops.

        Raises:
            PlanError: a number that is not finite and > 0.
        """
        require_positive(flops, "flops")
        require_positive(flops_per_param_token, "flops_per_param_token")
        params = self.coefficient * flops**self.exponent
        return params, flops / flops_per_param_token / params
