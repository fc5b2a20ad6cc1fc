from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from chinchilla_lm.generate.text import TextStream

MIXED = "小模型 says 你好, 世界! 👩‍🚀🚀 naïve café — ﷽ \u0301e\n\tend"


@pytest.fixture(scope="module")
def byte_tokenizer() -> Tokenizer:
    """One token a byte: every character outside ASCII is cut."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _pieces(tokenizer: Tokenizer, token_ids: list[int]) -> list[str]:
    stream = TextStream(tokenizer)
    return [*(stream.push(token) for token in token_ids), stream.finish()]


@settings(max_examples=200, deadline=None)
@given(text=st.text() | st.just(MIXED))
def test_pieces_are_whole_characters_and_join_to_the_text(byte_tokenizer: Tokenizer, text: str) -> None:
    pieces = _pieces(byte_tokenizer, byte_tokenizer.encode(text).ids)
    assert "".join(pieces) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_comes_with_its_last_byte(byte_tokenizer: Tokenizer) -> None:
    assert _pieces(byte_tokenizer, byte_tokenizer.encode("a你🚀").ids) == ["a", "", "", "你", "", "", "", "🚀", ""]


@settings(max_examples=300, deadline=None)
@given(token_ids=st.lists(st.integers(0, 255), max_size=60))
def test_any_bytes_join_to_what_the_tokenizer_decodes(byte_tokenizer: Tokenizer, token_ids: list[int]) -> None:
    assert "".join(_pieces(byte_tokenizer, token_ids)) == byte_tokenizer.decode(token_ids)


def test_invalid_bytes_do_not_hold_the_stream_back(byte_tokenizer: Tokenizer) -> None:
    continuation_byte = byte_tokenizer.encode("你").ids[-1]
    stream = TextStream(byte_tokenizer)
    shown = "".join(stream.push(continuation_byte) for _ in range(50))
    assert len(shown) == 47


def test_a_decoder_that_drops_the_first_space_keeps_it_in_mid_text() -> None:
    tokenizer = Tokenizer(models.WordLevel(vocab={"▁Hello": 0, "▁world": 1, "▁again": 2}, unk_token="▁Hello"))
    tokenizer.decoder = decoders.Metaspace()
    stream = TextStream(tokenizer, prompt_ids=[0])
    assert [stream.push(1), stream.push(2), stream.finish()] == [" world", " again", ""]
