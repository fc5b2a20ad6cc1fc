"""Runs -> law for every form: robust least squares of ln L from several starts, stopped by the gradient.

Forms: additive, coupled, kaplan, overtraining (Gadre's four constants) and repetition (the half-lives, with the law of
fresh text free or held); a line through finished optima is `allocation_fit`. `fitting.additive` is the reference for
the additive law (intervals, prior); here it is one of the family, so that forms compare like with like.

Symbols: n runs with N `params`, D `tokens`, U `unique_tokens`, L `loss` (nats per token); r = ln L(N, D) - ln L.
It refuses runs that are no numbers, and never reads files or draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, get_args

import numpy as np

from chinchilla_lm.core.errors import FitError
from chinchilla_lm.laws.count import ParamsConvention
from chinchilla_lm.laws.fitting.form_models import FormName, PowerModel, power_model
from chinchilla_lm.laws.fitting.form_solver import Ends, Misfit, descend, descend_resamples, information
from chinchilla_lm.laws.fitting.noise import huber, robust_sd, scaled_delta
from chinchilla_lm.laws.fitting.repetition_model import RepetitionModel, base_theta, repetition_model
from chinchilla_lm.laws.forms.additive import AdditiveLaw
from chinchilla_lm.laws.forms.coupled import CoupledLaw
from chinchilla_lm.laws.forms.kaplan import KaplanLaw
from chinchilla_lm.laws.forms.law import Floats
from chinchilla_lm.laws.forms.overtraining import OvertrainingLaw
from chinchilla_lm.laws.forms.record import LossForm
from chinchilla_lm.laws.forms.repetition import RepetitionLaw

FittedForm = Literal["additive", "coupled", "kaplan", "overtraining", "repetition"]
FormStatus = Literal["converged", "at_bound", "unidentified", "not_converged"]

_FIRST_DELTA = 0.02  # until the noise is known: twice the seed noise of tiny models, far below a diverged run's misfit
_NATS_PER_LOG = 3.0  # a loss is 2 to 4 nats, so delta in ln L times 3 serves in nats
_SINGULAR = 1e-6  # smallest eigenvalue of J^T J with unit diagonal; as in `fitting.additive`
_ALMOST_EQUAL = 0.01  # two minima whose objectives differ by less share the runs' favour


@dataclass(frozen=True, kw_only=True)
class FormOptions:
    """What is seldom asked of a fit.

    Attributes:
        weights: how much each run counts, >= 0, shape (n,); None: 1 each.
        priors: (mean, sd) of a Gaussian on a free parameter by its name (alpha, beta, kappa ...), as a log-posterior.
            Exponents are those of the terms in the loss: kappa times the coupled form's own alpha and beta.
        in_nats: minimise differences of the loss itself, as Gadre et al. do, not of its logarithm.
        base: the law of fresh text at which repetition's five first constants are held.
        params_convention: which weights N counts.
    """

    weights: Floats | None = None
    priors: Mapping[str, tuple[float, float]] = field(default_factory=lambda: MappingProxyType({}))
    in_nats: bool = False
    base: AdditiveLaw | None = None
    params_convention: ParamsConvention = "matmul"


@dataclass(frozen=True, kw_only=True, eq=False)
class FormFit:
    """A law of some form and how it was found.

    Attributes:
        form: its name.
        law: the constants.
        status: "converged"; "at_bound": a constant ended on the edge of the search; "unidentified": the runs allow a
            line of constants, or two far apart, almost equally; "not_converged": the search ended on a slope.
        objective: sum over runs of weight * Huber_delta(r), without the prior's share.
        gradient: largest absolute component of the gradient of what was minimised.
        n_runs: runs used.
        n_free: constants fitted.
        delta: of the Huber loss, in ln L (in nats with `in_nats`).
        noise_sd: robust standard deviation of the residuals in ln L, n - n_free degrees of freedom.
        residuals: ln L(observed) - ln L(law), in the order of the runs.
        warnings: what a reader must know, one sentence each.
        model: the form on these runs, for resampling.
        free: its free parameters at the end, shape (n_free,).
        misfit: what was minimised.
    """

    form: FittedForm
    law: LossForm
    status: FormStatus
    objective: float
    gradient: float
    n_runs: int
    n_free: int
    delta: float
    noise_sd: float
    residuals: tuple[float, ...]
    warnings: tuple[str, ...]
    model: PowerModel | RepetitionModel
    free: Floats
    misfit: Misfit

    def refit(self, weight_kn: Floats) -> Floats:
        """Fit K resamples of the runs from this fit; return their free parameters, shape (K, n_free).

        Args:
            weight_kn: how often each run counts in each resample, shape (K, n).
        """
        return descend_resamples(self.model, self.free, replace(self.misfit, weight_kn=weight_kn))

    def predict(self, free_kp: Floats, params: Floats, tokens: Floats, unique_tokens: Floats | None = None) -> Floats:
        """Return the losses of K parameter sets at m runs, nats per token, shape (K, m)."""
        if isinstance(self.model, RepetitionModel):
            model = self.model.at(params, tokens, tokens if unique_tokens is None else unique_tokens)
        else:
            model = self.model.at(params, tokens)
        return np.exp(model.log_loss(free_kp))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values, the law's constants among them."""
        names = ("status", "objective", "gradient", "n_runs", "n_free", "delta", "noise_sd")
        return {
            **self.law.to_dict(),
            **{name: getattr(self, name) for name in names},
            "warnings": list(self.warnings),
            "hash": self.law.hash(),
        }


