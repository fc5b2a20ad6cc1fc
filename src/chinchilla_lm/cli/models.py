"""Commands on a finished model: `generate` and `eval`.

MODEL is a model folder (ours or any Hugging Face Qwen3 or Llama folder) or a run directory, whose model/ is taken.
Heavy imports stand inside the functions, so that `chinchilla --help` answers at once.
"""

from __future__ import annotations

import json as json_format
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from chinchilla_lm.cli.options import JsonFlag, check_page_name
from chinchilla_lm.cli.suites import SuiteOptions, write_results
from chinchilla_lm.cli.terminal import SamplingOptions, visible
from chinchilla_lm.core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Generator

    from chinchilla_lm.data.loader import HeldOut
    from chinchilla_lm.evals.loading import Loaded
    from chinchilla_lm.generate.completion import Generation

_DEFAULTS = SamplingOptions()
_SUITE_DEFAULTS = SuiteOptions()


def generate(
    model: Path,
    prompt: str,
    *,
    max_tokens: int = 128,
    sampling: SamplingOptions = _DEFAULTS,
    draft: str | None = None,
    json: JsonFlag = False,
) -> None:
    """Continue a prompt.

    Args:
        model: A model folder or a run directory.
        prompt: The text to continue; "" starts a new one.
        max_tokens: The most tokens to add.
        sampling: How the next token is chosen.
        draft: A smaller model that guesses tokens; the text stays the same and may come sooner: a folder, "auto" for
            the run's drafts/, or "int8" for the model's own copy with int8 weights.
        json: Print one JSON document: text, tokens, tokens_per_s, finish_reason.
    """
    # torch takes seconds to import
    from chinchilla_lm.evals.loading import load_for_evaluation
    from chinchilla_lm.generate.completion import stream
    from chinchilla_lm.serve.draft import load_draft

    chosen = sampling.sampling()
    loaded = load_for_evaluation(model)
    transformer, tokenizer = loaded.model, loaded.tokenizer
    guesser = None if draft is None else load_draft(model, draft, transformer, tokenizer, slots=1, weights="float32")
    stop_ids = loaded.stop_ids or None
    pieces = stream(
        transformer, tokenizer, prompt, max_tokens=max_tokens, sampling=chosen, stop_ids=stop_ids, draft=guesser
    )
    if json:
        record = _join(pieces)
        _print_json({name: getattr(record, name) for name in ("text", "tokens", "tokens_per_s", "finish_reason")})
        return
    record = _print_pieces(pieces)
    kept = f", {record.draft_kept} of {record.draft_guesses} guesses kept" if draft is not None else ""
    print(
        f"{record.tokens} tokens, {record.tokens_per_s:.1f} tokens/s, finish_reason {record.finish_reason}{kept}",
        file=sys.stderr,
    )


def evaluate(
    model: Path,
    *,
    corpus: tuple[str, ...] = (),
    data: Path | None = None,
    max_tokens: int | None = None,
    by_domain: Annotated[bool, Parameter(negative="")] = False,
    suites: SuiteOptions = _SUITE_DEFAULTS,
    json: JsonFlag = False,
) -> None:
    """Measure a model: loss and bits per byte on text it has not seen, or its accuracy on zero-shot suites.

    Args:
        model: A model folder or a run directory.
        corpus: Held-out text: files, folders or globs, tokenised with the model's own tokenizer.
        data: A folder that `chinchilla prepare` wrote: its held-out part is used. A run directory brings its own.
        max_tokens: Use at most so many targets; all by default.
        by_domain: With --corpus: whole documents by sliding windows, and each source for itself.
        suites: Zero-shot suites in place of text.
        json: Print one JSON document, the eval record.
    """
    check_page_name(suites.report)
    # torch takes seconds to import
    if suites.suite or suites.harness:
        from chinchilla_lm.cli.suites import evaluate_suites

        evaluate_suites(model, suites, is_json=json)
        return
    if by_domain or suites.stride is not None:
        from chinchilla_lm.cli.suites import evaluate_domains

        evaluate_domains(model, corpus, suites, is_json=json)
        return
    from chinchilla_lm.evals.loading import load_for_evaluation
    from chinchilla_lm.evals.perplexity import evaluate as measure

    loaded = load_for_evaluation(model)
    heldout = _held_out(model, loaded, corpus=corpus, data=data, max_tokens=max_tokens)
    result = measure(loaded.model, heldout)
    record = {"schema": "eval/1", **result.to_dict()}
    if json:
        _print_json(record)
    else:
        error = "" if result.loss_se is None else f" +- {result.loss_se:.4f}"
        print(f"loss           {result.loss:.4f}{error} nats per token")
        print(f"bits per byte  {result.bits_per_byte:.4f}")
        print(f"perplexity     {result.perplexity:.2f} per token")
        print(f"measured on    {result.tokens:,} tokens, {result.bytes:,} bytes")
    write_results(record, suites, model)


def _held_out(
    model: Path,
    loaded: Loaded,
    *,
    corpus: tuple[str, ...],
    data: Path | None,
    max_tokens: int | None,
) -> HeldOut:
    from chinchilla_lm.data.documents import read_documents
    from chinchilla_lm.data.loader import heldout_windows
    from chinchilla_lm.evals.heldout import windows_of_documents

    if corpus and data:
        raise DataError("--corpus and --data were both given; give one of them")
    if corpus:
        return windows_of_documents(read_documents(corpus), loaded.tokenizer, loaded.model.shape.context, max_tokens)
    data = model / "data" if data is None else data
    if not data.is_dir():
        raise DataError(
            f"{data} is not a prepared folder; give --corpus TEXT, or --data DIR that `chinchilla prepare` wrote"
        )
    return heldout_windows(data, loaded.model.shape.context, max_tokens)


def _join(pieces: Generator[str, None, Generation]) -> Generation:
    while True:
        try:
            next(pieces)
        except StopIteration as finished:
            return finished.value


def _print_pieces(pieces: Generator[str, None, Generation]) -> Generation:
    """Print a text as it comes; into a file or a pipe exactly, on a terminal without its control characters."""
    shown = visible if sys.stdout.isatty() else str
    try:
        while True:
            print(shown(next(pieces)), end="", flush=True)
    except StopIteration as finished:
        return finished.value
    finally:
        print()


def _print_json(record: dict[str, object]) -> None:
    print(json_format.dumps(record, ensure_ascii=False, allow_nan=False))
