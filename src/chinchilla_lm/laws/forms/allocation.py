"""Laws along the compute-optimal path alone: a size, or a loss, for each budget. Symbols: see `forms.law`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, overload

import numpy as np

from chinchilla_lm.core.errors import FitError
from chinchilla_lm.laws.count import ParamsConvention
from chinchilla_lm.laws.forms.law import (
    Floats,
    check_constants,
    constants_in,
    exp_or_refuse,
    hash_record,
    record_of,
    require_above,
    require_positive,
)

_CONSTANTS = ("coefficient", "exponent")


@dataclass(frozen=True, kw_only=True)
class PowerLine:
    """ln L = intercept + slope * ln C along the compute-optimal path: a law without a floor (E = 0).

    Attributes:
        intercept: ln of the loss (nats per token) at C = 1.
        slope: change of ln L per unit of ln C, < 0 when compute helps (never 0 where `flops_for_loss` is asked).
    """

    intercept: float
    slope: float

    @overload
    def loss(self, flops: float) -> float: ...
    @overload
    def loss(self, flops: Floats) -> Floats: ...
    def loss(self, flops: float | Floats) -> float | Floats:
        """Return the optimal loss (nats per token) at C > 0, number or array."""
        if isinstance(flops, np.ndarray):
            return np.exp(self.intercept + self.slope * np.log(flops))
        return math.exp(self.intercept + self.slope * math.log(flops))

    def flops_for_loss(self, loss: float) -> float:
        """Return the budget C whose optimal loss is `loss` > 0.

        Raises:
            PlanError: a loss that is not > 0.
        """
        require_above(loss, 0.0, "endless compute")
        return exp_or_refuse((math.log(loss) - self.intercept) / self.slope, f"loss={loss!r}")


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

    form: ClassVar[str] = "allocation"

    coefficient: float
    exponent: float
    params_convention: ParamsConvention = "total"
    line: PowerLine | None = None

    def __post_init__(self) -> None:
        """Refuse constants that are no law.

        Raises:
            FitError: a coefficient or exponent that is not finite and > 0, an exponent >= 1, an unknown convention.
        """
        check_constants(self, _CONSTANTS)
        if self.exponent >= 1:
            raise FitError(f"law constant exponent={self.exponent!r} must be below 1; at 1 no tokens are left to add")

    @property
    def a(self) -> float:
        """Exponent of the optimal size."""
        return self.exponent

    @property
    def b(self) -> float:
        """Exponent of the optimal number of tokens."""
        return 1 - self.exponent

    @overload
    def optimum(self, flops: float, flops_per_param_token: float = 6.0) -> tuple[float, float]: ...
    @overload
    def optimum(self, flops: Floats, flops_per_param_token: float = 6.0) -> tuple[Floats, Floats]: ...
    def optimum(
        self, flops: float | Floats, flops_per_param_token: float = 6.0
    ) -> tuple[float | Floats, float | Floats]:
        """Split C = k N D as the source did.

        Args:
            flops: training budget C, > 0, number or array.
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

    def to_dict(self) -> dict[str, Any]:
        """Return the constants as JSON values; "line" only where there is one."""
        record = record_of(self, self.form, _CONSTANTS)
        if self.line is not None:
            record["line"] = {"intercept": self.line.intercept, "slope": self.line.slope}
        return record

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> AllocationLaw:
        """Build a law from `to_dict`'s mapping; other keys are left alone.

        Raises:
            FitError: another form, or a missing or impossible constant.
        """
        constants = constants_in(mapping, cls.form, _CONSTANTS)
        record = mapping.get("line")
        line = None
        if record is not None:
            line = PowerLine(**constants_in(record, "line", ("intercept", "slope")))
        return cls(**constants, params_convention=mapping.get("params_convention", "total"), line=line)

    def hash(self) -> str:
        """Return 16 hexadecimal digits that change when any constant does."""
        return hash_record(self.to_dict())


@dataclass(frozen=True, kw_only=True)
class SingleVariableLaw:
    """L = (scale / x)^exponent, where nothing but x limits the loss.

    Attributes:
        variable: what x is: "params", "tokens" or "flops".
        scale: x at which the law gives 1 nat per token, > 0.
        exponent: > 0.
        params_convention: which weights N counts, where x is a size.

    Source: the form of Kaplan et al. 2020 (arXiv 2001.08361), eq. 1.1 to 1.3.
    """

    variable: Literal["params", "tokens", "flops"]
    scale: float
    exponent: float
    params_convention: ParamsConvention = "non_embedding"

    def __post_init__(self) -> None:
        """Refuse constants that are no law.

        Raises:
            FitError: a scale or exponent that is not finite and > 0, or an unknown convention.
        """
        check_constants(self, ("scale", "exponent"))

    def loss(self, amount: float) -> float:
        """Return the loss (nats per token) at x = amount > 0."""
        require_positive(amount, self.variable)
        return (self.scale / amount) ** self.exponent
