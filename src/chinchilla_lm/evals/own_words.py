"""A suite from the run's own held-out text, so that every corpus has one: which of eight words comes next.

A word of the text is asked for after what stands before it, beside seven words drawn from the same text by how often
they occur. The eight are exchangeable: whoever knows the words' frequencies and nothing of the passage is right once in
eight, so that all above it is read from the context, and it rises with the first step beyond word frequencies. A
word follows a space and is made of letters; in scripts without spaces each Han character is one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import regex

from chinchilla_lm.core.errors import DataError
from chinchilla_lm.data.manifest import Manifest
from chinchilla_lm.data.shards import open_tokens
from chinchilla_lm.data.tokenizer import END_OF_TEXT, load_tokenizer
from chinchilla_lm.evals.suite_forms import Item

CHOICES = 8
PASSAGE_BYTES = 240
"""Most that is read before the word: about 70 tokens of English."""
LEAST_PASSAGE_CHARACTERS = 40
LEAST_ITEMS = 50
"""Fewer have a standard error of seven points: no law can be fitted to them."""
_MOST_TOKENS = 400_000  # of the held-out text: a thousand words are drawn from it, and it is decoded in half a second
# Of at most 14 letters, so that with its space it fits the smallest context (16) in any vocabulary of bytes.
_SPACED = regex.compile(r"(?<=[\p{L}\p{N}\p{P}]) (?:(?![\p{Han}\p{Hiragana}\p{Katakana}])\p{L}){1,14}(?![\p{L}\p{N}_])")
_HAN = regex.compile(r"(?<=[\p{Han}\p{P}])\p{Han}")


def own_word_items(texts: Sequence[str], count: int, seed: int) -> list[Item]:
    """Draw the items of a text.

    Args:
        texts: documents that no model has been trained on.
        count: items wanted.
        seed: of the draw.

    Returns:
        At most `count` items, in the order of the text.

    Raises:
        DataError: the text has too few words.
    """
    draws, items = random.Random(seed), []
    pools = [_places(texts, pattern) for pattern in (_SPACED, _HAN)]
    sizes = [len(pool) for pool in pools]
    for kind, number in _draw_places(sizes, count, draws):
        document, start, word = pools[kind][number]
        words = [word, *(pools[kind][draws.randrange(sizes[kind])][2] for _ in range(CHOICES - 1))]
        # All or none is drawn anew: dropping single words would make the one of the text the more frequent one.
        if len(set(words)) < CHOICES:
            continue
        order = draws.sample(range(CHOICES), CHOICES)
        passage = _last_bytes(texts[document][:start], PASSAGE_BYTES)
        items.append((document, start, _item(passage, [words[place] for place in order], order.index(0))))
        if len(items) == count:
            break
    if len(items) < min(count, LEAST_ITEMS):
        raise DataError(
            f"the held-out text has {sum(sizes)} words that can be asked for, which make {len(items)} items; "
            "give more text, or --suite none"
        )
    return [item for _, _, item in sorted(items, key=lambda one: one[:2])]


def heldout_texts(manifest: Manifest) -> list[str]:
    """Decode the documents of a prepared folder's held-out split, up to its first 400,000 tokens."""
    tokenizer, stream = load_tokenizer(manifest.tokenizer_folder), open_tokens(manifest, "heldout")
    ids = stream.read(0, min(len(stream), _MOST_TOKENS)).astype(np.int64)
    starts = np.flatnonzero(ids == tokenizer.token_to_id(END_OF_TEXT))
    documents = [part.tolist() for part in np.split(ids, starts) if len(part)]
    # Special tokens are left out; a character that the end of the reading cuts is no character.
    return [text.rstrip("\ufffd") for text in tokenizer.decode_batch(documents, skip_special_tokens=True)]


def _places(texts: Sequence[str], pattern: regex.Pattern[str]) -> list[tuple[int, int, str]]:
    """Every word with something before it: (document, where it starts, the word with its space)."""
    return [
        (number, match.start(), match.group())
        for number, text in enumerate(texts)
        for match in pattern.finditer(text)
        if match.start() >= LEAST_PASSAGE_CHARACTERS
    ]


def _draw_places(sizes: Sequence[int], count: int, draws: random.Random) -> list[tuple[int, int]]:
    """Places in random order, several for each item wanted, for those that are dropped."""
    total = sum(sizes)
    chosen = draws.sample(range(total), min(total, 4 * count))
    return [(0, number) if number < sizes[0] else (1, number - sizes[0]) for number in chosen]


def _last_bytes(text: str, size: int) -> str:
    """The end of a text, at most so many bytes of UTF-8, from a whole word on where there are spaces."""
    encoded = text[-size:].encode()
    tail = encoded[-size:].decode(errors="ignore")
    return tail.partition(" ")[2] or tail if len(encoded) > size or len(text) > size else tail


def _item(passage: str, words: Sequence[str], gold: int) -> Item:
    lengths = tuple((len(word.strip()), len(word.strip().encode())) for word in words)
    return Item(pairs=tuple((passage, word) for word in words), gold=gold, lengths=lengths)
