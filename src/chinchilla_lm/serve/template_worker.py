"""The process that renders chat templates: jinja2's immutable sandbox, a memory limit, nothing else of this package.

A template comes with a model and is a program: loops and string products can take any time and memory, so it runs here,
where it can be killed. Reads JSON lines {"template", "variables"} on stdin, answers {"text"} or {"error"} on stdout.
"""

from __future__ import annotations

import datetime
import json
import signal
import sys
from typing import Any

MOST_MEMORY_BYTES = 512 << 20  # of address space; an interpreter with jinja2 maps about 50 MB
LONGEST_TEXT = 8 << 20  # characters
MOST_CPU_SECONDS = 0.5  # a template of a long chat takes milliseconds; computing counts, waiting for a core does not


def main() -> None:
    """Answer until stdin ends."""
    _limit_memory()
    environment, compiled = _environment(), {}
    for line in sys.stdin.buffer:
        try:
            asked = json.loads(line)
            _limit_seconds(MOST_CPU_SECONDS)
            if asked["template"] not in compiled:
                compiled[asked["template"]] = environment.from_string(asked["template"])
            answer = {"text": _render(compiled[asked["template"]], asked["variables"])}
        except MemoryError:
            answer = {"error": f"it needs more than {MOST_MEMORY_BYTES} bytes of memory"}
        except TimeoutError:
            answer = {"error": f"it needs more than {MOST_CPU_SECONDS} s of computing"}
        except Exception as error:  # a template may raise anything; all of it is an answer
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        _limit_seconds(0)
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


def _render(template: Any, variables: dict[str, Any]) -> str:
    length, parts = 0, []
    for part in template.generate(**variables):
        length += len(part)
        if length > LONGEST_TEXT:
            raise ValueError(f"the text is longer than {LONGEST_TEXT} characters")
        parts.append(part)
    return "".join(parts)


def _environment() -> Any:
    from jinja2 import nodes
    from jinja2.exceptions import TemplateError
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks the assistant's words for training; rendering passes them on."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, **options: Any) -> str:
        options = {"ensure_ascii": False, **options}
        return json.dumps(value, **options)

    def strftime_now(form: str) -> str:
        return datetime.datetime.now().strftime(form)

    # The settings of transformers' apply_chat_template, so that a template means the same.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
    return environment


def _limit_seconds(seconds: float) -> None:
    """Raise TimeoutError after so much computing from now on; 0 never."""
    if hasattr(signal, "SIGPROF"):  # absent on Windows, where only the host's clock holds

        def stop(*_: Any) -> None:
            raise TimeoutError

        signal.signal(signal.SIGPROF, stop)
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _limit_memory() -> None:
    try:
        import resource  # absent on Windows, where only the time limit holds
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY_BYTES, MOST_MEMORY_BYTES))


if __name__ == "__main__":
    main()
