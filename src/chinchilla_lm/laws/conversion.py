"""One convention of N turned into another along a family of shapes, and the refusal to mix them unturned.

Which parameters N counts moves a fitted exponent by up to .2 (Pearce & Song 2024; Porian et al. 2024), so a law's N is
compared with another only in one convention. Between conventions there is no formula without a family of shapes: here
the project's own path (`laws.shapes`), any list of shapes, or Pearce & Song's family N_T = N_E + gamma N_E^(1/3).
It never converts a law: its exponents would change with the size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

import numpy as np

from chinchilla_lm.core.errors import PlanError
from chinchilla_lm.core.shapes import ModelShape
from chinchilla_lm.laws.count import ParamsConvention, count_parameters

# Vocabulary 32,000 times the cube root of d_model / n_layers / 12 = 39.2 / 12, from the shapes of Hoffmann et al. 2022
# (the constant of Pearce & Song's published script).
PEARCE_SONG_GAMMA = 47491.0


def require_same_convention(
    first: ParamsConvention, second: ParamsConvention, *, first_name: str = "the first", second_name: str = "the second"
) -> None:
    """Refuse two sizes, or a size and a law, that count different weights.

    Args:
        first: a convention, such as a law's `params_convention`.
        second: the other.
        first_name: whose the first is, for the message.
        second_name: whose the second is.

    Raises:
        PlanError: an unknown convention, or two that differ.
    """
    for convention in (first, second):
        if convention not in get_args(ParamsConvention):
            choices = ", ".join(get_args(ParamsConvention))
            raise PlanError(f"params convention {convention!r} is unknown; choose from {choices}")
    if first != second:
        raise PlanError(
            f"{first_name} counts {first!r} parameters and {second_name} {second!r}; count both alike, or turn one "
            "into the other with laws.conversion.convert_params"
        )


def convert_params(
    params: float, source: ParamsConvention, target: ParamsConvention, shapes: Sequence[ModelShape]
) -> float:
    """Turn a size in one convention into another, for models along a family of shapes.

    Args:
        params: N in the convention `source`, > 0.
        source: what it counts.
        target: what the answer counts.
        shapes: the family, such as `laws.shapes.path(vocab=..., context=...)`; two or more, of growing size.

    Returns:
        N in the convention `target`: straight lines in logarithms between the two nearest shapes.

    Raises:
        PlanError: a size outside the family, or a family that does not grow.
    """
    require_same_convention(source, source)
    require_same_convention(target, target)
    if not (math.isfinite(params) and params > 0):
        raise PlanError(f"params={params!r} must be finite and > 0; write a size such as 1e6")
    if source == target:
        return params
    counts = [count_parameters(shape) for shape in shapes]
    known = np.log([float(count.by(source)) for count in counts])
    wanted = np.log([float(count.by(target)) for count in counts])
    if len(shapes) < 2 or bool((np.diff(known) <= 0).any()):
        raise PlanError(f"{len(shapes)} shapes that do not grow are no family; give two or more in order of size")
    size = math.log(params)
    if not known[0] <= size <= known[-1]:
        low, high = math.exp(known[0]), math.exp(known[-1])
        raise PlanError(
            f"params={params:.4g} ({source}) lie outside this family's {low:.4g} to {high:.4g}; give wider shapes"
        )
    return math.exp(float(np.interp(size, known, wanted)))


def pearce_song_total(non_embedding: float, gamma: float = PEARCE_SONG_GAMMA) -> float:
    """Return N_T = N_E + gamma N_E^(1/3): total parameters of a model with N_E outside its embedding.

    Args:
        non_embedding: N_E >= 0.
        gamma: vocabulary times (d_model / n_layers / 12)^(1/3), >= 0.

    Returns:
        N_T. The cube root is the width: N_E = 12 n_layers d_model^2 at a fixed d_model / n_layers.

    Source: Pearce & Song 2024 (arXiv 2406.12907).
    """
    return non_embedding + gamma * non_embedding ** (1 / 3)


def pearce_song_non_embedding(total: float, gamma: float = PEARCE_SONG_GAMMA) -> float:
    """Return the N_E of `pearce_song_total`: the real root of x^3 + gamma x = N_T, cubed.

    Args:
        total: N_T >= 0.
        gamma: > 0.

    Returns:
        N_E, in the closed form of a depressed cubic with one real root.
    """
    half = math.sqrt(gamma / 3)
    root = 2 * half * math.sinh(math.asinh(total / (2 * half**3)) / 3)
    return root**3
