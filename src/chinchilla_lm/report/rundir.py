"""A run directory, read for people: every record that is there, and a plain sentence for every one that cannot be used.

This is the report's border. What passes it has the fields and the finite numbers that the figures and the page rely on;
what does not pass is left out and named in `Run.problems`, because a report on half a run is still worth reading.
It writes nothing and measures nothing.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from chinchilla_lm.core.errors import ChinchillaError
from chinchilla_lm.core.files import read_json
from chinchilla_lm.core.records import read_records
from chinchilla_lm.laws.forms.additive import AdditiveLaw
from chinchilla_lm.laws.forms.allocation import PowerLine

Record = Mapping[str, Any]

# The numbers without which a record cannot be drawn or told; all else is optional.
_NEEDED = {
    "law": ("E", "A", "B", "alpha", "beta"),
    "forecast": ("loss", "low", "high", "flops", "params_matmul", "tokens"),
    "eval": ("loss",),
    "trial": ("params_matmul", "tokens", "flops"),
    "step": ("tokens", "loss"),
    "evaluation": ("tokens", "loss"),
    "stage": ("seconds",),
}

# What these records hold inside: tables by name, or lists of them; what is of another kind is left out.
_TABLES = {
    "law": ("intervals", "line"),
    "forecast": ("flat_band", "bits_per_byte", "shape", "tasks"),
    "env": ("matmul_flops_per_s",),
    "eval": ("predicted", "tasks", "transformers_check"),
}
_LISTS = {"law": ("rungs",), "forecast": ("candidates", "backtests"), "env": ("speeds",), "eval": ("samples",)}
_LARGEST_NUMBER = 1e100  # no size, loss or compute comes near it, and margins and products of such numbers stay finite


@dataclass(frozen=True, kw_only=True)
class Run:
    """The records of one run directory.

    Attributes:
        folder: the run directory.
        config, plan: config.toml and plan.toml parsed, empty when absent; `config_text`, `plan_text` as written.
        env, law, forecast, evaluation: env.json, law.json, forecast.json and eval.json; None when absent or unusable.
        additive_law: law.json's L = E + A/N^alpha + B/D^beta; None without one.
        power_line: law.json's ln L = intercept + slope ln C through the optima of the rungs; None without one.
        stages: stages.jsonl in order.
        trials: finished sweep trials with a finite loss, in order; `diverged` those that did not finish.
        steps, evaluations: the final training run's records, in order of tokens.
        problems: one sentence for each record that is there but cannot be used.
    """

    folder: Path
    config: Record
    config_text: str
    plan: Record
    plan_text: str
    env: Record | None
    law: Record | None
    forecast: Record | None
    evaluation: Record | None
    additive_law: AdditiveLaw | None
    power_line: PowerLine | None
    stages: tuple[Record, ...]
    trials: tuple[Record, ...]
    diverged: tuple[Record, ...]
    steps: tuple[Record, ...]
    evaluations: tuple[Record, ...]
    problems: tuple[str, ...]

    @property
    def name(self) -> str:
        """The run directory's own name."""
        return self.folder.resolve().name


def read_run(run_dir: Path | str) -> Run:
    """Read every record of a run directory.

    Args:
        run_dir: a run directory; any part of it may be missing.

    Returns:
        The run. Records that are there but torn, of a newer version or without their numbers are named in `problems`.

    Raises:
        ChinchillaError: `run_dir` is not a folder.
    """
    folder = Path(run_dir)
    if not folder.is_dir():
        raise ChinchillaError(f"{folder} is not a folder; give the run directory that `chinchilla run --out` wrote")
    problems: list[str] = []
    config, config_text = _toml(folder / "config.toml", problems)
    plan, plan_text = _toml(folder / "plan.toml", problems)
    sweep = _lines(folder / "sweep" / "records.jsonl", ("trial",), problems)
    finished, diverged = _split_trials(sweep)
    training = _lines(folder / "train" / "records.jsonl", ("step", "evaluation"), problems)
    law = _value(folder / "law.json", "law", problems)
    return Run(
        folder=folder,
        config=config,
        config_text=config_text,
        plan=plan,
        plan_text=plan_text,
        env=_value(folder / "env.json", "env", problems),
        law=law,
        forecast=_value(folder / "forecast.json", "forecast", problems),
        evaluation=_value(folder / "eval.json", "eval", problems),
        additive_law=_additive_law(law, problems),
        power_line=_power_line(law),
        stages=tuple(_lines(folder / "stages.jsonl", ("stage",), problems)),
        trials=finished,
        diverged=diverged,
        steps=_by_tokens(training, "step"),
        evaluations=_by_tokens(training, "evaluation"),
        problems=tuple(problems),
    )


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a record's value is a number that can be drawn: finite, no boolean, and with room around it."""
    # False for nan too, and for whole numbers of hundreds of digits.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST_NUMBER


