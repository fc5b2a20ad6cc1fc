"""Are the calibrated intervals right? Every public table, cut at many computes, predicted 3 to 100 times beyond.

Run: python bench/calibration.py [--json] [--learn] [--simulate]. The tables lie in the folder laws/ of the shared data
(CHINCHILLA_SHARED_DATA, or ../shared/data beside the checkout).

Each table is predicted with constants learnt without its whole family (all of Gadre's models on any text are one
family). A cell is the share of hidden runs inside a nominal 90 % interval; runs of one table, and tables of one family,
go together, so the table counts sets and families, not runs. --learn prints the constants of `laws.trust.inflation`;
--simulate adds truths that follow none of the three forms.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from law_sets import read_law_sets
from simulated_laws import DESIGNS, TRUTHS

from chinchilla_lm.laws.table import RunTable
from chinchilla_lm.laws.trust.calibration import Extrapolation, extrapolate
from chinchilla_lm.laws.trust.cuts import choose_cuts
from chinchilla_lm.laws.trust.inflation import LEARNT, Inflation
from chinchilla_lm.laws.trust.learning import DECADE_RANGES, evidence_of, learn
from chinchilla_lm.laws.trust.rolling import NEAREST, Hindcast, hindcasts

LEVEL = 0.9
RANGE_NAMES = ("3-6x", "6-20x", "20-100x")


@dataclass(frozen=True, kw_only=True)
class Score:
    """How one group of hindcasts went; widths, errors and scores in per cent of loss (100 ln L)."""

    name: str
    family: str
    kind: str
    decades: str
    hindcasts: int
    covered: float
    covered_raw: float
    half_width: float
    half_width_raw: float
    error: float
    error_raw: float
    bias: float
    winkler: float
    winkler_raw: float


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print every score as one JSON document")
    parser.add_argument("--learn", action="store_true", help="only learn the constants from all sets and print them")
    parser.add_argument("--simulate", action="store_true", help="also test on simulated truths of other forms")
    asked = parser.parse_args(arguments)
    named = os.environ.get("CHINCHILLA_SHARED_DATA")
    folder = (Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data") / "laws"
    prepared = {each.name: (each, made) for each in read_law_sets(folder) if (made := prepare(each.table)) is not None}
    if not prepared:
        print(f"no set found in {folder}; set CHINCHILLA_SHARED_DATA to the shared data folder", file=sys.stderr)
        return 2
    evidence = [evidence_of(each.family, made) for each, made in prepared.values()]
    if asked.learn:
        print(learn(evidence))
        return 0
    learnt = {
        family: learn([each for each in evidence if each.family != family])
        for family in dict.fromkeys(each.family for each in evidence)
    }
    scores = [
        score
        for each, made in prepared.values()
        for score in score_group(
            each.name, each.family, each.kind, hindcasts(made.under(learnt[each.family]), level=LEVEL)
        )
    ]
    if asked.simulate:
        scores.extend(simulate())
    if asked.json:
        constants = {family: asdict(made) for family, made in learnt.items()}
        print(json.dumps({"learnt_without": constants, "scores": [asdict(each) for each in scores]}))
        return 0
    print_table(scores)
    print_constants(learnt)
    return 0


def prepare(table: RunTable) -> Extrapolation | None:
    """Fit every cut of a table; None where no cut leaves enough below it and a run 3 times above."""
    cuts = choose_cuts(table, float(table.flops.max()) / NEAREST)
    return extrapolate(table, cut_flops=cuts.tolist()) if len(cuts) else None


def score_group(name: str, family: str, kind: str, made: Sequence[Hindcast]) -> list[Score]:
    """Score a set over all distances and by range of decades."""
    groups = {"all": list(made)}
    for decades, (low, high) in zip(RANGE_NAMES, DECADE_RANGES, strict=True):
        groups[decades] = [cast for cast in made if low <= cast.decades < high]
    return [
        Score(name=name, family=family, kind=kind, decades=decades, hindcasts=len(group), **measures(group))
        for decades, group in groups.items()
        if group
    ]


def measures(group: Sequence[Hindcast]) -> dict[str, float]:
    def column(end: str) -> np.ndarray:
        return 100 * np.log([getattr(cast, end) / cast.actual for cast in group])

    low, high, raw_low, raw_high = (column(end) for end in ("low", "high", "raw_low", "raw_high"))
    error, raw_error = (low + high) / 2, (raw_low + raw_high) / 2
    return {
        "covered": float(np.mean((low <= 0) & (high >= 0))),
        "covered_raw": float(np.mean((raw_low <= 0) & (raw_high >= 0))),
        "half_width": float(np.median(high - low)) / 2,
        "half_width_raw": float(np.median(raw_high - raw_low)) / 2,
        "error": float(np.median(np.abs(error))),
        "error_raw": float(np.median(np.abs(raw_error))),
        "bias": float(np.median(error)),
        "winkler": winkler(low, high),
        "winkler_raw": winkler(raw_low, raw_high),
    }


def winkler(low: np.ndarray, high: np.ndarray) -> float:
    """Return the mean interval score: the width, and 2 / (1 - level) times the miss (Gneiting and Raftery 2007)."""
    miss = np.maximum(low, 0) + np.maximum(-high, 0)
    return float(np.mean(high - low + 2 / (1 - LEVEL) * miss))


def print_table(scores: Sequence[Score]) -> None:
    print(
        f"{'':40}{'hidden':>7} |{'nominal 90 %: inside':>21} |{'median half-width':>19} |{'median |error|':>16} |",
        end="",
    )
    print(f"{'interval score':>16}")
    print(f"{'set':28}{'kind':12}{'runs':>7} |{'calibrated':>12}{'raw':>9} |{'calibrated':>12}{'raw':>7} |", end="")
    print(f"{'point':>8}{'raw':>8} |{'calibr.':>8}{'raw':>8}")
    for each in scores:
        if each.decades == "all":
            print(row(f"{each.name:28}{each.kind:12}{each.hindcasts:7d}", [each]))
    real = [each for each in scores if each.kind != "simulated"]
    families = list(dict.fromkeys(each.family for each in real))
    print("\nmeans, with the number of sets, then of families:")
    for family in families:
        group = [each for each in real if each.family == family and each.decades == "all"]
        print(row(f"{family:28}{'all':12}{len(group):7d}", group))
    for decades in ("all", *RANGE_NAMES):
        group = [each for each in real if each.decades == decades]
        print(row(f"{'mean of sets':28}{decades:12}{len(group):7d}", group))
    for decades in ("all", *RANGE_NAMES):
        by_family = [[each for each in real if each.family == f and each.decades == decades] for f in families]
        group = [mean_score(members) for members in by_family if members]
        print(row(f"{'mean of families':28}{decades:12}{len(group):7d}", group))


def mean_score(group: Sequence[Score]) -> Score:
    first = asdict(group[0])
    numbers = [name for name, value in first.items() if isinstance(value, float)]
    return Score(**{**first, **{name: float(np.mean([getattr(each, name) for each in group])) for name in numbers}})


def row(start: str, group: Sequence[Score]) -> str:
    each = mean_score(group)
    return (
        f"{start} |{100 * each.covered:11.0f}%{100 * each.covered_raw:8.0f}% |{each.half_width:11.2f}%"
        f"{each.half_width_raw:6.2f}% |{each.error:7.2f}%{each.error_raw:7.2f}% |"
        f"{each.winkler:7.2f}%{each.winkler_raw:7.2f}%"
    )


def simulate() -> list[Score]:
    """Score truths that are none of the three forms, under the shipped constants, over three designs and noises."""
    scores: list[Score] = []
    for name, truth in TRUTHS.items():
        casts: list[Hindcast] = []
        for seed, (design, noise) in enumerate(itertools.product(DESIGNS, (0.001, 0.004, 0.012))):
            params, tokens = DESIGNS[design]
            log_loss = np.log(truth(params, tokens)) + noise * np.random.default_rng(seed).standard_normal(len(params))
            made = prepare(RunTable(params=params, tokens=tokens, flops=6 * params * tokens, loss=np.exp(log_loss)))
            casts.extend(hindcasts(made, level=LEVEL) if made is not None else ())
        scores.extend(score_group(name, "simulated", "simulated", casts))
    return scores


def print_constants(learnt: Mapping[str, Inflation]) -> None:
    print("\nconstants learnt without a family: floor, of_drop, of_spread, freedom")
    for family, made in {**learnt, "(shipped)": LEARNT}.items():
        print(f"  {family:24}{made.floor:8.4f}{made.of_drop:8.3f}{made.of_spread:8.3f}{made.freedom:8.2f}")


if __name__ == "__main__":
    sys.exit(main())
