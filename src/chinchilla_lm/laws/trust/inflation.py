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

# Neighbouring cuts share most of their runs and their hidden runs, so each counts as half a cut. 1 instead of .5
# changed the leave-family-out log score from 2.420 to 2.413, no own back-test at all to 2.396.
CUT_WEIGHT = 0.5
_LARGEST_SQUARE = 16.0  # of e / s: one hidden run at 4 scales is counted, one at 20 is a broken run
_LEAST_STEP = 10**0.1  # a hidden run this little above its cut tests the noise, not the law
_MOST_FREEDOM = 30.0


@dataclass(frozen=True, kw_only=True)
class Inflation:
    """The constants of the error model.

    Attributes:
        floor: least sd of ln L of any prediction.
        of_drop: share of the predicted fall of ln L beyond the runs that is uncertain.
        of_spread: the same of the sd between forms.
        freedom: how many back-tested cuts the public sets are worth beside the table's own; also the degrees of
            freedom of the Student t where the table has none.
    """

    floor: float
    of_drop: float
    of_spread: float
    freedom: float

    def scale(self, drop: Floats, spread: Floats, noise: Floats) -> Floats:
        """Return s of the module's formula, in ln L; all arguments in ln L, of one shape."""
        squares = self.floor**2 + noise**2 + (self.of_drop * drop) ** 2 + (self.of_spread * spread) ** 2
        return np.sqrt(squares)


@dataclass(frozen=True, kw_only=True)
class OwnErrors:
    """What a table's own back-tests say of the error model, for K cuts.

    Attributes:
        ratio_k: m, the table's errors over the model's, shrunk; 1 where nothing could be tested.
        freedom_k: degrees of freedom of the Student t.
        n_tests_k: lower cuts that had hidden runs.
        mean_square_k: mean of (e / s)^2 over those cuts, each one vote, before shrinking; nan without tests.
    """

    ratio_k: Floats
    freedom_k: Floats
    n_tests_k: npt.NDArray[np.int64]
    mean_square_k: Floats

    def quantile(self, level: float) -> Floats:
        """Return how many s m lie on each side of the point in an interval of that level, shape (K,)."""
        return np.asarray(stdtrit(self.freedom_k, 0.5 + level / 2), dtype=np.float64)


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
    count = len(cut_flops_k)
    total, tests = np.zeros(count), np.zeros(count, dtype=np.int64)
    for lower in range(count):
        beyond = flops_n > cut_flops_k[lower] * _LEAST_STEP
        for upper in range(lower + 1, count):
            hidden = beyond & (flops_n <= cut_flops_k[upper] * 1.0001)
            if hidden.any():
                total[upper] += float(square[lower, hidden].mean())
                tests[upper] += 1
    weight = CUT_WEIGHT * tests
    ratio = np.sqrt((inflation.freedom + CUT_WEIGHT * total) / (inflation.freedom + weight))
    mean_square = np.divide(total, tests, out=np.full(count, np.nan), where=tests > 0)
    freedom = np.minimum(inflation.freedom + weight, _MOST_FREEDOM)
    return OwnErrors(ratio_k=ratio, freedom_k=freedom, n_tests_k=tests, mean_square_k=mean_square)


# Printed by `python bench/calibration.py --learn` from all public sets, 2026-11-22.
LEARNT = Inflation(floor=0.003, of_drop=0.125, of_spread=0.5, freedom=4.0)
