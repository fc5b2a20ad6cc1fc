"""The parametric fit of any form with its intervals and its resamples, in one shape for all forms.

Every form can be written as E + (A / N^alpha + B / D^beta)^kappa, so that a resample of any is a row of six constants:
E, A, B, alpha, beta, kappa. Symbols: K resamples, n runs. It reads no file and draws nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from chinchilla_lm.core.errors import FitError
from chinchilla_lm.laws.findings.request import FitRequest
from chinchilla_lm.laws.fitting.additive import INTERVAL_LEVEL, Fit, Interval, fit_additive
from chinchilla_lm.laws.fitting.covariance import spread_of
from chinchilla_lm.laws.fitting.form_fits import FittedForm, FormFit, FormOptions, fit_form, law_of
from chinchilla_lm.laws.fitting.intervals import fitted_problem, parameter_intervals
from chinchilla_lm.laws.fitting.quantities import name_quantities
from chinchilla_lm.laws.fitting.resampling import Resampling, Scheme, draw_refits
from chinchilla_lm.laws.fitting.solver import natural_constants
from chinchilla_lm.laws.forms.law import Floats
from chinchilla_lm.laws.forms.record import LossForm
from chinchilla_lm.laws.forms.repetition import RepetitionLaw
from chinchilla_lm.laws.table import RunTable
from chinchilla_lm.laws.trust.groups import Labels, size_groups

# Cells (draws times runs) refitted at once: 8 MB a column, and a dozen columns live at a time.
_CELLS_AT_ONCE = 1_000_000
# In all: 4,000 draws of 1,000 runs, about four seconds of one core; larger tables get fewer draws, and are told.
_MOST_CELLS = 4_000_000
_FEWEST_DRAWS = 40
FLOPS_PER_PARAM_TOKEN = 6.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Fitted:
    """A law of any form, how it was found, and how sure it is.

    Attributes:
        law: the constants.
        fit: status, objective and residuals; of the additive form a `Fit`, else a `FormFit`.
        interval_method: of the intervals.
        intervals: 95 %, of every constant, a and b.
        optima: by compute, 95 % intervals of params, tokens and loss there; empty without resamples or profile.
        draws_k6: resamples as rows of six constants, shape (K, 6); K may be 0.
        warnings: of the fit and its intervals, one sentence each.
    """

    law: LossForm
    fit: Fit | FormFit
    interval_method: str
    intervals: Mapping[str, Interval]
    optima: Mapping[float, Mapping[str, Interval]]
    draws_k6: Floats
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields of law.json (schema law/1) that a fit knows."""
        names = ("status", "objective", "n_runs", "delta", "noise_sd")
        return {
            "schema": "law/1",
            **self.law.to_dict(),
            "a": exponent_of_size(self.law),
            "b": 1 - exponent_of_size(self.law),
            **{name: getattr(self.fit, name) for name in names},
            "interval_level": INTERVAL_LEVEL,
            "interval_method": self.interval_method,
            "intervals": {name: interval.to_dict() for name, interval in self.intervals.items()},
            "hash": self.law.hash(),
        }

    def optimal_losses(self, flops: Floats) -> Floats:
        """Return ln L at the best size of each compute by each resample, shape (K, m)."""
        E, A, B, alpha, beta, kappa = (column[:, None] for column in self.draws_k6.T)  # noqa: N806 - the paper's letters
        size_log, tokens_log = self._optima(flops)
        inner = np.logaddexp(np.log(A) - alpha * size_log, np.log(B) - beta * tokens_log)
        return np.log(E + np.exp(kappa * inner))

    def _optima(self, flops: Floats) -> tuple[Floats, Floats]:
        _, A, B, alpha, beta, _ = (column[:, None] for column in self.draws_k6.T)  # noqa: N806
        product = np.log(flops / FLOPS_PER_PARAM_TOKEN)[None, :]
        log_params = (np.log(alpha * A) - np.log(beta * B) + beta * product) / (alpha + beta)
        return log_params, product - log_params

    def optima_of_draws(self, flops: float) -> dict[str, Interval]:
        """Return the 95 % range of N*, D* and L* over the resamples; empty without any."""
        if len(self.draws_k6) < 2:
            return {}
        at = np.array([flops])
        log_params, log_tokens = self._optima(at)
        columns = {"params": log_params, "tokens": log_tokens, "loss": self.optimal_losses(at)}
        return {name: _range_of(np.exp(values[:, 0])) for name, values in columns.items()}


