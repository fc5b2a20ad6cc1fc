"""`chinchilla plan`: budget, loss, size or tokens -> the model to train, before any run.

With --json, exactly one JSON document goes to stdout; what is meant for people goes to stderr.
Imports of the laws stand inside the functions, so that `chinchilla --help` need not wait for numpy.
"""

from __future__ import annotations

import json as json_format
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from chinchilla_lm.core.errors import PlanError
from chinchilla_lm.core.files import read_json
from chinchilla_lm.core.units import (
    Budget,
    format_bytes,
    format_count,
    format_flops,
    format_seconds,
    parse_budget,
    parse_count,
)

if TYPE_CHECKING:
    from chinchilla_lm.laws.forms.record import AnyLaw
    from chinchilla_lm.laws.planning.answer import Interval, Plan
    from chinchilla_lm.laws.planning.demand import Demand
    from chinchilla_lm.laws.planning.devices import Device
    from chinchilla_lm.laws.planning.question import Evidence

JsonFlag = Annotated[bool, Parameter(name="--json", negative="")]


def plan(  # noqa: PLR0913 - a command has as many arguments as options
    *,
    budget: str | None = None,
    loss: float | None = None,
    params: str | None = None,
    tokens: str | None = None,
    law: str = "besiroglu2024",
    unique_tokens: str | None = None,
    overtrain: float = 1.0,
    inference_tokens: str | None = None,
    decode_tokens: str | None = None,
    prefill_mfu: float | None = None,
    decode_mfu: float | None = None,
    hardware: str | None = None,
    mfu: float = 0.4,
    price: float | None = None,
    context: int = 2048,
    vocab: int | None = None,
    plot: Path | None = None,
    json: JsonFlag = False,
) -> None:  # fmt: skip
    """Choose the model that a budget buys, or the budget that a loss, a size or a text needs, before any run.

    Args:
        budget: What may be spent: 1e20 (FLOPs), 5m, 2h, "8 H100-hours" or "$50"; time and money need --hardware.
        loss: Nats per token to be reached, instead of a budget: the least cost for it.
        params: A size that is given, such as 1B: its tokens, loss and cost.
        tokens: Tokens to train on that are given, such as 20B: the size that suits them.
        law: A published law's name, a law.json, or a run directory.
        unique_tokens: Distinct tokens there are, such as 25B; more training than that repeats them.
        overtrain: Tokens per parameter, relative to the optimum.
        inference_tokens: Tokens to be served later; the budget then pays for training and serving.
        decode_tokens: How many of them are written rather than read.
        prefill_mfu: Share of the peak that reading reaches; without it serving counts FLOPs alone.
        decode_mfu: Share of the peak that writing reaches, about .01.
        hardware: A100, H100, H200, B200, MI300X or TPU-v5p, 8xH100 for eight, a speed in FLOP/s, or a run directory.
        mfu: Share of the hardware's peak that training reaches.
        price: Dollars for one device-hour.
        context: Tokens in a sequence of the suggested shapes.
        vocab: Words of the tokenizer; by default what suits the budget.
        plot: Draw loss against size with the flat band into this .png or .svg file.
        json: Print one JSON document.
    """
    from chinchilla_lm.laws.planning.bill import add_bill
    from chinchilla_lm.laws.planning.devices import budget_in_flops
    from chinchilla_lm.laws.planning.plan import add_shapes, make_plan
    from chinchilla_lm.laws.planning.question import Conditions, Goal

    given = None if budget is None else parse_budget(budget)
    device = _find_device(given, hardware, mfu)
    if device is None and price is not None:
        raise PlanError(f"--price {price} needs a machine to pay for; add --hardware H100")
    answering, evidence, source = _find_law(law)
    goal = Goal(
        flops=None if given is None else budget_in_flops(given, device, price),
        loss=loss,
        params=_count(params),
        tokens=_count(tokens),
    )
    training_mfu = mfu if device is None else device.mfu
    conditions = Conditions(
        unique_tokens=_count(unique_tokens),
        overtrain=overtrain,
        demand=_demand(inference_tokens, decode_tokens, (training_mfu, prefill_mfu, decode_mfu)),
    )
    made = make_plan(goal, answering, conditions=conditions, evidence=evidence)
    made = add_shapes(made, answering, context=context, vocab=vocab)
    if device is not None:
        made = add_bill(made, device, price)
    if plot is not None:
        _draw(made, answering, plot)
    console = Console(stderr=json)
    _print_plan(made, source, console)
    if plot is not None:
        console.print(f"drawn: {plot}", soft_wrap=True, markup=False, highlight=False)
    if json:
        print(json_format.dumps(made.to_dict(), allow_nan=False))


