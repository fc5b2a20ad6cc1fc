from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from chinchilla_lm.core import files
from chinchilla_lm.core.errors import ConfigError, DataError
from chinchilla_lm.data import prepare as prepare_module
from chinchilla_lm.data import shards
from chinchilla_lm.data.documents import read_documents
from chinchilla_lm.data.loader import TokenBatches
from chinchilla_lm.data.manifest import Manifest, load_manifest
from chinchilla_lm.data.prepare import prepare
from chinchilla_lm.data.shards import ShardWriter, document_offsets, open_tokens
from chinchilla_lm.data.tokenizer import load_tokenizer

OPTIONS = {"vocab": 320, "heldout_bytes": 3000}


def decoded_documents(manifest: Manifest, split: str) -> list[str]:
    stream = open_tokens(manifest, split)
    starts = document_offsets(manifest, split).astype(int).tolist()
    tokenizer = load_tokenizer(manifest.tokenizer_folder)
    found = []
    for start, stop in zip(starts, [*starts[1:], len(stream)], strict=True):
        ids = stream.read(start, stop).tolist()
        assert ids[0] == 0
        assert 0 not in ids[1:]
        found.append(tokenizer.decode(ids[1:]))
    return found


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def manifest(corpus, tmp_path_factory) -> Manifest:
    return prepare([str(corpus)], tmp_path_factory.mktemp("prepared"), **OPTIONS)


def test_the_tokens_are_the_documents(manifest, texts):
    train, heldout = decoded_documents(manifest, "train"), decoded_documents(manifest, "heldout")
    assert sorted(train + heldout) == sorted(texts)
    assert (manifest.train_documents, manifest.heldout_documents) == (len(train), len(heldout))
    assert manifest.kept == manifest.documents == len(texts)
    assert manifest.train_bytes == manifest.available_bytes == sum(len(text.encode()) for text in train)
    assert manifest.heldout_bytes == sum(len(text.encode()) for text in heldout) >= 3000
    assert manifest.bytes == sum(len(text.encode()) for text in texts)
    assert manifest.tokens == manifest.train_tokens + manifest.heldout_tokens
    assert manifest.train_tokens == len(open_tokens(manifest, "train"))
    assert manifest.vocab == 320
    assert open_tokens(manifest, "train").read(0, 1).dtype == np.uint16


def test_the_tokens_are_those_of_the_saved_tokenizer(manifest):
    tokenizer = load_tokenizer(manifest.tokenizer_folder)
    stream = open_tokens(manifest, "train")
    expected = [token for text in decoded_documents(manifest, "train") for token in [0, *tokenizer.encode(text).ids]]
    assert stream.read(0, len(stream)).tolist() == expected


