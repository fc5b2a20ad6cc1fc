"""A question and its context as the model reads them, and where each context token stands in the text.

The question comes first, for a causal model reads the context only once and must know what to look for. A context
longer than the model's window becomes several windows that overlap by `stride` tokens; nothing is cut off.
Character offsets are exact in any script: an answer is a slice of the context itself.

Axes: t positions of a window, c its context tokens. No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from chinchilla_lm.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Encode = Callable[[str], tuple[list[int], list[tuple[int, int]]]]


@dataclass(frozen=True, kw_only=True, eq=False)
class SpanWindow:
    """A part of a context behind its question.

    Attributes:
        ids_t: token ids, int64.
        first: position of the first context token; the others follow it without a gap.
        starts_c: character of the context where an answer that starts with this token starts; -1: none can, for no
            character but white space begins in it.
        ends_c: character where an answer that ends with this token ends (exclusive); -1: no character ends in it.
        null: the position whose score says "no answer": the last one read (causal) or the first (encoder).
    """

    ids_t: np.ndarray[Any, Any]
    first: int
    starts_c: np.ndarray[Any, Any]
    ends_c: np.ndarray[Any, Any]
    null: int

    @property
    def count(self) -> int:
        """Context tokens in this window, >= 1."""
        return len(self.starts_c)


def encode_question(
    tokenizer: PreTrainedTokenizerFast,
    question: str,
    context: str,
    *,
    template: str | None,
    max_tokens: int,
    stride: int,
) -> list[SpanWindow]:
    """Cut a context into windows, each behind the whole question.

    Args:
        tokenizer: a fast one.
        question: asked.
        context: searched.
        template: a prompt with "{question}" before "{context}", for a causal model; None: the tokenizer's own form of a
            pair, for an encoder.
        max_tokens: longest window, everything included.
        stride: context tokens that two neighbouring windows share; less where a window has little room.

    Returns:
        Windows in order; none if the context has no token.

    Raises:
        DataError: the question leaves no room for the context.
    """
    if template is None:
        encoded = _encode_pair(tokenizer, question, context)
        return _cut_windows(encoded, question, context, max_tokens, stride, is_null_first=True)

    def encode(text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoding = tokenizer(text, return_offsets_mapping=True)
        return encoding["input_ids"], encoding["offset_mapping"]

    return encode_prompted(encode, question, context, template=template, max_tokens=max_tokens, stride=stride)


def encode_prompted(
    encode: Encode, question: str, context: str, *, template: str, max_tokens: int, stride: int
) -> list[SpanWindow]:
    """Cut a causal model's context into windows by any tokenizer; see `encode_question`.

    Args:
        encode: text -> (ids with the special tokens, characters [start, end) that each touches).
        question: asked.
        context: searched.
        template: a prompt with "{question}" before "{context}".
        max_tokens: longest window.
        stride: context tokens that two neighbouring windows share.
    """
    encoded = _encode_template(encode, question, context, template)
    return _cut_windows(encoded, question, context, max_tokens, stride, is_null_first=False)


def _cut_windows(
    encoded: tuple[list[int], list[tuple[int, int]], int, int],
    question: str,
    context: str,
    max_tokens: int,
    stride: int,
    *,
    is_null_first: bool,
) -> list[SpanWindow]:
    ids, offsets, low, high = encoded
    room = max_tokens - low - (len(ids) - high)
    if room < 1:
        raise DataError(
            f"a question of {low} tokens leaves no room in {max_tokens} for its context; raise max_tokens, or cut: "
            f"{question[:60]!r}"
        )
    step = max(1, room - min(stride, room // 2))
    starts_c, ends_c = answer_offsets(context, offsets[low:high])
    windows = []
    for start in range(low, high, step):
        end = min(start + room, high)
        ids_t = np.array([*ids[:low], *ids[start:end], *ids[high:]], np.int64)
        null = 0 if is_null_first else len(ids_t) - 1
        part = slice(start - low, end - low)
        windows.append(SpanWindow(ids_t=ids_t, first=low, starts_c=starts_c[part], ends_c=ends_c[part], null=null))
        if end == high:
            break
    return windows


def check_template(template: str) -> None:
    """Refuse a prompt that a causal model cannot use.

    Raises:
        ConfigError: a field is absent or twice, the context comes before the question, or nothing follows it.
    """
    if template.count("{question}") != 1 or template.count("{context}") != 1:
        raise ConfigError(f"template {template!r} must hold {{question}} and {{context}} once each; add them")
    if template.index("{question}") > template.index("{context}"):
        raise ConfigError(
            f"template {template!r} has the context before the question, so that a causal model reads it without "
            "knowing what is asked; write {question} first"
        )
    if not template.split("{context}")[1].strip():
        raise ConfigError(f"template {template!r} must end in words after {{context}}, such as 'Answer:'; add them")


def answer_offsets(
    context: str, offsets: Sequence[tuple[int, int]]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Say where an answer starts or ends with each token, to the character.

    A byte-level token may end within a character (the three bytes of a Chinese one in two tokens), and both then claim
    it. Here a character belongs, as a start, to the token with its first byte, as an end, to that with its last.

    Args:
        context: the text.
        offsets: characters [start, end) that each token touches, in order.

    Returns:
        (starts_c, ends_c), see `SpanWindow`.
    """
    starts_c, ends_c = np.full(len(offsets), -1, np.int64), np.full(len(offsets), -1, np.int64)
    for number, (low, high) in enumerate(offsets):
        begins = max(low, offsets[number - 1][1]) if number else low
        finishes = min(high, offsets[number + 1][0]) if number + 1 < len(offsets) else high
        while begins < high and context[begins].isspace():
            begins += 1
        while finishes > low and context[finishes - 1].isspace():
            finishes -= 1
        if begins < high:
            starts_c[number] = begins
        if finishes > low:
            ends_c[number] = finishes
    return starts_c, ends_c


