"""Jinja2 for strangers' templates: no escape, bounded size and bounded work.

A template is text with `{{ expressions }}`, `{% if %}`, `{% for %}` and `{% set %}`; there are no macros, imports,
blocks or recursion. Three fences stand one behind the other:

1. the syntax is a white list, read from the parsed tree before anything runs;
2. Jinja2's own `ImmutableSandboxedEnvironment` guards attributes and calls;
3. every operation that can grow a value or repeat (a loop's step, a product, a join) is counted by a meter, so that a
   render ends after a bounded amount of work whatever the template says. No clock or thread is involved: the same
   template on the same row always passes or always fails.

Values are plain: text, numbers, booleans, None, lists and mappings of them. A row's text is never read as a template.
"""

from __future__ import annotations

import contextlib
import functools
import operator
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from chinchilla_lm.core.errors import ConfigError, DataError
from chinchilla_lm.prompt.metering import (
    FILTERS,
    MAX_RENDERED_CHARACTERS,
    METER,
    OWN_FILTERS,
    Meter,
    TooMuch,
    bounded_range,
    charged,
    join_text,
    print_value,
    replace_text,
    small_number,
)

# The longest template of lm-evaluation-harness 0.4.13 has about 3,000 characters.
MAX_SOURCE_CHARACTERS = 20_000
# Chosen far above any template here (4); Python's own parser stops at about 100 nested blocks.
MAX_DEPTH = 40


@dataclass(frozen=True)
class BoundedTemplate:
    """One piece of template text, checked and compiled.

    Attributes:
        source: the text.
        where: the file and key that messages name.
        names: the fields it reads, sorted.
    """

    source: str
    where: str
    names: tuple[str, ...]

    def render(self, fields: Mapping[str, Any]) -> str:
        """Fill in a row's fields.

        Args:
            fields: plain values by name.

        Returns:
            Text of at most `MAX_RENDERED_CHARACTERS` characters.

        Raises:
            DataError: a field is absent or has the wrong type, or the result or the work is over the bounds.
        """
        compiled, _ = _compile(self.source, self.where, False)
        values = _plain_fields(fields)
        pieces: list[str] = []
        characters = 0
        with _metering(self.where):
            for piece in compiled.generate(values):
                characters += len(piece)
                if characters > MAX_RENDERED_CHARACTERS:
                    raise TooMuch(f"the text is longer than {MAX_RENDERED_CHARACTERS} characters")
                pieces.append(piece)
        return "".join(pieces)

    def value(self, fields: Mapping[str, Any]) -> Any:
        """Return what one `{{ expression }}` stands for (a list of choices, a number), not its text.

        Args:
            fields: plain values by name.

        Returns:
            The value itself; for a template that is more than one expression, the rendered text.

        Raises:
            DataError: as `render`.
        """
        compiled, _ = _compile(self.source, self.where, True)
        values = _plain_fields(fields)
        caught: list[Any] = []
        with _metering(self.where, caught):
            text = "".join(compiled.generate(values))
        return caught[0] if caught else text


def compile_text(source: str, where: str) -> BoundedTemplate:
    """Check template text before anything runs.

    Args:
        source: Jinja2 text of at most `MAX_SOURCE_CHARACTERS` characters.
        where: the file and key that messages name.

    Returns:
        The compiled template.

    Raises:
        ConfigError: it is too long, is not Jinja2, or uses what a prompt may not use.
    """
    _, names = _compile(source, where, False)
    return BoundedTemplate(source, where, names)


@contextlib.contextmanager
def _metering(where: str, caught: list[Any] | None = None) -> Generator[None]:
    """Meter a block, and turn what a template can raise into one line."""
    token = METER.set(Meter(caught))
    try:
        yield
    except jinja2.UndefinedError as error:
        raise DataError(f"{where}: {error.message}; give the row that field, or choose another template") from None
    except SecurityError as error:
        raise ConfigError(
            f"{where}: {error}; a template may read a row's fields and their plain methods only"
        ) from None
    except TooMuch as error:
        raise DataError(f"{where}: {error}; shorten the row's text, or the template's loops") from None
    except _FAULTS as error:
        raise DataError(
            f"{where}: {type(error).__name__}: {error}; compare the row's values with the template"
        ) from None
    finally:
        METER.reset(token)


_FAULTS = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError, jinja2.TemplateError)


