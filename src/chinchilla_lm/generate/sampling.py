"""How the next token is chosen: the settings, and from logits to the distribution that is drawn from.

Symbols: logits_bv = (rows, vocab) float32. The order is the one that `transformers` uses: bias, repetition penalty,
presence and frequency penalties and bad words (penalties.py), then temperature, top-k, top-p, min-p (here).
Never reads a model, a tokenizer or a global random state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from chinchilla_lm.core.errors import ConfigError

SMALLEST_TEMPERATURE = 1e-6  # float32 has 1e-7 of relative precision: below this, dividing the logits says nothing new
LARGEST_PENALTY = 2.0  # OpenAI's bound on presence and frequency penalties, of either sign
REPETITION_RANGE = (0.01, 100.0)  # logits are divided by it: a tiny or huge one makes them infinite
LARGEST_BIAS = 100.0  # OpenAI's bound on a logit bias, of either sign: bans or forces a token for all ordinary logits


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 or >= SMALLEST_TEMPERATURE; 0 takes the most likely token and ignores top_k, top_p and min_p.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of tokens whose probability reaches p, in (0, 1]; 1 keeps all.
        min_p: keep tokens with at least this fraction of the likeliest token's probability, in [0, 1]; 0 keeps all.
        repetition_penalty: in [.01, 100]; logits of tokens in the prompt or the text are divided (if negative:
            multiplied) by it.
        presence_penalty: taken off the logits of tokens that occur in the text (not the prompt), in [-2, 2].
        frequency_penalty: the same for every time that the token occurs, in [-2, 2].
        logit_bias: token id -> a number in [-100, 100] added to its logit.
        seed: starts the generator of a whole text, in [0, 2**63).

    Source: Fan et al. 2018, section 5.2 (top-k); Holtzman et al. 2020, section 3.1 (top-p); Nguyen et al. 2024 (min-p);
    Keskar et al. 2019 (CTRL), section 4.1 (repetition; for negative logits as in `transformers`); OpenAI API reference
    (presence and frequency).
    """

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature != 0 and not (SMALLEST_TEMPERATURE <= self.temperature < math.inf):
            raise ConfigError(
                f"temperature must be 0 or a number >= {SMALLEST_TEMPERATURE:g}, got {self.temperature!r}; "
                "0 takes the most likely token"
            )
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed must be in [0, 2**63), got {self.seed!r}; write a number such as 0")
        self._check_cuts()
        self._check_penalties()

    def _check_cuts(self) -> None:
        if self.top_k < 0:
            raise ConfigError(f"top_k must be >= 0, got {self.top_k!r}; 0 keeps every token")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must be in (0, 1], got {self.top_p!r}; 1 keeps every token")
        if not 0 <= self.min_p <= 1:
            raise ConfigError(f"min_p must be in [0, 1], got {self.min_p!r}; 0 keeps every token")

    def _check_penalties(self) -> None:
        least, most = REPETITION_RANGE
        if not least <= self.repetition_penalty <= most:
            value = self.repetition_penalty
            raise ConfigError(f"repetition_penalty must be in [{least:g}, {most:g}], got {value!r}; 1 changes nothing")
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            if not abs(value) <= LARGEST_PENALTY:
                raise ConfigError(f"{name} must be in [-2, 2], got {value!r}; 0 changes nothing")
        for token, bias in self.logit_bias.items():
            if token < 0 or not abs(bias) <= LARGEST_BIAS:
                raise ConfigError(
                    f"logit_bias must be from token ids >= 0 to numbers in [-100, 100], got {token!r}: {bias!r}; "
                    "-100 bans a token, 100 forces it"
                )


GREEDY = Sampling(temperature=0.0)


