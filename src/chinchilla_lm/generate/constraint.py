"""Texts of a given form: a regular expression, a JSON schema, or one of a set of labels.

A constraint is a frozen wish; `compile_constraint` turns it into a `Matcher` that says, token by token, what may come.
Expressions and schemas are compiled by `llguidance` (kept by the guidance-ai project; optional, imported only where
used); label sets need no library. Tokens are masked before temperature and cuts, so the model's own odds between
allowed tokens stay as they are. A text that reaches `max_tokens` first is cut and does not have the form.
"""

from __future__ import annotations

import copy
import importlib
import json
import threading
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from tokenizers import Tokenizer

from chinchilla_lm.core.errors import ConfigError

LONGEST_MESSAGE = 200  # characters of the compiler's complaint that a user reads


@dataclass(frozen=True, kw_only=True)
class RegexConstraint:
    """The whole text matches a regular expression.

    Rust's syntax: as Python's without look-around and back-references; `.` is any character but a line feed, and word
    characters and digits are Unicode's (accents that follow a letter included).
    """

    pattern: str


@dataclass(frozen=True, kw_only=True)
class JsonConstraint:
    """The whole text is a JSON document that a schema accepts; {} accepts any document.

    Attributes:
        schema: JSON schema (draft 2020-12, true as {}; what the compiler cannot enforce is refused, never dropped).
        is_compact: no white space between the parts, so that a model cannot idle there.
    """

    schema: Mapping[str, Any] | bool
    is_compact: bool = False


@dataclass(frozen=True, kw_only=True)
class LabelConstraint:
    """The text is one of these strings, each spelled with the tokens that the tokenizer gives it."""

    labels: tuple[str, ...]


Constraint = RegexConstraint | JsonConstraint | LabelConstraint


class Matcher(Protocol):
    """Follows one text; says what may come next."""

    def mask(self, logits_v: torch.Tensor) -> torch.Tensor:
        """Return the logits with -inf for every token that may not come."""
        ...

    def push(self, token: int) -> None:
        """Note a token that `mask` allowed."""
        ...

    @property
    def is_complete(self) -> bool:
        """The text has its form and nothing may follow."""
        ...

    def copy(self) -> Matcher:
        """Return one at the same place, to be pushed on by itself; what is compiled is shared."""
        ...


def compile_constraint(constraint: Constraint, tokenizer: Tokenizer, vocab: int, stop_ids: Sequence[int]) -> Matcher:
    """Make a matcher for one text. What is compiled is kept, so that the texts of one form share it.

    Args:
        constraint: the form.
        tokenizer: of the model.
        vocab: the model's number of logits (it may exceed the tokenizer's).
        stop_ids: tokens that end a text; where the form allows an end and more, one of them says that it ends.

    Returns:
        A matcher at the start of the text.

    Raises:
        ConfigError: the form cannot be read or enforced, or the library for it is absent.
    """
    key = (_described(constraint), id(tokenizer), vocab, tuple(stop_ids))  # what is kept holds the tokenizer
    with _compiled_lock:
        kept = _compiled.get(key)
        if kept is not None:
            _compiled.move_to_end(key)
            return kept[1].copy()
    if isinstance(constraint, LabelConstraint):
        matcher: Matcher = _LabelMatcher(constraint.labels, tokenizer, stop_ids)
    else:
        matcher = _compile_grammar(constraint, tokenizer, vocab, tuple(stop_ids))
    with _compiled_lock:
        _compiled[key] = (tokenizer, matcher)
        if len(_compiled) > KEPT_FORMS:
            _compiled.popitem(last=False)
    return matcher.copy()


KEPT_FORMS = 8
"""Compiled forms that are kept. A schema of 530 KB took .44 s and 20 MB to compile; a copy .3 ms and .5 MB, so that 128
texts under it take 84 MB and not 2.5 GB (2026-11-22)."""

_compiled: OrderedDict[tuple[Any, ...], tuple[Tokenizer, Matcher]] = OrderedDict()
_compiled_lock = threading.Lock()


def _described(constraint: Constraint) -> Any:
    """The constraint as something that can be looked up; a schema is a table, which cannot."""
    return (_schema_text(constraint), constraint.is_compact) if isinstance(constraint, JsonConstraint) else constraint


def _schema_text(constraint: JsonConstraint) -> str:
    schema = constraint.schema
    return json.dumps({} if schema is True else schema if isinstance(schema, bool) else dict(schema))


