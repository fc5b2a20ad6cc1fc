"""What the residuals still know: trends that the form leaves, noise that changes, runs that stand out.

A trend is looked for in what the form cannot take up: ln C, ln N and ln(D/N), each straight and bent, are stripped of
the law's own slopes first, so that a right form shows none however few its runs. P-values treat the runs of one size as
one observation, for their errors go together.

Symbols: n runs; r = ln L(observed) - ln L(law); J its slopes; G groups; N `params`, D `tokens`, C `flops`.
Source: Davidson and MacKinnon 1990 (artificial regression) for the test; Hotelling 1931 for its distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import fdtrc, stdtr  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType] - it has no stubs

from chinchilla_lm.laws.fitting.additive import Fit
from chinchilla_lm.laws.fitting.intervals import fitted_problem
from chinchilla_lm.laws.fitting.noise import robust_sd
from chinchilla_lm.laws.forms.law import Floats
from chinchilla_lm.laws.table import RunTable
from chinchilla_lm.laws.trust.groups import Labels, size_groups
from chinchilla_lm.laws.trust.robust import slopes_of

_FEWEST_GROUPS = 6  # below, the spread between groups says nothing and each run stands for itself
_OUTLYING = 4.5  # robust sds; one in 150,000 Gaussian runs
_DOUBT = 0.01  # a trend is said to be one below this chance
_NOISE_RATIO = 2.0  # noise that changes by less is left to the robust standard errors


@dataclass(frozen=True, kw_only=True)
class Trend:
    """What the residuals do along one axis.

    Attributes:
        axis: "C", "N" or "D/N".
        thirds_percent: mean r of the lowest, middle and highest third of the runs, in per cent; > 0 is worse than the
            law says. Outliers are clipped.
        p_value: chance of so much trend where the form holds.
    """

    axis: str
    thirds_percent: tuple[float, float, float]
    p_value: float


@dataclass(frozen=True, kw_only=True)
class Outlier:
    """A run that stands out.

    Attributes:
        name: "run 17" or "line 18".
        residual_percent: r in per cent; > 0 is worse than the law.
        sigmas: |r| in robust standard deviations.
    """

    name: str
    residual_percent: float
    sigmas: float


@dataclass(frozen=True, kw_only=True)
class Residuals:
    """What is left over.

    Attributes:
        noise_sd: robust sd of r.
        trends: along ln C, ln N and ln(D/N).
        n_groups: independent groups behind the p-values.
        noise_ratio: robust sd of the third of least compute over that of the third of most.
        noise_p_value: chance of so ordered a noise where it is everywhere the same (Spearman, |r| against C).
        outliers: most outlying first.
        warnings: what a reader must know, one sentence each.
    """

    noise_sd: float
    trends: tuple[Trend, ...]
    n_groups: int
    noise_ratio: float
    noise_p_value: float
    outliers: tuple[Outlier, ...]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        names = ("noise_sd", "n_groups", "noise_ratio", "noise_p_value")
        return {
            **{name: getattr(self, name) for name in names},
            "trends": [vars(trend) for trend in self.trends],
            "outliers": [vars(outlier) for outlier in self.outliers],
            "warnings": list(self.warnings),
        }


def examine_residuals(
    table: RunTable, fit: Fit, *, labels: Labels | None = None, lines: Sequence[int] | None = None
) -> Residuals:
    """Look for what the law left behind.

    Args:
        table: the runs that were fitted.
        fit: of `fit_additive` on them.
        labels: group of each run whose errors go together; None: runs of one size.
        lines: line of each run in its file, to name it by; None: runs are counted from 1.

    Returns:
        The residuals' report.
    """
    theta, problem = fitted_problem(table, fit)
    minus_r, slopes = slopes_of(theta, problem)
    residual = -minus_r
    groups = size_groups(table.params) if labels is None else labels
    if len(np.unique(groups)) < _FEWEST_GROUPS:
        groups = np.arange(len(residual))
    sd = robust_sd(residual)
    # Outliers are clipped as in the fit; the wider of delta and the noise keeps what a least-squares fit would see.
    clipped = np.clip(residual, -max(fit.delta, 2 * sd), max(fit.delta, 2 * sd))
    axes = {
        "C": np.log(table.flops),
        "N": np.log(table.params),
        "D/N": np.log(table.tokens / table.params),
    }
    trends = tuple(_trend(name, axis, clipped, slopes, groups) for name, axis in axes.items())
    ratio, chance = _noise_along(np.log(table.flops), residual)
    outliers = _outliers(residual, sd, lines)
    return Residuals(
        noise_sd=sd,
        trends=trends,
        n_groups=len(np.unique(groups)),
        noise_ratio=ratio,
        noise_p_value=chance,
        outliers=outliers,
        warnings=_warnings(trends, (ratio, chance), outliers),
    )


def _trend(name: str, axis: Floats, residual: Floats, slopes: Floats, groups: Labels) -> Trend:
    decades = (axis - axis.mean()) / np.log(10)
    thirds = [100 * float(residual[part].mean()) for part in np.array_split(np.argsort(axis, kind="stable"), 3)]
    columns = np.column_stack([decades, decades**2])
    inside, _, _, _ = np.linalg.lstsq(slopes, columns, rcond=None)
    outside = columns - slopes @ inside
    # What the law's own slopes take up to a thousandth is no trend that runs like these could show.
    is_hidden = (np.linalg.norm(outside, axis=0) < 1e-3 * np.linalg.norm(columns, axis=0)).any()
    place = np.unique(groups, return_inverse=True)[1]
    scores = np.zeros((int(place.max()) + 1, 2))
    np.add.at(scores, place, outside * residual[:, None])
    return Trend(
        axis=name,
        thirds_percent=(thirds[0], thirds[1], thirds[2]),
        p_value=1.0 if is_hidden else _hotelling(scores),
    )


def _hotelling(scores_gq: Floats) -> float:
    """Return the chance that G independent scores of mean zero lie so far from zero on average."""
    count, size = scores_gq.shape
    if count <= size + 1:
        return 1.0
    mean = scores_gq.mean(0)
    covariance = np.cov(scores_gq, rowvar=False)
    distance = count * float(mean @ np.linalg.pinv(covariance, hermitian=True) @ mean)
    return float(fdtrc(size, count - size, distance * (count - size) / (size * (count - 1))))  # pyright: ignore[reportUnknownArgumentType]


def _noise_along(log_flops: Floats, residual: Floats) -> tuple[float, float]:
    """Return the noise of the lowest third over that of the highest, and the chance of so ordered a noise."""
    order = np.argsort(log_flops)
    third = max(len(order) // 3, 1)
    low, high = (robust_sd(residual[part], 0) for part in (order[:third], order[-third:]))
    if third < _FEWEST_GROUPS or not low > 0 or not high > 0:
        return 1.0, 1.0
    return low / high, _spearman_chance(log_flops, np.abs(residual))


def _spearman_chance(first: Floats, second: Floats) -> float:
    """Return the two-sided chance of a rank correlation this strong between unrelated columns (t approximation)."""
    ranks = np.argsort(np.argsort(np.stack([first, second]), axis=1), axis=1)
    centred = ranks - ranks.mean(axis=1, keepdims=True)
    rho = float((centred[0] * centred[1]).sum() / (centred[0] ** 2).sum())
    rho = min(max(rho, -1 + 1e-12), 1 - 1e-12)
    degrees = len(first) - 2
    return float(2 * stdtr(degrees, -abs(rho) * (degrees / (1 - rho**2)) ** 0.5))  # pyright: ignore[reportUnknownArgumentType]


def _outliers(residual: Floats, sd: float, lines: Sequence[int] | None) -> tuple[Outlier, ...]:
    if not sd > 0:
        return ()
    sigmas = np.abs(residual) / sd
    places = [int(place) for place in np.argsort(-sigmas) if sigmas[place] > _OUTLYING]
    return tuple(
        Outlier(
            name=f"run {place + 1}" if lines is None else f"line {lines[place]}",
            residual_percent=100 * float(residual[place]),
            sigmas=float(sigmas[place]),
        )
        for place in places
    )


def _warnings(trends: tuple[Trend, ...], noise: tuple[float, float], outliers: tuple[Outlier, ...]) -> tuple[str, ...]:
    warnings: list[str] = []
    seen = [trend for trend in trends if trend.p_value < _DOUBT]
    if seen:
        one = max(seen, key=lambda trend: max(trend.thirds_percent) - min(trend.thirds_percent))
        warnings.append(
            f"the residuals still follow {one.axis} (p = {one.p_value:.1g}; its lowest, middle and highest thirds lie "
            f"{', '.join(f'{third:+.2f}' for third in one.thirds_percent)} % off), so the form does not hold over all "
            "runs; compare the coupled form, or fit the runs nearest to the target"
        )
    ratio, chance = noise
    if chance < _DOUBT and max(ratio, 1 / ratio) >= _NOISE_RATIO:
        where = "smallest" if ratio > 1 else "largest"
        warnings.append(
            f"the noise of the {where} runs is {max(ratio, 1 / ratio):.1f} times that of the others; take "
            "bootstrap or robust intervals, which do not suppose one noise"
        )
    if outliers:
        shown = ", ".join(f"{one.name} ({one.residual_percent:+.1f} %)" for one in outliers[:5])
        more = f" and {len(outliers) - 5} more" if len(outliers) > 5 else ""
        warnings.append(f"{shown}{more} lie far off the law; look whether they diverged, or were cut short")
    return tuple(warnings)
