"""`chinchilla plan`: budget, loss, size or tokens -> the model to train, before any run.

With --json, exactly one JSON document goes to stdout; what is meant for people goes to stderr.
Imports of the laws stand inside the functions, so that `chinchilla --help` need not wait for numpy.
"""

from __future__ import annotations

import json as json_format
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import Group, Parameter
from rich.console import Console
from rich.table import Table

from chinchilla_lm.cli.options import MachineOptions, OutputOptions
from chinchilla_lm.cli.plan_text import plan_rows
from chinchilla_lm.core.errors import PlanError
from chinchilla_lm.core.files import read_json
from chinchilla_lm.core.units import parse_budget, parse_count

if TYPE_CHECKING:
    from chinchilla_lm.laws.forms.record import AnyLaw
    from chinchilla_lm.laws.planning.answer import Plan
    from chinchilla_lm.laws.planning.demand import Demand
    from chinchilla_lm.laws.planning.question import Evidence


@Parameter(name="*", group=Group("Given: one of them, or two", sort_key=1))
@dataclass(frozen=True, kw_only=True)
class GoalOptions:
    """What is given; the plan answers the others."""

    budget: str | None = None
    """What may be spent: 1e20 (FLOPs), 5m, 2h, "8 H100-hours" or "$50"; time and money need --hardware."""
    loss: float | None = None
    """Nats per token to be reached, instead of a budget: the least cost for it."""
    params: str | None = None
    """A size that is given, such as 1B: its tokens, loss and cost."""
    tokens: str | None = None
    """Tokens to train on that are given, such as 20B: the size that suits them."""


@Parameter(name="*", group=Group("Law and text", sort_key=2))
@dataclass(frozen=True, kw_only=True)
class LawOptions:
    """Which law answers, and under what conditions."""

    law: str = "besiroglu2024"
    """A published law's name, a law.json, or a run directory."""
    unique_tokens: str | None = None
    """Distinct tokens there are, such as 25B; more training than that repeats them."""
    overtrain: float = 1.0
    """Tokens per parameter, relative to the optimum."""


@Parameter(name="*", group=Group("Serving later", sort_key=3))
@dataclass(frozen=True, kw_only=True)
class ServingOptions:
    """What the model is for, where serving it is to be paid too."""

    inference_tokens: str | None = None
    """Tokens to be served later; the budget then pays for training and serving."""
    decode_tokens: str | None = None
    """How many of them are written rather than read."""
    prefill_mfu: float | None = None
    """Share of the peak that reading reaches; without it serving counts FLOPs alone."""
    decode_mfu: float | None = None
    """Share of the peak that writing reaches, about .01."""

    def demand(self, training_mfu: float) -> Demand:
        """Split the tokens to be served into read and written ones, weighed by their MFUs where given.

        Raises:
            PlanError: more tokens written than served, or MFUs of nothing.
        """
        from chinchilla_lm.laws.planning.demand import Demand, demand_at_speeds

        written = _count(self.decode_tokens) or 0.0
        served = _count(self.inference_tokens) or written
        if written > served:
            raise PlanError(
                f"--decode-tokens {self.decode_tokens} are more than --inference-tokens {self.inference_tokens}; "
                "the latter are all"
            )
        if not served and (self.prefill_mfu is not None or self.decode_mfu is not None):
            raise PlanError("--prefill-mfu and --decode-mfu weigh tokens that are served; add --inference-tokens 1T")
        if not served:
            return Demand()
        return demand_at_speeds(
            served - written,
            written,
            training_mfu=training_mfu,
            prefill_mfu=training_mfu if self.prefill_mfu is None else self.prefill_mfu,
            decode_mfu=training_mfu if self.decode_mfu is None else self.decode_mfu,
        )


@Parameter(name="*", group=Group("Shape", sort_key=4))
@dataclass(frozen=True, kw_only=True)
class ShapeOptions:
    """Of the models that the plan suggests."""

    context: int = 2048
    """Tokens in a sequence of the suggested shapes."""
    vocab: int | None = None
    """Words of the tokenizer; by default what suits the budget."""


