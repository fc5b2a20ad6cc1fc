"""The compiled inference step, `decode.cpp`, for Python: a network of pointers into tensors, and one call a step.

It takes Qwen3 and Llama layouts with SwiGLU on a CPU. Weights are float32 (the model's own memory), bfloat16 or int8
(copies); the cache of keys and values is float32 for float32 weights and bfloat16 otherwise. Sums are float32 always.
Never chooses tokens, checks prompts or keeps track of what a slot holds: `generate.engine` does.

Axes: n new tokens, d width, h query heads, k key/value heads, e head size, f feed-forward width, v vocabulary.
"""

from __future__ import annotations

import ctypes
import functools
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from chinchilla_lm.core.errors import ChinchillaError
from chinchilla_lm.core.shapes import ModelShape
from chinchilla_lm.model.compiling import compiled_library, find_compiler
from chinchilla_lm.model.layers import rotary_table
from chinchilla_lm.model.transformer import Transformer, initialise

_SOURCE_NAMES = ("decode.cpp", "decode_attention.h", "tiles.h", "products.h", "vectors.h")
SOURCES = tuple(Path(__file__).with_name(name) for name in _SOURCE_NAMES)
KINDS = {"float32": 0, "bfloat16": 1, "int8": 2}
POSITIONS_A_BLOCK = 32  # VALUES of decode_attention.h
LARGEST_INT8 = 127  # symmetric: -128 is not used
PARTS = ("projections", "attention", "feed_forward", "head", "rest")
LONGEST_CHUNK_TOKENS = 256
"""Tokens read in one call: their activations (2 MB at d_ff 1536) then stay in the level 2 cache between products."""


