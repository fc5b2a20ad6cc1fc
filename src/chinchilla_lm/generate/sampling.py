"""From logits to the next token: greedy, temperature, top-k and nucleus (top-p) choice.

Symbols: logits_bv = (rows, vocab) float32. The order is the one that `transformers` uses: temperature, then top-k, then
top-p. Never reads a model, a tokenizer or a global random state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from chinchilla_lm.core.errors import ConfigError

SMALLEST_TEMPERATURE = 1e-6  # float32 has 1e-7 of relative precision: below this, dividing the logits says nothing new


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 or >= SMALLEST_TEMPERATURE; 0 takes the most likely token and ignores the other three.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of tokens whose probability reaches p, in (0, 1]; 1 keeps all.
        seed: starts the generator of a whole text, in [0, 2**63).

    Source: Fan et al. 2018, section 5.2 (top-k); Holtzman et al. 2020, section 3.1 (top-p).
    """

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature != 0 and not (SMALLEST_TEMPERATURE <= self.temperature < math.inf):
            raise ConfigError(
                f"temperature must be 0 or a number >= {SMALLEST_TEMPERATURE:g}, got {self.temperature!r}; "
                "0 takes the most likely token"
            )
        if self.top_k < 0:
            raise ConfigError(f"top_k must be >= 0, got {self.top_k!r}; 0 keeps every token")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must be in (0, 1], got {self.top_p!r}; 1 keeps every token")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed must be in [0, 2**63), got {self.seed!r}; write a number such as 0")


GREEDY = Sampling(temperature=0.0)


def choose_tokens(logits_bv: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> torch.Tensor:
    """Choose one token for each row.

    Args:
        logits_bv: (rows, vocab), any float type.
        sampling: the rule.
        generator: the only source of randomness, on the device of the logits; greedy choice does not advance it.

    Returns:
        (rows,) int64 token ids.
    """
    if sampling.temperature == 0:
        return logits_bv.argmax(dim=-1)
    probabilities_bv = token_probabilities(logits_bv, sampling)
    return torch.multinomial(probabilities_bv, 1, generator=generator)[:, 0]


def token_probabilities(logits_bv: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Return the distribution that `choose_tokens` draws from.

    Args:
        logits_bv: (rows, vocab).
        sampling: temperature > 0.

    Returns:
        (rows, vocab) float32; each row sums to 1, tokens cut by top-k or top-p have exactly 0.
    """
    logits_bv = logits_bv.float()
    scaled_bv = (logits_bv - logits_bv.amax(dim=-1, keepdim=True)) / sampling.temperature
    if 0 < sampling.top_k < scaled_bv.shape[-1]:
        scaled_bv = _keep_top_k(scaled_bv, sampling.top_k)
    if sampling.top_p < 1:
        scaled_bv = _keep_top_p(scaled_bv, sampling.top_p)
    return scaled_bv.softmax(dim=-1)


def _keep_top_k(logits_bv: torch.Tensor, top_k: int) -> torch.Tensor:
    # Tokens that tie with the k-th stay, as in `transformers`.
    smallest_kept_b1 = logits_bv.topk(top_k, dim=-1).values[:, -1:]
    return logits_bv.masked_fill(logits_bv < smallest_kept_b1, -math.inf)


def _keep_top_p(logits_bv: torch.Tensor, top_p: float) -> torch.Tensor:
    sorted_bv, order_bv = logits_bv.sort(dim=-1, descending=True, stable=True)
    probabilities_bv = sorted_bv.softmax(dim=-1)
    # A token is cut when the more likely ones already reach p; so the first is never cut.
    before_bv = probabilities_bv.cumsum(dim=-1) - probabilities_bv
    is_cut_bv = torch.zeros_like(before_bv, dtype=torch.bool).scatter(-1, order_bv, before_bv >= top_p)
    return logits_bv.masked_fill(is_cut_bv, -math.inf)
