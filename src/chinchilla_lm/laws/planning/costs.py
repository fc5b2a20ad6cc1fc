"""What a sweep costs when runs share a trunk: WSD branches against separate runs.

Symbols: N `params`, D `tokens` (the horizon of a run), k `flops_per_param_token`, f `cooldown_fraction`.
A WSD run holds its learning rate for (1 - f) D tokens and lets it fall over the last f D. Runs of one size can share
the first part: one trunk as long as the longest horizon needs, and one cooldown branch for each horizon. So horizons
d_1..d_m at one size cost k N ((1 - f) max d + f sum d); f = 1 shares nothing and is a separate run for each.
It counts training alone: no evaluation, no failed runs, no cost of keeping a trunk's checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from chinchilla_lm.core.errors import PlanError
from chinchilla_lm.laws.forms.law import Floats


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """How runs are paid for: FLOPs, or seconds where speeds are known.

    Attributes:
        cooldown_fraction: f in (0, 1]; 1 makes every run separate. .1 to .2 lose nothing against a cosine of the same
            length (Haegele et al. 2024, arXiv 2405.18392).
        flops_per_param_token: k, > 0.
        flops_per_s_by_params: speed in FLOP/s by size, > 0, between whose sizes it is a log-log line and beyond whose
            ends it is flat; empty counts FLOPs instead of seconds.
        seconds_per_run: what each run costs besides (start, compilation, evaluation); only with speeds.

    Raises:
        PlanError: a number out of its range.
    """

    cooldown_fraction: float = 1.0
    flops_per_param_token: float = 6.0
    flops_per_s_by_params: Mapping[float, float] = field(default_factory=lambda: MappingProxyType({}))
    seconds_per_run: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.cooldown_fraction <= 1:
            raise PlanError(
                f"cooldown_fraction={self.cooldown_fraction!r} must be in (0, 1]; .2 is common, 1 shares nothing"
            )
        if not (math.isfinite(self.flops_per_param_token) and self.flops_per_param_token > 0):
            raise PlanError(f"flops_per_param_token={self.flops_per_param_token!r} must be finite and > 0; 6 is common")
        for params, speed in self.flops_per_s_by_params.items():
            if not (params > 0 and math.isfinite(params) and speed > 0 and math.isfinite(speed)):
                raise PlanError(f"speed {speed!r} FLOP/s at {params!r} params must be finite and > 0; measure it again")
        if not self.seconds_per_run >= 0 or (self.seconds_per_run > 0 and not self.flops_per_s_by_params):
            raise PlanError(f"seconds_per_run={self.seconds_per_run!r} must be >= 0, and 0 without speeds; give speeds")

    @property
    def unit(self) -> str:
        """What costs are counted in: "flops" or "seconds"."""
        return "seconds" if self.flops_per_s_by_params else "flops"

    def run_costs(self, params: Floats, tokens: Floats, horizon: Floats | float = 0.0) -> Floats:
        """Return what each run would add, were it the only one added.

        Args:
            params: N of each run, > 0.
            tokens: its horizon D, > 0.
            horizon: the longest horizon that a trunk of its size already serves, tokens >= 0.

        Returns:
            FLOPs or seconds of each run.
        """
        # Without sharing (f = 1) a trunk serves nobody, and its part is 0.
        trunk = (1 - self.cooldown_fraction) * np.maximum(tokens - horizon, 0.0)
        flops = self.flops_per_param_token * params * (trunk + self.cooldown_fraction * tokens)
        return flops / self._speed(params) + self.seconds_per_run

    def sweep_cost(self, params: Floats, tokens: Floats, trunks: Mapping[float, float] | None = None) -> float:
        """Return what runs cost together.

        Args:
            params: N of each run, > 0; equal numbers share a trunk.
            tokens: its horizon D, > 0.
            trunks: horizons that trunks already trained serve, by params.

        Returns:
            FLOPs or seconds.
        """
        sizes, which = np.unique(params, return_inverse=True)
        return self.grouped_cost(
            params, tokens, which, np.array([(trunks or {}).get(float(size), 0.0) for size in sizes])
        )

    def grouped_cost(self, params: Floats, tokens: Floats, trunk: npt.NDArray[np.intp], horizon: Floats) -> float:
        """Return what runs cost together where runs of one size may stand on several trunks.

        Args:
            params: N of each of n runs, > 0.
            tokens: its horizon D, > 0.
            trunk: which of T trunks it branches off, (n,).
            horizon: what each trunk already serves, tokens, (T,).

        Returns:
            FLOPs or seconds.
        """
        order = np.lexsort((tokens, trunk))
        params, tokens, trunk = params[order], tokens[order], trunk[order]
        # In order of length a run finds the trunk as long as the run before it needed.
        follows = np.append(False, trunk[1:] == trunk[:-1]) if len(trunk) else np.zeros(0, dtype=bool)
        before = np.where(follows, np.roll(tokens, 1), 0.0)
        return float(self.run_costs(params, tokens, np.maximum(before, horizon[trunk])).sum())

    def _speed(self, params: Floats) -> Floats:
        """Return FLOP/s at each size; 1 where FLOPs are counted."""
        if not self.flops_per_s_by_params:
            return np.ones_like(params)
        sizes = np.array(sorted(self.flops_per_s_by_params))
        speeds = np.array([self.flops_per_s_by_params[float(size)] for size in sizes])
        return np.exp(np.interp(np.log(params), np.log(sizes), np.log(speeds)))