def _plain_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Check that a row holds plain values, so that no object with behaviour reaches a template."""
    for name, value in fields.items():
        if not _is_plain(value, 0):
            raise DataError(
                f"the field {name} is a {type(value).__name__}; a prompt takes text, numbers, and lists of them"
            )
    return {name: value for name, value in fields.items() if not name.startswith("_")}


def _is_plain(value: Any, depth: int) -> bool:
    if value is None or type(value) in (str, int, float, bool):
        return True
    if depth >= MAX_DEPTH:
        return False
    if type(value) in (list, tuple):
        return all(_is_plain(part, depth + 1) for part in value)
    return type(value) is dict and all(type(key) is str and _is_plain(part, depth + 1) for key, part in value.items())


# ---- Fence 1: what may be written -----------------------------------------------------------------------------------

_STATEMENTS = (nodes.Template, nodes.Output, nodes.TemplateData, nodes.For, nodes.If, nodes.Assign)
_EXPRESSIONS = (
    (nodes.Name, nodes.Const, nodes.List, nodes.Tuple, nodes.Dict, nodes.Pair, nodes.Keyword, nodes.CondExpr)
    + (nodes.Filter, nodes.Test, nodes.Call, nodes.Getattr, nodes.Getitem, nodes.Slice, nodes.Compare, nodes.Operand)
    + (nodes.Add, nodes.Sub, nodes.Mul, nodes.Div, nodes.FloorDiv, nodes.Mod)
    + (nodes.And, nodes.Or, nodes.Not, nodes.Neg, nodes.Pos)
)
_TESTS = ("defined", "undefined", "none", "string", "number", "sequence", "mapping", "odd", "even", "boolean", "in")
# Methods that return new plain values no longer than what they read (`replace` and `join` are metered).
_METHODS = {
    str: ["strip", "lstrip", "rstrip", "split", "rsplit", "splitlines", "lower", "upper", "title", "capitalize"]
    + ["casefold", "replace", "join", "startswith", "endswith", "removeprefix", "removesuffix", "find", "rfind"]
    + ["index", "count", "isdigit", "isalpha", "isupper", "islower"],
    list: ["index", "count"],
    tuple: ["index", "count"],
    dict: ["get", "items", "keys", "values"],
}
_LOOP_ATTRIBUTES = ("index", "index0", "first", "last", "length", "revindex", "revindex0")


def _check_tree(tree: nodes.Template, where: str) -> None:
    def visit(node: nodes.Node, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise ConfigError(f"{where}: nested more than {MAX_DEPTH} deep; write it flatter")
        if not isinstance(node, _STATEMENTS + _EXPRESSIONS):
            raise ConfigError(
                f"{where}: line {node.lineno}: {type(node).__name__.lower()} is not allowed in a prompt; "
                "use fields, if, for, set and plain filters"
            )
        reason = _refusal(node)
        if reason:
            raise ConfigError(f"{where}: line {node.lineno}: {reason}")
        for child in node.iter_child_nodes():
            visit(child, depth + 1)

    visit(tree, 0)


def _refusal(node: nodes.Node) -> str | None:
    """Say why this one node may not stand in a prompt; None if it may."""
    if isinstance(node, nodes.For) and node.recursive:
        return "a recursive loop is not allowed; write a plain for"
    if isinstance(node, nodes.Assign) and not isinstance(node.target, nodes.Name):
        return "set takes one name; write one set a name"
    if isinstance(node, nodes.Name) and node.name.startswith("_"):
        return f"the name {node.name} is private; use a field's name"
    if isinstance(node, nodes.Getattr) and node.attr.startswith("_"):
        return f"the attribute {node.attr} is private; use a field's own keys"
    if isinstance(node, nodes.Filter) and node.name not in FILTERS:
        return f"the filter {node.name} is not known; choose among {', '.join(sorted(FILTERS))}"
    if isinstance(node, nodes.Test) and node.name not in _TESTS:
        return f"the test {node.name} is not known; choose among {', '.join(_TESTS)}"
    if isinstance(node, nodes.Call) and not _is_plain_call(node.node):
        return "only range() and the plain methods of text, lists and mappings may be called"
    return None


def _is_plain_call(called: nodes.Node) -> bool:
    if isinstance(called, nodes.Name):
        return called.name == "range"
    return isinstance(called, nodes.Getattr) and any(called.attr in names for names in _METHODS.values())


# ---- Fences 2 and 3: what may be read, and what it may cost ---


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja2's sandbox, with operators and calls metered."""

    intercepted_binops = frozenset({"+", "*", "%", "-", "/", "//"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        meter = METER.get()
        meter.step()
        sized = isinstance(left, (str, list, tuple)), isinstance(right, (str, list, tuple))
        if operator == "+" and all(sized):
            meter.build(len(left) + len(right))
        elif operator == "*" and any(sized):
            if not (isinstance(left, str) and isinstance(right, int)):
                raise TypeError("only text may be repeated, as text * count")
            meter.build(len(left) * max(0, right))
        elif not all(isinstance(side, (int, float)) for side in (left, right)):
            raise TypeError(f"{operator} takes two numbers")
        else:
            left, right = small_number(left), small_number(right)
        return _OPERATORS[operator](left, right)

    def call(self, context: Context, called: Any, /, *args: Any, **kwargs: Any) -> Any:
        METER.get().step()
        if called is bounded_range:
            return bounded_range(*args)
        owner, name = getattr(called, "__self__", None), getattr(called, "__name__", "")
        if name not in _METHODS.get(type(owner), ()) or kwargs:
            raise SecurityError("only range() and the plain methods of text, lists and mappings may be called")
        charged(owner)
        if name == "replace":
            return replace_text(owner, *args)
        if name == "join":
            return join_text(*args, d=str(owner))
        result = called(*args)
        if name in ("items", "keys", "values"):
            result = list(result)
        METER.get().build(len(result) if isinstance(result, (str, list)) else 1)
        return result

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr in (_LOOP_ATTRIBUTES if isinstance(obj, LoopContext) else _METHODS.get(type(obj), ()))


_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
}


def _make_environment() -> _Environment:
    environment = _Environment(
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
        # Folding constants at compile time would run operators outside the meter.
        optimized=False,
        finalize=print_value,
    )
    environment.globals = {"range": bounded_range}
    environment.filters = {**FILTERS, **OWN_FILTERS}
    environment.tests = {name: check for name, check in environment.tests.items() if name in _TESTS}
    return environment


_ENVIRONMENT = _make_environment()


@functools.lru_cache(maxsize=4096)
def _compile(source: str, where: str, is_value: bool) -> tuple[jinja2.Template, tuple[str, ...]]:
    if len(source) > MAX_SOURCE_CHARACTERS:
        raise ConfigError(f"{where}: {len(source)} characters, at most {MAX_SOURCE_CHARACTERS}; shorten the template")
    try:
        tree = _ENVIRONMENT.parse(source)
        _check_tree(tree, where)
        names = tuple(sorted(meta.find_undeclared_variables(tree) - {"range"}))
        code = _ENVIRONMENT.compile(_instrument(tree, is_value), where, where)
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(f"{where}: line {error.lineno}: {error.message}; correct that line") from None
    except (RecursionError, SyntaxError, MemoryError):
        raise ConfigError(f"{where}: nested more than {MAX_DEPTH} deep; write it flatter") from None
    except ValueError as error:
        raise ConfigError(f"{where}: {error}; correct that number") from None
    return jinja2.Template.from_code(_ENVIRONMENT, code, dict(_ENVIRONMENT.globals)), names


def _instrument(tree: nodes.Template, is_value: bool) -> nodes.Template:
    """Put the meter in: loops count their bodies, searches and copies their length; names hold flat values."""
    for loop in list(tree.find_all(nodes.For)):
        parts = sum(1 for part in (loop.target, *loop.body, loop.test) if part is not None for _ in _parts(part))
        loop.iter = _filtered(loop.iter, "_metered", nodes.Const(parts, lineno=loop.lineno))
    for comparison in list(tree.find_all(nodes.Compare)):
        comparison.expr = _filtered(comparison.expr, "_charged")
        for operand in comparison.ops:
            operand.expr = _filtered(operand.expr, "_charged")
    for item in list(tree.find_all(nodes.Getitem)):
        if isinstance(item.arg, nodes.Slice):
            item.node = _filtered(item.node, "_charged")
    for assignment in list(tree.find_all(nodes.Assign)):
        assignment.node = _filtered(assignment.node, "_flat")
    only = tree.body[0] if len(tree.body) == 1 else None
    inner = only.nodes if isinstance(only, nodes.Output) else []
    if is_value and len(inner) == 1 and not isinstance(inner[0], nodes.TemplateData):
        inner[0] = _filtered(inner[0], "_catch")
    return tree


def _parts(node: nodes.Node) -> Iterator[nodes.Node]:
    yield node
    for child in node.iter_child_nodes():
        yield from _parts(child)


def _filtered(expression: nodes.Node, name: str, *arguments: nodes.Expr) -> nodes.Filter:
    filtered = nodes.Filter(expression, name, list(arguments), [], None, None, lineno=expression.lineno)
    filtered.set_environment(_ENVIRONMENT)
    return filtered
