"""Which scoring rule? `auto` reads it off held-out labelled rows, or takes the one that needs the least luck.

There is no universal winner: summed log-probabilities win ARC-easy, length-normalised ones HellaSwag, PMI CommonsenseQA
(Holtzman et al. 2021, table 2), calibration few-shot classification (Zhao et al. 2021; Zhou et al. 2023). So:

1. 32 or more labelled held-out rows: the rule with the best smoothed accuracy on them (see `choose_rule`);
2. else batch calibration, when the choices are the same in every row and 32 or more unlabelled inputs are at hand;
3. else contextual calibration for a closed label set, and log-probability per byte for a row's own choices.

The table of the choice is kept: a rule is never chosen silently. The rows of the choice are not the rows of the result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chinchilla_lm.core.errors import DataError
from chinchilla_lm.prompt.rules import MIN_BATCH_ROWS
from chinchilla_lm.prompt.template import Template

# TUNE.md 2.3: fewer labelled rows decide by luck (one standard error of an accuracy is 9 points at 32).
MIN_LABELLED_ROWS = 32
# Width of the step that counts a row as right, in mean margins. Simulated regret against the best rule in hindsight
# (300 worlds of 2-7 choices, tests/prompt/test_choosing.py): 1.6 / 1.2 / 0.7 points at 32 / 64 / 128 rows with a sharp
# step (plain accuracy), 1.2 / 0.8 / 0.6 with 0.4; always taking one rule: 4.7. On a real model's scores of nine sets
# (bench/RESULTS.md, Prompts) 2.1 / 1.7 / 0.8, whatever the step: sets where three rules lie near one another.
STEP_WIDTH = 0.4
# Measured on SmolLM2-135M: batch calibration best or tied in every few-shot row (TUNE.md 4b).
# Among equals the earlier wins.
PREFERENCE = ("bc", "pmi", "cc", "byte", "char", "token", "sum", "channel")


@dataclass(frozen=True, kw_only=True)
class RuleRow:
    """One rule on the held-out rows.

    Attributes:
        rule: of `plan.RULES`.
        accuracy: in [0, 1].
        smoothed: the accuracy with a soft step, which decides.
        standard_error: of the accuracy, binomial.
        behind: accuracy of the chosen rule - this one's; negative where luck put another one first.
        behind_error: standard error of that paired difference.
    """

    rule: str
    accuracy: float
    smoothed: float
    standard_error: float
    behind: float
    behind_error: float


@dataclass(frozen=True, kw_only=True)
class RuleChoice:
    """The rule of `auto`, and why.

    Attributes:
        rule: of `plan.RULES`.
        reason: one sentence for the record.
        rows: labelled rows that decided; 0 when none did.
        table: every rule tried, best first; empty when no labelled rows decided.
    """

    rule: str
    reason: str
    rows: int = 0
    table: tuple[RuleRow, ...] = ()


def rules_to_try(template: Template, rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the rules that `auto` compares on this template, in the order of preference.

    The channel rule is left out: it reads every input once a choice (add it by hand where inputs are short).

    Args:
        template: with choices.
        rows: labelled held-out rows.

    Returns:
        Rules for `plan_scores`.
    """
    if template.contexts:
        return ("sum",)
    rules = ["bc"] if len(rows) >= MIN_BATCH_ROWS and has_same_choices(template, rows) else []
    return (*rules, "pmi", *(["cc"] if template.is_closed else []), "byte", "sum")


