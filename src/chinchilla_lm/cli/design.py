"""`chinchilla design`: a budget -> the runs to make next, what each costs, and what precision they buy.

With --json, exactly one JSON document goes to stdout; what is meant for people goes to stderr.
Imports of the laws stand inside the function, so that `chinchilla --help` need not wait for numpy.
"""

from __future__ import annotations

import json as json_format
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from chinchilla_lm.cli.compare import require_picture
from chinchilla_lm.cli.fit import TableOptions
from chinchilla_lm.core.errors import PlanError
from chinchilla_lm.core.files import read_json
from chinchilla_lm.core.units import format_count, format_flops, parse_budget, parse_count
from chinchilla_lm.laws.count import ParamsConvention

if TYPE_CHECKING:
    from chinchilla_lm.laws.planning.design import Design
    from chinchilla_lm.laws.planning.precision import Belief, Misfit
    from chinchilla_lm.laws.table import RunTable

JsonFlag = Annotated[bool, Parameter(name="--json", negative="")]

_TABLE = TableOptions()
_TARGET_OVER_BUDGET = 100.0  # by default, the model in question costs so many times the sweep
_LARGEST_SHARE = 0.4  # by default, of the budget, what one run may cost
_LEAST_SHARE, _SMALLEST_FLOPS = 0.003, 1e12  # by default, of the largest run, the least; below 1e12 laws bend
_DRAWS = 8


def design(  # noqa: PLR0913 - a command has as many arguments as options
    runs: Path | None = None,
    *,
    budget: str,
    target_flops: str | None = None,
    goal: Literal["both", "size", "loss"] = "both",
    law: str | None = None,
    branches: float = 0.0,
    largest_run_flops: str | None = None,
    least_run_flops: str | None = None,
    tokens_per_param: tuple[float, float] = (1.0, 400.0),
    most_runs: int = 40,
    noise_sd: float | None = None,
    trust_form: Annotated[bool, Parameter(negative="")] = False,
    hardware: str | None = None,
    mfu: float = 0.4,
    price: float | None = None,
    params_convention: ParamsConvention = "total",
    table: TableOptions = _TABLE,
    plot: Path | None = None,
    json: JsonFlag = False,
) -> None:  # fmt: skip
    """Choose the runs that tell most for a budget: sizes, lengths, costs, and what precision they buy.

    Args:
        runs: A CSV file of the runs already made, with columns n_params, n_tokens and loss; none starts a sweep.
        budget: What the new runs may cost: 1e20 (FLOPs), 5m, 2h, "8 H100-hours" or "$50".
        target_flops: The compute of the model in question; by default 100 times the budget.
        goal: What is to be known of it: its best size, its loss, or both.
        law: A published additive law or a law.json, instead of a fit of the runs or all published laws.
        branches: Share of a run that is cooldown, such as .2, to branch runs off one trunk; 0 makes separate runs.
        largest_run_flops: The most that a run may cost; by default .4 of the budget.
        least_run_flops: The least that a run may cost; by default .003 of the largest, and 1e12.
        tokens_per_param: Least and largest tokens per parameter.
        most_runs: Of new ones.
        noise_sd: Of ln loss between seeds; by default what the runs show, or .003.
        trust_form: Leave out the precautions against a law of another form.
        hardware: For budgets of time or money: H100, 8xH100, or a speed in FLOP/s.
        mfu: Share of the hardware's peak that training reaches.
        price: Dollars for one device-hour.
        params_convention: Which weights n_params counts.
        table: How the file is written.
        plot: Draw the runs and what they buy into this .png or .svg file.
        json: Print one JSON document.
    """
    from chinchilla_lm.laws.planning.candidates import Space
    from chinchilla_lm.laws.planning.costs import CostModel
    from chinchilla_lm.laws.planning.design import Made, Rules, suggest_runs
    from chinchilla_lm.laws.planning.devices import budget_in_flops, find_device
    from chinchilla_lm.laws.planning.precision import Goal, Misfit
    from chinchilla_lm.laws.table import read_runs

    require_picture(plot)
    device = None if hardware is None else find_device(hardware, mfu)
    flops = budget_in_flops(parse_budget(budget), device, price)
    finished = None if runs is None else read_runs(runs, table.layout())
    misfit = Misfit(coupling=0.0, drift=0.0, small_scale=0.0) if trust_form else Misfit()
    belief = _belief(law, finished, noise_sd=noise_sd, misfit=misfit, params_convention=params_convention)
    largest = _LARGEST_SHARE * flops if largest_run_flops is None else parse_count(largest_run_flops)
    target = _TARGET_OVER_BUDGET * flops if target_flops is None else parse_count(target_flops)
    if not 0 <= branches < 1:
        raise PlanError(f"--branches {branches:g} must be in [0, 1), the share of a run that is cooldown; .2 is common")
    made = suggest_runs(
        belief,
        Goal(flops=target, answers=("size", "loss") if goal == "both" else (goal,)),
        flops,
        space=Space(
            flops_low=_least(largest) if least_run_flops is None else parse_count(least_run_flops),
            flops_high=largest,
            tokens_per_param_low=tokens_per_param[0],
            tokens_per_param_high=tokens_per_param[1],
        ),
        made=None if finished is None else Made(params=finished.params, tokens=finished.tokens),
        cost_model=CostModel(cooldown_fraction=branches or 1.0),
        rules=Rules(most_runs=most_runs),
    )
    notes = list(() if finished is None else finished.warnings)
    record = {**made.to_dict(), "target_flops": target, "belief": belief.source, "noise_sd": belief.noise_sd}
    record["warnings"] = notes
    console = Console(stderr=json, soft_wrap=True, highlight=False, markup=False)
    _print_design(made, belief, target, console)
    for note in notes:
        console.print(f"warning: {note}", style="yellow")
    if plot is not None:
        from chinchilla_lm.report.designs import save_design_picture  # cost: matplotlib, and only pictures need it

        already = () if finished is None else tuple(zip(finished.params, finished.tokens, strict=True))
        console.print(f"drawn: {save_design_picture(made, already, target, plot)}")
    if json:
        print(json_format.dumps(record, allow_nan=False))


def _least(largest: float) -> float:
    return max(_LEAST_SHARE * largest, min(_SMALLEST_FLOPS, 0.1 * largest))


def _belief(
    law: str | None,
    runs: RunTable | None,
    *,
    noise_sd: float | None,
    misfit: Misfit,
    params_convention: ParamsConvention,
) -> Belief:
    from chinchilla_lm.laws.planning.belief import SEED_SD, fitted_belief, published_belief
    from chinchilla_lm.laws.planning.precision import Belief

    if law is not None:
        laws, source = _given_laws(law)
        return Belief(laws=laws, noise_sd=noise_sd or SEED_SD, misfit=misfit, source=source)
    if runs is None:
        return published_belief(params_convention=params_convention, noise_sd=noise_sd or SEED_SD, misfit=misfit)
    return fitted_belief(
        runs.params, runs.tokens, runs.loss, params_convention=params_convention, noise_sd=noise_sd, misfit=misfit
    )


def _given_laws(text: str) -> tuple[tuple[Any, ...], str]:
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
