"""Two recipes' best losses against compute, L*(C) = E + K C^-g, with draws of what their runs leave possible.

Symbols: N `params`, D `tokens`, C `flops` (6 N D; for lines the tables' own), L `loss`; recipes A and B;
m(C) = exp(mu + tau ln(C/C0)) is how much more compute A needs than B.
Draws are rows; row 0 is the fit itself. Three ways to a frontier:
- "laws": an additive law for each recipe, C split best, pairs or cluster bootstrap;
- "shared": one law, which B's runs enter with sqrt(m) times the size and sqrt(m) times the tokens, so that
  L*_B(C) = L*_A(m C) exactly; sandwich covariance. Fewer constants for few runs;
- "lines": ln L against ln C for runs that each are their compute's best; one slope or two.
Runs that correspond (same size and length, or same size where checkpoints are one cluster) are drawn together, since
what they share cancels in a comparison. It refuses nothing but runs too few to fit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType] - no stubs

from chinchilla_lm.core.errors import FitError
from chinchilla_lm.laws.fitting.additive import Prior, fit_additive, with_prior
from chinchilla_lm.laws.fitting.noise import scaled_delta
from chinchilla_lm.laws.fitting.solver import centred_problem, centred_theta, natural_constants, refit
from chinchilla_lm.laws.forms.law import Floats
from chinchilla_lm.laws.table import RunTable

FEWEST_RUNS = {"laws": 6, "shared": 4, "lines": 3}
_FEW_RUNS = 12  # below it the exponents of a law need a prior
_NEVER = -30.0  # ln m of a recipe that never reaches the loss: 1e13 times the compute stands for endless
_FLATTEST = 0.02  # exponents drawn below it are held there; no published one is
_SAME = 0.005  # sizes and lengths within .5 % are the same


@dataclass(frozen=True, kw_only=True)
class Frontiers:
    """L*(C) = E + K C^-g of both recipes.

    Attributes:
        a_k3: (E, K, g) of each draw for recipe A; row 0 is the fit.
        b_k3: the same for B, drawn together.
        freedom: degrees of freedom behind the spread of the draws.
    """

    a_k3: Floats
    b_k3: Floats
    freedom: float

    def losses(self, log_flops: Floats) -> Floats:
        """Return L*_A of each draw at each ln C, (K, points)."""
        E, K, g = (column[:, None] for column in self.a_k3.T)  # noqa: N806 - the papers' letters
        return E + K * np.exp(-g * log_flops)

    def log_multiplier(self, log_flops: Floats) -> Floats:
        """Return ln m of each draw at each ln C of A, (K, points); `_NEVER` where B never gets there."""
        E, K, g = (column[:, None] for column in self.b_k3.T)  # noqa: N806 - the papers' letters
        above = self.losses(log_flops) - E
        needed = -np.log(np.maximum(above, 1e-300) / K) / g
        return np.maximum(np.where(above > 0, log_flops - needed, _NEVER), _NEVER)


def shared_groups(
    a: RunTable, b: RunTable, *, is_clustered: bool
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], bool]:
    """Number what is drawn together in each table.

    Args:
        a: runs of recipe A.
        b: runs of recipe B.
        is_clustered: runs of one size are one group (checkpoints), else each (N, D) is.

    Returns:
        Groups of A's runs, of B's runs, and whether both tables hold the same groups, numbered alike.
    """
    keys_a, keys_b = (_keys(table, is_clustered) for table in (a, b))
    both = sorted(set(keys_a) | set(keys_b))
    place = {key: index for index, key in enumerate(both)}
    groups_a = np.array([place[key] for key in keys_a], dtype=np.intp)
    groups_b = np.array([place[key] for key in keys_b], dtype=np.intp)
    is_paired = set(keys_a) == set(keys_b)
    if not is_paired:
        groups_b = groups_b + len(both)
    return groups_a, groups_b, is_paired


def _keys(table: RunTable, is_clustered: bool) -> list[tuple[int, ...]]:
    def rounded(column: Floats) -> list[int]:
        return np.rint(np.log(column) / (2 * _SAME)).astype(int).tolist()

    if is_clustered:
        return [(size,) for size in rounded(table.params)]
    return list(zip(rounded(table.params), rounded(table.tokens), strict=True))


def law_frontiers(
    a: RunTable, b: RunTable, groups: tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]], *, draws: int, seed: int
) -> Frontiers:
    """Fit an additive law to each recipe and bootstrap both together.

    Args:
        a: runs of recipe A.
        b: runs of recipe B.
        groups: from `shared_groups`.
        draws: of the bootstrap, > 0.
        seed: of the draws.

    Returns:
        The frontiers.

    Raises:
        FitError: fewer than six runs of a recipe.
    """
    _require_runs(a, b, "laws")
    labels = np.unique(np.concatenate(groups))
    counts = np.random.default_rng(seed).multinomial(len(labels), np.full(len(labels), 1 / len(labels)), size=draws)
    if not np.intersect1d(*groups).size:  # nothing in common: each recipe keeps its own number of groups
        counts = np.column_stack([_own_draws(group, draws, seed + index) for index, group in enumerate(groups)])
    found: list[Floats] = []
    for table, group in zip((a, b), groups, strict=True):
        found.append(_one_recipe(table, counts[:, np.searchsorted(labels, group)].astype(np.float64)))
    freedom = min(len(np.unique(group)) for group in groups) - 5.0
    return Frontiers(a_k3=found[0], b_k3=found[1], freedom=max(freedom, 1.0))


def _own_draws(group: npt.NDArray[np.intp], draws: int, seed: int) -> npt.NDArray[np.int64]:
    count = len(np.unique(group))
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)


def _one_recipe(table: RunTable, weight_kn: Floats) -> Floats:
    """Return (E, K, g) of the fit and of each resample."""
    prior = Prior() if len(table.loss) < _FEW_RUNS else None
    fitted = fit_additive(table.params, table.tokens, table.loss, prior=prior)
    problem = centred_problem(table.params, table.tokens, table.loss, delta=fitted.delta)
    # A resample may hold two sizes only: a loose prior keeps it from running off.
    problem = with_prior(problem, Prior(noise_sd=max(fitted.noise_sd, 1e-4)))
    theta = refit(centred_theta(fitted.law, table.params, table.tokens), problem, weight_kn=weight_kn)
    law = fitted.law
    first = np.array([[law.E, law.A, law.B, law.alpha, law.beta]])
    return _frontier_of(np.concatenate([first, natural_constants(theta, table.params, table.tokens)]))


def _frontier_of(constants_k5: Floats) -> Floats:
    """Turn (E, A, B, alpha, beta) into (E, K, g): what C = 6 N D, split best, reaches (Hoffmann et al. 2022, eq. 4)."""
    E, A, B, alpha, beta = constants_k5.T  # noqa: N806 - the papers' letters
    log_g = np.log(alpha * A / (beta * B)) / (alpha + beta)
    slope = alpha * beta / (alpha + beta)
    scale = A * np.exp(-alpha * log_g) + B * np.exp(beta * log_g)
    return np.column_stack([E, scale * 6.0**slope, slope])


def shared_frontiers(
    a: RunTable,
    b: RunTable,
    groups: tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]],
    *,
    draws: int,
    seed: int,
) -> Frontiers:
    """Fit one law and a multiplier that is a power of compute, with a sandwich covariance over the groups.

    Args:
        a: runs of recipe A.
        b: runs of recipe B.
        groups: from `shared_groups`; numbers in common are one cluster.
        draws: from the covariance, > 0.
        seed: of the draws.

    Returns:
        The frontiers.

    Raises:
        FitError: fewer than four runs of a recipe.
    """
    _require_runs(a, b, "shared")
    joint = _Joint.of(a, b)
    start = np.append(
        centred_theta(fit_additive(*joint.columns(), prior=Prior()).law, *joint.columns()[:2]), [0.0, 0.0]
    )
    first = joint.solved(start)
    turn = scaled_delta(joint.residuals(first)[: joint.count], n_constants=7)
    theta = joint.solved(first, turn)
    covariance, n_groups = joint.sandwich(theta, turn, np.concatenate(groups))
    freedom = n_groups - 1.0  # as is usual with cluster-robust errors; the leverages undo what the fit takes
    rng = np.random.default_rng(seed)
    spread = rng.multivariate_normal(np.zeros(7), covariance, size=draws, method="eigh")
    theta_k7 = np.concatenate([theta[None], theta + spread])
    theta_k7[1:, 3:5] = np.maximum(theta_k7[1:, 3:5], _FLATTEST)
    constants = natural_constants(theta_k7[:, :5], *joint.columns()[:2])
    frontier = _frontier_of(constants)
    mu, tau = theta_k7[:, 5], np.maximum(theta_k7[:, 6], -0.9)  # a decade of A is at least a tenth of B's
    E, K, g = frontier.T  # noqa: N806 - the papers' letters
    other = np.column_stack([E, K * np.exp(-g * (mu - tau * joint.log_flops_mean)), g * (1 + tau)])
    return Frontiers(a_k3=frontier, b_k3=other, freedom=freedom)


@dataclass(frozen=True, kw_only=True)
class _Joint:
    """Both recipes' runs in centred logs: theta = (a, b, e, alpha, beta, mu, tau), and a weak prior as residuals."""

    x: Floats
    y: Floats
    log_loss: Floats
    is_b: Floats
    log_params_mean: float
    log_tokens_mean: float
    log_flops_mean: float

    @classmethod
    def of(cls, a: RunTable, b: RunTable) -> _Joint:
        x, y = (np.log(np.concatenate(pair)) for pair in ((a.params, b.params), (a.tokens, b.tokens)))
        return cls(
            x=x - x.mean(),
            y=y - y.mean(),
            log_loss=np.log(np.concatenate([a.loss, b.loss])),
            is_b=np.repeat([0.0, 1.0], [len(a.loss), len(b.loss)]),
            log_params_mean=float(x.mean()),
            log_tokens_mean=float(y.mean()),
            log_flops_mean=float(x.mean() + y.mean()) + math.log(6),
        )

    @property
    def count(self) -> int:
        return len(self.x)

    def columns(self) -> tuple[Floats, Floats, Floats]:
        return np.exp(self.x + self.log_params_mean), np.exp(self.y + self.log_tokens_mean), np.exp(self.log_loss)

    def solved(self, start: Floats, turn: float | None = None) -> Floats:
        """Return theta of least squares, or of Huber's loss where `turn` says from where it is straight."""
        solve: Any = least_squares  # pyright: ignore[reportUnknownVariableType] - scipy has no stubs
        found = solve(
            self.residuals,
            start,
            jac=self.jacobian,
            x_scale="jac",
            loss="linear" if turn is None else "huber",
            f_scale=1.0 if turn is None else turn,
        )
        return np.asarray(found.x, dtype=np.float64)

    def residuals(self, theta: Floats) -> Floats:
        total, _, _, _ = self._terms(theta)
        prior = _PRIOR_WEIGHT * (theta - _PRIOR_MEAN)
        return np.append(np.log(total) - self.log_loss, prior)

    def jacobian(self, theta: Floats) -> Floats:
        total, size, text, half = self._terms(theta)
        size, text, floor = size / total, text / total, np.exp(theta[2]) / total
        pull = -0.5 * self.is_b * (theta[3] * size + theta[4] * text)
        reach = self.x + self.y
        rows = np.column_stack(
            [size, text, floor, -size * (self.x + half), -text * (self.y + half), pull, pull * reach]
        )
        return np.concatenate([rows, np.diag(_PRIOR_WEIGHT)])

    def _terms(self, theta: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        half = 0.5 * self.is_b * (theta[5] + theta[6] * (self.x + self.y))
        size = np.exp(theta[0] - theta[3] * (self.x + half))
        text = np.exp(theta[1] - theta[4] * (self.y + half))
        return size + text + math.exp(theta[2]), size, text, half

    def sandwich(self, theta: Floats, turn: float, groups: npt.NDArray[np.intp]) -> tuple[Floats, int]:
        """Return the cluster-robust covariance of theta (7, 7) and the number of clusters.

        Source: Liang and Zeger 1986; residuals over 1 - leverage as in HC3, MacKinnon and White 1985.
        """
        whole = self.jacobian(theta)
        bread = np.linalg.inv(whole.T @ whole)
        rows = whole[: self.count]
        leverage = np.clip(((rows @ bread) * rows).sum(1), 0.0, 0.95)
        pulled = np.clip(self.residuals(theta)[: self.count], -turn, turn) / (1 - leverage)
        labels, place = np.unique(groups, return_inverse=True)
        scores = np.zeros((len(labels), 7))
        np.add.at(scores, place, rows * pulled[:, None])
        return bread @ (scores.T @ scores) @ bread, len(labels)


# A weak prior in units of a residual of .3 %: exponents .35 +- .15, terms and floor free, multiplier within e^3, and a
# trend of a factor 10^.3 a decade.
_PRIOR_MEAN = np.array([0.0, 0.0, 0.0, 0.35, 0.35, 0.0, 0.0])
_PRIOR_WEIGHT = 0.003 / np.array([30.0, 30.0, 30.0, 0.15, 0.15, 3.0, 0.3])


def line_frontiers(a: RunTable, b: RunTable, *, draws: int, seed: int, is_slope_shared: bool = True) -> Frontiers:
    """Fit ln L = level - slope ln C to each recipe by least squares, and draw from its t posterior.

    Args:
        a: runs of recipe A, each the best of its compute.
        b: runs of recipe B.
        draws: > 0.
        seed: of the draws.
        is_slope_shared: one slope for both, which makes the multiplier constant.

    Returns:
        The frontiers, with E = 0.

    Raises:
        FitError: fewer than three runs of a recipe, or all of one compute.
    """
    _require_runs(a, b, "lines")
    x = np.log(np.concatenate([a.flops, b.flops]))
    y = np.log(np.concatenate([a.loss, b.loss]))
    is_b = np.repeat([0.0, 1.0], [len(a.loss), len(b.loss)])
    centre = float(x.mean())
    columns = [1 - is_b, is_b, x - centre]
    if not is_slope_shared:
        columns = [1 - is_b, is_b, (x - centre) * (1 - is_b), (x - centre) * is_b]
    design = np.column_stack(columns)
    if np.linalg.matrix_rank(design) < design.shape[1]:
        raise FitError("the runs of a recipe all have one compute, which gives no line; add runs of another compute")
    inverse = np.linalg.inv(design.T @ design)
    found = inverse @ design.T @ y
    freedom = len(y) - design.shape[1]
    variance = float(((y - design @ found) ** 2).sum()) / freedom
    rng = np.random.default_rng(seed)
    spread = rng.multivariate_normal(np.zeros(len(found)), inverse * max(variance, 1e-12), size=draws, method="eigh")
    drawn = np.concatenate([found[None], found + spread])
    slope_a, slope_b = drawn[:, 2], drawn[:, -1]
    frontiers = [
        np.column_stack([np.zeros(len(drawn)), np.exp(level - slope * centre), np.maximum(-slope, 1e-6)])
        for level, slope in ((drawn[:, 0], slope_a), (drawn[:, 1], slope_b))
    ]
    return Frontiers(a_k3=frontiers[0], b_k3=frontiers[1], freedom=float(freedom))


def _require_runs(a: RunTable, b: RunTable, method: str) -> None:
    fewest = FEWEST_RUNS[method]
    for name, table in (("A", a), ("B", b)):
        if len(table.loss) < fewest:
            raise FitError(
                f"recipe {name} has {len(table.loss)} runs, and method {method!r} takes {fewest} or more; add runs"
            )