def test_the_result_does_not_depend_on_names_batches_or_shards(tmp_path, texts, manifest, monkeypatch):
    for k, text in enumerate(reversed(texts)):
        (tmp_path / "files").mkdir(exist_ok=True)
        (tmp_path / "files" / f"{k}.txt").write_bytes(text.encode())
    monkeypatch.setattr(prepare_module, "_BATCH_BYTES", 700)
    monkeypatch.setattr(shards, "SHARD_TOKENS", 1000)
    other = prepare([str(tmp_path / "files")], tmp_path / "out", **OPTIONS)
    assert len(other.shards) == -(-other.train_tokens // 1000) + -(-other.heldout_tokens // 1000)
    assert {shard.tokens for shard in other.shards if shard.split == "train"} > {1000}
    for split in ("train", "heldout"):
        ours, theirs = open_tokens(manifest, split), open_tokens(other, split)
        np.testing.assert_array_equal(ours.read(0, len(ours)), theirs.read(0, len(theirs)))
        np.testing.assert_array_equal(document_offsets(manifest, split), document_offsets(other, split))
    batch, other_batch = (TokenBatches(m, context=64, rows=8, seed=0).at(3)[0] for m in (manifest, other))
    np.testing.assert_array_equal(batch, other_batch)


def test_copies_are_left_out_and_a_held_out_copy_never_trains(tmp_path, make_texts, write_json_lines):
    texts = make_texts(30)
    write_json_lines(tmp_path / "corpus/train.jsonl", [*texts, texts[0], " \n", texts[1]])
    write_json_lines(tmp_path / "corpus/val.jsonl", [texts[2], "only here " * 20])
    write_json_lines(tmp_path / "corpus/test.jsonl", ["secret " * 20])
    manifest = prepare([str(tmp_path / "corpus")], tmp_path / "out", vocab=300)
    assert (manifest.documents, manifest.duplicates, manifest.empty, manifest.kept) == (34, 3, 1, 31)
    assert sorted(decoded_documents(manifest, "heldout")) == sorted([texts[2], "only here " * 20])
    assert sorted(decoded_documents(manifest, "train")) == sorted(texts[:2] + texts[3:])
    assert any("held out 2 of the 2 documents" in note for note in manifest.notes)
    assert any("1 files were left out, the first is test.jsonl" in note for note in manifest.notes)


def test_max_bytes_limits_training_and_says_what_there_was(tmp_path, corpus, manifest):
    small = prepare([str(corpus)], tmp_path / "out", **OPTIONS, max_bytes=9_000)
    assert 8_000 < small.train_bytes <= 9_000
    assert small.available_bytes == manifest.train_bytes
    assert decoded_documents(small, "heldout") == decoded_documents(manifest, "heldout")
    few, all_documents = decoded_documents(small, "train"), decoded_documents(manifest, "train")
    assert few[:-1] == all_documents[: len(few) - 1]
    assert all_documents[len(few) - 1].startswith(few[-1])
    assert any("max_bytes took" in note for note in small.notes)


def test_one_document_is_divided_at_a_line(tmp_path, make_texts):
    text = "".join(make_texts(30))
    (tmp_path / "book.txt").write_bytes(text.encode())
    manifest = prepare(str(tmp_path / "book.txt"), tmp_path / "out", vocab=300)
    (train,), (heldout,) = decoded_documents(manifest, "train"), decoded_documents(manifest, "heldout")
    assert train + heldout == text
    assert 0.05 <= manifest.heldout_bytes / manifest.bytes < 0.08
    assert manifest.kept == 1
    assert "no document is small enough" in manifest.notes[0]


def test_text_about_special_tokens_is_only_text(tmp_path, make_texts, write_json_lines):
    text = "the token <|endoftext|> ends a document\n" * 100
    write_json_lines(tmp_path / "a.jsonl", [text, *make_texts(20)])
    manifest = prepare(str(tmp_path / "a.jsonl"), tmp_path / "out", vocab=300)
    assert text in decoded_documents(manifest, "train") + decoded_documents(manifest, "heldout")


def test_a_wide_vocabulary_needs_32_bits(tmp_path):
    ids = np.array([0, 70_000, 65_535])
    with ShardWriter(tmp_path, "train", vocab=70_001, shard_tokens=2) as writer:
        writer.add(ids, starts_document=True)
        writer.add(ids, starts_document=True)
    arrays = [np.load(tmp_path / shard.file, allow_pickle=False) for shard in writer.shards]
    assert {array.dtype for array in arrays} == {np.dtype("uint32")}
    assert np.concatenate(arrays).tolist() == [*ids, *ids]
    assert [np.load(tmp_path / shard.offsets_file).tolist() for shard in writer.shards] == [[0], [1], []]


def test_progress_reaches_the_whole_text(tmp_path, corpus, monkeypatch):
    monkeypatch.setattr(prepare_module, "_BATCH_BYTES", 5_000)
    calls = []
    manifest = prepare(
        str(corpus), tmp_path / "out", **OPTIONS, progress=lambda done, total: calls.append((done, total))
    )
    assert {total for _, total in calls} == {manifest.bytes}
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})
    assert calls[-1][0] == manifest.bytes
    assert len(calls) > 3


def test_a_finished_folder_is_returned_and_other_arguments_are_refused(manifest, corpus, texts):
    before = {path: path.stat().st_mtime_ns for path in manifest.folder.rglob("*")}
    again = prepare(str(corpus), manifest.folder, **OPTIONS)
    assert again == manifest == load_manifest(manifest.folder, verify=False)
    assert {path: path.stat().st_mtime_ns for path in manifest.folder.rglob("*")} == before
    with pytest.raises(DataError, match=r"was prepared with vocab = 320, not 321; choose another folder"):
        prepare(str(corpus), manifest.folder, vocab=321, heldout_bytes=3000)
    with pytest.raises(DataError, match="was prepared with seed = 0, not 1"):
        prepare(str(corpus), manifest.folder, **OPTIONS, seed=1)


def test_a_moved_folder_is_the_same_folder(tmp_path, corpus):
    manifest = prepare(str(corpus), tmp_path / "here", **OPTIONS)
    (tmp_path / "here").rename(tmp_path / "there")
    moved = load_manifest(tmp_path / "there")
    assert dataclasses.replace(moved, folder=manifest.folder) == manifest
    assert (moved.tokenizer_folder / "tokenizer.json").is_file()


