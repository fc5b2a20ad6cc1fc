"""Read every public table of (N, D, C, L) runs in shared/data/laws, each with its family and what its rows are.

A family is what shares code, text or runs; tables of one family are never on both sides of a test. Kinds: "final" rows
are losses at the end of a run's own schedule; "checkpoints" are losses on the way, of few runs each, so neither
independent nor at the end of a schedule: they are extrapolated to further checkpoints, like to like.
"""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from chinchilla_lm.laws.table import RunTable

Row = dict[str, str]
# Muennighoff et al. 2023: tokens and params decay in worth as they repeat; the optimum of U unique tokens is .051 U.
_TOKEN_DECAY, _PARAM_DECAY, _PARAMS_PER_UNIQUE = 15.387756, 5.309743, 0.051
_CLARK_EXPERTS = {"1", "8", "64", "512"}  # of 2, 4, ... 512: the others tell the same story


@dataclass(frozen=True, kw_only=True)
class LawSet:
    """One table.

    Attributes:
        name: as printed.
        family: see the module.
        kind: see the module.
        table: the runs.
    """

    name: str
    family: str
    kind: Literal["final", "checkpoints"]
    table: RunTable


def read_law_sets(folder: Path) -> list[LawSet]:
    """Read what is there.

    Args:
        folder: laws/ of the shared data.

    Returns:
        The sets, family by family.
    """
    sets: list[LawSet] = []
    for file, reader in _READERS.items():
        path = folder / file
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as lines:
                sets.extend(reader(list(csv.DictReader(lines))))
    return sets


def _epoch(rows: Sequence[Row]) -> list[LawSet]:
    kept = [row for row in rows if row["in_besiroglu_240"] == "True"]
    return [_set("epoch 240", "epoch", kept), _set("epoch 245", "epoch", rows)]


def _gadre(rows: Sequence[Row]) -> list[LawSet]:
    """Three training sets, each scored on C4 and on further texts that move far from what was trained on."""
    texts = [name for name in rows[0] if name.startswith("loss_") and not name.startswith(("loss_lo95", "loss_hi95"))]
    sets: list[LawSet] = []
    for train_set, short in (("c4_original", "c4"), ("rpj", "rpj"), ("rw_original", "rw")):
        runs = [row for row in rows if row["train_dataset"] == train_set]
        for column in ["loss", *(text for text in texts if text != "loss_c4_val")]:
            label = "" if column == "loss" else " on " + _short_text(column)
            sets.append(_set(f"gadre {short}{label}", "gadre", [row for row in runs if row[column]], loss=column))
    return sets


def _short_text(column: str) -> str:
    name = column.removeprefix("loss_").removeprefix("paloma_").removeprefix("val_")
    return {"dolma_100_programing_languages": "code", "falcon-refinedweb": "refinedweb", "de-en_100": "de-en"}.get(
        name, name
    )


def _gemstones(rows: Sequence[Row]) -> list[LawSet]:
    return [
        _set(f"gemstones {split}", "gemstones", [row for row in rows if row["split"] == split], kind=kind)
        for split, kind in (
            ("cool_end", "final"),
            ("cool_begin", "checkpoints"),
            ("hot", "checkpoints"),
            ("hot_100b+", "checkpoints"),
            ("lr_ablation_hot", "checkpoints"),
        )
    ]


def _olmo_final(rows: Sequence[Row]) -> list[LawSet]:
    """The ladder and, as targets only, OLMo 2 7B and 13B, which used another schedule and stage of data."""
    columns = ["loss", *(name for name in rows[0] if name.startswith("ce_") and name != "ce_c4_en")]
    sets: list[LawSet] = []
    for column in columns:
        label = "" if column == "loss" else " on " + column.removeprefix("ce_").removeprefix("dolma_")
        kept = [row for row in rows if row[column]]
        sets.append(_set(f"olmo{label}", "olmo", kept, loss=column, flops="flops"))
    return sets


def _olmo_checkpoints(rows: Sequence[Row]) -> list[LawSet]:
    """Each run's end, and its halves down to a sixteenth, which lie in mid-cosine, above what a whole run reaches."""
    runs: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row["loss"] and not row["run"].startswith("peteish"):
            runs[row["run"]].append(row)
    kept: list[Row] = []
    for members in runs.values():
        end = max(float(row["n_tokens"]) for row in members)
        for halving in range(5):
            wanted = end * 0.5**halving
            kept.append(min(members, key=lambda row: abs(math.log(float(row["n_tokens"]) / wanted))))
    return [_set("olmo mid-cosine", "olmo", kept, kind="checkpoints", flops="flops")]


def _datablations(rows: Sequence[Row]) -> list[LawSet]:
    """Runs of one epoch, and runs of up to 60 epochs with tokens and params at their worth in fresh ones."""
    rows = [row for row in rows if row["dedup"] == "False"]
    once = [row for row in rows if float(row["epochs"]) <= 1]
    repeated = [row for row in rows if float(row["n_tokens"]) / float(row["n_unique_tokens"]) <= 60]
    return [_set("datablations 1 epoch", "datablations", once), _repeated(repeated)]


