"""Task files of lm-evaluation-harness, where they are simple.

Read: `output_type` multiple_choice, loglikelihood and generate_until with `doc_to_text`, `doc_to_target` and
`doc_to_choice` as Jinja2 or column names, `description`, delimiters, `generation_kwargs.until`, one regex filter, and
`include` of a file in the same folder. Refused, with a line that says what: `!function` and `class` (they run Python),
other output types, and Jinja2 that the sandbox does not allow. Such tasks run through the library itself (`lm_eval`,
the extra `eval`).

Differs: a prompt's trailing spaces are dropped here and its answer starts with the delimiter; lm-evaluation-harness
moves them to the answer when it tokenises, which gives the same tokens for one space.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chinchilla_lm.core.errors import ChinchillaError, ConfigError
from chinchilla_lm.prompt.extraction import Extraction
from chinchilla_lm.prompt.sandbox import compile_text
from chinchilla_lm.prompt.template import Template
from chinchilla_lm.prompt.yaml_files import read_yaml

MAX_INCLUDES = 5
# The library's own, where a task names none: of `generate_until`, and of its regex filter.
DEFAULT_NEW_TOKENS = 256
DEFAULT_PATTERN = r"#### (\-?[0-9\.\,]+)"


@dataclass(frozen=True, kw_only=True)
class ImportedTask:
    """A task file as a template and what it says about its rows.

    Attributes:
        template: the prompt; a task with a target but no choices scores that one continuation.
        name: the task's name.
        output_type: "multiple_choice", "loglikelihood" or "generate_until".
        dataset: `dataset_path` and `dataset_name`, for a reader of Hugging Face data sets.
        splits: split name by role: "training", "validation", "test", "fewshot".
        metrics: names of the measures.
        shots: `num_fewshot`, or 0.
    """

    template: Template
    name: str
    output_type: str
    dataset: tuple[str, str]
    splits: Mapping[str, str]
    metrics: tuple[str, ...]
    shots: int


def is_task(content: Mapping[str, Any]) -> bool:
    """Whether the content of a YAML file is a task of lm-evaluation-harness rather than a template of ours."""
    return not {"doc_to_text", "include"}.isdisjoint(content)


def import_task(path: Path | str, content: Mapping[str, Any] | None = None) -> ImportedTask:
    """Read a task file.

    Args:
        path: a YAML file of lm-evaluation-harness.
        content: of that file, where it has been read; files that it includes are read anyway.

    Returns:
        The task.

    Raises:
        ConfigError: it runs Python, or is of a kind that this import does not know; the line says which key.
        DataError: it is absent or unreadable.
    """
    task = _with_includes(Path(path), 0, content)
    kind = str(task.get("output_type", "generate_until"))
    if kind not in ("multiple_choice", "loglikelihood", "generate_until"):
        raise _refusal(path, "output_type", kind, "multiple_choice, loglikelihood and generate_until are read")
    for key in ("class", "custom_dataset", "process_docs", "process_results"):
        if task.get(key) is not None:
            raise _refusal(path, key, task[key], "it runs Python")
    if kind == "multiple_choice" and "doc_to_choice" not in task:
        raise _refusal(path, "doc_to_choice", None, "multiple_choice needs it")
    try:
        template = _template(Path(path), task, kind)
    except ChinchillaError as error:
        message = str(error)
        raise ConfigError(message if message.startswith(str(path)) else f"{path}: {message}") from None
    roles = ("training", "validation", "test", "fewshot")
    metrics = _mappings(path, "metric_list", task.get("metric_list"))
    return ImportedTask(
        template=template,
        name=str(task.get("task", Path(path).stem)),
        output_type=kind,
        dataset=(str(task.get("dataset_path") or ""), str(task.get("dataset_name") or "")),
        splits={role: str(task[f"{role}_split"]) for role in roles if task.get(f"{role}_split")},
        metrics=tuple(str(entry.get("metric")) for entry in metrics),
        shots=_count(path, "num_fewshot", task.get("num_fewshot"), 0),
    )


def _template(path: Path, task: Mapping[str, Any], kind: str) -> Template:
    text = _expression(task, "doc_to_text", path)
    delimiter = str(task.get("target_delimiter", " "))
    target = task.get("doc_to_target", "")
    if isinstance(task.get("doc_to_text"), int):
        raise _refusal(path, "doc_to_text", task["doc_to_text"], "a number has no prompt")
    shared: dict[str, Any] = {
        "name": str(task.get("task", path.stem)),
        "language": "en",
        "item": text.rstrip(" "),
        "fields": _fields(text, path),
        "instruction": str(task.get("description") or ""),
        "delimiter": delimiter if delimiter in ("", " ", "\n") else "",
        "separator": str(task.get("fewshot_delimiter", "\n\n")),
        "source": f"lm-evaluation-harness, {path.name}",
    }
    if delimiter not in ("", " ", "\n"):
        raise _refusal(path, "target_delimiter", delimiter, "a space, a line break or nothing is read")
    if kind == "multiple_choice":
        return Template(
            **shared, task="multiple-choice", choices=_choices(task, path), target=_target(target),
            domain=_last_line(text),
        )  # fmt: skip
    answer = _expression(task, "doc_to_target", path)
    if kind == "loglikelihood":
        # The one continuation whose probability is asked.
        return Template(
            **shared, task="text-generation", choices="{{ [" + _inner_or_text(answer) + "] }}", target="{{ 0 }}"
        )
    writing = task.get("generation_kwargs") or {}
    if not isinstance(writing, Mapping):
        raise _refusal(path, "generation_kwargs", writing, "a mapping is read")
    return Template(
        **shared,
        task="text-generation",
        answer=answer,
        stops=_stops(path, writing.get("until", shared["separator"])),
        max_tokens=_count(path, "max_gen_toks", writing.get("max_gen_toks"), DEFAULT_NEW_TOKENS),
        extract=_extraction(path, task),
    )


def _expression(task: Mapping[str, Any], key: str, path: Path) -> str:
    """Return a key as Jinja2 text; a column's bare name becomes an expression, as the library reads it."""
    value = task.get(key)
    if value is None:
        raise _refusal(path, key, value, "it is missing")
    text = str(value)
    is_name = text.isidentifier() and isinstance(value, str)
    return "{{ " + text + " }}" if is_name else text


