from __future__ import annotations

import importlib.util
import json
import random
import re
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tokenizers import Tokenizer

from chinchilla_lm.core.errors import ConfigError
from chinchilla_lm.generate import constraint as constraint_module
from chinchilla_lm.generate.completion import complete
from chinchilla_lm.generate.constraint import (
    Constraint,
    JsonConstraint,
    LabelConstraint,
    RegexConstraint,
    compile_constraint,
)
from chinchilla_lm.generate.engine import Engine
from chinchilla_lm.generate.request import Choice, Request, join_events
from chinchilla_lm.generate.sampling import Sampling
from chinchilla_lm.model.transformer import Transformer

needs_library = pytest.mark.skipif(importlib.util.find_spec("llguidance") is None, reason="llguidance is not installed")

PATTERNS = [
    r"[a-f]{3,8}",
    r"(yes|no|maybe), (19|20)\d\d-[01]\d",
    r"-?\d{1,6}(\.\d{1,3})?",
    r"[一-龥]{2,5}。",
    r"[a-z\d.]{1,10}@[a-z]{2,8}\.(com|org)",
    r"(🚀|né|\t){1,4}end",
    r"a?b?",
]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "mood": {"enum": ["glad", "sad", None]},
        "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]{1,3}$"}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "age", "mood"],
    "additionalProperties": False,
}
SCHEMAS = [
    PERSON,
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    {"anyOf": [{"type": "integer", "minimum": 5, "maximum": 9}, {"const": "none"}]},
    {
        "$defs": {"node": {"type": "object", "properties": {"v": {"enum": [1, 2]}, "n": {"$ref": "#/$defs/leaf"}},
                           "required": ["v", "n"], "additionalProperties": False}, "leaf": {"type": "null"}},
        "$ref": "#/$defs/node",
    },
]  # fmt: skip


@pytest.fixture(scope="module")
def engine(random_model: Callable[..., Transformer]) -> Engine:
    return Engine(random_model(context=512), slots=1)


def _answers(engine: Engine, tokenizer: Tokenizer, constraint: Constraint, *, count: int = 4) -> list[Choice]:
    request = Request(
        prompt_ids=(5, 9), max_tokens=500, n=count, sampling=Sampling(temperature=1.0, seed=1), constraint=constraint
    )
    return join_events(complete(engine, tokenizer, request))


@needs_library
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_text_matches_the_expression(engine: Engine, tokenizer: Tokenizer, pattern: str) -> None:
    for answer in _answers(engine, tokenizer, RegexConstraint(pattern=pattern)):
        assert answer.finish_reason == "stop"
        assert re.fullmatch(pattern, answer.text), answer.text


@needs_library
@pytest.mark.parametrize("is_compact", [True, False])
@pytest.mark.parametrize("schema", SCHEMAS)
def test_every_text_fulfils_the_schema(
    engine: Engine, tokenizer: Tokenizer, schema: dict[str, Any], is_compact: bool
) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    answers = _answers(engine, tokenizer, JsonConstraint(schema=schema, is_compact=is_compact))
    assert is_compact or any(answer.finish_reason == "stop" for answer in answers)
    for answer in answers:
        if is_compact or answer.finish_reason == "stop":  # a random model may write white space to the end
            assert answer.finish_reason == "stop"
            jsonschema.validate(json.loads(answer.text), schema)
        if is_compact:
            assert answer.text == json.dumps(json.loads(answer.text), separators=(",", ":"), ensure_ascii=False)


@settings(max_examples=40, deadline=None)
@given(labels=st.lists(st.text(alphabet="ab你 ", min_size=1, max_size=5), min_size=1, max_size=6, unique=True))
def test_every_text_is_a_label_and_every_label_can_come(tokenizer: Tokenizer, labels: list[str]) -> None:
    constraint = LabelConstraint(labels=tuple(labels))
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(40 * len(labels)):
        matcher = compile_constraint(constraint, tokenizer, 257, [0])
        token_ids = []
        while not matcher.is_complete:
            allowed_v = matcher.mask(torch.zeros(257)).softmax(-1)
            token = int(torch.multinomial(allowed_v, 1, generator=generator))
            matcher.push(token)
            token_ids += [token] if token else []
        seen.add(tokenizer.decode(token_ids))
    assert seen <= set(labels)
    assert len(labels) > 3 or seen == set(labels)


