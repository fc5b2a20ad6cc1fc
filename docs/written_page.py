"""What the makers of pages share: write a page, or with `--check` only compare it with the file."""

from __future__ import annotations

import sys
from pathlib import Path


def write_or_check(page: str, path: Path) -> int:
    """Write a page, or compare it where the command line holds `--check`; return the exit code, 1 where it differs."""
    if "--check" in sys.argv[1:]:
        return 0 if path.exists() and path.read_text(encoding="utf-8") == page else 1
    path.write_text(page, encoding="utf-8")
    return 0
