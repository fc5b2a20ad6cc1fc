"""The data-constrained form: text that repeats is worth less each time, and so are params beyond what it can fill.

Symbols: see `forms.law`; U `unique_tokens`, U_N the size whose optimal number of tokens is U, R_D = D/U - 1 repeats,
R_N = N/U_N - 1 excess size, R_D*, R_N* their half-lives, N' and D' what size and tokens are worth. With unique_tokens
None, or D <= U and N <= U_N, it is the additive form. It does not know that repeats can do harm: a model large for its
text gets worse after tens of epochs (1.1B params on 100M tokens from the 15th on), and this form's loss never rises.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, overload

import numpy as np
import numpy.typing as npt

from chinchilla_lm.laws.count import ParamsConvention
from chinchilla_lm.laws.forms.additive import AdditiveLaw
from chinchilla_lm.laws.forms.law import Floats, LawRecord, exp_or_refuse, require_above, require_positive
from chinchilla_lm.laws.forms.search import lowest_split, root_of_falling

# R_D* and R_N*, Muennighoff et al. 2023 (arXiv 2305.16264), fitted constants of huggingface/datablations.
REPEATED_TOKENS = 15.387756
EXCESS_PARAMS = 5.309743


@dataclass(frozen=True, kw_only=True)
class RepetitionLaw(LawRecord):
    """L(N, D, U) = E + A / N'^alpha + B / D'^beta, where N' and D' saturate.

    D' = U + U R_D* (1 - exp(-R_D / R_D*)) and N' = U_N + U_N R_N* (1 - exp(-R_N / R_N*)).

    Attributes:
        E: loss of an endless model on endless fresh text, nats per token, >= 0.
        A: scale of the size term, > 0.
        B: scale of the data term, > 0.
        alpha: exponent of the size term, > 0.
        beta: exponent of the data term, > 0.
        repeated_tokens: R_D*, > 0; text is never worth more than 1 + R_D* times itself.
        excess_params: R_N*, > 0.
        params_convention: which weights N counts.

    Source: Muennighoff et al. 2023 (arXiv 2305.16264), eq. 5 and 6 and section 3.1.
    """

    form: ClassVar = "repetition"
    constants: ClassVar = ("E", "A", "B", "alpha", "beta", "repeated_tokens", "excess_params")

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    repeated_tokens: float = REPEATED_TOKENS
    excess_params: float = EXCESS_PARAMS
    params_convention: ParamsConvention = "total"

    @classmethod
    def from_additive(
        cls, law: AdditiveLaw, *, repeated_tokens: float = REPEATED_TOKENS, excess_params: float = EXCESS_PARAMS
    ) -> RepetitionLaw:
        """Extend a law of fresh text by half-lives of repetition; the defaults are Muennighoff's on C4."""
        return cls(
            E=law.E,
            A=law.A,
            B=law.B,
            alpha=law.alpha,
            beta=law.beta,
            repeated_tokens=repeated_tokens,
            excess_params=excess_params,
            params_convention=law.params_convention,
        )

    @property
    def fresh(self) -> AdditiveLaw:
        """The law where nothing repeats."""
        return AdditiveLaw(
            E=self.E,
            A=self.A,
            B=self.B,
            alpha=self.alpha,
            beta=self.beta,
            params_convention=self.params_convention,
        )

    @overload
    def params_filled_by(self, unique_tokens: float) -> float: ...
    @overload
    def params_filled_by(self, unique_tokens: float | Floats) -> float | Floats: ...
    def params_filled_by(self, unique_tokens: float | Floats) -> float | Floats:
        """Return U_N, the size whose optimal number of fresh tokens is U."""
        ratio = (self.alpha * self.A / (self.beta * self.B)) ** (1 / self.alpha)
        return ratio * unique_tokens ** (self.beta / self.alpha)

    @overload
    def loss(self, params: float, tokens: float, unique_tokens: float | None = None) -> float: ...
    @overload
    def loss(self, params: Floats, tokens: Floats, unique_tokens: float | Floats | None = None) -> Floats: ...
    @overload
    def loss(
        self, params: float | Floats, tokens: float | Floats, unique_tokens: float | Floats | None = None
    ) -> float | Floats: ...
    def loss(
        self, params: float | Floats, tokens: float | Floats, unique_tokens: float | Floats | None = None
    ) -> float | Floats:
        """Return the loss in nats per token.

        Args:
            params: N > 0 in this law's convention, number or array.
            tokens: D > 0, repeats included; of the same kind.
            unique_tokens: U > 0 distinct tokens, a number or an array that broadcasts; None: nothing repeats.

        Returns:
            L of the same kind as `params`.
        """
        if unique_tokens is None:
            return self.fresh.loss(params, tokens)
        worth = saturated(params, self.params_filled_by(unique_tokens), self.excess_params)
        return self.fresh.loss(worth, saturated(tokens, unique_tokens, self.repeated_tokens))

    @overload
    def gradient(self, params: float, tokens: float, unique_tokens: float | None = None) -> tuple[float, float]: ...
    @overload
    def gradient(
        self, params: Floats, tokens: Floats, unique_tokens: float | Floats | None = None
    ) -> tuple[Floats, Floats]: ...
    def gradient(
        self, params: float | Floats, tokens: float | Floats, unique_tokens: float | Floats | None = None
    ) -> tuple[float | Floats, float | Floats]:
        """Return (dL/dN, dL/dD) at a fixed U; arguments as in `loss`."""
        size, size_slope, text, text_slope = params, 1.0, tokens, 1.0
        if unique_tokens is not None:
            filled = self.params_filled_by(unique_tokens)
            size, size_slope = saturated(params, filled, self.excess_params), _slope(params, filled, self.excess_params)
            text = saturated(tokens, unique_tokens, self.repeated_tokens)
            text_slope = _slope(tokens, unique_tokens, self.repeated_tokens)
        by_params = -self.alpha * self.A / size ** (self.alpha + 1) * size_slope
        return by_params, -self.beta * self.B / text ** (self.beta + 1) * text_slope

    @overload
    def optimum(
        self, flops: float, flops_per_param_token: float = 6.0, unique_tokens: float | None = None
    ) -> tuple[float, float]: ...
    @overload
    def optimum(
        self, flops: Floats, flops_per_param_token: float = 6.0, unique_tokens: float | None = None
    ) -> tuple[Floats, Floats]: ...
    def optimum(
        self, flops: float | Floats, flops_per_param_token: float = 6.0, unique_tokens: float | None = None
    ) -> tuple[float | Floats, float | Floats]:
        """Split C = k N D so that the loss is least.

        There is no closed form once text repeats: a grid over sizes brackets the least loss, and bisection of
        dL/d ln N finds it to the last digits. Up to that budget it is the additive form's optimum.

        Args:
            flops: training budget C, > 0, number or array.
            flops_per_param_token: k, > 0.
            unique_tokens: U > 0 distinct tokens; None: nothing repeats.

        Returns:
            (params, tokens), repeats included in tokens; k * params * tokens == flops.

        Raises:
            PlanError: a number that is not finite and > 0.
        """
        params, tokens = self.fresh.optimum(flops, flops_per_param_token)
        if unique_tokens is None:
            return params, tokens
        require_positive(unique_tokens, "unique_tokens")
        product = np.atleast_1d(np.asarray(flops / flops_per_param_token, dtype=np.float64))
        start = np.atleast_1d(np.asarray(params, dtype=np.float64))
        searched = lowest_split(
            lambda size, text: self.loss(size, text, unique_tokens),
            lambda size, text: self.gradient(size, text, unique_tokens),
            product,
            start,
        )
        best = np.where(product / start <= unique_tokens, start, searched)
        if isinstance(flops, np.ndarray):
            return best.reshape(flops.shape), (product / best).reshape(flops.shape)
        return float(best[0]), float(product[0] / best[0])

    @overload
    def optimal_loss(
        self, flops: float, flops_per_param_token: float = 6.0, unique_tokens: float | None = None
    ) -> float: ...
    @overload
    def optimal_loss(
        self, flops: Floats, flops_per_param_token: float = 6.0, unique_tokens: float | None = None
    ) -> Floats: ...
    def optimal_loss(
        self, flops: float | Floats, flops_per_param_token: float = 6.0, unique_tokens: float | None = None
    ) -> float | Floats:
        """Return the least loss of a budget; arguments and errors as in `optimum`."""
        params, tokens = self.optimum(flops, flops_per_param_token, unique_tokens)
        return self.loss(params, tokens, unique_tokens)

    @overload
    def tokens_for_loss(self, params: float, loss: float, unique_tokens: float | None = None) -> float: ...
    @overload
    def tokens_for_loss(self, params: Floats, loss: float, unique_tokens: float | None = None) -> Floats: ...
    def tokens_for_loss(
        self, params: float | Floats, loss: float, unique_tokens: float | None = None
    ) -> float | Floats:
        """Return the tokens, repeats included, that a size needs; in closed form.

        Args:
            params: N > 0, number or array.
            loss: wanted, nats per token.
            unique_tokens: U > 0 distinct tokens; None: nothing repeats.

        Returns:
            D of the same kind as `params`; infinity in an array where a size never reaches the loss.

        Raises:
            PlanError: a single size that never reaches the loss, or a number not > 0.
        """
        require_positive(params, "params")
        if unique_tokens is None:
            return self.fresh.tokens_for_loss(params, loss)
        require_positive(unique_tokens, "unique_tokens")
        size = saturated(params, self.params_filled_by(unique_tokens), self.excess_params)
        if isinstance(size, np.ndarray):
            return _tokens_worth(self.fresh.tokens_for_loss(size, loss), unique_tokens, self.repeated_tokens)
        floor = float(self.fresh.loss(size, unique_tokens * (1 + self.repeated_tokens)))
        what = f"a model of {params:.3g} params on {unique_tokens:.3g} distinct tokens, however often repeated,"
        require_above(loss, floor, what)
        worth = np.array([self.fresh.tokens_for_loss(size, loss)])
        return float(_tokens_worth(worth, unique_tokens, self.repeated_tokens)[0])

    def least_loss(self, unique_tokens: float) -> float:
        """Return the loss that endless compute approaches on U distinct tokens."""
        require_positive(unique_tokens, "unique_tokens")
        size = self.params_filled_by(unique_tokens) * (1 + self.excess_params)
        return self.fresh.loss(size, unique_tokens * (1 + self.repeated_tokens))

    def flops_for_loss(
        self, loss: float, flops_per_param_token: float = 6.0, unique_tokens: float | None = None
    ) -> float:
        """Return the least budget that reaches a loss.

        Args:
            loss: wanted, nats per token.
            flops_per_param_token: k, > 0.
            unique_tokens: U > 0 distinct tokens; None: nothing repeats.

        Returns:
            C; closed form where no text repeats, else by bisection of the optimal loss in ln C.

        Raises:
            PlanError: a loss that no budget reaches.
        """
        fresh_flops = self.fresh.flops_for_loss(loss, flops_per_param_token)
        if unique_tokens is None:
            return fresh_flops
        floor = self.least_loss(unique_tokens) * (1 + 1e-12)  # nearer than that, rounding decides
        require_above(loss, floor, f"an endless model on {unique_tokens:.3g} distinct tokens, however often repeated,")
        if self.fresh.optimum(fresh_flops, flops_per_param_token)[1] <= unique_tokens:
            return fresh_flops

        def excess(log_flops: float) -> float:
            return (
                self.optimal_loss(exp_or_refuse(log_flops, f"loss={loss!r}"), flops_per_param_token, unique_tokens)
                - loss
            )

        return exp_or_refuse(root_of_falling(excess, math.log(fresh_flops)), f"loss={loss!r}")


