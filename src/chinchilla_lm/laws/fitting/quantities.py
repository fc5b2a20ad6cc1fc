"""The numbers that an additive law is asked for, as smooth functions of the solver's theta: values and slopes.

Symbols: K thetas (a, b, e, alpha, beta), centred as in `solver`; Q quantities; P = C / 6 = N D. Each quantity has a
working scale on which it is nearly Gaussian: ln for E, A, B, N*, D* and L*; itself for the exponents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from chinchilla_lm.core.errors import FitError
from chinchilla_lm.laws.forms.law import Floats

FLOPS_PER_PARAM_TOKEN = 6.0
CONSTANTS = ("E", "A", "B", "alpha", "beta", "a", "b")
_IS_LOG = (True, True, True, False, False, False, False)


@dataclass(frozen=True, kw_only=True)
class Quantities:
    """What is asked for, of laws centred on one set of runs.

    Attributes:
        x_mean: mean of ln N of the runs.
        y_mean: mean of ln D of the runs.
        log_products: ln P of each compute asked for.
        names: E, A, B, alpha, beta, a, b, and params@C, tokens@C, loss@C for each compute C.
        is_log_q: which working scales are logarithms, shape (Q,).
    """

    x_mean: float
    y_mean: float
    log_products: tuple[float, ...]
    names: tuple[str, ...]
    is_log_q: tuple[bool, ...]

    def values(self, theta_k5: Floats) -> Floats:
        """Return the quantities on their working scales, shape (K, Q)."""
        a, b, e, alpha, beta = theta_k5.T
        log_size, log_data = a + alpha * self.x_mean, b + beta * self.y_mean
        share = beta / (alpha + beta)
        columns = [e, log_size, log_data, alpha, beta, share, 1 - share]
        for log_product in self.log_products:
            log_params = self._log_params(theta_k5, log_product)
            log_tokens = log_product - log_params
            terms = np.stack([log_size - alpha * log_params, log_data - beta * log_tokens, e])
            columns += [log_params, log_tokens, np.logaddexp.reduce(terms)]
        return np.stack(columns, axis=1)

    def slopes(self, theta_k5: Floats) -> Floats:
        """Return the derivatives of `values` by theta, shape (K, Q, 5)."""
        a, b, e, alpha, beta = theta_k5.T
        slopes = np.zeros((len(theta_k5), len(self.names), 5))
        both = alpha + beta
        slopes[:, 0, 2] = slopes[:, 1, 0] = slopes[:, 2, 1] = slopes[:, 3, 3] = slopes[:, 4, 4] = 1
        slopes[:, 1, 3], slopes[:, 2, 4] = self.x_mean, self.y_mean
        slopes[:, 5, 3], slopes[:, 5, 4] = -beta / both**2, alpha / both**2
        slopes[:, 6] = -slopes[:, 5]
        for place, log_product in enumerate(self.log_products):
            log_params = self._log_params(theta_k5, log_product)
            row = len(CONSTANTS) + 3 * place
            slopes[:, row, 0], slopes[:, row, 1] = 1 / both, -1 / both
            slopes[:, row, 3] = (1 / alpha + self.x_mean - log_params) / both
            slopes[:, row, 4] = (-1 / beta - self.y_mean + log_product - log_params) / both
            slopes[:, row + 1] = -slopes[:, row]
            # At the optimum a change of N* costs nothing to first order: the loss feels theta alone.
            x, y = log_params - self.x_mean, log_product - log_params - self.y_mean
            terms = np.stack([a - alpha * x, b - beta * y, e])
            shares = np.exp(terms - np.logaddexp.reduce(terms))
            slopes[:, row + 2] = np.stack([*shares, -shares[0] * x, -shares[1] * y], axis=1)
        return slopes

    def natural(self, working: Floats) -> Floats:
        """Turn working values, the last axis of length Q, into natural ones; exponents are cut to what they may be."""
        exponents = np.clip(working, 0.0, np.where(np.isin(self.names, ("a", "b")), 1.0, np.inf))
        return np.where(self.is_log_q, np.exp(np.where(self.is_log_q, working, 0.0)), exponents)

    def _log_params(self, theta_k5: Floats, log_product: float) -> Floats:
        a, b, _, alpha, beta = theta_k5.T
        log_ratio = np.log(alpha / beta) + a + alpha * self.x_mean - b - beta * self.y_mean
        return (log_ratio + beta * log_product) / (alpha + beta)


def name_quantities(params: Floats, tokens: Floats, target_flops: Sequence[float] = ()) -> Quantities:
    """Say which quantities are asked for.

    Args:
        params: N of the runs that the thetas are centred on.
        tokens: D of those runs.
        target_flops: computes C = 6 N D whose optimum is asked for, each > 0.

    Returns:
        The quantities.

    Raises:
        FitError: a compute that is not finite and > 0.
    """
    for flops in target_flops:
        if not (math.isfinite(flops) and flops > 0):
            raise FitError(f"target_flops={flops!r} must be finite and > 0; write a number such as 1e22")
    asked = [f"{what}@{flops:.6g}" for flops in target_flops for what in ("params", "tokens", "loss")]
    return Quantities(
        x_mean=float(np.log(params).mean()),
        y_mean=float(np.log(tokens).mean()),
        log_products=tuple(math.log(flops / FLOPS_PER_PARAM_TOKEN) for flops in target_flops),
        names=(*CONSTANTS, *asked),
        is_log_q=(*_IS_LOG, *(True for _ in asked)),
    )
