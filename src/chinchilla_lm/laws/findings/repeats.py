"""Text that repeats: told where the law does not know of it, and counted by what it is worth where it does.

Symbols: N `params`, D `tokens`, U `unique_tokens`; N' and D' what N and D are worth once text repeats.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from chinchilla_lm.laws.findings.fitted import Fitted
from chinchilla_lm.laws.forms.repetition import RepetitionLaw, saturated
from chinchilla_lm.laws.table import RunTable

_REPEATS = 1.05  # D over U; a text read a twentieth more than once is worth a hundredth less


def repetition_warnings(runs: RunTable, fitted: Fitted) -> list[str]:
    """Say where runs repeat their text and the law takes it for fresh, or what counts by its worth."""
    if runs.unique_tokens is None:
        return []
    count = int((runs.tokens > _REPEATS * runs.unique_tokens).sum())
    if isinstance(fitted.law, RepetitionLaw):
        return [
            "forecast, back-tests and diagnosis count repeated text by what it is worth, and speak of fresh text; "
            "ask `chinchilla plan --unique-tokens` for a limited one"
        ]
    if not count:
        return []
    return [
        f"{count} of {len(runs.loss)} runs repeat their text, which teaches less each time, and form {fitted.law.form} "
        "takes it for fresh; fit --form repetition"
    ]


def worth_of(runs: RunTable, fitted: Fitted) -> RunTable:
    """Return the runs with N' and D' in place of N and D, and 6 N' D' as their compute, under a repetition law."""
    law = fitted.law
    if not isinstance(law, RepetitionLaw) or runs.unique_tokens is None:
        return runs
    params = saturated(runs.params, law.params_filled_by(runs.unique_tokens), law.excess_params)
    tokens = saturated(runs.tokens, runs.unique_tokens, law.repeated_tokens)
    worth = np.asarray(params, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
    return replace(runs, params=worth[0], tokens=worth[1], flops=6.0 * worth[0] * worth[1])
