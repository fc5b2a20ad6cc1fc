"""The engine: a model with slots, each the cached keys and values of one text.

Axes: b rows, t positions, d width, v vocabulary. `Engine` reads prompts into slots and adds tokens to several slots at
once; it knows nothing of sampling or text (completion.py and batching.py do). Never prints, trains or loads files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, get_args

import torch

from chinchilla_lm.core.errors import ConfigError, ModelError
from chinchilla_lm.generate.kernel_form import KernelForm
from chinchilla_lm.generate.torch_form import TorchForm
from chinchilla_lm.generate.weights import WeightsType
from chinchilla_lm.model.decoding import obstacle
from chinchilla_lm.model.transformer import Transformer

LARGEST_FLOAT32_PARAMS = 1 << 24
"""Above it "auto" weights are bfloat16: 64 MB of float32 take about 5 ms a token to read on one core."""


class Engine:
    """A model that continues several texts at once, each in a slot with its own key-value cache.

    Attributes:
        vocab: rows of the head.
        slots: texts that fit at once; they are numbered 0 ... slots - 1.
        capacity: most tokens of one slot.
        weights: the type its matrices have: "float32", "bfloat16" or "int8".
        form: "kernels" (decode.cpp) or "torch".
        form_reason: why the form is not the faster one, one line; empty if it is.

    One thread at a time may call it. The model's parameters must not change meanwhile (float32 weights are shared).
    """

    def __init__(
        self,
        model: Transformer,
        *,
        slots: int = 8,
        capacity: int | None = None,
        weights: Literal["auto", "float32", "bfloat16", "int8"] = "auto",
    ) -> None:
        """Prepare the weights and the cache.

        Args:
            model: any layout, on any device; not changed.
            slots: >= 1.
            capacity: tokens of a slot, 1 to the model's context; None takes the context.
            weights: "auto" takes float32 for a model of up to 16 million parameters and wherever decode.cpp cannot run,
                bfloat16 for a larger one, whose speed is that of reading its weights.

        Raises:
            ConfigError: slots, capacity or weights out of range.
        """
        context = model.shape.context
        if slots < 1:
            raise ConfigError(f"slots must be >= 1, got {slots}; 8 serves eight texts at once")
        if capacity is not None and not 1 <= capacity <= context:
            raise ConfigError(f"capacity must be 1 to the model's context of {context}, got {capacity}")
        if weights not in ("auto", *get_args(WeightsType)):
            raise ConfigError(f"weights {weights!r} are unknown; choose from auto, {', '.join(get_args(WeightsType))}")
        self.vocab = model.shape.vocab
        self.slots = slots
        self.capacity = context if capacity is None else capacity
        reason = obstacle(model)
        if weights == "auto":
            is_large = not reason and sum(p.numel() for p in model.parameters()) > LARGEST_FLOAT32_PARAMS
            weights = "bfloat16" if is_large else "float32"
        self.weights: WeightsType = weights
        if reason:
            self._form = TorchForm(model, slots, self.capacity, weights, reason)
        else:
            self._form = KernelForm(model, slots, self.capacity, weights)
        self.form: str = self._form.name
        self.form_reason: str = self._form.reason
        self._tokens: list[list[int]] = [[] for _ in range(slots)]

    def prefill(self, slot: int, ids: Sequence[int]) -> torch.Tensor:
        """Make a slot hold exactly `ids`; what it holds of their beginning already is not computed again.

        Args:
            slot: 0 ... slots - 1.
            ids: 1 to capacity token ids.

        Returns:
            Logits of the token that follows, (v) float32.

        Raises:
            ModelError: no ids, more than the capacity, an id outside the vocabulary, or logits that are not finite.
        """
        return self.prefill_many([slot], [ids])[0]

    def prefill_many(self, slots: Sequence[int], prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """As `prefill` for several distinct slots, in one pass over the weights; logits (b, v), row by row the same."""
        assert len(slots) == len(prompts) == len(set(slots)) >= 1, slots
        for ids in prompts:
            self._check(0, ids)
        rest = []
        for slot, ids in zip(slots, prompts, strict=True):
            held = self._tokens[slot]
            # The last token is read in any case: its logits are asked for.
            shared = min(shared_prefix(held, ids), len(ids) - 1)
            self.truncate(slot, shared)
            rest.append(ids[shared:])
        return self._forward(slots, rest, last_only=True)

    def prefill_logits(self, slot: int, ids: Sequence[int]) -> torch.Tensor:
        """As `prefill`, but all positions' logits, (t, v) float32; row i is about the token after ids[i]."""
        self._check(0, ids)
        self.clear(slot)
        return self._forward([slot], [ids], last_only=False)

    def decode(self, slots: Sequence[int], ids: Sequence[int]) -> torch.Tensor:
        """Add one token to each of several slots, in one forward pass.

        Args:
            slots: b distinct slots, of any lengths.
            ids: b tokens.

        Returns:
            Logits of the tokens that follow, (b, v) float32; a row equals that of the slot alone.

        Raises:
            ModelError: a slot is full, an id is outside the vocabulary, or logits are not finite.
        """
        assert len(slots) == len(ids) == len(set(slots)) >= 1, (slots, ids)
        return self._forward(slots, [[token] for token in ids], last_only=True)

    def extend(self, slot: int, ids: Sequence[int]) -> torch.Tensor:
        """Add several tokens to a slot, to verify a draft's guesses; logits (t, v) float32; errors as `decode`."""
        return self._forward([slot], [ids], last_only=False)

    def extend_many(self, slots: Sequence[int], ids: Sequence[Sequence[int]]) -> torch.Tensor:
        """As `extend` for several distinct slots in one pass: (w, v) float32, the rows of each slot after another."""
        assert len(slots) == len(ids) == len(set(slots)) >= 1, slots
        return self._forward(slots, ids, last_only=False)

    def length(self, slot: int) -> int:
        """Tokens that a slot holds."""
        return len(self._tokens[slot])

    def tokens(self, slot: int) -> tuple[int, ...]:
        """The tokens that a slot holds."""
        return tuple(self._tokens[slot])

    def truncate(self, slot: int, length: int) -> None:
        """Keep the first `length` tokens of a slot; 0 <= length <= what it holds."""
        assert 0 <= length <= len(self._tokens[slot]), (length, len(self._tokens[slot]))
        del self._tokens[slot][length:]

    def clear(self, slot: int) -> None:
        """Empty a slot."""
        self._tokens[slot].clear()

    def copy(self, source: int, target: int, length: int) -> None:
        """Make a slot hold the first `length` tokens of another, 0 <= length <= what that holds."""
        assert source != target
        assert 0 <= length <= len(self._tokens[source]), (length, len(self._tokens[source]))
        self._form.copy(source, target, length)
        self._tokens[target] = self._tokens[source][:length]

    def hidden(self, ids: Sequence[int]) -> torch.Tensor:
        """Last hidden states after the final norm, (t, d) float32, for embeddings; no slot is touched.

        Raises:
            ModelError: no ids, more than the capacity, or an id outside the vocabulary.
        """
        self._check(0, ids)
        return self._form.hidden(ids)

    @contextmanager
    def timed(self) -> Iterator[dict[str, float]]:
        """Within it, measure: at the end the dict holds seconds by part of the step (nothing in form "torch")."""
        with self._form.timed() as seconds:
            yield seconds

    def _forward(self, slots: Sequence[int], ids: Sequence[Sequence[int]], *, last_only: bool) -> torch.Tensor:
        pasts = [len(self._tokens[slot]) for slot in slots]
        for past, row in zip(pasts, ids, strict=True):
            self._check(past, row)
        logits_wv = self._form.forward(slots, pasts, ids, last_only)
        if not self._form.is_finite(logits_wv):
            raise ModelError("the model's logits are nan or infinite; its training diverged: use an earlier checkpoint")
        for slot, row in zip(slots, ids, strict=True):
            self._tokens[slot].extend(row)
        return logits_wv

    def _check(self, past: int, ids: Sequence[int]) -> None:
        if not ids:
            raise ModelError("there are no tokens to read; write a prompt of at least one token")
        if past + len(ids) > self.capacity:
            raise ModelError(
                f"{past + len(ids)} tokens are more than the engine's capacity of {self.capacity}: shorten the prompt, "
                "or ask for fewer tokens"
            )
        outside = next((token for token in ids if not 0 <= token < self.vocab), None)
        if outside is not None:
            raise ModelError(f"token id {outside} is outside the vocabulary of {self.vocab}; check the tokenizer")


def shared_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Return how many first tokens are the same."""
    length = min(len(left), len(right))
    return next((place for place in range(length) if left[place] != right[place]), length)
