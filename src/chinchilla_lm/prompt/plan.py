"""What a scoring rule asks of a model: pairs of a prompt and a continuation.

A plan is a flat list, so that an engine may sort, batch and share prefixes as it likes and return one number a request:
the sum of log p(continuation | prompt) in nats. The prompt comes in two parts, so that a model can read a `shared` text
once for all requests that have it. `rules.finish_scores` turns the numbers into scores.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from chinchilla_lm.core.errors import ConfigError, DataError
from chinchilla_lm.prompt.parts import PromptParts
from chinchilla_lm.prompt.rows import with_derived_fields
from chinchilla_lm.prompt.sandbox import compile_text
from chinchilla_lm.prompt.template import Template

RULES = ("sum", "token", "char", "byte", "pmi", "cc", "bc", "channel")
# Zhao et al. 2021, section 5: the average over these three.
CONTENT_FREE_TEXTS = ("N/A", "", "[MASK]")

Part = Literal["conditional", "domain", "content-free", "channel"]


@dataclass(frozen=True, kw_only=True)
class ScoreRequest:
    """One question to a model: log p(continuation | shared + item), in nats, summed over the continuation's tokens.

    Attributes:
        shared: the first part of the prompt: instruction and demonstrations, often the same for many requests.
        item: the second part; the prompt never ends in a space.
        continuation: the text whose probability is asked, with its leading delimiter.
        answer: the continuation without it; lengths are counted on this.
        part: what the number is for.
        row: the row's number from 0; -1 for numbers that serve every row of the group (of all groups for "domain").
        choice: the choice's number from 0.
        group: the number of the row's set of demonstrations, from 0.
    """

    shared: str
    item: str
    continuation: str
    answer: str
    part: Part
    row: int
    choice: int
    group: int

    @property
    def prefix(self) -> str:
        """The whole prompt."""
        return self.shared + self.item


def plan_scores(
    template: Template,
    rows: Sequence[Mapping[str, Any]],
    demonstrations: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]] = (),
    rules: str | Sequence[str] = "sum",
) -> list[ScoreRequest]:
    """List the pairs that one or several rules need; what rules have in common is asked once.

    Args:
        template: a template with choices.
        rows: n rows.
        demonstrations: solved rows for all, or a sequence of them for each row (nearest neighbours).
        rules: of `RULES`.

    Returns:
        Requests by row and choice; then those of the groups.

    Raises:
        ConfigError: a rule that is unknown or that this template cannot serve.
        DataError: a row does not fit the template.
    """
    wanted = (rules,) if isinstance(rules, str) else tuple(rules)
    check_rules(template, wanted)
    is_common = not demonstrations or isinstance(demonstrations[0], Mapping)
    before = _texts_before(template, demonstrations, wanted) if is_common else None  # type: ignore[arg-type]
    has_own_premise = "pmi" in wanted and not _has_fixed_domain(template, rows)
    groups: dict[str, int] = {}
    requests: list[ScoreRequest] = []
    for number, row in enumerate(rows):
        own = before or _texts_before(template, demonstrations[number], wanted)  # type: ignore[arg-type]
        group = groups.setdefault(own.shared, len(groups))
        requests += _row_requests(template, row, (number, group), own, wanted)
        if has_own_premise:
            requests += _domain_requests(template, row, number, group)
    if rows and "pmi" in wanted and not has_own_premise:
        requests += _domain_requests(template, rows[0], row_number=-1, group=0)
    if rows and "cc" in wanted:
        requests += _content_free_requests(template, rows[0], groups)
    return requests


def check_rules(template: Template, rules: Sequence[str]) -> None:
    """Refuse rules that a template cannot serve.

    Raises:
        ConfigError: an unknown rule, a template without choices, contextual calibration without a closed label set,
            the channel rule without a `channel`, or a rule on the prompt's end where the alternatives stand inside it.
    """
    for rule in rules:
        if rule not in RULES:
            raise ConfigError(f"the rule {rule!r} is unknown; write one of {', '.join(RULES)}")
    if template.kind != "choice":
        raise ConfigError(f"{template.name} writes its answers, it has no choices to score; choose another template")
    if "cc" in rules and not template.is_closed:
        raise ConfigError(
            f"cc (contextual calibration) needs a closed label set, {template.name} has none; use pmi or byte"
        )
    if "channel" in rules and template.channel is None:
        raise ConfigError(f"{template.name} has no `channel`; choose another rule, or add one to its file")
    if template.contexts and set(rules) - {"sum", "token", "char", "byte"}:
        raise ConfigError(
            f"{template.name} scores one continuation after several contexts; its rules are sum and token"
        )


@dataclass(frozen=True)
class _Before:
    """The text before an item, for the usual direction and for the channel."""

    shared: str
    channel: str


def _texts_before(template: Template, demonstrations: Sequence[Mapping[str, Any]], rules: Sequence[str]) -> _Before:
    channel = _channel_shared(template, demonstrations) if "channel" in rules else ""
    return _Before(template.shared_text(demonstrations), channel)


def _row_requests(
    template: Template, row: Mapping[str, Any], place: tuple[int, int], before: _Before, rules: Sequence[str]
) -> list[ScoreRequest]:
    number, group = place
    parts = dataclasses.replace(template.render(row), shared=before.shared)
    requests: list[ScoreRequest] = []
    if set(rules) - {"channel"}:
        requests += _requests_of(parts, "conditional", number, group)
    if "channel" in rules:
        for choice, answer in enumerate(parts.answers):
            given, said = _channel_texts(template, row, answer)
            asked = PromptParts(
                shared=before.channel, item=given, choices=(template.delimiter + said,), answers=(said,)
            )
            requests += _requests_of(asked, "channel", number, group, first_choice=choice)
    return requests


def _requests_of(parts: PromptParts, part: Part, row: int, group: int, first_choice: int = 0) -> list[ScoreRequest]:
    return [
        ScoreRequest(
            shared=parts.shared,
            item=parts.items[choice] if parts.items else parts.item,
            continuation=continuation,
            answer=parts.answers[choice],
            part=part,
            row=row,
            choice=first_choice + choice,
            group=group,
        )
        for choice, continuation in enumerate(parts.choices)
    ]


def _has_fixed_domain(template: Template, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether one premise and one set of answers serve every row, so that k numbers do for all."""
    return template.is_closed and len({template.domain_text(row) for row in rows}) <= 1


