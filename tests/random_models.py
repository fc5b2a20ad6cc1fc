"""Small models whose every weight is random.

The recipe starts the head and what a block adds at 0: of such a model every token is as likely as any other, a greedy
choice is a tie, and an error in a block is not seen.
"""

from __future__ import annotations

import torch

from chinchilla_lm.core.shapes import ModelShape
from chinchilla_lm.model.transformer import Transformer, initialise


def random_model(shape: ModelShape, *, spread: float = 0.1, seed: int = 2, start: int = 1) -> Transformer:
    """Return a model of a shape, in eval mode: the recipe's weights, drawn with `start`, and noise."""
    model = Transformer(shape)
    initialise(model, seed=start)
    return add_noise(model, spread=spread, seed=seed).eval()


def add_noise(model: Transformer, *, spread: float, seed: int) -> Transformer:
    """Add to every weight a normal number of the standard deviation `spread`; return the model."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
    return model
