"""How sure a plan is: THE band of its loss, and intervals of what the goal leaves open, from resamples of the law.

The band joins two things: the law's constants are uncertain (`draws`), and the form itself errs, more with each decade
beyond its runs. Both are half-widths in ln L at 90 % and add as squares.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from chinchilla_lm.laws.forms.law import Floats
from chinchilla_lm.laws.planning.answer import Interval
from chinchilla_lm.laws.planning.optimum import total_flops
from chinchilla_lm.laws.planning.question import Evidence
from chinchilla_lm.laws.planning.surface import Surface

# 90 % of predictions by a lone additive law lie within this of the truth, in ln L: .01 + .052 per decade of compute
# beyond its runs. Chosen on the public sweeps (dev/LOG.md 2026-11-21) and so tested on what it was chosen on: 91.0 % of
# hidden runs at 3-100 times the fitted compute, mean over 8 families, from 57 % (repeated text) to 100 %
# (bench/planning.py --band). Where the runs are at hand, `trust.calibration` is surer: other forms, the noise.
_ERROR_AT_EDGE, _ERROR_PER_DECADE = 0.010, 0.052
_TAIL = 0.05  # left on each side of a 90 % interval
_STILL = 1e-9  # relative spread below which the goal fixes a number


def loss_band(
    loss: float, flops: float, evidence: Evidence, losses_of_draws: Floats | None
) -> tuple[float, float] | tuple[None, None]:
    """Return the 90 % band of a loss; THE one place where a plan's band comes from.

    Args:
        loss: predicted, nats per token.
        flops: of training.
        evidence: the law's.
        losses_of_draws: of the same plan by each resample, or None.

    Returns:
        (low, high), or (None, None) where the compute of the runs behind the law is unknown.
    """
    if evidence.largest_flops is None:
        return None, None
    decades = max(0.0, math.log10(flops / evidence.largest_flops))
    form = _ERROR_AT_EDGE + _ERROR_PER_DECADE * decades
    below = above = 0.0
    if losses_of_draws is not None:
        low, high = np.quantile(losses_of_draws, (_TAIL, 1 - _TAIL))
        below, above = max(math.log(loss / low), 0.0), max(math.log(high / loss), 0.0)
    return loss * math.exp(-math.hypot(form, below)), loss * math.exp(math.hypot(form, above))


def intervals_of_draws(
    surface: Surface, solve: Callable[[Surface], tuple[Floats, Floats]], served: float
) -> dict[str, Interval]:
    """Answer a question by every resample; return the 90 % interval of each number that they do not agree on.

    Args:
        surface: of the resamples.
        solve: the question, surface -> (ln N, ln D); nan where a resample cannot meet it.
        served: I >= 0, tokens served in units of training cost.

    Returns:
        By name: params, tokens, tokens_per_param, flops, total_flops.
    """
    x, y = solve(surface)
    columns = {
        "params": np.exp(x),
        "tokens": np.exp(y),
        "tokens_per_param": np.exp(y - x),
        "flops": 6 * np.exp(x + y),
        "total_flops": total_flops(x, y, served),
    }
    found: dict[str, Interval] = {}
    for name, answers in columns.items():
        interval = _interval(np.where(np.isfinite(answers), answers, np.inf))
        if interval.high is None or interval.high > interval.low * (1 + _STILL):
            found[name] = interval
    return found


def _interval(answers: Floats) -> Interval:
    """Return the middle 90 % by order statistics, so that unbounded answers may stand among the others."""
    ordered = np.sort(answers)
    low = float(ordered[int(_TAIL * (len(ordered) - 1))])
    high = float(ordered[math.ceil((1 - _TAIL) * (len(ordered) - 1))])
    return Interval(low=low, high=high if math.isfinite(high) else None)