def choose_tokens(logits_bv: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> torch.Tensor:
    """Choose one token for each row; penalties, bias and bad words must have been applied (penalties.py).

    Args:
        logits_bv: (rows, vocab), any float type.
        sampling: the rule.
        generator: the only source of randomness, on the device of the logits; greedy choice does not advance it.

    Returns:
        (rows,) int64 token ids.
    """
    if sampling.temperature == 0:
        return logits_bv.argmax(dim=-1)
    return draw_tokens(token_probabilities(logits_bv, sampling), generator)


def draw_tokens(probabilities_bv: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw one token for each row, (rows,) int64: where the running sum of the probabilities passes a uniform number.

    One random number a row: 0.07 ms at a vocabulary of 49,152, `torch.multinomial` 1.5 ms (one core, 2026-11-22). Sums
    in float64, so that a token of probability 0 never comes and the last tokens keep their share.
    """
    reached_bv = probabilities_bv.double().cumsum(dim=-1)
    size = (len(probabilities_bv), 1)
    uniform_b1 = torch.rand(size, dtype=torch.float64, generator=generator, device=probabilities_bv.device)
    tokens_b1 = torch.searchsorted(reached_bv, uniform_b1 * reached_bv[:, -1:], right=True)
    # A uniform number next to 1 may round up to the whole sum: then the last token that has a probability.
    last_b1 = torch.searchsorted(reached_bv, reached_bv[:, -1:].contiguous())
    return torch.minimum(tokens_b1, last_b1)[:, 0]


def token_probabilities(logits_bv: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Return the distribution that `choose_tokens` draws from.

    Args:
        logits_bv: (rows, vocab); -inf for tokens that may not come, at least one finite.
        sampling: any temperature; 0 puts all probability on the first of the most likely tokens.

    Returns:
        (rows, vocab) float32; each row sums to 1, tokens cut by top-k, top-p or min-p have exactly 0.
    """
    logits_bv = logits_bv.float()
    if sampling.temperature == 0:
        best_b1 = logits_bv.argmax(dim=-1, keepdim=True)
        return torch.zeros_like(logits_bv).scatter_(-1, best_b1, 1.0)
    scaled_bv = (logits_bv - logits_bv.amax(dim=-1, keepdim=True)) / sampling.temperature
    if 0 < sampling.top_k < scaled_bv.shape[-1]:
        scaled_bv = _keep_top_k(scaled_bv, sampling.top_k)
    if sampling.top_p < 1:
        scaled_bv = _keep_top_p(scaled_bv, sampling.top_p)
    if sampling.min_p > 0:
        probabilities_bv = scaled_bv.softmax(dim=-1)
        least_b1 = sampling.min_p * probabilities_bv.amax(dim=-1, keepdim=True)
        scaled_bv = scaled_bv.masked_fill(probabilities_bv < least_b1, -math.inf)
    return scaled_bv.softmax(dim=-1)


def _keep_top_k(logits_bv: torch.Tensor, top_k: int) -> torch.Tensor:
    # Tokens that tie with the k-th stay, as in `transformers`.
    smallest_kept_b1 = logits_bv.topk(top_k, dim=-1).values[:, -1:]
    return logits_bv.masked_fill(logits_bv < smallest_kept_b1, -math.inf)


def _keep_top_p(logits_bv: torch.Tensor, top_p: float) -> torch.Tensor:
    is_kept_bv = torch.stack([_is_in_nucleus(probabilities_v, top_p) for probabilities_v in logits_bv.softmax(dim=-1)])
    return logits_bv.masked_fill(~is_kept_bv, -math.inf)


def _is_in_nucleus(probabilities_v: torch.Tensor, top_p: float) -> torch.Tensor:
    # The test of `transformers`: a token is cut if it and all less likely ones have 1 - p together; one token stays.
    # All tokens of at most (1 - p) / vocab have no more than 1 - p together: they are cut unsorted, which in text are
    # nearly all. The order of the rest is not needed: the least kept probability tells, and of its ties the first stay.
    rest = 1 - top_p
    likely = probabilities_v[probabilities_v > rest / len(probabilities_v)]
    if not len(likely):  # all are equally likely
        likely = probabilities_v
    rising = np.sort(likely.cpu().numpy())
    below = 1 - float(rising.sum(dtype=np.float64)) if len(likely) < len(probabilities_v) else 0.0
    cut = min(int((below + rising.cumsum(dtype=np.float64) <= rest).sum()), len(rising) - 1)
    is_kept_v = probabilities_v >= float(rising[cut])
    extra = int(is_kept_v.sum()) - (len(rising) - cut)
    if extra > 0:
        tied = (probabilities_v == float(rising[cut])).nonzero()[:, 0]
        is_kept_v[tied[len(tied) - extra :]] = False
    return is_kept_v
