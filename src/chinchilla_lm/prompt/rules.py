"""Scoring rules: from log-probabilities to one score a choice; the highest wins.

Symbols: x a row's input, C the demonstrations, v(y) the words of choice y, l(y) = log p(v(y) | C, x) the sum over the
words' tokens in nats. Arrays carry their axes: n rows, k choices, m other rows, g groups of equal demonstrations.
A row with fewer than k choices is filled with -inf. Nothing here calls a model; `plan.plan_scores` says what to ask it.

    sum      l(y)                                                     acc of lm-evaluation-harness
    token    l(y) / tokens of v(y)                                    Brown et al. 2020, section 2.4
    char     l(y) / characters of v(y)                                acc_norm of lm-evaluation-harness
    byte     l(y) / UTF-8 bytes of v(y)                               acc_bytes of lm-evaluation-harness
    pmi      l(y) - log p(v(y) | domain premise)                      Holtzman et al. 2021, equation 2
    cc       log p(y | x) - log q(y), q from content-free inputs      Zhao et al. 2021, section 5
    bc       l(y) - mean over the batch of log p(y | x)               Zhou et al. 2023, equations 5 and 6
    channel  log p(x | v(y), C)                                       Min et al. 2021, section 3
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chinchilla_lm.core.errors import ConfigError, DataError
from chinchilla_lm.prompt.plan import RULES, Part, ScoreRequest

# Below this, the batch's mean says more about the draw than about the prompt (measured choice: TUNE.md, section 2.3).
MIN_BATCH_ROWS = 32


def finish_scores(
    rule: str,
    requests: Sequence[ScoreRequest],
    logprobs: Sequence[float] | np.ndarray,
    token_counts: Sequence[int] | np.ndarray | None = None,
    reference_mk: np.ndarray | None = None,
) -> np.ndarray:
    """Turn a model's numbers into scores.

    Args:
        rule: of `plan.RULES`; the requests must have been planned for it (among others).
        requests: as `plan_scores` gave them, in that order.
        logprobs: one number a request, in nats.
        token_counts: tokens of each continuation, >= 1; for the rule "token" only.
        reference_mk: for "bc": `sum` scores of other unlabelled rows to take the mean from; else the rows themselves.

    Returns:
        scores_nk, float64; -inf where a row has fewer than k choices.

    Raises:
        ConfigError: an unknown rule, or "token" without counts.
        DataError: the requests lack what the rule needs, or a number is nan.
    """
    if rule not in RULES:
        raise ConfigError(f"the rule {rule!r} is unknown; write one of {', '.join(RULES)}")
    values = np.asarray(logprobs, dtype=np.float64)
    if values.shape != (len(requests),):
        raise DataError(f"{values.shape} log-probabilities for {len(requests)} requests; give one number a request")
    if np.isnan(values).any():
        raise DataError("a log-probability is nan; check the model's weights and the prompt's length")
    if rule == "channel":
        return _table(requests, values, "channel")
    sum_nk = _table(requests, values, "conditional")
    if rule == "sum":
        return sum_nk
    if rule in ("token", "char", "byte"):
        return sum_nk / _lengths(rule, requests, token_counts, sum_nk)
    if rule == "pmi":
        return pmi_scores(sum_nk, _domain_table(requests, values, sum_nk))
    if rule == "cc":
        return _contextual(requests, values, sum_nk)
    if reference_mk is None:
        _check_same_choices(requests)
    return batch_scores(sum_nk, reference_mk)


def pmi_scores(sum_nk: np.ndarray, domain_nk: np.ndarray) -> np.ndarray:
    """Return the domain-conditional pointwise mutual information, log p(y | x) - log p(y | domain).

    Args:
        sum_nk: l(y) of each row and choice, nats.
        domain_nk: the same after the domain premise, without input and without demonstrations; [k] serves all rows.

    Source: Holtzman et al. 2021, "Surface Form Competition", equation 2.
    """
    with np.errstate(invalid="ignore"):
        scores_nk = sum_nk - domain_nk
    return np.where(np.isneginf(sum_nk), -np.inf, scores_nk)


def contextual_scores(sum_nk: np.ndarray, content_free_mk: np.ndarray) -> np.ndarray:
    """Divide each choice's probability by what it has without content.

    p(y | x) is normalised over the choices; q(y) is the mean over the content-free inputs, normalised again;
    the score is log p(y | x) - log q(y), that is W = diag(q)^-1 and b = 0.

    Args:
        sum_nk: l(y), nats.
        content_free_mk: the same for m content-free inputs after the same demonstrations.

    Source: Zhao et al. 2021, "Calibrate Before Use", section 5.
    """
    q_k = np.exp(normalised(content_free_mk)).mean(axis=0)
    # A choice of probability zero without content would win whatever the row says.
    log_q_k = np.log(np.maximum(q_k / q_k.sum(), np.finfo(np.float64).tiny))
    return normalised(sum_nk) - log_q_k


def batch_scores(sum_nk: np.ndarray, reference_mk: np.ndarray | None = None, strength: float = 1.0) -> np.ndarray:
    """Subtract from each choice its mean over a batch of unlabelled rows.

    With strength g: log p(y | x) - g * (1/m) sum_i log p(y | x_i), p normalised over the choices. It assumes that the
    batch's right answers are about balanced.

    Args:
        sum_nk: l(y), nats; every row has the same choices.
        reference_mk: l(y) of the batch; the rows themselves without.
        strength: 0 leaves the scores, 1 is the paper's label-free form.

    Returns:
        scores_nk.

    Raises:
        DataError: rows with different numbers of choices.

    Source: Zhou et al. 2023, "Batch Calibration" (arXiv 2309.17249), equations 5 and 6; strength: its section 3.3.
    """
    reference = normalised(sum_nk if reference_mk is None else reference_mk)
    if np.isneginf(reference).any() or np.isneginf(sum_nk).any() or reference.shape[1] != sum_nk.shape[1]:
        raise DataError(
            "bc (batch calibration) needs rows with the same choices; use pmi or byte for a row's own choices"
        )
    return normalised(sum_nk) - strength * reference.mean(axis=0)


def normalised(sum_nk: np.ndarray) -> np.ndarray:
    """Return log p(y | x) over the choices: each row's exponentials sum to 1."""
    highest_n1 = sum_nk.max(axis=1, keepdims=True)
    return sum_nk - highest_n1 - np.log(np.exp(sum_nk - highest_n1).sum(axis=1, keepdims=True))


