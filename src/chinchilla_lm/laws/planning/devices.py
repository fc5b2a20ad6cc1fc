"""Devices, time and money: what turns a budget into FLOPs and a plan into a bill.

It knows peak speeds and nothing of models; a measured speed is better than any peak.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

from chinchilla_lm.core.errors import PlanError
from chinchilla_lm.core.units import Budget
from chinchilla_lm.laws.planning.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Device:
    """A machine that trains.

    Attributes:
        name: as people write it.
        peak_flops_per_s: dense bf16 of one device.
        count: devices working together.
        mfu: share of the peak that training reaches; .4 is what Llama 3 reports (.38 to .43, Grattafiori et al. 2024,
            table 4).
    """

    name: str
    peak_flops_per_s: float
    count: int = 1
    mfu: float = 0.4


# Dense bf16 without sparsity, from NVIDIA's data sheets of each device (SXM form).
PEAK_FLOPS_PER_S = {"A100": 312e12, "H100": 989e12, "H200": 989e12}


def find_device(text: str, mfu: float = 0.4) -> Device:
    """Read a device such as `H100`, `8xH100` or a measured speed such as `65e9` (FLOP/s, taken as it is).

    Args:
        text: name or number.
        mfu: share of a named device's peak that training reaches, in (0, 1].

    Returns:
        The device.

    Raises:
        PlanError: an unknown name or a number out of range.
    """
    if not 0 < mfu <= 1:
        raise PlanError(f"mfu={mfu!r} must be in (0, 1]; .4 is common")
    try:
        speed = float(text)
    except ValueError:
        speed = math.nan
    if math.isfinite(speed) and speed > 0:
        return Device(name=text, peak_flops_per_s=speed, mfu=1.0)
    match = re.fullmatch(r"(?:(\d+)\s*[xX* ]\s*)?([A-Za-z]\w*)", text.strip())
    peak = PEAK_FLOPS_PER_S.get(match[2].upper()) if match else None
    if match is None or peak is None or match[1] == "0":
        known = ", ".join(PEAK_FLOPS_PER_S)
        raise PlanError(f"hardware {text!r} is unknown; write one of {known} (8xH100 for eight) or a speed in FLOP/s")
    return Device(name=match[2].upper(), peak_flops_per_s=peak, count=int(match[1] or 1), mfu=mfu)


def budget_in_flops(budget: Budget, device: Device | None, price: float | None) -> float:
    """Turn any budget into FLOPs.

    Args:
        budget: time, FLOPs, device-hours or dollars.
        device: needed for all but FLOPs; device-hours may name their own.
        price: dollars per device-hour, needed for dollars.

    Returns:
        FLOPs.

    Raises:
        PlanError: what is needed is missing.
    """
    if budget.kind == "flops":
        return budget.amount
    if budget.kind == "device_hours":
        device = device or find_device(budget.device or "")
        return budget.amount * 3600 * device.peak_flops_per_s * device.mfu
    if device is None:
        raise PlanError(f"budget {budget.text!r} needs a machine to become FLOPs; add --hardware H100, or write 1e20")
    if budget.kind == "seconds":
        return budget.amount * device.count * device.peak_flops_per_s * device.mfu
    if price is None or not price > 0:
        raise PlanError(f"budget {budget.text!r} needs a price above 0; add --price DOLLARS for one device-hour")
    return budget.amount / price * 3600 * device.peak_flops_per_s * device.mfu


def add_cost(plan: Plan, device: Device, price: float | None = None) -> Plan:
    """Return the plan with its device-hours, and its dollars where `price` (dollars per device-hour) is given."""
    hours = plan.flops / (device.peak_flops_per_s * device.mfu) / 3600
    return replace(plan, gpu_hours=hours, cost=None if price is None else hours * price)
