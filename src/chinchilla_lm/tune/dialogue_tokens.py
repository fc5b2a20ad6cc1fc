"""Dialogues to tokens by a chat template, and which tokens are the assistant's: the targets.

A template that marks them (`{% generation %}`) is believed: the mask is `apply_chat_template`'s own. Of others each
assistant turn is found by rendering: it is what the text gains from the prompt for that turn to the text through it,
up to and with the end-of-text token; the break that templates put after that is no target. A turn whose rendering
changes as the dialogue goes on (templates that drop earlier thoughts) is left out where it is not the last.

A dialogue that is too long becomes several rows, from its end backwards; each holds as many turns before its last
answer as fit (and the system's message), so every assistant turn is a target exactly once with the context next to it.
Axes: t tokens. Never runs a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from chinchilla_lm.core.errors import DataError
from chinchilla_lm.tune.completion_tokens import IGNORED, end_token_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Message = Mapping[str, Any]

PLAIN_CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
Assistant:{% generation %} {{ message['content'] }}{{ eos_token }}{% endgeneration %}{{ '\\n' }}
{%- else -%}
{{ message['role'] | capitalize }}: {{ message['content'] }}{{ '\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
Assistant:
{%- endif -%}
"""
"""For models without a template: "User: ...\\nAssistant: ...<end>\\n". It is saved with the tuned folder. No space ends
the prompt, and the end-of-text token is within the generation mark: a model tuned on it stops."""


@dataclass(frozen=True, kw_only=True)
class EncodedDialogue:
    """A window of a dialogue in tokens.

    Attributes:
        ids: (t) int64.
        is_target: the token is the assistant's, (t) bool; the first is not, for nothing precedes it.
        turns: numbers of the messages whose tokens are targets.
    """

    ids: np.ndarray[Any, Any]
    is_target: np.ndarray[Any, Any]
    turns: tuple[int, ...]

    @property
    def inputs(self) -> np.ndarray[Any, Any]:
        """All but the last token, (t-1)."""
        return self.ids[:-1]

    @property
    def targets(self) -> np.ndarray[Any, Any]:
        """The token after each input where it is the assistant's, else -100; (t-1)."""
        return np.where(self.is_target[1:], self.ids[1:], IGNORED)