def fit_form(
    form: FittedForm,
    params: Floats,
    tokens: Floats,
    loss: Floats,
    *,
    unique_tokens: Floats | None = None,
    delta: float | None = None,
    options: FormOptions | None = None,
) -> FormFit:
    """Fit one form to finished runs.

    Args:
        form: its name.
        params: N of each run, > 0, one convention throughout.
        tokens: D of each run, > 0, repeats included.
        loss: L of each run in nats per token, > 0.
        unique_tokens: U of each run, for repetition only.
        delta: where Huber turns from square to straight, in ln L (in nats with `options.in_nats`); 1e-3 is
            Hoffmann's, 1 least squares; None: 1.345 times the robust noise, from two rounds.
        options: what is seldom asked.

    Returns:
        The fit.

    Raises:
        FitError: an unknown form, runs that are no numbers, fewer runs than constants, or no `unique_tokens`.
    """
    options = options or FormOptions()
    columns = _checked(form, params, tokens, loss, unique_tokens)
    weights = _checked_weights(options.weights, len(columns[0]))
    log_loss = np.log(columns[2])
    model, starts = _model_with_starts(form, columns, weights, options)
    if int((weights > 0).sum()) < len(model.names) and not options.priors:
        raise FitError(
            f"{int((weights > 0).sum())} runs cannot determine the {len(model.names)} constants of form {form!r}; "
            "add runs or choose a form with fewer"
        )
    scale = _NATS_PER_LOG if options.in_nats else 1.0
    misfit = Misfit(
        log_loss_kn=log_loss,
        weight_kn=weights[None],
        delta=_FIRST_DELTA * scale if delta is None else delta,
        prior_mean=np.array([options.priors.get(name, (0.0, 0.0))[0] for name in model.names]),
        prior_precision=np.zeros(len(model.names)),
        in_nats=options.in_nats,
    )
    ends, misfit = _settle(model, starts, misfit, options.priors, scale=scale, is_fixed=delta is not None)
    return _record(form, model, ends, misfit, options)


def _settle(
    model: PowerModel | RepetitionModel,
    starts: Floats,
    misfit: Misfit,
    priors: Mapping[str, tuple[float, float]],
    *,
    scale: float,
    is_fixed: bool,
) -> tuple[Ends, Misfit]:
    """Minimise; then set delta (unless fixed) and the prior's weight by the noise left, in up to three rounds."""
    if not is_fixed and len(model.names) + 2 > misfit.log_loss_kn.shape[-1]:
        misfit, is_fixed = replace(misfit, delta=scale), True  # too few runs to know their noise: least squares
    ends = descend(model, starts, misfit)
    for _ in range(3):
        best = ends.best().free_kp
        residuals = _residuals_in(model, best, misfit)
        noise = robust_sd(residuals, len(model.names))
        delta = misfit.delta if is_fixed else scaled_delta(residuals, len(model.names))
        precision = np.array([(noise / priors[name][1]) ** 2 if name in priors else 0.0 for name in model.names])
        if math.isclose(delta, misfit.delta, rel_tol=0.02) and np.allclose(
            precision, misfit.prior_precision, rtol=0.02
        ):
            break
        misfit = replace(misfit, delta=delta, prior_precision=precision)
        ends = descend(model, ends.free_kp if isinstance(model, RepetitionModel) else best, misfit)
    return ends, misfit


