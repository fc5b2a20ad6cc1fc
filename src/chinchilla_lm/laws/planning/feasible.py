"""Shapes that can be built near a plan's size, each priced at its own exact FLOPs: rounding is part of the optimum.

A law's N is a real number and its C is 6 N D; a model has whole layers and heads, and its attention costs FLOPs too.
So every shape near the optimum gets the tokens that the same budget (or loss) really gives it, and the best one wins.
Candidates are the path's widths (multiples of 64, and of 256 above 1024) with depths around the path's: a law sees no
aspect ratio, and must not be asked to choose one. It never builds a module.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from chinchilla_lm.core.shapes import ModelShape
from chinchilla_lm.laws.count import (
    ParamsConvention,
    count_parameters,
    inference_flops_per_token,
    training_flops_per_token,
)
from chinchilla_lm.laws.planning.demand import Demand
from chinchilla_lm.laws.planning.surface import Surface
from chinchilla_lm.laws.serving import prefill_flops
from chinchilla_lm.laws.shapes import path, vocab_for

# Options closer than this to the best are ties, in ln of loss, of cost and of size; among them the path's own depth is
# preferred. A law knows no aspect ratio, and would choose wide shapes for their cheaper attention.
_LOSS_TIE, _COST_TIE, _SIZE_TIE = 2e-4, 5e-3, 2e-2
_MOST_OFF_PATH = 0.2  # of the path's depth
_SIZE_FACTOR = 1.3  # sizes compared with the optimum, either way; the flat band is wider
# Weights and gradients in bf16, and weights and two moments in float32: Rajbhandari et al. 2020 (ZeRO), section 3.1.
_BYTES_PER_PARAM = 16.0
# What a block keeps of a token for its backward pass, in units of d_model bytes, attention scores recomputed
# (Korthikanti et al. 2022, arXiv 2205.05198, section 4).
_ACTIVATION_BYTES = 34.0
_LOGIT_BYTES = 8.0  # a logit and its gradient in float32


@dataclass(frozen=True, kw_only=True)
class ShapeOption:
    """A shape near the optimum, and what it reaches.

    Attributes:
        shape: the model.
        params: its N in the law's convention.
        tokens: D that the budget gives it (or that the loss asks of it), repeats included.
        flops_per_token: of training, exact, attention included.
        flops: of the whole training, exact.
        loss: expected, nats per token; None where the law states none.
        loss_penalty: loss over that of the law's optimum at 6 N D, less 1; None likewise.
        training_bytes: weights, gradients, Adam's state and the activations of one sequence; about.
    """

    shape: ModelShape
    params: float
    tokens: float
    flops_per_token: float
    flops: float
    loss: float | None
    loss_penalty: float | None
    training_bytes: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        names = ("params", "tokens", "flops_per_token", "flops", "loss", "loss_penalty", "training_bytes")
        return {"shape": self.shape.to_dict(), **{name: getattr(self, name) for name in names}}


@dataclass(frozen=True, kw_only=True)
class ShapeRequest:
    """What a shape is sought for.

    Attributes:
        params: N wanted, > 0.
        tokens: D of the plan, > 0.
        flops: of training by the plan, > 0; chooses the vocabulary.
        total_flops: what training and serving may cost together; None where the loss or the tokens are given instead.
        loss: to be reached; None where the budget or the tokens are given instead.
        params_convention: which weights N counts.
        is_fixed: the size is the user's (given, or moved by over-training): the nearest shapes, not the best ones.
        demand: tokens served.
    """

    params: float
    tokens: float
    flops: float
    total_flops: float | None
    loss: float | None
    params_convention: ParamsConvention
    is_fixed: bool
    demand: Demand


def rank_shapes(
    request: ShapeRequest, surface: Surface | None, *, context: int, vocab: int | None, at_most: int = 5
) -> tuple[ShapeOption, ...]:
    """Rank the shapes near a plan's size.

    Args:
        request: what is sought.
        surface: the law, one row; None where it states no loss: the nearest shapes then.
        context: tokens in a sequence, > 0.
        vocab: words of the tokenizer; None takes what suits the budget.
        at_most: options to return.

    Returns:
        Options, best first: least loss for a budget, least cost for a loss, nearest size where that is fixed; empty
        where no shape comes within a factor 1.3.
    """
    centre = _nearest_on_path(request, context=context, vocab=vocab)
    found: list[tuple[float, float, ShapeOption]] = []
    for shape, off_path in _around(centre, request.params, request.params_convention):
        option = _option(shape, request, surface)
        if option is not None:
            found.append((_merit(option, request), off_path, option))
    if not found:
        return ()
    best = min(merit for merit, _, _ in found)
    ranked = sorted(found, key=lambda each: (0.0, each[1], each[0]) if each[0] <= best + 1 else (1.0, each[0], each[1]))
    return tuple(option for _, _, option in ranked[:at_most])


def _merit(option: ShapeOption, request: ShapeRequest) -> float:
    """Return how far an option is from what is sought, in ties; less is better."""
    if request.is_fixed or option.loss is None:
        return abs(math.log(option.params / request.params)) / _SIZE_TIE
    if request.loss is not None:
        return math.log(option.flops + _serving_flops(option.shape, request.demand)) / _COST_TIE
    return math.log(option.loss) / _LOSS_TIE


def training_bytes(shape: ModelShape) -> float:
    """Return about how much memory training one sequence at a time takes: weights, gradients, Adam and activations."""
    activations = _ACTIVATION_BYTES * shape.context * shape.d_model * shape.n_layers
    logits = _LOGIT_BYTES * shape.context * shape.vocab
    return _BYTES_PER_PARAM * count_parameters(shape).total + activations + logits


def _nearest_on_path(request: ShapeRequest, *, context: int, vocab: int | None) -> ModelShape:
    """Return the path's shape of the nearest size, vocabulary and width settled on each other in two rounds."""
    words = 32768 if vocab is None else vocab
    nearest: ModelShape | None = None
    for _ in range(1 if vocab is not None else 3):
        shapes = path(vocab=words, context=context, d_min=16, d_max=65536)
        sizes = [count_parameters(shape).by(request.params_convention) for shape in shapes]
        nearest = shapes[min(range(len(shapes)), key=lambda place: abs(math.log(sizes[place] / request.params)))]
        if vocab is None:
            words = vocab_for(request.flops, nearest.d_model)
    assert nearest is not None
    return replace(nearest, vocab=words)


