"""Tunings on nested parts: same test rows, kept shares of labels, continued after a stop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from chinchilla_lm.core.errors import DataError
from chinchilla_lm.tune import learning_curve
from chinchilla_lm.tune.config import TuneConfig
from chinchilla_lm.tune.learning_curve import config_of_part, nested_order, tune_fractions


@pytest.fixture
def config(configure: Callable[..., TuneConfig]) -> TuneConfig:
    return configure()


def test_parts_are_tuned_measured_on_the_same_rows_and_fitted(
    config: TuneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = tune_fractions(config, (0.25, 0.5))
    found = result.record["learning_curve"]
    assert [point["rows"] for point in found["points"]] == [40, 10, 10, 20]
    assert found["points"][0]["value"] == result.record["metrics_after"]["accuracy"]
    assert found["doubled"]["rows"] == 80
    assert any("10 rows for 2 labels" in warning for warning in found["warnings"])
    assert result.record["metrics_before"] is not None
    parts = sorted(path.name for path in (result.folder / "fractions").iterdir())
    assert parts == ["rows-000010-0", "rows-000010-1", "rows-000020-0"]
    assert not list((result.folder / "fractions").glob("*/checkpoints"))
    monkeypatch.setattr(learning_curve, "learn", lambda *_: pytest.fail("trained again"))
    assert tune_fractions(config, (0.25, 0.5)).record["learning_curve"] == found


def test_a_beginning_has_the_shares_of_the_whole_and_is_nested() -> None:
    rows = [{"label": "a"}] * 60 + [{"label": "b"}] * 30 + [{"label": "c"}] * 10
    order = nested_order(rows, seed=4)
    assert sorted(order) == list(range(100))
    for count in (10, 25, 50):
        taken = Counter(rows[number]["label"] for number in order[:count])
        assert all(abs(taken[label] - count * share) <= 1 for label, share in (("a", 0.6), ("b", 0.3), ("c", 0.1)))
    assert nested_order(rows, seed=4) == order != nested_order(rows, seed=5)
    assert sorted(nested_order([{"tokens": []}] * 5, seed=0)) == list(range(5))


def test_small_parts_get_more_epochs_but_not_more_updates(config: TuneConfig, tmp_path: Path) -> None:
    part = config_of_part(config, 100, 400, tmp_path)
    assert part.epochs == 2 * config.epochs
    assert config_of_part(config, 1, 400, tmp_path).epochs == 4 * config.epochs
    fixed = TuneConfig(**{**vars(config), "steps": 80, "micro_batch": 8})
    assert config_of_part(fixed, 100, 400, tmp_path).steps == 40
    assert config_of_part(fixed, 5, 400, tmp_path).micro_batch == 5


def test_parts_of_hardly_any_rows_are_refused(config: TuneConfig) -> None:
    with pytest.raises(DataError, match="a part of 0.1 of 40 rows has 4"):
        tune_fractions(config, (0.1, 0.5))
