"""Write docs/commands.md from the commands' own help, so that the page cannot drift; `--check` only compares.

Run: make docs
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from rich.console import Console
from written_page import write_or_check

from chinchilla_lm.cli.main import app

PAGE = Path(__file__).with_name("commands.md")
COMMANDS = (
    "",
    "run",
    "sweep",
    "prepare",
    "train",
    "eval",
    "prompt",
    "tune",
    "merge",
    "generate",
    "serve",
    "chat",
    "export",
    "push",
    "plan",
    "fit",
    "design",
    "compare",
)


def commands_page() -> str:
    """Return the page: the help of `chinchilla` and of each command."""
    parts = ["# Commands\n\nWritten by `make docs` from the commands' own help.\n"]
    for command in COMMANDS:
        out = io.StringIO()
        app.help_print([command] if command else [], console=Console(file=out, width=100, no_color=True))
        text = "\n".join(line.rstrip() for line in out.getvalue().splitlines()).strip()
        parts.append(f"## chinchilla {command}".rstrip() + f"\n\n```\n{text}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    sys.exit(write_or_check(commands_page(), PAGE))
