"""Labels of rows; the first weights of a head for several labels a row: each as likely as it is among the rows.

A label has its own yes or no, and the head of a decoder's class (LlamaForSequenceClassification) has no bias. Rows of
label words less their mean, which serve one label a row, fail here: their logits sum to zero, so that about half of the
labels begin as likely and a row without labels cannot be said at all. The bias is written into the rows instead: the
states that a head reads share a large mean, and a multiple of it adds the same number to every text's logit.

Source: the bias of a rare class is set to its rate before training, Lin et al. 2017 (RetinaNet), section 3.3.

Axes: n rows, d width, k labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from chinchilla_lm.tune.task import Row

RATE_ROWS = 64
"""Rows whose states are averaged."""


def labels_of(row: Row) -> list[str]:
    """Return a row's labels, whether it is written as one or as a list."""
    return [row["label"]] if isinstance(row["label"], str) else list(row["label"])


def all_labels(rows: Sequence[Row]) -> tuple[str, ...]:
    """Return every label of some rows: numbers by value, others by letter, always in one order."""
    found = {label for row in rows for label in labels_of(row)}
    if all(label.removeprefix("-").isdecimal() for label in found):
        return tuple(sorted(found, key=lambda label: (int(label), label)))  # "1" and "01" are two
    return tuple(sorted(found))


def labels_alike(ids: Mapping[str, Sequence[int]]) -> tuple[str, str] | None:
    """Return two labels whose words have the same tokens in any order, so the same mean row; None where all differ.

    A tokenizer that cuts numbers into digits makes such a pair of "12" and "21".

    Args:
        ids: label -> ids of its word.
    """
    seen: dict[tuple[int, ...], str] = {}
    for label, word_ids in ids.items():
        other = seen.setdefault(tuple(sorted(word_ids)), label)
        if other != label:
            return other, label
    return None


def base_rate_logits(rows: Sequence[Row], labels: Sequence[str]) -> Tensor:
    """Return ln(p / (1 - p)) of each label's share of the rows, b_k, as if half a row more had it and half had not."""
    counts = torch.tensor([sum(label in labels_of(row) for row in rows) for label in labels], dtype=torch.float32)
    return torch.logit((counts + 0.5) / (len(rows) + 1))


@torch.no_grad()
def start_at_base_rates(
    weight_kd: Tensor, rows: Sequence[Row], labels: Sequence[str], read: Callable[[Sequence[Row]], Tensor]
) -> Tensor:
    """Move rows of label words along the mean state until that state's logits are those of the labels' shares.

    Args:
        weight_kd: float32.
        rows: for training.
        labels: k names.
        read: the states x_nd that the head sees of some rows.

    Returns:
        w_kd with w_kd @ mean(x) = `base_rate_logits`; what it says of differences from the mean state is unchanged in
        other directions.
    """
    mean_d = read(rows[:RATE_ROWS]).float().mean(dim=0).to(weight_kd.device)
    missing_k = base_rate_logits(rows, labels).to(weight_kd.device) - weight_kd @ mean_d
    return weight_kd + missing_k[:, None] * mean_d / mean_d.square().sum()
