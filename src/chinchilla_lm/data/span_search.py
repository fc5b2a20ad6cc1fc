"""The best answers of a context: start and end searched jointly, over all windows, and "no answer" weighed against.

Axes: c context tokens of a window. Scores are logits: only their differences within a window mean anything; over
windows they are compared as Devlin et al. 2019 do. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chinchilla_lm.data.span_windows import SpanWindow


@dataclass(frozen=True, kw_only=True)
class AnswerLengths:
    """What is known of answers' lengths, which start and end, scored apart, do not see.

    Attributes:
        longest: tokens that the search considers, >= 1.
        cost: taken from the score for every token after the first, nats, >= 0.
    """

    longest: int
    cost: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A slice of the context. Attributes: characters [start, end); the score start + end logit - cost of length."""

    start: int
    end: int
    score: float


def best_spans(
    start_c: np.ndarray[Any, Any],
    end_c: np.ndarray[Any, Any],
    *,
    lengths: AnswerLengths,
    count: int,
    is_alone_c: np.ndarray[Any, Any] | None = None,
) -> list[tuple[int, int, float]]:
    """Find the pairs first <= last < first + longest with the greatest start + end - cost * (last - first).

    Args:
        start_c: score of starting at each token.
        end_c: score of ending with it.
        lengths: of answers.
        count: pairs wanted, >= 1.
        is_alone_c: bool; False where a token cannot be the whole answer; None: each can.

    Returns:
        (first, last, score), best first; the search is exact: no pair is passed over.
    """
    tokens = len(start_c)
    longest = min(lengths.longest, tokens)
    padded_c = np.concatenate((end_c, np.full(longest - 1, -np.inf))) if tokens else end_c
    if not tokens:
        return []
    scores_cl = start_c[:, None] + np.lib.stride_tricks.sliding_window_view(padded_c, longest)
    scores_cl -= lengths.cost * np.arange(longest)
    if is_alone_c is not None:
        scores_cl[:, 0] = np.where(is_alone_c, scores_cl[:, 0], -np.inf)
    flat = scores_cl.ravel()
    kept = np.argpartition(-flat, min(count, flat.size) - 1)[:count]
    kept = kept[np.isfinite(flat[kept])]
    kept = kept[np.argsort(-flat[kept], kind="stable")]
    return [(int(at // longest), int(at // longest + at % longest), float(flat[at])) for at in kept]


def best_answers(
    windows: Sequence[SpanWindow],
    scores: Sequence[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]],
    *,
    lengths: AnswerLengths,
    count: int,
) -> tuple[list[Answer], float]:
    """Search all windows of one context.

    Args:
        windows: of the context.
        scores: (start_t, end_t) logits of each window, over its positions.
        lengths: of answers.
        count: answers wanted.

    Returns:
        (answers, null score): different slices, best first, and the least score of "no answer" over the windows, for a
        context has an answer if any of its windows has.

    Source: Devlin et al. 2019, section 4.3; run_squad.py's n-best and null score.
    """
    best: dict[tuple[int, int], float] = {}
    null_score = np.inf
    for window, (start_t, end_t) in zip(windows, scores, strict=True):
        inside = slice(window.first, window.first + window.count)
        start_c = np.where(window.starts_c >= 0, start_t[inside].astype(np.float64), -np.inf)
        end_c = np.where(window.ends_c >= 0, end_t[inside].astype(np.float64), -np.inf)
        is_alone_c = window.starts_c < window.ends_c
        for first, last, score in best_spans(start_c, end_c, lengths=lengths, count=count, is_alone_c=is_alone_c):
            place = (int(window.starts_c[first]), int(window.ends_c[last]))
            best[place] = max(score, best.get(place, -np.inf))
        null_score = min(null_score, float(start_t[window.null]) + float(end_t[window.null]))
    ranked = sorted(best.items(), key=lambda pair: (-pair[1], pair[0]))[:count]
    answers = [Answer(start=start, end=end, score=score) for (start, end), score in ranked]
    return answers, null_score


def lengths_of(token_counts: Sequence[int], *, shortest_limit: int, longest_limit: int) -> AnswerLengths:
    """Learn the lengths of answers from those of the training rows.

    A geometric distribution of their mean m has ln p(n) = const + (n - 1) * ln(1 - 1/m): that is the cost of a token.
    One token more is counted than there are, so that answers of one token do not forbid every other.
    Scores of a head with little training say little of lengths: on 150 validation rows of SQuAD, 300 rows trained, F1
    55.7 without the cost and 60.9 with it (words an answer 6.2 and 2.4; people's 3.6), after half the updates 47.1 and
    47.6 (exact 33.3 and 38.0).

    Args:
        token_counts: of the training rows' answers, each >= 1; none: no cost.
        shortest_limit: the search considers at least so many tokens.
        longest_limit: and at most so many.
    """
    longest = min(max([shortest_limit, *token_counts]), longest_limit)
    return AnswerLengths(longest=longest, cost=-math.log1p(-len(token_counts) / (sum(token_counts) + 1)))


def choose_threshold(
    margins: Sequence[float], scores_if_answered: Sequence[float], scores_if_not: Sequence[float]
) -> float:
    """Choose how far "no answer" must lead before it is given, on labelled validation rows.

    Args:
        margins: null score - best answer's score of each row.
        scores_if_answered: the metric of each row if the best answer is given, in [0, 1].
        scores_if_not: the metric if none is given: 1 for a row without an answer, else 0.

    Returns:
        t: no answer is given where margin > t. Half-way between two rows; the greatest mean wins, ties the larger t.
    """
    order = np.argsort(margins, kind="stable")
    margin_n = np.asarray(margins, float)[order]
    if not len(margin_n):
        return 0.0
    answered_n, silent_n = np.asarray(scores_if_answered, float)[order], np.asarray(scores_if_not, float)[order]
    # Cut k: rows 0..k-1 (the smallest margins) are answered, the rest are not.
    totals = np.concatenate(([0.0], np.cumsum(answered_n))) + np.concatenate((np.cumsum(silent_n[::-1])[::-1], [0.0]))
    cuts = np.concatenate(([margin_n[0] - 1.0], (margin_n[1:] + margin_n[:-1]) / 2, [margin_n[-1] + 1.0]))
    is_real = np.concatenate(([True], margin_n[1:] > margin_n[:-1], [True]))  # equal margins cannot be parted
    totals = np.where(is_real, totals, -np.inf)
    best = len(totals) - 1 - int(np.argmax(totals[::-1]))
    return float(cuts[best])
