"""The data-constrained form as a function of its free parameters, for `form_solver`.

theta = (a, b, e, alpha, beta, ln R_D*, ln R_N*), centred as in `form_models`; the first five may be held at a base law,
or alpha and beta tied. N and D are replaced by what they are worth (see `forms.repetition`).

Symbols: K parameter sets, n runs, p free parameters; U `unique_tokens`, U_N the size that U fills.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from chinchilla_lm.laws.fitting.form_models import power_terms
from chinchilla_lm.laws.fitting.solver import EXPONENT_RANGE, TERM_FLOOR
from chinchilla_lm.laws.forms.additive import AdditiveLaw
from chinchilla_lm.laws.forms.law import Floats

REPETITION_NAMES = ("a", "b", "e", "alpha", "beta", "ln_repeated_tokens", "ln_excess_params")
# Muennighoff et al. search 0 to 20. Below .05 a second pass is worth nothing, beyond 1e4 no epoch number wears off.
HALF_LIFE_RANGE = (0.05, 1e4)
_GRID_HALF_LIVES = np.geomspace(0.3, 300.0, 13)
_MOST_LOG_REPEATS = 300.0  # far beyond any half-life, and its exponential is still a double
_STEP = 1e-6  # central differences: error of 1e-11 or so of a derivative of order 1


@dataclass(frozen=True, kw_only=True)
class RepetitionModel:
    """The form on some runs.

    Attributes:
        names: of the free parameters.
        log_params_n: ln N.
        log_tokens_n: ln D.
        log_unique_n: ln U.
        x_mean: mean of ln N over the runs that were fitted.
        y_mean: mean of ln D over them.
        expand_7p: theta = expand_7p @ free + offset_7.
        offset_7: what held parameters are held at.
        low: lowest free parameters.
        high: highest.
    """

    names: tuple[str, ...]
    log_params_n: Floats
    log_tokens_n: Floats
    log_unique_n: Floats
    x_mean: float
    y_mean: float
    expand_7p: Floats
    offset_7: Floats
    low: Floats
    high: Floats

    def theta(self, free_kp: Floats) -> Floats:
        """Return theta, shape (K, 7)."""
        return free_kp @ self.expand_7p.T + self.offset_7

    def evaluate(self, free_kp: Floats) -> tuple[Floats, Floats]:
        """Return ln L, shape (K, n), and its derivatives by central differences, shape (K, n, p)."""
        log_loss = self.log_loss(free_kp)
        columns: list[Floats] = []
        for column in range(free_kp.shape[1]):
            step = np.zeros(free_kp.shape[1])
            step[column] = _STEP
            columns.append((self.log_loss(free_kp + step) - self.log_loss(free_kp - step)) / (2 * _STEP))
        return log_loss, np.stack(columns, axis=-1)

    def at(self, params: Floats, tokens: Floats, unique_tokens: Floats) -> RepetitionModel:
        """Return the same form, centred as before, at other sizes and tokens."""
        return replace(
            self, log_params_n=np.log(params), log_tokens_n=np.log(tokens), log_unique_n=np.log(unique_tokens)
        )

    def constants(self, free_kp: Floats) -> dict[str, Floats]:
        """Return E, A, B, alpha, beta, the half-lives and the exponent a, each of shape (K,)."""
        a, b, e, alpha, beta, repeated, excess = self.theta(free_kp).T
        return {
            "E": np.exp(e),
            "A": np.exp(a + alpha * self.x_mean),
            "B": np.exp(b + beta * self.y_mean),
            "alpha": alpha,
            "beta": beta,
            "repeated_tokens": np.exp(repeated),
            "excess_params": np.exp(excess),
            "a": beta / (alpha + beta),
        }

    def starts(self, base_5: Floats, log_loss_n: Floats, weight_n: Floats) -> Floats:
        """Find the basins: every local minimum of the misfit over a grid of the two half-lives.

        Args:
            base_5: (a, b, e, alpha, beta) to start from, or at which they are held.
            log_loss_n: ln L of each run.
            weight_n: how often each run counts.

        Returns:
            Free parameters, shape (starts, p), best first. The published runs have two basins (R_D* near 15 and 47).
        """
        side = np.log(_GRID_HALF_LIVES)
        repeated, excess = (axis.ravel() for axis in np.meshgrid(side, side, indexing="ij"))
        theta = np.column_stack([np.tile(base_5, (len(repeated), 1)), repeated, excess])
        free = (theta - self.offset_7) @ np.linalg.pinv(self.expand_7p).T
        misfit = (weight_n * np.abs(self.log_loss(free) - log_loss_n)).sum(1)
        valleys = np.flatnonzero(_is_valley(misfit.reshape(len(side), len(side))).ravel())
        return free[valleys[np.argsort(misfit[valleys])]]

    def log_loss(self, free_kp: Floats) -> Floats:
        """Return ln L, shape (K, n)."""
        theta = self.theta(free_kp)
        a, b, _, alpha, beta, log_repeated, log_excess = (column[:, None] for column in theta.T)
        log_a, log_b = a + alpha * self.x_mean, b + beta * self.y_mean
        # U_N = (alpha A / (beta B))^(1 / alpha) U^(beta / alpha)
        log_filled = (np.log(alpha / beta) + log_a - log_b + beta * self.log_unique_n) / alpha
        log_size = _log_worth(self.log_params_n, log_filled, log_excess)
        log_text = _log_worth(self.log_tokens_n, self.log_unique_n, log_repeated)
        full = np.column_stack([theta[:, :5], np.ones(len(theta))])
        return power_terms(full, log_size - self.x_mean, log_text - self.y_mean)[0]


def repetition_model(
    params: Floats, tokens: Floats, unique_tokens: Floats, log_loss: Floats, base: AdditiveLaw | None
) -> RepetitionModel:
    """Build the form on some runs.

    Args:
        params: N of each run.
        tokens: D of each run, repeats included.
        unique_tokens: U of each run.
        log_loss: ln L of each run; it sets how small a term counts as none.
        base: held where given; None leaves the five constants of fresh text free.

    Returns:
        The model, centred on these runs.
    """
    x, y = np.log(params), np.log(tokens)
    x_mean, y_mean = float(x.mean()), float(y.mean())
    offset = np.zeros(7)
    names = REPETITION_NAMES
    if base is not None:
        offset[:5] = base_theta(base, x_mean, y_mean)
        names = REPETITION_NAMES[5:]
    nothing, ceiling = float(log_loss.min()) + math.log(TERM_FLOOR), float(log_loss.max())
    lives = (math.log(HALF_LIFE_RANGE[0]), math.log(HALF_LIFE_RANGE[1]))
    reach = dict(zip(REPETITION_NAMES, [(nothing, ceiling)] * 3 + [EXPONENT_RANGE] * 2 + [lives] * 2, strict=True))
    return RepetitionModel(
        names=names,
        log_params_n=x,
        log_tokens_n=y,
        log_unique_n=np.log(unique_tokens),
        x_mean=x_mean,
        y_mean=y_mean,
        expand_7p=np.array([[float(row == name) for name in names] for row in REPETITION_NAMES]),
        offset_7=offset,
        low=np.array([reach[name][0] for name in names]),
        high=np.array([reach[name][1] for name in names]),
    )


def base_theta(base: AdditiveLaw, x_mean: float, y_mean: float) -> Floats:
    """Return (a, b, e, alpha, beta) of a law, shape (5,), centred at the given means of ln N and ln D."""
    a, b = math.log(base.A) - base.alpha * x_mean, math.log(base.B) - base.beta * y_mean
    return np.array([a, b, math.log(base.E), base.alpha, base.beta])


def _log_worth(log_amount: Floats, log_fresh: Floats, log_half_life: Floats) -> Floats:
    """Return ln of what an amount is worth when only `fresh` of it is new: fresh (1 + R* (1 - exp(-R / R*)))."""
    log_fresh = np.minimum(log_amount, log_fresh)
    half_life = np.exp(log_half_life)
    repeats = np.expm1(np.minimum(log_amount - log_fresh, _MOST_LOG_REPEATS))
    return log_fresh + np.log1p(-half_life * np.expm1(-repeats / half_life))


def _is_valley(grid: Floats) -> np.ndarray:
    """Say which points of a two-dimensional grid are no higher than their eight neighbours."""
    padded = np.pad(grid, 1, constant_values=np.inf)
    rows, columns = grid.shape
    shifts = [(i, j) for i in range(3) for j in range(3) if (i, j) != (1, 1)]
    around = np.min([padded[i : i + rows, j : j + columns] for i, j in shifts], axis=0)
    return grid <= around
