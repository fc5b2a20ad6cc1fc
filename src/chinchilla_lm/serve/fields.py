"""Fields of a request body: read strictly, and described for /openapi.json, from one declaration.

A body is a frozen dataclass whose fields are made by `wanted` and `optional`; each has a `Kind`, which reads a JSON
value or refuses it with 400 naming the field, and knows its own JSON schema. A field that no body has is refused; null
stands for the default. Nothing is converted: "5" is no number, 5.0 is no whole number, true is neither.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass
from typing import Any, TypeVar

from chinchilla_lm.serve.api_errors import ApiError, bad_field

Body = TypeVar("Body")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of JSON value.

    Attributes:
        read: (value, field's path) -> the value to keep; raises ApiError.
        schema: the JSON schema of what `read` takes.
    """

    read: Callable[[Any, str], Any]
    schema: Mapping[str, Any]


def wanted(kind: Kind) -> Any:
    """Declare a field that a body must have."""
    return dataclasses.field(metadata={"kind": kind})


def optional(kind: Kind, default: Any = None) -> Any:
    """Declare a field with a default."""
    return dataclasses.field(default=default, metadata={"kind": kind})


def read_fields(body: type[Body], table: Any, where: str = "", unsupported: Mapping[str, str] | None = None) -> Body:
    """Read a JSON object as a body.

    Args:
        body: a dataclass of declared fields.
        table: any JSON value.
        where: the path of the object, "" for the whole body.
        unsupported: fields that other servers have, with what to do instead.

    Raises:
        ApiError: 400, naming the field.
    """
    declared = {one.name: one for one in dataclasses.fields(body)}  # type: ignore[arg-type]
    prefix = f"{where}." if where else ""
    if not isinstance(table, dict):
        raise ApiError(400, f"{where or 'the body'} must be a JSON object, got {_shown(table)}", param=where or None)
    for name in table:
        if name not in declared:
            if table[name] is None and name in (unsupported or {}):
                continue
            raise _unknown(prefix + name[:80], name, list(declared), unsupported or {})
    values: dict[str, Any] = {}
    for name, one in declared.items():
        if table.get(name) is not None:
            values[name] = one.metadata["kind"].read(table[name], prefix + name)
        elif one.default is MISSING:
            raise bad_field(prefix + name, "is missing; it must be given", "missing_required_parameter")
    return body(**values)


def schema_of(body: type) -> dict[str, Any]:
    """Return the JSON schema of a body."""
    properties: dict[str, Any] = {}
    required: list[str] = []
    for one in dataclasses.fields(body):
        schema = dict(one.metadata["kind"].schema)
        if one.default is MISSING:
            required.append(one.name)
            properties[one.name] = schema
        else:
            properties[one.name] = {"anyOf": [schema, {"type": "null"}]}
            if isinstance(one.default, (str, int, float)):
                properties[one.name]["default"] = one.default
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def text(least: int = 0, most: int | None = None) -> Kind:
    """A string of `least` to `most` characters."""

    def read(value: Any, where: str) -> str:
        if not isinstance(value, str):
            raise bad_field(where, f"must be a string, got {_shown(value)}")
        if len(value) < least or (most is not None and len(value) > most):
            raise bad_field(where, f"must have {_range(least, most)} characters, got {len(value)}")
        return value

    bounds = {"minLength": least} if least else {}
    return Kind(read=read, schema={"type": "string", **bounds, **({} if most is None else {"maxLength": most})})


def integer(least: int, most: int) -> Kind:
    """A whole number."""

    def read(value: Any, where: str) -> int:
        if type(value) is not int or not least <= value <= most:
            raise bad_field(where, f"must be a whole number from {least} to {most}, got {_shown(value)}")
        return value

    return Kind(read=read, schema={"type": "integer", "minimum": least, "maximum": most})


def number(least: float, most: float, *, excludes_least: bool = False) -> Kind:
    """A number."""

    def read(value: Any, where: str) -> float:
        is_number = type(value) in (int, float)
        if not is_number or not least <= value <= most or (excludes_least and value == least):
            words = f"above {least:g} and at most {most:g}" if excludes_least else f"from {least:g} to {most:g}"
            raise bad_field(where, f"must be a number {words}, got {_shown(value)}")
        return float(value)

    low = "exclusiveMinimum" if excludes_least else "minimum"
    return Kind(read=read, schema={"type": "number", low: least, "maximum": most})


