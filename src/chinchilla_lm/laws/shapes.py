"""One smooth path of model shapes, from 32 wide upwards, so that a law sees size change and nothing else.

Along the path (Qwen3 layout) everything follows from d_model: depth, heads and feed-forward width. Shapes off the path
are legal and are never made here. Symbols: d d_model, N params (convention "matmul", see `count`), C FLOPs.
"""

from __future__ import annotations

import math
from functools import lru_cache

from chinchilla_lm.core.errors import PlanError
from chinchilla_lm.core.shapes import ModelShape
from chinchilla_lm.laws.count import count_parameters

# Wider than any published dense model (PaLM 540B: 18432; Chowdhery et al. 2022, table 1): more is a typing error.
_WIDEST_D_MODEL = 65536
# (up to d_model, step). 256 at last keeps the heads divisible by four: widths with and without grouped key heads in
# turn would make a wider shape smaller than the one before it.
_STEPS = ((256, 16), (512, 32), (1024, 64), (_WIDEST_D_MODEL, 256))
# Widest d_model / n_layers: Llama 3 8B has 4096 / 32 (Grattafiori et al. 2024, table 3). Recipe v1's rule was measured
# below d = 768 only and would stop at 16 layers.
_ASPECT_LIMIT = 128.0
# Grouped key heads, as in Llama 3 8B (32 query, 8 key heads), only where the cache of a served model begins to matter.
_GROUPED_ABOVE, _HEADS_PER_GROUP = 1024, 4
# Vocabulary parameters N_v = 0.2 C^0.42 (Tao et al. 2024, arXiv 2407.13623, read off their IsoFLOP fit).
_VOCAB_SCALE, _VOCAB_EXPONENT = 0.2, 0.42
# 512 is the first power of two with room for 256 bytes and the end of text; 32768 is recipe v1's.
_VOCAB_RANGE = (512, 32768)


def shape_on_path(d_model: int, *, vocab: int, context: int) -> ModelShape:
    """Return the path's shape of one width.

    head_dim 32 below d = 256, else 64; as many query heads as cover d; key heads a quarter of them above d = 1024 where
    that is whole; n_layers = d / min(16 + d/16, 128), at least 2; d_ff = 8/3 d to a multiple of 16.

    Args:
        d_model: width, a multiple of 16, > 0.
        vocab: words of the tokenizer, > 0.
        context: tokens in a sequence, > 0.

    Returns:
        A shape of layout "qwen3", untied.

    Raises:
        PlanError: d_model is not a multiple of 16.
        ConfigError: vocab or context is not a whole number > 0.

    Source: recipe v1; d_ff: Touvron et al. 2023, section 2.2.

    Differs: recipe v1 has no limit of 128 on d / n_layers (see the constant).
    """
    if d_model <= 0 or d_model % 16:
        raise PlanError(f"d_model={d_model} is not on the path of shapes; use a multiple of 16 such as 64")
    head_dim = 32 if d_model < 256 else 64
    n_heads = math.ceil(d_model / head_dim)
    is_grouped = d_model > _GROUPED_ABOVE and n_heads % _HEADS_PER_GROUP == 0
    return ModelShape(
        layout="qwen3",
        vocab=vocab,
        context=context,
        d_model=d_model,
        n_layers=max(2, round(d_model / min(16 + d_model / 16, _ASPECT_LIMIT))),
        n_heads=n_heads,
        n_kv_heads=n_heads // _HEADS_PER_GROUP if is_grouped else n_heads,
        head_dim=head_dim,
        d_ff=16 * round(d_model / 6),  # 8/3 d in units of 16
    )


@lru_cache(maxsize=64)
def path(*, vocab: int, context: int, d_min: int = 32, d_max: int = 8192) -> tuple[ModelShape, ...]:
    """Return the path's shapes in order of size.

    Args:
        vocab: words of the tokenizer.
        context: tokens in a sequence.
        d_min: least width, in d_model.
        d_max: greatest width.

    Returns:
        Shapes of rising width: steps of 16 up to 256, 32 up to 512, 64 up to 1024, then 256.

    Raises:
        PlanError: no width of the path lies between d_min and d_max.
    """
    widths = [d_model for d_model in _widths() if d_min <= d_model <= d_max]
    if not widths:
        raise PlanError(f"no shape has d_min={d_min} <= d_model <= d_max={d_max}; widen them, e.g. to 32 and 8192")
    return tuple(shape_on_path(d_model, vocab=vocab, context=context) for d_model in widths)


def nearest_shape(
    params_matmul: float, *, vocab: int, context: int, d_min: int = 32, d_max: int = _WIDEST_D_MODEL
) -> ModelShape:
    """Return the path's shape whose size is nearest, as a ratio.

    Args:
        params_matmul: wanted N in the convention "matmul" (head included, embedding not), > 0.
        vocab: words of the tokenizer.
        context: tokens in a sequence.
        d_min: least width allowed.
        d_max: greatest width allowed.

    Returns:
        The shape with the least |ln(N / params_matmul)|; below the smallest shape's size that is the smallest.

    Raises:
        PlanError: params_matmul is not a finite number > 0, or is over twice the largest shape.
    """
    if not (math.isfinite(params_matmul) and params_matmul > 0):
        raise PlanError(f"params_matmul={params_matmul!r} must be a finite number > 0; write a size such as 1e6")
    shapes = path(vocab=vocab, context=context, d_min=d_min, d_max=d_max)
    best = min(shapes, key=lambda shape: abs(math.log(count_parameters(shape).matmul / params_matmul)))
    largest = count_parameters(shapes[-1]).matmul
    if params_matmul > 2 * largest:
        raise PlanError(
            f"params_matmul={params_matmul:.3g} is over twice the largest shape ({largest:.3g} at d_model "
            f"{shapes[-1].d_model}); lower the budget or raise d_max"
        )
    return best


def vocab_for(flops: float, d_model: int) -> int:
    """Return the vocabulary that suits a budget: the power of two nearest to 0.2 C^0.42 / d, from 512 to 32768.

    Args:
        flops: of the final training run, C > 0.
        d_model: width of the model expected to be trained with it, > 0.

    Returns:
        Words, a power of two. One vocabulary serves a whole sweep: losses per token of two tokenizers do not compare.

    Raises:
        PlanError: flops or d_model is not a finite number > 0.

    Source: Tao et al. 2024 (arXiv 2407.13623). Untested here above 1e19 FLOPs; the range is ours.
    """
    if not (math.isfinite(flops) and flops > 0 and d_model > 0):
        raise PlanError(f"flops={flops!r} and d_model={d_model!r} must be > 0; write for example 1e15 and 64")
    words = _VOCAB_SCALE * flops**_VOCAB_EXPONENT / d_model
    low, high = _VOCAB_RANGE
    return int(min(high, max(low, 2.0 ** round(math.log2(words)))))


def _widths() -> list[int]:
    widths: list[int] = []
    start = 0
    for up_to, step in _STEPS:
        widths.extend(range(start + step, up_to + 1, step))
        start = up_to
    return widths
