"""`chinchilla eval MODEL --suite ...`: zero-shot suites, tasks of lm-evaluation-harness, and text domain by domain."""

from __future__ import annotations

import json as json_format
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cyclopts import Group, Parameter
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from chinchilla_lm.cli.terminal import visible
from chinchilla_lm.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from chinchilla_lm.evals.scorer import Scorer
    from chinchilla_lm.evals.suite_forms import Item
    from chinchilla_lm.evals.suite_run import SuiteResult
    from chinchilla_lm.evals.suites import Suite


@Parameter(name="*", group=Group("Suites and domains", sort_key=3))
@dataclass(frozen=True, kw_only=True)
class SuiteOptions:
    """What is asked besides held-out text."""

    suite: tuple[str, ...] = ()
    """Zero-shot suites: blimp lambada arc-easy arc-challenge piqa copa openbookqa hellaswag winogrande wsc273 boolq
    commonsenseqa, or all."""
    suite_data: Path | None = None
    """A folder with the suites' files; the Hugging Face hub otherwise."""
    harness: tuple[str, ...] = ()
    """Tasks of lm-evaluation-harness by its names, with our engine as the model."""
    shots: int | None = None
    """With --harness: demonstrations; each task's own number by default."""
    limit: int | None = None
    """At most so many items of each suite."""
    seed: int = 0
    """Of the items drawn by --limit."""
    against: Path | None = None
    """A second model to compare on the same items."""
    train_data: Path | None = None
    """A prepared folder: count the items whose text stands in its training tokens."""
    stride: int | None = None
    """With --corpus: targets by which the windows over each document move on; half the context by default."""
    weights: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    """Number format of the model's matrices."""
    out: Path | None = None
    """A file for the record (JSON)."""
    report: Path | None = None
    """A page with figures and tables, an .html file."""


def evaluate_suites(model: Path, options: SuiteOptions, *, is_json: bool) -> None:
    """Run suites and tasks of the harness; print or write their record.

    Raises:
        ConfigError: an unknown suite or task.
        DataError: a suite's items cannot be had.
    """
    from chinchilla_lm.evals.loading import load_for_evaluation
    from chinchilla_lm.evals.suites import SUITES, find_suite

    names = tuple(SUITES) if options.suite == ("all",) else options.suite
    suites = [find_suite(name) for name in names]
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    loaded = load_for_evaluation(model)
    scorer = loaded.scorer(options.weights)
    items = _read(suites, options, console, is_all=options.suite == ("all",))
    record: dict[str, Any] = {"schema": "suites/1", "model": str(model), "seed": options.seed, "suites": []}
    results = _run(scorer, items, console)
    record["suites"] = [result.to_dict() for result in results]
    if options.against is not None:
        other = load_for_evaluation(options.against).scorer(options.weights)
        record["against"] = _compare(results, _run(other, items, console), options.against)
    if options.train_data is not None:
        record["contamination"] = _contamination(items, options.train_data)
    if options.harness:
        from chinchilla_lm.evals.harness import run_harness

        record["harness"] = run_harness(loaded.model, scorer, options.harness, shots=options.shots, limit=options.limit)
    lines = [json_format.dumps(record, ensure_ascii=False, allow_nan=False)] if is_json else _lines(record)
    for line in lines:
        print(line if is_json else visible(line))
    write_results(record, options)


def evaluate_domains(model: Path, corpus: Sequence[str], options: SuiteOptions, *, is_json: bool) -> None:
    """Price whole documents by sliding windows, together and source by source.

    Raises:
        DataError: no text.
    """
    from chinchilla_lm.data.documents import Document, read_documents
    from chinchilla_lm.evals.loading import load_for_evaluation
    from chinchilla_lm.evals.sliding import score_documents

    if not corpus:
        raise DataError(
            "--by-domain and --stride measure text; give --corpus FILE or FOLDER, several of them for domains"
        )
    loaded = load_for_evaluation(model)
    source_of: dict[int, str] = {}
    documents: list[Document] = []
    for source in corpus:
        for document in read_documents(source):
            source_of[id(document)] = source
            documents.append(document)
    scores = score_documents(
        loaded.model, loaded.tokenizer, documents, start_id=loaded.start_id, stride=options.stride,
        domain_of=lambda document: source_of[id(document)],
    )  # fmt: skip
    record = {"schema": "domains/1", "model": str(model), "domains": [asdict(one) for one in scores]}
    if is_json:
        print(json_format.dumps(record, ensure_ascii=False))
    for one in () if is_json else scores:
        error = "" if one.bits_per_byte_se is None else f" +- {one.bits_per_byte_se:.4f}"
        print(visible(f"{one.domain:32} {one.bits_per_byte:.4f}{error} bits per byte, {one.documents} documents"))
    write_results(record, options)


