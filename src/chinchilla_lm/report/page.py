"""`write_report`: one self-contained report.html from the records of a run directory.

The page loads nothing: style, script and pictures are inside it, and its content security policy names their hashes, so
that text from a model, a corpus or a configuration cannot run even if escaping failed. It reads without scripts; the
script only shows the values under the pointer. It writes report.html and nothing else.
"""

from __future__ import annotations

import math
import platform
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

import chinchilla_lm
from chinchilla_lm.core.files import sha256_file, write_text
from chinchilla_lm.core.units import format_count
from chinchilla_lm.report import curves, figures, words
from chinchilla_lm.report.glossary import GLOSSARY
from chinchilla_lm.report.html import json_block, page_filters, page_parts, page_template
from chinchilla_lm.report.points import Z90
from chinchilla_lm.report.rundir import Record, Run, is_number, read_run
from chinchilla_lm.report.tasks import task_charts, tasks_of

_FIGURES = (
    figures.strip_chart,
    figures.isoflop_chart,
    figures.compute_chart,
    curves.allocation_chart,
    curves.training_chart,
)
_HASHED_FILES = (
    "config.toml",
    "env.json",
    "sweep/records.jsonl",
    "law.json",
    "forecast.json",
    "plan.toml",
    "eval.json",
)
_LAW_ROWS = (
    ("E", "the loss that endless size and endless text would leave"),
    ("A", "how much a finite size costs"),
    ("alpha", "how fast that falls with size"),
    ("B", "how much finite text costs"),
    ("beta", "how fast that falls with text"),
    ("a", "the best size grows as compute to this power"),
    ("b", "the best amount of text grows as compute to this power"),
)
REQUEST_DEFAULTS: dict[str, Any] = {  # of `chinchilla run`: a request as these words say it need not name them
    "seed": 0,
    "vocab": 0,
    "context": 0,
    "threads": 0,
    "dtype": "auto",
    "sweep_share": 0.25,
    "least_rung_flops": 3e11,
    "suite": [],
    "suite_data": "",
    "suite_items": 500,
}
CONVENTIONS = {  # what N counts, in words
    "matmul": "every weight in a matrix product for a token: blocks and output head, without the input embedding",
    "total": "all weights, embeddings included",
    "non_embedding": "all weights but the embeddings",
}


def write_report(run_dir: Path | str) -> Path:
    """Write report.html into a run directory, from its records alone.

    Args:
        run_dir: the run directory; parts of it may be missing, and the page then says so.

    Returns:
        The path of the page.

    Raises:
        ChinchillaError: no such folder, or the page cannot be written.
    """
    run = read_run(run_dir)
    path = run.folder / "report.html"
    write_text(path, render_page(run))
    return path


def render_page(run: Run) -> str:
    """The page's HTML."""
    charts = [chart for chart in (draw(run) for draw in _FIGURES) if chart is not None]
    charts += task_charts(run)
    return page_template("report.html.jinja").render(
        run=run,
        headline=words.headline(run),
        notes=words.record_notes(run),
        budget=words.budget_of(run),
        command=_command(run),
        asked=words.flatten(run.config),
        tiles=_tiles(run),
        law_rows=_law_rows(run),
        convention=CONVENTIONS.get(str((run.law or {}).get("params_convention", "matmul")), "see law.json"),
        warnings=words.sentences_of((run.law or {}).get("warnings")),
        reasons=words.sentences_of((run.forecast or {}).get("reasons")),
        tasks=tasks_of(run),
        stages=_stage_rows(run),
        stage_warnings=[text for stage in run.stages for text in words.sentences_of(stage.get("warnings"))],
        spent=words.spent_sentence(run),
        has_model=(run.folder / "model" / "config.json").is_file(),
        seeds=words.seeds_of(run),
        hashes=_hashes(run),
        glossary=GLOSSARY,
        version=chinchilla_lm.__version__,
        python=platform.python_version(),
        records=json_block(_embedded_records(run)),
        **page_parts(charts),
    )


def _embedded_records(run: Run) -> Record:
    """The records without their long curves, so that the page alone is enough to check its claims."""
    trials = [{key: value for key, value in trial.items() if key != "curve"} for trial in (*run.trials, *run.diverged)]
    parts = {"env": run.env, "law": run.law, "forecast": run.forecast, "eval": run.evaluation}
    return {**parts, "stages": list(run.stages), "trials": trials}