def test_a_changed_file_is_named_with_the_way_out(tmp_path, corpus):
    folder = prepare(str(corpus), tmp_path / "out", **OPTIONS).folder
    names = [name for name in content_of(folder) if name.endswith((".npy", "tokenizer.json"))]
    assert len(names) == 5
    for name in names:
        whole = (folder / name).read_bytes()
        place = random.Random(name).randrange(128, len(whole))
        flipped = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
        for broken in (flipped, whole[:-1], None):
            (folder / name).write_bytes(broken) if broken is not None else (folder / name).unlink()
            with pytest.raises(DataError, match="prepare again") as error:
                load_manifest(folder)
            assert Path(name).stem.split(".")[0] in str(error.value)
        (folder / name).write_bytes(whole)
    load_manifest(folder)
    (folder / names[0]).write_bytes(flipped)
    load_manifest(folder, verify=names[0].endswith("json"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record.update(schema="manifest/2"), "this version reads 'manifest/1'"),
        (lambda record: record.pop("vocab"), "missing key 'vocab'"),
        (lambda record: record.update(surprise=1), "unknown key 'surprise'"),
    ],
)
def test_a_manifest_of_another_version_is_refused(tmp_path, manifest, change, message):
    record = json.loads((manifest.folder / "manifest.json").read_text())
    change(record)
    (tmp_path / "manifest.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match=message):
        load_manifest(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab": 256}, "vocab = 256 must be from 257"),
        ({"vocab": 300, "seed": -1}, "seed = -1 must be"),
        ({"vocab": 300, "max_bytes": 0}, "max_bytes = 0 must be > 0"),
        ({"vocab": 300, "heldout_bytes": 0}, "heldout_bytes = 0 must be > 0"),
        ({"vocab": 300, "sources": ()}, "sources is empty"),
    ],
)
def test_impossible_arguments_are_refused_before_anything_is_written(tmp_path, corpus, options, message):
    with pytest.raises(ConfigError, match=message):
        prepare(**{"sources": str(corpus), "out": tmp_path / "out", **options})
    assert not (tmp_path / "out").exists()


def test_text_that_cannot_be_prepared_leaves_no_temporary_files(tmp_path):
    (tmp_path / "line.txt").write_text("one line is not a corpus\n")
    with pytest.raises(DataError, match="1000 are the least"):
        prepare(str(tmp_path / "line.txt"), tmp_path / "out", vocab=300)
    assert content_of(tmp_path / "out") == {}
    with pytest.raises(DataError, match="was not prepared to the end"):
        load_manifest(tmp_path / "out")


@pytest.mark.parametrize("room", [1, 5_000, 12_000, 24_000, 30_000, 33_000, 37_000, 41_000, 1 << 20])
def test_a_disk_that_takes_no_more_is_one_line_and_the_same_call_goes_on(tmp_path, write_json_lines, room):
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghij", k=6)) for _ in range(200)]
    source = write_json_lines(tmp_path / "text.jsonl", [" ".join(rng.choices(words, k=30)) for _ in range(150)])
    whole = prepare(str(source), tmp_path / "whole", vocab=300)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))  # a write stops half-way, and so does the close after
    try:
        if room < 40_000:
            with pytest.raises(DataError, match="File too large; check the disk"):
                prepare(str(source), tmp_path / "out", vocab=300)
        else:
            prepare(str(source), tmp_path / "out", vocab=300)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp")]
    again = prepare(str(source), tmp_path / "out", vocab=300)
    assert again.shards == whole.shards


def test_shards_that_the_disk_cannot_hold_are_refused_before_the_long_work(tmp_path, corpus, monkeypatch):
    monkeypatch.setattr(files, "free_bytes", lambda path: 1000)
    with pytest.raises(DataError, match="the shards of the training text need about .* and 1000 B are free"):
        prepare(str(corpus), tmp_path / "out", vocab=300)
    assert not list((tmp_path / "out").glob("train-*"))


def test_a_vocabulary_that_the_text_cannot_fill_is_said(tmp_path, write_json_lines):
    write_json_lines(tmp_path / "a.jsonl", [f"{k} abab abab" * 9 for k in range(50)])
    manifest = prepare(str(tmp_path / "a.jsonl"), tmp_path / "out", vocab=5000)
    assert 257 < manifest.vocab < 1000
    assert any("not 5000" in note for note in manifest.notes)


