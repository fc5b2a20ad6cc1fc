"""Our Transformer as a backbone: Qwen3 and Llama folders and our own layouts, causal, with our CPU kernels.

Rows are padded on the right: a causal model's states at real positions do not depend on what follows, so no mask is
needed. The head meets only the positions that have a target.

Axes: b rows, t positions, n chosen positions, d width, v vocab, k chosen tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from chinchilla_lm.generate.engine import Engine
from chinchilla_lm.model.compiling import compile_blocks
from chinchilla_lm.model.huggingface import load_model
from chinchilla_lm.model.transformer import IGNORED, Transformer
from chinchilla_lm.tune.backbone import Kind, price_continuations, read_next_tokens
from chinchilla_lm.tune.lora import has_lora, merged_copy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Texts that are continued at once: the engine's own default.
_SLOTS = 8


class OwnBackbone(nn.Module):
    """See `tune.backbone.Backbone`. Attribute `transformer`: the network itself, whose parts LoRA replaces."""

    kind: Kind = "causal"
    form: Literal["own", "hub"] = "own"

    def __init__(self, transformer: Transformer, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
        """Keeps all three as they are; `load_own_backbone` chooses form and number format."""
        super().__init__()
        self.transformer = transformer
        self.tokenizer = tokenizer
        self.folder = folder
        self.width = transformer.shape.d_model
        self.vocab = transformer.shape.vocab
        self.context = transformer.shape.context
        self._engine: tuple[tuple[int, ...], Engine] | None = None

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """Blocks from the input to the output."""
        return list(self.transformer.blocks)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.transformer.embedding.device

    def hidden(self, ids_bt: Tensor, lengths_b: Tensor) -> Tensor:
        """Last hidden states after the final norm, x_btd; what lies beyond a row's length is meaningless."""
        return self.transformer.hidden(ids_bt)

    def token_losses(self, ids_bt: Tensor, targets_bt: Tensor, lengths_b: Tensor) -> Tensor:
        """-ln p(target), float32 nats, 0 where the target is -100; the head reads only positions with a target."""
        x_nd, targets_n = self.hidden(ids_bt, lengths_b).flatten(0, 1), targets_bt.flatten()
        chosen_n = (targets_n != IGNORED).nonzero()[:, 0]
        losses_n = self.transformer.losses_of(x_nd[chosen_n], targets_n[chosen_n])
        return x_nd.new_zeros(len(targets_n), dtype=torch.float32).index_copy(0, chosen_n, losses_n).view_as(targets_bt)

    def unembedding_rows(self, ids: Sequence[int]) -> Tensor:
        """Rows of the output matrix, w_kd, float32, differentiable."""
        return self.transformer.head_weight[torch.tensor(list(ids), device=self.device)]

    @torch.no_grad()
    def next_token_logits(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Logits of the token after each prompt, logits_bv, float32."""
        x_bd = read_next_tokens(self, prompts)
        head_vd = self.transformer.head_weight.to(x_bd.dtype)
        return torch.nn.functional.linear(x_bd, head_vd).float()

    def choice_logprobs(self, prefix: Sequence[int], continuations: Sequence[Sequence[int]]) -> np.ndarray[Any, Any]:
        """Ln p(continuation | prefix), nats summed over tokens, float64 (k)."""
        return price_continuations(self, prefix, continuations)

    def generate(self, prompts: Sequence[Sequence[int]], max_tokens: int, stops: Sequence[int]) -> list[list[int]]:
        """Continue each prompt greedily through the decoding engine, eight texts at a time."""
        engine, stop_set = self._fresh_engine(max(map(len, prompts), default=0) + max_tokens), set(stops)
        answers: list[list[int]] = [[] for _ in prompts]
        waiting = list(range(len(prompts)))[::-1]
        running: dict[int, int] = {}  # slot -> prompt
        while waiting or running:
            free = [slot for slot in range(_SLOTS) if slot not in running]
            started = {slot: waiting.pop() for slot in free if waiting}
            if started:
                logits_bv = engine.prefill_many(list(started), [list(prompts[i]) for i in started.values()])
                running |= started
                self._take(engine, started, logits_bv, (answers, running, max_tokens, stop_set))
            if running:
                slots = list(running)
                logits_bv = engine.decode(slots, [answers[running[slot]][-1] for slot in slots])
                self._take(engine, dict(running), logits_bv, (answers, running, max_tokens, stop_set))
        return answers

    def train(self, mode: bool = True) -> OwnBackbone:
        """As of every module. What was made for decoding is dropped: a fused optimizer changes weights unnoticed.

        torch counts the changes of a tensor in `_version`, and AdamW(fused=True) does not move it (2.13).
        """
        if mode:
            self._engine = None
        return super().train(mode)

    def _take(
        self,
        engine: Engine,
        rows: dict[int, int],
        logits_bv: Tensor,
        state: tuple[list[list[int]], dict[int, int], int, set[int]],
    ) -> None:
        """Add the likeliest token to each text; take finished texts out of `running`."""
        answers, running, max_tokens, stops = state
        for (slot, row), token in zip(rows.items(), logits_bv.argmax(dim=-1).tolist(), strict=True):
            if token not in stops:
                answers[row].append(token)
            is_full = engine.length(slot) >= engine.capacity
            if token in stops or len(answers[row]) >= max_tokens or is_full:
                del running[slot]

    def _fresh_engine(self, tokens: int) -> Engine:
        """Make the engine of the weights as they are now; kept while they do not change and texts of `tokens` fit."""
        capacity = min(self.context, 1 << max(6, (tokens - 1).bit_length()))
        is_adapted = has_lora(self.transformer)
        key = (sum(p._version for p in self.transformer.parameters()), int(is_adapted), capacity)
        if self._engine is None or self._engine[0] != key:
            self._engine = None  # before the new one is made: two copies of the weights may not fit
            model = merged_copy(self.transformer) if is_adapted else self.transformer
            weights = "bfloat16" if self.transformer.compute_dtype == torch.bfloat16 else "float32"
            self._engine = (key, Engine(model, slots=_SLOTS, capacity=capacity, weights=weights))
        return self._engine[1]


def load_own_backbone(
    folder: Path, tokenizer: PreTrainedTokenizerFast, dtype: torch.dtype, device: str = "cpu"
) -> OwnBackbone:
    """Read a folder into our Transformer, in its fastest form here.

    Args:
        folder: Qwen3, Llama or one of ours.
        tokenizer: with `pad_token` set.
        dtype: of activations and matmuls, float32 or bfloat16; weights are float32.
        device: a torch device name.

    Raises:
        ModelError: a model that `model.huggingface` does not read.
    """
    transformer = load_model(folder).to(device)
    transformer.compute_dtype = dtype
    compile_blocks(transformer, "kernels" if device == "cpu" else "plain")
    return OwnBackbone(transformer, tokenizer, folder)
