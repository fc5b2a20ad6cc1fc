"""Muon: matrices in blocks move along the orthogonalised momentum of their gradients; the rest moves by AdamW.

Symbols: a matrix is W (m x n, m <= n after a transpose), its momentum M; U V^T of M = U S V^T is what a step follows.
The orthogonalisation is done for all matrices of one shape at once: on a CPU the many small products, not the
arithmetic, are what a step of Muon costs (dev/LOG.md 2026-11-22).

Source: Jordan et al. 2024 (Muon); the polynomials: Amsel et al. 2025, "The Polar Express" (arXiv 2505.16932), table of
    degree 5, five steps; decoupled decay and the match to AdamW's size of step: Liu et al. 2025 (arXiv 2502.16982).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor

# Root mean square of an update's entries at rate 1. .2 is AdamW's own (Liu et al. 2025, section 2.2); half of it was
# better here: 4.420 against 4.441 nats at d = 64, 2e12 FLOPs, batches of 512 tokens; equal at 1536 (dev/LOG.md).
_UPDATE_RMS = 0.1
_MARGIN = 1.01  # the polynomials are made for singular values up to 1 / 1.01
_POLYNOMIALS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


class MuonAdamW(torch.optim.AdamW):
    """Muon for the groups that say so, AdamW for the others.

    A group with "rule": "muon" holds matrices only; its "momentum" is the decay of the mean of gradients (Nesterov).
    The state of such a matrix is one tensor, "exp_avg".
    """

    def __init__(self, groups: list[dict[str, Any]], *, betas: tuple[float, float], eps: float, dtype: torch.dtype):
        """Make the optimizer.

        Args:
            groups: as torch's, each with "rule": "muon" or "adamw"; muon groups with "momentum".
            betas: of AdamW.
            eps: of AdamW.
            dtype: of the orthogonalisation; bfloat16 is enough (Jordan et al. 2024), float32 where that is slow.
        """
        super().__init__(groups, betas=betas, eps=eps, fused=True)
        self._dtype = dtype

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient; gradients of Muon's matrices are used up."""
        assert closure is None, "the loop computes gradients"
        for group in self.param_groups:
            if group["rule"] != "muon":
                continue
            by_shape: dict[tuple[int, int], list[Tensor]] = {}
            for matrix in group["params"]:
                if matrix.grad is not None:
                    by_shape.setdefault((min(matrix.shape), max(matrix.shape)), []).append(matrix)
            for matrices in by_shape.values():
                self._move(matrices, group)
                for matrix in matrices:
                    matrix.grad = None  # AdamW passes over what has no gradient
        super().step()
        return None

    def _move(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        gradients: list[Tensor] = [matrix.grad for matrix in matrices if matrix.grad is not None]
        for matrix in matrices:
            if "exp_avg" not in self.state[matrix]:
                self.state[matrix]["exp_avg"] = torch.zeros_like(matrix)
        means = [self.state[matrix]["exp_avg"] for matrix in matrices]
        torch._foreach_lerp_(means, gradients, 1 - group["momentum"])  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_lerp_(gradients, means, group["momentum"])  # pyright: ignore[reportPrivateImportUsage]
        directions = orthogonalise(torch.stack([_wide(gradient) for gradient in gradients]), self._dtype)
        size = -group["lr"] * _UPDATE_RMS * math.sqrt(directions.shape[-1])  # entries of U V^T have an RMS of 1/sqrt(n)
        shrink = 1 - group["lr"] * group["weight_decay"]
        steps = list(directions.to(matrices[0].dtype).unbind())
        torch._foreach_mul_(matrices, shrink)  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_add_([_wide(matrix) for matrix in matrices], steps, alpha=size)  # pyright: ignore


def orthogonalise(matrices_kmn: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Replace each matrix M = U S V^T by about U V^T.

    Args:
        matrices_kmn: K matrices with m <= n.
        dtype: of the products.

    Returns:
        The same shape in `dtype`; singular values that were above 1e-3 of the Frobenius norm end in [.7, 1.3].

    Source: Amsel et al. 2025.
    """
    x = matrices_kmn.to(dtype)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * _MARGIN + 1e-12)
    for a, b, c in _POLYNOMIALS:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _wide(matrix: Tensor) -> Tensor:
    return matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
