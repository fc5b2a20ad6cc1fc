"""Stop strings in streamed text: nothing of a possible stop leaves early, and nothing of a stop leaves at all.

A stop may straddle tokens. The result does not depend on how the text is cut: the text ends before the stop string that
is complete first; of two that end at the same character, before the longer. Never decodes tokens.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Hold back what may become a stop string.

    Attributes:
        found: the stop string that ended the text, or None.
        position: characters of the text before it, or None.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Args: stops: non-empty strings."""
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self._released = 0
        self.found: str | None = None
        self.position: int | None = None

    def push(self, piece: str) -> str:
        """Add text; return what surely is no part of a stop ("" once a stop is found)."""
        if self.found is not None:
            return ""
        if not self._stops:
            self._released += len(piece)
            return piece
        text = self._held + piece
        matches = [(start + len(stop), start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if matches:
            _, start, self.found = min(matches)
            self.position = self._released + start
            self._held = ""
            return text[:start]
        return self._release(text, len(text) - self._suspect(text))

    def finish(self) -> str:
        """Return what is still held: the text ended without completing a stop."""
        return self._release(self._held, len(self._held))

    def _suspect(self, text: str) -> int:
        """Length of the longest end of the text that begins a stop."""
        longest = min(self._longest - 1, len(text))
        return next(
            (size for size in range(longest, 0, -1) if any(stop.startswith(text[-size:]) for stop in self._stops)), 0
        )

    def _release(self, text: str, end: int) -> str:
        self._held = text[end:]
        self._released += end
        return text[:end]
