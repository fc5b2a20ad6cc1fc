"""Commands that do work: `run` (the main job), `prepare`, `sweep` and `train` (its parts).

Heavy imports stand inside the functions, so that `chinchilla --help` answers at once.
"""

from __future__ import annotations

import json as json_format
import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cyclopts import Parameter
from rich.console import Console

from chinchilla_lm.cli.options import JsonFlag
from chinchilla_lm.core.units import format_bytes, format_count, format_flops, format_seconds

DTypeChoice = Literal["auto", "float32", "bfloat16"]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """The request, as `run` and `sweep` share it."""

    corpus: tuple[str, ...] = ("stdlib",)
    """Files, folders or globs of text; "stdlib" is Python's own standard library (no download)."""
    budget: str = "5m"
    """What sweep and final run may spend together: 5m, 2h, or FLOPs such as 1e15."""
    out: Path | None = None
    """The run directory; the same command in it resumes. By default runs/CORPUS-BUDGET."""
    seed: int = 0
    """Of weights, data order and held-out split."""
    vocab: int = 0
    """Entries of the tokenizer; 0 follows the vocabulary law."""
    context: int = 0
    """Tokens in a window; 0 follows the compute."""
    threads: int = 0
    """Processor cores to use; 0 takes all."""
    dtype: DTypeChoice = "auto"
    """Number format of matmuls; auto takes the faster one, measured."""
    sweep_share: float = 0.25
    """Part of the budget for the sweep."""
    least_rung_flops: float = 3e11
    """The cheapest rung wanted; below 1e12 the forecast is rough."""
    suite: tuple[str, ...] = ()
    """Ask every model of the sweep and the final one a suite, and forecast its accuracy: blimp, lambada ... (as in
    eval), or own-words, which of eight words of the held-out text comes next; may be repeated. By default own-words,
    where it costs at most 2 % of the budget; none for none."""
    suite_data: Path | None = None
    """A folder with the suites' files; the Hugging Face hub otherwise."""
    suite_items: int = 500
    """At most so many items of each suite."""
    json: JsonFlag = False
    """Print one JSON document on stdout."""

    def folder(self) -> Path:
        """Return the run directory."""
        return self.out or default_run_directory(self.corpus, self.budget)


DEFAULT_OPTIONS = StudyOptions()


def run(options: StudyOptions = DEFAULT_OPTIONS) -> None:
    """From text and a budget to a model: sweep, law, forecast, training, evaluation, report."""
    # torch takes seconds to import
    from chinchilla_lm.study.run import run_study

    with _display() as display:
        result = run_study(_study_config(options), options.folder(), display)
    if options.json:
        print(json_format.dumps(_run_json(result), ensure_ascii=False, allow_nan=False))
    _print_result(result)


def sweep(options: StudyOptions = DEFAULT_OPTIONS) -> None:
    """Only the first half of `run`: measure, sweep, law, forecast and plan; `run` with the same words continues it."""
    # torch takes seconds to import
    from chinchilla_lm.study.run import run_sweep_only
    from chinchilla_lm.study.stages import forecast_sentence
    from chinchilla_lm.study.tasks import task_lines

    with _display() as display:
        forecast = run_sweep_only(_study_config(options), options.folder(), display)
    if options.json:
        print(json_format.dumps(forecast, ensure_ascii=False, allow_nan=False))
    lines = [
        forecast_sentence(forecast),
        *task_lines(forecast.get("tasks", {})),
        f"plan: {options.folder() / 'plan.toml'}",
    ]
    _people().print("\n".join(lines), markup=False)


def prepare(
    corpus: tuple[str, ...],
    *,
    out: Path,
    vocab: int = 4096,
    max_bytes: int | None = None,
    seed: int = 0,
    json: JsonFlag = False,
) -> None:
    """Text to tokens: drop copies, hold out whole documents, train a tokenizer, write shards.

    Args:
        corpus: Files, folders, globs, "stdlib" or hf:NAME.
        out: The folder to make.
        vocab: Entries of the tokenizer, from 257.
        max_bytes: Most training text; all by default.
        seed: Of the order of documents.
        json: Print one JSON document.
    """
    from chinchilla_lm.data.prepare import prepare as prepare_text  # tokenizers and numpy: help stays fast

    with _display() as display:
        display.stage("prepare", ", ".join(corpus))
        manifest = prepare_text(
            corpus,
            out,
            vocab=vocab,
            max_bytes=max_bytes,
            seed=seed,
            progress=lambda done, total: display.advance(done / max(total, 1), None, None),
        )
    record = manifest.to_dict()
    if json:
        print(json_format.dumps(record, ensure_ascii=False, allow_nan=False))
    _people().print(
        f"{manifest.kept:,} of {manifest.documents:,} documents kept: {format_bytes(manifest.bytes)}, "
        f"{manifest.train_tokens:,} tokens to train on, {manifest.heldout_tokens:,} held out, in {out}",
        markup=False,
    )


