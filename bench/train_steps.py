"""One training step of each project at the same model size: `STEPS[name](work, clone)` returns a `Step`.

Peers' own modules are imported from their packages or from a clone given on the command line; nothing of theirs is
copied. `GptTwo` is the GPT-2 architecture (Radford et al. 2019, section 2.3) written out for machines without a clone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Work:
    """The model and batch that every project trains.

    A GPT-2 block has 4 d^2 + 8 d^2 matmul weights; a gated block has as many with d_ff = 8/3 d (a multiple of 16).
    """

    d_model: int
    n_layers: int
    n_heads: int
    vocab: int
    context: int
    rows: int

    @property
    def gated_d_ff(self) -> int:
        return round(8 * self.d_model / 3 / 16) * 16

    @property
    def batch_tokens(self) -> int:
        return self.rows * self.context

    def flops_per_token(self, matmul_params: int) -> float:
        """6 N + causal attention, forward and backward."""
        return 6.0 * matmul_params + 6.0 * self.context * self.d_model * self.n_layers


WORKS = {
    "small": Work(d_model=128, n_layers=5, n_heads=4, vocab=1024, context=256, rows=8),
    "medium": Work(d_model=384, n_layers=6, n_heads=6, vocab=8192, context=256, rows=8),
}


@dataclass(frozen=True, kw_only=True)
class Step:
    """`run()` does one update and returns its loss, nats per token."""

    run: Callable[[], float]
    matmul_params: int
    params: int


def draw_tokens(work: Work, seed: int = 0) -> np.ndarray:
    """Tokens with Zipf's frequencies (rank^-1), enough for 64 batches."""
    weights = 1.0 / np.arange(1, work.vocab + 1)
    draws = np.random.default_rng(seed)
    return draws.choice(work.vocab, size=64 * work.batch_tokens + 1, p=weights / weights.sum())


def batches_of(work: Work) -> Callable[[], tuple[Tensor, Tensor]]:
    tokens = torch.from_numpy(draw_tokens(work))
    position = 0

    def next_batch() -> tuple[Tensor, Tensor]:
        nonlocal position
        start = position * work.batch_tokens
        position = (position + 1) % 64
        shape = (work.rows, work.context)
        return (
            tokens[start : start + work.batch_tokens].view(shape),
            tokens[start + 1 : start + 1 + work.batch_tokens].view(shape),
        )

    return next_batch