def boolean() -> Kind:
    """True or false."""

    def read(value: Any, where: str) -> bool:
        if type(value) is not bool:
            raise bad_field(where, f"must be true or false, got {_shown(value)}")
        return value

    return Kind(read=read, schema={"type": "boolean"})


def choice(*words: Any) -> Kind:
    """One of some values."""

    def read(value: Any, where: str) -> Any:
        if not any(type(value) is type(word) and value == word for word in words):
            raise bad_field(where, f"must be one of {', '.join(map(repr, words))}, got {_shown(value)}")
        return value

    return Kind(read=read, schema={"enum": list(words)})


def many(kind: Kind, least: int = 1, most: int | None = None) -> Kind:
    """A list of values of one kind; read as a tuple."""

    def read(value: Any, where: str) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise bad_field(where, f"must be a list, got {_shown(value)}")
        if len(value) < least or (most is not None and len(value) > most):
            raise bad_field(where, f"must have {_range(least, most)} entries, got {len(value)}")
        try:
            return tuple([kind.read(one, where) for one in value])
        except ApiError:  # once more, with the place: naming each of 100,000 token ids would take half the time
            return tuple(kind.read(one, f"{where}[{index}]") for index, one in enumerate(value))

    bounds = {"minItems": least} if most is None else {"minItems": least, "maxItems": most}
    return Kind(read=read, schema={"type": "array", "items": dict(kind.schema), **bounds})


def objects(body: type, unsupported: Mapping[str, str] | None = None) -> Kind:
    """An object with declared fields."""
    return Kind(read=lambda value, where: read_fields(body, value, where, unsupported), schema=schema_of(body))


def number_by_id(low: float, high: float) -> Kind:
    """An object from token ids, written as strings of digits, to numbers."""
    inner = number(low, high)

    def read(value: Any, where: str) -> dict[int, float]:
        if not isinstance(value, dict):
            raise bad_field(where, f"must be an object of token ids, got {_shown(value)}")
        for name in value:
            if not re.fullmatch(r"0|[1-9][0-9]{0,8}", name, re.ASCII):
                raise bad_field(where, f'names must be token ids such as "50256", got {_shown(name)}')
        return {int(name): inner.read(one, f"{where}.{name}") for name, one in value.items()}

    pattern = {"^(0|[1-9][0-9]{0,8})$": dict(inner.schema)}
    return Kind(read=read, schema={"type": "object", "patternProperties": pattern, "additionalProperties": False})


def either(what: str, *kinds: Kind) -> Kind:
    """A value of one of some kinds, told apart by its first reading that succeeds; `what` names them in the refusal."""

    def read(value: Any, where: str) -> Any:
        last: ApiError | None = None
        for kind in kinds:
            try:
                return kind.read(value, where)
            except ApiError as error:
                # The refusal that got furthest into the value is the one that helps: it names an inner field. Of
                # equals the later kind's: lists stand behind single values, and say what is wrong with a list.
                if last is None or len(error.param or "") >= len(last.param or ""):
                    last = error
        assert last is not None
        raise last if (last.param or "") != where else bad_field(where, f"must be {what}; {last.message}")

    return Kind(read=read, schema={"anyOf": [dict(kind.schema) for kind in kinds]})


def anything() -> Kind:
    """Any JSON object, checked elsewhere."""

    def read(value: Any, where: str) -> Any:
        if not isinstance(value, (dict, bool)):
            raise bad_field(where, f"must be an object, got {_shown(value)}")
        return value

    return Kind(read=read, schema={"type": "object"})


def _unknown(where: str, name: str, declared: list[str], unsupported: Mapping[str, str]) -> ApiError:
    if name in unsupported:
        return bad_field(where, f"is not supported; {unsupported[name]}", "unsupported_parameter")
    near = difflib.get_close_matches(name, declared, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(declared)}"
    return bad_field(where, f"is unknown; {hint}", "unknown_parameter")


def _range(least: int, most: int | None) -> str:
    return f"at least {least}" if most is None else f"{least} to {most}"


def _shown(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: str(value).lower(), type(None): "null"}
    return names.get(type(value), repr(value)[:60])
