"""`write_prompt_page`: one self-contained page from a record of `chinchilla prompt`.

The record is all that it reads, so that a prompt.json gives the same page anywhere and later. What it lacks is
left out. The page loads nothing (see `html`).
"""

from __future__ import annotations

from pathlib import Path

import chinchilla_lm
from chinchilla_lm.core.errors import DataError
from chinchilla_lm.core.files import write_text
from chinchilla_lm.report.html import json_block, page_parts, page_template
from chinchilla_lm.report.prompt_rows import (
    class_rows,
    count_of,
    draw_rows,
    first_prompt,
    metric_rows,
    model_name,
    primary,
    rule_rows,
    search_rows,
)
from chinchilla_lm.report.prompt_words import GLOSSARY, headline, rules_chart, spread_text, tiles
from chinchilla_lm.report.record_parts import Record, table_of, word_of
from chinchilla_lm.report.tune_words import metric_name, write

SCHEMA = "prompt/1"
_LISTED_CLASSES = 24
"""Classes shown at once; the others are one click away."""


def write_prompt_page(record: Record, path: Path) -> Path:
    """Write the page of a prompted evaluation.

    Args:
        record: prompt.json of `chinchilla prompt --out`; parts of it may be absent.
        path: the file.

    Returns:
        The file written.

    Raises:
        DataError: a record of something else, or a file that cannot be written.
    """
    write_text(path, render_prompt_page(record))
    return path


def render_prompt_page(record: Record) -> str:
    """Return the page's HTML; errors as in `write_prompt_page`."""
    schema = word_of(record, "schema")
    sentences = headline(record) if schema == SCHEMA else []
    if not sentences:
        what = f"schema {schema!r}" if schema != SCHEMA else "no metric in it"
        raise DataError(f"the record is no prompted evaluation ({what}); give a prompt.json of `chinchilla prompt`")
    chart = rules_chart(record)
    classes = class_rows(record)
    return page_template("prompt.html.jinja").render(
        task=word_of(record, "task") or "prompt",
        model=model_name(record),
        asked=[(name, word_of(record, name)) for name in ("model", "task", "language", "template") if record.get(name)],
        sentences=sentences,
        tiles=tiles(record),
        metric=primary(record),
        metrics=metric_rows(record),
        rules=rule_rows(record),
        draws=draw_rows(record),
        classes=classes[:_LISTED_CLASSES],
        more_classes=classes[_LISTED_CLASSES:],
        search=search_rows(record),
        searched=count_of(table_of(record, "search"), "items_scored"),
        prompt=first_prompt(record),
        write=write,
        metric_name=metric_name,
        spread_text=spread_text,
        glossary=GLOSSARY,
        version=chinchilla_lm.__version__,
        records=json_block(record),
        **page_parts([] if chart is None else [chart]),
    )
