"""A bench's temporary folder, which may hold gigabytes: removed at the end, after SIGTERM too, or by the next run."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from chinchilla_lm.core.files import is_alive


@contextlib.contextmanager
def scratch(name: str) -> Iterator[Path]:
    """Make an empty folder below $TMPDIR; what killed runs of the same bench have left there is removed first.

    Args:
        name: of the bench.
    """
    place, beginning = Path(tempfile.gettempdir()), f"chinchilla-bench-{name}-"
    for left in place.glob(f"{beginning}*"):
        number = left.name.removeprefix(beginning)
        if number.isdigit() and not is_alive(int(number)):
            shutil.rmtree(left, ignore_errors=True)
    folder = place / f"{beginning}{os.getpid()}"
    folder.mkdir()
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield folder
    finally:
        signal.signal(signal.SIGTERM, before)
        shutil.rmtree(folder, ignore_errors=True)
