"""A run's rows and its neighbours: files that changed, odd line ends, folders of another search."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chinchilla_lm.core.errors import CheckpointError
from chinchilla_lm.tune import augmentation
from chinchilla_lm.tune import search as search_module
from chinchilla_lm.tune.config import TuneConfig
from chinchilla_lm.tune.loading import load_tuned
from chinchilla_lm.tune.search import search
from chinchilla_lm.tune.splits import read_splits
from chinchilla_lm.tune.stages import Silent, read_predictions, write_predictions
from chinchilla_lm.tune.tuning import tune

from .conftest import save_tiny_model, write_jsonl

Rows = list[dict[str, Any]]


@pytest.fixture
def files(tmp_path: Path, sentiment_rows: Rows) -> Callable[[str, Rows], str]:
    """(name, rows) -> path of a new file of them."""
    return lambda name, rows: str(write_jsonl(tmp_path / f"{name}.jsonl", rows))


def test_predictions_come_back_for_their_own_rows_only(tmp_path: Path) -> None:
    """Line separators that JSON leaves as they are; and rows as many, but others."""
    rows = [{"text": "a\u2028b\u0085c\u2029", "label": "x"}, {"text": "d", "label": ["y", "x"]}]
    said = [{"label": "x"}, {"label": ["y"]}]
    write_predictions(tmp_path, "before", rows, said)
    path = tmp_path / "predictions" / "before.jsonl"
    assert read_predictions(path, rows) == said
    assert read_predictions(path, [*rows, rows[0]]) is None
    assert read_predictions(path, [rows[0], {"text": "d", "label": ["x"]}]) is None
    assert read_predictions(path, [rows[0], {"text": "e", "label": ["y", "x"]}]) is None
    assert read_predictions(tmp_path / "none.jsonl", rows) is None


def test_offered_texts_with_odd_line_ends_are_read_again(configure: Callable[..., TuneConfig], tmp_path: Path) -> None:
    offered = [{"text": "a\u2028b", "label": "x", "predicted": "x", "probability": 0.9}]
    write_jsonl(tmp_path / "offered.jsonl", offered)
    config = configure()
    assert augmentation._offered(config, read_splits(config), 1, tmp_path, Silent()) == offered


@pytest.mark.parametrize("changed", ["train", "validation", "test"])
def test_a_run_whose_rows_have_changed_is_neither_resumed_nor_read_as_new(
    configure: Callable[..., TuneConfig], files: Callable[[str, Rows], str], sentiment_rows: Rows, changed: str
) -> None:
    paths = {name: files(name, sentiment_rows) for name in ("train", "validation", "test")}
    config = configure(steps=2, **paths)
    finished = tune(config)
    load_tuned(finished.folder)
    files(changed, [{**row, "text": row["text"] + " !"} for row in sentiment_rows])
    with pytest.raises(CheckpointError, match=rf"{changed}.jsonl has changed since .*; write to a new folder"):
        tune(config)
    with pytest.raises(CheckpointError, match="has changed since"):
        load_tuned(finished.folder)
    files(changed, sentiment_rows)
    assert tune(config).record == finished.record
    Path(paths[changed]).unlink()  # gone, but not another one: what was finished can still be read
    assert tune(config).record == finished.record


def test_a_run_whose_model_has_changed_is_refused(configure: Callable[..., TuneConfig], tmp_path: Path) -> None:
    """Other weights of the same sizes, as a second pretraining into one folder leaves them."""
    folder = save_tiny_model("qwen3", tmp_path / "model")
    config = configure(model=str(folder), steps=1)
    finished = tune(config)
    save_tiny_model("qwen3", folder, seed=1)
    with pytest.raises(CheckpointError, match="model has changed since"):
        tune(config)
    with pytest.raises(CheckpointError, match="model has changed since"):
        load_tuned(finished.folder)
    save_tiny_model("qwen3", folder)
    assert tune(config).record == finished.record


def test_a_search_of_something_else_is_not_taken_over(
    configure: Callable[..., TuneConfig], files: Callable[[str, Rows], str], sentiment_rows: Rows
) -> None:
    config = configure(steps=4, train=files("mine", sentiment_rows))
    search(config, 1)
    other = configure(steps=4, train=config.train, weight_decay=0.3)
    with pytest.raises(CheckpointError, match="another weight_decay"):
        search(other, 1)
    with pytest.raises(CheckpointError, match="a run that 1 trials chose, and 2 may choose another"):
        search(config, 2)
    files("mine", sentiment_rows[1:])
    with pytest.raises(CheckpointError, match="has changed"):
        search(config, 1)


def test_a_search_does_not_begin_in_the_folder_of_a_run(configure: Callable[..., TuneConfig]) -> None:
    finished = tune(configure(steps=1))
    with pytest.raises(CheckpointError, match="0 trials chose"):
        search(configure(steps=1), 2)
    assert not (finished.folder / "search").exists()


@pytest.mark.parametrize("last", [0, 1])
def test_a_search_killed_while_it_hands_over_goes_on(
    configure: Callable[..., TuneConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, last: int
) -> None:
    whole = search(configure(steps=4, out=str(tmp_path / "whole")), 1).record
    config, real, renamed = configure(steps=4), search_module.replace_directory, []

    def replace_some(temporary: Path, final: Path) -> None:
        renamed.append(final)
        if len(renamed) > last:
            raise KeyboardInterrupt
        real(temporary, final)

    monkeypatch.setattr(search_module, "replace_directory", replace_some)
    with pytest.raises(KeyboardInterrupt):
        search(config, 1)
    monkeypatch.setattr(search_module, "replace_directory", real)
    assert search(config, 1).record["metrics_after"] == whole["metrics_after"]
