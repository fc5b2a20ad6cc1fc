"""Text from a model: prefill the prompt once, then decode one token at a time with the key-value cache.

Axes: b rows (1 here), t positions, d width, v vocabulary. Three layers: `decode_tokens` yields token ids, `stream`
yields text at complete characters, `generate` returns the whole text as a record. Randomness comes only from
`Sampling.seed`. Never prints, trains or loads files.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from chinchilla_lm.core.errors import ConfigError, ModelError
from chinchilla_lm.data.tokenizer import END_OF_TEXT
from chinchilla_lm.generate.sampling import Sampling, choose_tokens
from chinchilla_lm.generate.text import TextStream
from chinchilla_lm.model.transformer import KeyValueCache, Transformer

DEFAULT_SAMPLING = Sampling()


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
