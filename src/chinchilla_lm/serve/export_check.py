"""Parity of an export with its source: weights, logits and tokens, each read back by another program's own reader.

A folder is read by this package's loader and by transformers; a GGUF file by the `gguf` package, its tokenizer rebuilt
from what the file says by llama.cpp's rule for the named pre-tokenizer. Figures are stated; beyond the bounds of the
precision they are an error. Never runs llama.cpp or vLLM (see preflight.py for what those would say).
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from chinchilla_lm.core.errors import ModelError
from chinchilla_lm.data.tokenizer import load_tokenizer
from chinchilla_lm.model.gguf import read_gguf
from chinchilla_lm.model.gguf_tokenizer import build_tokenizer
from chinchilla_lm.model.huggingface import export_tensors, load_model
from chinchilla_lm.model.transformer import Transformer

POSITIONS = 1_000
TEXTS = 300
LONGEST_ROW = 250  # tokens; long enough for every attention pattern, short enough for a small context
# Largest error of a weight, as a part of the largest weight of its tensor: bfloat16 rounds to 2^-8 of the number; Q8_0
# to 1/254 of the largest of 32, whose float16 scale is itself rounded (2^-11).
WEIGHT_BOUNDS = {"f32": 0.0, "bf16": 2.0**-8, "q8_0": 1 / 254 + 2.0**-11}
# Largest difference of a log-probability where the weights are the same and only the sums' order differs. Measured:
# 1e-5 for our small models, 2e-4 for SmolLM2-135M.
LOGPROB_BOUND = 1e-3

_SCRIPTS = (
    string.ascii_letters + "     ",
    string.digits + "., ",
    string.punctuation + "  ",
    " \t\n\r  \n",
    "àéîõüßçñøåœÅ",
    "的一是不了人我在有他这为之大来以个中上们",
    "あいうえおカキクケコ漢字",
    "абвгдежзиклмнопрст ",
    "مرحبا بالعالم ",
    "नमस्ते दुनिया ",
    "🚀😀👩\u200d👩\u200d👧🇩🇪\u0301\u200b\ufeff",
)
_WORDS = (
    "'s",
    "'LL",
    "don't",
    "  two",
    "\n\n",
    "3.14",
    "2026-11-22",
    "http://a.b/c?d=e",
    "١٢٣",
    "Ⅷ",
    "x=y;",
    "\u00a0",
    "cafe\u0301",
)


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How an export, read by one program, compares with its source.

    Attributes:
        reader: "chinchilla", "transformers" or "gguf".
        weight_error: largest difference of a weight, over the largest weight of its tensor; None if not compared.
        logprob_difference: largest difference of a log-probability, nats.
        mean_logprob_difference: mean over tokens of the source's distribution (its divergence KL), nats.
        positions: at which logits were compared.
        same_choice: fraction of positions with the same most likely token.
        texts: random texts that were tokenised.
        same_texts: of them, those with the same tokens on both sides.
        restored_texts: of them, those that come back from their tokens character for character.
    """

    reader: str
    weight_error: float | None
    logprob_difference: float
    mean_logprob_difference: float
    positions: int
    same_choice: float
    texts: int
    same_texts: int
    restored_texts: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)


def check_hf(source: Transformer, tokenizer: Tokenizer, folder: Path, precision: str) -> tuple[Parity, ...]:
    """Compare an exported folder with its source, by our loader and by transformers.

    Args:
        source: float32.
        tokenizer: of the source.
        folder: as exported.
        precision: "f32" or "bf16".

    Raises:
        ModelError: it differs by more than the precision allows.
    """
    back = load_model(folder).eval()
    ours = _compare(source, back, tokenizer, load_tokenizer(folder), "chinchilla", _weight_error(source, back))
    theirs = _compare_transformers(source, tokenizer, folder)
    for parity in (ours, theirs):
        _refuse_difference(parity, folder, precision)
    return ours, theirs


def check_gguf(source: Transformer, tokenizer: Tokenizer, path: Path, precision: str) -> Parity:
    """Compare a GGUF file with its source; arguments and errors as `check_hf`."""
    back, text = read_gguf(path)
    back.eval()
    parity = _compare(source, back, tokenizer, build_tokenizer(text.tokenizer), "gguf", _weight_error(source, back))
    _refuse_difference(parity, path, precision)
    return parity


