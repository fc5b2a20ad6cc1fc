"""Jinja2 for strangers' templates: no escape, bounded size and bounded work.

A template is text with `{{ expressions }}`, `{% if %}`, `{% for %}` and `{% set %}`; there are no macros, imports, blocks
or recursion. Three fences stand one behind the other:

1. the syntax is a white list, read from the parsed tree before anything runs;
2. Jinja2's own `ImmutableSandboxedEnvironment` guards attributes and calls;
3. every operation that can grow a value or repeat (a loop's step, a product, a join) is counted by a meter, so that a
   render ends after a bounded amount of work whatever the template says. No clock or thread is involved: the same
   template on the same row always passes or always fails.

Values are plain: text, numbers, booleans, None, lists and mappings of them. A row's text is never read as a template.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import operator
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

from chinchilla_lm.core.errors import ConfigError, DataError

# The longest template of lm-evaluation-harness 0.4.13 has about 3,000 characters.
MAX_SOURCE_CHARACTERS = 20_000
# About 50,000 tokens of English, above the context of any model this toolkit trains.
MAX_RENDERED_CHARACTERS = 200_000
# Loop steps, calls and operators in one render; a prompt with 1,000 options uses about 5,000.
MAX_STEPS = 100_000
# Characters and list items made on the way, the results of every operator together.
MAX_BUILT = 20 * MAX_RENDERED_CHARACTERS
MAX_RANGE = 1_000
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
                    raise _TooMuch(f"the text is longer than {MAX_RENDERED_CHARACTERS} characters")
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


class _TooMuch(Exception):  # noqa: N818 - a bound, turned into a DataError at the border
    """A bound was reached."""


class _Meter:
    """The work of one render."""

    def __init__(self, caught: list[Any] | None = None) -> None:
        self.steps_left = MAX_STEPS
        self.built_left = MAX_BUILT
        self.caught = caught

    def step(self) -> None:
        self.steps_left -= 1
        if self.steps_left < 0:
            raise _TooMuch(f"the template takes more than {MAX_STEPS} steps")

    def build(self, size: int) -> None:
        """Allow a value of `size` characters or items, before it is made."""
        self.built_left -= size
        if size > MAX_RENDERED_CHARACTERS or self.built_left < 0:
            raise _TooMuch(f"a value is longer than {MAX_RENDERED_CHARACTERS} characters or items")


_METER: contextvars.ContextVar[_Meter] = contextvars.ContextVar("_METER")


@contextlib.contextmanager
def _metering(where: str, caught: list[Any] | None = None) -> Generator[None]:
    """Meter a block, and turn what a template can raise into one line."""
    token = _METER.set(_Meter(caught))
    try:
        yield
    except jinja2.UndefinedError as error:
        raise DataError(f"{where}: {error.message}; give the row that field, or choose another template") from None
    except SecurityError as error:
        raise ConfigError(
            f"{where}: {error}; a template may read a row's fields and their plain methods only"
        ) from None
    except _TooMuch as error:
        raise DataError(f"{where}: {error}; shorten the row's text, or the template's loops") from None
    except _FAULTS as error:
        raise DataError(
            f"{where}: {type(error).__name__}: {error}; compare the row's values with the template"
        ) from None
    finally:
        _METER.reset(token)


_FAULTS = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError, jinja2.TemplateError)


def _plain_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Check that a row holds plain values, so that no object with behaviour reaches a template."""
    for name, value in fields.items():
        if not _is_plain(value, 0):
            raise DataError(
                f"the field {name} is a {type(value).__name__}; a prompt takes text, numbers, lists and mappings of them"
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
    str: "strip lstrip rstrip split rsplit splitlines lower upper title capitalize casefold replace join startswith "
    "endswith removeprefix removesuffix find rfind index count isdigit isalpha isupper islower".split(),
    list: ["index", "count"],
    tuple: ["index", "count"],
    dict: ["get", "items", "keys", "values"],
}


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
    if isinstance(node, nodes.Filter) and node.name not in _FILTERS:
        return f"the filter {node.name} is not known; choose among {', '.join(sorted(_FILTERS))}"
    if isinstance(node, nodes.Test) and node.name not in _TESTS:
        return f"the test {node.name} is not known; choose among {', '.join(_TESTS)}"
    if isinstance(node, nodes.Call) and not _is_plain_call(node.node):
        return "only range() and the plain methods of text, lists and mappings may be called"
    return None


def _is_plain_call(called: nodes.Node) -> bool:
    if isinstance(called, nodes.Name):
        return called.name == "range"
    return isinstance(called, nodes.Getattr) and any(called.attr in names for names in _METHODS.values())


# ---- Fence 3: what it may cost --------------------------------------------------------------------------------------


def _metered(values: Iterable[Any]) -> Iterator[Any]:
    """Iterate, a step an item."""
    meter = _METER.get()
    for value in values:
        meter.step()
        yield value


@jinja2.pass_context
def _print(_context: Context, value: Any) -> str:
    # Taking the context keeps Jinja2 from printing constants at compile time, outside the meter.
    return _text(value)


