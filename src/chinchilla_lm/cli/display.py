"""The live display of a study on stderr: stage, trials side by side, loss, time left; plain lines off a terminal."""

from __future__ import annotations

import math
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from chinchilla_lm.core.units import format_seconds

_PLAIN_EVERY_SECONDS = 15.0


class StudyDisplay:
    """Listens to a study (see `study.progress`) and draws it."""

    def __init__(self, console: Console) -> None:
        """Draws nothing until entered."""
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._trials: dict[str, TaskID] = {}
        self._stage: TaskID | None = None
        self._name = ""
        self._last_line = 0.0
        self._began = time.monotonic()

    def __enter__(self) -> StudyDisplay:
        """Start drawing."""
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop drawing; lines printed stay."""
        self._bars.stop()

    def stage(self, name: str, detail: str) -> None:
        """Print a line for the stage and begin its bar."""
        self._console.print(f"[dim]{self._clock()}[/] [bold]{name:9}[/] ", end="")
        self._console.print(detail, markup=False, highlight=False)
        if name == "note":
            return
        self._name = name
        for task in (*self._trials.values(), *([] if self._stage is None else [self._stage])):
            self._bars.remove_task(task)
        self._trials, self._stage = {}, None

    def trial(self, name: str, fraction: float, loss: float) -> None:
        """Move a trial's bar; a finished one becomes a line."""
        if fraction >= 1.0:
            if name in self._trials:
                self._bars.remove_task(self._trials.pop(name))
            said = "diverged" if math.isnan(loss) else f"held-out loss {loss:.4f}"
            self._console.print(f"[dim]{self._clock()}[/]           {name:18} {said}", highlight=False)
            return
        if name not in self._trials:
            self._trials[name] = self._bars.add_task(f"{self._name} {name}", total=1.0, note="")
        self._bars.update(self._trials[name], completed=fraction, note=f"loss {loss:.3f}")

    def advance(self, fraction: float, loss: float | None, seconds_left: float | None) -> None:
        """Move the stage's bar."""
        note = "" if loss is None else f"loss {loss:.3f}"
        if seconds_left is not None:
            note += f"  {format_seconds(seconds_left)} left"
        if self._stage is None:
            self._stage = self._bars.add_task(self._name, total=1.0, note=note)
        self._bars.update(self._stage, completed=fraction, note=note)
        if not self._console.is_terminal and time.monotonic() - self._last_line >= _PLAIN_EVERY_SECONDS:
            self._last_line = time.monotonic()
            self._console.print(f"{self._clock()}           {100 * fraction:3.0f} %  {note}", highlight=False)

    def _clock(self) -> str:
        seconds = round(time.monotonic() - self._began)
        return f"{seconds // 60:3d}:{seconds % 60:02d}"
