"""The forms of laws as smooth functions of few free parameters, with their derivatives and good starts.

All of them are one family,
    L = exp(e) + (exp((a - alpha x) / kappa) + exp((b - beta y) / kappa))^kappa,   x = ln N - mean, y = ln D - mean,
with some of theta = (a, b, e, alpha, beta, kappa) held or tied: additive kappa = 1; Kaplan E = 0 and beta = kappa;
over-training kappa = 1 and alpha = beta; coupled all free. A form is the matrix and the offset that turn its free
parameters into theta. Here a, b, alpha and beta are what the terms are worth in the loss, so kappa moves only how the
two join (0: the larger, 1: the sum); the law's own exponents are alpha / kappa and beta / kappa.

Symbols: K parameter sets, n runs, p free parameters; N `params`, D `tokens`, U `unique_tokens`.
It never minimises anything (see `form_solver`), reads files or draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np

from chinchilla_lm.laws.fitting.solver import EXPONENT_RANGE, TERM_FLOOR
from chinchilla_lm.laws.forms.law import Floats

FormName = Literal["additive", "coupled", "kaplan", "overtraining"]

THETA_NAMES = ("a", "b", "e", "alpha", "beta", "kappa")
KAPPA_RANGE = (0.02, 5.0)  # Kaplan's alpha_D is .103; fits of public sweeps end between .2 and 2
_NOTHING = -700.0  # ln of a floor that is none: exp(-700) is the least double
# Published exponents lie in [.076, .6]; kappa in [.1, 1]; the floor takes .5 to .9 of the least loss. Only starts: 588
# points, of which the best three are polished.
_GRID_EXPONENTS = np.geomspace(0.07, 0.9, 7)
_GRID_FLOORS = (0.0, 0.5, 0.75, 0.92)
_GRID_KAPPAS = (0.2, 0.5, 1.0)


class FormModel(Protocol):
    """What a solver needs of a form on some runs."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the free parameters."""
        ...

    @property
    def low(self) -> Floats:
        """Lowest allowed free parameters, shape (p,)."""
        ...

    @property
    def high(self) -> Floats:
        """Highest allowed free parameters, shape (p,)."""
        ...

    def log_loss(self, free_kp: Floats) -> Floats:
        """Return ln L, shape (K, n)."""
        ...

    def evaluate(self, free_kp: Floats) -> tuple[Floats, Floats]:
        """Return ln L, shape (K, n), and its derivatives, shape (K, n, p)."""
        ...


