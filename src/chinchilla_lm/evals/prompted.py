"""Rows answered by prompt, no gradient: zero-shot and few-shot, by a scoring rule, over draws of demonstrations.

One draw is luck (19 to 23 points between three draws of four demonstrations, SmolLM2-135M), so every figure here is a
mean with its spread. The rule "auto" is chosen on labelled rows that are neither test rows nor demonstrations, or,
without them, by `prompt.choosing.rule_without_labels`; test labels are read only to measure.

A template writes its answers or has choices: this file scores choices; `written.py` lets the model write.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from chinchilla_lm.core.errors import ConfigError, DataError
from chinchilla_lm.evals.scorer import Score, Scorer
from chinchilla_lm.metrics.classification import measure_choices, measure_classification
from chinchilla_lm.metrics.measures import Measures
from chinchilla_lm.prompt.choosing import MIN_LABELLED_ROWS, RuleChoice, choose_rule, rule_without_labels, rules_to_try
from chinchilla_lm.prompt.contamination import TestTexts
from chinchilla_lm.prompt.demonstrations import DemoDraw, DemoSettings, input_text, select_demonstrations
from chinchilla_lm.prompt.ordering import order_by_entropy
from chinchilla_lm.prompt.plan import RULES, ScoreRequest, plan_scores
from chinchilla_lm.prompt.rules import finish_scores, probabilities
from chinchilla_lm.prompt.template import Template

Row = Mapping[str, Any]
PROBES = 16
"""Unlabelled rows on which entropy is measured, under each of up to 24 orders. Lu et al. 2022 have the model write as
many as there are orders."""


@dataclass(frozen=True, kw_only=True)
class PromptRows:
    """Canonical rows (`data.task_rows`).

    Attributes:
        tests: labelled rows to answer, at least one.
        pool: solved rows for demonstrations; needed with shots > 0.
        dev: labelled rows on which "auto" chooses, 32 or more, not in `pool`; those that copy a test row are not read.
        vectors: of pool and tests, for nearest demonstrations.
    """

    tests: Sequence[Row]
    pool: Sequence[Row] = ()
    dev: Sequence[Row] = ()
    vectors: tuple[np.ndarray, np.ndarray] | None = None

    def __post_init__(self) -> None:
        if not self.tests:
            raise DataError("there are no test rows; give a file with at least one")


@dataclass(frozen=True, kw_only=True)
class PromptSettings:
    """How rows are answered.

    Attributes:
        rule: of `prompt.plan.RULES`, or "auto".
        extra_rules: further rules whose accuracy the table shows.
        demonstrations: shots, method, draws, seed.
    """

    rule: str = "auto"
    extra_rules: tuple[str, ...] = ()
    demonstrations: DemoSettings = DemoSettings(shots=0, draws=1)

    def __post_init__(self) -> None:
        for rule in (self.rule, *self.extra_rules):
            if rule not in (*RULES, "auto"):
                raise ConfigError(f"the rule {rule!r} is unknown; write auto or one of {', '.join(RULES)}")


@dataclass(frozen=True, kw_only=True)
class DrawResult:
    """One draw of demonstrations (or none).

    Attributes:
        draw: its number from 0.
        rule: the scoring rule that answered.
        reason: why this rule, one sentence.
        measures: of the rule's answers.
        predicted: the chosen answer of each row.
        scores_nk: of the rule, for calibration and disagreement.
        by_rule: accuracy of every rule that was scored, for the table; the choice did not see it.
        demonstrations: numbers of the solved rows in the pool, one tuple for all rows or one a row.
    """

    draw: int
    rule: str
    reason: str
    measures: Measures
    predicted: tuple[int, ...]
    scores_nk: np.ndarray = field(repr=False)
    by_rule: dict[str, float]
    demonstrations: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class PromptResult:
    """All draws.

    Attributes:
        template: its name.
        shots: demonstrations in a prompt.
        rows: test rows.
        draws: at least one.
        mean: mean over draws of each measure.
        spread: standard deviation over draws (n - 1); 0 for one draw.
        cut_rows: test rows whose prompt was cut at its beginning to fit the context, in any draw.
        refused: rows of the pool that copy a test row and were left out.
    """

    template: str
    shots: int
    rows: int
    draws: tuple[DrawResult, ...]
    mean: dict[str, float]
    spread: dict[str, float]
    cut_rows: int
    refused: int


def answer_by_choice(
    scorer: Scorer,
    template: Template,
    rows: PromptRows,
    settings: PromptSettings | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PromptResult:
    """Answer rows by the scores of their choices.

    Args:
        scorer: holds the model.
        template: with choices; an open label set must have been given its labels.
        rows: what to answer, and what to learn from.
        settings: rule and demonstrations; None is zero-shot with "auto".
        progress: told (requests done, requests in all) of the present draw.

    Returns:
        Answers and measures of every draw.

    Raises:
        ConfigError: an unknown rule, or one that the template cannot serve.
        DataError: rows that do not fit the template, or shots without a pool.
    """
    settings, tests = settings or PromptSettings(), rows.tests
    if settings.rule == "auto":
        rows = without_copies(template, rows)
    gold = [template.gold_index(row) for row in tests]
    draws = demonstration_draws(template, rows, settings.demonstrations)
    results: list[DrawResult] = []
    cut: set[int] = set()
    if settings.demonstrations.order == "entropy":
        draws = [order_draw(scorer, template, rows, draw, settings.demonstrations.seed) for draw in draws]
    for draw in draws:
        wanted = _wanted(settings, template, rows)
        asked = DrawnScores(scorer, template, tests, draw, wanted, progress)
        cut |= asked.cut_rows
        choice = _choose(settings.rule, scorer, template, rows, draw)
        results.append(_measure(template, tests, gold, draw, choice, asked))
    mean, spread = over_draws([result.measures for result in results])
    return PromptResult(
        template=template.name,
        shots=settings.demonstrations.shots,
        rows=len(tests),
        draws=tuple(results),
        mean=mean,
        spread=spread,
        cut_rows=len(cut),
        refused=len(draws[-1].refused),  # each draw knows those of the draws before it
    )


def without_copies(template: Template, rows: PromptRows) -> PromptRows:
    """Leave out the dev rows that copy a test row: a choice made on them would have read the test's answers."""
    if not rows.dev:
        return rows
    tests = TestTexts([input_text(template, row) for row in rows.tests])
    return replace(rows, dev=[row for row in rows.dev if tests.nearest(input_text(template, row)) is None])


