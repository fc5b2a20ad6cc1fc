"""The over-training form: loss by compute and tokens per param, with one exponent for both.

Symbols: see `forms.law`; C = 6 N D here always (the form's own definition), M = D / N tokens per param. It is the
additive form with alpha = beta = 2 eta, A = size_scale 6^-eta and B = tokens_scale 6^-eta, so every question has the
additive form's closed answer; at a fixed M the loss falls as C^-eta whatever M is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, overload

from chinchilla_lm.laws.count import ParamsConvention
from chinchilla_lm.laws.forms.additive import AdditiveLaw
from chinchilla_lm.laws.forms.law import Floats, LawRecord


@dataclass(frozen=True, kw_only=True)
class OvertrainingLaw(LawRecord):
    """L(C, M) = E + (a M^eta + b M^-eta) C^-eta, with C = 6 N D and M = D / N.

    Attributes:
        E: loss of an endless model on endless text, nats per token, >= 0.
        size_scale: the paper's a, > 0: more tokens per param at equal compute mean a smaller model.
        tokens_scale: the paper's b, > 0.
        eta: exponent of compute at a fixed M, > 0.
        params_convention: which weights N counts.

    Source: Gadre et al. 2024 (arXiv 2403.08540), eq. 4.
    """

    form: ClassVar = "overtraining"
    constants: ClassVar = ("E", "size_scale", "tokens_scale", "eta")

    E: float
    size_scale: float
    tokens_scale: float
    eta: float
    params_convention: ParamsConvention = "total"

    @classmethod
    def from_code_form(
        cls, *, E: float, alpha: float, beta: float, b: float, params_convention: ParamsConvention = "total"
    ) -> OvertrainingLaw:
        """Build the law from the constants of the authors' code: L = alpha N^-b + beta 6^(-b/2) (M N)^-b + E.

        Args:
            E: as here.
            alpha: scale of N^-b; the paper's a is alpha 6^(b/2).
            beta: the paper's b.
            b: 2 eta.
            params_convention: which weights N counts.

        Returns:
            The same law.

        Source: mlfoundations/scaling, the notebooks' fits.
        """
        eta = b / 2
        return cls(E=E, size_scale=alpha * 6**eta, tokens_scale=beta, eta=eta, params_convention=params_convention)

    def code_form(self) -> dict[str, float]:
        """Return the constants as `from_code_form` takes them, without the convention."""
        return {"E": self.E, "alpha": self.size_scale / 6**self.eta, "beta": self.tokens_scale, "b": 2 * self.eta}

    @property
    def additive(self) -> AdditiveLaw:
        """The same law in the additive form."""
        return AdditiveLaw(
            E=self.E,
            A=self.size_scale / 6**self.eta,
            B=self.tokens_scale / 6**self.eta,
            alpha=2 * self.eta,
            beta=2 * self.eta,
            params_convention=self.params_convention,
        )

    @property
    def a(self) -> float:
        """Exponent of the optimal size: a half, whatever the constants."""
        return 0.5

    @property
    def b(self) -> float:
        """Exponent of the optimal number of tokens: a half."""
        return 0.5

    @property
    def optimal_tokens_per_param(self) -> float:
        """M* = (b / a)^(1 / (2 eta)), the same for every budget."""
        return (self.tokens_scale / self.size_scale) ** (1 / (2 * self.eta))

    @overload
    def loss_at(self, flops: float, tokens_per_param: float) -> float: ...
    @overload
    def loss_at(self, flops: float | Floats, tokens_per_param: float | Floats) -> float | Floats: ...
    def loss_at(self, flops: float | Floats, tokens_per_param: float | Floats) -> float | Floats:
        """Return the loss of C = 6 N D FLOPs at M tokens per param, both > 0."""
        gain = self.size_scale * tokens_per_param**self.eta + self.tokens_scale / tokens_per_param**self.eta
        return self.E + gain / flops**self.eta

    @overload
    def loss(self, params: float, tokens: float) -> float: ...
    @overload
    def loss(self, params: Floats, tokens: Floats) -> Floats: ...
    @overload
    def loss(self, params: float | Floats, tokens: float | Floats) -> float | Floats: ...
    def loss(self, params: float | Floats, tokens: float | Floats) -> float | Floats:
        """Return the loss in nats per token; as `AdditiveLaw.loss`."""
        return self.additive.loss(params, tokens)

    @overload
    def gradient(self, params: float, tokens: float) -> tuple[float, float]: ...
    @overload
    def gradient(self, params: Floats, tokens: Floats) -> tuple[Floats, Floats]: ...
    def gradient(self, params: float | Floats, tokens: float | Floats) -> tuple[float | Floats, float | Floats]:
        """Return (dL/dN, dL/dD); arguments as in `loss`."""
        size, text = self.additive.A / params ** (2 * self.eta), self.additive.B / tokens ** (2 * self.eta)
        return -2 * self.eta * size / params, -2 * self.eta * text / tokens

    @overload
    def optimum(self, flops: float, flops_per_param_token: float = 6.0) -> tuple[float, float]: ...
    @overload
    def optimum(self, flops: Floats, flops_per_param_token: float = 6.0) -> tuple[Floats, Floats]: ...
    def optimum(
        self, flops: float | Floats, flops_per_param_token: float = 6.0
    ) -> tuple[float | Floats, float | Floats]:
        """Split C = k N D so that the loss is least: M* tokens per param, whatever the budget.

        Arguments, result and errors are those of `AdditiveLaw.optimum`.
        """
        return self.additive.optimum(flops, flops_per_param_token)

    @overload
    def optimal_loss(self, flops: float, flops_per_param_token: float = 6.0) -> float: ...
    @overload
    def optimal_loss(self, flops: Floats, flops_per_param_token: float = 6.0) -> Floats: ...
    def optimal_loss(self, flops: float | Floats, flops_per_param_token: float = 6.0) -> float | Floats:
        """Return the least loss of a budget; arguments and errors as in `optimum`."""
        return self.additive.optimal_loss(flops, flops_per_param_token)

    @overload
    def tokens_for_loss(self, params: float, loss: float) -> float: ...
    @overload
    def tokens_for_loss(self, params: Floats, loss: float) -> Floats: ...
    def tokens_for_loss(self, params: float | Floats, loss: float) -> float | Floats:
        """Return the tokens that a size needs; as `AdditiveLaw.tokens_for_loss`."""
        return self.additive.tokens_for_loss(params, loss)

    def flops_for_loss(self, loss: float, flops_per_param_token: float = 6.0) -> float:
        """Return the least budget that reaches a loss; as `AdditiveLaw.flops_for_loss`."""
        return self.additive.flops_for_loss(loss, flops_per_param_token)
