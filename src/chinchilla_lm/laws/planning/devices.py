"""Devices, time and money: what turns a budget into FLOPs and FLOPs into hours and dollars.

It knows peak speeds and nothing of models; a measured speed is better than any peak.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from chinchilla_lm.core.errors import PlanError
from chinchilla_lm.core.files import read_json
from chinchilla_lm.core.units import Budget

# Share of the peak that training reaches: Llama 3 reports .38 to .43 (Grattafiori et al. 2024, table 4).
TRAINING_MFU = 0.4


@dataclass(frozen=True, kw_only=True)
class Device:
    """A machine that trains.

    Attributes:
        name: as people write it.
        peak_flops_per_s: dense bf16 of one device, or a measured speed.
        count: devices working together.
        mfu: share of the peak that training reaches, in (0, 1]; 1 for a measured speed.
        memory_bytes: of one device, or None where unknown.
        bandwidth_bytes_per_s: between that memory and the chip, or None.
        source: where the figures come from.
    """

    name: str
    peak_flops_per_s: float
    count: int = 1
    mfu: float = TRAINING_MFU
    memory_bytes: float | None = None
    bandwidth_bytes_per_s: float | None = None
    source: str = ""

    @property
    def flops_per_s(self) -> float:
        """What one device really does in training."""
        return self.peak_flops_per_s * self.mfu


def _device(name: str, tflops: float, memory_gb: float, gb_per_s: float, source: str) -> Device:
    return Device(
        name=name,
        peak_flops_per_s=tflops * 1e12,
        memory_bytes=memory_gb * 1e9,
        bandwidth_bytes_per_s=gb_per_s * 1e9,
        source=source,
    )


# Dense bf16 without structured sparsity: vendors' headline figures of Hopper and Blackwell are twice as much.
DEVICES = {
    device.name.upper(): device
    for device in (
        _device("A100", 312, 80, 2039, "NVIDIA A100 data sheet 1758950, SXM 80 GB"),
        _device("H100", 989.4, 80, 3350, "NVIDIA H100, SXM5: half of the data sheet's 1,979 with sparsity"),
        _device("H200", 989.4, 141, 4800, "NVIDIA H200, SXM: half of the data sheet's 1,979 with sparsity"),
        _device("B200", 2250, 180, 8000, "NVIDIA HGX B200 at 1,000 W (GB200 boards are rated 2,500); 180 GB usable"),
        _device("MI300X", 1307.4, 192, 5300, "AMD Instinct MI300X data sheet"),
        _device("TPU-v5p", 459, 95, 2765, "Google Cloud TPU v5p documentation, a chip"),
    )
}


def find_device(text: str, mfu: float = TRAINING_MFU) -> Device:
    """Read a device such as `H100`, `8xH100`, a measured speed such as `65e9` (FLOP/s), or a run directory.

    Args:
        text: name or number, or a folder with an env.json whose `matmul_flops_per_s` was measured there.
        mfu: share of a named device's peak, or of a run directory's matmul speed, that training reaches, in (0, 1].

    Returns:
        The device; a plain speed is taken as training's own, with mfu 1.

    Raises:
        PlanError: an unknown name, a number out of range, or a folder without a measurement.
    """
    if not 0 < mfu <= 1:
        raise PlanError(f"mfu={mfu!r} must be in (0, 1]; .4 is common")
    try:
        speed = float(text)
    except ValueError:
        speed = math.nan
    if math.isfinite(speed) and speed > 0:
        return Device(name=text, peak_flops_per_s=speed, mfu=1.0, source="measured speed, as given")
    if text.strip() and (Path(text).is_dir() or text.endswith("env.json")):
        return _measured_device(Path(text), mfu)
    match = re.fullmatch(r"(?:(\d+)\s*[xX* ]\s*)?([A-Za-z][\w-]*)", text.strip())
    known = DEVICES.get(_plain(match[2])) if match else None
    if match is None or known is None or match[1] == "0":
        near = difflib.get_close_matches(_plain(match[2]), DEVICES, n=1) if match and known is None else []
        hint = f"did you mean {DEVICES[near[0]].name}? " if near else ""
        names = ", ".join(device.name for device in DEVICES.values())
        raise PlanError(
            f"hardware {text!r} is unknown; {hint}write one of {names} (8xH100 for eight), a speed in FLOP/s, "
            "or a run directory"
        )
    return replace(known, count=int(match[1] or 1), mfu=mfu)


def budget_in_flops(budget: Budget, device: Device | None, price: float | None) -> float:
    """Turn any budget into FLOPs.

    Args:
        budget: time, FLOPs, device-hours or dollars.
        device: needed for all but FLOPs; device-hours may name their own.
        price: dollars per device-hour, needed for dollars.

    Returns:
        FLOPs at training's speed.

    Raises:
        PlanError: what is needed is missing, or the budget names another device.
    """
    if budget.kind == "flops":
        return budget.amount
    if budget.kind == "device_hours":
        return budget.amount * 3600 * _device_of_hours(budget, device).flops_per_s
    if device is None:
        raise PlanError(f"budget {budget.text!r} needs a machine to become FLOPs; add --hardware H100, or write 1e20")
    if budget.kind == "seconds":
        return budget.amount * device.count * device.flops_per_s
    if price is None or not (math.isfinite(price) and price > 0):
        raise PlanError(f"budget {budget.text!r} needs a price above 0; add --price DOLLARS for one device-hour")
    return budget.amount / price * 3600 * device.flops_per_s


def device_hours(flops: float, device: Device) -> float:
    """Return the hours that one device takes for FLOPs at training's speed; divide by `device.count` for the clock."""
    return flops / device.flops_per_s / 3600


def is_any_device(name: str) -> bool:
    """Say whether a budget's device names none: `8 GPU-hours`."""
    return name.upper() in ("GPU", "TPU", "DEVICE")


def _device_of_hours(budget: Budget, device: Device | None) -> Device:
    """Return the device that a budget's hours are of; its own name and --hardware must agree."""
    name = budget.device or ""
    if is_any_device(name):
        if device is None:
            raise PlanError(f"budget {budget.text!r} names no device; add --hardware H100, or write 8 H100-hours")
        return device
    if device is None:
        return find_device(name)
    if device.name.upper() in DEVICES and find_device(name).name != device.name:
        raise PlanError(f"budget {budget.text!r} and --hardware {device.name} are different devices; name one of them")
    return device


def _plain(name: str) -> str:
    upper = name.upper()
    return {"TPUV5P": "TPU-V5P", "V5P": "TPU-V5P"}.get(upper, upper)


def _measured_device(path: Path, mfu: float) -> Device:
    """Read the matmul speed that `chinchilla run` measured on its machine; the faster dtype is the peak."""
    path = path / "env.json" if path.is_dir() else path
    record: Any = read_json(path)
    fields: Mapping[str, Any] = cast("Mapping[str, Any]", record) if isinstance(record, Mapping) else {}
    speeds: Any = fields.get("matmul_flops_per_s")
    measured = [
        float(speed)
        for speed in (cast("Mapping[str, Any]", speeds).values() if isinstance(speeds, Mapping) else ())
        if isinstance(speed, int | float) and math.isfinite(speed) and speed > 0
    ]
    if not measured:
        raise PlanError(f"{path} holds no matmul_flops_per_s; give a run directory of `chinchilla run`, or a speed")
    name = str(fields.get("device", path.parent.name))
    return Device(name=name, peak_flops_per_s=max(measured), mfu=mfu, source=f"matmul measured, {path}")
