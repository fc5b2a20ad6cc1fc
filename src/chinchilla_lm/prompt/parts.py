"""The records around a template: a rendered prompt, and a template's two other forms."""

from __future__ import annotations

from dataclasses import dataclass

from chinchilla_lm.prompt.extraction import Extraction


@dataclass(frozen=True, kw_only=True)
class PromptParts:
    """One row, ready for a model.

    Attributes:
        shared: the text that rows with the same demonstrations have in common; a model reads it once.
        item: the row's own text; `shared + item` never ends in a space.
        choices: what may follow, one text a choice, each with its leading delimiter; empty for free text.
        answers: the same without the delimiter.
        items: one item a choice where the alternatives stand in the prompt (Winograd schemas); else None.
    """

    shared: str
    item: str
    choices: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    items: tuple[str, ...] | None = None

    @property
    def prefix(self) -> str:
        """The whole prompt."""
        return self.shared + self.item


@dataclass(frozen=True, kw_only=True)
class Thought:
    """The chain-of-thought form of a template.

    Attributes:
        cue: text after the item that asks for reasoning, such as " Let's think step by step.".
        answer: Jinja2 text of a demonstration's reasoning, from the row's fields and `gold`, the right answer.
        extract: where the answer stands in the generated text.
        stops: strings that end the text.
        max_tokens: the longest text.
    """

    cue: str
    answer: str
    extract: Extraction
    stops: tuple[str, ...] = ("\n\n",)
    max_tokens: int = 256


@dataclass(frozen=True, kw_only=True)
class Channel:
    """The other direction, for the channel rule: log p(input | label).

    Attributes:
        given: Jinja2 text of the condition, from `choice` (the label's word).
        text: Jinja2 text of the input, from the row's fields.
    """

    given: str
    text: str