def ensure_chat_template(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Give a tokenizer without a chat template the plain one; return whether it had its own."""
    if tokenizer.chat_template is not None:
        return True
    tokenizer.chat_template = PLAIN_CHAT_TEMPLATE
    return False


def encode_dialogue(
    tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message], max_tokens: int
) -> tuple[list[EncodedDialogue], int]:
    """Encode one dialogue.

    Args:
        tokenizer: with a chat template.
        messages: {role, content} in order; what follows the last assistant turn is left out.
        max_tokens: longest row.

    Returns:
        (windows, from the last to the first; assistant turns that fit in none with the message before them).

    Raises:
        DataError: the template refuses the messages.
    """
    windows: list[EncodedDialogue] = []
    open_turns = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
    lost = 0
    while open_turns:
        window = _longest_window(tokenizer, messages, open_turns, max_tokens)
        if window is None:
            lost += 1
            open_turns.pop()
            continue
        windows.append(window)
        open_turns = [turn for turn in open_turns if turn not in window.turns]
    return windows, lost


def mask_dialogue(
    tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message], wanted: Sequence[int]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], tuple[int, ...]]:
    """Tokens of a dialogue, and which are the assistant's.

    Args:
        tokenizer: with a chat template.
        messages: all are rendered.
        wanted: numbers of the assistant's messages to find; a template with marks finds all.

    Returns:
        (ids_t int64, is_target_t bool, numbers of the messages found).
    """
    if not _has_marks(str(tokenizer.chat_template)):
        return _mask_by_rendering(tokenizer, messages, wanted)
    encoded: Any = _apply(tokenizer, messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    ids, mask = np.asarray(encoded["input_ids"], np.int64), np.asarray(encoded["assistant_masks"], bool)
    return ids, mask, tuple(wanted) if mask.any() else ()


def reply_prompt(tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message], limit: int) -> list[int]:
    """Tokens after which the model writes the next assistant turn; the oldest turns go until they fit `limit`.

    A single message that is too long keeps its last tokens.
    """
    ids: list[int] = []
    for numbers in _suffixes(messages, len(messages)):
        kept = [messages[number] for number in numbers]
        ids = list(_apply(tokenizer, kept, tokenize=True, return_dict=True, add_generation_prompt=True)["input_ids"])
        if len(ids) <= limit:
            return ids
    return ids[-limit:]


def _longest_window(
    tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message], open_turns: Sequence[int], max_tokens: int
) -> EncodedDialogue | None:
    """The window that ends with the last open turn and begins as early as fits; its targets are open turns alone."""
    for kept in _suffixes(messages, open_turns[-1] + 1):
        window = [messages[number] for number in kept]
        if len(_apply(tokenizer, window, tokenize=True, return_dict=True)["input_ids"]) > max_tokens:
            continue
        wanted = [place for place, number in enumerate(kept) if number in open_turns]
        ids, mask, found = mask_dialogue(tokenizer, window, wanted)
        if kept.index(open_turns[-1]) in found:
            mask[0] = False  # nothing precedes it
            return EncodedDialogue(ids=ids, is_target=mask, turns=tuple(kept[place] for place in found))
    return None


def _suffixes(messages: Sequence[Message], end: int) -> list[list[int]]:
    """Numbers of messages[:end], then fewer: the oldest turns go, a system message stays, a user's comes first."""
    system = [0] if messages and messages[0]["role"] == "system" else []
    first = len(system)
    starts = [first] + [n for n in range(first + 1, end) if messages[n]["role"] == "user"]
    return [[*system, *range(start, end)] for start in starts]


def _mask_by_rendering(
    tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message], wanted: Sequence[int]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], tuple[int, ...]]:
    whole: str = _apply(tokenizer, messages, tokenize=False)
    encoded = tokenizer(whole, add_special_tokens=False)
    ids = np.asarray(encoded["input_ids"], np.int64)
    mask, found = np.zeros(len(ids), dtype=bool), []
    for n in wanted:
        if n == 0:  # an opening that nothing asks for: where its prompt ends cannot be told
            continue
        before: str = _apply(tokenizer, messages[:n], tokenize=False, add_generation_prompt=True)
        through: str = _apply(tokenizer, messages[: n + 1], tokenize=False)
        if not (through.startswith(before) and whole.startswith(through)):
            continue
        end = _end_of_turn(through, len(before), tokenizer)
        first, last = encoded.char_to_token(len(before)), encoded.char_to_token(end - 1)
        if first is not None and last is not None:
            mask[first : last + 1] = True
            found.append(n)
    return ids, mask, tuple(found)


def _end_of_turn(text: str, start: int, tokenizer: PreTrainedTokenizerFast) -> int:
    """Where a turn that begins at `start` and ends the text stops being the model's: after its end-of-text token."""
    ending = str(tokenizer.convert_ids_to_tokens(end_token_id(tokenizer)))
    place = text.rfind(ending, start)
    return len(text) if place < 0 else place + len(ending)


def _has_marks(template: str) -> bool:
    return "generation" in template and "endgeneration" in template


def _apply(tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message], **options: Any) -> Any:
    from jinja2.exceptions import TemplateError  # only where a chat is rendered

    try:
        return tokenizer.apply_chat_template([dict(message) for message in messages], **options)
    except TemplateError as error:
        roles = ", ".join(str(message.get("role")) for message in messages[:6])
        raise DataError(
            f"the chat template refuses a dialogue with roles {roles}: {' '.join(str(error).split())}; "
            "let user and assistant take turns"
        ) from error
