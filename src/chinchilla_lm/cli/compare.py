"""`chinchilla compare`: two recipes' runs -> how much less compute the second needs for the same loss.

With --json, exactly one JSON document goes to stdout; what is meant for people goes to stderr.
Imports of the laws stand inside the function, so that `chinchilla --help` need not wait for numpy.
"""

from __future__ import annotations

import json as json_format
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Group, Parameter
from rich.console import Console
from rich.table import Table

from chinchilla_lm.cli.options import OutputOptions, TableOptions
from chinchilla_lm.core.units import format_flops, parse_count

if TYPE_CHECKING:
    from chinchilla_lm.laws.trust.multiplier import Multiplier


@Parameter(name="*", group=Group("How to compare", sort_key=1))
@dataclass(frozen=True, kw_only=True)
class ComparisonOptions:
    """How the multiplier is found."""

    method: Literal["auto", "laws", "shared", "lines"] = "auto"
    """laws (a law for each), shared (one law and a multiplier), lines (runs that are best for their compute)."""
    at_flops: str | None = None
    """A compute of recipe A, such as 1e20; by default the middle of what both cover."""
    checkpoints: Annotated[bool, Parameter(negative="")] = False
    """Lines of one size are checkpoints or branches of one run, whose errors go together."""
    seed: int = 0
    """Of the draws behind the interval."""


_HOW, _TABLE, _OUTPUT = ComparisonOptions(), TableOptions(), OutputOptions()


def compare(
    a: Path,
    b: Path,
    *,
    how: ComparisonOptions = _HOW,
    table: TableOptions = _TABLE,
    output: OutputOptions = _OUTPUT,
) -> None:
    """Compare two training recipes: how much less compute does B need for A's loss?

    --plot draws both recipes and the multiplier.

    Args:
        a: A CSV file of recipe A's runs, with columns n_params, n_tokens and loss; the recipe to be compared with.
        b: A CSV file of recipe B's runs, its losses on the same text with the same tokenizer.
        how: How the multiplier is found.
        table: How both files are written.
        output: What is written.
    """
    from chinchilla_lm.laws.table import read_runs
    from chinchilla_lm.laws.trust.multiplier import compare_recipes

    output.require_picture()
    layout = table.layout()
    runs_a, runs_b = read_runs(a, layout), read_runs(b, layout)
    found = compare_recipes(
        runs_a,
        runs_b,
        method=None if how.method == "auto" else how.method,
        at_flops=None if how.at_flops is None else parse_count(how.at_flops),
        is_clustered=how.checkpoints,
        seed=how.seed,
    )
    console = Console(stderr=output.json, soft_wrap=True, highlight=False, markup=False)
    _print_multiplier(found, (a.name, b.name), console)
    if output.plot is not None:
        from chinchilla_lm.report.comparisons import save_comparison_picture  # cost: matplotlib

        names = (a.stem, b.stem) if a.stem != b.stem else ("A", "B")
        console.print(f"drawn: {save_comparison_picture(found, (runs_a, runs_b), names, output.plot)}")
    if output.json:
        print(json_format.dumps(found.to_dict(), allow_nan=False))


def _print_multiplier(found: Multiplier, names: tuple[str, str], console: Console) -> None:
    point = found.point
    side = "less" if point.multiplier >= 1 else "more"
    times = [number if side == "less" else 1 / number for number in (point.multiplier, point.low, point.high)]
    console.print(
        f"{names[1]} reaches the loss of {names[0]} with {times[0]:.3g} times {side} compute "
        f"(90 %: {min(times[1:]):.3g} to {max(times[1:]):.3g}) at {format_flops(point.flops)}, loss {point.loss:.4g}"
    )
    grid = Table(box=None, pad_edge=False)
    for name in ("compute of A", "loss", "multiplier", "90 % from", "to"):
        grid.add_column(name, justify="right")
    for each in found.points:
        row = (f"{each.multiplier:.3g}", f"{each.low:.3g}", f"{each.high:.3g}")
        grid.add_row(format_flops(each.flops), f"{each.loss:.4g}", *row)
    console.print(grid)
    trend = found.trend
    if trend is not None:
        said = "changes" if trend.is_seen else "no trend is seen: it changes"
        console.print(
            f"with scale: {said} by a factor {trend.per_decade:.3g} a decade "
            f"(90 %: {trend.low:.3g} to {trend.high:.3g})"
        )
    pairs = "drawn in pairs" if found.is_paired else "drawn apart"
    console.print(f"method: {found.method}, {found.n_a} and {found.n_b} runs, {pairs}")
    for warning in found.warnings:
        console.print(f"warning: {warning}", style="yellow")
