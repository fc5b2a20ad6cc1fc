"""How precisely runs will determine a law's answers, before they are run: mean squared error of the refit, linearised.

Symbols: K laws drawn from what is believed, n runs, theta = (ln A', ln B', ln E, alpha, beta) with A', B' at the mean
of the candidates' logs; J = d ln L / d theta (K, n, 5); g = d(goal) / d theta (K, G, 5) for G goals.
With noise sd s the least-squares refit has covariance S = s^2 (J'J + prior)^-1. Where the form is wrong by modes F
(K, n, q) of unit size, the refit is off by S J'F / s^2 and the truth by f (K, G, q), so that
    mean squared error of a goal = g'S g + sum over modes (g'S J'F / s^2 - f)^2      (Box and Draper 1959).
Modes: terms that mix where the law adds, exponents that drift with scale, short runs and small models off the law, and
the noise that branches of one trunk share. Everything is divided by s here, so that s is 1 inside.
It refits nothing and never draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from chinchilla_lm.core.errors import PlanError
from chinchilla_lm.laws.forms.additive import AdditiveLaw
from chinchilla_lm.laws.forms.law import Floats, require_positive

Answer = Literal["size", "loss"]

# sd of theta before any run, in nats of the two terms and of the floor, and of the exponents as `fitting.Prior` has it.
# Loose: it only keeps the first few runs' matrices from being singular.
PRIOR_SD = (2.0, 2.0, 1.0, 0.15, 0.15)
_DECADE = float(np.log(10.0))
_STEP = 0.02  # of ln N, in the second difference of ln L along an IsoFLOP curve


@dataclass(frozen=True, kw_only=True)
class Misfit:
    """How wrong the additive form is expected to be: sds of five modes; all 0 trusts the form.

    Attributes:
        coupling: of ln k where the truth is E + (A N^-alpha/k + B D^-beta/k)^k.
        drift: of the change of alpha, and of beta, over a decade of N, and of D.
        small_scale: of the departure in ln L of the cheapest candidate, which fades as C^-1/2, and of the smallest,
            which fades as 1/N.

    The defaults are a judgement, set where bench/design.py gains on both sides: against trusting the form they cost
    half as much noise again in ln N*, and halve what k = .9 does to a loss forecast four decades ahead.
    """

    coupling: float = 0.06
    drift: float = 0.0075
    small_scale: float = 0.006

    def __post_init__(self) -> None:
        for name in ("coupling", "drift", "small_scale"):
            if not 0 <= getattr(self, name) < 1:
                raise PlanError(f"misfit {name}={getattr(self, name)!r} must be in [0, 1); 0 trusts the form")


@dataclass(frozen=True, kw_only=True)
class Belief:
    """What is known before the next run.

    Attributes:
        laws: one or more draws of the law, of one convention; they count alike.
        noise_sd: s, sd of ln L between two runs that differ in the seed alone, > 0.
        misfit: how wrong the form may be.
        source: where the laws are from, for people.
    """

    laws: tuple[AdditiveLaw, ...]
    noise_sd: float = 0.003
    misfit: Misfit = field(default_factory=Misfit)
    source: str = "given"

    def __post_init__(self) -> None:
        if not self.laws:
            raise PlanError("no law to design for; give one, or runs to fit")
        if not 0 < self.noise_sd <= 1:
            raise PlanError(f"noise_sd={self.noise_sd!r} must be in (0, 1], a part of the loss; .003 is common")
        if len({law.params_convention for law in self.laws}) > 1:
            raise PlanError("the laws count params differently; give laws of one convention")


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Runs, made or possible.

    Attributes:
        params: N of each of n runs, > 0.
        tokens: D of each, > 0.
        trunk: runs with an equal number branch off one trunk, (n,) integers.
    """

    params: Floats
    tokens: Floats
    trunk: npt.NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class Linearised:
    """Runs as the refit sees them.

    Attributes:
        jacobian_kn5: J / s.
        modes_kn5: F / s of the wrong form; the columns of F that follow are 0 but in the run's own trunk's.
        shared_n: F / s in that column.
        column_n: that column, counted from 0 behind the five.
        goals_kg5: g.
        goal_modes_kg5: f; 0 in the trunks' columns.
        n_trunks: columns behind the five.
        prior_55: inverse of the prior covariance of theta.
    """

    jacobian_kn5: Floats
    modes_kn5: Floats
    shared_n: Floats
    column_n: npt.NDArray[np.intp]
    n_trunks: int
    goals_kg5: Floats
    goal_modes_kg5: Floats
    prior_55: Floats

    def rows(self, index: Sequence[int]) -> Linearised:
        """Return some of the runs, repeats allowed."""
        picked = np.asarray(index, dtype=np.intp)
        return replace(
            self,
            jacobian_kn5=self.jacobian_kn5[:, picked],
            modes_kn5=self.modes_kn5[:, picked],
            shared_n=self.shared_n[picked],
            column_n=self.column_n[picked],
        )

    def first(self, count: int) -> Linearised:
        """Return the first runs, without a copy."""
        return replace(
            self,
            jacobian_kn5=self.jacobian_kn5[:, :count],
            modes_kn5=self.modes_kn5[:, :count],
            shared_n=self.shared_n[:count],
            column_n=self.column_n[:count],
        )

    def moment(self) -> Floats:
        """Return J'F, (K, 5, q)."""
        transposed_k5n = self.jacobian_kn5.swapaxes(1, 2)
        trunks_nq = self.shared_n[:, None] * (self.column_n[:, None] == np.arange(self.n_trunks))
        return np.concatenate([transposed_k5n @ self.modes_kn5, transposed_k5n @ trunks_nq], axis=-1)

    def along_modes(self, vectors_kvq: Floats) -> Floats:
        """Return F v' for vectors over the modes, (K, n, v)."""
        along = self.modes_kn5 @ vectors_kvq[..., :5].swapaxes(1, 2)
        if self.n_trunks:
            along = along + self.shared_n[:, None] * vectors_kvq[..., 5:][..., self.column_n].swapaxes(1, 2)
        return along


