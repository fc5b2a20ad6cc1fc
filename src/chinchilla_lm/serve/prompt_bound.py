"""How many tokens a text has at least, without tokenising it: a prompt that is far too long is refused at once.

Every byte b of a text counts 1/m(b), where m(b) is the length in bytes of the longest token that holds b, and 0 if none
does. The bytes of a token then count at most 1 in sum, so a text has at least as many tokens as its bytes count. That
holds only where each byte that is in the vocabulary ends up in some token as itself. Tokenizers of which that is not
certain (unknown words in one token, white space that is dropped, normalisers that shrink text) have no bound, and their
texts are tokenised whatever their length. Never tokenises.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from chinchilla_lm.serve.strict_json import longest_gap
from chinchilla_lm.serve.token_text import SPACE_MARK, byte_of_symbol

COMPOSING_SHRINKS = 9
"""NFC makes at most 9 bytes of UTF-8 into 1: decomposing makes one into at most 3 (Unicode Standard Annex 15, section
Stability; U+0390), and a character at most 3 times as long as its decomposition (the Kelvin sign); see the test."""
_SLICE_BYTES = 1 << 16  # counted at once: 0.1 ms, after which another thread may run
_BYTES_OF_UTF8 = [byte for byte in range(0xF5) if byte not in (0xC0, 0xC1)]
_SPLITTING = ("Digits", "UnicodeScripts", "Split", "Punctuation")
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")

Table = Mapping[str, Any]


class PromptBound:
    """The bound of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Looks at every token once."""
        described = json.loads(tokenizer.to_str())
        normalisers = list(_parts(described["normalizer"], "normalizers"))
        splitters = list(_parts(described["pre_tokenizer"], "pretokenizers"))
        self._composes = any(part["type"] == "NFC" for part in normalisers)
        self._shares: np.ndarray[Any, Any] | None = None  # (256,) what each byte counts
        if not _is_known(described, normalisers, splitters):
            return
        vocabulary = tokenizer.get_vocab(with_added_tokens=False)
        is_byte_level = any(part["type"] == "ByteLevel" for part in splitters)
        if not is_byte_level and not all(f"<0x{byte:02X}>" in vocabulary for byte in range(256)):
            return
        spellings = [_forms(symbol, is_byte_level) for symbol in vocabulary]
        spellings += [_marked_forms(token["content"]) for token in described["added_tokens"]]
        self._shares = _shares(spellings)
        if is_byte_level:  # a byte without a symbol of its own is dropped, or unknown with its neighbours
            table = byte_of_symbol()
            self._shares[[table[symbol] for symbol in table if symbol not in vocabulary]] = 0

    def least_tokens(self, text: str | bytes, enough: int) -> int:
        """Return a number of tokens that the text has at the very least.

        Args:
            text: any; bytes are UTF-8.
            enough: the count may stop once it is beyond.

        Returns:
            0 if there is no bound; tokens that the tokenizer adds to every text are not counted.
        """
        if self._shares is None:
            return 0
        content = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
        if self._composes and not content.isascii():
            return math.ceil(len(content) * self._shares[_BYTES_OF_UTF8].min() / COMPOSING_SHRINKS)
        counted = 0.0
        for start in range(0, len(content), _SLICE_BYTES):
            piece = np.frombuffer(content, np.uint8, min(_SLICE_BYTES, len(content) - start), start)
            counted += float(np.bincount(piece, minlength=256) @ self._shares)
            if counted > enough + 1:
                break
        return math.ceil(counted - 1e-6)  # float64 sums of 1e8 bytes err by less


def least_tokens_in_json(bound: PromptBound, content: bytes, enough: int) -> int:
    """Return a number of tokens that the longest text of a JSON document has at the very least, without parsing it.

    Args:
        bound: of the tokenizer.
        content: the document.
        enough: texts of up to so many tokens are not looked for, >= 1.

    Returns:
        0 if no text has more than `enough`, or if there is no bound.
    """
    # Up to the first \\u: what such an escape stands for may compose with what is before it.
    found = longest_gap(content, enough).split(b"\\u", 1)[0].replace(b"\\n", b"")
    excess = 2 * found.count(b"\\") + 1  # two bytes for one at other escapes, and the last may compose
    least = bound.least_tokens(found, enough + excess) - excess
    return least if least > enough else 0


def _is_known(described: Table, normalisers: Sequence[Table], splitters: Sequence[Table]) -> bool:
    """Whether every byte of a text reaches the model, and the model makes nothing of bytes it does not know."""
    model = described["model"]
    if any(token["lstrip"] or token["rstrip"] for token in described["added_tokens"]):
        return False  # such a token takes all white space beside it
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return False  # then a byte has several symbols, not all of which need exist
    others = [part for part in splitters if part["type"] not in _SPLITTING or part.get("behavior") == "Removed"]
    plain = [part for part in normalisers if part["type"] != "NFC"]
    if [part["type"] for part in others] == ["ByteLevel"]:
        return model["type"] == "BPE" and not plain
    marks_only = all(part["type"] == "Metaspace" and part["replacement"] == SPACE_MARK for part in others)
    is_known = all(part["type"] == "Prepend" or _marks_spaces(part) for part in plain)
    return model["type"] in ("BPE", "Unigram") and bool(model.get("byte_fallback")) and marks_only and is_known


def _marks_spaces(normaliser: Table) -> bool:
    is_space = normaliser.get("pattern") == {"String": " "}
    return normaliser["type"] == "Replace" and is_space and normaliser.get("content") == SPACE_MARK


def _parts(part: Table | None, name: str) -> Iterator[Table]:
    """Yield a normaliser or pre-tokenizer, or what its sequences hold."""
    if part is None:
        return
    if part["type"] == "Sequence":
        for inner in part[name]:
            yield from _parts(inner, name)
    else:
        yield part


def _forms(symbol: str, is_byte_level: bool) -> list[bytes]:
    """Return the pieces of text that a token of the model may stand for; the longest holds all others' length."""
    if is_byte_level:
        table = byte_of_symbol()
        return [bytes(table[character] for character in symbol if character in table)]
    found = _BYTE_TOKEN.fullmatch(symbol)
    return [*_marked_forms(symbol), *([bytes([int(found[1], 16)])] if found else [])]


def _marked_forms(content: str) -> list[bytes]:
    """As it is, and with SentencePiece's mark for every space: a text may have either in each place."""
    return [content.replace(SPACE_MARK, " ").encode(), content.replace(" ", SPACE_MARK).encode()]


def _shares(spellings: Sequence[Sequence[bytes]]) -> np.ndarray[Any, Any]:
    longest = [math.inf] * 256
    for forms in spellings:
        most = max(map(len, forms))
        for byte in set().union(*forms):
            if longest[byte] == math.inf or longest[byte] < most:
                longest[byte] = most
    return 1 / np.array(longest)
