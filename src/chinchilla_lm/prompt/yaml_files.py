"""YAML files from strangers, read strictly: plain values only, no aliases, no second copy of a key, no Python.

PyYAML is a dependency of transformers and huggingface_hub; its `SafeLoader` builds no objects, and here it also refuses
aliases (a few lines of them unfold to gigabytes) and keys given twice (YAML keeps the last, silently).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from chinchilla_lm.core.errors import ConfigError
from chinchilla_lm.core.files import explain_os_error

# The longest task file of lm-evaluation-harness 0.4.13 without data has about 30 KB.
MAX_FILE_BYTES = 256 * 1024


def read_yaml(path: Path | str) -> dict[str, Any]:
    """Read a file that holds one mapping.

    Args:
        path: UTF-8, at most 256 KiB.

    Returns:
        Its values by key.

    Raises:
        ConfigError: it is too large, not UTF-8, not YAML or no mapping; an alias, a tag such as `!function`, or a key
            given twice.
        DataError: it is absent or unreadable.
    """
    with explain_os_error(Path(path)), open(path, "rb") as stream:
        content = stream.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"{path} has more than {MAX_FILE_BYTES} bytes; a template is a short file")
    try:
        value = yaml.load(content.decode("utf-8"), Loader=_Loader)  # noqa: S506 - a SafeLoader, made stricter
    except _Refusal as error:
        raise ConfigError(f"{path}: {error}") from None
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise ConfigError(f"{path} is not YAML ({problem:.200}); correct that place") from None
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({type(error).__name__}: {error}); save it as plain UTF-8") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds a {type(value).__name__}; write `key: value` lines")
    return value


class _Refusal(Exception):  # noqa: N818 - becomes a ConfigError that names the file
    """What YAML allows and a template does not."""


class _Loader(yaml.SafeLoader):
    """`SafeLoader` without aliases, tags and doubled keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            line = self.peek_event().start_mark.line + 1
            raise _Refusal(f"line {line}: an alias (*name) is not allowed; write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise _Refusal(f"line {line}: the key {key!r} is a {type(key).__name__}; put it in quotes")
            if key in seen:
                raise _Refusal(f"line {line}: the key {key!r} is given twice; delete one")
            seen.add(key)
        return super().construct_mapping(node, deep)


def _refuse_tag(loader: _Loader, suffix: str, node: Any) -> Any:
    line = node.start_mark.line + 1
    raise _Refusal(
        f"line {line}: !{suffix} {getattr(node, 'value', '')!s:.60} runs Python, which is never done here; "
        "write it as a Jinja2 expression"
    )


_Loader.add_multi_constructor("!", _refuse_tag)
_Loader.add_multi_constructor("tag:yaml.org,2002:python/", _refuse_tag)
