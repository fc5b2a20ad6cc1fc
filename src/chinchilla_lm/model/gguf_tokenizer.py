"""A Hugging Face tokenizer in GGUF's words, and back.

llama.cpp splits text by a rule of its own for each *pre-tokenizer name*; its stock converter guesses the name from a
hash of token ids, which fails for every newly trained vocabulary. Here the name follows from the rule that
tokenizer.json itself states. Byte-level BPE only; another kind, or a rule that llama.cpp has no name for, is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from chinchilla_lm.core.errors import ModelError
from chinchilla_lm.core.files import read_json

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # gguf.TokenType

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA3_REGEX = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_REGEX = _LLAMA3_REGEX.replace(r"\p{N}{1,3}", r"\p{N}")
_BYTES_BY_GPT2_REGEX = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}


@dataclass(frozen=True, kw_only=True)
class PreTokenizer:
    """A rule that llama.cpp has a name for.

    Attributes:
        name: the value of tokenizer.ggml.pre.
        steps: the rule as tokenizer.json writes it, a Sequence taken apart.
        ignores_merges: a word that is in the vocabulary is one token, whatever the merges say.
    """

    name: str
    steps: tuple[dict[str, Any], ...]
    ignores_merges: bool = False


def _split(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


# Source: llm_tokenizer_bpe in llama.cpp's src/llama-vocab.cpp, the regular expressions by name.
PRE_TOKENIZERS = (
    PreTokenizer(name="gpt-2", steps=(_BYTES_BY_GPT2_REGEX,)),
    PreTokenizer(name="smollm", steps=({"type": "Digits", "individual_digits": True}, _BYTES_BY_GPT2_REGEX)),
    PreTokenizer(name="llama-bpe", steps=(_split(_LLAMA3_REGEX), _BYTES), ignores_merges=True),
    PreTokenizer(name="qwen2", steps=(_split(_QWEN2_REGEX), _BYTES)),
)


@dataclass(frozen=True, kw_only=True)
class GgufTokenizer:
    """What GGUF says about a tokenizer.

    Attributes:
        pre: name of the pre-tokenizer.
        tokens: by id, as many as the model has rows.
        types: NORMAL, CONTROL, USER_DEFINED or UNUSED, by id.
        merges: pairs "a b" in order.
        adds_bos: every text begins with the bos token.
    """

    pre: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    adds_bos: bool


def describe_tokenizer(folder: Path, vocab: int) -> GgufTokenizer:
    """Read tokenizer.json in GGUF's words.

    Args:
        folder: holds tokenizer.json.
        vocab: rows of the model's embedding, at least as many as the tokenizer has ids.

    Raises:
        ModelError: llama.cpp cannot do what this tokenizer does; the message says what.
        DataError: the file is absent or not a tokenizer.
    """
    document = read_json(folder / "tokenizer.json")
    pre = name_pre_tokenizer(document, where=str(folder / "tokenizer.json"))
    try:
        tokenizer = Tokenizer.from_str(json.dumps(document))
    except ValueError as error:
        raise ModelError(f"{folder / 'tokenizer.json'} is not a tokenizer ({error}); save it again") from None
    tokens = [f"[PAD{index}]" for index in range(vocab)]  # the stock converter's name for rows without a token
    types = [UNUSED] * vocab
    for token, index in tokenizer.get_vocab(with_added_tokens=True).items():
        tokens[index], types[index] = token, NORMAL
    for index, token in tokenizer.get_added_tokens_decoder().items():
        types[index] = CONTROL if token.special else USER_DEFINED
    pairs = document["model"]["merges"]
    return GgufTokenizer(
        pre=pre.name,
        tokens=tuple(tokens),
        types=tuple(types),
        merges=tuple(pair if isinstance(pair, str) else " ".join(pair) for pair in pairs),
        adds_bos=_adds_bos(tokenizer, folder),
    )


def name_pre_tokenizer(document: Mapping[str, Any], *, where: str) -> PreTokenizer:
    """Return the rule of a tokenizer.json, as llama.cpp names it.

    Args:
        document: the content of tokenizer.json.
        where: its name, for errors.

    Raises:
        ModelError: it is not byte-level BPE, normalises text, or splits it by a rule that has no name here.
    """
    model = document.get("model") or {}
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise ModelError(
            f"{where}: GGUF is written for byte-level BPE, and this is {model.get('type')} "
            f"{'with byte fallback' if model.get('byte_fallback') else ''}".rstrip()
            + "; use llama.cpp's own convert_hf_to_gguf.py"
        )
    normalizer = document.get("normalizer")
    if normalizer is not None and normalizer.get("type") != "NFC":  # Qwen's; preflight.py tells
        raise ModelError(
            f"{where}: its normalizer {normalizer.get('type')} changes text and llama.cpp has none; export --to hf"
        )
    steps = tuple(_without_offsets(step) for step in _flatten(document.get("pre_tokenizer")))
    for pre in PRE_TOKENIZERS:
        if pre.steps == steps and pre.ignores_merges == bool(model.get("ignore_merges")):
            return pre
    raise ModelError(
        f"{where}: its pre-tokenizer ({', '.join(str(step.get('type')) for step in steps) or 'none'}) is none of "
        f"{', '.join(pre.name for pre in PRE_TOKENIZERS)}, by which llama.cpp knows how to split text; export --to hf"
    )


def build_tokenizer(described: GgufTokenizer) -> Tokenizer:
    """Make a tokenizer that does what llama.cpp does with this description, to compare it with its source.

    Raises:
        ModelError: the pre-tokenizer is not one of PRE_TOKENIZERS, or tokens, types and merges do not fit together.
    """
    pre = next((pre for pre in PRE_TOKENIZERS if pre.name == described.pre), None)
    if pre is None:
        raise ModelError(f"pre-tokenizer {described.pre!r} is unknown here; export the model again")
    if len(described.tokens) != len(described.types) or not all(len(pair.split(" ")) == 2 for pair in described.merges):
        raise ModelError("tokens, types and merges of the GGUF file do not fit together; export the model again")
    words = list(enumerate(zip(described.tokens, described.types, strict=True)))
    model = {
        "type": "BPE",
        "vocab": {token: index for index, (token, kind) in words if kind != UNUSED},
        "merges": [pair.split(" ") for pair in described.merges],
        "ignore_merges": pre.ignores_merges,
    }
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": index, "content": token, "special": kind == CONTROL, **flags}
        for index, (token, kind) in words
        if kind in (CONTROL, USER_DEFINED)
    ]
    steps = [{**step, "trim_offsets": True} if step["type"] == "ByteLevel" else step for step in pre.steps]
    document = {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "decoder": {**_BYTES_BY_GPT2_REGEX, "trim_offsets": True},
        "model": model,
    }
    try:
        return Tokenizer.from_str(json.dumps(document))
    except Exception as error:  # the library has no narrower one for merges of unknown tokens
        raise ModelError(f"the tokenizer of the GGUF file is broken ({error}); export the model again") from None


def _flatten(step: Mapping[str, Any] | None) -> Sequence[Mapping[str, Any]]:
    if step is None:
        return ()
    if step.get("type") == "Sequence":
        return [inner for part in step.get("pretokenizers", ()) for inner in _flatten(part)]
    return (step,)


def _without_offsets(step: Mapping[str, Any]) -> dict[str, Any]:
    """Without trim_offsets, which changes no token; a use_regex that is left out is true."""
    plain = {name: value for name, value in step.items() if name != "trim_offsets"}
    return {"use_regex": True, **plain} if plain.get("type") == "ByteLevel" else plain


def _adds_bos(tokenizer: Tokenizer, folder: Path) -> bool:
    plain, full = (tokenizer.encode("a", add_special_tokens=flag).ids for flag in (False, True))
    if full == plain:
        return False
    if full[1:] == plain:
        return True
    raise ModelError(
        f"{folder / 'tokenizer.json'} puts {len(full) - len(plain)} tokens around a text and GGUF knows one in front; "
        "export --to hf"
    )