def target_positions(window: SpanWindow, answer: tuple[int, int]) -> tuple[int, int] | None:
    """Find the tokens that cover an answer most tightly.

    Args:
        window: of its context.
        answer: characters [start, end) in the context, start < end, no white space around.

    Returns:
        Positions (first, last) in `ids_t`, or None if the window does not hold the whole answer.
    """
    is_start_c = (window.starts_c >= 0) & (window.starts_c <= answer[0])
    is_end_c = window.ends_c >= answer[1]
    if not is_start_c.any() or not is_end_c.any():
        return None
    first, last = int(np.flatnonzero(is_start_c)[-1]), int(np.flatnonzero(is_end_c)[0])
    return (window.first + first, window.first + last) if first <= last else None


def locate_answer(context: str, answers: Sequence[dict[str, Any]]) -> tuple[int, int] | None:
    """Find the first answer that stands in the context: at its `start` if that is right, else where it occurs first.

    Args:
        context: searched.
        answers: each {"text", "start"?}.

    Returns:
        Characters [start, end), without white space around, or None.
    """
    for answer in answers:
        text, start = answer["text"], answer.get("start")
        if start is None or context[start : start + len(text)] != text:
            start = context.find(text)
        low, high = _trim(context, start, start + len(text)) if start >= 0 else (0, 0)
        if low < high:
            return low, high
    return None


def _encode_template(
    encode: Encode, question: str, context: str, template: str
) -> tuple[list[int], list[tuple[int, int]], int, int]:
    """(ids, offsets in the context, first context token, end of the context's tokens) of the whole prompt."""
    before, after = template.split("{context}")
    before = before.replace("{question}", question.strip())
    ids, places = encode(before + context + after)
    start, end = len(before), len(before) + len(context)
    offsets = [(low - start, min(high, end) - start) for low, high in places]
    # A token belongs to the context if it holds one of its characters; special tokens are (0, 0), before it.
    inside = [t for t, (low, high) in enumerate(places) if high > start and low < min(high, end)]
    low, high = (inside[0], inside[-1] + 1) if inside else (len(offsets), len(offsets))
    return ids, [(max(0, first), last) for first, last in offsets], low, high


def _encode_pair(
    tokenizer: PreTrainedTokenizerFast, question: str, context: str
) -> tuple[list[int], list[tuple[int, int]], int, int]:
    """The same for an encoder's pair, such as [CLS] question [SEP] context [SEP]."""
    encoding = tokenizer(question.strip(), context, return_offsets_mapping=True)
    inside = [t for t, sequence in enumerate(encoding.sequence_ids()) if sequence == 1]
    low, high = (inside[0], inside[-1] + 1) if inside else (len(encoding["input_ids"]), len(encoding["input_ids"]))
    return encoding["input_ids"], encoding["offset_mapping"], low, high


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    """The range without white space around; (end, end) if there is nothing else."""
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end
