"""`write_fit_page`: one self-contained page from the record of a fit, and its figures as a picture.

The record of `laws.findings.find` is all that it reads, so that a law.json gives the same page anywhere and later. The
page loads nothing (see `html`). It computes nothing that the record could hold.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import chinchilla_lm
from chinchilla_lm.core.errors import DataError
from chinchilla_lm.core.files import write_text
from chinchilla_lm.report import picture
from chinchilla_lm.report.chart import Chart
from chinchilla_lm.report.doubt_charts import doubt_charts
from chinchilla_lm.report.fit_charts import fit_charts
from chinchilla_lm.report.fit_words import FIT_GLOSSARY, FORMULAS, constants, headline, tiles
from chinchilla_lm.report.html import json_block, page_filters, page_parts, page_template
from chinchilla_lm.report.page import CONVENTIONS

Record = Mapping[str, Any]

_OBJECTIVES = {"huber": "Huber sum", "lad": "sum of absolute residuals", "ls": "sum of squares"}
_NEEDED = ("method", "form", "a", "n_runs", "smallest_flops", "largest_flops", "runs")
_UNKNOWN_NAME = "runs"


def write_fit_page(record: Record, path: Path) -> Path:
    """Write the page of a fit.

    Args:
        record: of `find_law`, with `source`, or a law.json that `chinchilla fit --out` wrote.
        path: the file.

    Returns:
        The file written.

    Raises:
        DataError: a record of something else, or a file that cannot be written.
    """
    write_text(path, render_fit_page(record))
    return path


def render_fit_page(record: Record) -> str:
    """Return the page's HTML; errors as in `write_fit_page`."""
    _check(record)
    source = str(record.get("source") or "")
    largest = float(record["largest_flops"])
    return page_template("fit.html.jinja").render(
        record={
            **{name: record.get(name) for name in (*_OPTIONAL, *record)},
            "runs": {**dict.fromkeys(_OPTIONAL_COLUMNS), **record["runs"]},
        },
        name=PurePath(source).name or _UNKNOWN_NAME,
        sentences=headline(record),
        tiles=tiles(record, page_filters()),
        formula=FORMULAS.get(str(record["form"]), record["form"]),
        convention=CONVENTIONS.get(str(record.get("params_convention")), "parameters"),
        objective=_OBJECTIVES.get(str(record.get("objective_loss")), "objective"),
        constants=constants(record),
        level=f"{100 * float(record.get('interval_level') or 0.95):.3g} %",
        residuals=(record.get("diagnosis") or {}).get("residuals"),
        next_budget=_round(10 * largest),
        design_budget=_round(largest),
        source_word=shlex.quote(source or "runs.csv"),
        glossary=FIT_GLOSSARY,
        version=chinchilla_lm.__version__,
        # The resamples are most of a record, and serve the planner, not a reader.
        records=json_block({name: value for name, value in record.items() if name != "draws"}),
        **page_parts(_charts(record)),
    )


def save_fit_picture(record: Record, path: Path) -> Path:
    """Save the figures of a fit side by side.

    Args:
        record: as in `write_fit_page`.
        path: .png or .svg.

    Returns:
        The file written.

    Raises:
        DataError: a record of something else, another kind of file, or one that cannot be written.
    """
    _check(record)
    return picture.save_charts(_charts(record), path, run_name=str(record.get("source") or _UNKNOWN_NAME))


_OPTIONAL = (
    *("optima", "forecast", "approaches", "backtest", "diagnosis", "comparison", "exponents", "status", "objective"),
    *("objective_loss", "delta", "intervals", "interval_method", "warnings", "source", "hash"),
)
_OPTIONAL_COLUMNS = ("lines", "residual_percent")


def _charts(record: Record) -> list[Chart]:
    return [*fit_charts(record), *doubt_charts(record)]


def _check(record: Record) -> None:
    missing = [name for name in _NEEDED if name not in record]
    if missing:
        raise DataError(f"the record lacks {missing[0]!r}; give one that `chinchilla fit --out law.json` wrote")


def _round(flops: float) -> str:
    return f"{flops:.0e}".replace("e+", "e")