def plain_step(work: Work, model: nn.Module, loss_of: Callable[[Tensor, Tensor], Tensor], matmul_params: int) -> Step:
    """The step that every tutorial has: forward, backward, clip at 1, fused AdamW, read the loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    next_batch = batches_of(work)

    def run() -> float:
        ids_bt, targets_bt = next_batch()
        loss = loss_of(ids_bt, targets_bt)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return Step(run=run, matmul_params=matmul_params, params=sum(p.numel() for p in model.parameters()))


def count_matmul(model: nn.Module, *, vocab: int, is_tied: bool) -> int:
    """Weights that a token is multiplied with: all matrices, less the input embedding unless the head shares it."""
    matrices = [p for p in model.parameters() if p.ndim == 2]
    tables = [p for p in matrices if vocab <= p.shape[0] <= vocab + 64]
    return sum(p.numel() for p in matrices) - (0 if is_tied else tables[0].numel())


# --- ours


def our_step(work: Work, _clone: Path | None, *, dtype: str, form: str) -> Step:
    """Our training loop as shipped: config, optimizer groups, schedule, records."""
    from chinchilla_lm.core.shapes import ModelShape
    from chinchilla_lm.laws.count import count_parameters
    from chinchilla_lm.train.config import BatchConfig, OptimizerConfig, RunConfig, ScheduleConfig, TrainConfig
    from chinchilla_lm.train.loop import train
    from chinchilla_lm.train.objective import next_token_objective
    from chinchilla_lm.train.placement import choose_placement
    from chinchilla_lm.train.segment import build_training, plan_loop

    shape = ModelShape(
        vocab=work.vocab,
        context=work.context,
        d_model=work.d_model,
        n_layers=work.n_layers,
        n_heads=work.n_heads,
        n_kv_heads=work.n_heads,
        head_dim=work.d_model // work.n_heads,
        d_ff=work.gated_d_ff,
    )
    own_form: Any = "inductor" if form == "compiled" else form
    config = TrainConfig(
        shape=shape,
        batch=BatchConfig(rows=work.rows, micro_batch=work.rows),
        optimizer=OptimizerConfig(lr_matrix=1e-3, lr_embedding=1e-3, weight_decay=0.1),
        schedule=ScheduleConfig(steps=1_000_000),
        run=RunConfig(dtype=dtype, device="cpu", form=own_form, threads=torch.get_num_threads()),
    )
    next_batch = batches_of(work)

    class Batches:
        def at(self, _step: int) -> tuple[np.ndarray, ...]:
            return tuple(part.numpy() for part in next_batch())

    placement = choose_placement(config.run)
    model, optimizer = build_training(config, placement)
    plan = plan_loop(config, start_step=0, start_tokens=0, stop_step=config.schedule.steps)
    steps = train(model, Batches(), next_token_objective, optimizer, plan, placement)
    counts = count_parameters(shape)
    return Step(run=lambda: next(steps).loss, matmul_params=counts.matmul, params=counts.total)


# --- the GPT-2 architecture, and nanoGPT


class GptTwo(nn.Module):
    """Pre-norm blocks, learned positions, GELU, tied head; no biases, as small GPT-2 trainers leave them out."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        d = work.d_model
        self.heads = work.n_heads
        self.tokens, self.positions = nn.Embedding(work.vocab, d), nn.Embedding(work.context, d)
        layers = [
            nn.ModuleDict(
                {
                    "norm_1": nn.LayerNorm(d, bias=False),
                    "qkv": nn.Linear(d, 3 * d, bias=False),
                    "out": nn.Linear(d, d, bias=False),
                    "norm_2": nn.LayerNorm(d, bias=False),
                    "up": nn.Linear(d, 4 * d, bias=False),
                    "down": nn.Linear(4 * d, d, bias=False),
                }
            )
            for _ in range(work.n_layers)
        ]
        self.layers, self.norm = nn.ModuleList(layers), nn.LayerNorm(d, bias=False)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids_bt: Tensor, targets_bt: Tensor) -> Tensor:
        x_btd = self.tokens(ids_bt) + self.positions.weight[: ids_bt.shape[1]]
        for layer in self.layers:
            q, k, v = (
                part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
                for part in layer["qkv"](layer["norm_1"](x_btd)).chunk(3, dim=-1)
            )
            heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x_btd = x_btd + layer["out"](heads.transpose(1, 2).flatten(2))
            x_btd = x_btd + layer["down"](F.gelu(layer["up"](layer["norm_2"](x_btd))))
        logits = F.linear(self.norm(x_btd), self.tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets_bt.flatten())


def gpt_two_step(work: Work, _clone: Path | None, *, dtype: str, form: str) -> Step:
    torch.manual_seed(0)
    model = GptTwo(work)
    matmul_params = count_matmul(model, vocab=work.vocab, is_tied=True) - model.positions.weight.numel()
    return plain_step(work, model, _with_autocast(_compiled(model, form), dtype), matmul_params)