def test_labels_come_with_the_models_own_odds(engine: Engine, model: Transformer, tokenizer: Tokenizer) -> None:
    labels, draws = ("ab", "ac", "b", "bd"), 1500
    engine = Engine(model, slots=1)
    counts = dict.fromkeys(labels, 0)
    request = Request(
        prompt_ids=(5, 9), n=draws, sampling=Sampling(temperature=1.0), constraint=LabelConstraint(labels=labels)
    )
    for answer in join_events(complete(engine, tokenizer, request)):
        counts[answer.text] += 1
    a, b, c, d = (tokenizer.encode(letter).ids[0] for letter in "abcd")

    def odds(ids: list[int], allowed: list[int]) -> np.ndarray:
        with torch.no_grad():
            return model(torch.tensor([[5, 9, *ids]]))[0, -1, allowed].double().softmax(-1).numpy()

    first, second, end = odds([], [a, b]), odds([a], [b, c]), odds([b], [0, d])
    exact = np.array([first[0] * second[0], first[0] * second[1], first[1] * end[0], first[1] * end[1]])
    assert stats.chisquare(list(counts.values()), exact * draws).pvalue > 0.001


def test_a_label_that_begins_another_needs_an_end(tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="label 'a' begins another label"):
        compile_constraint(LabelConstraint(labels=("a", "ab")), tokenizer, 257, ())
    with pytest.raises(ConfigError, match="labels must be 1 or more non-empty strings"):
        compile_constraint(LabelConstraint(labels=()), tokenizer, 257, [0])


@needs_library
@pytest.mark.parametrize(
    "constraint",
    [
        RegexConstraint(pattern="[a"),
        RegexConstraint(pattern="a(?=b)"),
        RegexConstraint(pattern=r"(a)\1"),
        JsonConstraint(schema={"type": "unknown"}),
        JsonConstraint(schema={"not": {"type": "string"}}),
        JsonConstraint(schema={"$ref": "https://example.com/schema"}),
        JsonConstraint(schema={"type": "object", "minProperties": -3}),
        JsonConstraint(schema=False),
        JsonConstraint(schema={"$ref": "#"}),
    ],
    ids=lambda constraint: str(constraint)[:60],
)
def test_a_form_that_cannot_be_enforced_is_refused_in_one_line(tokenizer: Tokenizer, constraint: Constraint) -> None:
    with pytest.raises(ConfigError, match="cannot be (enforced|read)") as error:
        compile_constraint(constraint, tokenizer, 257, [0])
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


@needs_library
@pytest.mark.parametrize("schema", [{"type": "array"}, {}, True])
def test_matchers_of_one_form_follow_their_own_texts(tokenizer: Tokenizer, schema: dict[str, str] | bool) -> None:
    forms = (JsonConstraint(schema=schema), LabelConstraint(labels=("[]", "[[", "x")))
    for form in forms:
        one, other = (compile_constraint(form, tokenizer, 257, [0]) for _ in range(2))
        at_start = other.mask(torch.zeros(257))
        one.push(tokenizer.encode("[").ids[0])
        assert not torch.equal(one.mask(torch.zeros(257)), at_start)
        assert torch.equal(other.mask(torch.zeros(257)), at_start)
        assert torch.equal(compile_constraint(form, tokenizer, 257, [0]).mask(torch.zeros(257)), at_start)


def test_the_texts_of_a_request_share_its_long_labels(tokenizer: Tokenizer) -> None:
    draw = random.Random(0)
    labels = LabelConstraint(labels=tuple("".join(draw.choices("abcdefgh", k=500)) for _ in range(200)))
    compile_constraint(labels, tokenizer, 257, [0])
    tracemalloc.start()
    matchers = [compile_constraint(labels, tokenizer, 257, [0]) for _ in range(128)]
    held_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held_bytes < len(matchers) * 2000  # a tree of dictionaries for each text had 20 MB


@needs_library
@pytest.mark.parametrize("pattern", ["((a{1,1000}){1,1000}){1,1000}", "(.*a){30}", "(.{1,200}x){1,100}|(.*b.{1,500}c)"])
def test_an_expression_that_explodes_in_other_engines_is_followed(tokenizer: Tokenizer, pattern: str) -> None:
    matcher = compile_constraint(RegexConstraint(pattern=pattern), tokenizer, 257, [0])
    for seed in range(50):
        logits_v = matcher.mask(torch.randn(257, generator=torch.Generator().manual_seed(seed)))
        matcher.push(int(logits_v.argmax()))


@needs_library
def test_a_form_needs_an_end_of_text_token(tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="needs an end-of-text token"):
        compile_constraint(RegexConstraint(pattern="a"), tokenizer, 257, ())


def test_without_the_library_one_line_says_so(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(constraint_module.importlib, "import_module", absent)
    with pytest.raises(ConfigError, match="need the package llguidance, which is not installed; pip install"):
        compile_constraint(RegexConstraint(pattern="a"), tokenizer, 257, [0])
    assert compile_constraint(LabelConstraint(labels=("a",)), tokenizer, 257, [0])


@needs_library
def test_a_model_with_more_logits_than_the_tokenizer_has_tokens(
    tokenizer: Tokenizer, random_model: Callable[..., Transformer]
) -> None:
    engine = Engine(random_model(vocab=320), slots=1)
    for answer in _answers(engine, tokenizer, RegexConstraint(pattern="[a-z]{1,9}!")):
        assert re.fullmatch("[a-z]{1,9}!", answer.text)
