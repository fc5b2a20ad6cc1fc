"""The network under a task's head, ours or transformers', as the tasks see it.

Axes: b rows, t positions, d width, v vocab, k chosen tokens. Rows are padded on the right with any id below vocab;
`lengths_b` says how much of each is real, and no result at a real position depends on the padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Kind = Literal["causal", "encoder", "seq2seq"]


class Backbone(Protocol):
    """A model without a task's head. Every implementation is an nn.Module.

    Attributes:
        kind: "causal" (decoder), "encoder", "seq2seq".
        form: "own" or "hub".
        tokenizer: Hugging Face's fast tokenizer, `pad_token` set.
        width: d.
        vocab: rows of the embedding.
        context: most tokens in one row.
        blocks: from the input to the output, for freezing and layer-wise rates.
        folder: where the model was read.
    """

    kind: Kind
    form: Literal["own", "hub"]
    tokenizer: PreTrainedTokenizerFast
    width: int
    vocab: int
    context: int
    folder: Path

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """Blocks from the input to the output."""
        ...

    def hidden(self, ids_bt: Tensor, lengths_b: Tensor) -> Tensor:
        """Last hidden states after the final norm, x_btd in the compute dtype (of the encoder for "seq2seq")."""
        ...

    def token_losses(self, ids_bt: Tensor, targets_bt: Tensor, lengths_b: Tensor) -> Tensor:
        """-ln p(target) at each position, float32 nats, 0 where the target is -100; targets are already shifted."""
        ...

    def unembedding_rows(self, ids: Sequence[int]) -> Tensor:
        """Rows of the output matrix for some tokens, w_kd, float32, differentiable."""
        ...

    def next_token_logits(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Logits of the token after each prompt, logits_bv, float32, without gradient."""
        ...

    def choice_logprobs(self, prefix: Sequence[int], continuations: Sequence[Sequence[int]]) -> np.ndarray[Any, Any]:
        """ln p(continuation | prefix), nats summed over tokens, float64 (k), without gradient."""
        ...

    def generate(self, prompts: Sequence[Sequence[int]], max_tokens: int, stops: Sequence[int]) -> list[list[int]]:
        """Continue each prompt greedily until a stop token (left out) or max_tokens."""
        ...

    def save(
        self,
        folder: Path,
        *,
        hub_class: str,
        head: nn.Module | None = None,
        labels: Sequence[str] = (),
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Write an ordinary Hugging Face folder: weights, head, config with id2label, tokenizer."""
        ...