def _repeated(rows: Sequence[Row]) -> LawSet:
    made = _set("datablations repeated", "datablations", rows)
    unique = np.array([float(row["n_unique_tokens"]) for row in rows])
    tokens = _worth(made.table.tokens, unique, _TOKEN_DECAY)
    params = _worth(made.table.params, _PARAMS_PER_UNIQUE * unique, _PARAM_DECAY)
    table = RunTable(params=params, tokens=tokens, flops=made.table.flops, loss=made.table.loss)
    return LawSet(name=made.name, family=made.family, kind=made.kind, table=table)


def _worth(amounts: np.ndarray, unique: np.ndarray, decay: float) -> np.ndarray:
    base = np.minimum(amounts, unique)
    return base + base * decay * (1 - np.exp(-(amounts / base - 1) / decay))


def _steplaw(rows: Sequence[Row]) -> list[LawSet]:
    """The best of each (N, D)'s learning-rate and batch sweep."""
    best: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = (row["n_params"], row["n_tokens"])
        if key not in best or float(row["loss"]) < float(best[key]["loss"]):
            best[key] = row
    return [_set("step law best", "steplaw", list(best.values()))]


def _clark(rows: Sequence[Row]) -> list[LawSet]:
    """One table a router and number of experts, one seed a size: 25 checkpoints of five or six runs."""
    groups: dict[tuple[str, str], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["k"] == "1" and row["routing_frequency"] == "0.5" and row["num_experts"] in _CLARK_EXPERTS:
            groups[row["router_type"], row["num_experts"]][row["n_params"]].append(row)
    sets: list[LawSet] = []
    for (router, experts), sizes in groups.items():
        if len(sizes) < 4:
            continue
        kept = [row for members in sizes.values() for row in members if row["hyper_id"] == members[0]["hyper_id"]]
        label = "dense" if experts == "1" else f"{router} {experts}"
        sets.append(_set(f"clark {label}", "clark", kept, kind="checkpoints"))
    return sets


def _multi_power(rows: Sequence[Row]) -> list[LawSet]:
    """Ends of the cosine and WSD runs, and the curve at a constant rate; tokens are steps: only a unit differs."""
    curves: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        curves[row["schedule"], row["model_M"]].append(row)
    ends: list[Row] = []
    along: list[Row] = []
    for (schedule, size), curve in curves.items():
        steps = np.array([float(row["step"]) for row in curve])
        losses = np.array([float(row["loss"]) for row in curve])
        if schedule.startswith(("cosine_", "wsd_")):
            last = int(steps.argmax())
            ends.append(_curve_row(size, steps[last], losses[last]))
        if schedule == "constant_72000":
            for step in np.geomspace(4000, 72000, 16):  # single losses are noisy: the mean of +-8 % of steps
                near = np.abs(np.log(steps / step)) < 0.08
                along.append(_curve_row(size, step, math.exp(float(np.log(losses[near]).mean()))))
    return [
        _set("multi-power ends", "multi-power", ends),
        _set("multi-power constant", "multi-power", along, kind="checkpoints"),
    ]


def _curve_row(size: str, step: float, loss: float) -> Row:
    return {"n_params": f"{float(size) * 1e6}", "n_tokens": f"{step * 1e6}", "loss": f"{loss}"}


def _set(
    name: str,
    family: str,
    rows: Sequence[Mapping[str, str]],
    *,
    kind: Literal["final", "checkpoints"] = "final",
    loss: str = "loss",
    flops: str | None = None,
) -> LawSet:
    """Make a table; C is 6 N D unless a column is named."""
    params, tokens, losses = (
        np.array([float(row[column]) for row in rows]) for column in ("n_params", "n_tokens", loss)
    )
    compute = 6 * params * tokens if flops is None else np.array([float(row[flops]) for row in rows])
    table = RunTable(params=params, tokens=tokens, flops=compute, loss=losses)
    return LawSet(name=name, family=family, kind=kind, table=table)


# nanochat_isoflop_optima.csv is left out: its four optima span a factor 10, so that no three of them lie a factor 3
# below the fourth; gadre_hparam_grid.csv and the learning rates of steplaw_dense.csv are no (N, D) tables.
_READERS: dict[str, Callable[[Sequence[Row]], list[LawSet]]] = {
    "epoch_chinchilla.csv": _epoch,
    "gadre_overtraining.csv": _gadre,
    "gemstones.csv": _gemstones,
    "olmo_ladder_final.csv": _olmo_final,
    "olmo_ladder_checkpoints.csv": _olmo_checkpoints,
    "datablations_c4.csv": _datablations,
    "steplaw_dense.csv": _steplaw,
    "clark_routed_curves.csv": _clark,
    "mpl_lr_schedule_curves.csv": _multi_power,
}
