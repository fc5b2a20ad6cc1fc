"""Texts of a given form: a regular expression, a JSON schema, or one of a set of labels.

A constraint is a frozen wish; `compile_constraint` turns it into a `Matcher` that says, token by token, what may come.
Expressions and schemas are compiled by `llguidance` (kept by the guidance-ai project; optional, imported only where
used); label sets need no library. Tokens are masked before temperature and cuts, so the model's own odds between
allowed tokens stay as they are. A text that reaches `max_tokens` first is cut and does not have the form.
"""

from __future__ import annotations

import importlib
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
        schema: JSON schema (draft 2020-12; what the compiler cannot enforce is refused, never dropped).
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


def compile_constraint(constraint: Constraint, tokenizer: Tokenizer, vocab: int, stop_ids: Sequence[int]) -> Matcher:
    """Make a matcher for one text.

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
    if isinstance(constraint, LabelConstraint):
        return _LabelMatcher(constraint.labels, tokenizer, stop_ids)
    return _GrammarMatcher(constraint, tokenizer, vocab, stop_ids)


class _LabelMatcher:
    """A tree of tokens; the place in it is what has been written."""

    def __init__(self, labels: Sequence[str], tokenizer: Tokenizer, stop_ids: Sequence[int]) -> None:
        if not labels or not all(labels):
            raise ConfigError(f"labels must be 1 or more non-empty strings, got {tuple(labels)!r}; name the classes")
        self._root: dict[int, Any] = {}
        self._stop_ids = list(stop_ids[:1])
        spellings = {label: tokenizer.encode(label, add_special_tokens=False).ids for label in labels}
        for token_ids in spellings.values():
            node = self._root
            for token in token_ids:
                node = node.setdefault(token, {})
        for label, token_ids in spellings.items():
            node = self._root
            for token in token_ids:
                node = node[token]
            if node and not stop_ids:
                raise ConfigError(
                    f"label {label!r} begins another label, and without an end-of-text token nothing tells them apart; "
                    "rename one, or give a stop token"
                )
            if node:
                node.update(dict.fromkeys(self._stop_ids, {}))
        self._node = self._root

    def mask(self, logits_v: torch.Tensor) -> torch.Tensor:
        allowed = torch.tensor(list(self._node), dtype=torch.int64)
        return torch.full_like(logits_v, -torch.inf).index_copy_(0, allowed, logits_v[allowed])

    def push(self, token: int) -> None:
        self._node = self._node[token]

    @property
    def is_complete(self) -> bool:
        return not self._node


KEPT_VOCABULARIES = 4
"""Vocabularies kept in the library's form: 0.7 s to make and 35 MB to keep at 49,152 tokens (2026-11-22)."""

_library_tokenizers: OrderedDict[tuple[int, int, tuple[int, ...]], tuple[Tokenizer, Any]] = OrderedDict()
_library_tokenizers_lock = threading.Lock()


class _GrammarMatcher:
    """A parser of `llguidance`; the mask is a bit for each token."""

    def __init__(
        self, constraint: RegexConstraint | JsonConstraint, tokenizer: Tokenizer, vocab: int, stop_ids: Sequence[int]
    ) -> None:
        library = _import_library()
        if not stop_ids:
            raise ConfigError("a form needs an end-of-text token, and this vocabulary has none; name one in stop_ids")
        grammar, wish = _grammar(library, constraint)
        self._matcher = library.LLMatcher(
            _library_tokenizer(library, tokenizer, vocab, tuple(stop_ids)), grammar, log_level=0
        )
        self._refuse_error(wish)

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

    def _refuse_error(self, wish: str) -> None:
        if self._matcher.is_error():
            lines = self._matcher.get_error().split("<state>")[0].split()
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
    schema = json.dumps(constraint.schema if isinstance(constraint.schema, bool) else dict(constraint.schema))
    try:
        return library.LLMatcher.grammar_from_json_schema(schema, defaults=options), "the JSON schema"
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
