from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chinchilla_lm.core.errors import DataError
from chinchilla_lm.data.loader import TokenBatches, count_windows, heldout_windows
from chinchilla_lm.data.prepare import prepare
from chinchilla_lm.data.shards import TokenStream, document_offsets, open_tokens
from chinchilla_lm.data.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def manifest(corpus, tmp_path_factory):
    return prepare(str(corpus), tmp_path_factory.mktemp("prepared"), vocab=300, heldout_bytes=3000)


def epoch_starts(batches: TokenBatches, epoch: int) -> list[int]:
    """First token of each window of an epoch, found from batches of a stream that counts 0, 1, 2 ..."""
    first = epoch * batches.windows
    return [int(batches.at(step)[0][0, 0]) for step in range(first, first + batches.windows)]


@pytest.mark.parametrize(("tokens", "context"), [(1000, 16), (1001, 16), (17, 16), (18, 16), (40, 16), (50, 1), (2, 1)])
def test_an_epoch_has_each_window_once_and_each_token_is_a_target_at_most_once(tokens, context):
    batches = TokenBatches(np.arange(tokens), context=context, rows=1, seed=3)
    for epoch in range(4):
        starts = epoch_starts(batches, epoch)
        phase = min(starts)
        assert sorted(starts) == list(range(phase, phase + batches.windows * context, context))
        assert phase < context
        assert phase + batches.windows * context + 1 <= tokens
    # At most one window is lost to the phase, and less than one to the end.
    assert batches.windows * context >= tokens - 1 - 2 * (context - 1) or batches.windows == 1


def test_targets_are_the_inputs_moved_on_by_one():
    batches = TokenBatches(np.arange(500, dtype=np.uint16), context=20, rows=6, seed=0)
    inputs_bt, targets_bt = batches.at(7)
    assert inputs_bt.shape == targets_bt.shape == (6, 20)
    assert inputs_bt.dtype == targets_bt.dtype == np.int64
    assert inputs_bt.flags.c_contiguous
    assert targets_bt.flags.c_contiguous
    np.testing.assert_array_equal(targets_bt, inputs_bt + 1)
    np.testing.assert_array_equal(np.diff(inputs_bt), 1)


def test_epochs_and_seeds_have_their_own_order_and_phase():
    batches = TokenBatches(np.arange(5000), context=32, rows=1, seed=0)
    epochs = [epoch_starts(batches, epoch) for epoch in range(6)]
    assert len({tuple(np.argsort(starts)) for starts in epochs}) == 6
    assert len({min(starts) for starts in epochs}) > 3
    other = TokenBatches(np.arange(5000), context=32, rows=1, seed=1)
    assert epoch_starts(other, 0) != epochs[0]
    assert epochs[0] != sorted(epochs[0])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 200), min_size=1, max_size=20), st.integers(0, 2**63 - 1))
def test_batches_are_a_pure_function_of_the_step_in_any_order(steps, seed):
    tokens = np.arange(700)
    batches = TokenBatches(tokens, context=16, rows=8, seed=seed)
    for step in steps:
        resumed = TokenBatches(tokens, context=16, rows=8, seed=seed)
        np.testing.assert_array_equal(batches.at(step)[0], resumed.at(step)[0])


