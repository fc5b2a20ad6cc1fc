"""What `chinchilla plan` tells people: a plan as rows of (name, text), numbers with units and 90 % intervals."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from chinchilla_lm.core.units import format_bytes, format_count, format_flops, format_seconds

if TYPE_CHECKING:
    from chinchilla_lm.laws.planning.answer import Interval, Plan


def plan_rows(made: Plan) -> list[tuple[str, str]]:
    """Return the rows of a plan: sizes and loss, what it costs, the shape."""
    return [*_size_rows(made), *_cost_rows(made), *_shape_rows(made)]


def _size_rows(made: Plan) -> list[tuple[str, str]]:
    rows = [
        ("parameters", f"{format_count(made.params)} ({made.params_convention}){_range(made, 'params', format_count)}"),
        (
            "tokens",
            f"{format_count(made.tokens)}, {_amount(made.tokens_per_param)} per parameter"
            f"{_range(made, 'tokens', format_count)}",
        ),
    ]
    if made.epochs > 1:
        rows.append(("epochs", f"{made.epochs:.1f}"))
    if made.loss is not None:
        band = "" if made.loss_low is None else f", 90 %: {made.loss_low:.3f} to {made.loss_high:.3f}"
        rows.append(("loss", f"{made.loss:.3f} nats per token{band}"))
    rows.extend(
        (
            task.name,
            f"{100 * task.accuracy:.1f} % right, 90 %: {100 * task.low:.1f} to {100 * task.high:.1f} "
            f"(chance {100 * task.chance:.1f})",
        )
        for task in made.tasks
    )
    if made.flat_band is not None:
        low, high = format_count(made.flat_band.params_low), format_count(made.flat_band.params_high)
        rows.append(("any size", f"from {low} to {high} costs < {100 * made.flat_band.loss_penalty:g} % of loss"))
    rows.extend(
        (
            f"text, {support.epochs:g} epoch{'s' if support.epochs > 1 else ''}",
            f"supports a compute-optimal model up to {format_count(support.params)} ({format_flops(support.flops)})",
        )
        for support in made.text
    )
    return rows


def _cost_rows(made: Plan) -> list[tuple[str, str]]:
    over = ""
    if made.overhead is not None and made.overhead > 0.005:
        over = f", {1 + made.overhead:.3g} times the least for this loss"
    rows = [("compute", f"{format_flops(made.flops)}{over}{_range(made, 'flops', format_flops)}")]
    if made.serving is not None:
        demand, saving = made.serving.demand, made.serving.saving_share
        saved = "" if saving is None else f"; saves {100 * saving:.3g} % of the training-optimal model's total cost"
        tokens = f"{format_count(demand.tokens)} tokens"
        if demand.decode_tokens:
            tokens += f", {format_count(demand.decode_tokens)} of them written"
        rows.append(("serving", f"{tokens}: {format_flops(made.serving.flops)}{saved}"))
    bill = made.bill
    if bill is not None:
        hours = f"{_amount(bill.gpu_hours)} of {bill.device}"
        if made.serving is not None:
            hours += f", {_amount(bill.training_gpu_hours)} of them training"
        rows.append(("device-hours", hours + _range(made, "gpu_hours", _amount)))
        clock = f"{format_seconds(bill.training_seconds)} of training on {bill.count} device"
        rows.append(("clock", clock + ("s" if bill.count > 1 else "")))
        if bill.cost is not None:
            rows.append(("cost", _dollars(bill.cost) + _range(made, "cost", _dollars)))
    return rows


def _shape_rows(made: Plan) -> list[tuple[str, str]]:
    if not made.shapes:
        return []
    best = made.shapes[0]
    shape = best.shape
    heads = f"{shape.n_heads} heads" + (f" ({shape.n_kv_heads} of keys)" if shape.n_kv_heads < shape.n_heads else "")
    reached = "" if best.loss is None else f": loss {best.loss:.3f}"
    return [
        (
            "shape",
            f"d_model {shape.d_model}, {shape.n_layers} layers, {heads}, vocab {shape.vocab} ({shape.layout})",
        ),
        (
            "at exact FLOPs",
            f"{format_count(best.params)} parameters, {format_count(best.tokens)} tokens of "
            f"{format_flops(best.flops_per_token)}{reached}",
        ),
        ("memory", f"about {format_bytes(best.training_bytes)} to train a sequence of {shape.context} at a time"),
    ]


def _amount(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _dollars(number: float) -> str:
    return f"${number:,.0f}" if number >= 1000 else f"${number:,.2f}"


def _range(made: Plan, name: str, write: Callable[[float], str]) -> str:
    """Write a 90 % interval behind a number, where there is one."""
    interval: Interval | None = made.intervals.get(name)
    if interval is None:
        return ""
    return f", 90 %: {write(interval.low)} to {'any amount' if interval.high is None else write(interval.high)}"
