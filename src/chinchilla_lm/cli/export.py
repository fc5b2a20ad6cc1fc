"""`chinchilla export` and `chinchilla push`: a model for other programs, and onto the Hub.

Heavy imports stand inside the functions, so that `chinchilla --help` answers at once.
"""

from __future__ import annotations

import json as json_format
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from chinchilla_lm.cli.options import JsonFlag
from chinchilla_lm.core.errors import ConfigError, ModelError
from chinchilla_lm.core.units import format_bytes

if TYPE_CHECKING:
    from chinchilla_lm.serve.export import Export
    from chinchilla_lm.serve.export_check import Parity
    from chinchilla_lm.serve.preflight import Finding
    from chinchilla_lm.serve.push import PushPlan

Flag = Annotated[bool, Parameter(negative="")]
_COLOURS = {"ok": "green", "warn": "yellow", "block": "red"}


def export(
    model: Path,
    *,
    to: str | None = None,
    out: Path | None = None,
    check: Flag = False,
    json: JsonFlag = False,
) -> None:
    """Write a model for transformers, vLLM, llama.cpp or Ollama, and compare it with its source.

    Args:
        model: A model folder or a run directory.
        to: hf (a Hugging Face folder; hf:bf16 halves its size) or gguf (a file for llama.cpp and Ollama; gguf:bf16,
            gguf:q8_0).
        out: The folder, or the .gguf file.
        check: Write nothing; say what transformers, vLLM and llama.cpp would say to the folder. Exit code 2 when
            one of them would not load it.
        json: Print one JSON document: form, precision, path, files{}, parity[], commands[]; with --check folder,
            blocked[], findings[], commands[].
    """
    if check:
        if to is not None or out is not None:
            raise ConfigError("--check writes nothing, so --to and --out have no place beside it; leave them out")
        _check(model, json)
        return
    if to is None or out is None:
        raise ConfigError("--to and --out are both needed, such as --to gguf:q8_0 --out model.gguf; or give --check")
    _quieten_progress()
    from chinchilla_lm.serve.export import export_model  # torch takes seconds to import

    done = export_model(model, to, out)
    if json:
        _print_json(done.to_dict())
    else:
        _print_export(done)


def push(
    model: Path,
    repo: str,
    *,
    dry_run: Flag = False,
    private: Flag = False,
    json: JsonFlag = False,
) -> None:
    """Upload an exported folder to the Hugging Face Hub.

    Args:
        model: A model folder or a run directory.
        repo: Name on the Hub, OWNER/NAME.
        dry_run: Upload nothing: list files, sizes, hashes, the model card's header and what is missing.
        private: Make the repository private if it does not exist yet.
        json: Print one JSON document: repo, files[], left_out[], card, missing[], uploaded, url.
    """
    from chinchilla_lm.serve.push import plan_push, upload  # as above

    plan = plan_push(model, repo)
    url = None if dry_run else upload(plan, is_private=private)
    if json:
        _print_json(plan.to_dict() | {"uploaded": not dry_run, "url": url})
    else:
        _print_plan(plan, url)


def _check(model: Path, json: bool) -> None:
    from chinchilla_lm.serve.export import folder_commands  # as above
    from chinchilla_lm.serve.preflight import blocked_readers, preflight

    folder, findings = preflight(model)
    blocked = blocked_readers(findings)
    commands = folder_commands(folder, blocked)
    if json:
        _print_json(
            {
                "schema": "export-check/1",
                "folder": str(folder),
                "blocked": list(blocked),
                "findings": [finding.to_dict() for finding in findings],
                "commands": list(commands),
            }
        )
    else:
        _print_findings(findings)
        _print_commands(commands)
    if blocked:
        first = next(one for one in findings if one.verdict == "block")
        raise ModelError(f"{folder}: {', '.join(blocked)} would not load it ({first.subject}: {first.detail})")


def _print_findings(findings: tuple[Finding, ...]) -> None:
    """One row a subject; readers that say the same share a row."""
    table = Table(box=None, pad_edge=False)
    for heading in ("", "subject", "reader", "what it finds"):
        table.add_column(heading, overflow="fold")
    grouped: dict[tuple[str, str, str], list[str]] = {}
    for one in findings:
        grouped.setdefault((one.subject, one.verdict, one.detail), []).append(one.reader)
    for (subject, verdict, detail), readers in grouped.items():
        shown = "all" if len(readers) == 3 else ", ".join(readers)  # noqa: PLR2004 - the readers of preflight.READERS
        table.add_row(f"[{_COLOURS[verdict]}]{verdict}[/]", subject, shown, detail.replace("[", "\\["))
    Console(highlight=False).print(table)


def _print_export(done: Export) -> None:
    total = sum(done.bytes_by_file.values())
    count = len(done.bytes_by_file)
    files = "1 file" if count == 1 else f"{count} files"
    print(f"{done.path}  {done.form} {done.precision}, {format_bytes(total)} in {files}")
    for parity in done.parity:
        print(f"  read by {parity.reader}: {_parity_words(parity)}")
    _print_commands(done.commands)


def _parity_words(parity: Parity) -> str:
    weights = "" if parity.weight_error is None else f"weights within {parity.weight_error:.2g} of the largest, "
    weights = "weights equal, " if parity.weight_error == 0 else weights
    return (
        f"{weights}log-probabilities within {parity.logprob_difference:.2g} (divergence "
        f"{parity.mean_logprob_difference:.2g}) nats and {100 * parity.same_choice:.1f} % the same choice at "
        f"{parity.positions} positions, {parity.same_texts} of {parity.texts} random texts tokenised alike"
    )


def _print_commands(commands: tuple[str, ...]) -> None:
    for command in commands:
        print(f"  {command}")


def _print_plan(plan: PushPlan, url: str | None) -> None:
    for file in plan.files:
        print(f"{file.sha256[:12]}  {format_bytes(file.bytes):>10}  {file.name}")
    for name in plan.left_out:
        print(f"left out: {name}")
    print("\n".join(f"card: {line}" for line in plan.card_header) or "card: none")
    for line in plan.missing:
        print(f"missing: {line}")
    total = format_bytes(sum(file.bytes for file in plan.files))
    print(f"{len(plan.files)} files, {total}, {'would go' if url is None else 'went'} to {url or plan.repo}")


def _quieten_progress() -> None:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _print_json(record: dict[str, object]) -> None:
    print(json_format.dumps(record, ensure_ascii=False, allow_nan=False))
