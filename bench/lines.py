"""Benchmarks of many lines in one file of results that the same command goes on with after a stop.

A line is a name and a process of its own, which appends one record with that name when it is finished; the latest
record of a name counts. It never reads what a process prints.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from machine import print_table


class _Named(Protocol):
    @property
    def name(self) -> str: ...


Line = TypeVar("Line", bound=_Named)

STOPPED = (130, -2)
"""Exit codes of a process that Ctrl-C stopped."""


def run_lines(
    names: Sequence[str], results: Path, command_of: Callable[[str], list[str]], environment: Mapping[str, str]
) -> None:
    """Run the lines that have no record yet, one after the other; a failed one is told and left for the next time."""
    for name in names:
        if name in latest_records(results):
            say(f"{name}: finished before")
            continue
        started = time.monotonic()
        code = subprocess.run(command_of(name), env=dict(environment), check=False).returncode
        said = "done" if code == 0 else f"FAILED with exit code {code}, see above"
        say(f"{name}: {said} after {time.monotonic() - started:.0f} s")
        if code in STOPPED:  # the same command goes on
            break


def line_named(name: str, lines: Sequence[Line]) -> Line:
    """Find a line by its name, or leave with one line that tells the names."""
    found = [line for line in lines if line.name == name]
    if not found:
        sys.exit(f"no line {name!r}; the lines are {', '.join(line.name for line in lines)}")
    return found[0]


def check_inputs(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse to run without a model folder and a folder of sets; --show needs neither."""
    if not options.show and not (Path(options.model, "config.json").is_file() and Path(options.data).is_dir()):
        parser.error("--model needs a folder with a config.json, and --data a folder with the sets")


def latest_records(results: Path, order: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Read the latest record of each name, in the given order, other names last; a torn last line is left out."""
    if not results.is_file():
        return {}
    records = [json.loads(text) for text in results.read_text(encoding="utf-8").splitlines() if text.endswith("}")]
    latest = {record["name"]: record for record in records}
    places = {name: place for place, name in enumerate(order)}
    return {name: latest[name] for name in sorted(latest, key=lambda name: places.get(name, len(places)))}


def print_tables(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table twice: aligned on stderr, in Markdown on stdout."""
    print_table(title, header, rows)
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