class _Matrix(ctypes.Structure):
    _fields_: ClassVar[Any] = [
        ("weights", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("outputs", ctypes.c_int64),
        ("inputs", ctypes.c_int64),
    ]


class _Layer(ctypes.Structure):
    _fields_: ClassVar[Any] = [
        *((name, _Matrix) for name in ("qkv", "out", "gate_up", "down")),
        *((name, ctypes.c_void_p) for name in ("attention_norm", "feed_forward_norm", "query_norm", "key_norm")),
        *((name, ctypes.c_void_p) for name in ("keys", "values")),
    ]


class _Network(ctypes.Structure):
    _fields_: ClassVar[Any] = [
        *((name, ctypes.c_int64) for name in ("kind", "is_cache_bf16", "may_tile")),
        *((name, ctypes.c_int64) for name in ("n_layers", "d", "h", "k", "e", "f", "vocab", "capacity")),
        *((name, _Matrix) for name in ("embedding", "head")),
        *((name, ctypes.c_void_p) for name in ("norm", "cosine", "sine")),
        ("layers", ctypes.POINTER(_Layer)),
        ("epsilon", ctypes.c_double),
        ("seconds", ctypes.c_void_p),
    ]


class Decoder:
    """A model's weights and the caches of its slots, in the form that decode.cpp reads."""

    def __init__(self, model: Transformer, slots: int, capacity: int, weights: str, may_tile: bool = True) -> None:
        """Convert the weights and allocates the caches; `obstacle` must have found nothing.

        Args:
            model: on the CPU; float32 weights are shared with it and must then stay as they are.
            slots: texts at once.
            capacity: tokens of a slot.
            weights: "float32", "bfloat16" or "int8".
            may_tile: use the processor's tile units where it has them.
        """
        self._library = _library()
        self._kept: list[Any] = []  # what the pointers point into
        self._caches: list[Tensor] = []  # (slots, k, positions, e), the order within 32 positions is decode.cpp's own
        shape = model.shape
        room = -(-capacity // POSITIONS_A_BLOCK) * POSITIONS_A_BLOCK
        cache_type = torch.float32 if weights == "float32" else torch.bfloat16
        with torch.no_grad():
            embedding = self._matrix(model.embedding, weights)
            head = embedding if model.head is None else self._matrix(model.head.weight, weights)
            layers = [self._layer(block, weights) for block in model.blocks]
            cosine, sine = rotary_table(torch.arange(room), shape.head_dim, shape.rope_theta)
            norm = self._vector(model.norm.weight)  # type: ignore[union-attr]
        for layer in layers:  # not zeros: untouched pages of a large cache then cost no memory
            size = (slots, shape.n_kv_heads, room, shape.head_dim)
            keys, values = torch.empty(size, dtype=cache_type), torch.empty(size, dtype=cache_type)
            layer.keys, layer.values = self._keep(keys), self._keep(values)
            self._caches += [keys, values]
        self._kept.append(layers := (_Layer * len(layers))(*layers))
        self._network = _Network(
            kind=KINDS[weights],
            is_cache_bf16=cache_type == torch.bfloat16,
            may_tile=may_tile and bool(self._library.tiles_allowed()),
            n_layers=shape.n_layers,
            d=shape.d_model,
            h=shape.n_heads,
            k=shape.n_kv_heads,
            e=shape.head_dim,
            f=shape.d_ff,
            vocab=shape.vocab,
            capacity=room,
            embedding=embedding,
            head=head,
            norm=norm,
            cosine=self._keep(cosine),
            sine=self._keep(sine),
            layers=layers,
            epsilon=shape.norm_epsilon,
        )
        self._scratch = torch.empty(0, dtype=torch.uint8)

    def step(
        self,
        ids: Sequence[int],
        slots: Sequence[int],
        positions: Sequence[int],
        wanted: Sequence[int],
        has_logits: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Read n tokens, whose keys and values join their slots.

        Args:
            ids: n token ids in [0, vocab).
            slots: of each token.
            positions: of each token in its slot, < capacity; those of one slot rise, and follow what it holds.
            wanted: rising indices into the n tokens.
            has_logits: also compute the logits of the wanted tokens.

        Returns:
            Final hidden states after the norm (wanted, d) and logits (wanted, v) or None, float32.
        """
        shapes = len(wanted), self._network.d
        hidden_wd = torch.empty(shapes)
        logits_wv = torch.empty(len(wanted), self._network.vocab) if has_logits else None
        done = 0
        for start in range(0, len(ids), LONGEST_CHUNK_TOKENS):
            end = min(start + LONGEST_CHUNK_TOKENS, len(ids))
            here = [index - start for index in wanted if start <= index < end]
            rows = slice(done, done + len(here))
            outputs = (hidden_wd[rows], None if logits_wv is None else logits_wv[rows])
            self._run(ids[start:end], slots[start:end], positions[start:end], here, outputs)
            done += len(here)
        return hidden_wd, logits_wv

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the cache of a slot's first `length` positions to another slot."""
        whole = -(-length // POSITIONS_A_BLOCK) * POSITIONS_A_BLOCK  # of any order within a block
        for cache in self._caches:
            cache[target, :, :whole] = cache[source, :, :whole]

    def is_finite(self, x: Tensor) -> bool:
        """Whether no element of a dense float32 tensor is nan or infinite."""
        assert x.is_contiguous()
        assert x.dtype == torch.float32
        # torch's own sum would wake its threads, which then spin beside ours
        return bool(self._library.all_finite(x.data_ptr(), x.numel()))

    @contextmanager
    def timed(self) -> Iterator[dict[str, float]]:
        """Within it, add up the seconds of steps by part; the dict is filled at the end."""
        seconds: dict[str, float] = {}
        spent = (ctypes.c_double * len(PARTS))()
        self._network.seconds = ctypes.addressof(spent)
        try:
            yield seconds
        finally:
            self._network.seconds = None
            seconds.update(zip(PARTS, spent, strict=True))

    def _run(
        self,
        ids: Sequence[int],
        slots: Sequence[int],
        positions: Sequence[int],
        wanted: Sequence[int],
        outputs: tuple[Tensor, Tensor | None],
    ) -> None:
        threads, n = torch.get_num_threads(), len(ids)
        network = ctypes.byref(self._network)
        needed = self._library.step_scratch_bytes(network, n, threads) + 64
        if needed > len(self._scratch):
            self._scratch = torch.empty(needed, dtype=torch.uint8)
        start = -(-self._scratch.data_ptr() // 64) * 64
        many = ctypes.c_int64 * n
        hidden, logits = outputs
        self._library.run_step(
            network,
            many(*ids),
            many(*slots),
            many(*positions),
            n,
            (ctypes.c_int64 * len(wanted))(*wanted),
            len(wanted),
            start,
            hidden.data_ptr(),
            None if logits is None else logits.data_ptr(),
            threads,
        )

    def _layer(self, block: Any, weights: str) -> _Layer:
        attention, feed_forward = block.attention, block.feed_forward
        norms = (attention.query_norm, attention.key_norm)
        query_norm, key_norm = (None if norm is None else self._vector(norm.weight) for norm in norms)
        return _Layer(
            qkv=self._matrix(attention.qkv.weight, weights),
            out=self._matrix(attention.out.weight, weights),
            gate_up=self._matrix(feed_forward.gate_up.weight, weights),
            down=self._matrix(feed_forward.down.weight, weights),
            attention_norm=self._vector(block.attention_norm.weight),
            feed_forward_norm=self._vector(block.feed_forward_norm.weight),
            query_norm=query_norm,
            key_norm=key_norm,
        )

    def _matrix(self, matrix_oi: Tensor, weights: str) -> _Matrix:
        outputs, inputs = matrix_oi.shape
        matrix_oi, scale = matrix_oi.detach(), None
        if weights == "int8":
            matrix_oi, scale_o = quantise_rows(matrix_oi)
            scale = self._keep(scale_o)
        elif weights == "bfloat16":
            matrix_oi = matrix_oi.to(torch.bfloat16)
        kept = self._keep(matrix_oi)
        self._library.use_large_pages(kept, matrix_oi.nbytes, 1)
        return _Matrix(weights=kept, scale=scale, outputs=outputs, inputs=inputs)

    def _vector(self, vector: Tensor) -> int:
        return self._keep(vector.detach().float())

    def _keep(self, tensor: Tensor) -> int:
        tensor = tensor.contiguous()
        self._kept.append(tensor)
        return tensor.data_ptr()


def obstacle(model: Transformer) -> str:
    """Why decode.cpp cannot run this model here, one line; empty if it can."""
    shape = model.shape
    if shape.layout not in ("qwen3", "llama") or shape.activation != "swiglu":
        return f"decode.cpp knows the layouts qwen3 and llama with swiglu, not {shape.layout} with {shape.activation}"
    if model.embedding.device.type != "cpu" or model.embedding.dtype != torch.float32:
        return "decode.cpp takes a model on the CPU with float32 masters"
    return _load_obstacle()


def quantise_rows(matrix_oi: Tensor) -> tuple[Tensor, Tensor]:
    """Round a matrix to int8 with one scale a row, matrix ~ scale * whole number.

    Args:
        matrix_oi: (out, in), any float type.

    Returns:
        (int8 of (out, in), scales of (out) float32); the error of an entry is at most half its row's scale.

    Source: Dettmers et al. 2022 (LLM.int8), section 2.1 (absmax, row-wise).
    """
    matrix_oi = matrix_oi.float()
    scale_o = matrix_oi.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny) / LARGEST_INT8
    return (matrix_oi / scale_o[:, None]).round().clamp(-LARGEST_INT8, LARGEST_INT8).to(torch.int8), scale_o


@functools.cache
def _library() -> Any:
    """Compiles (or finds) and loads decode.cpp, once a process."""
    compiler = find_compiler()
    assert compiler is not None
    library = ctypes.CDLL(str(compiled_library(compiler, SOURCES)))
    pointer, long, whole = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    _declare(library.network_bytes, long, [])
    _declare(library.tiles_allowed, long, [])
    _declare(library.use_large_pages, None, [pointer, long, whole])
    _declare(library.all_finite, whole, [pointer, long])
    _declare(library.step_scratch_bytes, long, [pointer, long, whole])
    tokens = [pointer, pointer, pointer, pointer, long, pointer, long]
    _declare(library.run_step, None, [*tokens, pointer, pointer, pointer, whole])
    assert library.network_bytes() == ctypes.sizeof(_Network) + ctypes.sizeof(_Layer)
    return library


def _declare(function: Any, result: Any, arguments: list[Any]) -> None:
    function.restype, function.argtypes = result, arguments


@functools.cache
def _load_obstacle() -> str:
    compiler = find_compiler()
    if compiler is None:
        return "no C++ compiler found; install g++ or clang, or name one in CXX, for two to five times the speed"
    try:
        _library()
    except (OSError, AttributeError, ChinchillaError, subprocess.SubprocessError) as error:
        return f"decode.cpp was not compiled with {compiler[0]}: {str(error).splitlines()[0][:200]}"
    for weights, tolerance in (("float32", 1e-4), ("bfloat16", 0.1), ("int8", 0.1)):
        difference = _largest_difference(weights)
        if not difference < tolerance:
            return f"decode.cpp as compiled with {compiler[0]} differs from torch by {difference:.1e} in {weights}"
    return ""


def _largest_difference(weights: str) -> float:
    """The largest difference of the logits (of size 1) of decode.cpp and torch on a small model of random weights."""
    shape = ModelShape(vocab=40, context=20, d_model=64, n_layers=1, n_heads=4, n_kv_heads=2, head_dim=16, d_ff=64)
    model = Transformer(shape)
    initialise(model, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in ("attention.out", "feed_forward.down"):
            weight = model.blocks[0].get_parameter(f"{name}.weight")
            weight.copy_(torch.randn(weight.shape, generator=generator) / 8)
        head = model.get_parameter("head.weight")
        head.copy_(torch.randn(head.shape, generator=generator) / 8)
        expected_tv = model(torch.arange(18)[None])[0]
    decoder = Decoder(model, 1, 20, weights)
    tokens = range(18)
    found_tv = decoder.step(tokens, [0] * 18, tokens, tokens, True)[1]
    assert found_tv is not None
    return float((found_tv - expected_tv).abs().max().nan_to_num(float("inf")))