class DrawnScores:
    """One draw's numbers. Attributes: `scores` by rule (n, k), `cut_rows` (numbers of test rows)."""

    def __init__(
        self,
        scorer: Scorer,
        template: Template,
        rows: Sequence[Row],
        draw: DemoDraw,
        rules: Sequence[str],
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        requests = plan_scores(template, rows, draw.rows, rules)
        answers = _price(scorer, requests, progress)
        logprobs, tokens = [one.logprob for one in answers], [one.tokens for one in answers]
        self.scores = {rule: finish_scores(rule, requests, logprobs, tokens) for rule in rules}
        self.cut_rows = {
            request.row for request, one in zip(requests, answers, strict=True) if one.cut_tokens and request.row >= 0
        }


def _price(
    scorer: Scorer, requests: Sequence[ScoreRequest], progress: Callable[[int, int], None] | None
) -> list[Score]:
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, len(requests))

    return scorer.score([(request.prefix, request.continuation) for request in requests], advance)


def demonstration_draws(template: Template, rows: PromptRows, settings: DemoSettings) -> list[DemoDraw]:
    """Choose demonstrations; without shots, one draw of none.

    Raises:
        DataError: shots without a pool, or too few rows in it.
    """
    if settings.shots == 0:
        return [DemoDraw(draw=0, indices=(), rows=(), is_shared=True, refused=())]
    if not rows.pool:
        raise DataError(f"{settings.shots} shots need solved rows; give a training file, or ask for 0 shots")
    return select_demonstrations(template, rows.pool, rows.tests, settings, rows.vectors)


