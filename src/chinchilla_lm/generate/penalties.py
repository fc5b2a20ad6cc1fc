"""What a text's settings and past do to its next logits: bias, repetition, presence, frequency, bad words.

Symbols: logits_v = (vocab,) float32. Applied in the order of `transformers`, before temperature and cuts.
Never chooses a token.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from tokenizers import Tokenizer

from chinchilla_lm.core.errors import ConfigError
from chinchilla_lm.generate.sampling import Sampling


class Penalties:
    """The past of one text, and its effect on the logits.

    Attributes:
        can_ban: some token may get -inf.
    """

    def __init__(
        self, sampling: Sampling, prompt_ids: Sequence[int], bad_words: Sequence[Sequence[int]], vocab: int
    ) -> None:
        """Start a text after a prompt.

        Args:
            sampling: its penalties and bias are used.
            prompt_ids: count for the repetition penalty and as the start of bad words.
            bad_words: token sequences whose last token may not follow the others.
            vocab: number of tokens.

        Raises:
            ConfigError: a biased token or a bad word is outside the vocabulary.
        """
        for token in (*sampling.logit_bias, *(token for word in bad_words for token in word)):
            if not 0 <= token < vocab:
                raise ConfigError(f"token {token} must be in [0, {vocab}), the model's vocabulary; correct the id")
        self.can_ban = bool(bad_words)
        self._sampling = sampling
        self._bias_ids = torch.tensor(list(sampling.logit_bias), dtype=torch.int64)
        self._biases = torch.tensor(list(sampling.logit_bias.values()), dtype=torch.float32)
        self._banned_ids = torch.tensor([word[0] for word in bad_words if len(word) == 1], dtype=torch.int64)
        self._bad_words = [tuple(word) for word in bad_words if len(word) > 1]  # a tuple's own, not a copy
        self._longest_bad_word = max(map(len, self._bad_words), default=1)
        self._tail = tuple(prompt_ids[-self._longest_bad_word :])
        # Kept for its only use: a long prompt with many choices would fill the memory.
        self._seen: dict[int, None] = dict.fromkeys(prompt_ids if sampling.repetition_penalty != 1 else ())
        self._seen_ids = torch.tensor(list(self._seen), dtype=torch.int64)
        self._counts: dict[int, int] = {}

    def push(self, token: int) -> None:
        """Note a token of the text."""
        self._counts[token] = self._counts.get(token, 0) + 1
        if self._sampling.repetition_penalty != 1 and token not in self._seen:
            self._seen[token] = None
            self._seen_ids = torch.cat([self._seen_ids, torch.tensor([token])])
        if self._bad_words:
            self._tail = (*self._tail, token)[-self._longest_bad_word :]

    def apply(self, logits_v: torch.Tensor) -> torch.Tensor:
        """Return the penalised logits; the argument is left as it is."""
        sampling = self._sampling
        if len(self._bias_ids):
            logits_v = logits_v.index_add(0, self._bias_ids, self._biases)
        if sampling.repetition_penalty != 1:
            seen = logits_v[self._seen_ids]
            seen = torch.where(seen < 0, seen * sampling.repetition_penalty, seen / sampling.repetition_penalty)
            logits_v = logits_v.index_copy(0, self._seen_ids, seen)
        if self._counts and (sampling.presence_penalty or sampling.frequency_penalty):
            counts = torch.tensor(list(self._counts.values()), dtype=torch.float32)
            penalties = -sampling.presence_penalty - sampling.frequency_penalty * counts
            logits_v = logits_v.index_add(0, torch.tensor(list(self._counts)), penalties)
        if len(self._banned_ids):
            logits_v = logits_v.index_fill(0, self._banned_ids, -math.inf)
        last = self._tail[-1:]
        last_ids = [
            word[-1] for word in self._bad_words if word[-2:-1] == last and self._tail[1 - len(word) :] == word[:-1]
        ]
        if last_ids:
            logits_v = logits_v.index_fill(0, torch.tensor(last_ids), -math.inf)
        return logits_v

    def copy(self) -> Penalties:
        """Return the same past, to be pushed on without changing this one."""
        other = copy.copy(self)
        other._seen, other._counts = dict(self._seen), dict(self._counts)
        return other


def bad_word_ids(tokenizer: Tokenizer, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Return the token sequences of words that may not come: each alone and after a space.

    As in `transformers` and vLLM, these spellings are banned and not every way to cut the word into tokens.

    Raises:
        ConfigError: a word is empty.
    """
    spellings: dict[tuple[int, ...], None] = {}
    for word in words:
        if not word.strip():
            raise ConfigError(f"bad word {word!r} must not be empty; leave it out")
        for text in (word, " " + word.lstrip()):
            spellings[tuple(tokenizer.encode(text, add_special_tokens=False).ids)] = None
    return tuple(spellings)
