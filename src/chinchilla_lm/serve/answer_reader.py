"""Answers as slices of a context: a decoder tuned on questions, from its folder alone.

The folder is a ...ForQuestionAnswering of a Qwen3, Llama or own trunk; its task.json says how a question is asked, how
long answers are, and how far "no answer" must lead. A long context is read in windows that overlap.
Axes: t positions, d width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from chinchilla_lm.core.errors import ChinchillaError, ModelError
from chinchilla_lm.data.span_search import AnswerLengths, best_answers
from chinchilla_lm.data.span_windows import SpanWindow, check_template, encode_prompted
from chinchilla_lm.model.headed import HeadedModel

MOST_WINDOWS = 64
"""Of one question: 24,000 tokens at the usual length; a client that has more sends several questions."""
_LONGEST_ANSWER = 1024  # tokens; tune looks at 128 at most

Logits = np.ndarray[Any, Any]


class AnswerReader:
    """A trunk and a head of starts and ends. Attributes: `trunk`, `labels` (none)."""

    def __init__(self, model: HeadedModel, tokenizer: Tokenizer, described: Mapping[str, Any]) -> None:
        """Takes parts that belong together.

        Args:
            model: of kind QuestionAnswering.
            tokenizer: of its folder.
            described: "describe" of its task.json.

        Raises:
            ModelError: task.json does not say how a question is asked, or says it wrongly.
        """
        self.trunk = model.trunk
        self.labels: tuple[str, ...] = ()
        self._weight_2d, self._bias_2 = model.head["qa_outputs.weight"], model.head["qa_outputs.bias"]
        self._tokenizer = tokenizer
        context = model.trunk.shape.context
        self._template = described.get("template")
        if not isinstance(self._template, str):
            raise ModelError("a head of kind QuestionAnswering is not served without the prompt of task.json")
        try:
            check_template(self._template)
        except ChinchillaError as error:
            raise ModelError(f"task.json: {error}") from None
        self._max_tokens = _whole(described, "max_tokens", context)
        self._stride = _whole(described, "stride", context)
        longest = _whole(described, "longest_answer_tokens", _LONGEST_ANSWER)
        self._lengths = AnswerLengths(longest=longest, cost=_number(described, "token_cost"))
        threshold = _number(described, "threshold")
        self._threshold = threshold if described.get("has_unanswerable") is True else math.inf

    def windows(self, question: str, context: str) -> list[SpanWindow]:
        """Cut a context into windows behind its question.

        Raises:
            DataError: the question leaves no room for the context.
        """

        def encode(text: str) -> tuple[list[int], list[tuple[int, int]]]:
            encoding = self._tokenizer.encode_batch([text])[0]  # `encode` would let no other thread run
            return encoding.ids, encoding.offsets

        return encode_prompted(
            encode,
            question,
            context,
            template=self._template or "",
            max_tokens=self._max_tokens,
            stride=self._stride,
        )

    @torch.inference_mode()
    def score(self, window: SpanWindow) -> tuple[Logits, Logits]:
        """Return the logits of starting and of ending at each position of a window."""
        x_td = self.trunk.hidden(torch.from_numpy(window.ids_t)[None])[0].float()
        start_t, end_t = (x_td @ self._weight_2d.t() + self._bias_2).t().numpy()
        return start_t, end_t

    def answer(
        self, context: str, windows: Sequence[SpanWindow], scores: Sequence[tuple[Logits, Logits]]
    ) -> dict[str, Any]:
        """Choose the best slice over all windows, or none.

        Returns:
            {answer, start, end, score, margin}: characters from `start` to before `end`; `score` start + end logit
            less the cost of the length; `margin` score of "no answer" - score of the best slice. Without an answer ""
            and nulls, the margin aside.
        """
        found, null_score = best_answers(windows, scores, lengths=self._lengths, count=1)
        nothing = {"answer": "", "start": None, "end": None, "score": None, "margin": None}
        if not found:
            return nothing
        best = found[0]
        margin = null_score - best.score
        if margin > self._threshold:
            return {**nothing, "margin": margin}
        text = context[best.start : best.end]
        return {"answer": text, "start": best.start, "end": best.end, "score": best.score, "margin": margin}


def _number(described: Mapping[str, Any], name: str) -> float:
    value = described.get(name, 0.0)
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ModelError(f"task.json: {name} {str(value)[:40]} must be a number; save the model again")
    return float(value)


def _whole(described: Mapping[str, Any], name: str, most: int) -> int:
    value = described.get(name)
    if type(value) is not int or not 1 <= value <= most:
        raise ModelError(f"task.json: {name} {str(value)[:40]} must be a whole number from 1 to {most}; save it again")
    return value
