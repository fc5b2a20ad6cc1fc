"""`tune_card`: the README.md of a tuned folder, in the form that the Hugging Face Hub reads, with honest limits.

Texts of records are quoted, never interpreted as Markdown. The licence is left to whoever publishes: the base model and
the rows decide it, and neither is ours.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import chinchilla_lm
from chinchilla_lm.core.files import write_text
from chinchilla_lm.report.card import markdown_template
from chinchilla_lm.report.tune_record import TuneRun, read_tune_run
from chinchilla_lm.report.tune_rows import cost_rows, data_rows, metric_rows, setting_rows, value_text
from chinchilla_lm.report.tune_use import load_lines, use_note
from chinchilla_lm.report.tune_words import (
    added_sentence,
    before_sentence,
    evaluated_on,
    headline,
    metric_name,
    model_name,
    notes,
    tested_words,
)

_HUB_TASKS = {
    "relation-extraction": "text-classification",
    "dialogue": "text-generation",
    "multiple-choice": "text-generation",
}
"""Our tasks that the Hub has no name for, by the nearest one that it has."""
_MOST_CLASSES = 40
_LIMITS = {
    "text-classification": "It knows only the labels above and gives one of them to every text, fitting or not.",
    "token-classification": "It finds only the kinds of entity above, and was measured on text like its training rows.",
    "relation-extraction": "It needs the two entities marked as in training, and knows only the relations above.",
    "question-answering": "An answer is a guess from the text given; it is not checked against anything.",
    "multiple-choice": "It ranks the choices it is given; a wrong set of choices still gets an answer.",
}
_GENERATIVE_LIMIT = "What it writes may be wrong, unkind or made up; nothing checks it against the source."


def write_tune_card(run_dir: Path | str) -> Path | None:
    """Write README.md into the tuned folder of a run directory.

    Returns:
        The file; None where the run has no model folder.

    Raises:
        DataError: no tune.json, or the file cannot be written.
    """
    folders = [Path(run_dir) / name for name in ("model", "model-rejected")]
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is None:
        return None
    write_text(folder / "README.md", tune_card(run_dir))
    return folder / "README.md"


def tune_card(run_dir: Path | str) -> str:
    """Write the model card of a tuning.

    Args:
        run_dir: the run directory with tune.json; records that are missing are left out.

    Returns:
        The text of README.md: YAML front matter and Markdown.

    Raises:
        DataError: no tune.json.
    """
    run = read_tune_run(run_dir)
    task = run.word("task")
    labels = _known_labels(run)
    return markdown_template("tune_card.md.jinja").render(
        run=run,
        task=task,
        base=model_name(run),
        hub_task=_HUB_TASKS.get(task, task),
        headline=headline(run).sentences,
        before="" if run.table("continual") else before_sentence(run),
        metrics=_front_metrics(run),
        table=metric_rows(run),
        tested=tested_words(run),
        split=evaluated_on(run),
        labels=labels[:_MOST_CLASSES],
        more_labels=max(0, len(labels) - _MOST_CLASSES),
        data=data_rows(run),
        added=added_sentence(run),
        settings=setting_rows(run),
        costs=cost_rows(run),
        template=value_text(run.table("describe").get("template") or ""),
        load=load_lines(run),
        use_note=use_note(run),
        limit=_LIMITS.get(task, _GENERATIVE_LIMIT),
        notes=notes(run),
        version=chinchilla_lm.__version__,
    )


def _known_labels(run: TuneRun) -> list[str]:
    """Return what the model can answer; measured classes may hold labels of test rows that it was never taught."""
    described = run.table("describe").get("labels")
    known = [str(label) for label in described] if isinstance(described, list) else []
    if run.word("task") == "token-classification":
        known = [label[2:] for label in known if label.startswith("B-")]
    return known or list(run.table("per_class", "after"))


def _front_metrics(run: TuneRun) -> list[dict[str, Any]]:
    """Return the results for the front matter, the primary metric first, in the record's own unit."""
    after = run.metrics("after")
    names = sorted(after, key=lambda name: (name != run.metric, name))
    return [{"type": name, "name": metric_name(name), "value": after[name]} for name in names]
