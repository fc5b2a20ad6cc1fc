"""A loaded model with all that answers need: scheduler, tokenizer, chat template or classification head.

The scheduler's worker alone uses the engine. Embeddings and classes are computed in one further thread of their own,
and texts become tokens in three more, so that the event loop never waits for any of them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer

from chinchilla_lm.core.errors import ChinchillaError, ModelError
from chinchilla_lm.data.tokenizer import load_tokenizer
from chinchilla_lm.generate.batching import Scheduler
from chinchilla_lm.generate.engine import Engine
from chinchilla_lm.generate.text import end_of_text_ids
from chinchilla_lm.model.huggingface import load_model
from chinchilla_lm.model.model_config import find_end_ids
from chinchilla_lm.model.transformer import Transformer
from chinchilla_lm.serve.chat_template import ChatTemplate, TemplateFailed, find_chat_template
from chinchilla_lm.serve.classifier import ClassifierKind, is_classifier, load_classifier
from chinchilla_lm.serve.draft import load_draft
from chinchilla_lm.serve.model_folder import check_model_folder, find_model_folder
from chinchilla_lm.serve.prompt_bound import PromptBound
from chinchilla_lm.serve.settings import Limits
from chinchilla_lm.serve.token_text import TokenText

LONGEST_NAME = 128

WeightsWord = Literal["auto", "float32", "bfloat16", "int8"]


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """What the routes need of a model.

    Attributes:
        name: what clients call it.
        created: unix seconds when it was loaded.
        capacity: most tokens of a text, its prompt included.
        vocab: number of token ids that the model knows.
        tokenizer: cuts and pads nothing.
        token_text: what single tokens look like.
        bound: how many tokens a text has at least, for refusing long prompts before they are tokenised.
        trunk: the model, for hidden states; float32.
        scheduler: writes text; None for a classifier.
        template: makes a prompt of a chat; None when the model has none.
        classifier: gives classes, entities or answers from a context; None for a language model.
        lane: the one thread for hidden states and classes.
        readers: threads that tokenise, render and submit.
        large_work: the one thread that parses large bodies and tokenises their texts.
    """

    name: str
    created: int
    capacity: int
    vocab: int
    tokenizer: Tokenizer
    token_text: TokenText
    bound: PromptBound
    trunk: Transformer
    scheduler: Scheduler | None
    template: ChatTemplate | None
    classifier: ClassifierKind | None
    lane: ThreadPoolExecutor
    readers: ThreadPoolExecutor
    large_work: ThreadPoolExecutor

    def is_alive(self) -> bool:
        """Whether it can still answer."""
        return self.scheduler is None or self.scheduler.is_alive

    @torch.inference_mode()
    def embed(self, ids: tuple[int, ...]) -> torch.Tensor:
        """Return the mean of the last hidden states, of length 1: (d,) float32."""
        x_d = self.trunk.hidden(torch.tensor([ids]))[0].float().mean(dim=0)
        return x_d / x_d.norm().clamp_min(1e-12)  # a mean of exactly 0 has no direction and stays 0

    def close(self, timeout_s: float) -> None:
        """Finish what runs, for at most `timeout_s` seconds, and end all threads and processes."""
        if self.scheduler is not None:
            self.scheduler.drain(timeout_s)
        if self.template is not None:
            self.template.close()
        for threads in (self.lane, self.readers, self.large_work):
            threads.shutdown(wait=False, cancel_futures=True)


def load_served_model(
    place: Path,
    *,
    name: str | None = None,
    weights: WeightsWord = "auto",
    limits: Limits | None = None,
    draft: str | None = None,
) -> ServedModel:
    """Check and load a model folder or a run directory.

    Args:
        place: the folder; its files are not trusted.
        name: for clients; None takes the folder's name.
        weights: the type that decoding uses.
        limits: slots and lengths.
        draft: a smaller model with the same tokenizer, to guess tokens (see draft.py): a folder, "auto" or "int8".

    Raises:
        ModelError: the folder is unsafe, broken or of an unknown kind.
        DataError: a file is absent or unreadable.
    """
    limits = limits or Limits()
    name = _checked_name(name or place.resolve().name)
    folder = find_model_folder(place)
    tables = check_model_folder(folder)
    tokenizer = _load_tokenizer(folder)
    config = tables["config.json"]
    classifier = load_classifier(folder, config, tokenizer) if is_classifier(config) else None
    trunk = classifier.trunk if classifier else load_model(folder).eval()
    _require_rows(folder, tokenizer, trunk)
    template = scheduler = None
    if classifier is None:
        template = _find_template(folder, tables["tokenizer_config.json"])
        stop_ids = _stop_ids(tokenizer, tables, trunk.shape.vocab)
        engine = Engine(trunk, slots=limits.slots, weights=weights)
        second = None
        if draft is not None:
            second = load_draft(place, draft, trunk, tokenizer, slots=limits.slots, weights=engine.weights)
        line = limits.max_requests * limits.max_texts  # counts texts; requests are counted before (`Routes._enter`)
        scheduler = Scheduler(engine, tokenizer, queue_limit=line, stop_ids=stop_ids, draft=second)
    return ServedModel(
        name=name,
        created=int(time.time()),
        capacity=trunk.shape.context,
        vocab=trunk.shape.vocab,
        tokenizer=tokenizer,
        token_text=TokenText(tokenizer),
        bound=PromptBound(tokenizer),
        trunk=trunk,
        scheduler=scheduler,
        template=template,
        classifier=classifier,
        lane=ThreadPoolExecutor(1, thread_name_prefix="chinchilla-lane"),
        readers=ThreadPoolExecutor(2, thread_name_prefix="chinchilla-reader"),
        large_work=ThreadPoolExecutor(1, thread_name_prefix="chinchilla-large"),
    )


def _load_tokenizer(folder: Path) -> Tokenizer:
    try:
        tokenizer = load_tokenizer(folder)
    except ChinchillaError:
        raise
    except BaseException as error:  # a panic of the Rust library is no Exception
        if type(error).__name__ != "PanicException":
            raise
        raise ModelError(
            f"{folder / 'tokenizer.json'} breaks the tokenizer library; save the tokenizer again"
        ) from None
    tokenizer.no_truncation()  # else a long prompt would be cut without a word
    tokenizer.no_padding()
    return tokenizer


def _require_rows(folder: Path, tokenizer: Tokenizer, trunk: Transformer) -> None:
    largest_id = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if largest_id >= trunk.shape.vocab:
        raise ModelError(
            f"{folder}: the tokenizer has token ids up to {largest_id}, the model only {trunk.shape.vocab} rows; give "
            "the tokenizer that the model was trained with"
        )


def _find_template(folder: Path, tokenizer_config: Mapping[str, Any]) -> ChatTemplate | None:
    """Refuse a template that does not compile, loops, or takes all memory; one that only dislikes the words is fine."""
    template = find_chat_template(folder, tokenizer_config)
    if template is None:
        return None
    try:
        template.render([{"role": "user", "content": "hello"}])
    except TemplateFailed as error:
        if "TemplateError:" not in str(error):  # what the template's own raise_exception gives
            template.close()
            raise ModelError(f"{folder}: {error}; correct or remove the chat template") from None
    return template


def _stop_ids(tokenizer: Tokenizer, tables: Mapping[str, Mapping[str, Any]], vocab: int) -> tuple[int, ...]:
    """Return the tokens that end a text: those that the files name, and the end-of-text token."""
    word = tables["tokenizer_config.json"].get("eos_token")
    word = word.get("content") if isinstance(word, dict) else word
    eos = tokenizer.token_to_id(word) if isinstance(word, str) else None
    ends = find_end_ids(tables["generation_config.json"], tables["config.json"], eos=eos, vocab=vocab)
    return tuple(dict.fromkeys((*ends, *end_of_text_ids(tokenizer))))


def _checked_name(name: str) -> str:
    if not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
        raise ModelError(
            f"the model's name must be 1 to {LONGEST_NAME} printable characters, got {name!r}; give --name"
        )
    return name