def choose_rule(scores_by_rule: Mapping[str, np.ndarray], gold_n: Sequence[int] | np.ndarray) -> RuleChoice:
    """Choose on labelled held-out rows.

    A row's margin is the right choice's score minus the best wrong one's. Plain accuracy counts margins above zero and
    is coarse on few rows; here a row counts as Phi(margin / (0.4 * mean |margin|)), so near misses and near hits count.

    Args:
        scores_by_rule: scores_nk of each rule on the same rows.
        gold_n: the right choices' numbers; >= `MIN_LABELLED_ROWS` of them.

    Returns:
        The choice with its table.

    Raises:
        DataError: too few rows, or arrays of different lengths.
    """
    gold = np.asarray(gold_n)
    if len(gold) < MIN_LABELLED_ROWS:
        raise DataError(f"{len(gold)} labelled rows cannot choose a rule; give {MIN_LABELLED_ROWS}, or name the rule")
    margins: dict[str, np.ndarray] = {}
    for rule, scores_nk in scores_by_rule.items():
        if len(scores_nk) != len(gold):
            raise DataError(f"{len(scores_nk)} rows of scores by {rule} for {len(gold)} labels; give the same rows")
        margins[rule] = margins_of(scores_nk, gold)
    smoothed = {rule: _smoothed(margins_n) for rule, margins_n in margins.items()}
    chosen = max(margins, key=lambda rule: (smoothed[rule], -_rank(rule)))
    rows = [_compare(rule, margins[rule], margins[chosen], smoothed[rule]) for rule in margins]
    table = tuple(sorted(rows, key=lambda row: (-row.smoothed, _rank(row.rule))))
    others = ", ".join(f"{row.rule} {row.accuracy:.1%}" for row in table[1:])
    reason = f"{chosen}: {table[0].accuracy:.1%} on {len(gold)} held-out rows" + (f" ({others})" if others else "")
    return RuleChoice(rule=chosen, reason=reason, rows=len(gold), table=table)


def rule_without_labels(template: Template, rows: Sequence[Mapping[str, Any]]) -> RuleChoice:
    """Choose without labels: batch calibration, else contextual calibration or log-probability per byte.

    Args:
        template: with choices.
        rows: the unlabelled inputs at hand (for instance those to answer).

    Returns:
        The choice; its table is empty.
    """
    if template.contexts:
        return RuleChoice(rule="sum", reason="sum: one continuation after several contexts needs no normalisation")
    if len(rows) >= MIN_BATCH_ROWS and has_same_choices(template, rows):
        return RuleChoice(rule="bc", reason=f"bc: {len(rows)} unlabelled inputs (>= {MIN_BATCH_ROWS}) show the bias")
    if template.is_closed:
        return RuleChoice(
            rule="cc", reason=f"cc: a closed label set, {len(rows)} unlabelled inputs (< {MIN_BATCH_ROWS})"
        )
    return RuleChoice(rule="byte", reason="byte: every row has its own choices, of different lengths")


def has_same_choices(template: Template, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether every row has the same answers in the same order (a closed set, or options by letter)."""
    return template.is_closed or len({template.answers_of(row) for row in rows}) <= 1


def margins_of(scores_nk: np.ndarray, gold_n: np.ndarray) -> np.ndarray:
    """Return each row's score of the right choice minus the best of the others, [n]; > 0 where the row is right."""
    rows = np.arange(len(gold_n))
    others_nk = np.array(scores_nk, dtype=np.float64)
    others_nk[rows, gold_n] = -np.inf
    return scores_nk[rows, gold_n] - others_nk.max(axis=1)


def _smoothed(margins_n: np.ndarray) -> float:
    finite = np.isfinite(margins_n)
    width = STEP_WIDTH * float(np.abs(margins_n[finite]).mean()) if finite.any() else 0.0
    if width == 0:
        return float((margins_n > 0).mean())
    # Phi(z); a margin of +inf (one choice only) counts as right.
    return float(np.mean([0.5 * (1 + math.erf(margin / width / math.sqrt(2))) for margin in margins_n]))


def _compare(rule: str, margins_n: np.ndarray, chosen_n: np.ndarray, smoothed: float) -> RuleRow:
    correct_n = margins_n > 0
    difference_n = (chosen_n > 0).astype(np.float64) - correct_n
    accuracy = float(correct_n.mean())
    return RuleRow(
        rule=rule,
        accuracy=accuracy,
        smoothed=smoothed,
        standard_error=math.sqrt(accuracy * (1 - accuracy) / len(correct_n)),
        behind=float(difference_n.mean()),
        behind_error=float(difference_n.std() / math.sqrt(len(correct_n))),
    )


def _rank(rule: str) -> int:
    return PREFERENCE.index(rule)