def _count(text: str | None) -> float | None:
    return None if text is None else parse_count(text)


def _find_device(budget: Budget | None, hardware: str | None, mfu: float) -> Device | None:
    """Return the machine that --hardware or the budget itself (`8 H100-hours`) names."""
    from chinchilla_lm.laws.planning.devices import find_device, is_any_device

    if hardware is not None:
        return find_device(hardware, mfu)
    if budget is not None and budget.device is not None and not is_any_device(budget.device):
        return find_device(budget.device, mfu)
    return None


def _demand(inference: str | None, decode: str | None, mfus: tuple[float, float | None, float | None]) -> Demand:
    """Split the tokens to be served into read and written ones, weighed by their MFUs where given."""
    from chinchilla_lm.laws.planning.demand import Demand, demand_at_speeds

    training_mfu, prefill_mfu, decode_mfu = mfus
    written = _count(decode) or 0.0
    served = _count(inference) or written
    if written > served:
        raise PlanError(f"--decode-tokens {decode} are more than --inference-tokens {inference}; the latter are all")
    if not served and (prefill_mfu is not None or decode_mfu is not None):
        raise PlanError("--prefill-mfu and --decode-mfu weigh tokens that are served; add --inference-tokens 1T")
    if not served:
        return Demand()
    return demand_at_speeds(
        served - written,
        written,
        training_mfu=training_mfu,
        prefill_mfu=training_mfu if prefill_mfu is None else prefill_mfu,
        decode_mfu=training_mfu if decode_mfu is None else decode_mfu,
    )


def _find_law(text: str) -> tuple[AnyLaw, Evidence, tuple[str, str]]:
    """Return a law, what is known of it, and (source, note) for people: a published one, or a law.json's."""
    import numpy as np

    from chinchilla_lm.laws.forms.record import law_from_dict
    from chinchilla_lm.laws.planning.question import Evidence
    from chinchilla_lm.laws.published import published_law

    path = Path(text)
    path = path / "law.json" if path.is_dir() else path
    if path.suffix != ".json":
        row = published_law(text)
        return row.law, Evidence(name=row.name, largest_flops=row.largest_flops), (row.source, row.note)
    record: Any = read_json(path)
    if not isinstance(record, Mapping):
        raise PlanError(f"{path} holds no law; give a law.json that `chinchilla fit --json` or `chinchilla run` wrote")
    largest = max((float(rung["flops"]) for rung in record.get("rungs", ())), default=record.get("largest_flops"))
    try:
        draws = None if record.get("draws") is None else np.asarray(record["draws"], dtype=np.float64)
    except (TypeError, ValueError):
        raise PlanError(f"{path} has draws that are no rows of numbers; leave them out, or fit the law again") from None
    return law_from_dict(record), Evidence(name=str(path), largest_flops=largest, draws=draws), (str(path), "")


def _draw(made: Plan, law: AnyLaw, path: Path) -> None:
    from chinchilla_lm.laws.forms.allocation import AllocationLaw
    from chinchilla_lm.report.plans import save_plan_picture  # cost: matplotlib, and only pictures need it

    if isinstance(law, AllocationLaw):
        raise PlanError(f"--plot {path} needs a law that states losses; add --law besiroglu2024")
    save_plan_picture(made, law, path)


def _print_plan(made: Plan, source: tuple[str, str], console: Console) -> None:
    rows = [*_size_rows(made), *_cost_rows(made), *_shape_rows(made), ("law", f"{made.law}: {source[0]}")]
    grid = Table.grid(padding=(0, 2))
    for name, text in rows:
        grid.add_row(name, text)
    console.print(grid, markup=False, highlight=False)
    for note in (*made.notes, *((source[1],) if source[1] else ())):
        console.print(f"note: {note}", style="yellow", soft_wrap=True, markup=False, highlight=False)


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
