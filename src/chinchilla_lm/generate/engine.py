"""The engine: a model with slots, each the cached keys and values of one text; and text from a model.

Axes: b rows, t positions, d width, v vocabulary. `Engine` reads prompts into slots and adds tokens to several slots at
once; it knows nothing of sampling or text. Above it `decode_tokens` yields token ids, `stream` text at complete
characters, `generate` the whole text as a record. Randomness comes only from `Sampling.seed`. Never prints, trains or
loads files.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from chinchilla_lm.core.errors import ConfigError, ModelError
from chinchilla_lm.data.tokenizer import END_OF_TEXT
from chinchilla_lm.generate.sampling import Sampling, choose_tokens
from chinchilla_lm.generate.text import TextStream
from chinchilla_lm.generate.torch_form import TorchForm
from chinchilla_lm.generate.weights import WeightsType
from chinchilla_lm.model.transformer import KeyValueCache, Transformer

DEFAULT_SAMPLING = Sampling()


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
            weights: "auto" takes float32.

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
        self.weights: WeightsType = "float32" if weights == "auto" else weights
        self._form = TorchForm(model, slots, self.capacity, self.weights)
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
        self._check(0, ids)
        held = self._tokens[slot]
        most = min(len(held), len(ids) - 1)  # the last token is read in any case: its logits are asked for
        shared = next((i for i in range(most) if held[i] != ids[i]), most)
        self.truncate(slot, shared)
        return self._forward([slot], [ids[shared:]], last_only=True)[0, 0]

    def prefill_logits(self, slot: int, ids: Sequence[int]) -> torch.Tensor:
        """As `prefill`, but all positions' logits, (t, v) float32; row i is about the token after ids[i]."""
        self._check(0, ids)
        self.clear(slot)
        return self._forward([slot], [ids], last_only=False)[0]

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
        return self._forward(slots, [[token] for token in ids], last_only=True)[:, 0]

    def extend(self, slot: int, ids: Sequence[int]) -> torch.Tensor:
        """Add several tokens to a slot (to verify a draft's guesses); their logits, (t, v) float32. Errors as decode."""
        return self._forward([slot], [ids], last_only=False)[0]

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

    def hidden(self, ids: Sequence[int]) -> torch.Tensor:
        """Last hidden states after the final norm, (t, d) float32, for embeddings; no slot is touched.

        Raises:
            ModelError: no ids, more than the capacity, or an id outside the vocabulary.
        """
        self._check(0, ids)
        return self._form.hidden(ids)

    def _forward(self, slots: Sequence[int], ids: Sequence[Sequence[int]], *, last_only: bool) -> torch.Tensor:
        pasts = [len(self._tokens[slot]) for slot in slots]
        for past, row in zip(pasts, ids, strict=True):
            self._check(past, row)
        logits_btv = self._form.forward(slots, pasts, ids, last_only)
        # One nan or infinity makes the sum one; finite logits cannot overflow it.
        if not math.isfinite(float(logits_btv.sum())):
            raise ModelError("the model's logits are nan or infinite; its training diverged: use an earlier checkpoint")
        for slot, row in zip(slots, ids, strict=True):
            self._tokens[slot].extend(row)
        return logits_btv

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


@dataclass(frozen=True, kw_only=True)
class Generation:
    """A finished text.

    Attributes:
        text: the continuation, without the prompt and without the end-of-text token.
        tokens: number of tokens in `token_ids`.
        token_ids: the chosen tokens, without the end-of-text token.
        finish_reason: "stop" when the model ended the text, "length" at `max_tokens` or at the end of the context.
        tokens_per_s: tokens over wall seconds, the prompt's prefill included.
    """

    text: str
    tokens: int
    token_ids: tuple[int, ...]
    finish_reason: Literal["stop", "length"]
    tokens_per_s: float


def generate(
    model: Transformer,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    max_tokens: int = 128,
    sampling: Sampling = DEFAULT_SAMPLING,
    stop_ids: Collection[int] | None = None,
) -> Generation:
    """Continue a prompt and return the whole text.

    Args:
        model: on any device; its mode (train or eval) is restored afterwards.
        tokenizer: of the same vocabulary; its own rule decides whether a start token is put before the prompt.
        prompt: any text; "" starts a new text.
        max_tokens: most tokens to add, >= 1; the end of the context may come first.
        sampling: how a token is chosen.
        stop_ids: tokens that end the text; None takes the tokenizer's end-of-text token.

    Returns:
        The text and its record.

    Raises:
        ModelError: the prompt fills the context, or the model's logits are not finite.
        ConfigError: max_tokens < 1.
    """
    pieces = stream(model, tokenizer, prompt, max_tokens=max_tokens, sampling=sampling, stop_ids=stop_ids)
    while True:
        try:
            next(pieces)
        except StopIteration as finished:
            return finished.value