@dataclass(frozen=True, kw_only=True)
class PowerModel:
    """A form of the family on some runs.

    Attributes:
        form: its name.
        names: of the free parameters.
        x_n: ln N minus `x_mean`.
        y_n: ln D minus `y_mean`.
        x_mean: mean of ln N over the runs that were fitted.
        y_mean: mean of ln D over them.
        expand_6p: theta = expand_6p @ free + offset_6.
        offset_6: what held parameters are held at.
        low: lowest free parameters.
        high: highest.
    """

    form: FormName
    names: tuple[str, ...]
    x_n: Floats
    y_n: Floats
    x_mean: float
    y_mean: float
    expand_6p: Floats
    offset_6: Floats
    low: Floats
    high: Floats

    def theta(self, free_kp: Floats) -> Floats:
        """Return (a, b, e, alpha, beta, kappa), shape (K, 6)."""
        return free_kp @ self.expand_6p.T + self.offset_6

    def log_loss(self, free_kp: Floats) -> Floats:
        """Return ln L, shape (K, n)."""
        return power_terms(self.theta(free_kp), self.x_n, self.y_n)[0]

    def evaluate(self, free_kp: Floats) -> tuple[Floats, Floats]:
        """Return ln L, shape (K, n), and its derivatives by the free parameters, shape (K, n, p)."""
        log_loss, jacobian = power_log_loss(self.theta(free_kp), self.x_n, self.y_n)
        return log_loss, jacobian @ self.expand_6p

    def at(self, params: Floats, tokens: Floats) -> PowerModel:
        """Return the same form, centred as before, at other sizes and tokens."""
        return replace(self, x_n=np.log(params) - self.x_mean, y_n=np.log(tokens) - self.y_mean)

    def constants(self, free_kp: Floats) -> dict[str, Floats]:
        """Return E, A, B, alpha, beta, kappa and the exponent a of the optimal size, each of shape (K,)."""
        a, b, e, alpha, beta, kappa = self.theta(free_kp).T
        return {
            "E": np.where(e <= _NOTHING, 0.0, np.exp(e)),
            "A": np.exp((a + alpha * self.x_mean) / kappa),
            "B": np.exp((b + beta * self.y_mean) / kappa),
            "alpha": alpha / kappa,
            "beta": beta / kappa,
            "kappa": kappa,
            "a": beta / (alpha + beta),
        }

    def starts(self, log_loss_n: Floats, weight_n: Floats, keep: int = 3) -> Floats:
        """Find good starts: for each (alpha, beta, E, kappa) of a grid the best A and B solve a 2 x 2 problem.

        Args:
            log_loss_n: ln L of each run.
            weight_n: how often each run counts.
            keep: how many starts to return.

        Returns:
            Free parameters, shape (keep, p), best first.

        Source: variable projection, Golub and Pereyra 1973. Differs: weighted squares of the inner sum, to first order
        those of ln L, rank the starts.
        """
        grid = _start_grid(self, float(log_loss_n.min()))
        floor, kappa, alpha, beta = (column[:, None] for column in grid.T)
        loss = np.exp(log_loss_n)
        reducible = loss - floor
        inner = reducible ** (1 / kappa)
        # d ln L = (kappa (L - E) / L) d ln(inner): this factor over inner, squared, weighs the inner sum's residual.
        weight = weight_n * (kappa * reducible / loss / inner) ** 2
        terms = [np.exp(-alpha / kappa * self.x_n), np.exp(-beta / kappa * self.y_n)]
        scales = _two_terms(terms[0], terms[1], inner, weight) * kappa
        theta = np.column_stack([scales, np.log(np.maximum(floor, 1e-300)), alpha, beta, kappa])
        log_fit = power_terms(theta, self.x_n, self.y_n)[0]
        misfit = (weight_n * (log_fit - log_loss_n) ** 2).sum(1)
        best = np.argsort(misfit)[:keep]
        free = (theta[best] - self.offset_6) @ np.linalg.pinv(self.expand_6p).T
        return np.clip(free, self.low, self.high)


def power_model(form: FormName, params: Floats, tokens: Floats, log_loss: Floats) -> PowerModel:
    """Build a form on some runs.

    Args:
        form: its name.
        params: N of each run.
        tokens: D of each run.
        log_loss: ln L of each run; it sets how small a floor counts as none.

    Returns:
        The model, centred on these runs.
    """
    names, (expand, offset) = _NAMES[form], _FORMS[form]
    floor, ceiling = float(log_loss.min()), float(log_loss.max())
    nothing = floor + math.log(TERM_FLOOR)
    least_term = nothing - (KAPPA_RANGE[1] * math.log(2) if "kappa" in names else 0)  # two equal terms give 2^kappa
    reach = {
        "a": (least_term, ceiling),
        "b": (least_term, ceiling),
        "e": (nothing, ceiling),
        "alpha": EXPONENT_RANGE,
        "beta": EXPONENT_RANGE,
        "kappa": KAPPA_RANGE,
    }
    x, y = np.log(params), np.log(tokens)
    x_mean, y_mean = float(x.mean()), float(y.mean())
    return PowerModel(
        form=form,
        names=names,
        x_n=x - x_mean,
        y_n=y - y_mean,
        x_mean=x_mean,
        y_mean=y_mean,
        expand_6p=expand,
        offset_6=offset,
        low=np.array([reach[name][0] for name in names]),
        high=np.array([reach[name][1] for name in names]),
    )


def power_log_loss(theta_k6: Floats, x_n: Floats, y_n: Floats) -> tuple[Floats, Floats]:
    """Return ln L, shape (K, n), and its derivatives by theta, shape (K, n, 6).

    With w the shares of the two terms in the inner sum and s the share of the loss above the floor:
    d ln L / d theta = s (w1, w2, (1 - s) / s, -w1 x, -w2 y, -w1 ln w1 - w2 ln w2).
    """
    log_loss, above, log_size_share, gap = power_terms(theta_k6, x_n, y_n)
    log_data_share = log_size_share - gap
    size_share = np.exp(log_size_share)
    data_share = 1 - size_share
    share = np.exp(above - log_loss)
    jacobian = np.empty((*gap.shape, 6))
    jacobian[..., 0] = share * size_share
    jacobian[..., 1] = share * data_share
    jacobian[..., 2] = 1 - share
    jacobian[..., 3] = -jacobian[..., 0] * x_n
    jacobian[..., 4] = -jacobian[..., 1] * y_n
    jacobian[..., 5] = -share * (size_share * log_size_share + data_share * log_data_share)
    return log_loss, jacobian


