"""The coupled form ("Skaling"): size and data term under one power, so that each is worth more with more of the other.

Symbols: see `forms.law`; kappa is the paper's k, renamed because k is FLOPs per param and token here. kappa = 1 is the
additive form. With kappa < 1 the mixed derivative is negative: text raises the worth of size. On endless text L - E
falls as N^-(alpha kappa). kappa and E make up for each other: on few runs neither is well determined.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, overload

import numpy as np

from chinchilla_lm.laws.count import ParamsConvention
from chinchilla_lm.laws.forms.additive import AdditiveLaw, product_for_gap
from chinchilla_lm.laws.forms.law import Floats, LawRecord, require_above, require_positive


@dataclass(frozen=True, kw_only=True)
class CoupledLaw(LawRecord):
    """L(N, D) = E + (A / N^alpha + B / D^beta)^kappa.

    Attributes:
        E: loss of an endless model on endless text, nats per token, >= 0.
        A: scale of the size term, > 0.
        B: scale of the data term, > 0.
        alpha: exponent of the size term inside the power, > 0; on endless text L - E falls as N^-(alpha kappa).
        beta: exponent of the data term inside the power, > 0.
        kappa: power over the sum, > 0.
        params_convention: which weights N counts.

    Source: Videau et al. 2026 (arXiv 2608.07222), who call the form Skaling.
    """

    form: ClassVar = "coupled"
    constants: ClassVar = ("E", "A", "B", "alpha", "beta", "kappa")
    derived: ClassVar = ("a", "b")

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    kappa: float
    params_convention: ParamsConvention = "matmul"

    @property
    def a(self) -> float:
        """Exponent of the optimal size, N* ~ C^a; kappa does not move it."""
        return self.beta / (self.alpha + self.beta)

    @property
    def b(self) -> float:
        """Exponent of the optimal number of tokens, D* ~ C^b."""
        return self.alpha / (self.alpha + self.beta)

    @property
    def inner(self) -> AdditiveLaw:
        """The sum under the power, as a law without a floor; it has the same optimum."""
        return AdditiveLaw(
            E=0.0,
            A=self.A,
            B=self.B,
            alpha=self.alpha,
            beta=self.beta,
            params_convention=self.params_convention,
        )

    @overload
    def loss(self, params: float, tokens: float) -> float: ...
    @overload
    def loss(self, params: Floats, tokens: Floats) -> Floats: ...
    @overload
    def loss(self, params: float | Floats, tokens: float | Floats) -> float | Floats: ...
    def loss(self, params: float | Floats, tokens: float | Floats) -> float | Floats:
        """Return the loss in nats per token; as `AdditiveLaw.loss`."""
        return self.E + (self.A / params**self.alpha + self.B / tokens**self.beta) ** self.kappa

    @overload
    def gradient(self, params: float, tokens: float) -> tuple[float, float]: ...
    @overload
    def gradient(self, params: Floats, tokens: Floats) -> tuple[Floats, Floats]: ...
    def gradient(self, params: float | Floats, tokens: float | Floats) -> tuple[float | Floats, float | Floats]:
        """Return (dL/dN, dL/dD); arguments as in `loss`."""
        outer = self.kappa * (self.A / params**self.alpha + self.B / tokens**self.beta) ** (self.kappa - 1)
        by_params = -outer * self.alpha * self.A / params ** (self.alpha + 1)
        return by_params, -outer * self.beta * self.B / tokens ** (self.beta + 1)

    @overload
    def optimum(self, flops: float, flops_per_param_token: float = 6.0) -> tuple[float, float]: ...
    @overload
    def optimum(self, flops: Floats, flops_per_param_token: float = 6.0) -> tuple[Floats, Floats]: ...
    def optimum(
        self, flops: float | Floats, flops_per_param_token: float = 6.0
    ) -> tuple[float | Floats, float | Floats]:
        """Split C = k N D so that the loss is least: the inner sum's split, for the power is monotone.

        Arguments, result and errors are those of `AdditiveLaw.optimum`.
        """
        return self.inner.optimum(flops, flops_per_param_token)

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
        """Return the tokens that a size needs; as `AdditiveLaw.tokens_for_loss`.

        Raises:
            PlanError: a single size that never reaches the loss, or a size not > 0.
        """
        require_positive(params, "params")
        if isinstance(params, np.ndarray):
            target = max(loss - self.E, 0.0) ** (1 / self.kappa)
            return self.inner.tokens_for_loss(params, target)
        floor = self.E + (self.A / params**self.alpha) ** self.kappa
        require_above(loss, floor, f"a model of {params:.3g} params on endless text")
        return self.inner.tokens_for_loss(params, (loss - self.E) ** (1 / self.kappa))

    def flops_for_loss(self, loss: float, flops_per_param_token: float = 6.0) -> float:
        """Return the least budget that reaches a loss > E, in closed form.

        Raises:
            PlanError: a loss that no budget reaches.
        """
        require_above(loss, self.E, "an endless model on endless text")
        require_positive(flops_per_param_token, "flops_per_param_token")
        return flops_per_param_token * product_for_gap(self.inner, math.log(loss - self.E) / self.kappa)