def random_texts(count: int = TEXTS, seed: int = 0) -> list[str]:
    """Return texts of several scripts, digits, spaces, line ends and emoji, mixed; the same for the same seed."""
    chance = random.Random(seed)
    texts: list[str] = []
    for _ in range(count):
        parts: list[str] = []
        for _ in range(chance.randint(1, 8)):
            if chance.random() < 0.3:
                parts.append(chance.choice(_WORDS))
            else:
                parts.append("".join(chance.choices(chance.choice(_SCRIPTS), k=chance.randint(1, 12))))
        texts.append("".join(parts))
    return texts


def _compare_transformers(source: Transformer, tokenizer: Tokenizer, folder: Path) -> Parity:
    from transformers import AutoModelForCausalLM, AutoTokenizer  # seconds to import
    from transformers.utils import logging

    logging.disable_progress_bar()
    # The folder is ours: config.json was written by `write_config`, without auto_map or *_implementation.
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return _compare(source, lambda ids_bt: model(ids_bt).logits, tokenizer, theirs.backend_tokenizer, "transformers")


@torch.inference_mode()
def _compare(  # noqa: PLR0913 - two models, two tokenizers
    source: Transformer,
    other: Callable[[torch.Tensor], torch.Tensor],
    tokenizer: Tokenizer,
    other_tokenizer: Tokenizer,
    reader: str,
    weight_error: float | None = None,
) -> Parity:
    largest = divergence = 0.0
    same = positions = 0
    for ids_bt in _rows(source):
        wanted_btv = source(ids_bt).float().log_softmax(-1)
        found_btv = other(ids_bt).float().log_softmax(-1)
        largest = max(largest, float((wanted_btv - found_btv).abs().max()))
        divergence += float((wanted_btv.exp() * (wanted_btv - found_btv)).sum())
        same += int((wanted_btv.argmax(-1) == found_btv.argmax(-1)).sum())
        positions += ids_bt.numel()
    texts = random_texts()
    if reader == "gguf" and tokenizer.normalizer is not None:  # llama.cpp takes text as it comes: composed text only
        texts = [tokenizer.normalizer.normalize_str(text) for text in texts]
    ids = [tokenizer.encode(text).ids for text in texts]
    found = [other_tokenizer.encode(text, add_special_tokens=reader != "gguf").ids for text in texts]
    wanted = ids if reader != "gguf" else [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    return Parity(
        reader=reader,
        weight_error=weight_error,
        logprob_difference=largest,
        mean_logprob_difference=max(0.0, divergence / positions),
        positions=positions,
        same_choice=same / positions,
        texts=len(texts),
        same_texts=sum(one == other for one, other in zip(wanted, found, strict=True)),
        restored_texts=sum(other_tokenizer.decode(row) == text for row, text in zip(found, texts, strict=True)),
    )


def _rows(model: Transformer) -> Sequence[torch.Tensor]:
    """Random tokens, POSITIONS in all, in rows that fit the context: each (1, t)."""
    length = min(LONGEST_ROW, model.shape.context)
    generator = torch.Generator().manual_seed(0)
    n_rows = max(1, round(POSITIONS / length))
    return torch.randint(model.shape.vocab, (n_rows, 1, length), generator=generator).unbind(0)


@torch.inference_mode()
def _weight_error(source: Transformer, other: Transformer) -> float:
    worst = 0.0
    there = export_tensors(other)
    for name, tensor in export_tensors(source).items():
        largest = float(tensor.abs().max())
        difference = float((tensor - there[name]).abs().max())
        worst = max(worst, difference / largest if largest > 0 else difference)
    return worst


def _refuse_difference(parity: Parity, place: Path, precision: str) -> None:
    bound = WEIGHT_BOUNDS[precision]
    if parity.weight_error is not None and not parity.weight_error <= bound * 1.001:
        raise ModelError(
            f"{place}: weights differ by {parity.weight_error:.2g} of the largest, {precision} allows {bound:.2g}; do "
            "not use it, and report it as a fault of chinchilla-lm"
        )
    if precision == "f32" and not parity.logprob_difference <= LOGPROB_BOUND:
        raise ModelError(
            f"{place}: log-probabilities read by {parity.reader} differ by {parity.logprob_difference:.2g} nats and "
            f"may by {LOGPROB_BOUND:g}; do not use it, and report it as a fault of chinchilla-lm"
        )
    if parity.same_texts != parity.texts:
        raise ModelError(
            f"{place}: {parity.texts - parity.same_texts} of {parity.texts} random texts have other tokens when read "
            f"by {parity.reader}; export --to hf if that was gguf, else save the tokenizer again"
        )