def _residuals_in(model: PowerModel | RepetitionModel, free_kp: Floats, misfit: Misfit) -> Floats:
    """Return observed minus fitted of the runs that count, in the unit of the misfit."""
    log_fit = model.log_loss(free_kp)[0]
    counted = misfit.weight_kn[0] > 0
    if misfit.in_nats:
        return (np.exp(misfit.log_loss_kn) - np.exp(log_fit))[counted]
    return (misfit.log_loss_kn - log_fit)[counted]


def _record(
    form: FittedForm, model: PowerModel | RepetitionModel, ends: Ends, misfit: Misfit, options: FormOptions
) -> FormFit:
    best = ends.best()
    free = best.free_kp[0]
    residuals = misfit.log_loss_kn - model.log_loss(best.free_kp)[0]
    counted = misfit.weight_kn[0] > 0
    at_bound = tuple(name for name, is_held in zip(model.names, best.at_bound_kp[0], strict=True) if is_held)
    rival = _rival(model, ends)
    status = _status(model, best, misfit, bool(at_bound), rival)
    parts = huber(_residuals_in(model, best.free_kp, misfit), misfit.delta)
    return FormFit(
        form=form,
        law=law_of(form, model, free, options.params_convention),
        status=status,
        objective=float((misfit.weight_kn[0][counted] * parts).sum()),
        gradient=float(best.gradient_k[0]),
        n_runs=int(counted.sum()),
        n_free=len(free),
        delta=misfit.delta,
        noise_sd=robust_sd(residuals[counted], len(free)),
        residuals=tuple(map(float, residuals)),
        warnings=_warnings(form, status, at_bound, rival),
        model=model,
        free=free,
        misfit=misfit,
    )


def law_of(
    form: FittedForm, model: PowerModel | RepetitionModel, free: Floats, convention: ParamsConvention
) -> LossForm:
    """Turn free parameters, shape (p,), into the law that they describe."""
    constants = {name: float(values[0]) for name, values in model.constants(free[None]).items()}
    five = {name: constants[name] for name in ("E", "A", "B", "alpha", "beta")}
    if form == "repetition":
        lives = {name: constants[name] for name in ("repeated_tokens", "excess_params")}
        return RepetitionLaw(**five, **lives, params_convention=convention)
    if form == "coupled":
        return CoupledLaw(**five, kappa=constants["kappa"], params_convention=convention)
    if form == "kaplan":
        kappa, alpha = constants["kappa"], constants["alpha"]
        return KaplanLaw(
            alpha_N=alpha * kappa,
            alpha_D=kappa,
            N_c=constants["A"] ** (1 / alpha),
            D_c=constants["B"],
            params_convention=convention,
        )
    if form == "overtraining":
        scale = 6 ** (constants["alpha"] / 2)
        return OvertrainingLaw(
            E=constants["E"],
            size_scale=constants["A"] * scale,
            tokens_scale=constants["B"] * scale,
            eta=constants["alpha"] / 2,
            params_convention=convention,
        )
    return AdditiveLaw(**five, params_convention=convention)


def _model_with_starts(
    form: FittedForm, columns: tuple[Floats, Floats, Floats, Floats | None], weights: Floats, options: FormOptions
) -> tuple[PowerModel | RepetitionModel, Floats]:
    params, tokens, loss, unique = columns
    log_loss = np.log(loss)
    if form != "repetition":
        power = power_model(form, params, tokens, log_loss)
        return power, power.starts(log_loss, weights)
    assert unique is not None
    model = repetition_model(params, tokens, unique, log_loss, options.base)
    base = options.base
    if base is None:
        # Text seen less than twice is nearly fresh: its additive fit is where the search begins.
        is_fresh = tokens < 2 * unique
        chosen = is_fresh if int(is_fresh.sum()) >= 8 else np.ones(len(tokens), dtype=bool)
        start = fit_form("additive", params[chosen], tokens[chosen], loss[chosen]).law
        assert isinstance(start, AdditiveLaw)
        base = start
    return model, model.starts(base_theta(base, model.x_mean, model.y_mean), log_loss, weights)


