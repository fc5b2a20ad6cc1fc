"""Strict configuration: TOML to frozen dataclasses and back.

A dataclass states the keys, types and defaults; this file refuses everything else with one line that names the file,
the key and the nearest name. It knows bool, int, float, str, None, Literal, Optional and other unions, tuples, lists,
mappings with string keys, and nested dataclasses. It reads no environment and changes no value: an int where a float is
asked for becomes that float, and nothing else is converted.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast

from chinchilla_lm.core.errors import ChinchillaError, ConfigError

T = TypeVar("T")

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
LONGEST_SHOWN = 200  # characters of a wrong value in a message
# TOML integers must round trip through 64 bits in every reader (toml.io, "Integer").
_INTEGER_LIMIT = 2**63


def load_toml(cls: type[T], path: Path | str) -> T:
    """Read a TOML file as a frozen dataclass.

    Args:
        cls: the dataclass that states the keys.
        path: the file.

    Returns:
        An instance of `cls`.

    Raises:
        ConfigError: the file is absent or not TOML, or a key is unknown, missing or of the wrong type.
    """
    try:
        mapping = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; write the path of a TOML file") from None
    except (IsADirectoryError, PermissionError) as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); write the path of a readable TOML file") from None
    except (ValueError, RecursionError) as error:  # no TOML, no UTF-8, a number of thousands of digits, nested too deep
        raise ConfigError(f"{path} is not TOML ({_shown(error)}); correct that place") from None
    return from_mapping(cls, mapping, where=str(path))


def from_mapping(cls: type[T], mapping: Mapping[str, Any], where: str) -> T:
    """Build a dataclass from plain values, strictly.

    Args:
        cls: the dataclass that states the keys; nested dataclasses are tables.
        mapping: values by field name, as TOML or JSON gives them.
        where: the file or record that errors name.

    Returns:
        An instance of `cls`.

    Raises:
        ConfigError: an unknown key (with the nearest one), a missing key, a wrong type, or a broken rule of `cls`.
    """
    return _read_dataclass(cls, mapping, where, prefix="")


def dump_toml(value: Any, comments: Mapping[str, str] | None = None) -> str:
    """Write a dataclass as TOML that `load_toml` reads back exactly.

    Args:
        value: a dataclass instance; fields that are None are left out, so their default must be None.
        comments: text by dotted key, written as `# ...` at the end of that key's line.

    Returns:
        TOML text, plain keys before tables, floats with all their digits.

    Raises:
        ConfigError: a value that TOML cannot hold, or a comment for a key that is not written.
    """
    unused = dict(comments or {})
    lines: list[str] = []
    _write_table(_as_mapping(value), "", unused, lines)
    if unused:
        key = next(iter(unused))
        raise ConfigError(f"comment for {key!r} has no such key; use the dotted name of a written key")
    return "\n".join(lines).strip("\n") + "\n"


def _read_dataclass(cls: type[T], mapping: Any, where: str, prefix: str) -> T:
    if not isinstance(mapping, Mapping):
        raise ConfigError(
            f"{where}: {prefix.rstrip('.')} = {_shown(repr(mapping))} must be a table of {cls.__name__}'s keys"
        )
    mapping = cast("Mapping[str, Any]", mapping)
    known = {field.name: field for field in dataclasses.fields(cast(Any, cls)) if field.init}
    for key in mapping:
        if key not in known:
            raise ConfigError(
                f"{where}: unknown key {_shown(repr(prefix + str(key)))}; {_nearest(str(key), list(known))}"
            )
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for name, field in known.items():
        if name in mapping:
            values[name] = _read(hints[name], mapping[name], where, prefix + name)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{where}: missing key {prefix + name!r} ({_describe(hints[name])}); add it")
    try:
        return cls(**values)
    except ChinchillaError as error:
        raise type(error)(f"{where}: {prefix.rstrip('.') + ': ' if prefix else ''}{error}") from None


def _read(hint: Any, value: Any, where: str, key: str) -> Any:
    """Return `value` as the type `hint`, or refuse it by its key."""
    found, read = _match(hint, value, where, key)
    if not found:
        raise ConfigError(f"{where}: {key} = {_shown(repr(value))} has the wrong type; write {_describe(hint)}")
    return read


def _match(hint: Any, value: Any, where: str, key: str) -> tuple[bool, Any]:
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        return _match_union(typing.get_args(hint), value, where, key)
    if origin is Literal:
        return any(type(choice) is type(value) and choice == value for choice in typing.get_args(hint)), value
    if origin in (tuple, list, Sequence):
        return _match_sequence(hint, origin, value, where, key)
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            return False, None
        item = typing.get_args(hint)[1]
        pairs = cast("Mapping[str, Any]", value).items()
        return True, {name: _read(item, entry, where, f"{key}.{name}") for name, entry in pairs}
    if dataclasses.is_dataclass(hint):
        return True, _read_dataclass(cast("type[Any]", hint), value, where, key + ".")
    return _match_plain(hint, value)


def _match_plain(hint: Any, value: Any) -> tuple[bool, Any]:
    if hint is Any:
        return True, value
    if hint in (None, type(None)):
        return value is None, None
    if hint is float:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return is_number, float(cast(float, value)) if is_number else None
    if hint is Path:
        return isinstance(value, str), Path(value) if isinstance(value, str) else None
    # bool is a subclass of int in Python, and 1 is not true in a configuration.
    return type(value) is hint, value


def _match_union(choices: tuple[Any, ...], value: Any, where: str, key: str) -> tuple[bool, Any]:
    has_keys = hasattr(value, "keys")
    for choice in choices:
        if dataclasses.is_dataclass(choice) and not has_keys:  # refuse it below, beside the other choices
            continue
        if choice is float and int in choices and type(value) is int:
            continue
        found, read = _match(choice, value, where, key)
        if found:
            return True, read
    return False, None


def _match_sequence(hint: Any, origin: Any, value: Any, where: str, key: str) -> tuple[bool, Any]:
    if not isinstance(value, (list, tuple)):
        return False, None
    entries = cast("Sequence[Any]", value)
    items = typing.get_args(hint)
    if origin is tuple and not (len(items) == 2 and items[1] is Ellipsis):
        if len(items) != len(entries):
            return False, None
        each = items
    else:
        each = (items[0],) * len(entries)
    read = [_read(item, entry, where, f"{key}[{i}]") for i, (item, entry) in enumerate(zip(each, entries, strict=True))]
    return True, list(read) if origin is list else tuple(read)


def _shown(what: object) -> str:
    """One line that a person can read, of whatever a file holds."""
    text = " ".join(str(what).split())
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def _nearest(key: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"the keys are {', '.join(known)}" if known else "it takes no keys"


def _describe(hint: Any) -> str:
    """Say a type in a person's words, for the last part of a message."""
    origin = typing.get_origin(hint)
    items = typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(repr(choice) for choice in items)
    if origin in (Union, types.UnionType):
        named = [_describe(item) for item in items if item is not type(None)]
        return " or ".join(named) + (" (or leave it out)" if type(None) in items else "")
    if origin in (tuple, list, Sequence):
        if origin is tuple and Ellipsis not in items:
            return "a list of " + ", ".join(_describe(item) for item in items)
        return f"a list, each entry {_describe(items[0])}"
    if origin in (dict, Mapping) or dataclasses.is_dataclass(hint):
        return "a table"
    words = {int: "a whole number", float: "a number", str: "text in quotes", bool: "true or false", Path: "a path"}
    return words.get(hint, getattr(hint, "__name__", str(hint)))


