"""The parts of a decoder that are not attention: norms, feed-forward, positions, and the casting linear map.

Axes: b batch rows, t query positions, s key positions, d d_model, f d_ff, e head_dim.
Masters are float32. Every part computes in the type of its input `x` and casts its own weights to it (explicit casts
cost less than autocast on a CPU: 1,264 against 1,170 tokens/s on the same step). Statistics of norms are float32.
Nothing here draws random numbers: `transformer.initialise` does.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chinchilla_lm.model import kernels


class Linear(nn.Module):
    """y = x W^T (+ bias), with float32 masters cast to the type of x."""

    def __init__(self, d_in: int, d_out: int, *, has_bias: bool = False) -> None:
        """Allocates (d_out, d_in) zeros; `initialise` fills them."""
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(d_out, d_in))
        self.bias = nn.Parameter(torch.zeros(d_out)) if has_bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Maps the last axis d_in -> d_out."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + epsilon) * weight over the last axis. Source: Zhang and Sennrich 2019, eq. 4."""

    def __init__(self, size: int, epsilon: float) -> None:
        """`size` is the length of the last axis."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.epsilon = epsilon
        self.has_kernels = False

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and type as x; the mean is taken in float32."""
        if self.has_kernels:
            return kernels.rms_norm(x, self.weight, self.epsilon)
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.epsilon)


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(var + epsilon) * weight + bias. Source: Ba et al. 2016, eq. 4."""

    def __init__(self, size: int, epsilon: float) -> None:
        """`size` is the length of the last axis."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and type as x; statistics in float32."""
        return F.layer_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.bias.to(x.dtype), self.epsilon)


class GatedFeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)). Source: Shazeer 2020, eq. 6.

    Gate and up are one matrix of 2 d_ff rows, gate first: one larger matmul instead of two.
    """

    def __init__(self, d_model: int, d_ff: int) -> None:
        """No biases, as in Llama and Qwen3."""
        super().__init__()
        self.gate_up = Linear(d_model, 2 * d_ff)
        self.down = Linear(d_ff, d_model)
        self.has_kernels = False

    def forward(self, x_btd: Tensor) -> Tensor:
        """Maps (b, t, d) to (b, t, d)."""
        if self.has_kernels:
            return self.down(kernels.swiglu(self.gate_up(x_btd)))
        gate_btf, up_btf = self.gate_up(x_btd).chunk(2, dim=-1)
        return self.down(F.silu(gate_btf) * up_btf)


class FeedForward(nn.Module):
    """down(activation(up(x))) with biases. Source: Vaswani et al. 2017, eq. 2 (ReLU); Rae et al. 2021 (GELU)."""

    def __init__(self, d_model: int, d_ff: int, activation: str) -> None:
        """`activation` is "gelu" (tanh form, the one of JAX that Gopher ran on) or "relu"."""
        super().__init__()
        self.up = Linear(d_model, d_ff, has_bias=True)
        self.down = Linear(d_ff, d_model, has_bias=True)
        self.activation = activation

    def forward(self, x_btd: Tensor) -> Tensor:
        """Maps (b, t, d) to (b, t, d)."""
        x_btf = self.up(x_btd)
        x_btf = F.relu(x_btf) if self.activation == "relu" else F.gelu(x_btf, approximate="tanh")
        return self.down(x_btf)


def sinusoids(positions: Tensor, size: int) -> Tensor:
    """Sinusoidal vectors of positions: PE[p, 2i] = sin(p / 10000^(2i/size)), PE[p, 2i+1] = cos(the same).

    Args:
        positions: any shape, integers or floats; positions along the *sequence*, one per token. (The classic mistake
            is to build the table as (length, 1, size) and add it to a (batch, length, size) tensor, which numbers the
            rows of the batch instead of the tokens, and no shape error says so.)
        size: even length of the vector.

    Returns:
        float32 of shape positions.shape + (size,).

    Source: Vaswani et al. 2017, section 3.5.
    """
    frequency = torch.exp(torch.arange(0, size, 2, device=positions.device) * (-math.log(10000.0) / size))
    angle = positions[..., None].float() * frequency
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2)


def rotary_table(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotary angles p * theta^(-2i/head_dim), i = 0 ... head_dim/2 - 1.

    Args:
        positions: any shape, integers.
        head_dim: even size of a head.
        theta: the base, 10000 in the paper.

    Returns:
        (cos, sin), each float32 of shape positions.shape + (head_dim/2,).

    Source: Su et al. 2021 (RoFormer), eq. 15.
    """
    # float32 like Hugging Face, so that the logits of a saved folder agree at every position.
    frequency = 1.0 / theta ** (torch.arange(0, head_dim, 2, device=positions.device).float() / head_dim)
    angle = positions[..., None].float() * frequency
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each pair (x[i], x[i + e/2]) by its angle (the half-rotation order of Hugging Face, not the interleaved).

    Args:
        x: (..., t, e).
        cos: (..., t, e/2), as `rotary_table` returns it.
        sin: like cos.
    """
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
