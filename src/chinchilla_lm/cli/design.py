"""`chinchilla design`: a budget -> the runs to make next, what each costs, and what precision they buy.

With --json, exactly one JSON document goes to stdout; what is meant for people goes to stderr.
Imports of the laws stand inside the functions, so that `chinchilla --help` need not wait for numpy.
"""

from __future__ import annotations

import json as json_format
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter
from rich.console import Console
from rich.table import Table

from chinchilla_lm.cli.options import MachineOptions, OutputOptions, TableOptions
from chinchilla_lm.core.errors import PlanError
from chinchilla_lm.core.files import read_json
from chinchilla_lm.core.units import format_count, format_flops, parse_budget, parse_count
from chinchilla_lm.laws.count import ParamsConvention

if TYPE_CHECKING:
    from chinchilla_lm.laws.planning.candidates import Space
    from chinchilla_lm.laws.planning.design import Design
    from chinchilla_lm.laws.planning.precision import Belief, Goal
    from chinchilla_lm.laws.table import RunTable

_TARGET_OVER_BUDGET = 100.0  # by default, the model in question costs so many times the sweep
_LARGEST_SHARE = 0.4  # by default, of the budget, what one run may cost
_LEAST_SHARE, _SMALLEST_FLOPS = 0.003, 1e12  # by default, of the largest run, the least; below 1e12 laws bend
_DRAWS = 8


@Parameter(name="*", group=Group("Aim", sort_key=1))
@dataclass(frozen=True, kw_only=True)
class AimOptions:
    """What the runs may cost, and what is to be known from them."""

    budget: str
    """What the new runs may cost: 1e20 (FLOPs), 5m, 2h, "8 H100-hours" or "$50"."""
    target_flops: str | None = None
    """The compute of the model in question; by default 100 times the budget."""
    goal: Literal["both", "size", "loss"] = "both"
    """What is to be known of it: its best size, its loss, or both."""

    def asked(self, flops: float) -> Goal:
        """Return the question, for a budget in FLOPs."""
        from chinchilla_lm.laws.planning.precision import Goal

        target = _TARGET_OVER_BUDGET * flops if self.target_flops is None else parse_count(self.target_flops)
        return Goal(flops=target, answers=("size", "loss") if self.goal == "both" else (self.goal,))


