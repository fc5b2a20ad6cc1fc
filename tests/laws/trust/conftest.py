"""Tables that several tests of trust ask for."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from chinchilla_lm.laws.table import RunTable


def read_table(path, keep):
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    with path.open(newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if keep(row)]
    params, tokens, loss = (np.array([float(row[name]) for row in rows]) for name in ("n_params", "n_tokens", "loss"))
    return RunTable(params=params, tokens=tokens, flops=6 * params * tokens, loss=loss)


@pytest.fixture(scope="session")
def epoch_table(shared_data):
    """The 240 runs of Besiroglu et al. 2024."""
    table = read_table(shared_data / "laws" / "epoch_chinchilla.csv", lambda row: row["in_besiroglu_240"] == "True")
    assert len(table.loss) == 240
    return table


@pytest.fixture(scope="session")
def olmo_to_1b(shared_data):
    """The OLMo ladder's 24 runs from 190M to 1B."""
    table = read_table(
        shared_data / "laws" / "olmo_ladder_final.csv",
        lambda row: float(row["n_params"]) < 1.6e9 and not row["run"].startswith("peteish"),
    )
    assert len(table.loss) == 24
    return table
