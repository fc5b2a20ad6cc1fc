"""Published laws that split a budget, and the curves of one variable beside them."""

from __future__ import annotations

import math

from chinchilla_lm.laws.count import ParamsConvention
from chinchilla_lm.laws.forms.allocation import AllocationLaw, PowerLine, SingleVariableLaw
from chinchilla_lm.laws.published.record import PublishedLaw

PF_DAY_FLOPS = 8.64e19  # 1e15 FLOP/s for 86,400 s, the unit of Kaplan et al. 2020, section 1.3

# L(N), L(D) and L(C_min) alone (Kaplan et al. 2020, eq. 1.1 to 1.3); their constants are not those of the joint law.
KAPLAN_CURVES = {
    "params": SingleVariableLaw(variable="params", scale=8.8e13, exponent=0.076, params_convention="non_embedding"),
    "tokens": SingleVariableLaw(variable="tokens", scale=5.4e13, exponent=0.095),
    "flops": SingleVariableLaw(variable="flops", scale=3.1e8 * PF_DAY_FLOPS, exponent=0.050),
}

_HOFFMANN_ROWS = (
    PublishedLaw(
        name="hoffmann2022-approach1",
        # Log-log line through the nine rows of table 3; every row within 1.2 %. D* = C / 6N*.
        law=AllocationLaw(coefficient=0.099159, exponent=0.498099),
        source="Hoffmann et al. 2022 (arXiv 2203.15556), table 3: training-curve envelope",
        largest_flops=3e21,
        note="the paper states no loss for this approach",
    ),
    PublishedLaw(
        name="hoffmann2022-approach2",
        # Log-log line through the nine rows of table A3, approach 2; every row within 3.2 %.
        law=AllocationLaw(coefficient=0.144877, exponent=0.489942),
        source="Hoffmann et al. 2022, table A3: IsoFLOP profiles",
        largest_flops=3e21,
        note="the paper states no loss for this approach",
    ),
)

_KAPLAN_ROW = PublishedLaw(
    name="kaplan2020",
    # N* = 4.68B at 1e21 FLOPs is how Hoffmann et al. 2022, section D.4, read it; exponent: Kaplan, section 6.
    law=AllocationLaw(
        coefficient=4.68e9 / 1e21**0.73,
        exponent=0.73,
        params_convention="non_embedding",
        # L = (3.1e8 PF-days / C)^.050, Kaplan et al. 2020, eq. 1.3 (WebText2, minimal compute).
        line=PowerLine(intercept=0.050 * math.log(3.1e8 * PF_DAY_FLOPS), slope=-0.050),
    ),
    source="Kaplan et al. 2020 (arXiv 2001.08361), section 6; anchored as in Hoffmann et al. 2022, section D.4",
    note="superseded: no head FLOPs, a long warm-up and untuned small models (Porian et al. 2024)",
)


def _porian(
    suffix: str, corpus: str, step: str, line: tuple[float, float], params_convention: ParamsConvention = "matmul"
) -> PublishedLaw:
    coefficient, exponent = line
    return PublishedLaw(
        name=f"porian2024-{suffix}",
        law=AllocationLaw(coefficient=coefficient, exponent=exponent, params_convention=params_convention),
        source=f"Porian et al. 2024 (arXiv 2406.19146), {corpus}, {step}: the weighted fit of their published "
        "summaries (formll/resolving-scaling-law-discrepancies)",
        largest_flops=1.28e19 if params_convention == "non_embedding" else 2.56e19,
    )


_REFINEDWEB, _OPENWEBTEXT = "RefinedWeb", "OpenWebText2"
_PORIAN_ROWS = (  # (coefficient, exponent) of N*(C): each step keeps the one before it
    _porian("kaplan", _REFINEDWEB, "Kaplan et al.'s setting", (4.2319659e-8, 0.8353000), "non_embedding"),
    _porian("head", _REFINEDWEB, "head FLOPs and parameters counted", (1.2701848e-5, 0.7064699)),
    _porian("warmup", _REFINEDWEB, "warm-up shortened with the model", (1.4309166e-3, 0.6020375)),
    _porian("cosine", _REFINEDWEB, "cosine decay matched to the budget", (4.7692868e-3, 0.5714948)),
    _porian("tuned", _REFINEDWEB, "rate, batch and beta2 tuned a size, no decay", (0.11892648, 0.4968951)),
    _porian("owt2-kaplan", _OPENWEBTEXT, "Kaplan et al.'s setting", (1.2849964e-8, 0.8635108), "non_embedding"),
    _porian("owt2-head", _OPENWEBTEXT, "head FLOPs and parameters counted", (1.7334480e-5, 0.6985007)),
    _porian("owt2-warmup", _OPENWEBTEXT, "warm-up shortened with the model", (1.3176921e-3, 0.6031959)),
    _porian("owt2-cosine", _OPENWEBTEXT, "cosine decay matched to the budget", (4.3658278e-3, 0.5742951)),
    _porian("owt2-tuned", _OPENWEBTEXT, "rate, batch and beta2 tuned a size, no decay", (0.046935346, 0.5184542)),
)

_OTHER_ROWS = (
    PublishedLaw(
        name="deepseek2024",
        # M_opt = .1715 C^.5243, D_opt = 5.8316 C^.4757 with C = M D; N here is M / 6.
        law=AllocationLaw(coefficient=0.1715 / 6, exponent=0.5243, params_convention="non_embedding"),
        source="DeepSeek-AI 2024 (arXiv 2401.02954), eq. 4: IsoFLOP profiles in non-embedding FLOPs per token",
        largest_flops=3e20,
        note="its size is M, non-embedding FLOPs per token with attention; N is M / 6, a little over the weights",
    ),
    PublishedLaw(
        name="llama3-2024",
        # D* ~ C^.53 and 402B at 3.8e25 FLOPs.
        law=AllocationLaw(coefficient=402e9 / 3.8e25**0.47, exponent=0.47),
        source="Grattafiori et al. 2024 (arXiv 2407.21783), section 3.2.1: IsoFLOP parabolas, anchored at their "
        "extrapolation to 3.8e25 FLOPs",
        largest_flops=1e22,
        note="the printed A = .29 with exponent .53 gives 10.5T tokens there, not the printed 16.55T; "
        "402B times 16.55T at 6 FLOPs is 5 % over the budget",
    ),
    PublishedLaw(
        name="nanochat2026",
        law=AllocationLaw(coefficient=(6 * 10.5) ** -0.5, exponent=0.5, params_convention="matmul"),
        source="karpathy/nanochat, dev/LOG.md of 2026-01-27: 10.5 tokens per parameter, blocks and head counted",
        largest_flops=1e19,
        note="a rule of one repository, measured at four budgets; with other counts of N its exponent is .37 or .68",
    ),
)

ALLOCATIONS = (*_HOFFMANN_ROWS, _KAPLAN_ROW, *_PORIAN_ROWS, *_OTHER_ROWS)
