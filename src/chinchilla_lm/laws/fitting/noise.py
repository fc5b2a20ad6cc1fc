"""How large the residuals of a fit are: Huber's sum, its likelihood's scale, and a scale that outliers do not move.

Symbols: r residuals in ln L; n of them after p fitted constants; delta where Huber turns from square to straight.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import stdtrit  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType] - it has no stubs

from chinchilla_lm.laws.forms.law import Floats

# Huber 1964: with delta = 1.345 sd the estimate keeps 95 % of least squares' precision on Gaussian noise.
HUBER_EFFICIENT = 1.345
# Losses are logged to four or five digits: below 1e-4 the scatter is rounding, and Huber's valley only gets sharper.
SMALLEST_SCALED_DELTA = 1e-4
_MAD_TO_SD = 1.4826  # sd over median |r| of a Gaussian


def huber(residuals: Floats, delta: float) -> Floats:
    """Return Huber's loss of each residual: r^2 / 2 up to delta, straight beyond; c (r - c / 2) with c = r clipped."""
    clipped = np.clip(residuals, -delta, delta)
    return clipped * (residuals - 0.5 * clipped)


def robust_sd(residuals: Floats, n_constants: int = 5) -> float:
    """Return the sd of the noise, unmoved by up to half of the runs being wild.

    Args:
        residuals: in ln L, of a fit.
        n_constants: p fitted constants; the p smallest |r| are left out, since a fit passes (nearly) through p runs.

    Returns:
        sd >= 0; 0 where n <= p, which says nothing.
    """
    left = len(residuals) - n_constants
    if left <= 0:
        return 0.0
    return _MAD_TO_SD * float(np.median(np.sort(np.abs(residuals))[n_constants:]))


def scaled_delta(residuals: Floats, n_constants: int = 5, least_sd: float = 0.0) -> float:
    """Return the delta that suits the noise of these residuals: 1.345 robust sd, at least 1e-4."""
    return max(HUBER_EFFICIENT * max(robust_sd(residuals, n_constants), least_sd), SMALLEST_SCALED_DELTA)


def quantile_sd(draws: Floats) -> float:
    """Return half the range of the middle 68.3 % of draws: the sd of a Gaussian, unmoved by rare wild draws."""
    low, high = np.quantile(draws, [0.15866, 0.84134])
    return float(high - low) / 2


def t_quantile(level: float, degrees: int) -> float:
    """Return how many standard errors to either side hold `level` of Student's t.

    Args:
        level: in (0, 1).
        degrees: of freedom, > 0.

    Returns:
        The quantile, > 0: 1.96 for level .95 and many degrees.
    """
    return float(stdtrit(degrees, 0.5 + level / 2))  # pyright: ignore[reportUnknownArgumentType]


def noise_scale(residuals: Floats, delta: float) -> float:
    """Return the scale s of p(r) = exp(-Huber_delta(r) / s^2) / Z(s) by maximum likelihood.

    Args:
        residuals: in ln L, of a fit with five constants.
        delta: of the Huber loss.

    Returns:
        s > 0; the root mean square for delta >> s; 0 for five residuals or fewer, which say nothing.
    """
    count = len(residuals)
    total = float(huber(residuals, delta).sum())
    if count <= 5 or total == 0:
        return 0.0
    total *= count / (count - 5)

    def surprise(log_s: float) -> float:
        s = math.exp(log_s)
        u = delta / s
        inside = math.sqrt(2 * math.pi) * math.erf(u / math.sqrt(2))
        outside = 2 / u * math.exp(-0.5 * u * u) if u < 38 else 0.0
        return count * (log_s + math.log(inside + outside)) + total / s**2

    low, high = math.log(math.sqrt(total / count)) - 12, math.log(math.sqrt(total / count)) + 6
    golden = (math.sqrt(5) - 1) / 2
    while high - low > 1e-6:
        left, right = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, right) if surprise(left) < surprise(right) else (left, high)
    return math.exp((low + high) / 2)
