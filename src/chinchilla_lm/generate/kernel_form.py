"""The engine's forward pass through the compiled step of `model.decoding`: Qwen3 and Llama layouts on a CPU.

The same methods as `torch_form.TorchForm`, which is its definition. Decoding, prompts and drafts are one list of new
tokens, so a text gets the same logits, bit for bit, alone, in a batch, and read at once or token by token.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from itertools import accumulate

from torch import Tensor

from chinchilla_lm.generate.weights import WeightsType
from chinchilla_lm.model.decoding import Decoder
from chinchilla_lm.model.transformer import Transformer


class KernelForm:
    """Forward passes over slots. Attributes: `name` = "kernels"; `reason` = ""."""

    name = "kernels"
    reason = ""

    def __init__(self, model: Transformer, slots: int, capacity: int, weights: WeightsType) -> None:
        """Converts the weights and allocates the cache of every slot, and of one more for `hidden`."""
        self._decoder = Decoder(model, slots + 1, capacity, weights)
        self._spare = slots

    def forward(
        self, slots: Sequence[int], pasts: Sequence[int], ids: Sequence[Sequence[int]], last_only: bool
    ) -> Tensor:
        """Read new tokens in each of several slots, as many as there are; as `TorchForm.forward`."""
        flat_ids = [token for row in ids for token in row]
        flat_slots = [slot for slot, row in zip(slots, ids, strict=True) for _ in row]
        positions = [past + i for past, row in zip(pasts, ids, strict=True) for i in range(len(row))]
        wanted = [end - 1 for end in accumulate(map(len, ids))] if last_only else range(len(flat_ids))
        logits_wv = self._decoder.step(flat_ids, flat_slots, positions, wanted, has_logits=True)[1]
        assert logits_wv is not None
        return logits_wv

    def hidden(self, ids: Sequence[int]) -> Tensor:
        """Last hidden states after the final norm, x_td float32; no slot of the engine is touched."""
        every = range(len(ids))
        return self._decoder.step(ids, [self._spare] * len(ids), every, every, has_logits=False)[0]

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first positions of a slot to another."""
        self._decoder.copy(source, target, length)

    def is_finite(self, logits: Tensor) -> bool:
        """Whether no logit is nan or infinite."""
        return self._decoder.is_finite(logits)

    def timed(self) -> AbstractContextManager[dict[str, float]]:
        """Within it, add up the seconds of each part of the steps."""
        return self._decoder.timed()
