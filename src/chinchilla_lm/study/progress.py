"""What a study tells while it works. The command line draws it; a test counts it; nothing parses it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """A listener to a study."""

    def stage(self, name: str, detail: str) -> None:
        """A stage begins, or says something worth a line."""
        ...

    def trial(self, name: str, fraction: float, loss: float) -> None:
        """A trial of the sweep is so far done, at this training loss (at 1.0: its held-out loss)."""
        ...

    def advance(self, fraction: float, loss: float | None, seconds_left: float | None) -> None:
        """The present stage is so far done."""
        ...


class Quiet:
    """A listener that says nothing."""

    def stage(self, name: str, detail: str) -> None:
        """Ignore it."""

    def trial(self, name: str, fraction: float, loss: float) -> None:
        """Ignore it."""

    def advance(self, fraction: float, loss: float | None, seconds_left: float | None) -> None:
        """Ignore it."""
