"""Template files: one YAML file a wording, in `library/<language>/<task>/<family>-<wording>.yaml`.

A file's keys are the fields of `template.Template`; in the library `name`, `language`, `task` and `family` follow from
its place. Every file is checked when it is read: unknown keys with the nearest name, Jinja2 outside the sandbox, a
prompt that ends in a space, words that two labels share, and an example that does not render.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chinchilla_lm.core.config import from_mapping
from chinchilla_lm.core.errors import ChinchillaError, ConfigError
from chinchilla_lm.core.tasks import TASKS
from chinchilla_lm.prompt.lm_eval_tasks import import_task, is_task
from chinchilla_lm.prompt.template import LANGUAGES, Template
from chinchilla_lm.prompt.yaml_files import read_yaml

LIBRARY = Path(__file__).with_name("library")


def load_template(name: str) -> Template:
    """Find a template by its name, or read it from a file: `open_template` without the second answer."""
    return open_template(name)[0]


def open_template(name: str) -> tuple[Template, bool]:
    """Find a template by its name, or read it from a file, once.

    Args:
        name: a library name such as "en/text-classification/sentiment-review", or a path that ends in .yaml or .yml: a
            template, or a task file of lm-evaluation-harness.

    Returns:
        The template, and whether it is of a task file, whose fields are the columns of its rows as they are.

    Raises:
        ConfigError: no such name, or the file breaks a rule.
        DataError: the file is absent.
    """
    if name.endswith((".yaml", ".yml")):
        content = read_yaml(name)
        if is_task(content):
            return import_task(name, content).template, True
        return read_template(name, content), False
    names = _names()
    if name in names:
        return _read_named(name), False
    last = name.rsplit("/", 1)[-1]
    close = [known for known in names if last in known] or difflib.get_close_matches(name, names, n=5, cutoff=0.5)
    hint = f"near it are {', '.join(close[:5])}" if close else "docs/prompts.md lists the names"
    raise ConfigError(f"no template is named {name!r}; {hint}, or write the path of a .yaml file")


def library_templates(task: str = "", language: str = "", family: str = "") -> list[Template]:
    """Return the library's templates.

    Args:
        task: of `TASKS`; every task without.
        language: "en" or "zh"; both without.
        family: such as "sentiment"; every family without.

    Returns:
        Templates by name.

    Raises:
        ConfigError: an unknown task, language or family, with the known ones.
    """
    for word, known, label in ((task, TASKS, "task"), (language, LANGUAGES, "language")):
        if word and word not in known:
            raise ConfigError(f"{label} = {word!r} is unknown; write one of {', '.join(known)}")
    names = [name for name in _names() if _is_within(name, task, language)]
    found = [name for name in names if family in ("", _family(name))]
    if not found:
        families = sorted({_family(name) for name in names})
        raise ConfigError(f"family = {family!r} has no template here; write one of {', '.join(families)}")
    return [_read_named(name) for name in found]


def read_template(path: Path | str, content: Mapping[str, Any] | None = None) -> Template:
    """Read and check one template file.

    Args:
        path: a YAML file; outside the library it states `task` and `language`.
        content: of the file, where it has been read.

    Returns:
        The template; its name is the file's place in the library, or the file's name.

    Raises:
        ConfigError: one line with the file, the key, the rule and the way out.
        DataError: the file is absent or unreadable.
    """
    place = Path(path)
    values: dict[str, Any] = {"name": place.stem}
    if place.is_relative_to(LIBRARY):
        language, task = place.relative_to(LIBRARY).parts[:2]
        name = f"{language}/{task}/{place.stem}"
        values = {"name": name, "task": task, "language": language, "family": _family(name)}
    values |= read_yaml(place) if content is None else content
    template = from_mapping(Template, values, where=str(path))
    try:
        _check_example(template)
    except ChinchillaError as error:
        raise ConfigError(f"{path}: example: {error}") from None
    return template


@functools.lru_cache(maxsize=1)
def _names() -> tuple[str, ...]:
    return tuple(sorted(path.relative_to(LIBRARY).with_suffix("").as_posix() for path in LIBRARY.glob("*/*/*.yaml")))


@functools.cache
def _read_named(name: str) -> Template:
    return read_template(LIBRARY / f"{name}.yaml")


def _is_within(name: str, task: str, language: str) -> bool:
    found_language, found_task, _ = name.split("/")
    return language in ("", found_language) and task in ("", found_task)


def _family(name: str) -> str:
    return name.rsplit("/", 1)[-1].rsplit("-", 1)[0]


def _check_example(template: Template) -> None:
    """Render the example in every form that the template has."""
    if not template.example:
        raise ConfigError("it is missing; add a row that shows the template")
    template.answer_text(template.example)
    parts = template.render(template.example, [template.example])
    for prompt in parts.items or (parts.item,):
        if (parts.shared + prompt).endswith(" "):
            raise ConfigError(f"the prompt ends in a space ({prompt[-20:]!r}); the space belongs to the answer")
    if template.kind == "choice":
        template.gold_index(template.example)
        template.domain_text(template.example)
    if template.thought is not None:
        template.thinking().render(template.example, [template.example])