def train(
    config: Path,
    *,
    data: Path,
    out: Path,
    suite: tuple[str, ...] = (),
    suite_data: Path | None = None,
    suite_items: int = 500,
    json: JsonFlag = False,
) -> None:
    """Train one model from a config such as a run's plan.toml; killed at any time, the same command continues.

    Args:
        config: A TOML file with shape, batch, optimizer, schedule and run.
        data: A folder that `chinchilla prepare` wrote.
        out: The folder for records, checkpoints and the finished model/.
        suite: Also ask the model a suite at each evaluation: blimp, lambada ... (as in eval), or own-words, which of
            eight words of the held-out text comes next; may be repeated.
        suite_data: A folder with the suites' files; the Hugging Face hub otherwise.
        suite_items: At most so many items of each suite.
        json: Print one JSON document.
    """
    # torch takes seconds to import
    from chinchilla_lm.study.asking import SuiteChoice
    from chinchilla_lm.study.train_only import train_from_config

    suites = SuiteChoice(names=suite, folder=suite_data, items=suite_items)
    with _display() as display:
        record = train_from_config(config, data, out, display, suites)
    if json:
        print(json_format.dumps(record, ensure_ascii=False, allow_nan=False))
    lines = [
        f"held-out loss {record['loss']:.4f} nats per token, {record['bits_per_byte']:.4f} bits per byte; "
        f"model in {record['model_dir']}",
        *_task_lines(record.get("suites", {})),
    ]
    _people().print("\n".join(lines), markup=False)


def default_run_directory(corpus: tuple[str, ...], budget: str) -> Path:
    """Name a run directory after the request: runs/stdlib-5m."""
    words = [Path(name.rstrip("/")).name or "text" for name in corpus]
    name = re.sub(r"[^\w.]+", "-", "+".join(words) + "-" + budget).strip("-")
    return Path("runs") / name[:80]


def _study_config(options: StudyOptions) -> Any:
    from chinchilla_lm.study.request import StudyConfig

    words = {name: value for name, value in vars(options).items() if name not in ("out", "json", "suite_data")}
    return StudyConfig(**words, suite_data="" if options.suite_data is None else str(options.suite_data))


def _display() -> Any:
    from chinchilla_lm.cli.display import StudyDisplay

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's stop is a Ctrl-C: save, and resume later
    return StudyDisplay(_people())


def _people() -> Console:
    return Console(stderr=True, highlight=False)


def _run_json(result: Any) -> dict[str, Any]:
    forecast, law, evaluation = result.forecast, result.law, result.evaluation
    return {
        "run_dir": str(result.run_dir),
        "model_dir": str(result.run_dir / "model"),
        "report": str(result.run_dir / "report.html"),
        "flops_spent": result.flops_spent,
        "seconds_spent": result.seconds_spent,
        "law": law,
        "plan": {"params": forecast["params_matmul"], "tokens": forecast["tokens"], "shape": forecast["shape"]},
        "predicted": {name: forecast[name] for name in ("loss", "low", "high", "level", "established")},
        "actual": {"loss": evaluation["loss"], "loss_se": evaluation["loss_se"]},
        "bits_per_byte": evaluation["bits_per_byte"],
        "tasks": evaluation.get("tasks", {}),
    }


def _task_lines(tasks: dict[str, Any]) -> list[str]:
    """Say what the model scored, a line a suite."""
    lines: list[str] = []
    for name, found in tasks.items():
        own = 100 * found["standard_error"]
        line = f"{name:12} {100 * found['accuracy']:.1f} % right (+- {own:.1f}, chance {100 * found['chance']:.1f})"
        if "predicted" in found:
            made, verdict = found["predicted"], "inside" if found["inside"] else "OUTSIDE"
            line += f"; predicted {100 * made['accuracy']:.1f}, {100 * made['low']:.1f} to {100 * made['high']:.1f}: "
            line += verdict
        lines.append(line)
    return lines


def _print_result(result: Any) -> None:
    forecast, evaluation, console = result.forecast, result.evaluation, _people()
    verdict = "inside" if evaluation["inside"] else "OUTSIDE"
    lines = [
        "",
        f"model        {format_count(forecast['params_total'])} parameters, {format_count(forecast['tokens'])} tokens",
        f"predicted    {forecast['loss']:.4f} nats per token before training, 90 % interval "
        f"{forecast['low']:.4f} to {forecast['high']:.4f}",
        f"actual       {evaluation['loss']:.4f}: {verdict}, error {evaluation['error_percent']:+.2f} %",
        f"             {evaluation['bits_per_byte']:.4f} bits per byte on held-out text",
        *_task_lines(evaluation.get("tasks", {})),
        f"spent        {format_seconds(result.seconds_spent)}, {format_flops(result.flops_spent)}",
        f"model folder {result.run_dir / 'model'}",
        f"report       {result.run_dir / 'report.html'}",
    ]
    if evaluation["samples"]:
        sample = evaluation["samples"][min(1, len(evaluation["samples"]) - 1)]
        lines += ["", f"It writes: {sample['prompt']!r} ->", sample["text"]]
    console.print("\n".join(lines), markup=False)
