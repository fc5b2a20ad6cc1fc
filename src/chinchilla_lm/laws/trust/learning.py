"""Learn the error model of `inflation` from many tables: one vote a family, a table, a cut, a range of decades.

A family is what shares code, text or runs (all of Gadre's models, scored on any text, are one): its tables are not
independent, so they share one vote, and what is tested on a family must be learnt without it.

Symbols: K cuts, n runs of one table; errors in ln L. It reads no files and draws nothing: the same tables, the same
constants.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType] - no stubs
from scipy.special import gammaln  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType] - no stubs

from chinchilla_lm.core.errors import FitError
from chinchilla_lm.laws.forms.law import Floats
from chinchilla_lm.laws.trust.calibration import Extrapolation
from chinchilla_lm.laws.trust.cuts import Answers
from chinchilla_lm.laws.trust.inflation import Inflation, own_errors

# log10 of compute over the cut: 3-6x, 6-20x, 20-100x. Each counts once, however many runs lie in it.
DECADE_RANGES = ((0.47, 0.8), (0.8, 1.3), (1.3, 2.005))
_START = Inflation(floor=0.003, of_drop=0.12, of_spread=0.5, freedom=4.0)
_MOST_STEPS = 160
_minimise: Callable[..., Any] = minimize  # pyright: ignore[reportUnknownVariableType] - scipy has no stubs
_BOX = np.log([[0.001, 0.02], [0.02, 1.0], [0.05, 3.0], [1.5, 30.0]])  # lowest and highest of each constant


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One table's errors, ready to be scored under any constants.

    Attributes:
        family: whose table it is.
        answers: of every cut about every run, (K, n).
        noise_k: scatter below each cut.
        cut_flops_k: ascending.
        flops_n: C of each run.
        log_loss_n: ln L of each run.
    """

    family: str
    answers: Answers
    noise_k: Floats
    cut_flops_k: Floats
    flops_n: Floats
    log_loss_n: Floats


def evidence_of(family: str, made: Extrapolation) -> Evidence:
    """Ask every cut of a table for every run."""
    runs = made.fits.table
    return Evidence(
        family=family,
        answers=made.fits.ask(runs.params, runs.tokens, runs.flops),
        noise_k=made.fits.noise_k,
        cut_flops_k=made.fits.cut_flops_k,
        flops_n=runs.flops,
        log_loss_n=np.log(runs.loss),
    )


def learn(evidence: Sequence[Evidence]) -> Inflation:
    """Choose the constants under which the hidden runs are most likely.

    Args:
        evidence: tables of at least two families.

    Returns:
        The constants.

    Raises:
        FitError: fewer than two families: one says nothing of how the next will differ.
    """
    families = {each.family for each in evidence}
    if len(families) < 2:
        raise FitError(f"{len(families)} families of tables cannot teach how tables differ; give two or more")

    def surprise(log_constants: Floats) -> float:
        inside = np.clip(log_constants, _BOX[:, 0], _BOX[:, 1])
        outside = float(np.abs(log_constants - inside).sum())
        return outside - float(np.mean(list(family_scores(evidence, _inflation(inside)).values())))

    start = np.log([_START.floor, _START.of_drop, _START.of_spread, _START.freedom])
    options = {"maxiter": _MOST_STEPS, "xatol": 0.02, "fatol": 1e-4}
    found = _minimise(surprise, start, method="Nelder-Mead", options=options)
    return _inflation(np.clip(np.asarray(found.x, dtype=np.float64), _BOX[:, 0], _BOX[:, 1]))


def family_scores(evidence: Sequence[Evidence], inflation: Inflation) -> Mapping[str, float]:
    """Return the mean log density of the hidden runs of each family."""
    scores: dict[str, list[float]] = {}
    for each in evidence:
        score = _score(each, inflation)
        if score is not None:
            scores.setdefault(each.family, []).append(score)
    return {family: float(np.mean(values)) for family, values in scores.items()}


def _score(evidence: Evidence, inflation: Inflation) -> float | None:
    answers = evidence.answers
    own = own_errors(inflation, answers, evidence.noise_k, evidence.cut_flops_k, evidence.flops_n, evidence.log_loss_n)
    noise = np.broadcast_to(evidence.noise_k[:, None], answers.drop.shape)
    scale = inflation.scale(answers.drop, answers.spread, noise) * own.ratio_k[:, None]
    density = _log_student(answers.point - evidence.log_loss_n, scale, np.asarray(inflation.freedom))
    votes: list[float] = []
    for low, high in DECADE_RANGES:
        hidden = (answers.decades >= low) & (answers.decades < high)
        counts = hidden.sum(1)
        sums = (density * hidden).sum(1)
        votes.extend((sums[counts > 0] / counts[counts > 0]).tolist())
    return float(np.mean(votes)) if votes else None


def _log_student(error: Floats, scale: Floats, freedom: Floats) -> Floats:
    constant = gammaln((freedom + 1) / 2) - gammaln(freedom / 2) - 0.5 * np.log(freedom * np.pi)
    return np.asarray(constant - np.log(scale) - (freedom + 1) / 2 * np.log1p((error / scale) ** 2 / freedom))


def _inflation(log_constants: Floats) -> Inflation:
    floor, of_drop, of_spread, freedom = np.exp(log_constants).tolist()
    return Inflation(floor=floor, of_drop=of_drop, of_spread=of_spread, freedom=freedom)