def power_terms(theta_k6: Floats, x_n: Floats, y_n: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Return ln L, ln(L - E), ln of the size term's share w1, and ln(w1 / w2), each of shape (K, n)."""
    a, b, e, alpha, beta, kappa = (column[:, None] for column in theta_k6.T)
    size = a - alpha * x_n
    gap = (size - b + beta * y_n) / kappa
    log_size_share = -np.logaddexp(0.0, -gap)
    above = size - kappa * log_size_share
    return np.logaddexp(above, e), above, log_size_share, gap


def _start_grid(model: PowerModel, least_log_loss: float) -> Floats:
    """Return (E, kappa, alpha, beta) of a grid that the form allows, shape (G, 4)."""
    free = set(model.names)
    shares = np.array(_GRID_FLOORS if "e" in free else (0.0,))
    kappas = np.array(_GRID_KAPPAS if "kappa" in free else (model.offset_6[5],))
    axes = np.meshgrid(shares * math.exp(least_log_loss), kappas, _GRID_EXPONENTS, _GRID_EXPONENTS, indexing="ij")
    grid = np.column_stack([axis.ravel() for axis in axes])
    if model.form == "overtraining":
        return grid[grid[:, 2] == grid[:, 3]]
    if model.form == "kaplan":
        grid = np.column_stack([axis.ravel() for axis in np.meshgrid(0.0, _GRID_EXPONENTS, _GRID_EXPONENTS)])
        return grid[:, [0, 1, 2, 1]]
    return grid


def _two_terms(first_gn: Floats, second_gn: Floats, target_gn: Floats, weight_gn: Floats) -> Floats:
    """Return ln of the two positive scales that meet the targets best in weighted squares, shape (G, 2)."""
    aa = (weight_gn * first_gn**2).sum(1)
    bb = (weight_gn * second_gn**2).sum(1)
    ab = (weight_gn * first_gn * second_gn).sum(1)
    at = (weight_gn * first_gn * target_gn).sum(1)
    bt = (weight_gn * second_gn * target_gn).sum(1)
    determinant = np.maximum(aa * bb - ab**2, 1e-12 * aa * bb)
    both: Floats = np.column_stack([bb * at - ab * bt, aa * bt - ab * at]) / determinant[:, None]
    # A negative term restarts at 2 % of what it would be alone, from where the solver can still move it.
    alone: Floats = np.column_stack([at / aa, bt / bb])
    return np.log(np.where(both > 0, both, 0.02 * alone))


def _restriction(names: tuple[str, ...], ties: Mapping[str, str], held: Mapping[str, float]) -> tuple[Floats, Floats]:
    """Return a form's matrix and offset: each of theta is free, tied to a free one, or held (at 0 unless given)."""
    expand = np.array([[float(ties.get(row, row) == name) for name in names] for row in THETA_NAMES])
    return expand, np.array([held.get(name, 0.0) for name in THETA_NAMES])


_NAMES: dict[FormName, tuple[str, ...]] = {
    "additive": THETA_NAMES[:5],
    "coupled": THETA_NAMES,
    "kaplan": ("a", "b", "alpha", "kappa"),
    "overtraining": ("a", "b", "e", "alpha"),
}
_FORMS: dict[FormName, tuple[Floats, Floats]] = {
    "additive": _restriction(_NAMES["additive"], {}, {"kappa": 1.0}),
    "coupled": _restriction(_NAMES["coupled"], {}, {}),
    "kaplan": _restriction(_NAMES["kaplan"], {"beta": "kappa"}, {"e": _NOTHING}),
    "overtraining": _restriction(_NAMES["overtraining"], {"beta": "alpha"}, {"kappa": 1.0}),
}
