"""What a plan costs on a device: hours, dollars, and whether it fits. It plans nothing."""

from __future__ import annotations

import math
from dataclasses import replace

from chinchilla_lm.core.errors import PlanError
from chinchilla_lm.laws.planning.answer import Bill, Interval, Plan
from chinchilla_lm.laws.planning.devices import Device, device_hours


def add_bill(plan: Plan, device: Device, price: float | None = None) -> Plan:
    """Return the plan with its device-hours, and its dollars where `price` (dollars per device-hour) is given.

    Raises:
        PlanError: a price that is not finite and >= 0.
    """
    if price is not None and not (math.isfinite(price) and price >= 0):
        raise PlanError(f"price={price!r} must be finite and >= 0 dollars for one device-hour; write for example 2.5")
    hours, training_hours = device_hours(plan.total_flops, device), device_hours(plan.flops, device)
    bill = Bill(
        device=device.name,
        count=device.count,
        gpu_hours=hours,
        training_gpu_hours=training_hours,
        training_seconds=training_hours * 3600 / device.count,
        cost=None if price is None else hours * price,
    )
    made = replace(plan, bill=bill)
    if (spread := plan.intervals.get("total_flops")) is not None:
        scales = {"gpu_hours": 1 / device.flops_per_s / 3600}
        if price is not None:
            scales["cost"] = scales["gpu_hours"] * price
        scaled = {name: _scaled(spread, scale) for name, scale in scales.items()}
        made = replace(made, intervals={**plan.intervals, **scaled})
    need = plan.shapes[0].training_bytes if plan.shapes else None
    if need is not None and device.memory_bytes is not None and need > device.memory_bytes * device.count:
        least = math.ceil(need / device.memory_bytes)
        made = replace(
            made,
            notes=(
                *made.notes,
                f"training takes about {need / 1e9:,.0f} GB and {device.count} x {device.name} have "
                f"{device.memory_bytes * device.count / 1e9:,.0f}: spread it over {least} or more",
            ),
        )
    return made


def _scaled(interval: Interval, scale: float) -> Interval:
    return Interval(low=interval.low * scale, high=None if interval.high is None else interval.high * scale)