@Parameter(name="*", group=Group("Runs that may be made", sort_key=2))
@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Which runs may be chosen."""

    branches: float = 0.0
    """Share of a run that is cooldown, such as .2, to branch runs off one trunk; 0 makes separate runs."""
    largest_run_flops: str | None = None
    """The most that a run may cost; by default .4 of the budget."""
    least_run_flops: str | None = None
    """The least that a run may cost; by default .003 of the largest, and 1e12."""
    tokens_per_param: tuple[float, float] = (1.0, 400.0)
    """Least and largest tokens per parameter."""
    most_runs: int = 40
    """Of new ones."""

    def __post_init__(self) -> None:
        if not 0 <= self.branches < 1:
            raise PlanError(
                f"--branches {self.branches:g} must be in [0, 1), the share of a run that is cooldown; .2 is common"
            )

    def space(self, flops: float) -> Space:
        """Return the costs and lengths that are allowed, for a budget in FLOPs."""
        from chinchilla_lm.laws.planning.candidates import Space

        largest = _LARGEST_SHARE * flops if self.largest_run_flops is None else parse_count(self.largest_run_flops)
        least = max(_LEAST_SHARE * largest, min(_SMALLEST_FLOPS, 0.1 * largest))
        return Space(
            flops_low=least if self.least_run_flops is None else parse_count(self.least_run_flops),
            flops_high=largest,
            tokens_per_param_low=self.tokens_per_param[0],
            tokens_per_param_high=self.tokens_per_param[1],
        )


@Parameter(name="*", group=Group("What is believed", sort_key=3))
@dataclass(frozen=True, kw_only=True)
class BeliefOptions:
    """What is believed of the law before the new runs."""

    law: str | None = None
    """A published additive law or a law.json, instead of a fit of the runs or all published laws."""
    noise_sd: float | None = None
    """Of ln loss between seeds; by default what the runs show, or .003."""
    trust_form: Annotated[bool, Parameter(negative="")] = False
    """Leave out the precautions against a law of another form."""
    params_convention: ParamsConvention = "total"
    """Which weights n_params counts."""

    def belief(self, runs: RunTable | None) -> Belief:
        """Return the belief: --law, else a fit of the runs, else all published laws.

        Raises:
            PlanError: a law that is not additive, or no law.
        """
        from chinchilla_lm.laws.planning.belief import SEED_SD, fitted_belief, published_belief
        from chinchilla_lm.laws.planning.precision import Belief, Misfit

        misfit = Misfit(coupling=0.0, drift=0.0, small_scale=0.0) if self.trust_form else Misfit()
        if self.law is not None:
            laws, source = _read_laws(self.law)
            return Belief(laws=laws, noise_sd=self.noise_sd or SEED_SD, misfit=misfit, source=source)
        convention = self.params_convention
        if runs is None:
            return published_belief(params_convention=convention, noise_sd=self.noise_sd or SEED_SD, misfit=misfit)
        return fitted_belief(
            runs.params, runs.tokens, runs.loss, params_convention=convention, noise_sd=self.noise_sd, misfit=misfit
        )


_RUNS, _BELIEF = RunOptions(), BeliefOptions()
_TABLE, _MACHINE, _OUTPUT = TableOptions(), MachineOptions(), OutputOptions()


def design(
    runs: Path | None = None,
    *,
    aim: AimOptions,
    allowed: RunOptions = _RUNS,
    believed: BeliefOptions = _BELIEF,
    machine: MachineOptions = _MACHINE,
    table: TableOptions = _TABLE,
    output: OutputOptions = _OUTPUT,
) -> None:
    """Choose the runs that tell most for a budget: sizes, lengths, costs, and what precision they buy.

    --plot draws the runs and what they buy.

    Args:
        runs: A CSV file of the runs already made, with columns n_params, n_tokens and loss; none starts a sweep.
        aim: What the runs may cost, and what is to be known.
        allowed: Which runs may be chosen.
        believed: What is believed of the law before.
        machine: What a budget of time or money is spent on.
        table: How the file is written.
        output: What is written.
    """
    from chinchilla_lm.laws.planning.costs import CostModel
    from chinchilla_lm.laws.planning.design import Made, Rules, suggest_runs
    from chinchilla_lm.laws.planning.devices import budget_in_flops
    from chinchilla_lm.laws.table import read_runs

    output.require_picture()
    budget = parse_budget(aim.budget)
    flops = budget_in_flops(budget, machine.device(budget), machine.price)
    finished = None if runs is None else read_runs(runs, table.layout())
    belief, goal = believed.belief(finished), aim.asked(flops)
    made = suggest_runs(
        belief,
        goal,
        flops,
        space=allowed.space(flops),
        made=None if finished is None else Made(params=finished.params, tokens=finished.tokens),
        cost_model=CostModel(cooldown_fraction=allowed.branches or 1.0),
        rules=Rules(most_runs=allowed.most_runs),
    )
    console = Console(stderr=output.json, soft_wrap=True, highlight=False, markup=False)
    _print_design(made, belief, goal.flops, console)
    notes = [] if finished is None else list(finished.warnings)
    for note in notes:
        console.print(f"warning: {note}", style="yellow")
    if output.plot is not None:
        from chinchilla_lm.report.designs import save_design_picture  # cost: matplotlib, and only pictures need it

        already = () if finished is None else tuple(zip(finished.params, finished.tokens, strict=True))
        console.print(f"drawn: {save_design_picture(made, already, goal.flops, output.plot)}")
    if output.json:
        record = {**made.to_dict(), "target_flops": goal.flops, "belief": belief.source, "noise_sd": belief.noise_sd}
        print(json_format.dumps({**record, "warnings": notes}, allow_nan=False))


def _read_laws(text: str) -> tuple[tuple[Any, ...], str]:
    """Return a published additive law, or that of a law.json with some of its draws."""
    from chinchilla_lm.laws.forms.additive import AdditiveLaw
    from chinchilla_lm.laws.forms.record import law_from_dict
    from chinchilla_lm.laws.published import published_law

    laws: list[AdditiveLaw] = []
    path = Path(text)
    path = path / "law.json" if path.is_dir() else path
    if path.suffix == ".json":
        record: Any = read_json(path)
        if not isinstance(record, Mapping):
            raise PlanError(f"{path} holds no law; give a law.json that `chinchilla fit --json` wrote")
        found, source = law_from_dict(record), str(path)
        rows: list[Any] = list(record.get("draws") or ())
        for row in rows[:: max(1, len(rows) // _DRAWS)][:_DRAWS]:
            drawn = dict(zip(("E", "A", "B", "alpha", "beta"), row, strict=False))
            if isinstance(found, AdditiveLaw):
                laws.append(AdditiveLaw.from_dict({**drawn, "params_convention": found.params_convention}))
    else:
        published = published_law(text)
        found, source = published.law, f"{published.name}: {published.source}"
    if not isinstance(found, AdditiveLaw):
        raise PlanError(f"law {text!r} has no additive form, which the design differentiates; add --law besiroglu2024")
    return (found, *laws), source


def _print_design(made: Design, belief: Belief, target: float, console: Console) -> None:
    console.print(
        f"{len(made.runs)} runs for {format_flops(made.cost)} of {format_flops(made.budget)}, to know the best model "
        f"of {format_flops(target)}; believed: {belief.source}, noise {100 * belief.noise_sd:.2g} %"
    )
    grid = Table(box=None, pad_edge=False)
    for name in ("params", "tokens", "per param", "FLOPs", "cost", "seeds", "why"):
        grid.add_column(name, justify="left" if name == "why" else "right")
    for (params, tokens, role), costs in _merged(made).items():
        grid.add_row(
            format_count(params),
            format_count(tokens),
            f"{tokens / params:.3g}",
            f"{6 * params * tokens:.2e}",
            f"{sum(costs):.2e}",
            str(len(costs)),
            role,
        )
    console.print(grid)
    for answer, error in made.sd_after.items():
        before = made.sd_before[answer].total
        start = "unknown" if before > math.log(2) else f"known to {100 * math.expm1(before):.2g} %"
        console.print(
            f"{answer}: {start} before, known to {100 * math.expm1(error.total):.2g} % after "
            f"({100 * math.expm1(error.noise):.2g} % noise, {100 * math.expm1(error.misfit):.2g} % form)"
        )
    for reason in made.reasons:
        console.print(f"note: {reason}", style="yellow")


def _merged(made: Design) -> dict[tuple[float, float, str], list[float]]:
    """Gather the costs of runs that differ in the seed alone."""
    merged: dict[tuple[float, float, str], list[float]] = {}
    for run in made.runs:
        merged.setdefault((run.params, run.tokens, run.role), []).append(run.cost)
    return merged
