"""Which wordings of the library fit a file of rows, and which of them is best on held-out rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from chinchilla_lm.core.errors import ChinchillaError, ConfigError
from chinchilla_lm.evals.prompted import DrawnScores, PromptRows, demonstration_draws, without_copies
from chinchilla_lm.evals.scorer import Scorer
from chinchilla_lm.prompt.choosing import rules_to_try
from chinchilla_lm.prompt.demonstrations import DemoSettings
from chinchilla_lm.prompt.library_files import library_templates, load_template
from chinchilla_lm.prompt.search import PromptArm, SearchResult, search_prompts
from chinchilla_lm.prompt.template import Template

Row = Mapping[str, Any]

FIRST_WORDINGS = {
    "sentiment": "sentiment-review",  # Zhao et al. 2021, appendix (SST-2)
    "topic": "topic-article",  # Zhao et al. 2021, appendix (AG News)
    "intent": "intent-query",
    "pair": "pair-premise",
    "question": "question-answer",  # lm-evaluation-harness, arc and piqa; answers by letter are luck below a billion
    "continuation": "continuation-plain",  # lm-evaluation-harness, copa and hellaswag
    "schema": "schema-partial",  # Trinh and Le 2018
    "context": "context-passage",
    "closed": "closed-question",  # lm-evaluation-harness, triviaqa
}
"""The wording that the field uses for a kind of rows: it goes before the others of its family, which follow in the
order of their names. Where a language lacks it, its family still goes first."""
_SENTENCE_ENDS = ("?", ".", "!", "？", "。", "！")
OPEN_FAMILIES = ("topic", "intent")
"""Whose labels are every user's own: the wordings name examples, which the rows' labels replace."""
MANY_LABELS = 20
"""Above it an open label set is taken for intents rather than topics: banking77 has 77, AG News 4, CSL 13."""


def fitting_templates(
    task: str, language: str, rows: Sequence[Row], named: Template | str | None = None
) -> list[Template]:
    """Return the templates that can render these rows, the best guess first.

    Args:
        task: of `prompt.template.TASKS`.
        language: "en" or "zh".
        rows: labelled rows.
        named: a template, or its name or file; only that one then.

    Returns:
        At least one; open label sets have the rows' labels.

    Raises:
        ConfigError: none fits, with the reason of the first.
    """
    _check_single_labels(task, rows)
    if named is not None:
        return [_with_labels(load_template(named) if isinstance(named, str) else named, rows)]
    fitting: list[Template] = []
    reasons: dict[bool, str] = {}  # the first of the rows' own family, and of the others
    family = _family(task, rows)
    for template in library_templates(task=task, language=language):
        try:
            if template.family in OPEN_FAMILIES and family not in OPEN_FAMILIES:
                raise ConfigError(f"{template.name} asks for topics or intents, the rows are of the family {family!r}")
            ready = _with_labels(template, rows)
            _try(ready, rows[0])
        except ChinchillaError as error:
            reasons.setdefault(template.family == family, str(error))
        else:
            fitting.append(ready)
    if not fitting:
        raise ConfigError(
            f"no {language} template of {task} fits these rows ({reasons.get(True) or reasons[False]}); name one, or a "
            ".yaml file of yours, with --template"
        )
    first = FIRST_WORDINGS.get(family)
    return sorted(
        fitting,
        key=lambda one: (one.family != family, one.name.rsplit("/", 1)[-1] != first, one.kind != "choice"),
    )


def thinking_templates(templates: Sequence[Template]) -> list[Template]:
    """Return the chain-of-thought forms of the first template's family, in order.

    Raises:
        ConfigError: the family has none.
    """
    family = [one for one in templates if one.family == templates[0].family]
    thinking = [one.thinking() for one in family if one.thought is not None]
    if not thinking:
        raise ConfigError(
            f"no wording of the family of {templates[0].name} has a chain-of-thought form; leave --thought out, or add "
            "`thought` to a template file of yours and name it with --template"
        )
    return thinking


def search_templates(
    scorer: Scorer,
    templates: Sequence[Template],
    rows: PromptRows,
    settings: DemoSettings,
    *,
    budget_items: int,
) -> SearchResult:
    """Find the best template, draw of demonstrations and rule on the dev rows, by successive halving.

    Args:
        scorer: holds the model.
        templates: with choices, all of the same task.
        rows: `dev` decides; `tests` are only used to refuse demonstrations and dev rows that copy them.
        settings: shots and draws; every draw is an arm.
        budget_items: arms times dev rows that may be scored.

    Raises:
        BudgetError: too few dev rows or items for so many arms.
        ConfigError: a template that writes its answers.
    """
    writing = next((one.name for one in templates if one.kind != "choice"), None)
    if writing is not None:
        raise ConfigError(f"{writing} writes its answers; the search compares templates with choices")
    rows = without_copies(templates[0], rows)
    by_name = {template.name: template for template in templates}
    draws = {template.name: demonstration_draws(template, rows, settings) for template in templates}
    arms = [PromptArm(template=name, draw=draw.draw) for name, own in draws.items() for draw in own]

    def evaluate(arm: PromptArm, numbers: np.ndarray) -> Mapping[str, np.ndarray]:
        template = by_name[arm.template]
        asked = [rows.dev[number] for number in numbers]
        gold_n = np.array([template.gold_index(row) for row in asked])
        rules = [rule for rule in rules_to_try(template, rows.dev) if rule != "bc" or len(asked) >= len(rows.dev) // 2]
        scored = DrawnScores(scorer, template, asked, draws[arm.template][arm.draw].shared(), rules)
        return {rule: (scores.argmax(axis=1) == gold_n).astype(float) for rule, scores in scored.scores.items()}

    return search_prompts(arms, evaluate, len(rows.dev), budget_items, settings.seed)


def _check_single_labels(task: str, rows: Sequence[Row]) -> None:
    """Refuse rows of several labels: a prompt chooses one."""
    several = next((row["label"] for row in rows if isinstance(row.get("label"), list)), None)
    if task == "text-classification" and several is not None:
        raise ConfigError(
            f"a row has the labels {several!r:.80}, and a prompt chooses one; give rows of one label, or learn several "
            "by `chinchilla tune text-classification`"
        )


def _with_labels(template: Template, rows: Sequence[Row]) -> Template:
    """Give an open label set the rows' labels; leave a closed one that holds them all; refuse any other."""
    if template.task not in ("text-classification", "relation-extraction") or template.kind != "choice":
        return template
    labels = sorted({str(row["label"]) for row in rows})
    if template.labels and template.family not in OPEN_FAMILIES:
        unknown = [label for label in labels if label not in template.labels]
        if unknown:
            raise ConfigError(f"{template.name} has no word for the label {unknown[0]!r}")
        return template
    if template.labels and set(labels) <= set(template.labels):
        return template
    return template.with_labels(labels)


def _try(template: Template, row: Row) -> None:
    if row.get("contexts") and not template.contexts:
        raise ConfigError(f"{template.name} asks one question, the rows have one ending after several contexts")
    template.render(row)
    if template.kind == "choice":
        template.gold_index(row)
    else:
        template.gold_text(row)


def _family(task: str, rows: Sequence[Row]) -> str:
    """Guess the family of the library that rows belong to; "" where the fields tell a task's families apart."""
    if task == "multiple-choice":
        questions = [str(row.get("question", "")).rstrip() for row in rows]
        if not any(questions):
            return "schema"
        return "question" if any(text.endswith(_SENTENCE_ENDS) for text in questions) else "continuation"
    if task == "question-answering":
        return "context" if any(row.get("context") for row in rows) else "closed"
    if task != "text-classification":
        return ""
    labels = {str(row["label"]) for row in rows}
    if any(row.get("text_pair") for row in rows):
        return "pair"
    if labels <= {"positive", "negative", "neutral", "0", "1"}:
        return "sentiment"
    return "intent" if len(labels) > MANY_LABELS else "topic"