class _LabelMatcher:
    """The labels' tokens in order: those that begin with what has been written lie side by side, from first to end."""

    def __init__(self, labels: Sequence[str], tokenizer: Tokenizer, stop_ids: Sequence[int]) -> None:
        if not labels or not all(labels):
            raise ConfigError(f"labels must be 1 or more non-empty strings, got {tuple(labels)!r}; name the classes")
        encodings = tokenizer.encode_batch_fast(list(labels), add_special_tokens=False)
        words = {tuple(encoding.ids): label for label, encoding in zip(labels, encodings, strict=True)}
        if () in words:
            raise ConfigError(f"label {words[()]!r} has no tokens in this vocabulary; rename it")
        self._spellings = sorted(words)
        for spelling, following in pairwise(self._spellings):
            if following[: len(spelling)] == spelling and not stop_ids:
                raise ConfigError(
                    f"label {words[spelling]!r} begins another label, and without an end-of-text token nothing tells "
                    "them apart; rename one, or give a stop token"
                )
        self._stop_ids = list(stop_ids[:1])
        self._first, self._end, self._written = 0, len(self._spellings), 0

    def mask(self, logits_v: torch.Tensor) -> torch.Tensor:
        allowed = torch.tensor(self._next_tokens(), dtype=torch.int64)
        return torch.full_like(logits_v, -torch.inf).index_copy_(0, allowed, logits_v[allowed])

    def push(self, token: int) -> None:
        def token_here(spelling: tuple[int, ...]) -> int:
            return spelling[self._written] if len(spelling) > self._written else -1  # the label that ends here is first

        spellings, bounds = self._spellings, (self._first, self._end)
        self._first = bisect_left(spellings, token, *bounds, key=token_here)
        self._end = bisect_right(spellings, token, *bounds, key=token_here)  # none if a stop token says that it ends
        self._written += 1

    @property
    def is_complete(self) -> bool:
        return not self._next_tokens()

    def copy(self) -> _LabelMatcher:
        return copy.copy(self)

    def _next_tokens(self) -> list[int]:
        near = self._spellings[self._first : self._end]
        tokens = {spelling[self._written] for spelling in near if len(spelling) > self._written}
        is_label = bool(near) and len(near[0]) == self._written
        return [*tokens, *(self._stop_ids if tokens and is_label else ())]


KEPT_VOCABULARIES = 4
"""Vocabularies kept in the library's form: 0.7 s to make and 35 MB to keep at 49,152 tokens (2026-11-22)."""

_library_tokenizers: OrderedDict[tuple[int, int, tuple[int, ...]], tuple[Tokenizer, Any]] = OrderedDict()
_library_tokenizers_lock = threading.Lock()


class _GrammarMatcher:
    """A parser of `llguidance`; the mask is a bit for each token."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def mask(self, logits_v: torch.Tensor) -> torch.Tensor:
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        is_allowed_v = torch.from_numpy(np.unpackbits(bits, count=len(logits_v), bitorder="little")).bool()
        self._refuse_error("the constraint")
        return logits_v.masked_fill(~is_allowed_v, -torch.inf)

    def push(self, token: int) -> None:
        self._matcher.consume_token(token)
        self._refuse_error("the constraint")

    @property
    def is_complete(self) -> bool:
        return self._matcher.is_stopped()

    def copy(self) -> _GrammarMatcher:
        return _GrammarMatcher(self._matcher.deep_copy())

    def _refuse_error(self, wish: str) -> None:
        _refuse_error(self._matcher, wish)


def _compile_grammar(
    constraint: RegexConstraint | JsonConstraint, tokenizer: Tokenizer, vocab: int, stop_ids: tuple[int, ...]
) -> _GrammarMatcher:
    library = _import_library()
    if not stop_ids:
        raise ConfigError("a form needs an end-of-text token, and this vocabulary has none; name one in stop_ids")
    grammar, wish = _grammar(library, constraint)
    matcher = library.LLMatcher(_library_tokenizer(library, tokenizer, vocab, stop_ids), grammar, log_level=0)
    _refuse_error(matcher, wish)
    matcher.compute_bitmask()  # some forms fail only here, such as {"$ref": "#"}
    _refuse_error(matcher, wish)
    return _GrammarMatcher(matcher)


def _refuse_error(matcher: Any, wish: str) -> None:
    if matcher.is_error():
        lines = matcher.get_error().split("<state>")[0].split()
        raise ConfigError(f"{wish} cannot be enforced: {' '.join(lines)[:LONGEST_MESSAGE]}; simplify or correct it")


def _import_library() -> Any:
    try:
        return importlib.import_module("llguidance")  # optional, and 30 ms
    except ImportError:
        raise ConfigError(
            "regular expressions and JSON schemas need the package llguidance, which is not installed; "
            "pip install 'chinchilla-lm[serve]', or use a set of labels"
        ) from None


def _grammar(library: Any, constraint: RegexConstraint | JsonConstraint) -> tuple[str, str]:
    if isinstance(constraint, RegexConstraint):
        return library.LLMatcher.grammar_from_regex(constraint.pattern), f"pattern {constraint.pattern[:80]!r}"
    options = {"whitespace_flexible": not constraint.is_compact}
    try:
        schema = library.LLMatcher.grammar_from_json_schema(_schema_text(constraint), defaults=options)
        return schema, "the JSON schema"
    except ValueError as error:
        raise ConfigError(f"the JSON schema cannot be read: {error}; correct it") from None


def _library_tokenizer(library: Any, tokenizer: Tokenizer, vocab: int, stop_ids: tuple[int, ...]) -> Any:
    key = (id(tokenizer), vocab, stop_ids)  # what is kept holds the tokenizer, so its id stays its own
    with _library_tokenizers_lock:
        if key not in _library_tokenizers:
            content = json.loads(tokenizer.to_str()) | {"padding": None, "truncation": None}
            made = library.LLTokenizer(json.dumps(content), n_vocab=vocab, eos_token=list(stop_ids))
            _library_tokenizers[key] = (tokenizer, made)
            if len(_library_tokenizers) > KEPT_VOCABULARIES:
                _library_tokenizers.popitem(last=False)
        _library_tokenizers.move_to_end(key)
        return _library_tokenizers[key][1]