@overload
def effective_tokens(tokens: float, unique_tokens: float, repeated_tokens: float = REPEATED_TOKENS) -> float: ...
@overload
def effective_tokens(
    tokens: Floats, unique_tokens: float | Floats, repeated_tokens: float = REPEATED_TOKENS
) -> Floats: ...
def effective_tokens(
    tokens: float | Floats, unique_tokens: float | Floats, repeated_tokens: float = REPEATED_TOKENS
) -> float | Floats:
    """Return D': how many fresh tokens `tokens` are worth when only `unique_tokens` are distinct.

    Args:
        tokens: D > 0, repeats included; number or array.
        unique_tokens: U > 0.
        repeated_tokens: R_D*, > 0.

    Returns:
        D' <= D of the same kind; D itself up to U, and never over (1 + R_D*) U.

    Source: Muennighoff et al. 2023, eq. 5.
    """
    return saturated(tokens, unique_tokens, repeated_tokens)


@overload
def saturated(amount: float, whole: float, half_life: float) -> float: ...
@overload
def saturated(amount: float | Floats, whole: float | Floats, half_life: float) -> float | Floats: ...
def saturated(amount: float | Floats, whole: float | Floats, half_life: float) -> float | Floats:
    """Return what an amount is worth: itself up to `whole`, then each further whole exp(-1/half_life) of the last.

    Args:
        amount: N or D, > 0.
        whole: U_N or U, > 0.
        half_life: R_N* or R_D*, > 0.

    Returns:
        `amount` up to `whole`; beyond it whole (1 + R* (1 - exp(-R / R*))) with R = amount / whole - 1.
    """
    base = np.minimum(amount, whole)
    return _like(base * (1 - half_life * np.expm1(-(amount / base - 1) / half_life)))


def _slope(amount: float | Floats, whole: float | Floats, half_life: float) -> float | Floats:
    """Return d saturated / d amount."""
    return _like(np.exp(-np.maximum(amount / whole - 1, 0.0) / half_life))


def _tokens_worth(worth: Floats, unique_tokens: float, half_life: float) -> Floats:
    """Return the D whose D' is `worth`, infinity where no D is."""
    repeats = np.maximum(worth / unique_tokens - 1, 0.0)  # what R_D is worth
    inside = np.minimum(repeats / half_life, 1.0)
    with np.errstate(divide="ignore"):
        spent = unique_tokens * (1 - half_life * np.log1p(-inside))
    return np.where(worth <= unique_tokens, worth, spent)


def _like(values: npt.ArrayLike) -> float | Floats:
    """Return an array as it is, and numpy's scalars as numbers."""
    array = np.asarray(values, dtype=np.float64)
    return array if array.ndim else float(array)
