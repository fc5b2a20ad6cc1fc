"""The best valid sequence of tags: Viterbi decoding under the rules of IOB2.

In IOB2 an entity of type X is B-X, then any number of I-X; O is outside. So I-X may only follow B-X or I-X.
Axes: n units of a sentence (words, or parts of words), k tags. Scores are log-probabilities, nats. No torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chinchilla_lm.core.errors import DataError


@dataclass(frozen=True, kw_only=True, eq=False)
class TagRules:
    """Which tags may begin a sentence and which may follow which.

    Attributes:
        labels: the tags, in the order of the scores' columns.
        starts_k: bool, [k]: tag k may come first.
        follows_kk: bool, [j, k]: tag k may come after tag j.
        inside_k: int, [k]: the tag that goes on inside the same word or entity: I-X of B-X and of I-X, O of O.
    """

    labels: tuple[str, ...]
    starts_k: np.ndarray
    follows_kk: np.ndarray
    inside_k: np.ndarray


def tag_rules(labels: tuple[str, ...]) -> TagRules:
    """Derive the rules of IOB2 from the tags' names.

    Args:
        labels: "O", and for each type X "B-X" and "I-X", in any order.

    Returns:
        The rules.

    Raises:
        DataError: a tag that is none of these, or a type that lacks one of its two tags.
    """
    for label in labels:
        if label != "O" and label[:2] not in ("B-", "I-"):
            raise DataError(
                f"tag {label!r} is not IOB2; write O, B-TYPE or I-TYPE (BIOES and IO are converted on reading)"
            )
        partner = {"B-": "I-", "I-": "B-"}.get(label[:2], "") + label[2:] if label != "O" else "O"
        if partner not in labels:
            raise DataError(
                f"tag {label!r} has no partner {partner!r} among the labels; give both, even if one is unused"
            )
    index = {label: number for number, label in enumerate(labels)}
    is_inside_k = np.array([label.startswith("I-") for label in labels], bool)
    kind_k = np.array([label[2:] for label in labels])
    same_kind_kk = (kind_k[:, None] == kind_k[None, :]) & np.array([label != "O" for label in labels])[:, None]
    return TagRules(
        labels=labels,
        starts_k=~is_inside_k,
        follows_kk=~is_inside_k[None, :] | same_kind_kk,
        inside_k=np.array([index["O" if label == "O" else "I-" + label[2:]] for label in labels]),
    )


def best_tags(scores_nk: np.ndarray, rules: TagRules, is_first_n: np.ndarray | None = None) -> np.ndarray:
    """Find the valid sequence with the greatest sum of scores.

    Args:
        scores_nk: log-probability of each tag at each unit, finite or -inf.
        rules: of IOB2.
        is_first_n: bool; False where a unit is a later part of the word before it, whose tag it must go on with
            (I-X after B-X or I-X, O after O); None: every unit is a word. The first must be True.

    Returns:
        Numbers of tags, int64, [n]. Of equal sums the one with the lower numbers towards the end.

    Source: Viterbi 1967; Forney 1973.
    """
    count, tags = scores_nk.shape
    if count == 0:
        return np.zeros(0, np.int64)
    goes_on_kk = rules.inside_k[:, None] == np.arange(tags)[None, :]
    total_k = np.where(rules.starts_k, scores_nk[0], -np.inf)
    came_from_nk = np.zeros((count, tags), np.int64)
    for n in range(1, count):
        may_follow_kk = rules.follows_kk if is_first_n is None or is_first_n[n] else goes_on_kk
        through_kk = np.where(may_follow_kk, total_k[:, None], -np.inf)
        came_from_nk[n] = through_kk.argmax(axis=0)
        total_k = through_kk.max(axis=0) + scores_nk[n]
    path_n = np.zeros(count, np.int64)
    path_n[-1] = total_k.argmax()
    for n in range(count - 1, 0, -1):
        path_n[n - 1] = came_from_nk[n, path_n[n]]
    return path_n