def probabilities(scores_nk: np.ndarray) -> np.ndarray:
    """Return p_nk, each row's softmax over its scores (for calibration measures; not for the channel rule's odds)."""
    return np.exp(normalised(scores_nk))


def _table(requests: Sequence[ScoreRequest], values: np.ndarray, part: Part) -> np.ndarray:
    """Lay one part's numbers out as [n, k]."""
    chosen = [number for number, request in enumerate(requests) if request.part == part and request.row >= 0]
    if not chosen:
        raise DataError(f"the plan holds no {part} requests; plan it with this rule")
    rows = np.array([requests[number].row for number in chosen])
    choices = np.array([requests[number].choice for number in chosen])
    table_nk = np.full((rows.max() + 1, choices.max() + 1), -np.inf)
    table_nk[rows, choices] = values[chosen]
    return table_nk


def _lengths(
    rule: str, requests: Sequence[ScoreRequest], token_counts: Sequence[int] | np.ndarray | None, like_nk: np.ndarray
) -> np.ndarray:
    if rule == "token":
        if token_counts is None:
            raise ConfigError("the rule token needs each continuation's number of tokens; give token_counts")
        lengths = [max(1, int(count)) for count in token_counts]
    elif rule == "char":
        lengths = [max(1, len(request.answer)) for request in requests]
    else:
        lengths = [max(1, len(request.answer.encode("utf-8"))) for request in requests]
    lengths_nk = _table(requests, np.array(lengths, dtype=np.float64), "conditional")
    return np.where(np.isneginf(like_nk) & np.isneginf(lengths_nk), 1.0, lengths_nk)


def _domain_table(requests: Sequence[ScoreRequest], values: np.ndarray, like_nk: np.ndarray) -> np.ndarray:
    fixed = {r.choice: v for r, v in zip(requests, values, strict=True) if r.part == "domain" and r.row < 0}
    if fixed:
        return np.array([fixed[choice] for choice in range(like_nk.shape[1])])
    return np.where(np.isneginf(like_nk), 0.0, _table(requests, values, "domain"))


def _contextual(requests: Sequence[ScoreRequest], values: np.ndarray, sum_nk: np.ndarray) -> np.ndarray:
    group_n = np.zeros(len(sum_nk), dtype=np.int64)
    by_group: dict[int, dict[int, list[float]]] = {}
    for request, value in zip(requests, values, strict=True):
        if request.part == "conditional":
            group_n[request.row] = request.group
        elif request.part == "content-free":
            by_group.setdefault(request.group, {}).setdefault(request.choice, []).append(value)
    scores_nk = np.empty_like(sum_nk)
    for group in np.unique(group_n):
        if int(group) not in by_group:
            raise DataError("the plan holds no content-free requests; plan it with the rule cc")
        content_free = by_group[int(group)]
        content_free_mk = np.array([content_free[choice] for choice in range(sum_nk.shape[1])]).T
        scores_nk[group_n == group] = contextual_scores(sum_nk[group_n == group], content_free_mk)
    return scores_nk


def _check_same_choices(requests: Sequence[ScoreRequest]) -> None:
    answers: dict[int, str] = {}
    for request in requests:
        if request.part == "conditional" and answers.setdefault(request.choice, request.answer) != request.answer:
            raise DataError(
                f"bc (batch calibration) needs rows with the same choices, choice {request.choice} is "
                f"{answers[request.choice]!r:.40} and {request.answer!r:.40}; use pmi or byte for a row's own choices"
            )