@dataclass(frozen=True, kw_only=True)
class Sums:
    """What runs sum to: `matrix_k55` = J'J + prior, `moment_k5q` = J'F; sums of two sets of runs add."""

    matrix_k55: Floats
    moment_k5q: Floats


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What the runs are to tell.

    Attributes:
        flops: the target's compute C, > 0.
        answers: of "size" (ln N*(C)) and "loss" (ln L at the target), each once; each weighs the same.
        target: (params, tokens) of a model whose loss is asked for; None asks for the best model of C.
    """

    flops: float
    answers: tuple[Answer, ...] = ("size", "loss")
    target: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        require_positive(self.flops, "target flops")
        for number in self.target or ():
            require_positive(number, "params and tokens of the target")
        if not self.answers or not set(self.answers) <= {"size", "loss"} or len(set(self.answers)) < len(self.answers):
            raise PlanError(f"answers={self.answers!r} must be of 'size' and 'loss', each once; both are common")


def linearise(belief: Belief, runs: Runs, *, goal: Goal, trunk_share: float = 0.0) -> Linearised:
    """Differentiate each law at each run, and each answer.

    Args:
        belief: the laws, the noise and how wrong the form may be.
        runs: n of them, made and possible ones together: their mean and their cheapest fix the coordinates.
        goal: the G answers.
        trunk_share: share of the noise variance that runs of one trunk have in common, in [0, 1).

    Returns:
        The derivatives, in units of s.
    """
    x, y = np.log(runs.params), np.log(runs.tokens)
    centre = (float(x.mean()), float(y.mean()), float(6 * (runs.params * runs.tokens).min()), float(x.min()))
    group = np.unique(runs.trunk, return_inverse=True)[1]
    is_shared = (np.bincount(group)[group] > 1) & (trunk_share > 0)
    own_n = belief.noise_sd * np.sqrt(np.where(is_shared, 1 - trunk_share, 1.0))
    groups = np.unique(group[is_shared])
    jacobian: list[Floats] = []
    modes: list[Floats] = []
    goals: list[Floats] = []
    goal_modes: list[Floats] = []
    for law in belief.laws:
        jacobian.append(_log_loss_gradient(law, x, y, centre) / own_n[:, None])
        modes.append(_modes(law, x, y, centre, belief.misfit) / own_n[:, None])
        direction, mode = _goals(law, goal, centre, belief.misfit)
        goals.append(direction)
        goal_modes.append(mode)
    return Linearised(
        jacobian_kn5=np.stack(jacobian),
        modes_kn5=np.stack(modes),
        shared_n=np.where(is_shared, np.sqrt(trunk_share) * belief.noise_sd, 0.0) / own_n,
        # A run that shares nothing points at the first column, times 0.
        column_n=np.where(is_shared, np.searchsorted(groups, group), 0),
        n_trunks=len(groups),
        goals_kg5=np.stack(goals),
        goal_modes_kg5=np.stack(goal_modes),
        prior_55=np.diag(1 / np.array(PRIOR_SD) ** 2),
    )


def sums_of(runs: Linearised) -> Sums:
    """Return J'J + prior and J'F of all runs."""
    matrix = runs.jacobian_kn5.swapaxes(1, 2) @ runs.jacobian_kn5
    return Sums(matrix_k55=matrix + runs.prior_55, moment_k5q=runs.moment())


def squared_errors(runs: Linearised, sums: Sums) -> tuple[Floats, Floats]:
    """Return the part of each goal's mean squared error that is noise (trunks' included) and that is misfit, (K, G).

    Args:
        runs: where the goals stand.
        sums: of the runs that are made.
    """
    gain_kg5 = np.linalg.solve(sums.matrix_k55, runs.goals_kg5.swapaxes(1, 2)).swapaxes(1, 2)
    noise = (gain_kg5 * runs.goals_kg5).sum(-1)
    bias_kgq = gain_kg5 @ sums.moment_k5q
    form, trunks = bias_kgq[..., :5] - runs.goal_modes_kg5, bias_kgq[..., 5:]
    return noise + (trunks**2).sum(-1), (form**2).sum(-1)


def squared_errors_with_each(candidates: Linearised, sums: Sums, n_first: int) -> Floats:
    """Return each goal's mean squared error if one more run were made, for each candidate run: (K, n_first, G).

    Args:
        candidates: the runs of which one is added.
        sums: of the runs made without it.
        n_first: only the first so many are tried.

    Source: the update of an inverse by one row (Sherman and Morrison 1950).
    """
    first = candidates.first(n_first)
    inverse = np.linalg.inv(sums.matrix_k55)
    u_kn5 = first.jacobian_kn5 @ inverse
    size_kn1 = 1 + np.einsum("kni,kni->kn", u_kn5, first.jacobian_kn5)[..., None]
    gain_kg5 = first.goals_kg5 @ inverse
    pull_kng = u_kn5 @ first.goals_kg5.swapaxes(1, 2)
    noise = (gain_kg5 * first.goals_kg5).sum(-1)[:, None, :] - pull_kng**2 / size_kn1
    # g'S' = g'S - (g'u) u' / size, and g'S'j = (g'u) / size; so the bias with run i moves along w = F_i - u'J'F alone.
    bias_kgq = gain_kg5 @ sums.moment_k5q
    bias_kgq[..., :5] -= first.goal_modes_kg5
    moment = sums.moment_k5q
    w_bias_kng = first.along_modes(bias_kgq) - u_kn5 @ (moment @ bias_kgq.swapaxes(1, 2))
    squares_kn = np.einsum("kni,kni->kn", first.modes_kn5, first.modes_kn5) + first.shared_n**2
    squares_kn -= 2 * np.einsum("kni,kni->kn", u_kn5, first.along_modes(moment))
    squares_kn += np.einsum("kni,kni->kn", u_kn5 @ (moment @ moment.swapaxes(1, 2)), u_kn5)
    weight_kng = pull_kng / size_kn1
    misfit = (bias_kgq**2).sum(-1)[:, None, :] + 2 * weight_kng * w_bias_kng + weight_kng**2 * squares_kn[..., None]
    return noise + misfit


def size_regret(law: AdditiveLaw, flops: float) -> float:
    """Return the relative excess loss for each squared nat by which the size misses N*(C): half the curvature."""
    return 0.5 * _curvature(law, flops)


def _log_loss_gradient(law: AdditiveLaw, x: Floats, y: Floats, centre: tuple[float, float, float, float]) -> Floats:
    """Return d ln L / d theta, (n, 5)."""
    size, text, floor = _shares(law, x, y)
    return np.column_stack([size, text, floor, -size * (x - centre[0]), -text * (y - centre[1])])


def _shares(law: AdditiveLaw, x: Floats, y: Floats) -> tuple[Floats, Floats, Floats]:
    size, text = law.A * np.exp(-law.alpha * x), law.B * np.exp(-law.beta * y)
    loss = law.E + size + text
    return size / loss, text / loss, law.E / loss


def _modes(law: AdditiveLaw, x: Floats, y: Floats, centre: tuple[float, float, float, float], misfit: Misfit) -> Floats:
    """Return ln L(truth) - ln L(law) with each mode at one sd, (n, 5)."""
    size, text, _ = _shares(law, x, y)
    both = size + text
    # d/d ln k of (u^1/k + v^1/k)^k at k = 1, u and v relative to their sum at the centre. What is linear in theta drops
    # out of the refit, so that any centre does.
    size_0, text_0, _ = _shares(law, np.array([centre[0]]), np.array([centre[1]]))
    total_0 = size_0 + text_0
    p, q = size / both, text / both
    p_0, q_0 = size_0 / total_0, text_0 / total_0
    coupling = -both * (p * np.log(p / p_0) + q * np.log(q / q_0))
    drift = (
        _DECADE
        / 2
        * np.column_stack([size * ((x - centre[0]) / _DECADE) ** 2, text * ((y - centre[1]) / _DECADE) ** 2])
    )
    small = np.column_stack([np.sqrt(centre[2] / (6 * np.exp(x + y))), np.exp(centre[3] - x)])
    return np.column_stack([misfit.coupling * coupling, misfit.drift * drift, misfit.small_scale * small])


def _goals(
    law: AdditiveLaw, goal: Goal, centre: tuple[float, float, float, float], misfit: Misfit
) -> tuple[Floats, Floats]:
    """Return d(answer) / d theta (G, 5) and what each mode changes in the true answer (G, 5).

    ln L* changes as ln L at the optimum does (the envelope theorem); ln N* = -(d/du)^-1 of the slope along the IsoFLOP
    curve u -> (N e^u, D e^-u), by central differences.
    """
    params, tokens = law.optimum(goal.flops)
    x = np.log(params) + np.array([-_STEP, 0.0, _STEP])
    y = np.log(tokens) - np.array([-_STEP, 0.0, _STEP])
    rows = np.column_stack([_log_loss_gradient(law, x, y, centre), _modes(law, x, y, centre, misfit)])
    loss_row = rows[1]
    if goal.target is not None:
        x, y = np.log(np.array([goal.target[0]])), np.log(np.array([goal.target[1]]))
        loss_row = np.append(_log_loss_gradient(law, x, y, centre)[0], _modes(law, x, y, centre, misfit)[0])
    size_row = -(rows[2] - rows[0]) / (2 * _STEP) / _curvature(law, goal.flops)
    picked = np.stack([size_row if answer == "size" else loss_row for answer in goal.answers])
    return picked[:, :5], picked[:, 5:]


def _curvature(law: AdditiveLaw, flops: float) -> float:
    """Return d^2 ln L / d(ln N)^2 along the IsoFLOP curve at its lowest point, where the slope is 0."""
    params, tokens = law.optimum(flops)
    size, text, _ = _shares(law, np.log(np.array([params])), np.log(np.array([tokens])))
    return float(size[0]) * law.alpha**2 + float(text[0]) * law.beta**2
