"""From a prompt and its completion to token ids and to the tokens that are targets.

The two are tokenised as one text, as a model will read them; the boundary is the longest common token prefix of that
and of the prompt alone. Tokens before it are never targets, tokens after it always are, once each, and so is the
end-of-text token, or the model would never learn to stop. What a tokenizer puts before a text (a start token) is kept;
what it puts after one is not.

What does not fit `max_tokens` is cut by this rule, in this order:
  1. the template's long field (document, text, source) loses its end, and the whole is tokenised anew;
  2. without such a field the prompt loses its beginning (its end is next to the answer), token by token;
  3. the completion loses its end, and then has no end-of-text token; that is counted.
  4. When not one token of the completion would remain the row is refused, which is counted too.
Axes: t tokens. Never runs a model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from chinchilla_lm.core.errors import ModelError
from chinchilla_lm.generate.engine import shared_prefix

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

IGNORED = -100
_MOST_SHORTENINGS = 8  # of a field: each removes at least the overshoot; tokens at its new end may join differently


@dataclass(frozen=True, kw_only=True)
class EncodedPair:
    """A prompt and its completion in tokens.

    Attributes:
        ids: start token if any, prompt, completion, end-of-text token; (t) int64.
        boundary: index of the completion's first token, 1..t-1.
        is_prompt_cut: the prompt lost a part.
        is_completion_cut: the completion lost its end.
    """

    ids: np.ndarray[Any, Any]
    boundary: int
    is_prompt_cut: bool = False
    is_completion_cut: bool = False

    @property
    def inputs(self) -> np.ndarray[Any, Any]:
        """What the model reads: all but the last token, (t-1)."""
        return self.ids[:-1]

    @property
    def targets(self) -> np.ndarray[Any, Any]:
        """The token after each input where it is the completion's, else -100; (t-1)."""
        targets = self.ids[1:].copy()
        targets[: self.boundary - 1] = IGNORED
        return targets


class PairEncoder:
    """Encodes prompts and completions with one tokenizer. Attributes: `end_id`, `lead_ids`, `max_tokens`."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, max_tokens: int) -> None:
        """Finds what the tokenizer puts before a text, and its end-of-text token.

        Args:
            tokenizer: of the model.
            max_tokens: longest row, >= 2, the end-of-text token included.

        Raises:
            ModelError: the tokenizer has no end-of-text token.
        """
        assert max_tokens >= 2, max_tokens
        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        self.end_id = end_token_id(tokenizer)
        self.lead_ids = lead_ids(tokenizer)

    def encode(
        self, prompt: str, completion: str, shorten: Callable[[int], tuple[str, bool]] | None = None
    ) -> EncodedPair | None:
        """Encode one pair.

        Args:
            prompt: without spaces at its end.
            completion: begins with the spaces that were there.
            shorten: given how many tokens are too many, returns a shorter prompt and whether it may be asked again;
                None: the prompt loses its beginning.

        Returns:
            The pair; None where no token of the completion would be left.
        """
        ids, boundary = self._join(prompt, completion)
        is_prompt_cut = False
        for _ in range(_MOST_SHORTENINGS):
            excess = len(ids) - self.max_tokens
            if excess <= 0 or shorten is None:
                break
            prompt, can_shrink = shorten(excess)
            ids, boundary = self._join(prompt, completion)
            is_prompt_cut = True
            if not can_shrink:
                break
        excess = len(ids) - self.max_tokens
        if excess > 0 and shorten is None:
            kept = len(self.lead_ids)
            removed = min(excess, boundary - max(kept, 1))  # one token must precede the completion
            ids, boundary = [*ids[:kept], *ids[kept + removed :]], boundary - removed
            is_prompt_cut = removed > 0
        is_completion_cut = len(ids) > self.max_tokens
        ids = ids[: self.max_tokens]
        if boundary >= len(ids):
            return None
        return EncodedPair(
            ids=np.asarray(ids, dtype=np.int64),
            boundary=boundary,
            is_prompt_cut=is_prompt_cut,
            is_completion_cut=is_completion_cut,
        )

    def encode_prompt(self, prompt: str, shorten: Callable[[int], tuple[str, bool]] | None, room: int) -> list[int]:
        """The prompt alone as it is read before generating, cut by the same rule so that `room` tokens may follow."""
        limit = max(1, self.max_tokens - room)
        ids = self._start(self.bare(prompt))
        for _ in range(_MOST_SHORTENINGS):
            if len(ids) <= limit or shorten is None:
                break
            prompt, can_shrink = shorten(len(ids) - limit)
            ids = self._start(self.bare(prompt))
            if not can_shrink:
                break
        kept = len(self.lead_ids)
        return ids if len(ids) <= limit else [*ids[:kept], *ids[kept + len(ids) - limit :]][:limit]

    def bare(self, text: str) -> list[int]:
        """Token ids of a text without anything added."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[return-value]

    def shortener(self, text: str, fill: Callable[[str], str]) -> Callable[[int], tuple[str, bool]]:
        """Make the function that shortens one field from its end.

        Args:
            text: the whole field.
            fill: writes the prompt with another text in the field's place.
        """
        ends = [end for _, end in self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)[
            "offset_mapping"
        ]]  # fmt: skip
        kept = len(ends)

        def shorten(excess: int) -> tuple[str, bool]:
            nonlocal kept
            kept = max(0, kept - excess)
            return fill(text[: ends[kept - 1]] if kept else ""), kept > 0

        return shorten

    def _start(self, ids: Sequence[int]) -> list[int]:
        """Put the start token before a text; an empty prompt needs one in any case, for nothing precedes it."""
        if self.lead_ids or ids:
            return [*self.lead_ids, *ids]
        return [start_token_id(self.tokenizer)]

    def _join(self, prompt: str, completion: str) -> tuple[list[int], int]:
        whole, alone = self.bare(prompt + completion), self.bare(prompt)
        boundary = shared_prefix(whole, alone)
        lead = self.lead_ids
        if not lead and boundary == 0:  # no prompt, or all of it joined with the completion
            lead = [start_token_id(self.tokenizer)]
        return [*lead, *whole, self.end_id], len(lead) + boundary


def lead_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """What the tokenizer puts before every text by its own rule, such as a start token."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    dressed = tokenizer("a")["input_ids"]
    for start in range(len(dressed) - len(bare) + 1):
        if dressed[start : start + len(bare)] == bare:
            return list(dressed[:start])
    return []


def end_token_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """The token that ends a text.

    Raises:
        ModelError: there is none.
    """
    token: Any = tokenizer.eos_token_id
    if token is None:
        token = tokenizer.sep_token_id
    if token is None:
        raise ModelError(
            "the tokenizer has no eos_token, without which a model never learns to stop; name one in "
            'tokenizer_config.json, such as "eos_token": "<|endoftext|>"'
        )
    return int(token)


def start_token_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """The token that stands before a text without a prompt: the start token, else the one that ended the last text."""
    token: Any = tokenizer.bos_token_id
    return end_token_id(tokenizer) if token is None else int(token)