def exponent_of_size(law: LossForm) -> float:
    """Return a of any form: N* grows as C^a (for repetition, on fresh text)."""
    return law.fresh.a if isinstance(law, RepetitionLaw) else law.a


def fit_law(table: RunTable, form: FittedForm, request: FitRequest, budgets: tuple[float, ...]) -> Fitted:
    """Fit a form, with intervals.

    Args:
        table: the runs.
        form: which.
        request: how.
        budgets: computes whose optimum is asked for with an interval.

    Returns:
        The fit.

    Raises:
        FitError: runs that cannot be fitted, or intervals that cannot be made.
    """
    _check_design(table)
    draws, notes = _affordable_draws(request.bootstrap, len(table.loss))
    if form == "additive":
        return _fit_additive(table, request, budgets, draws, notes)
    return _fit_other(table, form, request, budgets, draws, notes)


def additive_fit(table: RunTable, request: FitRequest) -> Fit:
    """Fit the additive form, its law in the request's convention."""
    found = fit_additive(table.params, table.tokens, table.loss, delta=request.huber_delta, prior=request.prior)
    return replace(found, law=replace(found.law, params_convention=request.params_convention))


def clusters_of(table: RunTable, request: FitRequest) -> Labels | None:
    """Return the group of each run whose errors go together, or None where each stands alone.

    Raises:
        FitError: groups by name, and a table without names.
    """
    by = request.cluster
    if by is None and request.interval_method == "cluster":
        shares_names = table.labels is not None and len(set(table.labels)) < len(table.labels)
        by = "run" if shares_names else "params"
    if by is None:
        return None
    if by == "params":
        return size_groups(table.params)
    if table.labels is None:
        raise FitError("--cluster run needs a column of names; name it with --run-column, or use --cluster params")
    return np.unique(np.array(table.labels), return_inverse=True)[1].astype(np.int64)


def _fit_additive(
    table: RunTable, request: FitRequest, budgets: tuple[float, ...], draws: int, notes: list[str]
) -> Fitted:
    found = additive_fit(table, request)
    method = request.interval_method
    scheme: Scheme = "pairs" if method in ("profile", "delta") else method
    clusters = clusters_of(table, request)
    theta_k5 = _draw_in_parts(table, found, scheme, draws, clusters, request.seed)
    constants = natural_constants(theta_k5, table.params, table.tokens) if draws else np.zeros((0, 5))
    warnings = [*notes, *found.warnings]
    if method in ("profile", "delta"):
        made = parameter_intervals(table, found, method=method, level=INTERVAL_LEVEL, target_flops=budgets)
        ranges, label = made.ranges, method
        warnings += [text for text in made.warnings if text not in warnings]
    else:
        asked = name_quantities(table.params, table.tokens, budgets)
        values = asked.natural(asked.values(theta_k5))
        ranges = {name: _range_of(values[:, place]) for place, name in enumerate(asked.names)}
        label = f"{method} bootstrap"
    optima = {
        flops: {what: ranges[f"{what}@{flops:.6g}"] for what in ("params", "tokens", "loss")} for flops in budgets
    }
    return Fitted(
        law=found.law,
        fit=found,
        interval_method=label,
        intervals={name: interval for name, interval in ranges.items() if "@" not in name},
        optima=optima,
        draws_k6=np.column_stack([constants, np.ones(len(constants))]),
        warnings=tuple(warnings),
    )


