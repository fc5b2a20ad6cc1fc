"""How long a full fit of the additive law takes, and its bootstrap, against what others do on the same 240 points.

Run: python bench/fit_speed.py [--starts 450] [--chinchilla FOLDER] [--simple-scaling-laws FOLDER] [--json]. The points
are epoch_chinchilla.csv in the folder laws/ of the shared data (CHINCHILLA_SHARED_DATA, or ../shared/data beside the
checkout). The peers come from PyPI, each in a folder of its own that is not ours:

    pip install --target FOLDER chinchilla==0.2.0
    pip install --target FOLDER simple-scaling-laws==0.2.0    (asks for Python 3.12 or later)

A contender whose folder is not named is left out. Each runs in its own process with one thread; times are medians over
repeats, in CPU seconds (the machine may be shared) and in wall seconds. "The paper's objective" is the sum over runs of
Huber's loss with delta = 1e-3; its least value on these points is 1.0182740e-3. Where only a part of the starts or
resamples was run, the time of all of them is that part's times the ratio, and the row says so.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from machine import print_table, run_child, write_result

RESAMPLES = 4000  # Besiroglu et al. 2024
PAPER_STARTS = 4500  # Hoffmann et al. 2022, appendix D.3
README_STARTS = 3125  # the example grid of chinchilla's README, 5 values of each of 5 constants
DELTA = 1e-3
FIT_TARGET_S, BOOTSTRAP_TARGET_S, OBJECTIVE_TARGET = 0.05, 3.0, 1.0182741e-3


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=11, help="of our fit; the bootstrap is repeated 3 times")
    parser.add_argument("--starts", type=int, default=450, help="of the paper's 4,500, for scipy")
    parser.add_argument("--chinchilla", help="folder where chinchilla 0.2.0 was installed")
    parser.add_argument("--simple-scaling-laws", help="folder where simple-scaling-laws was installed")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON document")
    parser.add_argument("--contender", choices=tuple(CONTENDERS), help=argparse.SUPPRESS)
    parser.add_argument("--result", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.contender:
        write_result(asked.result, {"rows": CONTENDERS[asked.contender](asked)})
        return 0
    folders = {"chinchilla": asked.chinchilla, "simple-scaling-laws": asked.simple_scaling_laws}
    rows, failed = [], []
    for name in CONTENDERS:
        if name in folders and folders[name] is None:
            failed.append(f"{name}: not run; install it into a folder of its own and name that with --{name}")
            continue
        # A peer's folder stands behind our own packages, so that both use the same numpy and scipy.
        extra = {"PEER_FOLDER": folders.get(name) or ""}
        child = run_child(
            Path(__file__),
            ["--contender", name, "--repeats", str(asked.repeats), "--starts", str(asked.starts)],
            threads=1,
            extra=extra,
        )
        rows += child.get("rows", [])
        if "error" in child:
            failed.append(f"{name}: {child['error']}")
    report(rows, failed)
    if asked.json:
        print(json.dumps({"rows": rows, "failed": failed}, allow_nan=False))
    return 0 if any(row["name"].startswith("ours") for row in rows) else 1


def report(rows: list[dict], failed: list[str]) -> None:
    for kind, title in (("fit", "One fit"), ("bootstrap", f"{RESAMPLES:,} resamples")):
        group = [row for row in rows if row["kind"] == kind]
        if not group:
            continue
        ours = group[0]["cpu_s"]
        cells = [
            [
                row["name"],
                _seconds(row["cpu_s"]),
                _seconds(row["wall_s"]),
                f"{row['cpu_s'] / ours:,.0f}x" if row is not group[0] else "1",
                f"{row['objective']:.7e}" if row.get("objective") else "",
                f"{row['a']:.4f}" if row.get("a") else "",
                row["note"],
            ]
            for row in group
        ]
        header = ["contender", "CPU", "wall", "CPU ratio", "paper's objective", "a", "measured"]
        print_table(f"{title} (240 points, one thread)", header, cells)
    ours = {row["kind"]: row for row in reversed(rows) if row["name"].startswith("ours: ")}
    if {"fit", "bootstrap"} <= set(ours):
        fit, bootstrap = ours["fit"], ours["bootstrap"]
        print(
            f"\ntargets: fit {1e3 * fit['cpu_s']:.1f} ms CPU of {1e3 * FIT_TARGET_S:.0f}, objective "
            f"{fit['objective']:.8e} of {OBJECTIVE_TARGET:.7e}, bootstrap {bootstrap['cpu_s']:.2f} s CPU of "
            f"{BOOTSTRAP_TARGET_S:.0f}",
            file=sys.stderr,
        )
    for line in failed:
        print(f"not measured: {line}", file=sys.stderr)


def _seconds(value: float) -> str:
    return f"{1e3 * value:.1f} ms" if value < 1 else f"{value:,.2f} s" if value < 100 else f"{value:,.0f} s"


def ours(asked: argparse.Namespace) -> list[dict]:
    from chinchilla_lm.laws.fitting.additive import fit_additive
    from chinchilla_lm.laws.fitting.starts import fit_from_starts

    columns = read_points()
    fits = [timed(lambda: fit_additive(*columns, delta=DELTA)) for _ in range(asked.repeats)]
    scaled = [timed(lambda: fit_additive(*columns)) for _ in range(asked.repeats)]
    draws = [timed(lambda: fit_additive(*columns, delta=DELTA, bootstrap=RESAMPLES)) for _ in range(3)]
    starts = [timed(lambda: fit_from_starts(*columns))]
    found, batch = fits[0][0], starts[0][0]
    paper = {"objective": found.objective, "a": found.law.a}
    se = draws[0][0].intervals["a"].se
    reached = f"all {batch.n_starts:,} starts, once; {batch.n_reached:,} reach it"
    return [
        row("ours: fit_additive(delta=1e-3)", "fit", fits, f"median of {asked.repeats}", **paper),
        row("ours: fit_additive(), delta scaled to the noise", "fit", scaled, f"median of {asked.repeats}",
            objective=paper_objective(scaled[0][0].law), a=scaled[0][0].law.a),
        row("ours: from the paper's 4,500 starts", "fit", starts, reached, objective=batch.objective, a=batch.law.a),
        row("ours: pairs, delta=1e-3", "bootstrap", draws, f"median of 3, fit included; se of a {se:.4f}"),
    ]  # fmt: skip


def scipy_starts(asked: argparse.Namespace) -> list[dict]:
    """The paper's method as its readers write it: scipy's L-BFGS-B from a grid, the sum of Huber's losses."""
    from scipy.optimize import minimize

    params, tokens, loss = read_points()
    log_n, log_d, log_l = np.log(params), np.log(tokens), np.log(loss)

    def value(theta: np.ndarray) -> float:
        terms = [theta[0] - theta[3] * log_n, theta[1] - theta[4] * log_d, np.full_like(log_n, theta[2])]
        return float(huber(np.logaddexp.reduce(terms) - log_l).sum())

    def value_and_slope(theta: np.ndarray) -> tuple[float, np.ndarray]:
        terms = np.stack([theta[0] - theta[3] * log_n, theta[1] - theta[4] * log_d, np.full_like(log_n, theta[2])])
        total = np.logaddexp.reduce(terms)
        residual, share = total - log_l, np.exp(terms - total)
        pull = np.clip(residual, -DELTA, DELTA)
        slopes = [pull @ share[0], pull @ share[1], pull @ share[2], -pull @ (share[0] * log_n)]
        return float(huber(residual).sum()), np.array([*slopes, -pull @ (share[1] * log_d)])

    every = np.array(
        list(itertools.product(range(0, 26, 5), range(0, 26, 5), np.arange(-1, 1.1, 0.5), np.arange(0, 2.1, 0.5),
                               np.arange(0, 2.1, 0.5))), dtype=float,
    )  # fmt: skip
    rows = []
    for name, function, has_slope, count in (
        ("scipy L-BFGS-B, gradient given", value_and_slope, True, asked.starts),
        ("scipy L-BFGS-B, finite differences", value, False, max(asked.starts // 3, 1)),
    ):
        chosen = every[np.linspace(0, len(every) - 1, count).astype(int)]
        ends, cpu, wall = timed(
            lambda function=function, has_slope=has_slope, chosen=chosen: [
                minimize(function, start, jac=has_slope, method="L-BFGS-B") for start in chosen
            ]
        )
        best = min(ends, key=lambda end: end.fun)
        reached = sum(end.fun < best.fun * (1 + 1e-3) for end in ends)
        scale = PAPER_STARTS / count
        note = f"{count} of 4,500 starts x {scale:g}; {100 * reached / count:.0f} % within .1 % of its best"
        a = best.x[4] / (best.x[3] + best.x[4])
        rows.append(row(name, "fit", [(None, cpu * scale, wall * scale)], note, objective=best.fun, a=a))
        if has_slope:
            rows.append(scipy_bootstrap(best.x, value_and_slope, (log_n, log_d, log_l)))
    return rows


def scipy_bootstrap(start: np.ndarray, _value, columns: tuple) -> dict:
    """Refit resamples one by one from the optimum, with BFGS and the gradient."""
    from scipy.optimize import minimize

    rng = np.random.default_rng(0)
    count = 100

    def refit_all() -> None:
        for _ in range(count):
            chosen = rng.integers(len(columns[0]), size=len(columns[0]))
            log_n, log_d, log_l = (column[chosen] for column in columns)

            def value_and_slope(theta, log_n=log_n, log_d=log_d, log_l=log_l):
                terms = np.stack([theta[0] - theta[3] * log_n, theta[1] - theta[4] * log_d, 0 * log_n + theta[2]])
                total = np.logaddexp.reduce(terms)
                residual, share = total - log_l, np.exp(terms - total)
                pull = np.clip(residual, -DELTA, DELTA)
                slopes = [pull @ share[0], pull @ share[1], pull @ share[2], -pull @ (share[0] * log_n)]
                return float(huber(residual).sum()), np.array([*slopes, -pull @ (share[1] * log_d)])

            minimize(value_and_slope, start, jac=True, method="BFGS")

    _, cpu, wall = timed(refit_all)
    scale = RESAMPLES / count
    note = f"{count} of {RESAMPLES:,} resamples x {scale:g}, one start each"
    return row("scipy BFGS, gradient given", "bootstrap", [(None, cpu * scale, wall * scale)], note)


def chinchilla_package(_asked: argparse.Namespace) -> list[dict]:
    """chinchilla 0.2.0: BFGS by finite differences in long doubles from every point of a grid, mean of losses."""
    sys.path.append(os.environ["PEER_FOLDER"])
    from chinchilla import Chinchilla
    from chinchilla._metrics import log_huber

    params, tokens, loss = read_points()
    # Two values a constant around where laws lie; its README takes five.
    grid = {"E": [1.5, 2.0], "a": [4, 8], "b": [4, 8], "alpha": [0.25, 0.5], "beta": [0.25, 0.5]}
    with tempfile.TemporaryDirectory() as folder:
        peer = Chinchilla(folder, grid, loss_fn=paper_loss(log_huber), log_level=60)
        for n, d, value in zip(params, tokens, loss, strict=True):
            peer.database.df.loc[len(peer.database.df)] = [6 * n * d, n, d, value]
        _, cpu, wall = timed(lambda: peer.fit(parallel=False))
    count = math.prod(len(values) for values in grid.values())
    scale = README_STARTS / count
    constants = (peer.E, peer.A, peer.B, peer.alpha, peer.beta)
    from chinchilla_lm.laws.forms.additive import AdditiveLaw

    law = AdditiveLaw(**dict(zip(("E", "A", "B", "alpha", "beta"), map(float, constants), strict=True)))
    note = f"{count} of its README's {README_STARTS:,} starts x {scale:.3g}, log-Huber, delta=1e-3, its plot included"
    return [
        row("chinchilla 0.2.0", "fit", [(None, cpu * scale, wall * scale)], note,
            objective=paper_objective(law), a=law.a)
    ]  # fmt: skip


def paper_loss(log_huber: Callable) -> Callable:
    return lambda y_true, y_pred: log_huber(y_true, y_pred, delta=DELTA)


def simple_scaling_laws(_asked: argparse.Namespace) -> list[dict]:
    """simple-scaling-laws 0.2.0: variable projection and least squares of the loss; wild cluster bootstrap."""
    sys.path.append(os.environ["PEER_FOLDER"])
    import polars
    from simple_scaling_laws import fit

    params, tokens, loss = read_points()
    frame = polars.DataFrame(
        {
            "training_run_id": [f"run{number}" for number in range(len(loss))],
            "model_size__n_params": params,
            "dataset_size__n_tokens": tokens,
            "test_loss__cross_entropy": loss,
        }
    )
    fits = [timed(lambda: fit(frame, law="separable-power", n_draws=2, seed=0)) for _ in range(5)]
    count = 1000
    draws = timed(lambda: fit(frame, law="separable-power", n_draws=count, seed=0))
    found = fits[0][0].params("test_loss__cross_entropy")
    a = found["beta"] / (found["alpha"] + found["beta"])
    scale = RESAMPLES / count
    return [
        row("simple-scaling-laws 0.2.0", "fit", fits, "median of 5, with 2 draws; least squares of the loss", a=a),
        row("simple-scaling-laws 0.2.0", "bootstrap", [(None, draws[1] * scale, draws[2] * scale)],
            f"{count:,} of {RESAMPLES:,} draws x {scale:g}, wild"),
    ]  # fmt: skip


CONTENDERS: dict[str, Callable[[argparse.Namespace], list[dict]]] = {
    "ours": ours,
    "scipy": scipy_starts,
    "simple-scaling-laws": simple_scaling_laws,
    "chinchilla": chinchilla_package,
}


def row(name: str, kind: str, measured: Sequence[tuple], note: str, **found: float) -> dict:
    cpu, wall = (statistics.median(times) for times in zip(*[one[1:] for one in measured], strict=True))
    figures = {key: float(value) for key, value in found.items()}
    return {"name": name, "kind": kind, "cpu_s": cpu, "wall_s": wall, "note": note, **figures}


def timed(action: Callable) -> tuple:
    """What it returned, its CPU seconds, its wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    made = action()
    return made, time.process_time() - cpu, time.perf_counter() - wall


def huber(residual: np.ndarray) -> np.ndarray:
    clipped = np.clip(residual, -DELTA, DELTA)
    return clipped * (residual - 0.5 * clipped)


def paper_objective(law) -> float:
    params, tokens, loss = read_points()
    return float(huber(np.log(law.loss(params, tokens)) - np.log(loss)).sum())


def read_points() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    named = os.environ.get("CHINCHILLA_SHARED_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    with (folder / "laws" / "epoch_chinchilla.csv").open(newline="") as lines:
        kept = [line for line in csv.DictReader(lines) if line["in_besiroglu_240"] == "True"]
    params, tokens, loss = (np.array([float(line[name]) for line in kept]) for name in ("n_params", "n_tokens", "loss"))
    return params, tokens, loss


if __name__ == "__main__":
    sys.exit(main())