def _tiles(run: Run) -> list[tuple[str, Markup, str]]:
    """The numbers at a glance: (name, value, remark)."""
    forecast, outcome = run.forecast or {}, run.evaluation or {}
    written = page_filters()
    tiles = []
    if run.forecast is not None:
        interval = f"{forecast['low']:.4f} to {forecast['high']:.4f}"
        tiles.append(("Predicted loss", written["loss"](forecast["loss"]), interval))
    if run.evaluation is not None:
        error = f"± {Z90 * outcome['loss_se']:.4f} by the sample" if is_number(outcome.get("loss_se")) else ""
        tiles.append(("Loss reached", written["loss"](outcome["loss"]), error))
        tiles.append(("Bits per byte", written["loss"](outcome.get("bits_per_byte")), "for any tokenizer"))
        perplexity = math.exp(outcome["loss"]) if outcome["loss"] < 700 else None  # e^710 is no float
        tiles.append(("Perplexity", written["digits"](perplexity), "exp(loss), per token"))
    if run.forecast is not None:
        total = forecast.get("params_total")
        remark = f"{format_count(total)} in all" if is_number(total) else ""
        tiles.append(("Parameters", written["count"](forecast["params_matmul"]), remark))
        ratio = float(forecast["tokens"]) / float(forecast["params_matmul"])
        passes = forecast.get("epochs")
        passes_words = f", seen {passes:.2g} times" if is_number(passes) and passes > 1 else ""
        tiles.append(("Tokens", written["count"](forecast["tokens"]), f"{ratio:.3g} per parameter{passes_words}"))
        tiles.append(("Compute", written["flops"](forecast["flops"]), "of the final training"))
    if run.stages:
        seconds = sum(float(stage["seconds"]) for stage in run.stages)
        tiles.append(("Time", written["seconds"](seconds), "all stages"))
    return tiles


def _law_rows(run: Run) -> list[dict[str, Any]]:
    if run.law is None:
        return []
    intervals = run.law.get("intervals") or {}
    rows = []
    for name, meaning in _LAW_ROWS:
        bounds = intervals.get(name)
        value = run.law.get(name, getattr(run.additive_law, name, None))
        bounds = bounds if isinstance(bounds, Mapping) else {}
        rows.append(
            {
                "name": name,
                "meaning": meaning,
                "value": value,
                **{key: bounds.get(key) for key in ("low", "high", "se")},
            }
        )
    return rows


def _stage_rows(run: Run) -> list[dict[str, Any]]:
    """Costs by stage, repeated stages (a resumed run) added up; share is of the longest stage."""
    totals: dict[str, dict[str, float]] = {}
    for stage in run.stages:
        total = totals.setdefault(
            str(stage.get("stage", "unnamed")), {"seconds": 0.0, "flops": 0.0, "cpu_seconds": 0.0}
        )
        for key in total:
            total[key] += float(stage[key]) if is_number(stage.get(key)) else 0.0
    longest = max((total["seconds"] for total in totals.values()), default=0.0) or 1.0
    return [{"name": name, **total, "bar": 100 * total["seconds"] / longest} for name, total in totals.items()]


def _command(run: Run) -> str:
    """The command that repeats the request; empty where it is not recorded."""
    budget, corpus = words.budget_of(run), words.corpus_of(run)
    if budget is None or not corpus:
        return ""
    pairs = [("corpus", text) for text in corpus] + [("budget", budget.text)]
    for name, default in REQUEST_DEFAULTS.items():
        value = run.config.get(name, default)
        if value != default:
            pairs += [(name, plain) for plain in (value if isinstance(value, list) else [value])]
    options = [f"--{name.replace('_', '-')} {shlex.quote(str(value))}" for name, value in (*pairs, ("out", run.name))]
    return " ".join(["chinchilla run", *options])


def _hashes(run: Run) -> list[tuple[str, str]]:
    paths: Iterable[Path] = (run.folder / name for name in (*_HASHED_FILES, "data/manifest.json"))
    weights = sorted((run.folder / "model").glob("*.safetensors")) if (run.folder / "model").is_dir() else []
    return [
        (path.relative_to(run.folder).as_posix(), sha256_file(path)) for path in (*paths, *weights) if path.is_file()
    ]
