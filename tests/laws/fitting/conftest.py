"""Runs that several tests of fitting share."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from chinchilla_lm.laws.forms.additive import AdditiveLaw
from chinchilla_lm.laws.table import RunTable

# Besiroglu et al. 2024: a law near those of real sweeps.
TRUTH = AdditiveLaw(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658)


def read_epoch(shared_data: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Params, tokens, loss of the 245 digitised Chinchilla runs, and whether Besiroglu et al. kept each."""
    path = shared_data / "laws" / "epoch_chinchilla.csv"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    with path.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    columns = (np.array([float(row[name]) for row in rows]) for name in ("n_params", "n_tokens", "loss"))
    return (*columns, np.array([row["in_besiroglu_240"] == "True" for row in rows]))


@pytest.fixture(scope="session")
def epoch_245(shared_data):
    return read_epoch(shared_data)[:3]


@pytest.fixture(scope="session")
def epoch(shared_data):
    *columns, kept = read_epoch(shared_data)
    assert kept.sum() == 240
    return tuple(column[kept] for column in columns)


@pytest.fixture(scope="session")
def epoch_table(epoch):
    params, tokens, loss = epoch
    return RunTable(params=params, tokens=tokens, flops=6 * params * tokens, loss=loss)


@pytest.fixture(scope="session")
def truth():
    return TRUTH


@pytest.fixture(scope="session")
def simulate(truth):
    """Give 35 runs of the known law: 7 sizes on each of 5 budgets, noise in ln L."""

    def simulate_sweep(seed: int, noise: float = 0.003, reach: float = 10**0.5) -> RunTable:
        flops = np.repeat(np.geomspace(1e18, 1e20, 5), 7)
        params = np.array([truth.optimum(c)[0] for c in flops]) * np.tile(np.geomspace(1 / reach, reach, 7), 5)
        tokens = flops / 6 / params
        errors = noise * np.random.default_rng(seed).standard_normal(len(flops))
        return RunTable(params=params, tokens=tokens, flops=flops, loss=truth.loss(params, tokens) * np.exp(errors))

    return simulate_sweep
