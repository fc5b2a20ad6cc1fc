"""What serving a shape costs: FLOPs of reading a prompt, FLOPs of writing an answer, bytes of the key-value cache.

Symbols: as in `laws.count`; everything is for one sequence unless rows are named. FLOPs and bytes are floats. It knows
no device: times and prices are in `laws.planning`.
"""

from __future__ import annotations

import math

from chinchilla_lm.core.errors import PlanError
from chinchilla_lm.core.shapes import ModelShape
from chinchilla_lm.laws.count import forward_flops


def prefill_flops(shape: ModelShape, prompt_tokens: float, *, all_logits: bool = False) -> float:
    """Count reading a prompt in one pass: every position forward, a query meeting T/2 keys on average.

    Args:
        shape: any layout.
        prompt_tokens: T >= 0.
        all_logits: the head runs at every position (scoring); else at the last alone, as servers do.

    Returns:
        FLOPs of one sequence.

    Raises:
        PlanError: a negative or infinite number of tokens.
    """
    _require_amount(prompt_tokens, "prompt_tokens")
    token = forward_flops(shape, prompt_tokens / 2)
    heads = prompt_tokens if all_logits else min(prompt_tokens, 1.0)
    return prompt_tokens * token.total(head=False) + heads * token.head


def decode_flops(shape: ModelShape, prompt_tokens: float, new_tokens: float) -> float:
    """Count writing tokens one at a time with a key-value cache.

    Args:
        shape: any layout.
        prompt_tokens: already in the cache, >= 0.
        new_tokens: written, >= 0; the i-th meets prompt_tokens + i keys (summed as an integral, i from 0).

    Returns:
        FLOPs of one sequence. A prompt read with `all_logits` and written token by token costs the same.

    Raises:
        PlanError: a negative or infinite number of tokens.
    """
    _require_amount(prompt_tokens, "prompt_tokens")
    _require_amount(new_tokens, "new_tokens")
    return new_tokens * forward_flops(shape, prompt_tokens + new_tokens / 2).total()


def kv_cache_bytes(shape: ModelShape, tokens: float, *, rows: float = 1.0, bytes_per_value: float = 2.0) -> float:
    """Count the key-value cache: a key and a value of every key head in every layer for every token.

    Args:
        shape: grouped key heads shrink it by n_heads / n_kv_heads.
        tokens: in each sequence, >= 0.
        rows: sequences at once, >= 0.
        bytes_per_value: 2 for bfloat16, 1 for eight bits.

    Returns:
        Bytes. Layout "chinchilla" caches keys before their positions, and as many.

    Raises:
        PlanError: a negative or infinite number.
    """
    for number, name in ((tokens, "tokens"), (rows, "rows"), (bytes_per_value, "bytes_per_value")):
        _require_amount(number, name)
    return 2.0 * shape.n_layers * shape.n_kv_heads * shape.head_dim * tokens * rows * bytes_per_value


def _require_amount(number: float, name: str) -> None:
    if not (math.isfinite(number) and number >= 0):
        raise PlanError(f"{name}={number!r} must be finite and >= 0; write a number such as 1000")
