"""Truths that follow none of the forms the intervals are made from, and the designs they are sampled on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from chinchilla_lm.laws.forms.additive import AdditiveLaw

Loss = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(params, tokens) -> loss."""


def _grid() -> tuple[np.ndarray, np.ndarray]:
    """IsoFLOP: seven budgets over three decades, seven sizes each."""
    flops = np.repeat(np.geomspace(1e18, 1e21, 7), 7)
    params = 0.1 * flops**0.5 * np.tile(np.geomspace(0.25, 4, 7), 7)
    return params, flops / 6 / params


def _ladder() -> tuple[np.ndarray, np.ndarray]:
    """Five sizes at 10 to 200 tokens per param, as OLMo's."""
    params = np.repeat(np.geomspace(1.9e8, 3.2e9, 5), 5)
    return params, params * np.tile([10.0, 20.0, 40.0, 100.0, 200.0], 5)


def _scattered() -> tuple[np.ndarray, np.ndarray]:
    """Sixty runs anywhere within a factor 5 of the optimum, over four decades."""
    rng = np.random.default_rng(7)
    flops = np.exp(rng.uniform(np.log(1e17), np.log(1e21), 60))
    params = 0.1 * flops**0.5 * np.exp(rng.uniform(-1.6, 1.6, 60))
    return params, flops / 6 / params


DESIGNS = {"grid": _grid(), "ladder": _ladder(), "scattered": _scattered()}


def _additive(params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    return 1.82 + 482 / params**0.348 + 2085 / tokens**0.366  # Besiroglu et al. 2024


def _coupled(params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    return 1.5 + ((482 / params**0.348) ** 0.5 + (2085 / tokens**0.366) ** 0.5) ** 1.4


def _bend(width: float, change: float) -> Loss:
    """A reducible loss whose exponent changes by a share around 1e20 FLOPs (a smoothly broken power law)."""

    def loss(params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        beyond = np.logaddexp(0.0, np.log(6 * params * tokens / 1e20) / width) * width
        return 1.7 + (_additive(params, tokens) - 1.82) * np.exp(-0.15 * change * beyond)

    return loss


def _drifting(params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Larger runs are trained worse: half a per cent a decade, as a learning rate that is scaled wrongly does."""
    return _additive(params, tokens) * (6 * params * tokens / 1e18) ** (0.005 / np.log(10))


def _interacting(params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Farseer's idea: how fast more text helps depends on the size."""
    return (
        1.6
        + 300 / params**0.33
        + np.exp(5.6 - 0.02 * np.log(params / 1e8)) / tokens ** (0.28 * (params / 1e9) ** -0.03)
    )


TRUTHS: dict[str, Loss] = {
    "additive": _additive,
    "coupled": _coupled,
    "bends down by a third": _bend(1.0, 0.33),
    "bends up by a third": _bend(1.0, -0.33),
    "drifts .5 % a decade": _drifting,
    "interacting exponents": _interacting,
}


def coupled(law: AdditiveLaw, k: float) -> Loss:
    """E + (A' N^-alpha/k + B' D^-beta/k)^k with a law's own slopes and terms at 1e8 params and 2e9 tokens."""
    size, text = law.A / 1e8**law.alpha, law.B / 2e9**law.beta
    total = size + text

    def loss(params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        inner = size / total * (params / 1e8) ** (-law.alpha / k) + text / total * (tokens / 2e9) ** (-law.beta / k)
        return law.E + total * inner**k

    return loss
