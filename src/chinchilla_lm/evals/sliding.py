"""Bits per byte of whole documents, each token predicted once with as much of its own document before it as is asked.

Windows of the model's context slide over a document by `stride` targets: the first window prices all of its targets,
each later one the last `stride` of its own (fewer at the end, with a full window before them), so that every target but
those of the first window sees at least context - stride tokens. stride = context is the disjoint reading of
lm-evaluation-harness; a small stride is what a user of the model gets, and costs context / stride passes. Documents
never see each other.

Axes: b windows of one pass, t positions. Nats are summed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer

from chinchilla_lm.core.errors import ConfigError, DataError, ModelError
from chinchilla_lm.data.documents import Document
from chinchilla_lm.model.transformer import Transformer

TOKENS_PER_PASS = 8192
_IGNORED = -100  # a target that is not scored, as in `Transformer.token_losses`


@dataclass(frozen=True, kw_only=True)
class TextScore:
    """The price of some text.

    Attributes:
        domain: what the documents share; "all" for the whole.
        documents: >= 1.
        tokens: targets.
        bytes: of UTF-8 that they stand for.
        nats: the sum over all targets.
        bits_per_byte: nats / ln 2 / bytes.
        bits_per_byte_se: its standard error over documents (of a ratio); None for one document.
        loss: nats per token; compare it only between models of one tokenizer.
    """

    domain: str
    documents: int
    tokens: int
    bytes: int
    nats: float
    bits_per_byte: float
    bits_per_byte_se: float | None
    loss: float


def score_documents(
    model: Transformer,
    tokenizer: Tokenizer,
    documents: Iterable[Document],
    *,
    start_id: int,
    stride: int | None = None,
    domain_of: Callable[[Document], str] = lambda document: "all",
    progress: Callable[[int], None] | None = None,
) -> list[TextScore]:
    """Price documents as a whole and domain by domain.

    Args:
        model: on any device; its mode is restored.
        tokenizer: the model's own.
        documents: empty ones are passed over.
        start_id: the token before a document: beginning-of-text, else end-of-text.
        stride: targets by which windows move on, 1 to the context; None: half the context.
        domain_of: names a document's domain.
        progress: told the tokens scored by each pass.

    Returns:
        The whole first ("all"), then the domains by name if there are more than one.

    Raises:
        ConfigError: a stride out of range.
        DataError: no text.
        ModelError: the loss is not finite.
    """
    context = model.shape.context
    stride = max(1, context // 2) if stride is None else stride
    if not 1 <= stride <= context:
        raise ConfigError(
            f"stride must be 1 to the model's context of {context}, got {stride}; {context // 2} is usual"
        )
    kept = [document for document in documents if document.text]
    if not kept:
        raise DataError("there is no text to measure; give at least one document")
    ids_by_document = [one.ids for one in tokenizer.encode_batch([one.text for one in kept], add_special_tokens=False)]
    nats_n = document_nats(model, ids_by_document, start_id=start_id, stride=stride, progress=progress)
    if not np.isfinite(nats_n).all():
        raise ModelError("the loss is nan or infinite; the training diverged: use an earlier checkpoint")
    tokens_n = np.array([len(ids) for ids in ids_by_document])
    bytes_n = np.array([len(document.text.encode()) for document in kept])
    domains = [domain_of(document) for document in kept]
    scores = [_summarise("all", nats_n, tokens_n, bytes_n)]
    for domain in sorted(set(domains)) if len(set(domains)) > 1 else ():
        chosen = np.array([one == domain for one in domains])
        scores.append(_summarise(domain, nats_n[chosen], tokens_n[chosen], bytes_n[chosen]))
    return scores


@torch.inference_mode()
def document_nats(
    model: Transformer,
    ids_by_document: Sequence[Sequence[int]],
    *,
    start_id: int,
    stride: int,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Return -ln p of each document's tokens, nats_n, float64; arguments as `score_documents`, stride in range."""
    was_training, device = model.training, model.head_weight.device
    model.eval()
    nats_n = np.zeros(len(ids_by_document))
    windows = sorted(
        _windows([len(ids) for ids in ids_by_document], model.shape.context, stride),
        key=lambda window: (window.end - window.begin, window.document, window.first),
    )
    for batch in _batches(windows):
        longest = max(window.end - window.begin for window in batch)
        inputs_bt = np.full((len(batch), longest), start_id, dtype=np.int64)
        targets_bt = np.full((len(batch), longest), _IGNORED, dtype=np.int64)
        for row, window in enumerate(batch):
            stream = ids_by_document[window.document]
            size, skipped = window.end - window.begin, window.first - window.begin
            before = [start_id] if window.begin == 0 else [stream[window.begin - 1]]
            inputs_bt[row, :size] = [*before, *stream[window.begin : window.end - 1]]
            targets_bt[row, skipped:size] = stream[window.first : window.end]
        losses_bt = model.token_losses(torch.from_numpy(inputs_bt).to(device), torch.from_numpy(targets_bt).to(device))
        nats_b = losses_bt.double().sum(dim=1).cpu().numpy()
        np.add.at(nats_n, [window.document for window in batch], nats_b)
        if progress is not None:
            progress(sum(window.end - window.first for window in batch))
    model.train(was_training)
    return nats_n


def _summarise(domain: str, nats_n: np.ndarray, tokens_n: np.ndarray, bytes_n: np.ndarray) -> TextScore:
    nats, byte_count, n = math.fsum(nats_n), int(bytes_n.sum()), len(nats_n)
    ratio, error = nats / byte_count, None
    if n > 1:  # of a ratio of sums over documents (Cochran, "Sampling Techniques", 6.4)
        error = math.sqrt(n / (n - 1) * float(((nats_n - ratio * bytes_n) ** 2).sum())) / byte_count / math.log(2)
    return TextScore(
        domain=domain,
        documents=n,
        tokens=int(tokens_n.sum()),
        bytes=byte_count,
        nats=nats,
        bits_per_byte=ratio / math.log(2),
        bits_per_byte_se=error,
        loss=nats / int(tokens_n.sum()),
    )


@dataclass(frozen=True)
class _Window:
    """Targets `first` to `end` of a document are scored; the window's inputs begin at target `begin`."""

    document: int
    begin: int
    first: int
    end: int


def _windows(lengths: Sequence[int], context: int, stride: int) -> Iterator[_Window]:
    for document, length in enumerate(lengths):
        first = 0
        while first < length:
            end = min(length, first + (context if first == 0 else stride))
            yield _Window(document, max(0, end - context), first, end)
            first = end


def _batches(windows: Sequence[_Window]) -> Iterator[list[_Window]]:
    """Windows of similar length together, padded to at most TOKENS_PER_PASS positions; one window always goes."""
    batch: list[_Window] = []
    for window in windows:  # ascending length: the newest is the longest
        if batch and (len(batch) + 1) * (window.end - window.begin) > TOKENS_PER_PASS:
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch
