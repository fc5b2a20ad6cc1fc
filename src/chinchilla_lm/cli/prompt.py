"""`chinchilla prompt`: what a model answers when asked well, without a gradient, and how sure that figure is.

With --json, exactly one JSON document goes to stdout; what is meant for people goes to stderr. torch is imported inside
the functions, so that `chinchilla prompt --help` answers at once.
"""

from __future__ import annotations

import json as json_format
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from chinchilla_lm.cli.options import check_page_name
from chinchilla_lm.cli.terminal import visible
from chinchilla_lm.core.errors import ConfigError
from chinchilla_lm.core.tasks import TaskName

if TYPE_CHECKING:
    from chinchilla_lm.evals.loading import Loaded
    from chinchilla_lm.evals.prompted import PromptResult, PromptRows
    from chinchilla_lm.evals.written import WrittenResult
    from chinchilla_lm.prompt.search import ArmRow, SearchResult
    from chinchilla_lm.prompt.template import Template

RuleWord = Literal["auto", "sum", "token", "char", "byte", "pmi", "cc", "bc", "channel"]


@Parameter(name="*", group=Group("Rows", sort_key=1))
@dataclass(frozen=True, kw_only=True)
class RowOptions:
    """What is asked, and what may be learned from."""

    test: str
    """Labelled rows to answer: .csv .tsv .jsonl .parquet .conll, or hf:NAME:CONFIG:SPLIT."""
    train: str = ""
    """Solved rows: demonstrations are drawn from them, and --dev rows split off where none are given."""
    dev: str = ""
    """Labelled rows on which the rule (and with --search the wording) is chosen."""
    limit: int = 0
    """Answer at most so many test rows, drawn by --seed; 0 answers all."""
    column: tuple[str, ...] = ()
    """A field that is called otherwise in the files: label=stars, text=title+body."""
    dev_rows: int = 64
    """Rows split off --train for the choice; 0 for none."""


@Parameter(name="*", group=Group("Prompt", sort_key=2))
@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """The wording, the demonstrations and the rule."""

    template: str = ""
    """A name of docs/prompts.md, a .yaml file of yours, or a task file of lm-evaluation-harness (rows then have its
    columns); the first that fits the rows by default."""
    language: Literal["en", "zh"] = "en"
    """Of the wording."""
    shots: int = 0
    """Demonstrations in each prompt."""
    draws: int = 5
    """Draws of demonstrations; the figure is their mean."""
    method: Literal["balanced", "random", "nearest", "bm25"] = "balanced"
    """How demonstrations are chosen; nearest is by the model's own hidden states."""
    order: Literal["drawn", "entropy"] = "drawn"
    """Of the demonstrations: random as drawn (nearest and bm25: the nearest last), or the one of up to 24 under which
    the model's answers to 16 unlabelled training rows vary most."""
    calibrate: RuleWord = "auto"
    """The scoring rule; auto chooses on dev rows."""
    search: int = 0
    """First compare all fitting wordings, draws and rules on the dev rows, within so many answers."""
    write: Annotated[bool, Parameter(negative="")] = False
    """Let the model write its answer, held to the choices, instead of scoring them."""
    thought: Annotated[bool, Parameter(negative="")] = False
    """Let the model write a chain of thought first, then its answer."""
    samples: int = 1
    """Written texts a row; more than one are drawn at --temperature and voted on (self-consistency)."""
    temperature: float = 0.7
    """Of the samples."""
    seed: int = 0
    """Of draws, samples and subsets."""
    weights: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    """Number format of the model's matrices."""


_PROMPT_DEFAULTS = PromptOptions()


def prompt(
    task: TaskName,
    /,
    *,
    model: Path,
    rows: RowOptions,
    options: PromptOptions = _PROMPT_DEFAULTS,
    out: Path | None = None,
    report: Path | None = None,
    json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Answer labelled rows by prompt, zero-shot or few-shot, and measure the answers.

    Args:
        task: What the rows ask.
        model: A model folder or a run directory.
        rows: The files.
        options: The prompt.
        out: A folder for prompt.json and the answers of every draw.
        report: A page with figures and tables, an .html file.
        json: Print one JSON document: metrics, spread, per_draw, template, scoring.
    """
    # torch takes seconds to import
    from chinchilla_lm.evals.loading import load_for_evaluation
    from chinchilla_lm.evals.prompt_record import prompt_record, write_prompt_folder
    from chinchilla_lm.evals.template_choice import fitting_templates
    from chinchilla_lm.prompt.library_files import open_template

    check_page_name(report)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    named, is_plain = open_template(options.template) if options.template else (None, False)
    given, labelled = _read(task, rows, options, is_plain=is_plain)
    templates = fitting_templates(task, options.language, labelled, named)
    template, result, searched = _answer(load_for_evaluation(model), given, templates, options, console)
    record = prompt_record(template, result, searched=searched, model=str(model), rows=given)
    if json:
        print(json_format.dumps(record, ensure_ascii=False, allow_nan=False))
    for line in _lines(record):
        console.print(visible(line), markup=False)
    if out is not None:  # after printing: a full disk loses the files, not what was measured
        write_prompt_folder(out, record, result, given)
    if report is not None:
        from chinchilla_lm.report.prompt_page import write_prompt_page

        console.print(f"wrote {visible(str(write_prompt_page(record, report)))}", markup=False)


def _read(
    task: str, rows: RowOptions, options: PromptOptions, *, is_plain: bool
) -> tuple[PromptRows, list[dict[str, Any]]]:
    """Read, check and divide the rows; also return all of them, whose labels are the set that answers come from.

    Plain rows stay as they are in the file: what a task file of lm-evaluation-harness asks for is in its own columns.
    With the labels of a drawn part of the test rows alone, that draw would say which answers are possible.
    """
    import random

    from chinchilla_lm.data.labelled import read_rows, rows_for_task
    from chinchilla_lm.evals.prompted import PromptRows

    columns = _columns(rows.column)

    def canonical(source: str) -> list[dict[str, Any]]:
        found = read_rows(source) if source else []
        return found if is_plain or not found else rows_for_task(task, found, columns, where=source)

    if rows.limit < 0 or rows.dev_rows < 0:
        raise ConfigError(f"--limit {rows.limit} and --dev-rows {rows.dev_rows} must be 0 or more")
    if options.shots > 0 and not rows.train:
        raise ConfigError(f"--shots {options.shots} needs solved rows; give --train FILE, or --shots 0")
    tests, pool, dev = canonical(rows.test), canonical(rows.train), canonical(rows.dev)
    labelled = [*tests, *pool, *dev]
    draws = random.Random(options.seed)
    if rows.limit and rows.limit < len(tests):
        tests = draws.sample(tests, rows.limit)
    if pool and not dev and rows.dev_rows:
        draws.shuffle(pool)
        count = min(rows.dev_rows, len(pool) // 2)
        dev, pool = pool[:count], pool[count:]
    return PromptRows(tests=tests, pool=pool, dev=dev), labelled


def _columns(pairs: Sequence[str]) -> dict[str, str]:
    """Read --column FIELD=NAME."""
    wrong = next((pair for pair in pairs if not all(pair.partition("="))), None)
    if wrong is not None:
        raise ConfigError(f"--column {wrong} names no field and column; write FIELD=COLUMN, such as label=stars")
    return {field: name for field, _, name in (pair.partition("=") for pair in pairs)}


def _answer(
    loaded: Loaded,
    rows: PromptRows,
    templates: list[Template],
    options: PromptOptions,
    console: Console,
) -> tuple[Template, PromptResult | WrittenResult, dict[str, Any] | None]:
    from chinchilla_lm.evals.prompted import PromptSettings, answer_by_choice
    from chinchilla_lm.evals.template_choice import search_templates, thinking_templates
    from chinchilla_lm.evals.written import Writing, answer_by_writing
    from chinchilla_lm.prompt.demonstrations import DemoSettings

    if options.thought:
        templates = thinking_templates(templates)
    if options.samples > 1 and not options.write and templates[0].kind == "choice":
        raise ConfigError(
            f"--samples {options.samples} are of written texts; add --thought or --write, or leave it out"
        )
    if options.search and templates[0].kind != "choice":
        raise ConfigError(f"--search compares scored choices, and {templates[0].name} writes; leave one of them out")
    scorer = loaded.scorer(options.weights)
    if options.method == "nearest" and options.shots:
        rows = _with_vectors(loaded, scorer, templates[0], rows)
    draws = options.draws if options.shots else 1
    demonstrations = DemoSettings(
        shots=options.shots, method=options.method, order=options.order, draws=draws, seed=options.seed
    )
    searched, template = None, templates[0]
    if options.search:
        arms = [one for one in templates if one.kind == "choice"]
        console.print(f"searching {len(arms)} wordings x {draws} draws on {len(rows.dev)} dev rows", markup=False)
        found = search_templates(scorer, arms, rows, demonstrations, budget_items=options.search)
        template = next(one for one in arms if one.name == found.best.arm.template)
        searched = _search_record(found)
    settings = PromptSettings(rule=options.calibrate, demonstrations=demonstrations)
    with Progress(
        TextColumn("answering"), BarColumn(), TextColumn("{task.completed}/{task.total}"), TimeRemainingColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    ) as bars:  # fmt: skip
        bar = bars.add_task("answering", total=None)

        def advance(done: int, total: int) -> None:
            bars.update(bar, completed=done, total=total)

        if template.kind == "generate" or options.write:
            writing = Writing(
                samples=options.samples,
                temperature=options.temperature,
                is_constrained=template.kind == "choice",
                seed=options.seed,
            )
            return template, answer_by_writing(scorer, template, rows, settings, writing, advance), searched
        return template, answer_by_choice(scorer, template, rows, settings, advance), searched


def _with_vectors(loaded: Loaded, scorer: Any, template: Template, rows: PromptRows) -> PromptRows:
    """Describe pool and tests by the mean of the model's last hidden states."""
    from dataclasses import replace

    import numpy as np

    from chinchilla_lm.prompt.demonstrations import input_text

    def vectors(own: Sequence[Any]) -> Any:
        texts = [input_text(template, row) for row in own]
        ids = [loaded.tokenizer.encode(text, add_special_tokens=False).ids or [loaded.start_id] for text in texts]
        return np.stack([scorer.engine.hidden(one[: scorer.engine.capacity]).mean(dim=0).numpy() for one in ids])

    return replace(rows, vectors=(vectors(rows.pool), vectors(rows.tests)))


def _search_record(found: SearchResult) -> dict[str, Any]:
    def record(row: ArmRow) -> dict[str, Any]:
        arm = {"template": row.arm.template, "draw": row.arm.draw}
        return arm | {"rule": row.rule, "score": row.score, "items": row.items}

    table = [record(row) for row in found.table[:50]]
    return {"items_scored": found.items_scored, "best": record(found.best), "table": table}


def _lines(record: dict[str, Any]) -> list[str]:
    """What a person reads."""
    lines = [f"template   {record['template']}, {record['shots']} shots, {record['rows']} rows"]
    width = max(10, *map(len, record["metrics"]))
    for name, value in record["metrics"].items():
        spread = record["spread"][name]
        low_high = record["interval"].get(name)
        text = f"{name:{width}} {value:.4g}"
        if len(record["per_draw"]) > 1:
            text += f"  +- {spread:.2g} over {len(record['per_draw'])} draws"
        if low_high:
            text += f"  (95 % {low_high[0]:.4g} to {low_high[1]:.4g} over rows)"
        lines.append(text)
    rules = sorted({one["rule"] for one in record["per_draw"] if one.get("rule")})
    if rules:
        first = record["per_draw"][0]["reason"]  # begins with its rule
        lines.append(
            f"scoring    {first}" if len(rules) == 1 else f"scoring    {', '.join(rules)}; the first draw: {first}"
        )
    if record["cut_rows"]:
        lines.append(f"note       {record['cut_rows']} prompts were cut at their beginning to fit the context")
    if record.get("refused"):
        lines.append(f"note       {record['refused']} rows of the pool copy a test row and were left out")
    return lines
