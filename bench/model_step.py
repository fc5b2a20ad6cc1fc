"""Tokens per second of one training step (forward, loss, backward), for each form of the model, side by side.

Run:  OMP_NUM_THREADS=1 taskset -c 0 python bench/model_step.py [--d-model 128] [--context 256] [--inductor]

Variants are interleaved: every round times each variant once, so that a slow spell of the machine hits all of them.
The figures are the median and the best round, in CPU seconds of the thread (one thread) or wall seconds (more).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time

import torch

from chinchilla_lm.core.shapes import ModelShape
from chinchilla_lm.model.compiling import compile_blocks
from chinchilla_lm.model.transformer import Transformer, initialise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--d-model", type=int, default=128)
    parser.add_argument("--n-layers", type=int, default=None, help="default: the shape path's")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--vocab", type=int, default=1024)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--inductor", action="store_true", help="also torch.compile (30 to 80 s more when cold)")
    arguments = parser.parse_args()
    shape, rows = make_shape(arguments), max(1, arguments.batch_tokens // arguments.context)
    names = [("plain", "bmm"), ("plain", "sdpa"), ("kernels", "bmm"), ("kernels", "sdpa")]
    names += [("inductor", "bmm")] if arguments.inductor else []
    ids = torch.randint(shape.vocab, (rows, shape.context + 1), generator=torch.Generator().manual_seed(0))
    variants = {}
    for dtype in (torch.float32, torch.bfloat16):
        for mode, form in names:
            name = f"{str(dtype).removeprefix('torch.'):9}{mode:9}{form}"
            variants[name] = prepare(shape, dtype, mode, form, ids)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(arguments.rounds):
        for name, model in variants.items():
            seconds[name].append(time_step(model, ids)[0])
    report(shape, rows, variants, seconds, ids)


def make_shape(arguments: argparse.Namespace) -> ModelShape:
    """The shape path of the recipe: heads of 32 (64 from d 256), d_ff = 8/3 d, depth growing with width."""
    d = arguments.d_model
    head_dim = 32 if d < 256 else 64
    return ModelShape(
        vocab=arguments.vocab,
        context=arguments.context,
        d_model=d,
        n_layers=arguments.n_layers or max(2, round(d / (16 + d / 16))),
        n_heads=-(-d // head_dim),
        n_kv_heads=-(-d // head_dim),
        head_dim=head_dim,
        d_ff=round(8 / 3 * d / 16) * 16,
    )


def prepare(shape: ModelShape, dtype: torch.dtype, mode: str, form: str, ids: torch.Tensor) -> Transformer:
    model = Transformer(shape)
    initialise(model, seed=0)
    model.compute_dtype = dtype
    for block in model.blocks:
        block.attention.form = form
    start = time.perf_counter()
    compilation = compile_blocks(model, mode)
    if compilation.reason:
        print(f"{mode}: {compilation.reason}", file=sys.stderr)
    time_step(model, ids)
    print(f"first step of {dtype} {mode} {form}: {time.perf_counter() - start:.1f} s", file=sys.stderr)
    time_step(model, ids)
    return model


def time_step(model: Transformer, ids: torch.Tensor) -> tuple[float, float]:
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    model.zero_grad(set_to_none=True)
    loss = model.token_losses(ids[:, :-1], ids[:, 1:]).mean()
    loss.backward()
    return clock() - start, loss.item()


def report(shape: ModelShape, rows: int, variants: dict, seconds: dict[str, list[float]], ids: torch.Tensor) -> None:
    tokens = rows * shape.context
    matmul_params = sum(p.numel() for name, p in variants[next(iter(variants))].named_parameters() if p.ndim == 2)
    matmul_params -= shape.vocab * shape.d_model  # the embedding is looked up
    flops = 6 * matmul_params + 6 * shape.n_heads * shape.head_dim * shape.n_layers * shape.context  # causal half
    print(
        f"d_model {shape.d_model}, {shape.n_layers} layers, vocab {shape.vocab}, {rows} x {shape.context} tokens, "
        f"{torch.get_num_threads()} thread(s), load {os.getloadavg()[0]:.1f}, torch {torch.__version__}, "
        f"{platform.machine()}",
        file=sys.stderr,
    )
    best = {}
    for name, times in seconds.items():
        step = statistics.median(times)
        best[name] = round(tokens / min(times))
        rate = flops * tokens / step / 1e9
        loss = time_step(variants[name], ids)[1]
        print(
            f"{name:24} {tokens / step:9.0f} tokens/s (best {tokens / min(times):7.0f}) {rate:7.1f} GFLOP/s "
            f"{1e3 * step:8.1f} ms  loss {loss:.4f}"
        )
    print(json.dumps({"d_model": shape.d_model, "context": shape.context, "tokens_per_s_best": best}))


if __name__ == "__main__":
    main()
