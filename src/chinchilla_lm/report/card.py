"""`model_card`: the README.md of a saved model, in the form that the Hugging Face Hub reads.

Front matter (YAML) with the held-out results, then prose. The licence is left to whoever publishes: it follows from the
text that the model was trained on, which is not ours. Texts from records are quoted, never interpreted as Markdown.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

import chinchilla_lm
from chinchilla_lm.core.units import format_count, format_flops, format_seconds
from chinchilla_lm.report import words
from chinchilla_lm.report.points import Z90, interval_label
from chinchilla_lm.report.rundir import Run, is_number, read_run

# Characters that YAML refuses or reads as line ends although JSON leaves them alone (YAML 1.2, section 5.1).
_NOT_IN_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff\ufffe\uffff]")
_MARKDOWN_SIGNS = re.compile(r"([\\`*_\[\]|~$])")  # those that mean something in the middle of a line


def model_card(run_dir: Path | str) -> str:
    """Write a run's model card.

    Args:
        run_dir: the run directory; records that are missing are named or left out.

    Returns:
        The text of README.md: YAML front matter and Markdown.

    Raises:
        ChinchillaError: no such folder.
    """
    run = read_run(run_dir)
    shape = (run.forecast or {}).get("shape")
    return markdown_template("model_card.md.jinja").render(
        run=run,
        headline=words.headline(run),
        corpus=words.corpus_words(run),
        metrics=_metrics(run),
        shape=shape if isinstance(shape, Mapping) else {},
        interval=interval_label(run.forecast or {}),
        half_width=Z90 * run.evaluation["loss_se"]
        if run.evaluation and is_number(run.evaluation.get("loss_se"))
        else None,
        reasons=words.sentences_of((run.forecast or {}).get("reasons")),
        seconds=sum(float(stage["seconds"]) for stage in run.stages),
        version=chinchilla_lm.__version__,
    )


@functools.cache
def markdown_template(name: str) -> jinja2.Template:
    """Load a template that writes Markdown, with the filters of both cards."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("chinchilla_lm.report", "templates"),
        autoescape=False,  # Markdown, not HTML; texts go through `quoted`, `fenced` or `yaml`
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        yaml=yaml_scalar,
        quoted=markdown_text,
        fenced=fenced,
        count=_or_unknown(format_count),
        flops=_or_unknown(format_flops),
        seconds=_or_unknown(format_seconds),
        loss=_or_unknown(lambda number: f"{number:.4f}"),
        digits=_or_unknown(lambda number: f"{number:.3g}"),
    )
    return environment.get_template(name)


def yaml_scalar(value: Any) -> str:
    """A value as a YAML scalar on one line: JSON is YAML, but for a few characters that are escaped here."""
    text = json.dumps(value, ensure_ascii=False)
    return _NOT_IN_YAML.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def markdown_text(text: Any) -> str:
    """Text that Markdown shows as written, on one line."""
    one_line = " ".join(str(text).split())
    return _MARKDOWN_SIGNS.sub(r"\\\1", one_line.replace("&", "&amp;").replace("<", "&lt;"))


def fenced(text: Any) -> str:
    """Text as a code block whose fence is longer than any run of backticks inside."""
    body = str(text)
    longest = max((len(run) for run in re.findall(r"`+", body)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{body}\n{fence}"


def _or_unknown(write: Any) -> Any:
    return lambda value: write(value) if is_number(value) else "not recorded"


def _metrics(run: Run) -> list[dict[str, Any]]:
    """The results for the front matter, in the Hub's terms."""
    outcome = run.evaluation or {}
    named = (("loss", "Held-out loss (nats per token)"), ("bits_per_byte", "Held-out bits per byte"))
    return [{"type": key, "name": name, "value": outcome[key]} for key, name in named if is_number(outcome.get(key))]
