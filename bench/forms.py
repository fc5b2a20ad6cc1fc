"""Which form extrapolates: fit below a tenth, a thirtieth and a hundredth of the compute, predict every run above.

Run: python bench/forms.py [--json]. The sweeps lie in the folder laws/ of the shared data (CHINCHILLA_SHARED_DATA, or
../shared/data beside the checkout). Errors are |ln predicted - ln actual| in per cent, by how many decades of compute
the run lies beyond the largest one fitted. Cases of one sweep and cut share a fit and are not independent; the last
columns give the mean over (sweep, cut) pairs, and how many of them each form wins against `additive`.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from chinchilla_lm.laws.fitting.form_fits import FormOptions, fit_form
from chinchilla_lm.laws.table import RunTable
from chinchilla_lm.laws.trust.selection import (
    FORMS,
    WEAK_PRIORS,
    RollingOrigin,
    form_fitter,
    rolling_origin,
    stack,
    stacked_fitter,
)

BINS = ((0.0, 0.6), (0.6, 1.2), (1.2, 2.1))
CUTS = (10.0, 30.0, 100.0)


def weighted(table: RunTable):
    weights = np.sqrt(table.flops / table.flops.max())
    options = FormOptions(weights=weights / weights.mean())
    return fit_form("additive", table.params, table.tokens, table.loss, options=options).law.loss


def with_prior(form):
    return form_fitter(form, None, FormOptions(priors=WEAK_PRIORS.get(form, {})))


MEMBERS = {form: with_prior(form) for form in FORMS}
FITTERS = {
    "additive": form_fitter("additive"),
    "additive, delta 1e-3": form_fitter("additive", 1e-3),
    "additive, sqrt(C) weights": weighted,
    "overtraining": form_fitter("overtraining"),
    "coupled": form_fitter("coupled"),
    **{f"{form}, weak prior": with_prior(form) for form in WEAK_PRIORS},
    "kaplan": MEMBERS["kaplan"],
    "stacked, own back-tests": stacked_fitter(MEMBERS),
}
STACKED = ("additive, weak prior", "overtraining, weak prior", "kaplan", "coupled, weak prior")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    wants_json = parser.parse_args(arguments).json
    named = os.environ.get("CHINCHILLA_SHARED_DATA")
    folder = (Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data") / "laws"
    tests = {name: replay(table) for name, table in read_tables(folder).items()}
    if not tests:
        print(f"no sweep found in {folder}; set CHINCHILLA_SHARED_DATA to the shared data folder", file=sys.stderr)
        return 2
    errors = errors_of(tests)
    if wants_json:
        print(json.dumps({name: {"decades": list(d), "error": list(e)} for name, (d, e, _) in errors.items()}))
        return 0
    print_table(tests, errors)
    return 0


def read_tables(folder: Path) -> dict[str, RunTable]:
    """All runs of each public sweep that has sizes and tokens; read by name, and missing files said on stderr."""
    tables: dict[str, RunTable] = {}
    for name, (file, keep) in SETS.items():
        path = folder / file
        if not path.is_file():
            print(f"{name}: {path} is missing, left out", file=sys.stderr)
            continue
        with path.open(newline="", encoding="utf-8") as lines:
            rows = keep(list(csv.DictReader(lines)))
        params, tokens, loss = (
            np.array([float(row[column]) for row in rows]) for column in ("n_params", "n_tokens", "loss")
        )
        tables[name] = RunTable(params=params, tokens=tokens, flops=6.0 * params * tokens, loss=loss)
    return tables


def best_of_each(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The best of each (N, D)'s sweep of learning rates and batches."""
    best: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        key = (row["n_params"], row["n_tokens"])
        if key not in best or float(row["loss"]) < float(best[key]["loss"]):
            best[key] = row
    return list(best.values())


def where(column: str, value: str):
    return lambda rows: [row for row in rows if row[column] == value]


SETS = {
    "chinchilla": ("epoch_chinchilla.csv", where("in_besiroglu_240", "True")),
    "gemstones": ("gemstones.csv", where("split", "cool_end")),
    "gadre-c4": ("gadre_overtraining.csv", where("train_dataset", "c4_original")),
    "gadre-rpj": ("gadre_overtraining.csv", where("train_dataset", "rpj")),
    "gadre-rw": ("gadre_overtraining.csv", where("train_dataset", "rw_original")),
    "olmo-ladder": ("olmo_ladder_final.csv", lambda rows: rows),
    "steplaw": ("steplaw_dense.csv", best_of_each),
}


def replay(table: RunTable) -> RollingOrigin:
    return rolling_origin(table, FITTERS, [float(table.flops.max()) / ratio for ratio in CUTS])


def errors_of(tests: dict[str, RollingOrigin]) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Decades, |error| in per cent and the (sweep, cut) of every case, for each form and for the ways to mix them.

    Weights learnt on the same sweep's other cuts would know runs that a forecaster has not seen; these do not.
    """
    decades = np.concatenate([test.decades for test in tests.values()])
    origin = np.concatenate([[f"{name} {cut:.2e}" for cut in test.cut_flops] for name, test in tests.items()])
    by_name = {name: np.concatenate([test.errors(name) for test in tests.values()]) for name in FITTERS}
    by_name["mean of the four forms"] = np.mean([by_name[name] for name in STACKED], axis=0)
    by_name["mean of additive, coupled w."] = (by_name["additive"] + by_name["coupled, weak prior"]) / 2
    by_name["stacked, other sweeps"] = np.concatenate([across(name, tests) for name in tests])
    return {name: (decades, 100 * np.abs(errors), origin) for name, errors in by_name.items()}


def across(name: str, tests: dict[str, RollingOrigin]) -> np.ndarray:
    """The stack whose weights are the mean of those learnt on the other sweeps (Gadre's three count as one)."""
    family = name.split("-")[0]
    others = [stack(test, STACKED) for other, test in tests.items() if other.split("-")[0] != family and test.cuts]
    weights = [float(np.mean([weights[form] for weights in others])) for form in STACKED]
    return np.array(weights) @ np.stack([tests[name].errors(form) for form in STACKED])


def print_table(tests: dict[str, RollingOrigin], errors: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]) -> None:
    for name, test in tests.items():
        print(f"{name:12} {len(test.cuts)} cuts, {len(test.actual)} cases", file=sys.stderr)
    heads = "".join(f"{f'{low}-{high} dec':>12}" for low, high in BINS)
    print(f"{'form':29}{heads}{'p90 far':>9}{'by cut':>9}{'wins':>7}")
    base = errors["additive"]
    for name, (decades, percent, origin) in errors.items():
        known = np.isfinite(percent)
        cells = "".join(f"{percent[known & (decades > low) & (decades <= high)].mean():12.2f}" for low, high in BINS)
        far = known & (decades > BINS[2][0]) & (decades <= BINS[2][1])
        pairs = [origin == label for label in dict.fromkeys(origin[known].tolist())]
        ours = np.array([percent[pair].mean() for pair in pairs])
        theirs = np.array([base[1][pair].mean() for pair in pairs])
        wins = f"{int((ours < theirs).sum())}/{len(pairs)}"
        print(f"{name:29}{cells}{np.quantile(percent[far], 0.9):9.2f}{np.nanmean(ours):9.2f}{wins:>7}")


if __name__ == "__main__":
    sys.exit(main())