def kind_of(record: Record) -> str:
    """The name in a record's schema: `trial` of `trial/1`."""
    return str(record.get("schema", "")).partition("/")[0]


def _toml(path: Path, problems: list[str]) -> tuple[Record, str]:
    if not path.is_file():
        return {}, ""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path.name} cannot be read: {error}")
        return {}, ""
    try:
        return tomllib.loads(text), text
    except tomllib.TOMLDecodeError as error:
        problems.append(f"{path.name} is not TOML: {error}")
        return {}, text


def _value(path: Path, kind: str, problems: list[str]) -> Record | None:
    if not path.is_file():
        return None
    try:
        record = read_json(path)
    except ChinchillaError as error:
        problems.append(f"{path.name} cannot be read: {error}")
        return None
    if not isinstance(record, Mapping):
        problems.append(f"{path.name} holds a {type(record).__name__} instead of a record.")
        return None
    if missing := _missing(record, kind):
        problems.append(f"{path.name} has no finite {', '.join(missing)}, so it is left out.")
        return None
    strange = _strange_parts(record, kind)
    problems += [
        f"{path.name}: {name} is a {type(record[name]).__name__} of another kind, left out." for name in strange
    ]
    return {name: value for name, value in record.items() if name not in strange}


def _strange_parts(record: Record, kind: str) -> list[str]:
    """Name the inner tables and lists that are none; null stands for an absent one."""
    found = [name for name in _TABLES.get(kind, ()) if not isinstance(record.get(name) or {}, Mapping)]
    for name in _LISTS.get(kind, ()):
        rows = record.get(name) or []
        if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
            found.append(name)
    return found


def _additive_law(law: Record | None, problems: list[str]) -> AdditiveLaw | None:
    if law is None or law.get("form", "additive") != "additive":
        return None
    try:
        return AdditiveLaw.from_dict(law)
    except ChinchillaError as error:
        problems.append(f"law.json holds no law that can be drawn: {error}")
        return None


def _power_line(law: Record | None) -> PowerLine | None:
    line = (law or {}).get("line")
    if not isinstance(line, Mapping) or not all(is_number(line.get(key)) for key in ("intercept", "slope")):
        return None
    return PowerLine(intercept=float(line["intercept"]), slope=float(line["slope"]))


def _lines(path: Path, kinds: Sequence[str], problems: list[str]) -> list[Record]:
    if not path.is_file():
        return []
    try:
        records: list[Record] = [record for kind in kinds for record in read_records(path, f"{kind}/1")]
    except ChinchillaError as error:
        problems.append(f"{path.name} cannot be read: {error}")
        return []
    usable = [record for record in records if not _missing(record, kind_of(record))]
    if len(usable) < len(records):
        problems.append(f"{len(records) - len(usable)} of {len(records)} lines of {path.name} lack their numbers.")
    return usable


def _missing(record: Record, kind: str) -> list[str]:
    # Trials and forecasts are drawn on logarithmic axes, so their numbers must be above 0; a step may have 0 tokens.
    is_positive = kind in ("trial", "forecast")
    return [
        name
        for name in _NEEDED.get(kind, ())
        if not is_number(record.get(name)) or (is_positive and float(record[name]) <= 0)
    ]


def _split_trials(records: Sequence[Record]) -> tuple[tuple[Record, ...], tuple[Record, ...]]:
    sides: tuple[list[Record], list[Record]] = ([], [])
    for record in records:
        is_finished = is_number(record.get("loss")) and record.get("status", "done") == "done"
        sides[0 if is_finished else 1].append(record)
    return tuple(sides[0]), tuple(sides[1])


def _by_tokens(records: Sequence[Record], kind: str) -> tuple[Record, ...]:
    # A resumed run may repeat the steps between its last checkpoint and the stop: the last record of a step counts.
    latest = {record["tokens"]: record for record in records if kind_of(record) == kind}
    return tuple(latest[tokens] for tokens in sorted(latest))