@pytest.mark.parametrize("world", [1, 2, 4])
def test_any_number_of_ranks_sees_the_same_global_batch(world):
    tokens = np.arange(900)
    whole = TokenBatches(tokens, context=16, rows=8, seed=5)
    ranks = [TokenBatches(tokens, context=16, rows=8, seed=5, rank=rank, world=world) for rank in range(world)]
    for step in (0, 3, 6, 7, 50):  # an epoch ends within a batch: 55 windows, 8 rows
        parts = [rank.at(step) for rank in ranks]
        assert {inputs.shape for inputs, _ in parts} == {(8 // world, 16)}
        for both, wanted in zip(zip(*parts, strict=True), whole.at(step), strict=True):
            np.testing.assert_array_equal(np.concatenate(both), wanted)


def test_a_batch_may_be_larger_than_an_epoch():
    batches = TokenBatches(np.arange(100), context=16, rows=32, seed=0)
    assert batches.windows == 5
    assert batches.at(2)[0].shape == (32, 16)
    assert batches.tokens == 100


def test_the_order_is_the_one_that_earlier_versions_drew():
    """A resumed job must see the same batches: numpy or a change of ours would break this silently."""
    batches = TokenBatches(np.arange(1000), context=16, rows=4, seed=42)
    assert [batches.at(step)[0][:, 0].tolist() for step in (0, 1, 30)] == GOLDEN


GOLDEN = [[829, 957, 333, 557], [605, 173, 381, 269], [723, 131, 322, 642]]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.data())
def test_several_shards_read_as_one(lengths, data):
    whole = np.arange(sum(lengths), dtype=np.uint16)
    stream = TokenStream(np.split(whole, np.cumsum(lengths)[:-1]))
    assert len(stream) == len(whole)
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    np.testing.assert_array_equal(stream.read(start, stop), whole[start:stop])


def test_a_prepared_folder_gives_its_own_tokens(manifest):
    stream = open_tokens(manifest, "train")
    whole = stream.read(0, len(stream))
    batches = TokenBatches(manifest.folder, context=16, rows=4, seed=0)
    assert batches.tokens == manifest.train_tokens == len(whole)
    windows = {tuple(window) for window in np.lib.stride_tricks.sliding_window_view(whole, 16).tolist()}
    assert all(tuple(row) in windows for row in batches.at(11)[0].tolist())
    assert (whole[document_offsets(manifest, "train").astype(np.int64)] == 0).all()


def test_held_out_windows_cover_the_split_once_with_exact_bytes(manifest):
    heldout = heldout_windows(manifest.folder, 16)
    stream = open_tokens(manifest, "heldout")
    whole = stream.read(0, len(stream))
    assert heldout.tokens == (len(whole) - 1) // 16 * 16
    np.testing.assert_array_equal(heldout.targets_nt.ravel(), whole[1 : heldout.tokens + 1])
    np.testing.assert_array_equal(heldout.inputs_nt.ravel(), whole[: heldout.tokens])
    tokenizer = load_tokenizer(manifest.tokenizer_folder)
    text = tokenizer.decode(heldout.targets_nt.ravel().tolist(), skip_special_tokens=True)
    left = tokenizer.decode(whole[heldout.tokens + 1 :].tolist(), skip_special_tokens=True)
    assert "\ufffd" not in text + left, "choose another context: a character is cut"
    assert heldout.bytes == len(text.encode()) == manifest.heldout_bytes - len(left.encode())


def test_fewer_held_out_windows_are_spread_over_the_split(manifest):
    everything = heldout_windows(manifest, 16)
    some = heldout_windows(manifest, 16, max_tokens=16 * 10 + 5)
    assert some.inputs_nt.shape == (10, 16)
    rows = {tuple(row): place for place, row in enumerate(everything.inputs_nt.tolist())}
    places = [rows[tuple(row)] for row in some.inputs_nt.tolist()]
    assert places == sorted(places)
    gaps = np.diff([*places, len(rows)])
    assert gaps.max() - gaps.min() <= 1
    np.testing.assert_array_equal(some.target_bytes_n, everything.target_bytes_n[places])


def test_what_does_not_fit_is_refused(manifest):
    with pytest.raises(DataError, match="the train split has 16 tokens and a window of context 16 needs 17"):
        TokenBatches(np.arange(16), context=16, rows=1, seed=0)
    with pytest.raises(DataError, match=r"rows = 3 must be a multiple of world = 2"):
        TokenBatches(np.arange(100), context=16, rows=3, seed=0, world=2)
    with pytest.raises(DataError, match="prepare more text, or choose a shorter context"):
        heldout_windows(manifest, 10**6)
    with pytest.raises(DataError, match="ask for at least 16"):
        heldout_windows(manifest, 16, max_tokens=15)
    with pytest.raises(DataError, match="its splits are 'train' and 'heldout'"):
        TokenBatches(manifest, split="test", context=16, rows=1, seed=0)  # type: ignore[arg-type]
    assert count_windows(17, 16) == 1
