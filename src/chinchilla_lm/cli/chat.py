"""`chinchilla chat`: a conversation in the terminal. Heavy imports stand inside the functions."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from chinchilla_lm.cli.terminal import SamplingOptions, visible
from chinchilla_lm.core.errors import ChinchillaError

if TYPE_CHECKING:
    from chinchilla_lm.serve.conversation import Conversation

HELP = """\
/reset          forget the conversation (the system message stays)
/system TEXT    begin anew under this system message; without TEXT, the model's own
/save FILE      write the conversation as JSON
/quit           leave (or Ctrl-D); Ctrl-C stops an answer"""
PROMPT = ">>> "
_DEFAULTS = SamplingOptions()


def chat(
    model: Path,
    *,
    system: str | None = None,
    max_tokens: int = 512,
    sampling: SamplingOptions = _DEFAULTS,
    weights: Literal["auto", "float32", "bfloat16", "int8"] = "auto",
    draft: str | None = None,
) -> None:
    """Talk with a model in the terminal; a model without a chat template continues each text you write.

    Lines that begin with / are commands: /help lists them. Ctrl-C stops an answer, not the program.

    Args:
        model: A model folder or a run directory.
        system: The system message; by default what the chat template has.
        max_tokens: The most tokens of an answer.
        sampling: How the next token is chosen.
        weights: Number format of decoding; int8 is fastest and slightly less exact.
        draft: A smaller model that guesses tokens; the text stays the same and may come sooner: a folder, "auto" for
            the run's drafts/, or "int8" for the model's own copy with int8 weights.
    """
    from chinchilla_lm.serve.conversation import Conversation  # torch takes seconds to import
    from chinchilla_lm.serve.served_model import load_served_model
    from chinchilla_lm.serve.settings import Limits

    chosen = sampling.sampling()
    served = load_served_model(model, weights=weights, limits=Limits(slots=1, queue=1), draft=draft)
    try:
        conversation = Conversation(served, sampling=chosen, max_tokens=max_tokens, system=system)
        kind = "" if conversation.is_chat else " (no chat template: it continues each text you write)"
        _say(f"{served.name}{kind}; /help lists the commands")
        run_chat(conversation, _line_reader(), _write)
    finally:
        served.close(0.0)


def run_chat(conversation: Conversation, read_line: Callable[[], str | None], write: Callable[[str], None]) -> None:
    """Read and answer until the lines end or one is /quit.

    Args:
        conversation: with the model.
        read_line: the next line, None at the end; KeyboardInterrupt asks again.
        write: shows a piece of an answer at once.
    """
    while True:
        try:
            line = read_line()
        except KeyboardInterrupt:
            _say("\n/quit or Ctrl-D leaves")
            continue
        if line is None or line.strip() == "/quit":
            return
        try:
            if line.startswith("/"):
                _obey(conversation, line)
            elif line.strip():
                _answer(conversation, line, write)
        except ChinchillaError as error:
            _say(f"chinchilla: {error}")


def _answer(conversation: Conversation, line: str, write: Callable[[str], None]) -> None:
    before = conversation.left_out
    pieces = conversation.answer(line)
    try:
        if not conversation.is_chat:
            write(visible(line))  # the answer goes on where the line ends
        for piece in pieces:
            write(visible(piece))
        write("\n")
    except KeyboardInterrupt:
        write(" ...\n")
    finally:
        pieces.close()
    if conversation.left_out > before:
        _say(f"the first {conversation.left_out} turns no longer fit the context; /reset begins anew")


def _obey(conversation: Conversation, line: str) -> None:
    command, _, rest = line.strip().partition(" ")
    rest = rest.strip()
    if command == "/reset":
        conversation.reset()
        _say("forgotten")
    elif command == "/system":
        conversation.set_system(rest or None)
        _say("begun anew" if rest else "begun anew without a system message of yours")
    elif command == "/save" and rest:
        conversation.save(Path(rest).expanduser())
        _say(f"{len(conversation.messages)} messages in {rest}")
    else:
        _say(HELP)


def _line_reader() -> Callable[[], str | None]:
    """Lines from the terminal, with editing and history, or from a pipe."""
    if not sys.stdin.isatty():
        return lambda: next((line.rstrip("\r\n") for line in iter(sys.stdin.readline, "")), None)
    with contextlib.suppress(ImportError):  # absent on Windows
        import readline  # noqa: F401 - makes input() edit and remember

    def read() -> str | None:
        try:
            return input(PROMPT)
        except EOFError:
            print()
            return None

    return read


def _write(piece: str) -> None:
    print(piece, end="", flush=True)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
