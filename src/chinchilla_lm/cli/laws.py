"""The command on scaling laws: `fit` (runs -> law); `plan` stands in `cli.plan`.

With --json, exactly one JSON document goes to stdout; what is meant for people goes to stderr.
Imports of the laws stand inside the functions, so that `chinchilla --help` need not wait for numpy.
"""

from __future__ import annotations

import json as json_format
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from chinchilla_lm.core.errors import PlanError
from chinchilla_lm.core.units import format_count, format_flops, parse_count
from chinchilla_lm.laws.count import ParamsConvention

JsonFlag = Annotated[bool, Parameter(name="--json", negative="")]

# Huber's turn in ln L: 1e-9 is least absolute deviations to five digits on Epoch's runs, 1 is least squares of logs.
_DELTAS = {"lad": 1e-9, "ls": 1.0}


def fit(  # noqa: PLR0913 - a command has as many arguments as options
    runs: Path,
    *,
    method: Literal["parametric", "isoflop", "all"] = "parametric",
    form: Literal["additive"] = "additive",
    loss: Literal["huber", "lad", "ls"] = "huber",
    delta: float = 1e-3,
    bootstrap: int = 400,
    target_flops: str | None = None,
    params_convention: ParamsConvention = "total",
    params_column: str | None = None,
    tokens_column: str | None = None,
    flops_column: str | None = None,
    loss_column: str | None = None,
    seed: int = 0,
    json: JsonFlag = False,
) -> None:  # fmt: skip
    """Fit a scaling law to finished runs.

    Args:
        runs: A CSV file with columns n_params, n_tokens, flops and loss.
        method: parametric (five constants), isoflop (a parabola for each compute), or all.
        form: additive: E + A/N^alpha + B/D^beta.
        loss: What is least: huber of log residuals, lad (their absolute values) or ls (their squares).
        delta: Where huber turns from square to straight.
        bootstrap: Resamples for the intervals; 0 for none.
        target_flops: Also forecast the best loss at this compute, such as 1e22.
        params_convention: Which weights n_params counts.
        params_column: The file's name for n_params.
        tokens_column: The file's name for n_tokens.
        flops_column: The file's name for flops.
        loss_column: The file's name for loss.
        seed: Of the resampling.
        json: Print one JSON document.
    """
    from chinchilla_lm.laws.fitting.additive import fit_additive
    from chinchilla_lm.laws.fitting.isoflop import fit_isoflop
    from chinchilla_lm.laws.table import read_runs
    from chinchilla_lm.laws.trust.rolling import forecast_optimum, predict_largest

    own_names = {"params": params_column, "tokens": tokens_column, "flops": flops_column, "loss": loss_column}
    table = read_runs(runs, {column: name for column, name in own_names.items() if name is not None})
    record: dict[str, Any] = {"method": method, "form": form}
    warnings = list(table.warnings)
    turn = _DELTAS.get(loss, delta)
    if method != "isoflop":
        found = fit_additive(table.params, table.tokens, table.loss, delta=turn, bootstrap=bootstrap, seed=seed)
        found = replace(found, law=replace(found.law, params_convention=params_convention))
        record = {**found.to_dict(), **record}
        warnings.extend(found.warnings)
        tested = predict_largest(table, delta=turn)
        record["backtest"] = None if tested is None else tested.to_dict()
        if target_flops is not None:
            ahead = forecast_optimum(table, found.law, parse_count(target_flops))
            record["forecast"] = {**ahead.to_dict(), "params": ahead.target.params}
    elif target_flops is not None:
        raise PlanError("--target-flops needs a loss for every size; add --method parametric or all")
    if method != "parametric":
        valleys = fit_isoflop(table.params, table.flops, table.loss, params_convention=params_convention)
        record = {**record, "isoflop": valleys.to_dict()} if method == "all" else {**valleys.to_dict(), **record}
        warnings.extend(valleys.warnings)
    record["largest_flops"] = float(table.flops.max())
    record["warnings"] = warnings
    _print_fit(record, Console(stderr=json))
    if json:
        print(json_format.dumps(record, allow_nan=False))


def _print_fit(record: Mapping[str, Any], console: Console) -> None:
    rows: list[tuple[str, str]] = []
    for name in ("E", "A", "B", "alpha", "beta", "a", "b"):
        if name in record:
            interval = record.get("intervals", {}).get(name)
            spread = f"   95 %: {interval['low']:.5g} to {interval['high']:.5g}" if interval else ""
            rows.append((name, f"{record[name]:.6g}{spread}"))
    if "objective" in record:
        rows.append(("objective", f"{record['objective']:.6e} over {record['n_runs']} runs ({record['status']})"))
    if record.get("backtest"):
        tested = record["backtest"]
        rows.append(
            (
                "back-test",
                f"the {tested['n_predicted']} runs above {format_flops(tested['cut_flops'])} are missed by "
                f"{tested['median_error_percent']:.2f} % (median), bias {tested['bias_percent']:+.2f} %",
            )
        )
    if "forecast" in record:
        ahead = record["forecast"]
        sure = "" if ahead["established"] else " (not established)"
        rows.append(
            (
                "forecast",
                f"{ahead['loss']:.4f}, 90 % between {ahead['low']:.4f} and {ahead['high']:.4f}{sure}, with "
                f"{format_count(ahead['params'])} parameters at {format_flops(ahead['flops'])}",
            )
        )
    valleys = record.get("isoflop", record if record["method"] == "isoflop" else None)
    if valleys is not None:
        rows.append(("isoflop a", f"{valleys['a']:.4f} over {len(valleys['budgets'])} budgets"))
    _print_rows(rows, console)
    for warning in (*record["warnings"], *record.get("forecast", {}).get("reasons", ())):
        console.print(f"warning: {warning}", style="yellow", soft_wrap=True, markup=False)


def _print_rows(rows: list[tuple[str, str]], console: Console) -> None:
    grid = Table.grid(padding=(0, 2))
    for name, text in rows:
        grid.add_row(name, text)
    console.print(grid)
