"""From a prompt to token ids, and from token ids to text, piece by piece, never cutting a character.

A byte-level token may hold part of a UTF-8 character; decoding it alone gives U+FFFD. `TextStream` holds such a tail
back until the character is complete. Never chooses tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from chinchilla_lm.data.tokenizer import END_OF_TEXT

REPLACEMENT = "\ufffd"  # what a decoder writes for bytes that are not (yet) a character
HELD_CHARACTERS = 3  # an unfinished UTF-8 character has at most 3 bytes, each shown as at most one U+FFFD
CONTEXT_TOKENS = 6  # prompt tokens that show a decoder that it is in mid-text (some drop the first space of a text)


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Return the prompt's token ids by the tokenizer's own rule; "" becomes the end-of-text token: a text starts."""
    return encode_text(tokenizer, prompt) or list(end_of_text_ids(tokenizer))[:1]


def encode_text(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool = True) -> list[int]:
    """Return a text's token ids, as `Tokenizer.encode` does, while other threads run.

    `encode` keeps the interpreter's lock until it is done (130 ms for 98,000 characters, 2026-11-22), the batch's form
    gives it up.
    """
    return tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids


def end_of_text_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the id of the end-of-text token, or nothing when the vocabulary lacks it."""
    token = tokenizer.token_to_id(END_OF_TEXT)
    return () if token is None else (token,)


class TextStream:
    """Turn tokens into pieces of text; the pieces joined are the whole text.

    With a byte-level tokenizer the joined pieces equal `tokenizer.decode(token_ids)`. Tokenizers that drop the leading
    space of a text (SentencePiece) keep it here, because the text continues a prompt.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._context_ids = list(prompt_ids[-CONTEXT_TOKENS:])
        self._pending_ids: list[int] = []
        self._emitted = 0  # characters of the pending tokens that have left already

    def push(self, token: int) -> str:
        """Add one token; return the text that became complete ("" when none did)."""
        self._pending_ids.append(token)
        text = self._pending_text()
        unfinished = min(len(text) - len(text.rstrip(REPLACEMENT)), HELD_CHARACTERS)
        if unfinished == 0:
            piece = text[self._emitted :]
            self._context_ids, self._pending_ids, self._emitted = self._pending_ids, [], 0
            return piece
        return self._emit_up_to(text, len(text) - unfinished)

    def finish(self) -> str:
        """Return what is still held; bytes that never became a character come as U+FFFD."""
        text = self._pending_text()
        return self._emit_up_to(text, len(text))

    def _emit_up_to(self, text: str, end: int) -> str:
        piece = text[self._emitted : end]
        self._emitted = max(self._emitted, end)
        return piece

    def _pending_text(self) -> str:
        context = self._tokenizer.decode(self._context_ids)
        return self._tokenizer.decode(self._context_ids + self._pending_ids)[len(context) :]
