"""The search: it gains on the validation rows, resumes, stops what lags, and never sees the test rows."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chinchilla_lm.core.errors import ConfigError
from chinchilla_lm.core.files import read_json
from chinchilla_lm.core.records import read_records
from chinchilla_lm.tune import search as module
from chinchilla_lm.tune.config import TuneConfig
from chinchilla_lm.tune.search import config_of_trial, search
from chinchilla_lm.tune.search_space import Dial, RandomChooser, Trial, dials_of, make_chooser

from .conftest import write_jsonl


@pytest.fixture
def config(configure: Callable[..., TuneConfig], tmp_path: Path, sentiment_rows: list[dict[str, Any]]) -> TuneConfig:
    other = str(write_jsonl(tmp_path / "dev.jsonl", [{**row, "text": f"so {row['text']}"} for row in sentiment_rows]))
    return configure(validation=other, test=other, lr=1e-4, epochs=2.0)  # lr far too low: the search should find more


def test_the_best_of_all_trials_is_the_run(config: TuneConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    tune, kept = module.tune, []

    def listen(chosen: TuneConfig, *display: Any) -> Any:
        kept.extend(path.parent.name for path in (Path(config.out) / "search").glob("trial-*/best"))
        return tune(chosen, *display)

    monkeypatch.setattr(module, "tune", listen)
    result = search(config, 3)
    found = result.record["search"]
    assert [trial["number"] for trial in found["trials"]] == [0, 1, 2]
    finished = [trial for trial in found["trials"] if trial["state"] == "finished"]
    best = next(trial for trial in found["trials"] if trial["number"] == found["best"])
    assert best["value"] == max(trial["value"] for trial in finished) == result.record["best"]["value"]
    assert found["trials"][0]["settings"]["lr"] == pytest.approx(1e-4)
    assert result.record["settings"]["lr"] == best["settings"]["lr"]
    assert read_json(result.folder / "tune.json")["search"]["best"] == found["best"]
    assert (result.folder / "model" / "config.json").is_file()
    assert kept == [f"trial-{found['best']:03d}"]  # while it is made the run
    assert not list((result.folder / "search").rglob("*.safetensors"))  # and then the run has them


def test_a_search_continues_and_asks_what_it_would_have_asked(config: TuneConfig, tmp_path: Path) -> None:
    whole = search(config, 2).record["search"]["trials"]
    again = TuneConfig(**{**vars(config), "out": str(tmp_path / "again")})
    splits = module._without_test(module.read_splits(again))
    chooser = make_chooser(dials_of(again, 1e-4), _own(again), again.seed)
    folder = tmp_path / "again" / "search"
    module._run_trial(module._Attempt(0, again, chooser.propose(0), splits, chooser), folder, module.Silent())
    resumed = search(again, 2).record["search"]["trials"]
    assert [trial["settings"] for trial in resumed] == [trial["settings"] for trial in whole]
    assert [trial["value"] for trial in resumed] == [trial["value"] for trial in whole]
    assert len(read_records(folder / "trials.jsonl")) == 2


def test_a_trial_that_is_stopped_leaves_the_loop_and_keeps_its_reports(
    config: TuneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Strict(RandomChooser):
        def goes_on(self, number: int, rung: int, score: float) -> bool:
            return number == 0

    monkeypatch.setattr(module, "make_chooser", lambda dials, own, seed: Strict(dials=dials, own=own, seed=seed))
    trials = search(config, 2).record["search"]["trials"]
    assert [trial["state"] for trial in trials] == ["finished", "stopped"]
    assert trials[1]["value"] is not None
    steps = read_records(Path(config.out) / "search" / "trial-001" / "records.jsonl", "evaluation/1")
    assert len(steps) == 1


def test_the_test_rows_are_read_only_after_the_choice(config: TuneConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    (Path(config.out).parent / "test.jsonl").write_text("not rows")
    bad = TuneConfig(**{**vars(config), "test": str(Path(config.out).parent / "test.jsonl")})
    monkeypatch.setattr(
        module, "tune", lambda chosen, display: pytest.fail("ended") if chosen.test is None else _Done()
    )
    with pytest.raises(_Reached):
        search(bad, 1)


def test_without_optuna_draws_are_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    dials = (Dial(name="lr", low=1e-5, high=1e-3), Dial(name="rows", values=(8, 16)))
    chooser = make_chooser(dials, {"lr": 1e-4, "rows": 8}, seed=1)
    assert isinstance(chooser, RandomChooser)
    assert chooser.propose(0) == {"lr": 1e-4, "rows": 8}
    assert chooser.propose(5) == make_chooser(dials, {}, seed=1).propose(5)
    drawn = [chooser.propose(number)["lr"] for number in range(1, 200)]
    assert 1e-5 <= min(drawn) < 2e-5
    assert 5e-4 < max(drawn) <= 1e-3


@pytest.mark.parametrize("has_optuna", [True, False])
def test_what_lags_is_stopped_and_what_leads_goes_on(has_optuna: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_optuna:
        monkeypatch.setitem(sys.modules, "optuna", None)
    chooser = make_chooser((Dial(name="lr", low=1e-5, high=1e-3),), {"lr": 1e-4}, seed=0)
    for number in range(4):
        chooser.propose(number)
        for rung in (1, 2):
            chooser.goes_on(number, rung, 0.8 + number / 100)
        chooser.finish(
            Trial(number=number, values={"lr": 1e-4}, reports={}, score=0.8 + number / 100, state="finished")
        )
    chooser.propose(4)
    assert not chooser.goes_on(4, 1, 0.1)
    chooser.finish(Trial(number=4, values={"lr": 1e-4}, reports={1: 0.1}, score=None, state="stopped"))
    chooser.propose(5)
    assert chooser.goes_on(5, 1, 0.99)


def test_dials_suit_the_method(config: TuneConfig) -> None:
    names = {dial.name for dial in dials_of(config, 3e-5)}
    assert {"lr", "rows", "epochs", "layer_decay"} <= names
    lora = TuneConfig(**{**vars(config), "method": "lora", "rank": 6, "steps": 10})
    dials = {dial.name: dial for dial in dials_of(lora, 5e-4)}
    assert dials["rank"].values == (4, 6, 8, 16, 32)
    assert "epochs" not in dials
    assert "layer_decay" not in dials


def test_a_trial_validates_at_every_rung(config: TuneConfig) -> None:
    micro = TuneConfig(**{**vars(config), "micro_batch": 8})
    chosen = config_of_trial(micro, {"rows": 4, "epochs": 2.0}, train_rows=40)
    assert (chosen.micro_batch, chosen.evaluate_every) == (4, 5)


def test_no_trials_are_refused(config: TuneConfig) -> None:
    with pytest.raises(ConfigError, match="search nothing"):
        search(config, 0)


class _Reached(Exception):
    pass


class _Done:
    @property
    def record(self) -> dict[str, Any]:
        raise _Reached


def _own(config: TuneConfig) -> dict[str, Any]:
    return {"lr": config.lr} | {dial.name: getattr(config, dial.name) for dial in dials_of(config, 1e-4)[1:]}
