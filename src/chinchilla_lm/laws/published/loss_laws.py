"""Published laws that state a loss for every size and number of tokens."""

from __future__ import annotations

import math

from chinchilla_lm.laws.forms.additive import AdditiveLaw
from chinchilla_lm.laws.forms.kaplan import KaplanLaw
from chinchilla_lm.laws.forms.overtraining import OvertrainingLaw
from chinchilla_lm.laws.forms.repetition import RepetitionLaw
from chinchilla_lm.laws.published.record import PublishedLaw

_HOFFMANN_FLOPS = 3e21  # the largest of the nine budgets of Hoffmann et al. 2022, section 3.2
# Gadre et al.'s law is fitted on five runs; the largest is 411.6M params on 20 tokens each.
_GADRE_FLOPS = 2.033e19
_MUENNIGHOFF = AdditiveLaw(
    E=math.exp(0.6254804),
    A=math.exp(6.255414),
    B=math.exp(7.3049974),
    alpha=0.3526596,
    beta=0.3526596,
    params_convention="total",
)
_MUENNIGHOFF_FLOPS = 9.3e21  # 8.67B params, 178B tokens

_HOFFMANN_ROWS = (
    PublishedLaw(
        name="hoffmann2022-approach3",
        law=AdditiveLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28, params_convention="total"),
        source="Hoffmann et al. 2022 (arXiv 2203.15556), eq. 10: parametric fit, constants as printed",
        largest_flops=_HOFFMANN_FLOPS,
        note="the printed digits give sizes 18 to 30 % below the paper's own table A3; besiroglu2024 refits the runs",
    ),
    PublishedLaw(
        name="hoffmann2022-approach3-tex",
        law=AdditiveLaw(
            E=math.exp(0.5267228),
            A=math.exp(6.0073404),
            B=math.exp(6.0179186),
            alpha=0.33917084,
            beta=0.2849083,
            params_convention="total",
        ),
        source="Hoffmann et al. 2022, digits of the TeX source, as quoted in the notebook of Besiroglu et al. 2024",
        largest_flops=_HOFFMANN_FLOPS,
        note="with these digits 5.76e23 FLOPs give the paper's 40B",
    ),
    PublishedLaw(
        name="besiroglu2024",
        law=AdditiveLaw(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658, params_convention="total"),
        source="Besiroglu et al. 2024 (arXiv 2404.10102), eq. 5: refit of 240 digitised runs of Hoffmann et al.",
        largest_flops=_HOFFMANN_FLOPS,
        note="A, B, alpha and beta are least absolute deviations (delta -> 0); the printed E belongs to delta = 1e-3",
    ),
    PublishedLaw(
        name="besiroglu2024-huber",
        # `fit_additive(delta=1e-3)` on data/laws/epoch_chinchilla.csv, objective 1.0182740177e-3; the test refits it.
        law=AdditiveLaw(
            E=1.8172180989,
            A=477.825874,
            B=2143.417325,
            alpha=0.3473104996,
            beta=0.3671724317,
            params_convention="total",
        ),
        source="the 240 runs of Besiroglu et al. 2024 by the objective that Hoffmann et al. 2022 state (Huber, "
        "delta = 1e-3, summed), refitted here to its global optimum",
        largest_flops=_HOFFMANN_FLOPS,
        note="what the paper's own objective gives; besiroglu2024 printed least absolute deviations instead",
    ),
    PublishedLaw(
        name="devries2023",
        law=AdditiveLaw(E=1.69, A=406.4, B=410.7, alpha=0.336, beta=0.283, params_convention="total"),
        source="de Vries 2023, 'Go smol or go home': the constants of his calculator for Hoffmann et al.'s law",
        largest_flops=_HOFFMANN_FLOPS,
        note="figure 1 of Sardana et al. 2024 (arXiv 2401.00448) is reproduced with these digits and no others",
    ),
)

_REPETITION_ROWS = (
    PublishedLaw(
        name="muennighoff2023",
        law=_MUENNIGHOFF,
        source="Muennighoff et al. 2023 (arXiv 2305.16264), the C4 law of huggingface/datablations",
        largest_flops=_MUENNIGHOFF_FLOPS,
        note="made for repeated text: give --unique-tokens",
    ),
    PublishedLaw(
        name="muennighoff2023-repetition",
        law=RepetitionLaw.from_additive(_MUENNIGHOFF),
        source="Muennighoff et al. 2023 (arXiv 2305.16264), eq. 5 and 6, fitted constants of huggingface/datablations",
        largest_flops=_MUENNIGHOFF_FLOPS,
        note="a model large for its text gets worse after tens of epochs, and this law's loss never rises",
    ),
)


def _gadre(corpus: str, printed: str, alpha: float, beta: float, b: float, E: float) -> PublishedLaw:
    return PublishedLaw(
        name=f"gadre2024-{corpus}",
        law=OvertrainingLaw.from_code_form(E=E, alpha=alpha, beta=beta, b=b, params_convention="total"),
        source=f"Gadre et al. 2024 (arXiv 2403.08540), eq. 4, trained on {printed}, loss on C4: their fit of five runs "
        "(mlfoundations/scaling), repeated here",
        largest_flops=_GADRE_FLOPS,
        note="the loss is on C4's validation set whatever the model was trained on",
    )


_OVERTRAINING_ROWS = (
    # Least squares on the five runs of data/laws/gadre_overtraining.csv from the authors' 128 starts; the test refits.
    _gadre("c4", "C4", 113.692607, 189.515528, 0.24247224, 1.50826057),
    _gadre("redpajama", "RedPajama", 166.210989, 366.687188, 0.27285071, 1.83664840),
    _gadre("refinedweb", "RefinedWeb", 125.095693, 246.206681, 0.25439484, 1.73446208),
)

_KAPLAN_ROWS = (
    PublishedLaw(
        name="kaplan2020-joint",
        law=KaplanLaw(alpha_N=0.076, alpha_D=0.103, N_c=6.4e13, D_c=1.8e13, params_convention="non_embedding"),
        source="Kaplan et al. 2020 (arXiv 2001.08361), eq. 1.5 with the constants of table 2",
        note="fitted to early-stopped training on limited text; its optimum (exponent .575) is not the paper's (.73)",
    ),
)

LOSS_LAWS = (*_HOFFMANN_ROWS, *_REPETITION_ROWS, *_OVERTRAINING_ROWS, *_KAPLAN_ROWS)
