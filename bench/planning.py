"""How fast is the planner over resamples, and how often does the band of a plan's loss hold the truth?

Run: python bench/planning.py [--speed | --band]. The band is tested as bench/calibration.py tests its intervals: every
public table is cut at many computes, an additive law is fitted below each cut, and the runs 3 to 100 times above
it are compared with `planning.intervals.loss_band`. Tables of one family have one vote together, cuts of a table too.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from calibration import prepare
from law_sets import read_law_sets

from chinchilla_lm.laws.planning.intervals import loss_band
from chinchilla_lm.laws.planning.optimum import least_cost, least_loss
from chinchilla_lm.laws.planning.question import Evidence
from chinchilla_lm.laws.planning.surface import surface_of_draws
from chinchilla_lm.laws.published import published_law
from chinchilla_lm.laws.trust.cuts import CutFits

N_PLANS = 10_000
FARTHEST, NEAREST = 100.0, 3.0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--speed", action="store_true", help="only the speed")
    parser.add_argument("--band", action="store_true", help="only the band")
    asked = parser.parse_args(arguments)
    if not asked.band:
        print_speed()
    if asked.speed:
        return 0
    named = os.environ.get("CHINCHILLA_SHARED_DATA")
    folder = (Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data") / "laws"
    return print_band(folder)


def print_speed() -> None:
    """Time 10,000 plans under resampled constants; CPU time, the least of five."""
    law = published_law("besiroglu2024").law
    constants = np.array([law.E, law.A, law.B, law.alpha, law.beta])
    draws = constants * np.exp(np.random.default_rng(0).normal(0, 0.03, (N_PLANS, 5)))
    print(f"{N_PLANS} plans, CPU milliseconds{'':14}least loss for 1e23   least cost for 2.2")
    for unique in (None, 1e11):
        for served in (0.0, 2e12):
            surface = surface_of_draws(draws, law, unique)
            spent = []
            for solve, target in ((least_loss, 1e23), (least_cost, 2.2)):
                times = []
                for _ in range(5):
                    start = time.process_time()
                    solve(surface, np.full(N_PLANS, target), served)
                    times.append(time.process_time() - start)
                spent.append(1000 * min(times))
            text = "fresh text" if unique is None else "100B tokens repeated"
            print(f"{text:24}{'2T tokens served' if served else 'no serving':20}{spent[0]:14.1f}{spent[1]:21.1f}")


def print_band(folder: Path) -> int:
    """Print, for each family of tables, the share of hidden runs inside the band and its median half-width."""
    inside: dict[str, list[float]] = {}
    widths: list[float] = []
    for each in read_law_sets(folder):
        made = prepare(each.table)
        if made is None:
            continue
        by_cut = [cut for k in range(len(made.fits.cut_flops_k)) if (cut := hidden_runs(made.fits, k))]
        if by_cut:
            inside.setdefault(each.family, []).append(
                statistics.mean(statistics.mean(c for c, _ in cut) for cut in by_cut)
            )
            widths.extend(width for cut in by_cut for _, width in cut)
    if not inside:
        print(f"no set found in {folder}; set CHINCHILLA_SHARED_DATA to the shared data folder", file=sys.stderr)
        return 2
    print(f"\nbands of {len(widths)} hindcasts at 3-100 times the fitted compute, nominal 90 %")
    for family, shares in inside.items():
        print(f"{family:24}{100 * statistics.mean(shares):6.1f} %")
    mean = statistics.mean(statistics.mean(shares) for shares in inside.values())
    print(f"{'mean over families':24}{100 * mean:6.1f} %, median half-width {100 * statistics.median(widths):.2f} %")
    return 0


def hidden_runs(fits: CutFits, cut: int) -> list[tuple[bool, float]]:
    """Return, for each run hidden from a cut, whether the band holds its loss, and half the band in ln L."""
    edge, runs = float(fits.cut_flops_k[cut]), fits.table
    said = np.exp(fits.ask(runs.params, runs.tokens, runs.flops).raw[cut])
    found = []
    for point, flops, actual in zip(said.tolist(), runs.flops.tolist(), runs.loss.tolist(), strict=True):
        if NEAREST * edge <= flops <= FARTHEST * edge * 1.001:
            low, high = loss_band(point, flops, Evidence(largest_flops=edge), None)
            assert low is not None
            assert high is not None
            found.append((low <= actual <= high, math.log(high / low) / 2))
    return found


if __name__ == "__main__":
    sys.exit(main())