def nanogpt_step(work: Work, clone: Path | None, *, dtype: str, form: str) -> Step:
    """nanoGPT's own model, from a clone. Its train.py has no autocast on a CPU: bf16 is an edit in its favour."""
    sys.path.insert(0, str(_need(clone, "--nanogpt")))
    from model import GPT, GPTConfig  # type: ignore[import-not-found]

    torch.manual_seed(0)
    model = GPT(
        GPTConfig(
            block_size=work.context, vocab_size=work.vocab, n_layer=work.n_layers, n_head=work.n_heads,
            n_embd=work.d_model, dropout=0.0, bias=False,
        )
    )  # fmt: skip
    matmul_params = count_matmul(model, vocab=work.vocab, is_tied=True) - model.transformer.wpe.weight.numel()
    compiled = _compiled(model, form)
    loss_of = _with_autocast(lambda ids, targets: compiled(ids, targets)[1], dtype)
    return plain_step(work, model, loss_of, matmul_params)


# --- Hugging Face


def gpt2_of_hugging_face_step(work: Work, _clone: Path | None, *, dtype: str, form: str) -> Step:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=work.vocab, n_positions=work.context, n_embd=work.d_model, n_layer=work.n_layers,
        n_head=work.n_heads, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config)
    matmul_params = count_matmul(model, vocab=work.vocab, is_tied=True) - model.transformer.wpe.weight.numel()
    return _hugging_face_step(work, model, matmul_params, dtype, form)


def llama_of_hugging_face_step(work: Work, _clone: Path | None, *, dtype: str, form: str) -> Step:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=work.vocab, max_position_embeddings=work.context, hidden_size=work.d_model,
        intermediate_size=work.gated_d_ff, num_hidden_layers=work.n_layers, num_attention_heads=work.n_heads,
        use_cache=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    return _hugging_face_step(work, model, count_matmul(model, vocab=work.vocab, is_tied=False), dtype, form)


def _hugging_face_step(work: Work, model: nn.Module, matmul_params: int, dtype: str, form: str) -> Step:
    compiled = _compiled(model, form)
    # What Trainer calls: the model computes the loss from labels, and shifts them itself.
    return plain_step(
        work, model, _with_autocast(lambda ids, _t: compiled(input_ids=ids, labels=ids).loss, dtype), matmul_params
    )


# --- nanochat


def nanochat_step(work: Work, clone: Path | None, *, dtype: str, form: str) -> Step:
    """nanochat's own model with AdamW, from a clone. NANOCHAT_DTYPE in the environment sets its number format.

    Its value embeddings add parameters that this step trains, but that no matmul uses.
    """
    del dtype
    sys.path.insert(0, str(_need(clone, "--nanochat")))
    from nanochat.gpt import GPT, GPTConfig  # type: ignore[import-not-found]

    config = GPTConfig(
        sequence_len=work.context, vocab_size=work.vocab, n_layer=work.n_layers, n_head=work.n_heads,
        n_kv_head=work.n_heads, n_embd=work.d_model, window_pattern="L",
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("meta"):
        model = GPT(config)
    model.to_empty(device="cpu")
    model.init_weights()
    counts = model.num_scaling_params()
    compiled = torch.compile(model, dynamic=False) if form == "compiled" else model
    return plain_step(
        work, model, lambda ids, targets: compiled(ids, targets), counts["transformer_matrices"] + counts["lm_head"]
    )


def _compiled(model: nn.Module, form: str) -> nn.Module:
    return torch.compile(model) if form == "compiled" else model


def _with_autocast(loss_of: Callable[[Tensor, Tensor], Tensor], dtype: str) -> Callable[[Tensor, Tensor], Tensor]:
    if dtype == "float32":
        return loss_of

    def autocast_loss(ids_bt: Tensor, targets_bt: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return loss_of(ids_bt, targets_bt)

    return autocast_loss


def _need(clone: Path | None, option: str) -> Path:
    if clone is None or not clone.is_dir():
        raise SystemExit(f"this variant runs the project's own code; give a clone with {option} DIR")
    return clone


STEPS: dict[str, Callable[..., Step]] = {
    "ours": our_step,
    "gpt2-architecture": gpt_two_step,
    "nanogpt": nanogpt_step,
    "hf-gpt2": gpt2_of_hugging_face_step,
    "hf-llama": llama_of_hugging_face_step,
    "nanochat": nanochat_step,
}
