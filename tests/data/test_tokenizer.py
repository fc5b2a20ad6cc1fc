from __future__ import annotations

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from chinchilla_lm.core.errors import ConfigError, DataError
from chinchilla_lm.data.tokenizer import (
    END_OF_TEXT,
    MIN_VOCAB,
    load_tokenizer,
    sample_bytes,
    save_tokenizer,
    token_bytes,
    train_tokenizer,
)

# Radford et al. 2019, released code (encoder.py); llama.cpp applies it for tokenizer.ggml.pre = "gpt-2".
GPT2_PATTERN = regex.compile(r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+""")
STRANGE = [
    "",
    " ",
    "\n\n\n",
    "don't they're I'll we'd 'tis O'S 'S",
    "tabs\tand  two spaces \n \n x",
    "\u4eca\u5929\u5929\u6c14\u5f88\u597d\uff0c\u6211\u4eec\u53bb\u516c\u56ed\uff01",  # fine weather, to the park
    "\u3000\u3000\u7b2c1\u7ae0 \u8bdd\u8bf4\u5b8b\u671d",  # chapter 1 of an old novel, indented
    "\u00a0\u2003x\u200b\u2028y\u0085z\x1cw\x00",
    "caf\u00e9 cafe\u0301 \u2167 \u00b2 3.14 1,000 \U0001f469\u200d\U0001f4bb\u2764\ufe0f",
    "x = {'a': [1, 2]}  # code\n\tdef f(_y): return _y**2\r\n",
    f"{END_OF_TEXT} in the middle {END_OF_TEXT}",
]


@pytest.fixture(scope="module")
def tokenizer(texts):
    return train_tokenizer(texts, 400)


@pytest.fixture(scope="module")
def saved(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(tokenizer, folder, max_tokens=128)
    return folder


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_comes_back_and_its_bytes_are_counted(tokenizer, text):
    tokenizer.encode_special_tokens = True
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert token_bytes(tokenizer)[ids].sum() == len(text.encode())


def test_every_byte_has_a_token_and_end_of_text_is_zero(tokenizer):
    assert tokenizer.token_to_id(END_OF_TEXT) == 0
    smallest = train_tokenizer([], MIN_VOCAB)
    bytes_v = token_bytes(smallest)
    assert smallest.get_vocab_size() == MIN_VOCAB
    assert bytes_v.dtype == np.int32
    assert bytes_v.tolist() == [0] + [1] * 256
    # Lead and continuation bytes of one, two, three and four byte characters; UTF-8 never uses C0, C1 and F5 to FF.
    text = "".join(map(chr, [*range(0x800), *range(0x800, 0xD800, 61), *range(0xE000, 0x110000, 4001), 0x10FFFF]))
    ids = smallest.encode(text).ids
    assert len(ids) == len(text.encode())
    # GPT-2's table gives a printable Latin-1 byte its own character.
    unused = {smallest.token_to_id(chr(byte)) for byte in (0xC0, 0xC1, *range(0xF5, 0x100))}
    assert set(ids) == set(range(1, 257)) - unused


def test_training_gives_the_same_tokenizer_for_the_same_texts_in_any_order(texts, tokenizer):
    assert train_tokenizer(iter(texts[::-1]), 400).to_str() == train_tokenizer(texts, 400).to_str()
    assert train_tokenizer(texts[:30], 400).to_str() != train_tokenizer(texts, 400).to_str()


def test_words_are_cut_as_by_the_published_pattern_of_gpt2(tokenizer, texts):
    for text in STRANGE + texts[:5]:
        words = [text[start:stop] for _, (start, stop) in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
        assert words == GPT2_PATTERN.findall(text)


def test_auto_tokenizer_gives_the_same_ids_and_knows_the_special_token(tokenizer, saved, texts):
    auto = AutoTokenizer.from_pretrained(saved)
    ours = load_tokenizer(saved)
    assert len(auto) == ours.get_vocab_size() == 400
    assert auto.bos_token_id == auto.eos_token_id == auto.pad_token_id == 0
    assert auto.model_max_length == 128
    for text in STRANGE + texts:
        ids = ours.encode(text).ids
        assert auto(text)["input_ids"] == ids
        assert auto.decode(ids) == text
    assert ours.encode(END_OF_TEXT).ids == [0]


def test_a_small_text_gives_fewer_ids_than_asked_for():
    assert MIN_VOCAB < train_tokenizer(["abab abab"], 1000).get_vocab_size() < 270


@pytest.mark.parametrize("vocab", [-1, 0, 256, 1 << 30])
def test_an_impossible_vocabulary_is_refused(vocab):
    with pytest.raises(ConfigError, match=f"vocab = {vocab} must be from 257"):
        train_tokenizer(["x"], vocab)


def test_the_sample_grows_with_the_vocabulary_within_bounds():
    assert [sample_bytes(vocab) for vocab in (257, 1024, 8192, 32768)] == [4_000_000, 4_000_000, 8_192_000, 20_000_000]


def test_a_broken_tokenizer_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(DataError, match="is not a tokenizer of the `tokenizers` library"):
        load_tokenizer(tmp_path)


def test_bytes_of_a_tokenizer_that_is_not_byte_level_are_refused():
    from tokenizers import Tokenizer, decoders, models

    other = Tokenizer(models.BPE())
    for decoder in (None, decoders.Metaspace()):
        if decoder is not None:
            other.decoder = decoder
        with pytest.raises(DataError, match="not byte-level"):
            token_bytes(other)
    other.decoder = decoders.Sequence([decoders.ByteLevel()])
    other.add_tokens(["\u4e2d\u6587"])
    assert token_bytes(other).tolist() == [6]
