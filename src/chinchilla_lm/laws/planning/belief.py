"""What is believed of the law before the next run: published laws, one given law, or a fit of the runs made.

It draws from a fit with a seed and never reads files.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from chinchilla_lm.core.errors import PlanError
from chinchilla_lm.laws.count import ParamsConvention
from chinchilla_lm.laws.fitting.additive import Prior, fit_additive, with_prior
from chinchilla_lm.laws.fitting.noise import robust_sd
from chinchilla_lm.laws.fitting.solver import centred_problem, centred_theta, natural_constants, refit
from chinchilla_lm.laws.forms.additive import AdditiveLaw
from chinchilla_lm.laws.forms.law import Floats
from chinchilla_lm.laws.planning.precision import Belief, Misfit
from chinchilla_lm.laws.published import PUBLISHED_LAWS

SEED_SD = 0.003  # of ln L between seeds, when runs cannot say: .2 to .5 % for tiny models (dev/LOG.md 2026-11-21)
LEAST_SD = 0.0005  # a fit of few runs may leave no residual; OLMo's reruns differ by .02 %
_DRAWS = 8
_FEW_RUNS = 12  # below it the exponents need a prior
_FEWEST_RUNS = 3


def published_belief(
    *, params_convention: ParamsConvention = "total", noise_sd: float = SEED_SD, misfit: Misfit | None = None
) -> Belief:
    """Take every published additive law of a convention as one draw.

    Args:
        params_convention: which weights N counts.
        noise_sd: of ln L between seeds, > 0.
        misfit: how wrong the form may be.

    Returns:
        The belief.

    Raises:
        PlanError: no published law counts so.
    """
    laws: list[AdditiveLaw] = []
    for row in PUBLISHED_LAWS.values():
        if isinstance(row.law, AdditiveLaw) and row.law.params_convention == params_convention:
            laws.append(row.law)
    if not laws:
        raise PlanError(
            f"no published law with a loss counts params as {params_convention!r}; count them as 'total', or give a law"
        )
    return Belief(laws=tuple(laws), noise_sd=noise_sd, misfit=misfit or Misfit(), source=f"{len(laws)} published laws")


def fitted_belief(  # noqa: PLR0913 - runs, and what the fit is to assume
    params: Floats,
    tokens: Floats,
    loss: Floats,
    *,
    params_convention: ParamsConvention = "total",
    noise_sd: float | None = None,
    misfit: Misfit | None = None,
    seed: int = 0,
) -> Belief:
    """Fit the runs made and draw laws that they leave possible (parametric bootstrap).

    Args:
        params: N of each run, > 0.
        tokens: D of each, > 0.
        loss: L of each, nats per token, > 0.
        params_convention: which weights N counts.
        noise_sd: of ln L between seeds; None takes the residuals' (from 12 runs up) or .3 %.
        misfit: how wrong the form may be.
        seed: of the draws.

    Returns:
        The fit and draws around it; published laws where there are fewer than three runs.

    Raises:
        FitError: runs that are no numbers.
    """
    count = len(params)
    if count < _FEWEST_RUNS:
        return published_belief(params_convention=params_convention, noise_sd=noise_sd or SEED_SD, misfit=misfit)
    prior = Prior() if count < _FEW_RUNS else None
    fitted = fit_additive(params, tokens, loss, prior=prior)
    spread = noise_sd or (SEED_SD if prior is not None else max(robust_sd(np.array(fitted.residuals)), LEAST_SD))
    expected = np.asarray(fitted.law.loss(params, tokens))
    rng = np.random.default_rng(seed)
    losses = expected * np.exp(spread * rng.standard_normal((_DRAWS - 1, count)))
    # A draw without any prior would run off where the runs are few.
    problem = with_prior(centred_problem(params, tokens, loss, delta=fitted.delta), prior or Prior(noise_sd=spread))
    theta = refit(centred_theta(fitted.law, params, tokens), problem, loss_kn=losses)
    laws = [replace(fitted.law, params_convention=params_convention)]
    for constants in natural_constants(theta, params, tokens).tolist():
        E, A, B, alpha, beta = constants  # noqa: N806 - the paper's letters
        laws.append(AdditiveLaw(E=E, A=A, B=B, alpha=alpha, beta=beta, params_convention=params_convention))
    source = f"a fit of {count} runs" + (" with a prior on the exponents" if prior is not None else "")
    return Belief(laws=tuple(laws), noise_sd=spread, misfit=misfit or Misfit(), source=source)
