"""Words and sub-tokens: every word is scored once, by the sub-tokens that it says, in windows that fit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from chinchilla_lm.tune.words import encode_words, joiner_for, plan_windows

SENTENCE = ["the", "mat", "Paris's", "2010", "...", "unheardofword", "你好", "@x", ":)", "film", "."]


@pytest.fixture(scope="module", params=["qwen3", "bert"])
def tokenizer(tiny_folder, request):
    return AutoTokenizer.from_pretrained(tiny_folder(request.param))


def encode(tokenizer, words, pooling="last", max_tokens=512, joiner=" ", is_causal=True):
    return encode_words(tokenizer, words, joiner=joiner, pooling=pooling, max_tokens=max_tokens, is_causal=is_causal)


@pytest.mark.parametrize(("pooling", "which"), [("last", -1), ("first", 0)])
def test_a_word_speaks_through_its_last_or_first_sub_token(tokenizer, pooling, which):
    (window,) = encode(tokenizer, SENTENCE, pooling)
    text, offsets, start = " ".join(SENTENCE), None, 0
    encoding = tokenizer(text, return_offsets_mapping=True)
    offsets = encoding["offset_mapping"]
    assert window.ids_t.tolist() == encoding["input_ids"]  # what a deployed model reads
    assert window.word_u.tolist() == list(range(len(SENTENCE)))
    for unit, word in enumerate(SENTENCE):
        end = start + len(word)
        # Tokens of the word by brute force: they hold one of its characters (and perhaps the space before it).
        inside = [t for t, (low, high) in enumerate(offsets) if max(low, start) < min(high, end)]
        spoken = np.flatnonzero(window.unit_t == unit).tolist()
        if pooling == "first" and text[offsets[inside[0]][0] : offsets[inside[0]][1]].strip() == "":
            inside = inside[1:]
        assert spoken == [inside[which]] or (pooling == "first" and spoken == [inside[0] - 1])
        start = end + 1


def test_all_sub_tokens_speak_when_they_are_averaged(tokenizer):
    (window,) = encode(tokenizer, SENTENCE, "mean")
    special = tokenizer(" ".join(SENTENCE), return_special_tokens_mask=True)["special_tokens_mask"]
    assert ((window.unit_t >= 0) == (np.array(special) == 0)).all()
    assert window.word_u[window.is_first_u].tolist() == list(range(len(SENTENCE)))
    assert (np.diff(window.unit_t[window.unit_t >= 0]) >= 0).all()


def test_chinese_words_never_share_a_sub_token(tokenizer):
    words = list("你好世界今天")
    assert joiner_for([words]) == ""
    assert joiner_for([["hello", "world"]]) == " "
    (window,) = encode(tokenizer, words, joiner="")
    assert window.word_u.tolist() == list(range(len(words)))
    assert (np.bincount(window.unit_t[window.unit_t >= 0]) == 1).all()


@settings(max_examples=200, deadline=None)
@given(sizes_w=st.lists(st.integers(0, 9), max_size=40), room=st.integers(1, 24), is_causal=st.booleans())
def test_windows_score_every_word_once_and_fit(sizes_w, room, is_causal):
    plan = plan_windows(sizes_w, room, is_causal=is_causal)
    scored = [word for _, _, low, high in plan for word in range(low, high)]
    assert scored == list(range(len(sizes_w)))
    for first, end, low, high in plan:
        assert first <= low <= high <= end
        assert sum(sizes_w[first:end]) <= room or end - first == 1


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("is_causal", [True, False])
def test_a_long_sentence_is_windowed_not_cut(tokenizer, pooling, is_causal):
    words = SENTENCE * 9
    windows = encode(tokenizer, words, pooling, max_tokens=60, is_causal=is_causal)
    assert len(windows) > 1
    assert [word for window in windows for word in window.word_u[window.is_first_u]] == list(range(len(words)))
    for window in windows:
        assert len(window.ids_t) <= 60
        assert window.unit_t.max() + 1 == len(window.word_u)


def test_a_word_longer_than_a_window_is_read_as_far_as_it_goes(tokenizer):
    windows = encode(tokenizer, ["a", "x9" * 100, "b"], max_tokens=30)
    assert [word for window in windows for word in window.word_u] == [0, 1, 2]


def test_nothing_to_read_gives_no_units(tokenizer):
    assert sum(len(window.word_u) for window in encode(tokenizer, [])) == 0
    assert sum(len(window.word_u) for window in encode(tokenizer, [""])) == 0


def word_piece_tokenizer():
    """BERT's kind: ## continues a word, punctuation is cut off, unknown words are one token."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = [
        "[UNK]",
        "[PAD]",
        "the",
        "mat",
        "par",
        "##is",
        "un",
        "##heard",
        "'",
        "s",
        ".",
        "2",
        "##0",
        "##1",
        "@",
        "x",
    ]
    tokenizer = Tokenizer(models.WordPiece({piece: place for place, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]")


@pytest.mark.parametrize("family", ["decoder", "wordpiece"])
def test_units_of_the_mean_are_what_transformers_pipeline_counts_as_words(tiny_folder, family):
    from types import SimpleNamespace

    from transformers.pipelines.token_classification import AggregationStrategy, TokenClassificationPipeline

    tokenizer = word_piece_tokenizer() if family == "wordpiece" else AutoTokenizer.from_pretrained(tiny_folder("qwen3"))
    for words in (SENTENCE, ["the", "U.S.", "mat", "New York", "2010"], ["x"], ["unheard", ":(", "par'is"]):
        (window,) = encode(tokenizer, words, "mean")
        text = " ".join(words)
        encoding = tokenizer(text, return_offsets_mapping=True)
        count = len(encoding["input_ids"])
        counted = TokenClassificationPipeline.gather_pre_entities(
            SimpleNamespace(tokenizer=tokenizer),
            text,
            encoding["input_ids"],
            np.zeros((count, 1)),
            encoding["offset_mapping"],
            np.zeros(count),
            AggregationStrategy.AVERAGE,
        )
        theirs = np.cumsum([not each["is_subword"] or number == 0 for number, each in enumerate(counted)]) - 1
        assert window.unit_t.tolist() == theirs.tolist()
        assert window.word_u[window.is_first_u].tolist() == list(range(len(words)))