_GOAL, _LAW, _SERVING, _SHAPE = GoalOptions(), LawOptions(), ServingOptions(), ShapeOptions()
_MACHINE, _OUTPUT = MachineOptions(), OutputOptions()


def plan(
    *,
    given: GoalOptions = _GOAL,
    law: LawOptions = _LAW,
    serving: ServingOptions = _SERVING,
    shape: ShapeOptions = _SHAPE,
    machine: MachineOptions = _MACHINE,
    output: OutputOptions = _OUTPUT,
) -> None:
    """Choose the model that a budget buys, or the budget that a loss, a size or a text needs, before any run.

    --plot draws loss against size with the flat band.

    Args:
        given: What is given.
        law: Which law answers, and under what conditions.
        serving: What the model is for.
        shape: Of the models that the plan suggests.
        machine: What a budget of time or money is spent on.
        output: What is written.
    """
    from chinchilla_lm.laws.planning.bill import add_bill
    from chinchilla_lm.laws.planning.devices import budget_in_flops
    from chinchilla_lm.laws.planning.plan import add_shapes, make_plan
    from chinchilla_lm.laws.planning.question import Conditions, Goal
    from chinchilla_lm.laws.planning.tasks import add_tasks

    output.require_picture()
    budget = None if given.budget is None else parse_budget(given.budget)
    device = machine.device(budget)
    if device is None and machine.price is not None:
        raise PlanError(f"--price {machine.price} needs a machine to pay for; add --hardware H100")
    answering, evidence, source = _find_law(law.law)
    goal = Goal(
        flops=None if budget is None else budget_in_flops(budget, device, machine.price),
        loss=given.loss,
        params=_count(given.params),
        tokens=_count(given.tokens),
    )
    conditions = Conditions(
        unique_tokens=_count(law.unique_tokens),
        overtrain=law.overtrain,
        demand=serving.demand(machine.mfu if device is None else device.mfu),
    )
    made = make_plan(goal, answering, conditions=conditions, evidence=evidence)
    made = add_shapes(made, answering, context=shape.context, vocab=shape.vocab)
    made = add_tasks(made, evidence.tasks)
    if device is not None:
        made = add_bill(made, device, machine.price)
    if output.plot is not None:
        _draw(made, answering, output.plot)
    _print_plan(made, source, output)


def _count(text: str | None) -> float | None:
    return None if text is None else parse_count(text)


def _find_law(text: str) -> tuple[AnyLaw, Evidence, tuple[str, str]]:
    """Return a law, what is known of it, and (source, note) for people: a published one, or a law.json's."""
    import numpy as np

    from chinchilla_lm.laws.forms.record import law_from_dict
    from chinchilla_lm.laws.planning.question import Evidence
    from chinchilla_lm.laws.planning.tasks import task_laws
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
    evidence = Evidence(name=str(path), largest_flops=largest, draws=draws, tasks=task_laws(record))
    return law_from_dict(record), evidence, (str(path), "")


def _draw(made: Plan, law: AnyLaw, path: Path) -> None:
    from chinchilla_lm.laws.forms.allocation import AllocationLaw
    from chinchilla_lm.report.plans import save_plan_picture  # cost: matplotlib, and only pictures need it

    if isinstance(law, AllocationLaw):
        raise PlanError(f"--plot {path} needs a law that states losses; add --law besiroglu2024")
    save_plan_picture(made, law, path)


def _print_plan(made: Plan, source: tuple[str, str], output: OutputOptions) -> None:
    console = Console(stderr=output.json)
    grid = Table.grid(padding=(0, 2))
    for name, text in [*plan_rows(made), ("law", f"{made.law}: {source[0]}")]:
        grid.add_row(name, text)
    console.print(grid, markup=False, highlight=False)
    for note in (*made.notes, *((source[1],) if source[1] else ())):
        console.print(f"note: {note}", style="yellow", soft_wrap=True, markup=False, highlight=False)
    if output.plot is not None:
        console.print(f"drawn: {output.plot}", soft_wrap=True, markup=False, highlight=False)
    if output.json:
        print(json_format.dumps(made.to_dict(), allow_nan=False))
