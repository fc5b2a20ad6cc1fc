"""What every test may ask for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# No test asserts a time, hypothesis's deadline of 200 ms included: a busy machine is no bug.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

# Libraries that ask the Hub about local folders too would wait for a network. To let them:
# `HF_HUB_OFFLINE=0 pytest -m network`.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

SHARED_DATA_VARIABLE = "CHINCHILLA_SHARED_DATA"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of shared test corpora; tests that need it are skipped where it is absent."""
    named = os.environ.get(SHARED_DATA_VARIABLE)
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the shared corpora are absent: {folder} is no folder; set {SHARED_DATA_VARIABLE} to theirs")
    return folder
