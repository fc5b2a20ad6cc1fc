"""Where a run computes: device, number format, threads."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from chinchilla_lm.core.errors import ConfigError
from chinchilla_lm.train.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Device and number format of a run.

    Attributes:
        device: a torch device name, such as "cpu" or "cuda".
        dtype: of matmuls and activations; weights stay float32.
        threads: torch threads on a CPU, >= 1.
    """

    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    threads: int = 1


def choose_placement(run: RunConfig) -> Placement:
    """Resolve `run.device` ("auto": CUDA where present, else the CPU) and `run.dtype`.

    Raises:
        ConfigError: the device that was asked for is not here.
    """
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    device = ("cuda" if present["cuda"] else "cpu") if run.device == "auto" else run.device
    if not present[device]:
        here = ", ".join(name for name, is_present in present.items() if is_present)
        raise ConfigError(f'run.device = "{device}" is not on this machine, which has {here}; write "auto"')
    return Placement(device=device, dtype=getattr(torch, run.dtype), threads=run.threads)
