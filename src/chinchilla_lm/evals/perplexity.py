"""Loss and bits per byte of a model on fixed held-out windows.

Axes: n windows, b rows of a batch (one window each), t positions of a window. Loss is in nats per token and depends on
the tokenizer; bits per byte does not. Never chooses the windows (data/loader.py does) and never trains.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import torch

from chinchilla_lm.core.errors import DataError, ModelError
from chinchilla_lm.data.loader import HeldOut
from chinchilla_lm.model.transformer import Transformer

ROWS_PER_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class EvalResult:
    """How well a model predicts held-out text.

    Attributes:
        loss: mean over all targets, nats per token.
        loss_se: standard error of `loss` over windows, nats per token; None with a single window.
        bits_per_byte: total nats / ln 2 / bytes of the targets.
        tokens: number of targets.
        bytes: bytes that the targets stand for.
    """

    loss: float
    loss_se: float | None
    bits_per_byte: float
    tokens: int
    bytes: int

    @property
    def perplexity(self) -> float:
        """exp(loss), per token."""
        return math.exp(self.loss)

    def to_dict(self) -> dict[str, float | int | None]:
        """Return the fields in the order of the eval record."""
        return asdict(self)


def evaluate(model: Transformer, heldout: HeldOut, *, batch_rows: int = ROWS_PER_BATCH) -> EvalResult:
    """Measure a model on every target of the held-out windows.

    Args:
        model: on any device; its mode (train or eval) is restored afterwards.
        heldout: windows of one prepared folder, (n, t) ids and (n,) bytes.
        batch_rows: windows a forward pass, >= 1; changes speed and memory only.

    Returns:
        The loss. Its standard error takes each window as one draw (tokens inside a window are not independent).

    Raises:
        DataError: no windows.
        ModelError: a window is longer than the context, a token is outside the vocabulary, or the loss is not finite.
    """
    _check_windows(model, heldout)
    window_nats_n = np.concatenate(list(_window_nats(model, heldout, batch_rows)))
    tokens = heldout.targets_nt.size
    byte_count = int(heldout.target_bytes_n.sum())
    total_nats = float(window_nats_n.sum())
    if not math.isfinite(total_nats):
        raise ModelError("the held-out loss is nan or infinite; the training diverged: use an earlier checkpoint")
    return EvalResult(
        loss=total_nats / tokens,
        loss_se=_standard_error(window_nats_n / heldout.targets_nt.shape[1]),
        bits_per_byte=total_nats / math.log(2) / byte_count,
        tokens=tokens,
        bytes=byte_count,
    )


def _check_windows(model: Transformer, heldout: HeldOut) -> None:
    n_windows, window_tokens = heldout.inputs_nt.shape
    if n_windows == 0 or heldout.target_bytes_n.sum() == 0:
        raise DataError("the held-out text is shorter than one window; give more held-out text or a shorter context")
    if window_tokens > model.shape.context:
        raise ModelError(
            f"the held-out windows have {window_tokens} tokens and the model's context is {model.shape.context}; "
            "cut the windows at the model's context"
        )
    largest = int(max(heldout.inputs_nt.max(), heldout.targets_nt.max()))
    if largest >= model.shape.vocab:
        raise ModelError(
            f"token {largest} is outside the model's vocabulary of {model.shape.vocab}; "
            "evaluate on text prepared with the model's own tokenizer"
        )


@torch.inference_mode()
def _batch_nats(model: Transformer, inputs_bt: np.ndarray, targets_bt: np.ndarray, device: torch.device) -> np.ndarray:
    ids_bt = torch.from_numpy(inputs_bt.astype(np.int64)).to(device)
    labels_bt = torch.from_numpy(targets_bt.astype(np.int64)).to(device)
    losses_bt = model.token_losses(ids_bt, labels_bt)
    return losses_bt.double().sum(dim=1).cpu().numpy()


def _window_nats(model: Transformer, heldout: HeldOut, batch_rows: int) -> Iterator[np.ndarray]:
    """Yield the total nats of each window, (b,) float64, batch by batch."""
    device = model.embedding.device
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(heldout.inputs_nt), batch_rows):
            rows = slice(start, start + batch_rows)
            yield _batch_nats(model, heldout.inputs_nt[rows], heldout.targets_nt[rows], device)
    finally:
        model.train(was_training)


def _standard_error(window_means_n: np.ndarray) -> float | None:
    if len(window_means_n) < 2:
        return None
    return float(window_means_n.std(ddof=1) / math.sqrt(len(window_means_n)))
