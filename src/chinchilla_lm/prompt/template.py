"""A template: how one row of a task becomes a prompt, and what may follow it.

    prompt       = shared + item            (never ends in a space)
    shared       = instruction, then the demonstrations, each `item + delimiter + answer + separator`
    continuation = delimiter + answer       (the space belongs to the label: " positive", not "Sentiment: ")

A template is a value. It never reads files (`prompt.library_files` does), knows no tokenizer and no model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from chinchilla_lm.core.errors import ConfigError, DataError
from chinchilla_lm.core.tasks import TASKS
from chinchilla_lm.prompt.extraction import Extraction
from chinchilla_lm.prompt.parts import Channel, PromptParts, Thought
from chinchilla_lm.prompt.rows import with_derived_fields
from chinchilla_lm.prompt.sandbox import compile_text

LANGUAGES = ("en", "zh")
# banking77 has 77 labels, clinc150 150, FewRel 80; a list this long no longer fits a small model's context.
MAX_CHOICES = 1_000
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, kw_only=True)
class Template:
    r"""One wording of one task in one language.

    Attributes:
        name: its place in the library, such as "en/text-classification/sentiment-review".
        task: one of `TASKS`.
        language: the prompt's language, "en" or "zh".
        item: Jinja2 text of a row, up to the place of the answer.
        fields: the fields a row must have.
        optional: fields that it may have.
        family: the kind of data within the task, such as "sentiment"; rows of one family share their templates.
        instruction: text before everything (Jinja2 over `words`, the labels' words).
        delimiter: what parts a prompt from its answer: " ", "\n" or, in Chinese, nothing.
        separator: what parts two demonstrations.
        labels: word by label, in order, for a closed set; empty with `choices`, and for a set the user's rows bring.
        choices: Jinja2 expression of a row's own list of answers.
        contexts: Jinja2 expression of a list of items, one a choice, when `choices` holds one continuation.
        target: Jinja2 expression of the right choice: its number from 0, or the label, answer or letter.
        answer: Jinja2 text of the right answer, for generation.
        gold: Jinja2 text of the right answer alone where `answer` holds more; `thinking` sets it.
        content: the fields that a content-free input replaces; all of `fields` without.
        domain: the prompt without its input, for PMI (" the answer is:"); the item's last line without.
        channel: the other direction; None where the task has none.
        thought: the chain-of-thought form; None where reasoning is no help.
        extract: where the answer stands in generated text.
        stops: strings that end a generated text.
        max_tokens: the longest generated text.
        example: a row, for the gallery and the checks.
        source: where the wording is from.
    """

    name: str
    task: str
    language: str
    item: str
    fields: tuple[str, ...]
    optional: tuple[str, ...] = ()
    family: str = ""
    instruction: str = ""
    delimiter: str = " "
    separator: str = "\n\n"
    labels: Mapping[str, str] = field(default_factory=dict)
    choices: str = ""
    contexts: str = ""
    target: str = "{{ label }}"
    answer: str = ""
    gold: str = ""
    content: tuple[str, ...] = ()
    domain: str = ""
    channel: Channel | None = None
    thought: Thought | None = None
    extract: Extraction = Extraction()
    stops: tuple[str, ...] = ("\n",)
    max_tokens: int = 64
    example: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""

    def __post_init__(self) -> None:
        _check_words(self)
        for key in ("item", "instruction", "choices", "contexts", "target", "answer", "gold", "domain"):
            _compiled(self, key)
        if self.channel is not None:
            compile_text(self.channel.given, f"{self.name}: channel.given")
            compile_text(self.channel.text, f"{self.name}: channel.text")
        if self.thought is not None:
            compile_text(self.thought.answer, f"{self.name}: thought.answer")

    @property
    def kind(self) -> Literal["choice", "generate"]:
        """Whether answers are chosen by their score or written by the model."""
        return "generate" if self.answer else "choice"

    @property
    def is_closed(self) -> bool:
        """Whether every row has the same answers."""
        return bool(self.labels)

    def render(self, row: Mapping[str, Any], demonstrations: Sequence[Mapping[str, Any]] = ()) -> PromptParts:
        """Turn a row into a prompt and its possible continuations.

        Args:
            row: canonical fields by name.
            demonstrations: solved rows, in their order; the last stands beside the item.

        Returns:
            The parts.

        Raises:
            DataError: a field is absent or of the wrong kind, or the text is too long.
        """
        row = with_derived_fields(self.task, row)
        shared = self.shared_text(demonstrations)
        answers = () if self.kind == "generate" else self.answers_of(row)
        items = self._contexts_of(row)
        if items is not None and len(answers) == 1:
            answers = answers * len(items)
        item = items[0] if items else self.item_text(row)
        continuations = tuple(self.delimiter + answer for answer in answers)
        return PromptParts(shared=shared, item=item, choices=continuations, answers=answers, items=items)

    def shared_text(self, demonstrations: Sequence[Mapping[str, Any]]) -> str:
        """Return the instruction and the solved rows, each followed by the separator."""
        text = _compiled(self, "instruction").render({"words": list(self.labels.values())})
        for solved in demonstrations:
            row = with_derived_fields(self.task, solved)
            text += self._solved_item(row) + self.delimiter + self.answer_text(row) + self.separator
        return text

    def item_text(self, row: Mapping[str, Any]) -> str:
        """Return a row's own text, without a space at its end."""
        row = with_derived_fields(self.task, row)
        self._check_fields(row)
        return _compiled(self, "item").render({**row, "words": list(self.labels.values())}).rstrip(" ")

    def answers_of(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the texts among which a row's answer is chosen, without the delimiter."""
        if self.labels:
            return tuple(self.labels.values())
        if not self.choices:
            raise DataError(f"{self.name} has an open label set; give it the labels by with_labels([...])")
        self._check_fields(row)
        found = _compiled(self, "choices").value(row)
        if not isinstance(found, (list, tuple)) or not 0 < len(found) <= MAX_CHOICES:
            raise DataError(f"{self.name}: choices gives {found!r:.80}; it takes a list of 1 to {MAX_CHOICES} texts")
        answers = tuple(str(choice).strip() for choice in found)
        if not all(answers) or any(isinstance(choice, (list, tuple, dict)) for choice in found):
            raise DataError(
                f"{self.name}: choices gives {found!r:.80}; each must be a text with characters, or a number"
            )
        return answers

    def gold_index(self, row: Mapping[str, Any]) -> int:
        """Return the number of the right choice, from 0; of choices with the same text the first.

        Raises:
            DataError: the row has no label, or one that is no choice.
        """
        assert self.labels or self.choices, f"{self.name} has no choices"
        target = _compiled(self, "target").value(row)
        names = list(self.labels) if self.labels else list(self.answers_of(row))
        size = len(self._contexts_of(row) or names)
        is_counted = any(name.isdecimal() for name in self.labels)  # stars from 1 to 5: a number there is a name
        if is_counted and isinstance(target, int) and not isinstance(target, bool):
            target = str(target)
        if isinstance(target, str):
            if target in names:
                return names.index(target)
            if target in self.labels.values():
                return list(self.labels.values()).index(target)
            if len(target) == 1 and target in LETTERS[:size]:
                return LETTERS.index(target)
            if target.strip().isdecimal() and not is_counted:
                target = int(target)
        if isinstance(target, int) and not isinstance(target, bool) and 0 <= target < size:
            return target if self.labels or self.contexts else names.index(names[target])
        shown = ", ".join(map(repr, names[:8])) + (", ..." if len(names) > 8 else "")
        raise DataError(f"{self.name}: the label {target!r} is none of {shown}; correct the row, or give all labels")

    def answer_text(self, row: Mapping[str, Any]) -> str:
        """Return what a demonstration shows after the delimiter: the right answer, with its reasoning if any.

        Raises:
            DataError: the row has no answer.
        """
        row = with_derived_fields(self.task, row)
        if self.kind == "choice":
            return self.gold_text(row)
        gold = self.gold_text(row) if self.gold or self.labels or self.choices else ""
        return _trimmed(_compiled(self, "answer").render({**row, "gold": gold}), self.delimiter)

    def gold_text(self, row: Mapping[str, Any]) -> str:
        """Return the right answer alone, with which an extracted answer is compared.

        Raises:
            DataError: the row has no answer.
        """
        row = with_derived_fields(self.task, row)
        if self.labels or self.choices:
            answers = self.answers_of(row)
            return answers[0] if self.contexts else answers[self.gold_index(row)]
        return _trimmed(_compiled(self, "gold" if self.gold else "answer").render(row), self.delimiter)

    def messages(
        self, row: Mapping[str, Any], demonstrations: Sequence[Mapping[str, Any]] = ()
    ) -> list[dict[str, str]]:
        """Return the prompt as a chat: system, then user and assistant by turns, for a model's own chat template.

        Args:
            row: canonical fields by name.
            demonstrations: solved rows, in their order.

        Returns:
            `{"role", "content"}` records; the last is the user's.
        """
        instruction = self.shared_text(()).strip()
        turns = [{"role": "system", "content": instruction}] if instruction else []
        for solved in demonstrations:
            turns.append({"role": "user", "content": self._solved_item(solved)})
            turns.append({"role": "assistant", "content": self.answer_text(solved)})
        return [*turns, {"role": "user", "content": self.render(row).item}]

    def with_labels(self, labels: Sequence[str] | Mapping[str, str]) -> Template:
        """Give an open label set its labels.

        Args:
            labels: words by label, or labels whose words follow from their names ("card_arrival": "card arrival").

        Returns:
            A template with a closed set, in that order; words that this template knows for a label stay.

        Raises:
            ConfigError: two labels would have the same word.
        """
        words = dict(labels) if isinstance(labels, Mapping) else {}
        for label in labels:
            words.setdefault(label, self.labels.get(label, label_word(label)))
        return dataclasses.replace(self, labels=words, choices="")

    def thinking(self) -> Template:
        """Return the chain-of-thought form: the same rows, answered by generation.

        Raises:
            ConfigError: the template has none.
        """
        if self.thought is None:
            raise ConfigError(f"{self.name} has no chain-of-thought form; add `thought` to its file")
        thought = self.thought
        return dataclasses.replace(
            self, name=f"{self.name}+thought", item=self.item + thought.cue, answer=thought.answer, thought=None,
            extract=thought.extract, stops=thought.stops, max_tokens=thought.max_tokens,
        )  # fmt: skip

    def content_free(self, row: Mapping[str, Any], text: str) -> dict[str, Any]:
        """Return a row that says nothing, such as "N/A" in place of the review.

        Args:
            row: any row; it gives the shape of its fields.
            text: the content-free text.

        Returns:
            The row with every field of `content` replaced: texts and lists of texts by `text`, a span by all of it.
        """
        # What was derived from the replaced fields is derived again.
        names = self.content or self.fields
        return {**row, **{name: _emptied(row[name], text) for name in names if name in row}}

    def domain_text(self, row: Mapping[str, Any]) -> str:
        """Return the domain premise of PMI: the prompt's end without the input, without a space at its end."""
        row = with_derived_fields(self.task, row)
        if self.domain:
            return _compiled(self, "domain").render({**row, "words": list(self.labels.values())}).rstrip(" ")
        return self.item_text(row).rsplit("\n", 1)[-1]

    def _contexts_of(self, row: Mapping[str, Any]) -> tuple[str, ...] | None:
        if not self.contexts:
            return None
        found = _compiled(self, "contexts").value(row)
        if not isinstance(found, (list, tuple)) or not 0 < len(found) <= MAX_CHOICES:
            raise DataError(f"{self.name}: contexts gives {found!r:.80}; it takes a list of 1 to {MAX_CHOICES} texts")
        return tuple(str(text).rstrip(" ") for text in found)

    def _solved_item(self, row: Mapping[str, Any]) -> str:
        items = self._contexts_of(row)
        return self.item_text(row) if items is None else items[self.gold_index(row)]

    def _check_fields(self, row: Mapping[str, Any]) -> None:
        for name in self.fields:
            if name not in row:
                raise DataError(
                    f"{self.name} needs the field {name!r}, the row has {', '.join(map(repr, row)) or 'none'}; "
                    "name the column, or choose another template"
                )


def label_word(label: str) -> str:
    """Return a label as a person would say it: "card_arrival" -> "card arrival", "Sci/Tech" as it is."""
    return " ".join(label.replace("_", " ").split()) or label


def _compiled(template: Template, key: str) -> Any:
    return compile_text(getattr(template, key), f"{template.name}: {key}")


def _trimmed(answer: str, delimiter: str) -> str:
    # After a line break (code) the first line's indent belongs to the answer.
    return answer.strip() if delimiter == " " else answer.strip("\n").rstrip()


def _emptied(value: Any, text: str) -> Any:
    if isinstance(value, str):
        return text
    if isinstance(value, (list, tuple)):
        if len(value) == 2 and all(isinstance(part, int) for part in value):
            return [0, len(text)]
        return [_emptied(part, text) for part in value]
    return {key: _emptied(part, text) for key, part in value.items()} if isinstance(value, dict) else value


def _check_words(template: Template) -> None:
    """Refuse what would put the boundary of prompt and answer in the wrong place."""
    if template.task not in TASKS:
        raise ConfigError(f"task = {template.task!r}; write one of {', '.join(TASKS)}")
    if template.language not in LANGUAGES:
        raise ConfigError(f"language = {template.language!r}; write one of {', '.join(LANGUAGES)}")
    if template.delimiter not in ("", " ", "\n"):
        raise ConfigError(f"delimiter = {template.delimiter!r}; write ' ', '\\n' or ''")
    if template.item.endswith(" ") or template.domain.endswith(" "):
        raise ConfigError("item and domain end in a space; the space belongs to the answer, so delete it")
    _check_labels(template)
    if not 0 < template.max_tokens <= 100_000:
        raise ConfigError(f"max_tokens = {template.max_tokens}; write 1 to 100000")
    if "" in template.stops:
        raise ConfigError("stops holds an empty string, which stops before the first word; delete it")


def _check_labels(template: Template) -> None:
    if len(template.labels) > MAX_CHOICES:
        raise ConfigError(f"{len(template.labels)} labels; at most {MAX_CHOICES}")
    words = list(template.labels.values())
    for label, word in template.labels.items():
        if word != word.strip() or not word:
            raise ConfigError(f"labels.{label} = {word!r} is empty or has outer spaces; write the word alone")
        if words.count(word) > 1:
            raise ConfigError(f"labels.{label} = {word!r} stands for two labels; give each its own word")
    if template.labels and template.choices:
        raise ConfigError("labels and choices are both given; a closed set has labels, a row's own list choices")
