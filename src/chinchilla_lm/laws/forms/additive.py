"""The additive form: one term for size, one for data, one floor (Hoffmann et al. 2022). Symbols: see `forms.law`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, overload

import numpy as np

from chinchilla_lm.laws.count import ParamsConvention
from chinchilla_lm.laws.forms.law import Floats, LawRecord, exp_or_refuse, require_above, require_positive


@dataclass(frozen=True, kw_only=True)
class AdditiveLaw(LawRecord):
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

    form: ClassVar = "additive"
    constants: ClassVar = ("E", "A", "B", "alpha", "beta")
    derived: ClassVar = ("a", "b")

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    params_convention: ParamsConvention = "matmul"

    @property
    def a(self) -> float:
        """Exponent of the optimal size, N* ~ C^a (Hoffmann et al. 2022, eq. 4)."""
        return self.beta / (self.alpha + self.beta)

    @property
    def b(self) -> float:
        """Exponent of the optimal number of tokens, D* ~ C^b."""
        return self.alpha / (self.alpha + self.beta)

    @property
    def G(self) -> float:
        """Prefactor of the optimal size, N* = G (C/k)^a (Hoffmann et al. 2022, eq. 4)."""
        return (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))

    @overload
    def loss(self, params: float, tokens: float) -> float: ...
    @overload
    def loss(self, params: Floats, tokens: Floats) -> Floats: ...
    @overload
    def loss(self, params: float | Floats, tokens: float | Floats) -> float | Floats: ...
    def loss(self, params: float | Floats, tokens: float | Floats) -> float | Floats:
        """Return the loss in nats per token.

        Args:
            params: N > 0 in this law's convention, number or array.
            tokens: D > 0 of training, each seen once; of the same kind as `params`.

        Returns:
            L of the same kind.
        """
        return self.E + self.A / params**self.alpha + self.B / tokens**self.beta

    @overload
    def gradient(self, params: float, tokens: float) -> tuple[float, float]: ...
    @overload
    def gradient(self, params: Floats, tokens: Floats) -> tuple[Floats, Floats]: ...
    def gradient(self, params: float | Floats, tokens: float | Floats) -> tuple[float | Floats, float | Floats]:
        """Return (dL/dN, dL/dD); arguments as in `loss`."""
        by_params = -self.alpha * self.A / params ** (self.alpha + 1)
        return by_params, -self.beta * self.B / tokens ** (self.beta + 1)

    @overload
    def optimum(self, flops: float, flops_per_param_token: float = 6.0) -> tuple[float, float]: ...
    @overload
    def optimum(self, flops: Floats, flops_per_param_token: float = 6.0) -> tuple[Floats, Floats]: ...
    def optimum(
        self, flops: float | Floats, flops_per_param_token: float = 6.0
    ) -> tuple[float | Floats, float | Floats]:
        """Split C = k N D so that the loss is least.

        Args:
            flops: training budget C, > 0, number or array.
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

    @overload
    def optimal_loss(self, flops: float, flops_per_param_token: float = 6.0) -> float: ...
    @overload
    def optimal_loss(self, flops: Floats, flops_per_param_token: float = 6.0) -> Floats: ...
    def optimal_loss(self, flops: float | Floats, flops_per_param_token: float = 6.0) -> float | Floats:
        """Return the least loss of a budget; arguments and errors as in `optimum`."""
        params, tokens = self.optimum(flops, flops_per_param_token)
        return self.loss(params, tokens)

    @overload
    def tokens_for_loss(self, params: float, loss: float) -> float: ...
    @overload
    def tokens_for_loss(self, params: Floats, loss: float) -> Floats: ...
    def tokens_for_loss(self, params: float | Floats, loss: float) -> float | Floats:
        """Return the tokens that a size needs.

        Args:
            params: N > 0, number or array.
            loss: wanted, nats per token.

        Returns:
            D of the same kind as `params`; infinity in an array where a size never reaches the loss.

        Raises:
            PlanError: a single size that never reaches the loss, or a size not > 0.
        """
        require_positive(params, "params")
        floor = self.E + self.A / params**self.alpha
        if isinstance(floor, np.ndarray):
            reach = np.maximum(loss - floor, 0.0)
            with np.errstate(divide="ignore"):
                return (self.B / reach) ** (1 / self.beta)
        require_above(loss, float(floor), f"a model of {params:.3g} params on endless text")
        return exp_or_refuse(math.log(self.B / (loss - floor)) / self.beta, f"loss={loss!r} at {params:.3g} params")

    def flops_for_loss(self, loss: float, flops_per_param_token: float = 6.0) -> float:
        """Return the least budget that reaches a loss.

        Args:
            loss: wanted, nats per token, > E.
            flops_per_param_token: k, > 0.

        Returns:
            C, closed form: L* - E = (A G^-alpha + B G^beta) (C/k)^(-alpha beta / (alpha + beta)).

        Raises:
            PlanError: a loss that no budget reaches.
        """
        require_positive(flops_per_param_token, "flops_per_param_token")
        require_above(loss, self.E, "an endless model on endless text")
        return flops_per_param_token * product_for_gap(self, math.log(loss - self.E))


def product_for_gap(law: AdditiveLaw, log_gap: float) -> float:
    """Return the N D whose best split leaves exp(log_gap) nats per token above the law's E.

    Args:
        law: any.
        log_gap: ln(L* - E).

    Returns:
        N D = C / k, > 0.

    Raises:
        PlanError: a gap so small that no double holds the product.
    """
    scale = law.A / law.G**law.alpha + law.B * law.G**law.beta
    log_product = (math.log(scale) - log_gap) * (1 / law.alpha + 1 / law.beta)
    return exp_or_refuse(log_product, "a loss so near the floor")
