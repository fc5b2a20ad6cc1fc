"""A loss law as the planner sees it: one row of constants a resample, so that thousands of plans are made at once.

Every form of `laws.forms` is L = E + (A / N'^alpha + B / D'^beta)^kappa, where N' and D' are what size and tokens are
worth: themselves, or less where text repeats (Muennighoff et al. 2023). So one surface answers for all of them.
Symbols: x = ln N, y = ln D; K rows of constants, K = 1 for a single law; U unique tokens, U_N the size whose optimal
tokens are U; R* half-lives of repetition. `gain` is -dL/dx or -dL/dy without the factor that both share.
It never fits and knows no budget.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from chinchilla_lm.core.errors import PlanError
from chinchilla_lm.laws.forms.coupled import CoupledLaw
from chinchilla_lm.laws.forms.kaplan import KaplanLaw
from chinchilla_lm.laws.forms.law import Floats
from chinchilla_lm.laws.forms.overtraining import OvertrainingLaw
from chinchilla_lm.laws.forms.record import LossForm
from chinchilla_lm.laws.forms.repetition import EXCESS_PARAMS, REPEATED_TOKENS, RepetitionLaw


@dataclass(frozen=True, kw_only=True)
class Surface:
    """L(N, D) = E + (A / N'^alpha + B / D'^beta)^kappa for K rows of constants at once.

    Attributes:
        E: floor of the loss, nats per token, shape (K,), as all constants.
        A: scale of the size term.
        B: scale of the data term.
        alpha: exponent of the size term.
        beta: exponent of the data term.
        kappa: power over the sum, 1 in the additive form.
        unique_tokens: U, infinity where text never ends.
        repeated_tokens: R_D*, the half-life of repeats.
        excess_params: R_N*, the half-life of params beyond U_N.
    """

    E: Floats
    A: Floats
    B: Floats
    alpha: Floats
    beta: Floats
    kappa: Floats
    unique_tokens: float = math.inf
    repeated_tokens: float = REPEATED_TOKENS
    excess_params: float = EXCESS_PARAMS

    def loss(self, x: Floats, y: Floats) -> Floats:
        """Return L, nats per token, at ln N and ln D of shapes that broadcast with (K,)."""
        return self.E + (self._size_term(x) + self._data_term(y)) ** self.kappa

    def params_gain(self, x: Floats) -> tuple[Floats, Floats]:
        """Return ln of the gain by size, -d(sum)/dx, and its derivative by x."""
        log_worth, log_slope, log_slope_by_x = self._params_worth(x)
        slope = np.exp(log_slope)
        return np.log(self.alpha * self.A) - self.alpha * log_worth + log_slope, -self.alpha * slope + log_slope_by_x

    def tokens_gain(self, y: Floats) -> tuple[Floats, Floats]:
        """Return ln of the gain by data, -d(sum)/dy, and its derivative by y."""
        log_worth, log_slope, log_slope_by_y = self._tokens_worth(y)
        slope = np.exp(log_slope)
        return np.log(self.beta * self.B) - self.beta * log_worth + log_slope, -self.beta * slope + log_slope_by_y

    def log_tokens_for(self, loss: Floats, x: Floats) -> Floats:
        """Return the ln D at which a size reaches a loss; infinity where it never does."""
        with np.errstate(divide="ignore", invalid="ignore"):
            left = self._sum_for(loss) - self._size_term(x)
            worth = np.where(left > 0, np.log(self.B / left) / self.beta, np.inf)
        return _unsaturate(worth, math.log(self.unique_tokens), self.repeated_tokens)

    def log_params_for(self, loss: Floats, y: Floats) -> Floats:
        """Return the ln N at which a number of tokens reaches a loss; infinity where none does."""
        with np.errstate(divide="ignore", invalid="ignore"):
            left = self._sum_for(loss) - self._data_term(y)
            worth = np.where(left > 0, np.log(self.A / left) / self.alpha, np.inf)
        return _unsaturate(worth, self.log_filled_params, self.excess_params)

    @property
    def log_filled_params(self) -> Floats:
        """Return ln U_N, the size whose optimal number of fresh tokens is U; infinity without a limit on text."""
        size_over_data = np.log(self.alpha * self.A / (self.beta * self.B))
        return (size_over_data + self.beta * math.log(self.unique_tokens)) / self.alpha

    def fresh_optimum(self, log_product: Floats) -> Floats:
        """Return the ln N of least loss at a given ln(N D) where nothing repeats (Hoffmann et al. 2022, eq. 4)."""
        size_over_data = np.log(self.alpha * self.A / (self.beta * self.B))
        return (size_over_data + self.beta * log_product) / (self.alpha + self.beta)

    def least_loss(self) -> Floats:
        """Return the loss that endless compute approaches on this text, shape (K,)."""
        if math.isinf(self.unique_tokens):
            return self.E
        size = np.exp(self.log_filled_params) * (1 + self.excess_params)
        text = self.unique_tokens * (1 + self.repeated_tokens)
        return self.E + (self.A / size**self.alpha + self.B / text**self.beta) ** self.kappa

    def _sum_for(self, loss: Floats) -> Floats:
        """Return the sum under the power that gives a loss; 0 where the loss is below the floor."""
        return np.maximum(loss - self.E, 0.0) ** (1 / self.kappa)

    def _size_term(self, x: Floats) -> Floats:
        return self.A * np.exp(-self.alpha * self._params_worth(x)[0])

    def _data_term(self, y: Floats) -> Floats:
        return self.B * np.exp(-self.beta * self._tokens_worth(y)[0])

    def _params_worth(self, x: Floats) -> tuple[Floats, Floats, Floats]:
        if math.isinf(self.unique_tokens):
            return x, np.zeros_like(x), np.zeros_like(x)
        return _saturate(x, self.log_filled_params, self.excess_params)

    def _tokens_worth(self, y: Floats) -> tuple[Floats, Floats, Floats]:
        if math.isinf(self.unique_tokens):
            return y, np.zeros_like(y), np.zeros_like(y)
        return _saturate(y, math.log(self.unique_tokens), self.repeated_tokens)


def surface_of(law: LossForm, unique_tokens: float | None = None) -> Surface:
    """Write a law as a surface of one row.

    Args:
        law: of any form that states a loss.
        unique_tokens: U > 0 distinct tokens there are; None: no limit.

    Returns:
        The surface; a law without half-lives of its own gets Muennighoff's.
    """
    constants = _constants(law)
    half_lives = (REPEATED_TOKENS, EXCESS_PARAMS)
    if isinstance(law, RepetitionLaw):
        half_lives = (law.repeated_tokens, law.excess_params)
    return _surface(np.array([constants]), unique_tokens, half_lives)


def surface_of_draws(draws: Floats, law: LossForm, unique_tokens: float | None = None) -> Surface:
    """Write resamples of a law as one surface.

    Args:
        draws: shape (K, 5) of E, A, B, alpha, beta, or (K, 6) with kappa last.
        law: that they are resamples of; half-lives of repetition are taken from it.
        unique_tokens: U > 0; None: no limit.

    Returns:
        The surface of K rows; rows that are no law (a number not finite, or not > 0 but for E) are left out.

    Raises:
        PlanError: another shape, or no row that is a law.
    """
    if draws.ndim != 2 or draws.shape[1] not in (5, 6):
        raise PlanError(f"draws of shape {draws.shape} are no resamples; give rows of E, A, B, alpha, beta (, kappa)")
    rows = draws if draws.shape[1] == 6 else np.column_stack([draws, np.ones(len(draws))])
    is_law = np.isfinite(rows).all(axis=1) & (rows[:, 0] >= 0) & (rows[:, 1:] > 0).all(axis=1)
    if not is_law.any():
        raise PlanError("none of the law's resamples is a law; fit it again with more runs")
    half_lives = (REPEATED_TOKENS, EXCESS_PARAMS)
    if isinstance(law, RepetitionLaw):
        half_lives = (law.repeated_tokens, law.excess_params)
    return _surface(rows[is_law], unique_tokens, half_lives)


def _surface(rows: Floats, unique_tokens: float | None, half_lives: tuple[float, float]) -> Surface:
    E, A, B, alpha, beta, kappa = rows.T
    return Surface(
        E=E,
        A=A,
        B=B,
        alpha=alpha,
        beta=beta,
        kappa=kappa,
        unique_tokens=math.inf if unique_tokens is None else unique_tokens,
        repeated_tokens=half_lives[0],
        excess_params=half_lives[1],
    )


def _constants(law: LossForm) -> tuple[float, float, float, float, float, float]:
    """Return E, A, B, alpha, beta, kappa of any form."""
    if isinstance(law, KaplanLaw):
        law = law.coupled
    if isinstance(law, OvertrainingLaw):
        law = law.additive
    kappa = law.kappa if isinstance(law, CoupledLaw) else 1.0
    return law.E, law.A, law.B, law.alpha, law.beta, kappa


def _saturate(log_amount: Floats, log_whole: Floats | float, half_life: float) -> tuple[Floats, Floats, Floats]:
    """Return ln of what an amount is worth, ln of d(ln worth)/d(ln amount), and the derivative of the latter.

    worth = whole (1 + R* (1 - exp(-R / R*))) with R = amount / whole - 1 beyond the whole (Muennighoff et al. 2023,
    eq. 5); in logarithms, so that amounts without end do not underflow.
    """
    ratio = np.exp(np.minimum(log_amount - log_whole, _MOST_REPEATS))
    repeats = np.maximum(ratio - 1, 0.0)
    log_worth = np.minimum(log_amount, log_whole) + np.log1p(-half_life * np.expm1(-repeats / half_life))
    log_slope = np.where(repeats > 0, log_amount - repeats / half_life - log_worth, 0.0)
    by_amount = np.where(repeats > 0, 1 - ratio / half_life - np.exp(log_slope), 0.0)
    return log_worth, log_slope, by_amount


_MOST_REPEATS = math.log(1e12)  # epochs beyond which only the sign of a derivative matters


def _unsaturate(log_worth: Floats, log_whole: Floats | float, half_life: float) -> Floats:
    """Return ln of the amount that is worth so much; infinity beyond (1 + R*) times the whole."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        repeats_worth = np.maximum(np.exp(log_worth - log_whole) - 1, 0.0)
        beyond = log_whole + np.log1p(-half_life * np.log1p(-np.minimum(repeats_worth / half_life, 1.0)))
    return np.where(log_worth <= log_whole, log_worth, beyond)