# A child process dies, without any clean-up, at the k-th flush or rename; k runs over all of them.
_DIE_AT_EVERY_CALL = """
import os, sys
from pathlib import Path
from chinchilla_lm.data import shards
from chinchilla_lm.data.prepare import prepare

shards.SHARD_TOKENS = 9000
corpus, out = sys.argv[1:]
k, code = 0, 1
while code:
    k += 1
    child = os.fork()
    if child == 0:
        calls = 0
        def dying(call):
            def wrapper(*arguments):
                global calls
                calls += 1
                if calls == k:
                    os._exit(9)
                return call(*arguments)
            return wrapper
        os.replace, os.fsync = dying(os.replace), dying(os.fsync)
        prepare(corpus, Path(out, str(k)), vocab=320, heldout_bytes=3000)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(k - 1)
"""


def run_script(script: str, *arguments: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_a_job_killed_at_any_write_is_begun_again_with_the_same_result(tmp_path, corpus, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_TOKENS", 9000)
    prepare(str(corpus), tmp_path / "whole", **OPTIONS)
    expected = content_of(tmp_path / "whole")
    script = run_script(_DIE_AT_EVERY_CALL, corpus, tmp_path / "killed")
    output, _ = script.communicate(timeout=120)
    assert script.returncode == 0
    deaths = int(output)
    assert deaths > 20  # shards, offsets, three tokenizer files, the manifest: flush and rename of each
    finished = 0
    for k in range(1, deaths + 1):
        out = tmp_path / "killed" / str(k)
        if (out / "manifest.json").exists():
            load_manifest(out)
            finished += 1
        elif k % 6:
            continue  # a second call costs a third of a second
        prepare(str(corpus), out, **OPTIONS)
        assert content_of(out) == expected, k
    assert finished == 1  # killed between the rename of the manifest and the flush of its folder


@pytest.mark.torture
def test_fifty_kills_at_random_instants_leave_the_result_of_one_quiet_run(tmp_path, make_texts, write_json_lines):
    corpus = write_json_lines(tmp_path / "corpus.jsonl", make_texts(1000, words=300))
    started = time.monotonic()
    prepare(str(corpus), tmp_path / "whole", vocab=2000)
    seconds = time.monotonic() - started
    call = "import sys; from chinchilla_lm.data.prepare import prepare; prepare(*sys.argv[1:], vocab=2000)"
    instants = random.Random(0)
    for _ in range(50):
        child = run_script(call, corpus, tmp_path / "killed")
        try:
            child.wait(timeout=instants.uniform(0.2, seconds + 1))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        if (tmp_path / "killed" / "manifest.json").exists():
            load_manifest(tmp_path / "killed")
            (tmp_path / "killed" / "manifest.json").unlink()
    prepare(str(corpus), tmp_path / "killed", vocab=2000)
    assert content_of(tmp_path / "killed") == content_of(tmp_path / "whole")


def test_shards_of_an_earlier_killed_call_are_removed(tmp_path, corpus):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "train-00007.npy").write_bytes(b"old")
    (tmp_path / "out" / "train-notes.npy").write_bytes(b"not ours")
    prepare(str(corpus), tmp_path / "out", **OPTIONS)
    assert not (tmp_path / "out" / "train-00007.npy").exists()
    assert (tmp_path / "out" / "train-notes.npy").exists()


def test_english_books_are_prepared_whole(shared_data, tmp_path):
    source = shared_data / "corpus-en-mini"
    manifest = prepare(str(source), tmp_path / "out", vocab=1024, max_bytes=400_000)
    (train,), (heldout,) = decoded_documents(manifest, "train"), decoded_documents(manifest, "heldout")
    assert (source / "train.txt").read_bytes().decode().startswith(train)
    assert heldout == (source / "val.txt").read_bytes().decode()
    assert 2.3 < manifest.heldout_bytes / manifest.heldout_tokens < 3.3
    assert manifest.available_bytes == (source / "train.txt").stat().st_size


def test_chinese_chapters_are_prepared_whole(shared_data, tmp_path):
    source = shared_data / "corpus-zh-luxun"
    manifest = prepare(str(source), tmp_path / "out", vocab=512, max_bytes=200_000)
    originals = {hashlib.sha256(d.text.encode()).digest(): d.split for d in read_documents(str(source))}
    heldout, train = decoded_documents(manifest, "heldout"), decoded_documents(manifest, "train")
    assert {originals[hashlib.sha256(text.encode()).digest()] for text in heldout} == {"heldout"}
    assert {originals[hashlib.sha256(text.encode()).digest()] for text in train[:-1]} == {"train"}
