from __future__ import annotations

import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla_lm.data import encode
from chinchilla_lm.data.encode import encode_pieces, split_pieces
from chinchilla_lm.data.tokenizer import train_tokenizer

# Text that tempts: contractions, runs of white space of all kinds, letters of several scripts, separators.
TEMPTING = st.text(
    st.sampled_from("ab'st,.\u4e2d\uff0c1_\u00b2\u0301 \n\r\t\x1c\x85\u00a0\u200b\u2028\u3000"), max_size=60
)


@pytest.fixture(scope="module")
def tokenizer(texts):
    tokenizer = train_tokenizer([*texts, " \n\n \n\n  a' 'st ,, ..\n\n\n" * 50], 500)
    tokenizer.encode_special_tokens = True
    return tokenizer


@settings(max_examples=400, deadline=None)
@given(st.one_of(TEMPTING, st.text(max_size=60)), st.integers(1, 8), st.booleans())
def test_ids_of_pieces_and_words_are_the_ids_of_the_whole_text(tokenizer, text, piece_characters, by_word):
    pieces = list(split_pieces(text, piece_characters))
    assert "".join(pieces) == text
    repeats, encode._REPEATS = encode._REPEATS, 0 if by_word else 10**9
    try:
        ids = encode_pieces(tokenizer, pieces)
    finally:
        encode._REPEATS = repeats
    assert [token for piece in ids for token in piece.tolist()] == tokenizer.encode(text).ids


def test_white_space_means_the_same_here_and_in_the_tokenizer(tokenizer):
    """Of x?\\n\\ny the second word is ?\\n if ? is white space, else ?."""
    categories = ("Zs", "Zl", "Zp", "Cc", "Cf")
    suspects = [chr(k) for k in range(0x110000) if unicodedata.category(chr(k)) in categories and k != 0x0A]
    words = [tokenizer.pre_tokenizer.pre_tokenize_str(f"x{character}\n\ny") for character in suspects]
    theirs = {character for character, found in zip(suspects, words, strict=True) if found[1][1] == (1, 3)}
    ours = {character for character in suspects if re.fullmatch(f"[{encode._SPACE}]", character)}
    assert ours == theirs
    assert len(ours) == 24  # Unicode's White_Space has 25 with the newline


def test_pieces_end_at_lines_and_without_white_space_a_text_stays_whole():
    text = "a line of words\n" * 100
    pieces = list(split_pieces(text, 40))
    assert all(piece.endswith("words") for piece in pieces[:-1])
    assert max(map(len, pieces)) <= 80
    assert list(split_pieces("\u4e2d" * 1000, 10)) == ["\u4e2d" * 1000]
    assert list(split_pieces("", 10)) == []


def test_end_of_text_written_in_a_text_is_text(tokenizer):
    text = "before <|endoftext|> after " * 20
    (ids,) = encode_pieces(tokenizer, [text])
    assert ids.dtype == np.int64
    assert 0 not in ids
    assert tokenizer.decode(ids.tolist()) == text
