"""The fitted law as curves over size and over compute, with the FLOPs that the runs of this sweep really cost.

C = 6 N D leaves attention out; in tiny models that is a tenth of the cost and more. So the tokens that a budget buys at
each size come from the sweep's own ratio of FLOPs to params x tokens, joined in log size; beyond the sweep the ratio of
its nearest run is used (untested there; it changes slowly: attention grows with width, params with its square).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from chinchilla_lm.laws.forms.additive import AdditiveLaw
from chinchilla_lm.laws.forms.repetition import effective_tokens
from chinchilla_lm.report.rundir import Record, Run, is_number

_NAMES = {
    "matmul": ("params_matmul", "parameters (matmul)"),
    "total": ("params_total", "parameters (total)"),
    "non_embedding": ("params_non_embedding", "parameters (non-embedding)"),
}
_GRID = 241
"""Sizes tried on the way to an optimum; over four decades that is 4 % a step, far finer than the valley is sharp."""


@dataclass(frozen=True, kw_only=True)
class LawSurface:
    """A law, the measured ratio FLOPs / (params x tokens) at `log_sizes` (natural logarithms, rising), and the text.

    Tokens beyond `unique_tokens` are repeats and count for less (Muennighoff et al. 2023), as in the forecast.
    """

    law: AdditiveLaw
    log_sizes: tuple[float, ...]
    ratios: tuple[float, ...]
    unique_tokens: float

    @classmethod
    def of(cls, run: Run) -> LawSurface | None:
        """The surface of a run's law; None without a law."""
        if run.additive_law is None:
            return None
        known = [*run.trials, *([run.forecast] if run.forecast is not None else [])]
        sizes: dict[float, float] = {}
        for record in known:
            params = params_of(record, run)
            sizes[float(np.log(params))] = float(record["flops"]) / (params * float(record["tokens"]))
        # 6 = 2 for the forward and 4 for the backward pass, per parameter in a matmul and token (Kaplan et al. 2020).
        ordered = sorted(sizes.items()) or [(0.0, 6.0)]
        log_sizes, ratios = zip(*ordered, strict=True)
        texts = [float(record["unique_tokens"]) for record in known if is_number(record.get("unique_tokens"))]
        unique_tokens = max(texts, default=math.inf)
        return cls(law=run.additive_law, log_sizes=log_sizes, ratios=ratios, unique_tokens=unique_tokens)

    def isoflop(
        self, flops: float, params_low: float, params_high: float, steps: int = 48
    ) -> tuple[tuple[float, float], ...]:
        """Points (params, loss) of the law at one amount of compute."""
        sizes = np.geomspace(params_low, params_high, steps)
        return tuple(zip(sizes.tolist(), self._losses(flops, sizes).tolist(), strict=True))

    def optimum(self, flops: float) -> tuple[float, float]:
        """The size with the lowest loss at one amount of compute, and that loss."""
        centre = float(np.exp(np.mean(self.log_sizes)))
        sizes = np.geomspace(centre / 1e4, centre * 1e4, 4 * _GRID)
        losses = self._losses(flops, sizes)
        best = int(np.argmin(losses))
        return float(sizes[best]), float(losses[best])

    def _losses(self, flops: float, sizes: np.ndarray) -> np.ndarray:
        ratios = np.interp(np.log(sizes), self.log_sizes, self.ratios)
        tokens = effective_tokens(flops / (ratios * sizes), self.unique_tokens)
        return np.asarray(self.law.loss(sizes, tokens), dtype=float)


def params_of(record: Record, run: Run) -> float:
    """A record's size in the convention of the run's law, or its matmul parameters where that count is missing."""
    name, _ = _NAMES[_convention(run)]
    value = record.get(name)
    return float(value) if is_number(value) else float(record["params_matmul"])


def params_name(run: Run) -> str:
    """The words for the size axis: which parameters are counted."""
    return _NAMES[_convention(run)][1]


def _convention(run: Run) -> str:
    convention = (run.law or {}).get("params_convention", "matmul")
    return convention if convention in _NAMES else "matmul"
