"""The types that an engine keeps its weights in, and models converted to them.

float32 shares the model's own parameters; bfloat16 is a rounded copy; int8 keeps every matrix as whole numbers in
[-127, 127] with one scale for each output row (weight-only: activations keep their type). Norms stay float32 where
the form allows it. Never trains, reads or writes.
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chinchilla_lm.model.decoding import quantise_rows
from chinchilla_lm.model.layers import Linear
from chinchilla_lm.model.transformer import Transformer

WeightsType = Literal["float32", "bfloat16", "int8"]


def convert_model(model: Transformer, weights: WeightsType) -> Transformer:
    """Return a model for inference in plain torch operations; the given one is not changed.

    Args:
        model: any layout.
        weights: the type of its matrices.

    Returns:
        Evaluation mode, without kernels. float32 shares the parameters' memory; activations of int8 are float32 and its
        embedding is rounded through int8.
    """
    own = _share_parameters(model)
    own.compute_dtype = torch.bfloat16 if weights == "bfloat16" else torch.float32
    if weights == "bfloat16":
        own.to(torch.bfloat16)
    if weights == "int8":
        for module in own.modules():
            for name, child in module.named_children():
                if isinstance(child, Linear) and child is not own.head:
                    setattr(module, name, Int8Linear(child))
        # The embedding and the head are read as matrices, not called.
        own.embedding = _rounded(own.embedding)
        if own.head is not None:
            own.head.weight = _rounded(own.head.weight)
    return own.eval()


class Int8Linear(nn.Module):
    """y = (x W^T) * scale (+ bias) with W int8."""

    def __init__(self, linear: Linear) -> None:
        """Rounds the weights of `linear`."""
        super().__init__()
        self.whole, self.scale = quantise_rows(linear.weight.detach())
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """Maps the last axis d_in -> d_out."""
        y = F.linear(x, self.whole.to(x.dtype)) * self.scale.to(x.dtype)
        return y if self.bias is None else y + self.bias.to(x.dtype)


def _rounded(matrix_vd: Tensor) -> nn.Parameter:
    whole_vd, scale_v = quantise_rows(matrix_vd.detach())
    return nn.Parameter(whole_vd * scale_v[:, None], requires_grad=False)


def _share_parameters(model: Transformer) -> Transformer:
    """A second model over the same tensors, so that its mode, type and kernels can differ."""
    shared = {id(parameter): nn.Parameter(parameter.detach(), requires_grad=False) for parameter in model.parameters()}
    own = copy.deepcopy(model, shared)
    for module in own.modules():
        if hasattr(module, "has_kernels"):
            setattr(module, "has_kernels", False)  # noqa: B010 - the type checker knows only tensors here
    return own
