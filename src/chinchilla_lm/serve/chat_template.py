"""Chat templates: found in the tokenizer's folder, rendered in a separate process with limits of time and memory.

The template is jinja2 as transformers writes it (chat_template.jinja, or chat_template in tokenizer_config.json).
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chinchilla_lm.core.errors import ModelError

LONGEST_TEMPLATE = 1 << 18  # characters; the longest in use (with tools) have about 20,000
RENDER_SECONDS = 5.0  # the worker stops itself after 0.5 s of computing; this is for what it cannot stop
START_SECONDS = 30.0  # a busy machine may take seconds to start an interpreter


class TemplateFailed(ModelError):  # noqa: N818 - it says what happened
    """The template refused the messages, or went beyond its limits."""


class ChatTemplate:
    """A template and the process that renders it; any thread may render, one at a time."""

    def __init__(self, source: str, special: Mapping[str, str]) -> None:
        """Starts nothing yet.

        Args:
            source: jinja2.
            special: bos_token, eos_token and the like.
        """
        self.source = source
        self._special = dict(special)
        self._lock = threading.Lock()
        self._worker: subprocess.Popen[bytes] | None = None

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Return the prompt for the assistant's next turn.

        Raises:
            TemplateFailed: the template refused, or took too long or too much memory.
        """
        variables = {**self._special, "messages": list(messages), "add_generation_prompt": True, "tools": None}
        line = json.dumps({"template": self.source, "variables": variables}).encode() + b"\n"
        with self._lock:
            answer = self._ask(line)
        if "error" in answer:
            raise TemplateFailed(f"the chat template refused these messages: {answer['error']}")
        return answer["text"]

    def close(self) -> None:
        """End the process."""
        if self._worker is not None:
            self._worker.kill()
            self._worker.wait()
            for pipe in (self._worker.stdin, self._worker.stdout):
                if pipe is not None:
                    pipe.close()
            self._worker = None

    def _ask(self, line: bytes) -> dict[str, Any]:
        seconds = RENDER_SECONDS
        if self._worker is None or self._worker.poll() is not None:
            self.close()
            self._worker = _start_worker()
            seconds += START_SECONDS
            # Its first answer says that it is up, so that the limit of rendering holds for rendering alone.
            if _exchange(self._worker, json.dumps({"template": "", "variables": {}}).encode() + b"\n", seconds) is None:
                self.close()
                raise TemplateFailed("the process that renders chat templates does not start; check the memory left")
        reply = _exchange(self._worker, line, RENDER_SECONDS)
        if reply is None:
            self.close()
            raise TemplateFailed(
                f"the chat template took longer than {RENDER_SECONDS:g} s, or all memory; shorten the chat"
            )
        return json.loads(reply)


def find_chat_template(folder: Path, tokenizer_config: Mapping[str, Any]) -> ChatTemplate | None:
    """Return the template of a model folder, or None when it has none.

    Raises:
        ModelError: it is no text or longer than LONGEST_TEMPLATE characters.
    """
    path = folder / "chat_template.jinja"
    if path.is_file():
        source: Any = path.read_text(encoding="utf-8", errors="replace")
    else:
        source = tokenizer_config.get("chat_template")
        if isinstance(source, list):  # several, by name
            named = {one.get("name"): one.get("template") for one in source if isinstance(one, dict)}
            source = named.get("default")
    if source is None:
        return None
    if not isinstance(source, str) or len(source) > LONGEST_TEMPLATE:
        size = len(source) if isinstance(source, str) else type(source).__name__
        raise ModelError(
            f"{folder}: the chat template must be a text of at most {LONGEST_TEMPLATE} characters, got {size}"
        )
    special: dict[str, str] = {}
    for name, value in tokenizer_config.items():
        content = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(content, str):
            special[name] = content
    return ChatTemplate(source, special)


def _start_worker() -> subprocess.Popen[bytes]:
    environment = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "SYSTEMROOT", "TZ") if name in os.environ}
    command = [sys.executable, "-m", "chinchilla_lm.serve.template_worker"]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,  # Ctrl-C in a terminal is for the server, which still renders what it has accepted
    )


def _exchange(worker: subprocess.Popen[bytes], line: bytes, seconds: float) -> bytes | None:
    """Send a line and wait for one; None when the worker died or took too long."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    deadline = time.monotonic() + seconds
    try:
        worker.stdin.write(line)  # the worker reads a whole line before it works: this does not wait for the template
        worker.stdin.flush()
    except BrokenPipeError:
        return None
    parts: list[bytes] = []
    with selectors.DefaultSelector() as selector:
        selector.register(worker.stdout, selectors.EVENT_READ)
        while not parts or not parts[-1].endswith(b"\n"):
            if not selector.select(max(0.0, deadline - time.monotonic())):
                return None
            part = os.read(worker.stdout.fileno(), 1 << 16)
            if not part:
                return None
            parts.append(part)
    return b"".join(parts)
