"""A table with several lines a run: training curves for approach 1, and their last lines for the others.

A line in the middle of a decaying learning rate is no finished run: its loss is too high for its tokens (Hoffmann et
al. 2022, figure A1), so that a fit to all lines bends. It reads no file.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from chinchilla_lm.core.errors import FitError
from chinchilla_lm.laws.findings.request import FitRequest
from chinchilla_lm.laws.fitting.envelope import Curve
from chinchilla_lm.laws.table import RunTable

_FEWEST_LINES = 3  # on average, of a training curve


def runs_and_curves(table: RunTable, request: FitRequest) -> tuple[RunTable, tuple[Curve, ...]]:
    """Split a table into finished runs and training curves.

    Args:
        table: as read.
        request: whether checkpoints count as runs.

    Returns:
        The runs to fit, with a warning where lines were left out, and the curves, none where the table has no names
        that lines share.

    Raises:
        FitError: the envelope is asked for, and the table has no curves.
    """
    groups = _curve_places(table)
    if not groups:
        if request.method == "envelope":
            raise FitError(f"--method envelope needs training curves: {_missing(table)}")
        return table, ()
    curves: list[Curve] = []
    for places in groups:
        ordered = places[np.argsort(table.tokens[places], kind="stable")]
        curves.append(
            Curve(params=float(table.params[ordered[0]]), tokens=table.tokens[ordered], loss=table.loss[ordered])
        )
    if request.checkpoints == "all" or request.method == "envelope":  # the envelope reads every line
        return table, tuple(curves)
    last = np.sort(np.array([places[int(table.tokens[places].argmax())] for places in groups]))
    left_out = len(table.loss) - len(last)
    note = (
        f"{left_out} earlier lines of {len(last)} runs were left out of the fit, for the loss of an unfinished run is "
        "no final one; --checkpoints all fits them too"
    )
    kept = table.take(last)
    return replace(kept, warnings=(*kept.warnings, note)), tuple(curves)


def _curve_places(table: RunTable) -> list[np.ndarray]:
    """Return the places of each run's lines; none where names are not shared by the lines of one size."""
    if table.labels is None:
        return []
    names, group_n = np.unique(np.array(table.labels), return_inverse=True)
    if len(table.labels) < _FEWEST_LINES * len(names):
        return []
    order = np.argsort(group_n, kind="stable")
    bounds = np.flatnonzero(np.diff(group_n[order])) + 1
    groups = np.split(order, bounds)
    return groups if all(np.ptp(table.params[places]) == 0 for places in groups) else []


def _missing(table: RunTable) -> str:
    if table.labels is None:
        return (
            "one line for each checkpoint, with columns run (its name), n_params, n_tokens (or step and "
            "--tokens-per-step) and loss; this table has no column run: name it with --run-column"
        )
    n_names = len(set(table.labels))
    if len(table.labels) < _FEWEST_LINES * n_names:
        return (
            f"one line for each checkpoint, and this table has {len(table.labels)} lines of {n_names} runs; add the "
            "earlier lines, or use --method isoflop"
        )
    return "the lines of one run must share one n_params, and here they do not; name the runs apart in column run"