def _status(
    model: PowerModel | RepetitionModel, best: Ends, misfit: Misfit, is_at_bound: bool, rival: str | None
) -> FormStatus:
    # Relative to the largest gradient that the objective can have: 1e-4 of it moves an exponent in the fourth digit.
    if best.gradient_k[0] > 1e-4 * misfit.delta * misfit.weight_kn.sum():
        return "not_converged"
    if is_at_bound:
        return "at_bound"
    matrix = information(model, best.free_kp, misfit)[0]
    scale = 1 / np.sqrt(np.maximum(np.diag(matrix), 1e-300))
    smallest = float(np.linalg.eigvalsh(matrix * scale[:, None] * scale[None, :])[0])
    return "unidentified" if smallest < _SINGULAR or rival is not None else "converged"


def _rival(model: PowerModel | RepetitionModel, ends: Ends) -> str | None:
    """Name the constants of another minimum that fits almost as well and lies far away; None where there is none."""
    best = ends.best()
    close = ends.objective_k <= best.objective_k[0] * (1 + _ALMOST_EQUAL)
    far = np.abs(ends.free_kp - best.free_kp).max(1) > 0.3
    others = np.flatnonzero(close & far)
    if not len(others) or not isinstance(model, RepetitionModel):  # the power family's valleys are one
        return None
    here, there = model.constants(best.free_kp), model.constants(ends.free_kp[others[:1]])
    return ", ".join(
        f"{name} {float(here[name][0]):.3g} or {float(there[name][0]):.3g}"
        for name in ("repeated_tokens", "excess_params")
    )


def _warnings(form: str, status: FormStatus, at_bound: tuple[str, ...], rival: str | None) -> tuple[str, ...]:
    warnings: list[str] = []
    if status == "not_converged":
        warnings.append(f"the {form} search ended on a slope; remove runs that diverged, or choose a simpler form")
    if at_bound:
        warnings.append(
            f"{', '.join(at_bound)} of the {form} form ended at the edge of the search: the runs do not bend that way; "
            "add runs of other sizes and lengths, or choose a simpler form"
        )
    if rival is not None:
        warnings.append(
            f"two sets of constants fit almost equally well ({rival}); add runs with other numbers of epochs, "
            "or hold one at its published value"
        )
    elif status == "unidentified":
        warnings.append(
            f"the runs do not determine the constants of the {form} form; vary params and tokens independently, "
            "or choose a simpler form"
        )
    return tuple(warnings)


def _checked(
    form: str, params: Floats, tokens: Floats, loss: Floats, unique_tokens: Floats | None
) -> tuple[Floats, Floats, Floats, Floats | None]:
    if form not in (*get_args(FormName), "repetition"):
        choices = ", ".join((*get_args(FormName), "repetition"))
        raise FitError(f"form {form!r} is unknown; choose from {choices}")
    if form == "repetition" and unique_tokens is None:
        raise FitError("form 'repetition' needs unique_tokens of each run; add that column or fit form 'additive'")
    columns: list[Floats] = []
    named = [("params", params), ("tokens", tokens), ("loss", loss)]
    if form == "repetition":
        assert unique_tokens is not None
        named.append(("unique_tokens", unique_tokens))
    for name, column in named:
        values = np.asarray(column, dtype=np.float64)
        if values.ndim != 1 or len(values) != len(np.asarray(params)):
            raise FitError(f"{name} has shape {values.shape}; all columns must be lists of one length")
        bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
        if len(bad):
            raise FitError(f"{name}={values[bad[0]]} of run {bad[0] + 1} must be finite and > 0; correct or remove it")
        columns.append(values)
    return columns[0], columns[1], columns[2], columns[3] if len(columns) == 4 else None


def _checked_weights(weights: Floats | None, count: int) -> Floats:
    if weights is None:
        return np.ones(count)
    values = np.asarray(weights, dtype=np.float64)
    if values.shape != (count,) or not np.isfinite(values).all() or (values < 0).any():
        raise FitError(f"weights of shape {values.shape} must be {count} finite numbers >= 0; give one for each run")
    return values
