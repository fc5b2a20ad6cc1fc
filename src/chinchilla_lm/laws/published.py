"""Laws that others published, by name, with what their N counts and where they come from.

A published law's loss holds for its own text and tokenizer only; its size and tokens travel better than its loss.
It never corrects a source: where a paper contradicts itself, the note says so.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass

from chinchilla_lm.core.errors import PlanError
from chinchilla_lm.laws.forms.additive import AdditiveLaw
from chinchilla_lm.laws.forms.allocation import AllocationLaw, PowerLine

_PF_DAY_FLOPS = 8.64e19  # 1e15 FLOP/s for 86,400 s, the unit of Kaplan et al. 2020


@dataclass(frozen=True, kw_only=True)
class PublishedLaw:
    """A law as its authors gave it.

    Attributes:
        name: what `--law` takes.
        law: the constants; `law.params_convention` says which weights N counts.
        source: paper and table.
        largest_flops: training FLOPs of the largest run behind it, or None where the source does not say.
        note: what surprises a reader, or "".
    """

    name: str
    law: AdditiveLaw | AllocationLaw
    source: str
    largest_flops: float | None = None
    note: str = ""


def published_law(name: str) -> PublishedLaw:
    """Look a law up.

    Args:
        name: such as "besiroglu2024"; case does not matter.

    Returns:
        The law and its source.

    Raises:
        PlanError: an unknown name; the message holds the nearest one.
    """
    law = PUBLISHED_LAWS.get(name.strip().lower())
    if law is not None:
        return law
    near = difflib.get_close_matches(name.strip().lower(), PUBLISHED_LAWS, n=1, cutoff=0.3)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise PlanError(f"law {name!r} is unknown; {hint}choose from {', '.join(PUBLISHED_LAWS)}, or give a law.json")


_ROWS = (
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
    PublishedLaw(
        name="hoffmann2022-approach3",
        law=AdditiveLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28, params_convention="total"),
        source="Hoffmann et al. 2022, eq. 10: parametric fit, constants as printed",
        largest_flops=3e21,
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
        largest_flops=3e21,
        note="with these digits 5.76e23 FLOPs give the paper's 40B",
    ),
    PublishedLaw(
        name="besiroglu2024",
        law=AdditiveLaw(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658, params_convention="total"),
        source="Besiroglu et al. 2024 (arXiv 2404.10102), eq. 5: refit of 240 digitised runs of Hoffmann et al.",
        largest_flops=3e21,
        note="A, B, alpha and beta are least absolute deviations (delta -> 0); the printed E belongs to delta = 1e-3",
    ),
    PublishedLaw(
        name="muennighoff2023",
        law=AdditiveLaw(
            E=math.exp(0.6254804),
            A=math.exp(6.255414),
            B=math.exp(7.3049974),
            alpha=0.3526596,
            beta=0.3526596,
            params_convention="total",
        ),
        source="Muennighoff et al. 2023 (arXiv 2305.16264), the C4 law of huggingface/datablations",
        largest_flops=9.3e21,  # 8.67B params, 178B tokens
        note="made for repeated text: give --unique-tokens",
    ),
    PublishedLaw(
        name="kaplan2020",
        # N* = 4.68B at 1e21 FLOPs is how Hoffmann et al. 2022, section D.4, read it; exponent: Kaplan, section 6.
        law=AllocationLaw(
            coefficient=4.68e9 / 1e21**0.73,
            exponent=0.73,
            params_convention="non_embedding",
            # L = (3.1e8 PF-days / C)^.050, Kaplan et al. 2020, eq. 1.3 (WebText2, minimal compute).
            line=PowerLine(intercept=0.050 * math.log(3.1e8 * _PF_DAY_FLOPS), slope=-0.050),
        ),
        source="Kaplan et al. 2020 (arXiv 2001.08361), section 6; anchored as in Hoffmann et al. 2022, section D.4",
        note="superseded: no head FLOPs, a long warm-up and untuned small models (Porian et al. 2024)",
    ),
)
PUBLISHED_LAWS = {row.name: row for row in _ROWS}