def _as_mapping(value: Any) -> Mapping[str, Any]:
    assert dataclasses.is_dataclass(value), f"dump_toml takes a dataclass instance, got {value!r}"
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}


def _write_table(table: Mapping[str, Any], prefix: str, comments: dict[str, str], lines: list[str]) -> None:
    tables: list[tuple[str, Mapping[str, Any]]] = []
    for name, value in table.items():
        if value is None:
            continue
        key = prefix + _key(name)
        if dataclasses.is_dataclass(value):
            tables.append((key, _as_mapping(value)))
        elif isinstance(value, Mapping):
            tables.append((key, cast("Mapping[str, Any]", value)))
        else:
            lines.append(f"{_key(name)} = {_literal(value, key)}{_comment(key, comments)}")
    for key, inner in tables:
        lines.append("")
        lines.append(f"[{key}]{_comment(key, comments)}")
        _write_table(inner, key + ".", comments, lines)


def _comment(key: str, comments: dict[str, str]) -> str:
    text = " ".join(comments.pop(key, "").split())  # a comment ends with its line
    return f"  # {text}" if text else ""


def _literal(value: Any, key: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        if not -_INTEGER_LIMIT <= value < _INTEGER_LIMIT:
            raise ConfigError(f"{key} = {value} does not fit TOML's 64-bit integers; make it a float")
        return str(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            return repr(value)  # inf, -inf and nan are TOML's own words
        text = repr(value)
        return text if "." in text or "e" in text else text + ".0"
    if isinstance(value, (str, Path)):
        return _string(str(value))
    if isinstance(value, (list, tuple)):
        entries = cast("Sequence[Any]", value)
        return "[" + ", ".join(_literal(_plain_entry(entry, key), key) for entry in entries) + "]"
    if isinstance(value, Mapping):
        pairs = cast("Mapping[str, Any]", value).items()
        return "{" + ", ".join(f"{_key(name)} = {_literal(entry, key)}" for name, entry in pairs) + "}"
    raise ConfigError(f"{key} = {value!r} cannot be written as TOML; use numbers, text, lists or tables")


def _plain_entry(entry: Any, key: str) -> Any:
    """Turn a record inside a list into an inline table, which TOML keeps on one line."""
    if entry is None:
        raise ConfigError(f"{key} holds None, which TOML cannot write in a list; leave the entry out")
    if dataclasses.is_dataclass(entry):
        table = _as_mapping(entry)
        return {name: _plain_entry(inner, key) for name, inner in table.items() if inner is not None}
    return entry


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else _string(name)


def _string(text: str) -> str:
    # TOML's basic strings escape as JSON does, and also the delete character (toml.io, "String").
    escapes = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r", "\b": "\\b", "\f": "\\f"}
    written = (escapes.get(c, f"\\u{ord(c):04x}" if ord(c) < 32 or ord(c) == 127 else c) for c in text)
    return '"' + "".join(written) + '"'