def _around(centre: ModelShape, params: float, convention: ParamsConvention) -> list[tuple[ModelShape, float]]:
    """List shapes of the path's widths within _SIZE_FACTOR of a size, each with |ln(depth / the path's)|.

    Depths leave the path by half the step in size to its next width, but no further than _MOST_OFF_PATH.
    """
    shapes = path(vocab=centre.vocab, context=centre.context, d_min=16, d_max=65536)
    found: list[tuple[ModelShape, float]] = []
    for on_path, wider in zip(shapes, (*shapes[1:], shapes[-1]), strict=True):
        if not 0.5 < on_path.d_model / centre.d_model < 2:
            continue
        one, two = (count_parameters(replace(on_path, n_layers=layers)).by(convention) for layers in (1, 2))
        block, rest = two - one, 2 * one - two
        half_gap = ((wider.d_model / on_path.d_model) ** 3 - 1) / 2
        spare = max(1, round(on_path.n_layers * min(half_gap, _MOST_OFF_PATH)))
        least = max(2, on_path.n_layers - spare, math.ceil((params / _SIZE_FACTOR - rest) / block))
        most = min(on_path.n_layers + spare, math.floor((params * _SIZE_FACTOR - rest) / block))
        found.extend(
            (replace(on_path, n_layers=layers), abs(math.log(layers / on_path.n_layers)))
            for layers in range(least, most + 1)
        )
    return found


def _option(shape: ModelShape, request: ShapeRequest, surface: Surface | None) -> ShapeOption | None:
    """Price a shape; None where serving alone spends the budget, or its size never reaches the loss."""
    params = float(count_parameters(shape).by(request.params_convention))
    flops_per_token = training_flops_per_token(shape)
    x = np.array([math.log(params)])
    tokens = request.tokens
    if request.total_flops is not None:
        tokens = (request.total_flops - _serving_flops(shape, request.demand)) / flops_per_token
    elif request.loss is not None and surface is not None:
        tokens = float(np.exp(surface.log_tokens_for(np.array([request.loss]), x)[0]))
    if not (math.isfinite(tokens) and tokens > 0):
        return None
    loss, penalty = None, None
    if surface is not None:
        loss = float(surface.loss(x, np.array([math.log(tokens)]))[0])
        plan_loss = surface.loss(np.array([math.log(request.params)]), np.array([math.log(request.tokens)]))
        penalty = loss / float(plan_loss[0]) - 1
    return ShapeOption(
        shape=shape,
        params=params,
        tokens=tokens,
        flops_per_token=flops_per_token,
        flops=flops_per_token * tokens,
        loss=loss,
        loss_penalty=penalty,
        training_bytes=training_bytes(shape),
    )


def _serving_flops(shape: ModelShape, demand: Demand) -> float:
    """Return what serving a shape costs in FLOPs at training's price: whole contexts read, tokens written half-way."""
    reading = prefill_flops(shape, shape.context) / shape.context * demand.prefill_tokens * demand.prefill_cost
    return reading + inference_flops_per_token(shape) * demand.decode_tokens * demand.decode_cost
