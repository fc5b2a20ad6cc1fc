from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla_lm.core.errors import DataError
from chinchilla_lm.data.selection import Entry, cut_before, select_text


def corpus_of(texts: list[str], splits: list[str | None] | None = None):
    contents = [text.encode() for text in texts]
    whole = b"".join(contents)
    entries, start = [], 0
    for content, split in zip(contents, splits or [None] * len(texts), strict=True):
        stop = start + len(content)
        entries.append(Entry(start=start, stop=stop, digest=hashlib.sha256(content).digest(), split=split))
        start = stop
    return entries, lambda start, stop: whole[start:stop]


def chosen_texts(entries, read, **options):
    selection = select_text(entries, read, **{"heldout_bytes": 500, "max_bytes": None, "seed": 0, **options})
    train = [read(*span).decode() for span in selection.train]
    return train, [read(*span).decode() for span in selection.heldout], selection


TEXTS = [f"document {k} " + "word " * (20 + 7 * (k % 9)) for k in range(100)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 3000), min_size=1, max_size=30),
    st.integers(1, 5000),
    st.one_of(st.none(), st.integers(1, 20_000)),
    st.integers(0, 2**63 - 1),
)
def test_every_byte_is_used_once_and_the_limits_hold(lengths, heldout_bytes, max_bytes, seed):
    texts = [f"{k}\n" + "ab c\n" * (length // 5) for k, length in enumerate(lengths)]
    entries, read = corpus_of(texts)
    total = sum(map(len, texts))
    if total < 1000:
        with pytest.raises(DataError, match="the corpus has"):
            chosen_texts(entries, read, heldout_bytes=heldout_bytes, max_bytes=max_bytes, seed=seed)
        return
    _, _, everything = chosen_texts(entries, read, heldout_bytes=heldout_bytes, seed=seed)
    spans = sorted(everything.train + everything.heldout)
    assert [0, *(stop for _, stop in spans)] == [*(start for start, _ in spans), total]
    assert 0 < sum(stop - start for start, stop in everything.heldout) <= 0.10 * total + 5
    assert everything.available_bytes == sum(stop - start for start, stop in everything.train)
    _, _, limited = chosen_texts(entries, read, heldout_bytes=heldout_bytes, max_bytes=max_bytes, seed=seed)
    assert limited.heldout == everything.heldout
    if max_bytes is not None:
        assert sum(stop - start for start, stop in limited.train) <= max_bytes
        assert limited.train[:-1] == everything.train[: max(len(limited.train) - 1, 0)]


def test_the_choice_depends_on_the_texts_and_the_seed_only():
    first = chosen_texts(*corpus_of(TEXTS))
    other_order = chosen_texts(*corpus_of(TEXTS[::-1]))
    other_seed = chosen_texts(*corpus_of(TEXTS), seed=1)
    assert first[:2] == other_order[:2]
    assert first[1] != other_seed[1]
    assert first[0] != sorted(first[0])


def test_whole_documents_are_held_out_until_enough():
    train, heldout, selection = chosen_texts(*corpus_of(TEXTS), heldout_bytes=700)
    assert sorted(train + heldout) == sorted(TEXTS)
    assert 700 <= sum(map(len, heldout)) < 700 + max(map(len, TEXTS))
    assert selection.documents == len(TEXTS)


def test_documents_named_held_out_come_first_and_never_train():
    splits = ["heldout" if k % 10 == 0 else "train" for k in range(100)]
    train, heldout, selection = chosen_texts(*corpus_of(TEXTS, splits), heldout_bytes=300)
    named = set(TEXTS[::10])
    assert set(heldout) < named
    assert not named & set(train)
    assert len(train) == 90
    assert selection.notes == (f"held out {len(heldout)} of the 10 documents whose files are named so",)
    _, everything, _ = chosen_texts(*corpus_of(TEXTS, splits), heldout_bytes=10**9)
    assert set(everything) == named


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_few_documents_give_the_end_of_the_largest(parts):
    texts = [f"{k}. " + "A line of text.\n\n" * (200 + k) for k in range(parts)]
    train, heldout, selection = chosen_texts(*corpus_of(texts), heldout_bytes=10**9)
    (largest,) = [text for text in train if text.startswith(f"{parts - 1}.")]
    assert largest + heldout[0] == texts[-1]
    assert largest.endswith("\n\n")
    share = len(heldout[0]) / sum(map(len, texts))
    assert 0.049 < share < 0.06
    assert selection.documents == parts
    assert "held out the last" in selection.notes[0]


def test_a_limit_without_room_for_a_character_is_refused():
    with pytest.raises(DataError, match="max_bytes = 2 leaves no text to train on"):
        chosen_texts(*corpus_of([f"{chr(0x4E00 + k)}" * 500 for k in range(30)]), max_bytes=2)


def test_text_that_is_all_held_out_or_too_small_is_refused():
    with pytest.raises(DataError, match="every document is held out"):
        chosen_texts(*corpus_of(TEXTS, ["heldout"] * 100))
    with pytest.raises(DataError, match="the corpus has 9 bytes of text and 1000 are the least"):
        chosen_texts(*corpus_of(["one line\n"]))
    with pytest.raises(DataError, match="the corpus has 0 bytes"):
        chosen_texts([], lambda start, stop: b"")


@pytest.mark.parametrize(
    ("text", "target", "expected"),
    [
        ("para\n\nline\nword word", 16, 6),
        ("line\nword word", 12, 5),
        ("word word", 7, 5),
        ("wordword", 3, 3),
        ("\u4e2d\u6587\u5b57", 6, 6),
        ("\u4e2d\u6587\u5b57", 7, 6),
        ("\u4e2d\u6587\u5b57", 8, 6),
        ("\u4e2d\u6587\u5b57", 1, 0),
        ("\U0001f600x", 4, 4),
        ("\U0001f600x", 5, 5),
    ],
)
def test_a_cut_falls_on_a_paragraph_a_line_a_word_or_a_character(text, target, expected):
    content = text.encode()
    assert cut_before(lambda start, stop: content[start:stop], 0, target) == expected
