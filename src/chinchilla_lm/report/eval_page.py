"""`write_eval_page`: one self-contained page from a record of `chinchilla eval`.

The record is all that it reads, so that an eval.json gives the same page anywhere and later; what it lacks is left out.
The page loads nothing (see `html`).
"""

from __future__ import annotations

from pathlib import Path

import chinchilla_lm
from chinchilla_lm.core.errors import DataError
from chinchilla_lm.core.files import write_text
from chinchilla_lm.report.dots import shortened
from chinchilla_lm.report.eval_rows import (
    contamination_rows,
    harness_rows,
    model_name,
    other_name,
    pair_rows,
    suite_rows,
    text_rows,
)
from chinchilla_lm.report.eval_words import eval_charts, glossary, headline, percent, points
from chinchilla_lm.report.html import json_block, page_parts, page_template
from chinchilla_lm.report.record_parts import Record, number_of, word_of
from chinchilla_lm.report.tune_words import write_p

SCHEMAS = ("suites/1", "domains/1", "eval/1")


def write_eval_page(record: Record, path: Path) -> Path:
    """Write the page of an evaluation.

    Args:
        record: that `chinchilla eval --out` wrote; parts of it may be absent.
        path: the file.

    Returns:
        The file written.

    Raises:
        DataError: a record of something else, or a file that cannot be written.
    """
    write_text(path, render_eval_page(record))
    return path


def render_eval_page(record: Record) -> str:
    """Return the page's HTML; errors as in `write_eval_page`."""
    schema = word_of(record, "schema")
    sentences = headline(record) if schema in SCHEMAS else []
    if not sentences:
        what = f"schema {schema!r}" if schema not in SCHEMAS else "nothing measured in it"
        raise DataError(f"the record is no evaluation ({what}); give one that `chinchilla eval --out` wrote")
    seed = number_of(record, "seed")
    return page_template("eval.html.jinja").render(
        model=model_name(record),
        other=other_name(record),
        shortened=shortened,
        asked=[
            (name, value)
            for name, value in (
                ("model", word_of(record, "model")),
                ("seed of the items drawn", "" if seed is None else f"{seed:.0f}"),
                ("schema", schema),
            )
            if value
        ],
        sentences=sentences,
        suites=suite_rows(record),
        pairs=pair_rows(record),
        contamination=contamination_rows(record),
        harness=harness_rows(record),
        texts=text_rows(record),
        percent=percent,
        points=points,
        p_text=write_p,
        glossary=glossary(record),
        version=chinchilla_lm.__version__,
        records=json_block(record),
        **page_parts(eval_charts(record)),
    )
