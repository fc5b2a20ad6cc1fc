"""Constrained decoding against trying every sequence."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from chinchilla_lm.core.errors import DataError
from chinchilla_lm.tune.viterbi import best_tags, tag_rules

LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def is_valid(tags, is_first):
    """Rules of IOB2, written apart from the code: I-X only after B-X or I-X; a part goes on with its word's tag."""
    before = "O"
    for tag, first in zip(tags, is_first, strict=True):
        if tag.startswith("I-") and before[2:] != tag[2:]:
            return False
        if not first and tag != ("O" if before == "O" else "I-" + before[2:]):
            return False
        before = tag
    return True


@pytest.mark.parametrize("seed", range(30))
def test_best_tags_equals_trying_every_sequence(seed):
    draw = np.random.default_rng(seed)
    count = int(draw.integers(1, 6))
    scores_nk = np.log(draw.dirichlet(np.ones(len(LABELS)) * 0.3, count))
    is_first_n = draw.random(count) < 0.7
    is_first_n[0] = True
    rules = tag_rules(LABELS)
    best = max(
        (
            path
            for path in itertools.product(range(len(LABELS)), repeat=count)
            if is_valid([LABELS[k] for k in path], is_first_n)
        ),
        key=lambda path: sum(scores_nk[n, k] for n, k in enumerate(path)),
    )
    found_n = best_tags(scores_nk, rules, is_first_n)
    assert tuple(found_n) == best
    assert is_valid([LABELS[k] for k in found_n], is_first_n)


def test_a_valid_greedy_path_is_kept():
    scores_nk = np.log(np.full((3, 5), 0.05) + 0.75 * np.eye(5)[[1, 2, 0]])
    assert [LABELS[k] for k in best_tags(scores_nk, tag_rules(LABELS))] == ["B-PER", "I-PER", "O"]


def test_an_empty_sentence_has_no_tags():
    assert best_tags(np.zeros((0, 5)), tag_rules(LABELS)).shape == (0,)


@pytest.mark.parametrize(("labels", "message"), [(("O", "PER"), "is not IOB2"), (("O", "B-PER"), "no partner 'I-PER'")])
def test_labels_that_are_not_iob2_are_refused(labels, message):
    with pytest.raises(DataError, match=message):
        tag_rules(labels)
