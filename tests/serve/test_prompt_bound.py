"""The least tokens of a text, counted without tokenising it: never more than the tokenizer gives."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from chinchilla_lm.data.tokenizer import train_tokenizer
from chinchilla_lm.serve.prompt_bound import COMPOSING_SHRINKS, PromptBound, least_tokens_in_json
from chinchilla_lm.serve.strict_json import longest_gap

TEXTS = [
    "The sailor said hello,    and the sea 你好，大海 🚀 ééé wrote in 1872.\n\n" * 40,
    "a" * 64,
    "  " * 32,
    "-=" * 30,
]


def byte_level() -> Tokenizer:
    return train_tokenizer(TEXTS, 700)


def incomplete_byte_level() -> Tokenizer:
    """As SmolLM2's: bytes that its texts did not have are dropped."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    return tokenizer


def composing() -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def marked(*, normalises: bool) -> Tokenizer:
    """As SentencePiece's: spaces become a mark, unknown characters their bytes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True))
    if normalises:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=600, max_token_length=12, show_progress=False, special_tokens=fallback)
    tokenizer.train_from_iterator([text.replace(" ", "▁ ") for text in TEXTS], trainer)
    table = json.loads(tokenizer.to_str())
    table["added_tokens"] = []
    return Tokenizer.from_str(json.dumps(table))


def with_added() -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("hello there, sailor of the seven seas", normalized=False), "zzzzzzzzzz"])
    return tokenizer


def unigram() -> Tokenizer:
    pieces = [("<unk>", 0.0), *((f"<0x{byte:02X}>", -9.0) for byte in range(256)), ("▁sea", -1.0), ("▁▁▁▁", -1.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, 0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer


BOUNDED: dict[str, Callable[[], Tokenizer]] = {
    "byte level": byte_level,
    "incomplete byte level": incomplete_byte_level,
    "composing": composing,
    "marked": lambda: marked(normalises=False),
    "marked by a normaliser": lambda: marked(normalises=True),
    "added tokens": with_added,
    "unigram": unigram,
}
PIECES = [
    "a" * 9,
    " ",
    "    ",
    "▁",
    "▁▁▁▁",
    " sea",
    "sea",
    "hello there, sailor of the seven seas",
    "z" * 10,
    "é",
    "e\u0301",
]
PIECES += [
    "\u1100\u1161\u11a8",
    "\u212a",
    "你好",
    "🚀",
    "\x04",
    "\n",
    "-=-=-=-=",
    "1872",
    "<0x0A>",
    "\u1fa7",
    "<\u0338",
]
TEXT = st.lists(st.sampled_from(PIECES) | st.text(max_size=8), max_size=30).map("".join)


@pytest.fixture(scope="module", params=BOUNDED)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return BOUNDED[request.param]()


def test_no_text_has_fewer_tokens(tokenizer):
    bound = PromptBound(tokenizer)

    @settings(max_examples=60)
    @given(text=TEXT)
    def check(text):
        assert bound.least_tokens(text, 10**9) <= len(tokenizer.encode(text, add_special_tokens=False).ids)

    check()


def test_a_long_text_is_known_to_be_long(tokenizer):
    text = TEXTS[0] * 20
    tokens = len(tokenizer.encode(text).ids)
    least = PromptBound(tokenizer).least_tokens(text, 10**9)
    assert tokens / 200 < least <= tokens
    assert PromptBound(tokenizer).least_tokens(text, 3) > 3


def unknown_words() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "sea": 1}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def greedy() -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    return tokenizer


def lowered() -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
    return tokenizer


def without_spaces() -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (unknown_words, "x" * 10_000),
        (greedy, " " * 10_000 + "<mask>"),
        (lowered, "e" + "\u0301" * 10_000),
        (without_spaces, " " * 10_000),
    ],
    ids=["unknown words", "tokens that take spaces", "accents stripped", "spaces dropped"],
)
def test_tokenizers_that_shrink_texts_have_no_bound(make, text):
    tokenizer = make()
    assert len(tokenizer.encode(text).ids) < 10
    assert PromptBound(tokenizer).least_tokens(text, 10**9) == 0


def test_composing_shrinks_no_more():
    """Of one character; a composed text is that of its characters' decompositions (Unicode Standard Annex 15)."""
    characters = [chr(code) for code in range(0x110000) if unicodedata.decomposition(chr(code))]
    characters += ["\uac00", "\uac01"]  # Hangul syllables are decomposed by a rule
    decomposed = [(len(one.encode()), len(unicodedata.normalize("NFD", one).encode())) for one in characters]
    grows = max(after / before for before, after in decomposed)
    shrinks = max(before / after for before, after in decomposed)
    assert grows * shrinks <= COMPOSING_SHRINKS


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(TEXT, inner, max_size=4)),
    max_leaves=12,
)


@settings(max_examples=80)
@given(value=JSON, is_ascii=st.booleans(), indent=st.sampled_from([None, 1, 40]), least=st.integers(1, 60))
def test_a_gap_lies_within_one_string(value, is_ascii, indent, least):
    content = json.dumps(value, ensure_ascii=is_ascii, indent=indent).encode()
    gap = longest_gap(content, least)
    assert gap == b"" or len(gap) >= least
    assert gap == b"" or any(gap in json.dumps(one, ensure_ascii=is_ascii).encode()[1:-1] for one in strings(value))


def test_no_document_is_refused_for_a_text_that_fits(tokenizer):
    bound = PromptBound(tokenizer)

    @settings(max_examples=40)
    @given(value=JSON, is_ascii=st.booleans(), enough=st.integers(1, 40))
    def check(value, is_ascii, enough):
        content = json.dumps(value, ensure_ascii=is_ascii).encode()
        least = least_tokens_in_json(bound, content, enough)
        most = max((len(tokenizer.encode(one, add_special_tokens=False).ids) for one in strings(value)), default=0)
        assert least <= most
        assert least == 0 or least > enough

    check()


def strings(value: object) -> list[str]:
    if isinstance(value, dict):
        return [*value, *(found for one in value.values() for found in strings(one))]
    if isinstance(value, list):
        return [found for one in value for found in strings(one)]
    return [value] if isinstance(value, str) else []
