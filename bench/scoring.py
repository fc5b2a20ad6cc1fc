"""One way to score every contender: bits per byte of the same held-out documents = total nats / ln 2 / bytes.

Each document is read alone: a start token, then its tokens, every one of which is a target exactly once. Windows have
the contender's own context and overlap by half, so that a token beyond the first window is predicted from at least half
a context: a short context costs a contender what it costs its users, and the place of window edges costs nobody.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing torch takes seconds, which a contender that runs its own program would be charged for
    import torch

ROWS_PER_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """A trained contender.

    Attributes:
        encode: text to token ids, without a start token.
        decode: back; must give the same text, or the comparison would not be of the same bytes.
        start_id: the token before a document.
        context: most inputs of one pass.
        logits: ids (b, t) to logits (b, t, v).
        params: all parameters, for the table.
    """

    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]
    start_id: int
    context: int
    logits: Callable[[torch.Tensor], torch.Tensor]
    params: int


def score_documents(scorer: Scorer, documents: Sequence[str]) -> dict[str, float]:
    """Return bits_per_byte, nats, tokens, bytes over all documents."""
    nats, tokens = 0.0, 0
    pending: list[tuple[list[int], int]] = []
    for text in documents:
        ids = scorer.encode(text)
        if scorer.decode(ids) != text:
            raise SystemExit("the contender's tokenizer does not give the text back; its bits per byte mean nothing")
        tokens += len(ids)
        for window in cut_windows([scorer.start_id, *ids], scorer.context):
            pending.append(window)
            if len(pending) == ROWS_PER_BATCH:
                nats += _nats_of(scorer, pending)
                pending = []
    if pending:
        nats += _nats_of(scorer, pending)
    byte_count = sum(len(text.encode()) for text in documents)
    return {
        "bits_per_byte": nats / math.log(2) / byte_count,
        "nats": nats,
        "tokens": tokens,
        "bytes": byte_count,
        "params": scorer.params,
        "context": scorer.context,
    }


def cut_windows(ids: list[int], context: int) -> Iterator[tuple[list[int], int]]:
    """Yield (window of at most context + 1 ids, how many of its last targets count); each counts once."""
    targets = len(ids) - 1
    covered = 0
    while covered < targets:
        end = min(targets, covered + context if covered == 0 else covered + max(1, context // 2))
        start = max(0, end - context)
        yield ids[start : end + 1], end - covered
        covered = end


def _nats_of(scorer: Scorer, windows: Sequence[tuple[list[int], int]]) -> float:
    import torch
    import torch.nn.functional as F

    longest = max(len(ids) for ids, _ in windows)
    # Padding stands on the right, where a causal model's earlier positions do not see it.
    padded_bs = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in windows])
    inputs_bt, targets_bt = padded_bs[:, :-1].contiguous(), padded_bs[:, 1:].contiguous()
    with torch.inference_mode():
        logits_btv = scorer.logits(inputs_bt).float()
        losses_bt = F.cross_entropy(logits_btv.transpose(1, 2), targets_bt, reduction="none")
    return sum(
        float(losses_bt[row, len(ids) - 1 - counted : len(ids) - 1].double().sum())
        for row, (ids, counted) in enumerate(windows)
    )
