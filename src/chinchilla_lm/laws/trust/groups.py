"""Which runs belong together: those of one size, those of one budget.

Symbols: n runs with N `params`, C `flops`. Runs of one size share a model and often a learning rate, so their errors go
together; runs of one budget make an IsoFLOP set.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from chinchilla_lm.laws.forms.law import Floats

Labels = npt.NDArray[np.int64]

_SAME_SIZE = (
    0.02  # relative; sizes read off a figure scatter by 1 % (epoch_chinchilla.csv), distinct ones differ by 5 %
)
_SAME_BUDGET = 0.1  # relative; IsoFLOP sets are cut to a few per cent
_WIDEST_BUDGET = 0.5  # in ln C; a chain of budgets this long is a continuum, cut into half-decades instead
_FEWEST_IN_BUDGET = 3.0  # runs a group on average; fewer, and the groups are single runs
_HALF_DECADE = math.log(10) / 2


def size_groups(params: Floats) -> Labels:
    """Return the group of each run by size, 0 the smallest, shape (n,)."""
    return _chained(np.log(params), _SAME_SIZE)


def budget_groups(flops: Floats) -> Labels:
    """Return the group of each run by compute, 0 the lowest, shape (n,): IsoFLOP sets, else half-decades."""
    log_flops = np.log(flops)
    chained = _chained(log_flops, _SAME_BUDGET)
    count = int(chained.max()) + 1
    widest = max(float(np.ptp(log_flops[chained == group])) for group in range(count))
    if widest <= _WIDEST_BUDGET and len(flops) >= _FEWEST_IN_BUDGET * count:
        return chained
    # Half-decades counted down from the largest run, so that the last group is the one that a forecast leans on.
    down = np.floor((log_flops.max() - log_flops) / _HALF_DECADE + 1e-9).astype(np.int64)
    return np.unique(-down, return_inverse=True)[1].astype(np.int64)


def _chained(values: Floats, tolerance: float) -> Labels:
    """Number the values from the lowest, a new group wherever the next is more than `tolerance` away."""
    order = np.argsort(values)
    labels = np.empty(len(values), dtype=np.int64)
    labels[order] = np.concatenate([[0], np.cumsum(np.diff(values[order]) > tolerance)])
    return labels
