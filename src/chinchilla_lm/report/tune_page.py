"""`write_tune_page`: one self-contained report.html from the records of a tuning's run directory.

The page loads nothing (see `html`) and reads only what `tune_record` lets through. It writes report.html and nothing
else; it computes nothing that the records could hold.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import chinchilla_lm
from chinchilla_lm.core.files import write_text
from chinchilla_lm.report.html import json_block, page_parts, page_template
from chinchilla_lm.report.tune_charts import tune_charts
from chinchilla_lm.report.tune_record import TuneRun, read_tune_run
from chinchilla_lm.report.tune_rows import (
    changed_examples,
    class_rows,
    confusion_rows,
    cost_rows,
    cut_text,
    data_rows,
    metric_rows,
    older_rows,
    setting_rows,
    value_text,
)
from chinchilla_lm.report.tune_use import load_lines, serve_lines, use_note
from chinchilla_lm.report.tune_words import (
    GLOSSARY,
    Headline,
    added_sentence,
    change_words,
    data_sentence,
    evaluated_on,
    headline,
    notes,
    tested_words,
    tiles,
)

_VERDICT_CSS = {"better": "inside", "worse": "outside", "open": "", "alone": ""}
_LISTED_CLASSES = 24
"""Classes shown at once; the others are one click away."""


def write_tune_page(run_dir: Path | str) -> Path:
    """Write report.html into the run directory of a tuning, from its records alone.

    Args:
        run_dir: the folder that `chinchilla tune --out` wrote; curves and predictions may be missing.

    Returns:
        The path of the page.

    Raises:
        DataError: no tune.json, or the page cannot be written.
    """
    run = read_tune_run(run_dir)
    path = run.folder / "report.html"
    write_text(path, render_tune_page(run))
    return path


def render_tune_page(run: TuneRun) -> str:
    """Return the page's HTML."""
    head: Headline = headline(run)
    classes = class_rows(run)
    return page_template("tune.html.jinja").render(
        run=run,
        task=run.word("task"),
        sentences=head.sentences,
        verdict=_VERDICT_CSS[head.verdict],
        tiles=tiles(run),
        notes=notes(run),
        metrics=metric_rows(run),
        tested=tested_words(run),
        split=evaluated_on(run),
        paired=run.table("paired"),
        classes=classes[:_LISTED_CLASSES],
        more_classes=classes[_LISTED_CLASSES:],
        confusions=confusion_rows(run),
        changed=changed_examples(run),
        turned=change_words(run),
        data=data_rows(run),
        added=added_sentence(run),
        settings=setting_rows(run),
        costs=cost_rows(run),
        described=_described(run),
        search=run.table("search"),
        search_text=value_text,
        continual=run.table("continual"),
        older=older_rows(run),
        law=run.table("learning_curve"),
        data_sentence=data_sentence(run),
        load=load_lines(run),
        serve=serve_lines(run),
        use_note=use_note(run),
        command=tune_command(run),
        glossary=GLOSSARY,
        version=chinchilla_lm.__version__,
        records=json_block(run.record),
        **page_parts(tune_charts(run)),
    )


def tune_command(run: TuneRun) -> str:
    """Return the command that repeats the tuning from its own config; "" where it was not kept."""
    if not (run.folder / "config.toml").is_file():
        return ""
    return f"chinchilla tune {run.word('task')} --config {shlex.quote(run.name)}/config.toml --out again"


def _described(run: TuneRun) -> list[tuple[str, str]]:
    """Return what the task says of itself, and the words of the record's head: (name, value)."""
    named = ("task", "model", "method", "backbone", "mask", "hub_class")
    rows = [(name.replace("_", " "), run.word(name)) for name in named if run.word(name)]
    inner: dict[str, Any] = dict(run.table("describe"))
    return rows + [(str(name).replace("_", " "), cut_text(value_text(value))) for name, value in inner.items()]
