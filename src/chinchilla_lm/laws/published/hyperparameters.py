"""Published rules for the peak learning rate and the batch, by size, tokens or compute.

They hold for their authors' optimizer, schedule, initialisation and text; the exponents travel better than the scales.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from chinchilla_lm.laws.count import ParamsConvention, flops_of
from chinchilla_lm.laws.forms.law import require_positive
from chinchilla_lm.laws.published.record import row_named


@dataclass(frozen=True, kw_only=True)
class PowerProduct:
    """scale * N^params * D^tokens * C^flops, with C = 6 N D.

    Attributes:
        scale: > 0.
        params: exponent of the size.
        tokens: exponent of the tokens.
        flops: exponent of the compute.
    """

    scale: float
    params: float = 0.0
    tokens: float = 0.0
    flops: float = 0.0

    def at(self, params: float, tokens: float) -> float:
        """Return the product for a size and a number of tokens.

        Raises:
            PlanError: a number that is not finite and > 0.
        """
        require_positive(params, "params")
        require_positive(tokens, "tokens")
        flops = math.log(flops_of(params, tokens))
        logs = self.params * math.log(params) + self.tokens * math.log(tokens) + self.flops * flops
        return self.scale * math.exp(logs)


@dataclass(frozen=True, kw_only=True)
class HyperparameterLaw:
    """How to train a size on some tokens.

    Attributes:
        name: of the rule.
        lr_peak: the learning rate's peak.
        batch_tokens: tokens in a batch.
        params_convention: which weights N counts.
        source: paper and equation.
        note: what surprises a reader, or "".
    """

    name: str
    lr_peak: PowerProduct
    batch_tokens: PowerProduct
    params_convention: ParamsConvention
    source: str
    note: str = ""


_ROWS = (
    HyperparameterLaw(
        name="steplaw2025",
        lr_peak=PowerProduct(scale=1.79, params=-0.713, tokens=0.307),
        batch_tokens=PowerProduct(scale=0.58, tokens=0.571),
        params_convention="non_embedding",
        source="Li et al. 2025, 'Predictable Scale, part I' (arXiv 2503.04715), Step Law",
        note="AdamW with a cosine that ends at 1e-5; their 1,000 bootstrap fits average 1.797 and .581",
    ),
    HyperparameterLaw(
        name="deepseek2024",
        lr_peak=PowerProduct(scale=0.3118, flops=-0.1250),
        batch_tokens=PowerProduct(scale=0.2920, flops=0.3271),
        params_convention="non_embedding",
        source="DeepSeek-AI 2024 (arXiv 2401.02954), eq. 1",
        note="by compute alone, for sizes near the optimum; N is non-embedding FLOPs per token / 6",
    ),
)
HYPERPARAMETER_LAWS = {row.name: row for row in _ROWS}


def published_hyperparameters(name: str) -> HyperparameterLaw:
    """Look a rule up.

    Args:
        name: such as "steplaw2025"; case does not matter.

    Returns:
        The rule and its source.

    Raises:
        PlanError: an unknown name; the message holds the nearest one.
    """
    return row_named(name, HYPERPARAMETER_LAWS, kind="rule")