def write_results(record: Mapping[str, Any], options: SuiteOptions, model: Path | None = None) -> None:
    """Write what --out and --report ask for: after printing, since a full disk loses files, not what was measured.

    Args:
        record: of the evaluation.
        options: the names of the files.
        model: for the page, where the record does not name its model.
    """
    from chinchilla_lm.core.files import write_json

    if options.out is not None:
        write_json(options.out, record)
    if options.report is not None:
        from chinchilla_lm.report.eval_page import write_eval_page

        named = record if model is None else {**record, "model": str(model)}
        path = write_eval_page(named, options.report)
        print(f"wrote {visible(str(path))}", file=sys.stderr)


def _read(
    suites: Sequence[Suite], options: SuiteOptions, console: Console, *, is_all: bool
) -> list[tuple[Suite, list[Item]]]:
    """Read every suite's items, once; with "all", suites whose files are not here are left out and told."""
    from chinchilla_lm.evals.suites import suite_items

    found = []
    for suite in suites:
        try:
            items = suite_items(suite, options.suite_data, limit=options.limit, seed=options.seed)
        except DataError as error:
            if not is_all:
                raise
            console.print(f"{suite.name}: left out, {error}", markup=False)
        else:
            found.append((suite, items))
    if suites and not found:
        raise ConfigError("none of the suites has its files here; give --suite-data FOLDER, or `pip install datasets`")
    return found


def _run(scorer: Scorer, items: Sequence[tuple[Suite, list[Item]]], console: Console) -> list[SuiteResult]:
    from chinchilla_lm.evals.suite_run import run_suite

    results = []
    with Progress(
        TextColumn("{task.description:14}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal,
    ) as bars:  # fmt: skip
        for suite, own in items:
            bar = bars.add_task(suite.name, total=len(own))
            results.append(run_suite(scorer, suite, own, lambda count, bar=bar: bars.advance(bar, count)))
    return results


def _compare(results: Sequence[SuiteResult], others: Sequence[SuiteResult], model: Path) -> dict[str, Any]:
    from chinchilla_lm.evals.suite_run import compare_results

    pairs = zip(results, others, strict=True)
    return {"model": str(model), "suites": {
        one.suite: {"value": other.value, **asdict(compare_results(one, other))} for one, other in pairs
    }}  # fmt: skip


def _contamination(items: Sequence[tuple[Suite, list[Item]]], train_data: Path) -> dict[str, Any]:
    """Search the training tokens, whichever tokenizer the model has: the prepared folder's own made them."""
    from chinchilla_lm.data.manifest import load_manifest
    from chinchilla_lm.data.tokenizer import load_tokenizer
    from chinchilla_lm.evals.contamination import find_in_training

    tokenizer = load_tokenizer(load_manifest(train_data, verify=False).tokenizer_folder)
    found = {}
    for suite, own in items:
        texts = [item.pairs[item.gold or 0][0] + item.pairs[item.gold or 0][1] for item in own]
        found[suite.name] = asdict(find_in_training(texts, tokenizer, train_data))
    return found


def _lines(record: dict[str, Any]) -> list[str]:
    lines = []
    for one in record["suites"]:
        chance = f", chance {one['chance']:.2f}" if one["chance"] else ""
        name = f"{one['suite']} {one['metric']}"
        lines.append(f"{name:24} {one['value']:.4f} +- {one['standard_error']:.4f}  ({one['items']} items{chance})")
    for name, one in record.get("against", {}).get("suites", {}).items():
        difference = f"{one['difference']:+.4f} +- {one['standard_error']:.4f}, p {one['p_value']:.2g}"
        lines.append(f"{name:24} {one['value']:.4f} by {record['against']['model']}: {difference}")
    for name, one in record.get("contamination", {}).items():
        lines.append(
            f"{name:24} {one['found']} of {one['checked']} items have a run of {one['window']} training tokens"
        )
    for name, values in record.get("harness", {}).items():
        shown = ", ".join(
            f"{metric} {value:.4f}" for metric, value in values.items() if not metric.startswith("samples")
        )
        lines.append(f"{name:24} {shown}")
    return lines