def _choices(task: Mapping[str, Any], path: Path) -> str:
    value = task["doc_to_choice"]
    if isinstance(value, list):
        return "{{ [" + ", ".join(repr(str(choice)) for choice in value) + "] }}"
    if not isinstance(value, str):
        raise _refusal(path, "doc_to_choice", value, "a list, a column or a Jinja2 expression is read")
    return "{{ " + value + " }}" if value.isidentifier() else value


def _target(value: Any) -> str:
    if isinstance(value, str) and value.isidentifier():
        return "{{ " + value + " }}"
    return str(value)


def _inner_or_text(answer: str) -> str:
    """Return an expression inside {{ }} for a template, or the quoted text when it holds none."""
    stripped = answer.strip()
    if stripped.startswith("{{") and stripped.endswith("}}") and stripped.count("{{") == 1:
        return stripped[2:-2].strip()
    if "{{" not in answer and "{%" not in answer:
        return repr(answer)
    raise ConfigError(f"doc_to_target = {answer!r:.60} mixes text and expressions; write one {{{{ expression }}}}")


def _last_line(text: str) -> str:
    last = text.rstrip(" ").rsplit("\n", 1)[-1]
    return "" if "{" in last or "}" in last else last


def _fields(text: str, path: Path) -> tuple[str, ...]:
    return compile_text(text, f"{path}: doc_to_text").names


def _extraction(path: Path, task: Mapping[str, Any]) -> Extraction:
    """Read the last filter list whose first step is a regex ("flexible" ones come last); else all of the text."""
    for entry in reversed(_mappings(path, "filter_list", task.get("filter_list"))):
        steps = _mappings(path, "filter", entry.get("filter"))
        if steps and steps[0].get("function") == "regex":
            which = "last" if steps[0].get("group_select") == -1 else "first"
            return Extraction(rule="regex", pattern=str(steps[0].get("regex_pattern", DEFAULT_PATTERN)), which=which)
    return Extraction(rule="all")


def _stops(path: Path, until: Any) -> tuple[str, ...]:
    found = [until] if isinstance(until, str) else until or []
    if not isinstance(found, list) or not all(isinstance(stop, str) for stop in found):
        raise _refusal(path, "until", until, "a text or a list of texts is read")
    return tuple(stop for stop in found if stop)


def _count(path: Path | str, key: str, value: Any, default: int) -> int:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise _refusal(path, key, value, "a whole number is read")
    return default if value is None else value


def _mappings(path: Path | str, key: str, value: Any) -> list[Mapping[str, Any]]:
    found = value or []
    if not isinstance(found, list) or not all(isinstance(entry, Mapping) for entry in found):
        raise _refusal(path, key, value, "a list of mappings is read")
    return found


def _with_includes(path: Path, depth: int, content: Mapping[str, Any] | None = None) -> dict[str, Any]:
    task = read_yaml(path) if content is None else dict(content)
    included = task.pop("include", None)
    if included is None:
        return task
    place = path.parent / str(included)
    if depth >= MAX_INCLUDES or place.parent.resolve() != path.parent.resolve():
        raise _refusal(path, "include", included, f"a file of the same folder, at most {MAX_INCLUDES} deep, is read")
    return {**_with_includes(place, depth + 1), **task}


def _refusal(path: Path | str, key: str, value: Any, rule: str) -> ConfigError:
    return ConfigError(f"{path}: {key} = {value!r:.60}: {rule}; run the task through lm_eval itself (extra eval)")
