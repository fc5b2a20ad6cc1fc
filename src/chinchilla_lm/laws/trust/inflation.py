"""How wrong an extrapolation is, learnt from public sweeps: the model of its error, and its constants.

The error e of ln L at a point beyond the runs is drawn from a Student t of scale s m, with
    s^2 = floor^2 + noise^2 + (of_drop * drop)^2 + (of_spread * spread)^2:
`noise` is the scatter of the runs about their own law; `drop` is how far ln L is predicted to fall between the edge of
the runs and the point (a slope that is wrong by 12 % is wrong by 12 % of it), so steep tables widen by themselves; and
`spread` is the disagreement of the three forms. m is the table's own: hide its upper runs at several cuts, compare each
error with its s, and shrink the mean square towards 1 by a prior worth `freedom` cuts (empirical Bayes; the conjugate
scaled inverse chi-square, hence the Student t of the prediction). Four constants in all.

They were learnt by maximum likelihood with one vote a family of sets (`learning.learn`, run by
`python bench/calibration.py --learn`), and are tested on families that they have not seen.
It never fits a law.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType] - it has no stubs

from chinchilla_lm.laws.forms.law import Floats
from chinchilla_lm.laws.trust.cuts import Answers

# Neighbouring cuts share most of their runs and their hidden runs, so each counts as half a cut. Leave-family-out log
# score and mean interval score, 8 families: half a cut 2.432 and 14.45 %; a quarter 2.429, 14.60; no own tests 2.401,
# 15.54. Letting the degrees of freedom grow with them: 2.426, 14.51.
CUT_WEIGHT = 0.5
_LARGEST_SQUARE = 16.0  # of e / s: one hidden run at 4 scales is counted, one at 20 is a broken run
_LEAST_STEP = 10**0.3  # a hidden run nearer to its cut tests the noise, not the law


@dataclass(frozen=True, kw_only=True)
class Inflation:
    """The constants of the error model.

    Attributes:
        floor: least sd of ln L of any prediction.
        of_drop: share of the predicted fall of ln L beyond the runs that is uncertain.
        of_spread: the same of the sd between forms.
        freedom: how many back-tested cuts the public sets are worth beside the table's own; also the degrees of
            freedom of the Student t.
    """

    floor: float
    of_drop: float
    of_spread: float
    freedom: float

    def scale(self, drop: Floats, spread: Floats, noise: Floats) -> Floats:
        """Return s of the module's formula, in ln L; all arguments in ln L, of one shape."""
        squares = self.floor**2 + noise**2 + (self.of_drop * drop) ** 2 + (self.of_spread * spread) ** 2
        return np.sqrt(squares)

    def quantile(self, level: float) -> float:
        """Return how many s m lie on each side of the point in an interval of that level."""
        return float(stdtrit(self.freedom, 0.5 + level / 2))


@dataclass(frozen=True, kw_only=True)
class OwnErrors:
    """What a table's own back-tests say of the error model, for K cuts.

    Attributes:
        ratio_k: m, the table's errors over the model's, shrunk; 1 where nothing could be tested.
        n_tests_k: lower cuts that had hidden runs.
        mean_square_k: mean of (e / s)^2 over those cuts, each one vote, before shrinking; nan without tests.
    """

    ratio_k: Floats
    n_tests_k: npt.NDArray[np.int64]
    mean_square_k: Floats


def own_errors(
    inflation: Inflation, answers: Answers, noise_k: Floats, cut_flops_k: Floats, flops_n: Floats, log_loss_n: Floats
) -> OwnErrors:
    """Back-test a table on itself: for each cut, all lower cuts predict the runs between them.

    Args:
        inflation: the error model.
        answers: of every cut about every run of the table, shape (K, n).
        noise_k: of each cut.
        cut_flops_k: ascending.
        flops_n: C of each run.
        log_loss_n: ln L of each run.

    Returns:
        The table's own ratio at each cut, from the runs at or below that cut alone.
    """
    scale = inflation.scale(answers.drop, answers.spread, np.broadcast_to(noise_k[:, None], answers.drop.shape))
    square = np.minimum(((answers.point - log_loss_n) / scale) ** 2, _LARGEST_SQUARE)
    below = flops_n[None, :] <= cut_flops_k[:, None] * 1.0001
    beyond = flops_n[None, :] > cut_flops_k[:, None] * _LEAST_STEP
    # A lower cut has one vote on an upper one: the mean over the runs between them.
    hidden_counts = beyond.astype(np.float64) @ below.T.astype(np.float64)  # (lower, upper)
    sums = np.where(beyond, square, 0.0) @ below.T.astype(np.float64)
    votes = hidden_counts > 0
    total = np.divide(sums, hidden_counts, out=np.zeros_like(sums), where=votes).sum(0)
    tests = votes.sum(0)
    weight = CUT_WEIGHT * tests
    ratio = np.sqrt((inflation.freedom + CUT_WEIGHT * total) / (inflation.freedom + weight))
    mean_square = np.divide(total, tests, out=np.full(len(total), np.nan), where=tests > 0)
    return OwnErrors(ratio_k=ratio, n_tests_k=tests, mean_square_k=mean_square)


# Printed by `python bench/calibration.py --learn` from all public sets, 2026-11-22.
LEARNT = Inflation(floor=0.001, of_drop=0.124, of_spread=0.48, freedom=4.7)
