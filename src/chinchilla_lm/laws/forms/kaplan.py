"""Kaplan's joint form: no floor, and one power over size and data together. Symbols: see `forms.law`.

It is the coupled form with E = 0, alpha = alpha_N / alpha_D, beta = 1 and kappa = alpha_D. The constants of the joint
law and of the single-variable laws L(N), L(D) are different fits and do not mix (`laws.published` has both).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, overload

from chinchilla_lm.laws.count import ParamsConvention
from chinchilla_lm.laws.forms.coupled import CoupledLaw
from chinchilla_lm.laws.forms.law import Floats, LawRecord


@dataclass(frozen=True, kw_only=True)
class KaplanLaw(LawRecord):
    """L(N, D) = [(N_c / N)^(alpha_N / alpha_D) + D_c / D]^alpha_D.

    Attributes:
        alpha_N: exponent of the size where text is endless, > 0.
        alpha_D: exponent of the data where the model is endless, > 0.
        N_c: params at which an endless text would give 1 nat per token, > 0.
        D_c: tokens at which an endless model would give 1 nat per token, > 0.
        params_convention: which weights N counts; the paper's is "non_embedding".

    Source: Kaplan et al. 2020 (arXiv 2001.08361), eq. 1.5.
    """

    form: ClassVar = "kaplan"
    constants: ClassVar = ("alpha_N", "alpha_D", "N_c", "D_c")
    derived: ClassVar = ("a", "b")

    alpha_N: float
    alpha_D: float
    N_c: float
    D_c: float
    params_convention: ParamsConvention = "non_embedding"

    @property
    def a(self) -> float:
        """Exponent of the size that minimises this form at C = k N D.

        Differs: from the paper's .73, which comes from its L(N, S) and training that stops early.
        """
        return self.alpha_D / (self.alpha_N + self.alpha_D)

    @property
    def b(self) -> float:
        """Exponent of the optimal number of tokens, D* ~ C^b."""
        return self.alpha_N / (self.alpha_N + self.alpha_D)

    @property
    def coupled(self) -> CoupledLaw:
        """The same law in the coupled form."""
        power = self.alpha_N / self.alpha_D
        return CoupledLaw(
            E=0.0,
            A=self.N_c**power,
            B=self.D_c,
            alpha=power,
            beta=1.0,
            kappa=self.alpha_D,
            params_convention=self.params_convention,
        )

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
            tokens: D > 0 of text, trained on until the loss stops falling; of the same kind as `params`.

        Returns:
            L of the same kind.
        """
        return ((self.N_c / params) ** (self.alpha_N / self.alpha_D) + self.D_c / tokens) ** self.alpha_D

    @overload
    def gradient(self, params: float, tokens: float) -> tuple[float, float]: ...
    @overload
    def gradient(self, params: Floats, tokens: Floats) -> tuple[Floats, Floats]: ...
    def gradient(self, params: float | Floats, tokens: float | Floats) -> tuple[float | Floats, float | Floats]:
        """Return (dL/dN, dL/dD); arguments as in `loss`."""
        size = (self.N_c / params) ** (self.alpha_N / self.alpha_D)
        outer = (size + self.D_c / tokens) ** (self.alpha_D - 1)
        return -outer * self.alpha_N * size / params, -outer * self.alpha_D * self.D_c / tokens**2.0

    @overload
    def optimum(self, flops: float, flops_per_param_token: float = 6.0) -> tuple[float, float]: ...
    @overload
    def optimum(self, flops: Floats, flops_per_param_token: float = 6.0) -> tuple[Floats, Floats]: ...
    def optimum(
        self, flops: float | Floats, flops_per_param_token: float = 6.0
    ) -> tuple[float | Floats, float | Floats]:
        """Split C = k N D so that the loss is least, in closed form.

        Arguments, result and errors are those of `AdditiveLaw.optimum`.
        """
        return self.coupled.optimum(flops, flops_per_param_token)

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
        """Return the tokens that a size needs; as `CoupledLaw.tokens_for_loss`.

        Raises:
            PlanError: a single size that never reaches the loss, or a size not > 0.
        """
        return self.coupled.tokens_for_loss(params, loss)

    def flops_for_loss(self, loss: float, flops_per_param_token: float = 6.0) -> float:
        """Return the least budget C that reaches a loss > 0, in closed form.

        Raises:
            PlanError: a loss that is not > 0.
        """
        return self.coupled.flops_for_loss(loss, flops_per_param_token)