def _draw_in_parts(table: RunTable, fit: Fit, scheme: Scheme, draws: int, clusters: Labels | None, seed: int) -> Floats:
    """Refit resamples, so many at a time that their tables fit into memory; return theta, shape (K, 5)."""
    if not draws:
        return np.zeros((0, 5))
    theta, problem = fitted_problem(table, fit)
    spread = spread_of(theta[None], problem)
    at_once = max(2, _CELLS_AT_ONCE // len(table.loss))
    labels = None if clusters is None else clusters.tolist()
    parts: list[Floats] = []
    left = draws
    while left > 0:
        count = left if left <= at_once + 1 else at_once  # never a part of one, which is no resampling
        resampling = Resampling(scheme=scheme, draws=max(count, 2), seed=seed + len(parts), clusters=labels)
        parts.append(draw_refits(theta, problem, spread, resampling).theta_k5[:count])
        left -= count
    return np.concatenate(parts)


def _fit_other(
    table: RunTable,
    form: FittedForm,
    request: FitRequest,
    budgets: tuple[float, ...],
    draws: int,
    notes: list[str],
) -> Fitted:
    if form == "repetition" and table.unique_tokens is None:
        raise FitError(
            "--form repetition needs the distinct tokens of each run; name their column with --unique-tokens-column"
        )
    options = FormOptions(params_convention=request.params_convention)
    unique = table.unique_tokens if form == "repetition" else None
    found = fit_form(
        form,
        table.params,
        table.tokens,
        table.loss,
        unique_tokens=unique,
        delta=request.huber_delta,
        options=options,
    )
    free_kp = _resample_form(found, table, request, draws)
    rows = found.model.constants(free_kp)
    names = ("E", "A", "B", "alpha", "beta")
    kappa = rows["kappa"] if form in ("coupled", "kaplan") else np.ones(len(free_kp))
    laws = [law_of(form, found.model, free, request.params_convention) for free in free_kp]
    made = Fitted(
        law=found.law,
        fit=found,
        interval_method=f"{request.interval_method} bootstrap" if draws else "none",
        intervals=_ranges_of_laws(laws),
        optima={},
        draws_k6=np.column_stack([*(rows[name] for name in names), kappa]),
        warnings=(*notes, *found.warnings),
    )
    return replace(made, optima={flops: made.optima_of_draws(flops) for flops in budgets})


def _resample_form(found: FormFit, table: RunTable, request: FitRequest, draws: int) -> Floats:
    count = len(table.loss)
    groups = clusters_of(table, request)
    if groups is None:
        groups = np.arange(count, dtype=np.int64)
    n_groups = int(groups.max()) + 1
    rng = np.random.default_rng(request.seed)
    at_once = max(1, _CELLS_AT_ONCE // count)
    parts: list[Floats] = [np.zeros((0, found.n_free))]
    for start in range(0, draws, at_once):
        chosen = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=min(at_once, draws - start))
        parts.append(found.refit(chosen[:, groups].astype(np.float64)))
    return np.concatenate(parts)


def _ranges_of_laws(laws: list[LossForm]) -> dict[str, Interval]:
    """Return the 95 % range of every constant of the laws, and of a and b."""
    if len(laws) < 2:
        return {}
    rows = [
        {
            **{name: value for name, value in law.to_dict().items() if isinstance(value, float)},
            "a": exponent_of_size(law),
            "b": 1 - exponent_of_size(law),
        }
        for law in laws
    ]
    return {name: _range_of(np.array([row[name] for row in rows])) for name in rows[0]}


def _range_of(values: Floats) -> Interval:
    tail = (1 - INTERVAL_LEVEL) / 2
    kept = values[np.isfinite(values)]
    low, high = np.quantile(kept, [tail, 1 - tail])
    return Interval(low=float(low), high=float(high), se=float(kept.std(ddof=1)))


def _check_design(table: RunTable) -> None:
    """Refuse runs among which a size or a number of tokens never changes."""
    for name, other in (("params", "sizes"), ("tokens", "lengths")):
        column: Floats = getattr(table, name)
        if len(column) > 1 and float(np.ptp(column)) == 0:
            raise FitError(
                f"all {len(column)} runs have {column[0]:.4g} {name}, so that nothing is known of its exponent; "
                f"add runs of other {other}"
            )


def _affordable_draws(asked: int, n_runs: int) -> tuple[int, list[str]]:
    """Return how many resamples a table of this length gets, and what to say where they are fewer than asked."""
    most = max(_FEWEST_DRAWS, math.floor(_MOST_CELLS / n_runs))
    if asked <= most:
        return asked, []
    return most, [
        f"{most} resamples instead of {asked}: {n_runs} runs make each of them long; "
        "fit fewer runs (--where, --checkpoints final) for more"
    ]
