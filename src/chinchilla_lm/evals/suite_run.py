"""Run a suite: accuracy with its standard error, part by part, and two models compared on the same items.

`acc` takes the likeliest choice by its whole log-probability, `acc_norm` by log-probability per character (what
lm-evaluation-harness calls so), `acc_bytes` per UTF-8 byte. For a suite of several parts each value is the mean over
parts, and its standard error is that of a stratified mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chinchilla_lm.core.errors import DataError
from chinchilla_lm.evals.scorer import Score, Scorer
from chinchilla_lm.evals.suite_forms import Item
from chinchilla_lm.evals.suites import Suite

ITEMS_PER_PASS = 256
"""Items priced between two reports of progress."""


@dataclass(frozen=True, kw_only=True)
class SuiteResult:
    """What a model scored.

    Attributes:
        suite: its name.
        metric: the value that is quoted.
        items: that were asked.
        chance: accuracy of a guess.
        values: "acc", for choices of unlike length also "acc_norm" and "acc_bytes"; for a cloze "perplexity" of the
            whole word, exp(-mean log-probability).
        errors: standard error of each value over items.
        parts: quoted value of each part, where there are several.
        correct_n: whether each item was right by the quoted metric, for paired comparisons.
        groups_n: the part that each item belongs to.
        cut_items: items whose text was cut to fit the context.
    """

    suite: str
    metric: str
    items: int
    chance: float
    values: dict[str, float]
    errors: dict[str, float]
    parts: dict[str, float]
    correct_n: tuple[bool, ...]
    groups_n: tuple[str, ...]
    cut_items: int

    @property
    def value(self) -> float:
        """The quoted value."""
        return self.values[self.metric]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields of the record "suite/1", without the single items."""
        return {
            "suite": self.suite,
            "metric": self.metric,
            "value": self.value,
            "standard_error": self.errors[self.metric],
            "items": self.items,
            "chance": self.chance,
            "values": self.values,
            "errors": self.errors,
            "parts": self.parts,
            "cut_items": self.cut_items,
        }


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two models on the same items.

    Attributes:
        difference: second minus first, of the quoted value (for a suite of parts, the mean over parts).
        standard_error: of the paired difference, stratified as the value itself.
        p_value: two-sided, McNemar's test on the items that only one of them has right: exact below 25 of them,
            chi-square with continuity correction above.
        only_first: items that only the first has right.
        only_second: items that only the second has right.
    """

    difference: float
    standard_error: float
    p_value: float
    only_first: int
    only_second: int


def run_suite(
    scorer: Scorer, suite: Suite, items: Sequence[Item], progress: Callable[[int], None] | None = None
) -> SuiteResult:
    """Price every item.

    Args:
        scorer: holds the model.
        suite: which; its metric is quoted.
        items: of `suites.suite_items`, at least one.
        progress: told the items done by each pass.

    Raises:
        DataError: no items, or one that cannot be priced.
    """
    if not items:
        raise DataError(f"{suite.name} has no items; give a file with at least one")
    marks: dict[str, list[float]] = {}
    cut_items = 0
    for first in range(0, len(items), ITEMS_PER_PASS):
        chunk = items[first : first + ITEMS_PER_PASS]
        scores = iter(scorer.score([pair for item in chunk for pair in item.pairs]))
        for item in chunk:
            own = [next(scores) for _ in item.pairs]
            cut_items += any(score.cut_tokens for score in own)
            for name, mark in _marks(item, own).items():
                marks.setdefault(name, []).append(mark)
        if progress is not None:
            progress(len(chunk))
    return _summarise(suite, items, {name: np.array(values) for name, values in marks.items()}, cut_items)


def compare_results(first: SuiteResult, second: SuiteResult) -> Comparison:
    """Compare two models on the same items of a suite.

    Raises:
        DataError: the two did not answer the same items.
    """
    if (first.suite, first.metric, first.groups_n) != (second.suite, second.metric, second.groups_n):
        raise DataError(
            f"{first.suite} with {first.items} items and {second.suite} with {second.items} cannot be paired; "
            "run both with the same suite, limit and seed"
        )
    from chinchilla_lm.metrics.resampling import mcnemar

    one_n, two_n = np.array(first.correct_n), np.array(second.correct_n)
    difference, standard_error = _stratified(two_n.astype(float) - one_n, np.array(first.groups_n))
    test = mcnemar(first.correct_n, second.correct_n)
    return Comparison(
        difference=difference,
        standard_error=standard_error,
        p_value=test.p_value,
        only_first=int((one_n & ~two_n).sum()),
        only_second=int((two_n & ~one_n).sum()),
    )


def _marks(item: Item, scores: Sequence[Score]) -> dict[str, float]:
    """What an item adds to each value: 1 or 0, or a cloze's log-probability."""
    if item.gold is None:
        return {"acc": float(scores[0].is_greedy), "logprob": scores[0].logprob}
    sums_k = np.array([score.logprob for score in scores])
    characters_k, bytes_k = np.maximum(np.array(item.lengths, dtype=float).T, 1e-9)  # an empty choice: never the best
    marks = {"acc": float(sums_k.argmax() == item.gold)}
    marks["acc_norm"] = float((sums_k / characters_k).argmax() == item.gold)
    marks["acc_bytes"] = float((sums_k / bytes_k).argmax() == item.gold)
    return marks


def _summarise(suite: Suite, items: Sequence[Item], marks: dict[str, np.ndarray], cut_items: int) -> SuiteResult:
    groups = np.array([item.group for item in items])
    values, errors = {}, {}
    for name, mark_n in marks.items():
        mean, error = _stratified(mark_n, groups)
        if name == "logprob":
            values["perplexity"], errors["perplexity"] = math.exp(-mean), math.exp(-mean) * error
        else:
            values[name], errors[name] = mean, error
    quoted_n = marks[suite.metric]
    names = sorted(set(groups))
    return SuiteResult(
        suite=suite.name,
        metric=suite.metric,
        items=len(items),
        chance=suite.chance,
        values=values,
        errors=errors,
        parts={str(name): float(quoted_n[groups == name].mean()) for name in names} if len(names) > 1 else {},
        correct_n=tuple(bool(mark) for mark in quoted_n),
        groups_n=tuple(item.group for item in items),
        cut_items=cut_items,
    )


def _stratified(mark_n: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """Mean over groups of their means, and its standard error.

    A group of one item shows no variance of its own: such groups take the variance among them, or among all items where
    there is but one. That is too large rather than too small, because it holds what parts the groups (Cochran 1977,
    "Sampling Techniques", section 5A.12, collapsed strata).
    """
    own_n = [mark_n[groups == name] for name in sorted(set(groups))]
    alone = np.concatenate([own for own in own_n if len(own) == 1] or [mark_n[:0]])
    pooled = alone if len(alone) > 1 else mark_n
    variances = [
        float(own.var(ddof=1) / len(own)) if len(own) > 1 else float(pooled.var(ddof=1)) if len(pooled) > 1 else 0.0
        for own in own_n
    ]
    return float(np.mean([own.mean() for own in own_n])), math.sqrt(sum(variances)) / len(own_n)