def stream(
    model: Transformer,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    max_tokens: int = 128,
    sampling: Sampling = DEFAULT_SAMPLING,
    stop_ids: Collection[int] | None = None,
) -> Generator[str, None, Generation]:
    """Continue a prompt; yield non-empty pieces of text as their characters complete, and return the record.

    Args and errors are those of `generate`; errors come with the first piece. The pieces joined are `Generation.text`.
    """
    started = time.perf_counter()
    prompt_ids = encode_prompt(tokenizer, prompt)
    stop_ids = end_of_text_ids(tokenizer) if stop_ids is None else stop_ids
    text_stream = TextStream(tokenizer, prompt_ids)
    token_ids: list[int] = []
    pieces: list[str] = []
    finish_reason: Literal["stop", "length"] = "length"
    for token in decode_tokens(model, prompt_ids, max_tokens=max_tokens, sampling=sampling):
        if token in stop_ids:
            finish_reason = "stop"
            break
        token_ids.append(token)
        if piece := text_stream.push(token):
            pieces.append(piece)
            yield piece
    if piece := text_stream.finish():
        pieces.append(piece)
        yield piece
    return Generation(
        text="".join(pieces),
        tokens=len(token_ids),
        token_ids=tuple(token_ids),
        finish_reason=finish_reason,
        tokens_per_s=len(token_ids) / (time.perf_counter() - started),
    )


def decode_tokens(
    model: Transformer, prompt_ids: Sequence[int], *, max_tokens: int, sampling: Sampling
) -> Iterator[int]:
    """Yield the tokens that follow a prompt, one forward pass a token; knows nothing of text or of where it ends.

    Args:
        model: any layout.
        prompt_ids: 1 to context - 1 token ids.
        max_tokens: most tokens to yield, >= 1; fewer when the context ends.
        sampling: how a token is chosen.

    Yields:
        Token ids.

    Raises:
        ModelError: the prompt fills the context, or the model's logits are not finite.
        ConfigError: max_tokens < 1.
    """
    if max_tokens < 1:
        raise ConfigError(f"max_tokens must be >= 1, got {max_tokens}; ask for at least one token")
    count = min(max_tokens, _room_after(prompt_ids, model.shape.context))
    device = model.embedding.device
    generator = torch.Generator(device=device).manual_seed(sampling.seed)
    was_training = model.training
    model.eval()
    try:
        cache = KeyValueCache(model, rows=1, capacity=len(prompt_ids) + count)
        ids_bt = torch.tensor([list(prompt_ids)], device=device)
        for _ in range(count):
            logits_bv = _next_logits(model, ids_bt, cache)
            tokens_b = choose_tokens(logits_bv, sampling, generator)
            yield int(tokens_b[0])
            ids_bt = tokens_b[:, None]
    finally:
        model.train(was_training)


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Return the prompt's token ids by the tokenizer's own rule; "" becomes the end-of-text token: a text starts."""
    return tokenizer.encode(prompt).ids or list(end_of_text_ids(tokenizer))[:1]


def end_of_text_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the id of the end-of-text token, or nothing when the vocabulary lacks it."""
    token = tokenizer.token_to_id(END_OF_TEXT)
    return () if token is None else (token,)


@torch.inference_mode()
def _next_logits(model: Transformer, ids_bt: torch.Tensor, cache: KeyValueCache) -> torch.Tensor:
    # Only the last position meets the head: a long prompt's other logits would be (t, v) floats that nobody reads.
    x_bd = model.hidden(ids_bt, cache)[:, -1]
    logits_bv = F.linear(x_bd, model.head_weight.to(x_bd.dtype)).float()
    if not bool(logits_bv.isfinite().all()):
        raise ModelError("the model's logits are nan or infinite; its training diverged: use an earlier checkpoint")
    return logits_bv


def _room_after(prompt_ids: Sequence[int], context: int) -> int:
    """Return how many positions the context has after the prompt, >= 1."""
    if not prompt_ids:
        raise ModelError(f"an empty prompt needs the token {END_OF_TEXT}, which this vocabulary lacks; write a prompt")
    if len(prompt_ids) >= context:
        raise ModelError(
            f"the prompt has {len(prompt_ids)} tokens and the model's context is {context}: shorten the prompt to at "
            f"most {context - 1} tokens, or train a model with a longer context"
        )
    return context - len(prompt_ids)