def order_draw(scorer: Scorer, template: Template, rows: PromptRows, draw: DemoDraw, seed: int) -> DemoDraw:
    """Put a draw's demonstrations into the order under which the model's answers have the highest entropy.

    Args:
        scorer: holds the model.
        template: with a closed label set.
        rows: the pool's other rows are the probes; their answers are not read.
        draw: shared by all rows.
        seed: of the probes, and of the orders tried where there are more than 24.

    Raises:
        ConfigError: rows have choices of their own.
        DataError: the pool holds no row beyond the demonstrations.
    """
    if not template.is_closed:
        raise ConfigError(
            f"{template.name} has no closed label set to measure the entropy of; leave the order as drawn"
        )
    if len(draw.indices) < 2:
        return draw
    others = [number for number in range(len(rows.pool)) if number not in draw.indices]
    if not others:
        raise DataError("the order entropy needs rows beyond the demonstrations to probe; give more training rows")
    chosen = np.random.default_rng([seed, draw.draw]).permutation(others)[:PROBES]
    probes = [rows.pool[number] for number in chosen]

    def probabilities_of(places: Sequence[int]) -> np.ndarray:
        ordered = replace(draw, rows=tuple(draw.rows[place] for place in places))
        return probabilities(DrawnScores(scorer, template, probes, ordered, ["sum"]).scores["sum"])

    order = order_by_entropy(range(len(draw.rows)), probabilities_of, seed=seed).order
    return replace(
        draw,
        indices=tuple(draw.indices[place] for place in order),
        rows=tuple(draw.rows[place] for place in order),
    )


def over_draws(measured: Sequence[Measures]) -> tuple[dict[str, float], dict[str, float]]:
    """Return each measure's mean over draws and its standard deviation (n - 1; 0 for one draw)."""
    table = {name: np.array([one.values[name] for one in measured]) for name in measured[0].values}
    spread = {name: float(values.std(ddof=1)) if len(values) > 1 else 0.0 for name, values in table.items()}
    return {name: float(values.mean()) for name, values in table.items()}, spread


def _wanted(settings: PromptSettings, template: Template, rows: PromptRows) -> list[str]:
    """Name the rules whose numbers are asked for on the test rows."""
    if settings.rule != "auto":
        rules: Sequence[str] = [settings.rule]
    elif len(rows.dev) >= MIN_LABELLED_ROWS:
        rules = rules_to_try(template, rows.tests)
    else:
        rules = [rule_without_labels(template, rows.tests).rule]
    return list(dict.fromkeys([*rules, *settings.extra_rules]))


def _choose(rule: str, scorer: Scorer, template: Template, rows: PromptRows, draw: DemoDraw) -> RuleChoice:
    """Choose the draw's rule: on dev rows if there are enough, with the demonstrations that all rows share.

    Where each row has its own demonstrations, dev rows are asked with those of the first test row.
    """
    if rule != "auto":
        return RuleChoice(rule=rule, reason=f"{rule}: asked for")
    if len(rows.dev) < MIN_LABELLED_ROWS:
        return rule_without_labels(template, rows.tests)
    rules = [one for one in rules_to_try(template, rows.dev) if one in rules_to_try(template, rows.tests)]
    asked = DrawnScores(scorer, template, rows.dev, draw.shared(), rules)
    return choose_rule(asked.scores, [template.gold_index(row) for row in rows.dev])


def _measure(
    template: Template,
    tests: Sequence[Row],
    gold: Sequence[int],
    draw: DemoDraw,
    choice: RuleChoice,
    asked: DrawnScores,
) -> DrawResult:
    scores_nk = asked.scores[choice.rule]
    predicted = scores_nk.argmax(axis=1)
    if template.is_closed:
        labels = list(template.labels)
        measures = measure_classification(
            [labels[i] for i in predicted], [labels[i] for i in gold], labels, probabilities(scores_nk)
        )
    else:
        measures = measure_choices([int(i) for i in predicted], list(gold))
    return DrawResult(
        draw=draw.draw,
        rule=choice.rule,
        reason=choice.reason,
        measures=measures,
        predicted=tuple(int(i) for i in predicted),
        scores_nk=scores_nk,
        by_rule={rule: float((scores.argmax(axis=1) == gold).mean()) for rule, scores in asked.scores.items()},
        demonstrations=draw.indices,
    )