def _domain_requests(template: Template, row: Mapping[str, Any], row_number: int, group: int) -> list[ScoreRequest]:
    parts = template.render(row)
    premise = dataclasses.replace(parts, shared="", item=template.domain_text(row), items=None)
    return _requests_of(premise, "domain", row_number, group)


def _content_free_requests(template: Template, row: Mapping[str, Any], groups: Mapping[str, int]) -> list[ScoreRequest]:
    requests: list[ScoreRequest] = []
    for shared, group in groups.items():
        for text in CONTENT_FREE_TEXTS:
            parts = dataclasses.replace(template.render(template.content_free(row, text)), shared=shared)
            requests += _requests_of(parts, "content-free", -1, group)
    return requests


def _channel_texts(template: Template, row: Mapping[str, Any], answer: str) -> tuple[str, str]:
    assert template.channel is not None, "check_rules refuses it"
    given = compile_text(template.channel.given, f"{template.name}: channel.given").render({**row, "choice": answer})
    row = with_derived_fields(template.task, row)
    said = compile_text(template.channel.text, f"{template.name}: channel.text").render(row).strip()
    if not said:
        raise DataError(f"{template.name}: the channel's text is empty; leave the row out, or use another rule")
    return given.rstrip(" "), said


def _channel_shared(template: Template, demonstrations: Sequence[Mapping[str, Any]]) -> str:
    shared = ""
    for row in demonstrations:
        given, said = _channel_texts(template, row, template.answer_text(row))
        shared += given + template.delimiter + said + template.separator
    return shared
