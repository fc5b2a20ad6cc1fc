"""Compute multipliers: coverage of the 90 % interval on simulated recipes, and what public pairs say.

Run: python bench/multiplier.py [--repeats 40]. About two minutes on one core with 40 repeats, which fix a coverage of
90 % to 5 points. Public pairs are read from the folder laws/ of the shared data (CHINCHILLA_SHARED_DATA, or
../shared/data beside the checkout) and left out where it is absent.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from simulated_laws import Loss, coupled

from chinchilla_lm.laws.forms.additive import AdditiveLaw
from chinchilla_lm.laws.published import published_law
from chinchilla_lm.laws.table import RunTable
from chinchilla_lm.laws.trust.multiplier import compare_recipes

LAW = published_law("besiroglu2024").law
OTHER = AdditiveLaw(E=1.75, A=520.0, B=2400.0, alpha=0.345, beta=0.372)
NOISE_SD, GAIN, AT_FLOPS = 0.003, 1.5, 1e19

Places = tuple[np.ndarray, np.ndarray]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=40, help="simulated pairs of tables for each case")
    repeats = parser.parse_args(arguments).repeats
    large, small, best = grid(7, 5), grid(3, 3), grid(1, 5)
    coupled_law = coupled(LAW, 0.85)
    cases: list[tuple[str, Loss, Loss, Places, Places, str | None]] = [
        ("35 runs each, x 1.5", LAW.loss, gained(LAW.loss), large, large, None),
        ("35 runs each, other law", LAW.loss, OTHER.loss, large, large, None),
        ("35, other law, other sizes", LAW.loss, OTHER.loss, large, grid(5, 5, 0.7), None),
        ("35, both coupled, k = .85", coupled_law, gained(coupled_law), large, large, None),
        ("35, A coupled, B additive", coupled_law, gained(LAW.loss), large, large, None),
        ("35, x 1.5, shared law", LAW.loss, gained(LAW.loss), large, large, "shared"),
        ("9 runs each, x 1.5", LAW.loss, gained(LAW.loss), small, small, None),
        ("9 runs each, other law", LAW.loss, OTHER.loss, small, small, None),
        ("9, x 1.5, other sizes", LAW.loss, gained(LAW.loss), small, grid(3, 3, 0.3), None),
        ("5 best runs each, x 1.5", LAW.loss, gained(LAW.loss), best, best, None),
        ("5 best runs each, lines", LAW.loss, gained(LAW.loss), best, best, "lines"),
    ]
    print(f"{'simulated':28}{'method':>8}{'true':>7}{'inside':>8}{'half-width':>12}{'sd':>7}{'bias':>8}   (of ln m)")
    for case in cases:
        print_case(case, repeats)
    print_public_pairs()
    return 0


def grid(n_sizes: int, n_budgets: int, half_width: float = 0.5) -> Places:
    flops = np.repeat(np.geomspace(1e18, 1e20, n_budgets), n_sizes)
    centre = np.array([LAW.optimum(float(budget))[0] for budget in flops])
    offsets = np.linspace(-half_width, half_width, n_sizes) if n_sizes > 1 else np.zeros(1)
    params = centre * np.tile(10**offsets, n_budgets)
    return params, flops / 6 / params


def gained(loss: Loss) -> Loss:
    """A recipe that gets GAIN times more out of the same compute."""
    return lambda params, tokens: loss(params * math.sqrt(GAIN), tokens * math.sqrt(GAIN))


def true_multiplier(a: Loss, b: Loss) -> float:
    """C / C_B(L*_A(C)) by bisection on optima over a fine grid of sizes."""
    log_sizes = np.linspace(math.log(1e6), math.log(1e12), 4001)

    def best(loss: Loss, flops: float) -> float:
        return float(loss(np.exp(log_sizes), flops / 6 / np.exp(log_sizes)).min())

    wanted = best(a, AT_FLOPS)
    low, high = math.log(AT_FLOPS / 50), math.log(AT_FLOPS * 50)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if best(b, math.exp(middle)) > wanted else (low, middle)
    return AT_FLOPS / math.exp(low)


def print_case(case: tuple[str, Loss, Loss, Places, Places, str | None], repeats: int) -> None:
    name, loss_a, loss_b, places_a, places_b, method = case
    truth = true_multiplier(loss_a, loss_b)
    rng = np.random.default_rng(0)
    hits, widths, errors, used = 0, [], [], ""
    for seed in range(repeats):
        a, b = simulated(loss_a, places_a, rng), simulated(loss_b, places_b, rng)
        found = compare_recipes(a, b, method=method, at_flops=AT_FLOPS, draws=150, seed=seed)
        hits += found.point.low <= truth <= found.point.high
        widths.append(0.5 * math.log(found.point.high / found.point.low))
        errors.append(math.log(found.point.multiplier / truth))
        used = found.method
    print(
        f"{name:28}{used:>8}{truth:7.3f}{100 * hits / repeats:7.0f}%{np.mean(widths):12.3f}"
        f"{np.std(errors):7.3f}{np.mean(errors):+8.3f}",
        flush=True,
    )


def simulated(loss: Loss, places: Places, rng: np.random.Generator) -> RunTable:
    params, tokens = places
    noisy = np.asarray(loss(params, tokens)) * np.exp(NOISE_SD * rng.standard_normal(len(params)))
    return RunTable(params=params, tokens=tokens, flops=6 * params * tokens, loss=noisy)


def print_public_pairs() -> None:
    named = os.environ.get("CHINCHILLA_SHARED_DATA")
    folder = (Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data") / "laws"
    if not folder.is_dir():
        print(f"no public pairs: {folder} is absent", file=sys.stderr)
        return
    gemstones, gadre = read(folder / "gemstones.csv"), read(folder / "gadre_overtraining.csv")
    print("\npublic pair: B reaches A's loss with so many times less compute (90 % interval), at a compute of A")
    before, after = (chosen(gemstones, "split", split) for split in ("cool_begin", "cool_end"))
    print_pair("Gemstones, cooldown over none", before, after, is_clustered=True)
    for loss in ("loss_c4_val", "loss_paloma_falcon-refinedweb"):
        for name in ("rpj", "rw_original"):
            a, b = (chosen(gadre, "train_dataset", data, loss) for data in ("c4_original", name))
            print_pair(f"Gadre on {loss[5:20]}: {name} over c4", a, b)


def print_pair(name: str, a: RunTable, b: RunTable, *, is_clustered: bool = False) -> None:
    found = compare_recipes(a, b, is_clustered=is_clustered)
    for point in found.points[1:4]:
        print(f"{name:44}{point.multiplier:6.2f} ({point.low:.2f} to {point.high:.2f}) at {point.flops:.1e}")
        name = ""
    assert found.trend is not None
    print(f"{'':44}trend a decade x {found.trend.per_decade:.2f} ({found.trend.low:.2f} to {found.trend.high:.2f})")


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def chosen(rows: Sequence[dict[str, str]], column: str, value: str, loss: str = "loss") -> RunTable:
    kept = [row for row in rows if row[column] == value and row[loss]]
    params, tokens, losses = (np.array([float(row[name]) for row in kept]) for name in ("n_params", "n_tokens", loss))
    return RunTable(params=params, tokens=tokens, flops=6 * params * tokens, loss=losses)


if __name__ == "__main__":
    sys.exit(main())
