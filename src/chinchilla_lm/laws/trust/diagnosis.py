"""Everything that may be wrong with a fit, in one call: a record for programs and plain sentences for people.

Asked are: do the runs determine the law (`identifiability`), do the exponents hold as larger runs join (`drift`), what
do the residuals still know (`residuals`), which run or group carries the answer (`influence`), would the intervals
hold on this design (`selftest`), and does another form predict hidden runs better (`selection`, when asked to be
thorough). Each warning is one sentence with the way out. None of them is proof of a right law.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from chinchilla_lm.core.errors import FitError
from chinchilla_lm.laws.fitting.additive import Fit
from chinchilla_lm.laws.table import RunTable
from chinchilla_lm.laws.trust.drift import Drift, exponent_drift
from chinchilla_lm.laws.trust.groups import Labels
from chinchilla_lm.laws.trust.identifiability import Identifiability, identify
from chinchilla_lm.laws.trust.influence import Influence, leave_out
from chinchilla_lm.laws.trust.residuals import Residuals, examine_residuals
from chinchilla_lm.laws.trust.selection import Comparison, compare_forms
from chinchilla_lm.laws.trust.selftest import SelfTest, coverage_selftest

FEWEST_RUNS = 8  # five constants and three runs to disagree with them
_QUICK_REPEATS, _THOROUGH_REPEATS = 100, 400
_CLEARLY_BETTER = 0.8  # of the additive form's back-test error; seven public sweeps differ by less from cut to cut


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What was found.

    Attributes:
        identifiability: do the runs determine the law.
        drift: do the exponents hold; None where too few runs lie below every cut.
        residuals: what is left over.
        influence: what the answer hangs on.
        selftest: would robust intervals hold, with the runs' own noise.
        comparison: other forms; None unless thorough.
        target_flops: compute that forecasts were watched at.
        warnings: most serious first, one sentence each.
    """

    identifiability: Identifiability
    drift: Drift | None
    residuals: Residuals
    influence: Influence
    selftest: SelfTest
    comparison: Comparison | None
    target_flops: float
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values (schema diagnosis/1)."""
        return {
            "schema": "diagnosis/1",
            "target_flops": self.target_flops,
            "warnings": list(self.warnings),
            "identifiability": self.identifiability.to_dict(),
            "drift": None if self.drift is None else self.drift.to_dict(),
            "residuals": self.residuals.to_dict(),
            "influence": self.influence.to_dict(),
            "selftest": self.selftest.to_dict(),
            "forms": None if self.comparison is None else self.comparison.to_dict(),
        }


def diagnose(
    table: RunTable,
    fit: Fit,
    *,
    target_flops: float | None = None,
    lines: Sequence[int] | None = None,
    labels: Labels | None = None,
    is_thorough: bool = False,
) -> Diagnosis:
    """Look for everything that may be wrong with an additive fit.

    Args:
        table: the runs that were fitted.
        fit: of `fit_additive` on them; its delta is kept.
        target_flops: whose best size and least loss are watched; None: ten times the largest run.
        lines: line of each run in its file, to name it by; None: runs are counted from 1.
        labels: group of each run whose errors go together, such as checkpoints of one run; None: runs of one size.
        is_thorough: compare the forms by back-test as well, and simulate longer (seconds instead of one).

    Returns:
        The diagnosis.

    Raises:
        FitError: fewer than eight runs, or runs that are not those of the fit.
    """
    if len(table.loss) < FEWEST_RUNS:
        raise FitError(f"{len(table.loss)} runs are too few to diagnose a fit of five constants; add runs, 8 at least")
    target = 10 * float(table.flops.max()) if target_flops is None else target_flops
    known = identify(table, fit)
    drift = exponent_drift(table, target_flops=target, delta=fit.delta)
    residuals = examine_residuals(table, fit, labels=labels, lines=lines)
    influence = leave_out(table, fit, target_flops=target, lines=lines)
    selftest = coverage_selftest(
        table, fit, repeats=_THOROUGH_REPEATS if is_thorough else _QUICK_REPEATS, target_flops=target
    )
    comparison = compare_forms(table) if is_thorough else None
    warnings = [*fit.warnings, *known.warnings]
    if drift is not None and drift.is_drifting:
        warnings.append(drift.sentence)
    warnings += [*_form_warnings(comparison), *residuals.warnings, *influence.warnings]
    if selftest.is_short:
        warnings.append(selftest.sentence)
    return Diagnosis(
        identifiability=known,
        drift=drift,
        residuals=residuals,
        influence=influence,
        selftest=selftest,
        comparison=comparison,
        target_flops=target,
        warnings=tuple(dict.fromkeys(warnings)),
    )


def _form_warnings(comparison: Comparison | None) -> list[str]:
    """Say whether another form, or the stack, predicts hidden runs clearly better than the additive one."""
    if comparison is None:
        return []
    errors = {score.form: score.backtest_percent for score in comparison.scores}
    base, best = errors.get("additive"), comparison.scores[0]
    if base is None or best.backtest_percent is None or best.backtest_percent > _CLEARLY_BETTER * base:
        return []
    return [
        f"the {best.form} form predicts hidden runs with {best.backtest_percent:.1f} % error and the additive one with "
        f"{base:.1f} %; forecast with it or with the stack, and report both"
    ]
