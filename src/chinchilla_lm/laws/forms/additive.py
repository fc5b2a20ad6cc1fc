"""The additive form: one term for size, one for data, one floor (Hoffmann et al. 2022). Symbols: see `forms.law`."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args, overload

from chinchilla_lm.core.errors import FitError
from chinchilla_lm.laws.count import ParamsConvention
from chinchilla_lm.laws.forms.law import Floats, require_positive


@dataclass(frozen=True, kw_only=True)
class AdditiveLaw:
    """L(N, D) = E + A / N^alpha + B / D^beta.

    Attributes:
        E: loss of an endless model on endless text, nats per token, >= 0.
        A: scale of the size term, > 0 (unit: nats per token times params^alpha).
        B: scale of the data term, > 0.
        alpha: exponent of the size term, > 0.
        beta: exponent of the data term, > 0.
        params_convention: which weights N counts.

    Source: Hoffmann et al. 2022 (arXiv 2203.15556), eq. 2.
    """

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    params_convention: ParamsConvention = "matmul"

    def __post_init__(self) -> None:
        """Refuse constants that are no law.

        Raises:
            FitError: a constant that is not finite and > 0 (E may be 0), or an unknown convention.
        """
        for name in ("E", "A", "B", "alpha", "beta"):
            constant = float(getattr(self, name))
            if not (math.isfinite(constant) and (constant > 0 or (name == "E" and constant == 0))):
                raise FitError(f"law constant {name}={constant!r} must be finite and > 0; check the fit or the file")
        if self.params_convention not in get_args(ParamsConvention):
            choices = ", ".join(get_args(ParamsConvention))
            raise FitError(f"params_convention={self.params_convention!r} is unknown; choose from {choices}")

    @property
    def a(self) -> float:
        """Exponent of the optimal size, N* ~ C^a (Hoffmann et al. 2022, eq. 4)."""
        return self.beta / (self.alpha + self.beta)

    @property
    def b(self) -> float:
        """Exponent of the optimal number of tokens, D* ~ C^b."""
        return self.alpha / (self.alpha + self.beta)

    @property
    def G(self) -> float:  # noqa: N802 - the paper's letter
        """Prefactor of the optimal size, N* = G (C/k)^a (Hoffmann et al. 2022, eq. 4)."""
        return (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))

    @overload
    def loss(self, params: float, tokens: float) -> float: ...
    @overload
    def loss(self, params: Floats, tokens: Floats) -> Floats: ...
    def loss(self, params: float | Floats, tokens: float | Floats) -> float | Floats:
        """Return the loss in nats per token.

        Args:
            params: N > 0 in this law's convention, number or array.
            tokens: D > 0 of training, each seen once; of the same kind as `params`.

        Returns:
            L of the same kind.
        """
        return self.E + self.A / params**self.alpha + self.B / tokens**self.beta

    def optimum(self, flops: float, flops_per_param_token: float = 6.0) -> tuple[float, float]:
        """Split C = k N D so that the loss is least.

        Args:
            flops: training budget C, > 0.
            flops_per_param_token: k, > 0; 6 without attention.

        Returns:
            (params, tokens), unrounded; k * params * tokens == flops.

        Raises:
            PlanError: a number that is not finite and > 0.

        Source: Hoffmann et al. 2022, eq. 4.
        """
        require_positive(flops, "flops")
        require_positive(flops_per_param_token, "flops_per_param_token")
        product = flops / flops_per_param_token
        params = self.G * product**self.a
        return params, product / params

    def to_dict(self) -> dict[str, Any]:
        """Return the constants, with the derived a and b, as JSON values."""
        constants = {name: getattr(self, name) for name in ("E", "A", "B", "alpha", "beta", "a", "b")}
        return {"form": "additive", "params_convention": self.params_convention, **constants}

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> AdditiveLaw:
        """Build a law from `to_dict`'s mapping or from a whole law.json; other keys are left alone.

        Args:
            mapping: must hold E, A, B, alpha and beta.

        Returns:
            The law.

        Raises:
            FitError: another form, or a missing or impossible constant.
        """
        form = mapping.get("form", "additive")
        if form != "additive":
            raise FitError(f"law form {form!r} is unknown here; write a law of form 'additive'")
        missing = [name for name in ("E", "A", "B", "alpha", "beta") if not isinstance(mapping.get(name), (int, float))]
        if missing:
            raise FitError(f"the law lacks the number {missing[0]!r}; it must hold E, A, B, alpha and beta")
        constants = {name: float(mapping[name]) for name in ("E", "A", "B", "alpha", "beta")}
        return cls(**constants, params_convention=mapping.get("params_convention", "matmul"))

    def hash(self) -> str:
        """Return 16 hexadecimal digits that change when any constant does."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
