"""Text to token ids, fast: exactly what the tokenizer gives for the whole text, found by parts.

GPT-2's regular expression never puts one pre-token across the border between a character that is not white space and
white space after it: words, numbers and punctuation end there, and the rule for white space looks only forward. Nor
between a letter and punctuation after it. BPE works within pre-tokens. So a text may be cut at each such border, and
the ids of the parts, joined, are the ids of the text. This file cuts there twice: documents into pieces (bounded
memory, all cores), and pieces into words, of which each distinct one is encoded once (English books: 5.7 MB a second on
one core, 3.9 times as fast as `encode_batch_fast` on whole pieces).
It holds only for tokenizers of `chinchilla_lm.data.tokenizer`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
from tokenizers import Tokenizer

# Unicode's White_Space property, which is what \s means to the tokenizers library; Python's \s has U+001C-1F besides.
_SPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_PUNCTUATION = r"!-/:-@\[-`{-~"
_WORD = re.compile(rf"[{_SPACE}]*[A-Za-z]+(?=[{_PUNCTUATION}{_SPACE}]|\Z)|[{_SPACE}]*[^{_SPACE}]+|[{_SPACE}]+")
_LINE_BORDER = re.compile(f"(?<=[^{_SPACE}])(?=\n)")
_BORDER = re.compile(f"(?<=[^{_SPACE}])(?=[{_SPACE}])")
# Short enough to spread over the cores, long enough that its overhead is nothing.
PIECE_CHARACTERS = 1 << 16
# Encoding distinct words pays when a word comes back: Chinese has few spaces, its "words" are whole paragraphs.
_REPEATS = 4


def split_pieces(text: str, piece_characters: int = PIECE_CHARACTERS) -> Iterator[str]:
    """Cut a text where no pre-token is cut, so that the ids of the pieces, joined, are the ids of the text.

    Args:
        text: any text.
        piece_characters: a piece ends at the first line end after so many characters, or at the first white space after
            twice as many; a text without white space stays whole.

    Yields:
        Pieces whose concatenation is the text.
    """
    start = 0
    while start < len(text):
        border = _LINE_BORDER.search(text, start + piece_characters, start + 2 * piece_characters)
        border = border or _BORDER.search(text, start + 2 * piece_characters)
        stop = border.start() if border else len(text)
        yield text[start:stop]
        start = stop


def encode_pieces(tokenizer: Tokenizer, pieces: Sequence[str]) -> list[np.ndarray]:
    """Return the ids of each piece, equal to `tokenizer.encode(piece)`.

    Args:
        tokenizer: as `train_tokenizer` makes it; with `encode_special_tokens` set, END_OF_TEXT in the text is text.
        pieces: any texts.

    Returns:
        One (n,) int64 array a piece.
    """
    words_by_piece = [_WORD.findall(piece) for piece in pieces]
    index: dict[str, int] = {}
    for words in words_by_piece:
        index.update(dict.fromkeys(words, 0))
    if len(index) * _REPEATS > sum(map(len, words_by_piece)):
        return [np.array(ids, dtype=np.int64) for ids in _encode(tokenizer, pieces)]
    ids_by_word = _encode(tokenizer, list(index))
    index = {word: place for place, word in enumerate(index)}
    lengths = np.fromiter(map(len, ids_by_word), dtype=np.int64, count=len(ids_by_word))
    flat = np.fromiter((id for ids in ids_by_word for id in ids), dtype=np.int64, count=int(lengths.sum()))
    starts = np.cumsum(lengths) - lengths
    return [_join(words, index, flat, starts, lengths) for words in words_by_piece]


def _encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def _join(
    words: Sequence[str], index: dict[str, int], flat: np.ndarray, starts: np.ndarray, lengths: np.ndarray
) -> np.ndarray:
    """Return the ids of consecutive words: those of word w are flat[starts[w] : starts[w] + lengths[w]]."""
    places = np.fromiter(map(index.__getitem__, words), dtype=np.int64, count=len(words))
    counts = lengths[places]
    shifts = np.repeat(starts[places] - (np.cumsum(counts) - counts), counts)
    return flat[shifts + np.arange(len(shifts))]
