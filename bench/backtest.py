"""Replay the forecast on published sweeps: fit below a cut, predict about 3 and about 10 times above, compare.

Run: python bench/backtest.py [--json]. The sweeps lie in the folder laws/ of the shared data (CHINCHILLA_SHARED_DATA,
or ../shared/data beside the checkout); its README names their sources. The cases of one sweep share runs, so they are
not independent: read the table as "how often was it right on what we could find", not as a proof of calibration.

Truth of a case is the optimum of the hidden rung, as `laws.trust.bracket` reads it from all of the sweep's rungs.
Beside the forecast from rungs stands `laws.trust.calibration.predict`, which needs none: the way for a table of runs
that is no ladder.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from chinchilla_lm.laws.fitting.additive import fit_additive
from chinchilla_lm.laws.fitting.solver import centred_problem, centred_theta, natural_constants, refit
from chinchilla_lm.laws.table import RunTable
from chinchilla_lm.laws.trust.bracket import fit_bracket, sort_ladder
from chinchilla_lm.laws.trust.calibration import extrapolate
from chinchilla_lm.laws.trust.forecast import Run, Target, forecast

CHINCHILLA_BUDGETS = (6e18, 1e19, 3e19, 6e19, 1e20, 3e20, 6e20, 1e21, 3e21)  # Hoffmann et al. 2022, figure 3
BIN = math.log(10) / 2  # sweeps that are no IsoFLOP sweeps are cut into half-decades of compute
NEAR, FAR = (2.0, 5.5), (5.5, 18.0)  # compute of the hidden rung over the top rung seen: "about 3x" and "about 10x"
DRAWS = 100
COLUMNS = ("params", "tokens", "flops", "loss")
SEED_SD = {"chinchilla": 0.004}  # digitised colours; the others are runs as logged
DEFAULT_SEED_SD = 0.002


@dataclass(frozen=True, kw_only=True)
class Case:
    """One prediction of a hidden rung; losses in nats per token."""

    sweep: str
    n_rungs: int
    step: float
    actual: float
    point: float
    additive: float
    line: float
    low: float
    high: float
    established: bool
    bootstrap_point: float
    bootstrap_low: float
    bootstrap_high: float
    table_point: float
    table_low: float
    table_high: float


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print every case as one JSON document")
    wants_json = parser.parse_args(arguments).json
    named = os.environ.get("CHINCHILLA_SHARED_DATA")
    folder = (Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data") / "laws"
    cases: list[Case] = []
    for name, runs in read_sweeps(folder).items():
        cases.extend(replay(name, runs))
    if not cases:
        print(f"no sweep found in {folder}; set CHINCHILLA_SHARED_DATA to the shared data folder", file=sys.stderr)
        return 2
    if wants_json:
        print(json.dumps([asdict(case) for case in cases]))
        return 0
    print_table(cases)
    return 0


def read_sweeps(folder: Path) -> dict[str, list[Run]]:
    """Read what is there; say on stderr what is missing."""
    sweeps: dict[str, list[Run]] = {}
    for name, reader in READERS.items():
        file, rows_to_runs = reader
        path = folder / file
        if not path.is_file():
            print(f"{name}: {path} is missing, left out", file=sys.stderr)
            continue
        with path.open(newline="", encoding="utf-8") as lines:
            sweeps[name] = rows_to_runs(list(csv.DictReader(lines)))
    return sweeps


def replay(name: str, runs: Sequence[Run]) -> list[Case]:
    """Cut the sweep below each rung from the fourth up and predict the rungs about 3 and about 10 times above."""
    seed_sd = SEED_SD.get(name, DEFAULT_SEED_SD)
    whole = sort_ladder(runs)
    truth = fit_bracket(whole, seed_sd=seed_sd).rungs
    level = {run.rung: math.log(run.flops) for run in runs}
    order = sorted(level, key=lambda label: statistics.mean(math.log(run.flops) for run in runs if run.rung == label))
    cases: list[Case] = []
    for top in range(2, len(order) - 1):
        seen = [run for run in runs if run.rung in order[: top + 1]]
        if len(seen) < 8:
            continue
        table = extrapolate(as_table(seen))
        for hidden in truth[top + 1 :]:
            step = hidden.flops / truth[top].flops
            if not NEAR[0] <= step < FAR[1]:
                continue
            target = Target(params=hidden.params, tokens=hidden.tokens, flops=hidden.flops)
            made = forecast(seen, target, seed_sd=seed_sd, draws=DRAWS)
            point, low, high = pairs_bootstrap(seen, target)
            told = table.predict(hidden.params, hidden.tokens, hidden.flops)
            cases.append(
                Case(
                    sweep=name,
                    n_rungs=len(made.rungs),
                    step=step,
                    actual=hidden.loss,
                    point=made.loss,
                    additive=made.sources["additive"],
                    line=made.sources["line"],
                    low=made.low,
                    high=made.high,
                    established=made.established,
                    bootstrap_point=point,
                    bootstrap_low=low,
                    bootstrap_high=high,
                    table_point=told.loss,
                    table_low=told.low,
                    table_high=told.high,
                )
            )
    return cases


def as_table(runs: Sequence[Run]) -> RunTable:
    return RunTable(**{name: np.array([getattr(run, name) for run in runs]) for name in COLUMNS})


def pairs_bootstrap(runs: Sequence[Run], target: Target) -> tuple[float, float, float]:
    """The textbook interval: approach 3 alone, 5th and 95th percentile over resampled runs."""
    columns = [np.array([getattr(run, name) for run in runs]) for name in ("params", "tokens", "loss")]
    law = fit_additive(*columns, delta=1e-3).law
    problem = centred_problem(*columns, delta=1e-3)
    count = len(runs)
    weights = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=DRAWS).astype(float)
    draws = natural_constants(refit(centred_theta(law, *columns[:2]), problem, weight_kn=weights), *columns[:2])
    E, A, B, alpha, beta = draws.T  # noqa: N806 - the paper's letters
    losses = E + A / target.params**alpha + B / target.tokens**beta
    low, high = np.quantile(losses, [0.05, 0.95])
    return law.loss(target.params, target.tokens), float(low), float(high)


def print_table(cases: Sequence[Case]) -> None:
    print(
        f"{'':27} |{'forecast (90 % band)':>29} |{'predict (any table)':>29} |{'pairs bootstrap':>17} |"
        f"{'median error':>16}"
    )
    columns = f"{'inside':>8}{'|error|':>9}{'half-width':>12} |"
    heading = f"{'sweep':14}{'step':>6}{'cases':>7} |{columns}{columns}{'inside':>8}{'|error|':>9} |"
    print(f"{heading}{'additive':>9}{'line':>7}")
    names = [*dict.fromkeys(case.sweep for case in cases), "all", "established"]
    for name in names:
        for label, (least, most) in (("3x", NEAR), ("10x", FAR)):
            group = [
                case for case in cases if name in (case.sweep, "all") or (name == "established" and case.established)
            ]
            group = [case for case in group if least <= case.step < most]
            if group:
                print(table_row(name, label, group))


def table_row(name: str, label: str, group: Sequence[Case]) -> str:
    def error(field: str, *, absolute: bool) -> float:
        errors = [math.log(getattr(case, field) / case.actual) for case in group]
        return 100 * statistics.median([abs(value) for value in errors] if absolute else errors)

    def interval(prefix: str) -> str:
        inside = sum(getattr(case, prefix + "low") <= case.actual <= getattr(case, prefix + "high") for case in group)
        return f"{inside:4d} {100 * inside / len(group):2.0f}%{error(prefix + 'point', absolute=True):8.2f}%"

    def half_width(prefix: str) -> str:
        widths = [math.log(getattr(case, prefix + "high") / getattr(case, prefix + "low")) for case in group]
        return f"{50 * statistics.median(widths):11.2f}%"

    return (
        f"{name:14}{label:>6}{len(group):7d} |{interval('')}{half_width('')} |"
        f"{interval('table_')}{half_width('table_')} |"
        f"{interval('bootstrap_')} |{error('additive', absolute=False):+8.2f}%{error('line', absolute=False):+6.2f}%"
    )


def chinchilla_runs(rows: list[dict[str, str]]) -> list[Run]:
    runs: list[Run] = []
    for row in rows:
        flops = float(row["flops"])
        budget = min(CHINCHILLA_BUDGETS, key=lambda budget: abs(math.log(budget / flops)))
        if row["in_besiroglu_240"] == "True" and abs(math.log(flops / budget)) < 0.1:
            runs.append(_run(row, rung=f"{budget:g}"))
    return runs


def gadre_runs(rows: list[dict[str, str]], train_set: str) -> list[Run]:
    return [_run(row) for row in rows if row["train_dataset"] == train_set and 5 <= _tokens_per_param(row) <= 80]


def olmo_runs(rows: list[dict[str, str]]) -> list[Run]:
    # The 7B and 13B runs used another schedule and data stage; they are left out here.
    return [_run(row) for row in rows if not row["run"].startswith("peteish") and _tokens_per_param(row) <= 100]


def gemstones_runs(rows: list[dict[str, str]]) -> list[Run]:
    return [_run(row) for row in rows if row["split"] == "cool_end" and _tokens_per_param(row) <= 150]


def steplaw_runs(rows: list[dict[str, str]]) -> list[Run]:
    """The best of each (N, D)'s learning-rate and batch sweep."""
    best: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        key = (row["n_params"], row["n_tokens"])
        if key not in best or float(row["loss"]) < float(best[key]["loss"]):
            best[key] = row
    return [_run(row) for row in best.values() if _tokens_per_param(row) <= 150]


def _run(row: dict[str, str], rung: str | None = None) -> Run:
    flops = 6 * float(row["n_params"]) * float(row["n_tokens"])
    return Run(
        params=float(row["n_params"]),
        tokens=float(row["n_tokens"]),
        flops=flops,
        loss=float(row["loss"]),
        rung=rung or round(math.log(flops) / BIN),
    )


def _tokens_per_param(row: dict[str, str]) -> float:
    return float(row["n_tokens"]) / float(row["n_params"])


READERS = {
    "chinchilla": ("epoch_chinchilla.csv", chinchilla_runs),
    "gemstones": ("gemstones.csv", gemstones_runs),
    "gadre-c4": ("gadre_overtraining.csv", lambda rows: gadre_runs(rows, "c4_original")),
    "gadre-rpj": ("gadre_overtraining.csv", lambda rows: gadre_runs(rows, "rpj")),
    "gadre-rw": ("gadre_overtraining.csv", lambda rows: gadre_runs(rows, "rw_original")),
    "olmo-ladder": ("olmo_ladder_final.csv", olmo_runs),
    "steplaw": ("steplaw_dense.csv", steplaw_runs),
}

if __name__ == "__main__":
    sys.exit(main())