def _text(value: Any) -> str:
    """Print one scalar; lists are joined or indexed by the template, never printed whole."""
    if isinstance(value, jinja2.Undefined):
        return str(value)  # Raises, naming the field.
    if value is not None and not isinstance(value, (str, int, float)):
        raise TypeError(f"a {type(value).__name__} cannot be printed (join it, or take one item)")
    text = "" if value is None else str(value)
    meter = _METER.get()
    meter.step()
    meter.build(len(text))
    return text


def _join(values: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
    parts = []
    for value in _metered(values):
        parts.append(_text(value if attribute is None else _ENVIRONMENT.getitem(value, attribute)))
        _METER.get().build(len(d))
    return d.join(parts)


def _replace(text: Any, old: str, new: str) -> str:
    shown = _text(text)
    _METER.get().build(len(shown) + shown.count(old) * max(0, len(new) - len(old)))
    return shown.replace(old, new)


def _items(values: Iterable[Any]) -> list[Any]:
    return list(_metered(values))


def _default(value: Any, default_value: Any = "", boolean: bool = False) -> Any:
    return default_value if isinstance(value, jinja2.Undefined) or (boolean and not value) else value


def _whole_number(value: Any, default: int = 0) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        return default


def _catch(value: Any) -> str:
    caught = _METER.get().caught
    assert caught is not None, "only `value` compiles this filter"
    if isinstance(value, jinja2.Undefined):
        str(value)  # Raises, naming the field.
    caught.append(value)
    return ""


_FILTERS: dict[str, Callable[..., Any]] = {
    "join": _join,
    "replace": _replace,
    "trim": lambda text, chars=None: _text(text).strip(chars),
    "lower": lambda text: _text(text).lower(),
    "upper": lambda text: _text(text).upper(),
    "title": lambda text: _text(text).title(),
    "capitalize": lambda text: _text(text).capitalize(),
    "string": _text,
    "length": len,
    "count": len,
    "first": lambda values: values[0],
    "last": lambda values: values[-1],
    "list": _items,
    "sort": lambda values: sorted(_text(value) for value in _metered(values)),
    "default": _default,
    "d": _default,
    "int": _whole_number,
}


def _flat(value: Any) -> Any:
    """Let `set` name a scalar or a flat list, so that lists cannot double by naming."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    if any(isinstance(part, (list, tuple, dict)) for part in parts):
        raise TypeError("set takes text, a number, or a list or mapping of them")
    return value


# Written by `_instrument` only; `_refusal` keeps them from templates.
_OWN_FILTERS: dict[str, Callable[..., Any]] = {"_catch": _catch, "_metered": _metered, "_flat": _flat}
_LOOP_ATTRIBUTES = ("index", "index0", "first", "last", "length", "revindex", "revindex0")


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja2's sandbox, with operators and calls metered."""

    intercepted_binops = frozenset({"+", "*", "%", "-", "/", "//"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        meter = _METER.get()
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
            left, right = _small(left), _small(right)
        return _OPERATORS[operator](left, right)

    def call(self, context: Context, called: Any, /, *args: Any, **kwargs: Any) -> Any:
        _METER.get().step()
        if called is _range:
            return _range(*args)
        owner, name = getattr(called, "__self__", None), getattr(called, "__name__", "")
        if name not in _METHODS.get(type(owner), ()) or kwargs:
            raise SecurityError("only range() and the plain methods of text, lists and mappings may be called")
        if name == "replace":
            return _replace(owner, *args)
        if name == "join":
            return _join(*args, d=str(owner))
        result = called(*args)
        if name in ("items", "keys", "values"):
            result = list(result)
        _METER.get().build(len(result) if isinstance(result, (str, list)) else 1)
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


def _small(number: float) -> float:
    # Products of numbers below 10^15 stay exact and short to print.
    if abs(number) > 1e15:
        raise _TooMuch("a number is larger than 1e15")
    return number


def _range(*bounds: int) -> Sequence[int]:
    steps = range(*bounds)
    if len(steps) > MAX_RANGE:
        raise _TooMuch(f"range() of {len(steps)} is longer than {MAX_RANGE}")
    return steps


def _make_environment() -> _Environment:
    environment = _Environment(
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
        # Folding constants at compile time would run operators outside the meter.
        optimized=False,
        finalize=_print,
    )
    environment.globals = {"range": _range}
    environment.filters = {**_FILTERS, **_OWN_FILTERS}
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
    """Put the meter into the tree: loops count their steps, names hold flat values."""
    for loop in list(tree.find_all(nodes.For)):
        loop.iter = _filtered(loop.iter, "_metered")
    for assignment in list(tree.find_all(nodes.Assign)):
        assignment.node = _filtered(assignment.node, "_flat")
    only = tree.body[0] if len(tree.body) == 1 else None
    if is_value and isinstance(only, nodes.Output) and len(only.nodes) == 1:
        if not isinstance(only.nodes[0], nodes.TemplateData):
            only.nodes[0] = _filtered(only.nodes[0], "_catch")
    return tree


def _filtered(expression: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(expression, name, [], [], None, None, lineno=expression.lineno).set_environment(_ENVIRONMENT)
