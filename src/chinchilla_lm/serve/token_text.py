r"""What a token looks like in a list of log-probabilities: its text, or its bytes where it is no whole character.

OpenAI writes `bytes:\xe4\xbd` for a token that is part of a character. Never chooses tokens.
"""

from __future__ import annotations

import json
from functools import lru_cache

from tokenizers import Tokenizer

SPACE_MARK = "\u2581"  # SentencePiece's sign for a space


class TokenText:
    """Text and bytes of every token of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Reads the tokenizer's description once."""
        self._tokenizer = tokenizer
        self._is_byte_level = "ByteLevel" in json.dumps(json.loads(tokenizer.to_str()).get("decoder"))
        self._added = tokenizer.get_added_tokens_decoder()
        self._labels: dict[int, str] = {}  # made so far: an echo of 8,000 tokens asks for 160,000

    def label(self, token: int) -> str:
        """Return the token's text, or `bytes:` and its bytes in hexadecimal."""
        label = self._labels.get(token)
        if label is None:
            content = self.bytes(token)
            try:
                label = content.decode("utf-8")
            except UnicodeDecodeError:
                label = "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)
            self._labels[token] = label
        return label

    def bytes(self, token: int) -> bytes:
        """Return the UTF-8 bytes that the token stands for; its name for a special token, b"" for an unused id."""
        if token in self._added:
            return self._added[token].content.encode("utf-8")
        symbol = self._tokenizer.id_to_token(token)
        if symbol is None:
            return b""
        if self._is_byte_level:
            table = byte_of_symbol()
            if all(character in table for character in symbol):
                return bytes(table[character] for character in symbol)
            return symbol.encode("utf-8")
        if len(symbol) == 6 and symbol.startswith("<0x") and symbol.endswith(">"):  # SentencePiece's byte tokens
            return bytes([int(symbol[3:5], 16)])
        return symbol.replace(SPACE_MARK, " ").encode("utf-8")


@lru_cache(maxsize=1)
def byte_of_symbol() -> dict[str, int]:
    """Return GPT-2's alphabet: printable Latin-1 bytes stand for themselves, the others follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}
