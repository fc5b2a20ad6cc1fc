"""What every test may ask for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED_DATA_VARIABLE = "CHINCHILLA_SHARED_DATA"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of shared test corpora; tests that need it are skipped where it is absent."""
    named = os.environ.get(SHARED_DATA_VARIABLE)
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the shared corpora are absent: {folder} is no folder; set {SHARED_DATA_VARIABLE} to theirs")
    return folder
