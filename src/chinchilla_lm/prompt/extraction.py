"""From a model's free text to an answer: stop rules, extraction rules and a vote.

A rule never guesses: text without an answer gives None, which counts as wrong and is reported.
Patterns run in the `regex` package with a time limit, since a pattern may come from a stranger's template.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import regex

from chinchilla_lm.core.errors import ConfigError, DataError

Rule = Literal["all", "first-line", "last-line", "number", "letter", "choice", "regex", "entity-list", "entity-markup"]

# A reader's patience; the rules here take under a millisecond on 10,000 characters.
PATTERN_SECONDS = 0.5
MAX_ANSWER_CHARACTERS = 20_000
MAX_PATTERN_CHARACTERS = 500
# Of all counts of a pattern together: compiling (?:a{1000}){1000} takes 0.4 s.
MAX_REPEATS = 1_000_000
_REPEAT = regex.compile(r"\{(\d*)(?:,(\d*))?\}")
# A sign after a letter, a digit or a bracket is a hyphen or a minus between two numbers: "COVID-19", "10-20", "(3)-5".
_SIGN, _WHOLE = r"(?:(?<![\p{Latin}\d)\]])[-+−])?", r"(?:\d{1,3}(?:[,，]\d{3})+(?!\d)|\d+)"
_NUMBER = regex.compile(rf"{_SIGN}(?:{_WHOLE}(?:\.\d+)?|(?<![\d.])\.\d+)(?:[eE][-+]?\d+)?")
# A letter that stands alone: "(B)", "B.", "B", "B is right", "答案是B"; not the B of "Bob", nor the article of "A dog"
# or the "I" of "I think".
_LETTER = regex.compile(r"(?<![A-Za-z])([A-Z])(?![A-Za-z'’])(?!(?<=A)\s+(?!is\b)[a-z]|(?<=I)\s+[a-z])")
_LETTER_AFTER_CUE = regex.compile(
    r"(?i:answer(?:\s+is)?|option|choice|答案(?:是|为)?|选项?)\s*:?\s*\(?([A-Z])(?![A-Za-z])"
)


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """Where in a generated text the answer stands.

    Attributes:
        rule: `all` the whole text; `first-line`, `last-line` that line with words in it; `number` a number, without
            thousands marks; `letter` an option's letter; `choice` the choice named; `regex` the pattern's first group;
            `entity-list` and `entity-markup` the first line, which `rows.read_entities` reads on.
        pattern: for `regex`; group 1 is the answer, else the whole match.
        which: the first or the last match in the text (for number, letter, choice and regex).
    """

    rule: Rule = "first-line"
    pattern: str = ""
    which: Literal["first", "last"] = "first"

    def __post_init__(self) -> None:
        if (self.rule == "regex") != bool(self.pattern):
            raise ConfigError(
                f"rule = {self.rule!r} with pattern = {self.pattern!r}; a pattern goes with rule = 'regex'"
            )
        if len(self.pattern) > MAX_PATTERN_CHARACTERS:
            raise ConfigError(f"pattern has {len(self.pattern)} characters; write at most {MAX_PATTERN_CHARACTERS}")
        _check_repeats(self.pattern)
        try:
            regex.compile(self.pattern)
        except (regex.error, RecursionError) as error:
            raise ConfigError(f"pattern = {self.pattern!r} is no regular expression ({error}); correct it") from None


@dataclass(frozen=True, kw_only=True)
class Vote:
    """What several samples agree on.

    Attributes:
        answer: the most frequent answer as first written; None when no sample had one.
        share: its votes / samples with an answer, in [0, 1].
        counts: votes by answer, most first.
        unanswered: samples without an answer.
    """

    answer: str | None
    share: float
    counts: dict[str, int]
    unanswered: int


def extract_answer(extraction: Extraction, text: str, choices: Sequence[str] = ()) -> str | None:
    """Read the answer out of a generated text.

    Args:
        extraction: the rule.
        text: what the model wrote after the prompt; its first 20,000 characters count (the last for `which="last"`).
        choices: the words of the choices, for the rule `choice`.

    Returns:
        The answer without outer space, or None when the text holds none.

    Raises:
        DataError: the pattern takes longer than `PATTERN_SECONDS` on this text.
    """
    is_last = extraction.which == "last" or extraction.rule == "last-line"
    shown = text[-MAX_ANSWER_CHARACTERS:] if is_last else text[:MAX_ANSWER_CHARACTERS]
    if extraction.rule == "all":
        return shown.strip() or None
    if extraction.rule in ("first-line", "last-line", "entity-list", "entity-markup"):
        lines = [line.strip() for line in shown.splitlines() if line.strip()]
        return (lines[-1] if is_last else lines[0]) if lines else None
    if extraction.rule == "choice":
        return _named_choice(shown, choices, is_last)
    matches = _matches(extraction, shown)
    if not matches:
        return None
    answer = matches[-1 if is_last else 0]
    if extraction.rule == "number":
        plain = unicodedata.normalize("NFKC", answer)  # full-width digits and commas
        answer = plain.replace(",", "").replace("−", "-").lstrip("+")
    return answer.strip() or None


def cut_at_stops(text: str, stops: Sequence[str]) -> str:
    """Cut a text before the first of the stop strings.

    Args:
        text: generated text.
        stops: strings, none of them empty.

    Returns:
        The text before the earliest one; all of it when there is none.
    """
    assert all(stops), f"an empty stop string stops before the first word: {stops!r}"
    ends = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    return text[: min(ends)] if ends else text


def vote(answers: Sequence[str | None], weights: Sequence[float] | None = None) -> Vote:
    """Take the answer that most sampled reasonings reach (self-consistency).

    Answers are compared after Unicode NFKC, case folding and trimming of outer punctuation; among equals the one seen
    first wins.

    Args:
        answers: one a sample; None where there was none.
        weights: for instance the samples' probabilities, >= 0; equal without.

    Returns:
        The winner with its share.

    Source: Wang et al. 2022, "Self-Consistency Improves Chain of Thought Reasoning", section 2 (majority vote).
    """
    first_written: dict[str, str] = {}
    totals: dict[str, float] = {}
    counts: dict[str, int] = {}
    for answer, weight in zip(answers, weights or [1.0] * len(answers), strict=True):
        if answer is None:
            continue
        key = _comparable(answer)
        first_written.setdefault(key, answer)
        totals[key] = totals.get(key, 0.0) + weight
        counts[key] = counts.get(key, 0) + 1
    if not totals:
        return Vote(answer=None, share=0.0, counts={}, unanswered=len(answers))
    ranked = sorted(totals, key=lambda key: -totals[key])  # stable: the first seen stays first
    whole = sum(totals.values())
    return Vote(
        answer=first_written[ranked[0]],
        share=totals[ranked[0]] / whole if whole > 0 else 0.0,
        counts={first_written[key]: counts[key] for key in ranked},
        unanswered=len(answers) - sum(counts.values()),
    )


def _matches(extraction: Extraction, text: str) -> list[str]:
    if extraction.rule == "number":
        return _NUMBER.findall(text)
    if extraction.rule == "letter":
        plain = unicodedata.normalize("NFKC", text)  # full-width letters, colons and brackets
        return _LETTER_AFTER_CUE.findall(plain) or _LETTER.findall(plain)
    try:
        found = regex.finditer(extraction.pattern, text, timeout=PATTERN_SECONDS)
        return [match[1] if match.re.groups and match[1] is not None else match[0] for match in found]
    except TimeoutError:
        raise DataError(
            f"the pattern {extraction.pattern!r} takes longer than {PATTERN_SECONDS} s on one text; write it without "
            "nested repeats"
        ) from None


def _named_choice(text: str, choices: Sequence[str], is_last: bool) -> str | None:
    """Return the choice that the text names first (or last), whole words only; of two at one place the longer."""
    best: tuple[int, int] | None = None
    answer = None
    folded = unicodedata.normalize("NFKC", text).casefold()
    for choice in choices:
        word = unicodedata.normalize("NFKC", choice).casefold().strip()
        if not word:
            continue
        # \b does not part Chinese characters, where any place is a boundary.
        before = r"(?<![\p{Latin}\p{N}])" if word[0].isascii() else ""
        after = r"(?![\p{Latin}\p{N}])" if word[-1].isascii() else ""
        for match in regex.finditer(before + regex.escape(word) + after, folded):
            rank = (-match.start() if is_last else match.start(), -len(word))
            if best is None or rank < best:
                best, answer = rank, choice
    return answer


def _check_repeats(pattern: str) -> None:
    """Refuse counted repeats whose product is large: compiling `a{999999999}` takes gigabytes."""
    counts = [max(int(count or 0) for count in pair) or 1 for pair in _REPEAT.findall(pattern)]
    if math.prod(counts) > MAX_REPEATS:
        raise ConfigError(f"pattern = {pattern!r} repeats up to {max(counts)} times; write counts of a smaller product")


def _comparable(answer: str) -> str:
    folded = " ".join(unicodedata.normalize("NFKC", answer).casefold().split())
    # A number keeps its sign and its point: "-5" is not "5", nor ".5".
    trimmed = regex.sub(r"^(?:(?!-?\.?\d)[\p{P}\s])+|[\p{P}\s]+$", "", folded.replace("−", "-"))
    return trimmed or folded
