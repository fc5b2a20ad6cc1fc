"""The run directory: one job's files, its clock and its finished stages. See DESIGN: it holds everything and resumes.

The clock counts wall seconds over all resumes and is written every few seconds, so that a killed job knows what it has
spent. A stage is finished when its record stands in stages.jsonl; it is never run twice.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chinchilla_lm.core.config import dump_toml, load_toml
from chinchilla_lm.core.errors import ConfigError
from chinchilla_lm.core.files import clean_temporaries, explain_os_error, read_json, write_json, write_text
from chinchilla_lm.core.records import append_record, read_records
from chinchilla_lm.study.request import StudyConfig

_CLOCK_EVERY_SECONDS = 5.0


class RunDirectory:
    """Paths, clock and stage records of one run directory. The clock is the one thing that changes."""

    def __init__(self, path: Path) -> None:
        """Reads the clock; makes nothing (see `open_run`)."""
        self.path = path
        clock = path / "clock.json"
        self._before = float(read_json(clock)["seconds"]) if clock.exists() else 0.0
        self._opened = time.monotonic()
        self._written = time.monotonic()

    config = property(lambda self: self.path / "config.toml")
    environment = property(lambda self: self.path / "env.json")
    prepared = property(lambda self: self.path / "data")
    sweep = property(lambda self: self.path / "sweep")
    suites = property(lambda self: self.path / "suites")
    design = property(lambda self: self.path / "sweep" / "design.json")
    trials = property(lambda self: self.path / "sweep" / "records.jsonl")
    registry = property(lambda self: self.path / "sweep" / "registry.sqlite")
    law = property(lambda self: self.path / "law.json")
    forecast = property(lambda self: self.path / "forecast.json")
    plan = property(lambda self: self.path / "plan.toml")
    train = property(lambda self: self.path / "train")
    model = property(lambda self: self.path / "model")
    drafts = property(lambda self: self.path / "drafts")
    evaluation = property(lambda self: self.path / "eval.json")
    report = property(lambda self: self.path / "report.html")
    stages = property(lambda self: self.path / "stages.jsonl")

    def spent_seconds(self) -> float:
        """Wall seconds of this job over all its resumes, up to now."""
        return self._before + time.monotonic() - self._opened

    def tick(self) -> None:
        """Write the clock if it is due; cheap to call after every update."""
        if time.monotonic() - self._written >= _CLOCK_EVERY_SECONDS:
            self._written = time.monotonic()
            write_json(self.path / "clock.json", {"schema": "clock/1", "seconds": self.spent_seconds()})

    def is_finished(self, stage: str) -> bool:
        """Say whether a stage has its record."""
        return any(record["stage"] == stage for record in self.stage_records())

    def stage_records(self) -> list[dict[str, Any]]:
        """Return the finished stages in order."""
        return read_records(self.stages, "stage/1") if self.stages.exists() else []

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[dict[str, Any]]:
        """Time a stage and record it when the block ends well.

        Args:
            name: of the stage.

        Yields:
            Fields to add to the record, such as "flops".
        """
        fields: dict[str, Any] = {"flops": 0.0}
        started, cpu = self.spent_seconds(), time.process_time()
        yield fields
        record = {"stage": name, "seconds": self.spent_seconds() - started, "cpu_seconds": time.process_time() - cpu}
        append_record(self.stages, "stage/1", {**record, **fields, "ended_at_seconds": self.spent_seconds()}, sync=True)
        self._written = 0.0
        self.tick()


def open_run(path: Path, config: StudyConfig) -> RunDirectory:
    """Open a run directory for a request: a new one, or the one that the same request began.

    Args:
        path: the directory; made when missing.
        config: the request.

    Returns:
        The directory, with config.toml in it.

    Raises:
        ConfigError: the directory belongs to another request, or holds other files.
        DataError: it cannot be written.
    """
    stored = path / "config.toml"
    if stored.exists():
        before = load_toml(StudyConfig, stored)
        if before != config:
            raise ConfigError(
                f"{path} belongs to another request ({_difference(before, config)}); "
                "choose another --out, or repeat that request to resume it"
            )
    elif path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{path} is not empty and is no run directory (no config.toml); choose another --out")
    else:
        with explain_os_error(path):
            path.mkdir(parents=True, exist_ok=True)
        write_text(stored, dump_toml(config, {}))
    clean_temporaries(path)
    return RunDirectory(path)


def _difference(before: StudyConfig, now: StudyConfig) -> str:
    names = [name for name in vars(now) if getattr(before, name) != getattr(now, name)]
    return "; ".join(f"{name} was {getattr(before, name)!r}, now {getattr(now, name)!r}" for name in names)
