"""The probe's vertex, trunks, and which trials become a law's runs; the registry; the choice of the final size."""

from __future__ import annotations

import math
import resource
import sqlite3
from dataclasses import replace

import pytest

from chinchilla_lm.core.errors import BudgetError, DataError
from chinchilla_lm.laws.count import count_parameters, training_flops_per_token
from chinchilla_lm.laws.forms.additive import AdditiveLaw
from chinchilla_lm.laws.shapes import shape_on_path
from chinchilla_lm.laws.trust.bracket import Run
from chinchilla_lm.study.decide import flat_band, rank_candidates
from chinchilla_lm.study.registry import Registry
from chinchilla_lm.study.sweep import asked_of, best_scale, ladder_runs, seed_scatter
from chinchilla_lm.study.trial import TrialSpec, trunk_config, trunk_reaches

SHAPE = shape_on_path(64, vocab=1024, context=128)


def parabola(best: float) -> list[float]:
    return [4 + 0.1 * (math.log(k) - math.log(best)) ** 2 for k in (0.5, 1.0, 2.0)]


@pytest.mark.parametrize("best", [0.5, 0.6, 1.7, 2.0])
def test_the_probe_finds_the_vertex_of_a_parabola(best):
    assert best_scale([0.5, 1.0, 2.0], parabola(best)) == pytest.approx(best, rel=0.01)


def test_a_gain_within_seed_noise_keeps_one_and_a_far_vertex_is_bounded():
    assert best_scale([0.5, 1.0, 2.0], parabola(1.3)) == 1.0
    assert best_scale([0.5, 1.0, 2.0], [4.8497, 4.8393, 4.8390]) == 1.0  # measured: the difference is seed noise
    assert best_scale([0.5, 1.0, 2.0], [3.0, 2.0, 0.9]) == 2.0  # no minimum: the best one tried
    assert best_scale([0.5, 1.0, 2.0], parabola(0.01)) == 0.5
    assert best_scale([0.5, 1.0, 2.0], [4.2261, 4.1895, 4.1712]) == 2.0  # measured: 4.2801 at 2.8, where the vertex lay


def test_diverged_probes_are_left_out():
    assert best_scale([0.5], [4.0]) == 0.5
    assert best_scale([], []) == 0.5


def test_a_trunk_has_room_for_one_rung_up_and_no_cooldown_of_its_own():
    tokens = 1e6
    spec = TrialSpec(trial="t", purpose="ladder", rung=0, flops=1e12, shape=SHAPE, design_tokens=tokens)
    trunk = trunk_config(spec)
    assert trunk.schedule.decay_steps == 0
    assert trunk.tokens >= math.sqrt(10) * tokens
    assert trunk_reaches(spec.design_tokens, math.sqrt(10) * tokens)
    assert not trunk_reaches(spec.design_tokens, 10 * tokens)


def test_the_law_takes_finished_ladder_trials_at_the_rate_the_sweep_settled_on():
    def record(trial, **changes):
        base = {"trial": trial, "purpose": "ladder", "status": "done", "lr_scale": 0.7, "rung": 0, "loss": 3.0}
        return {**base, "params_matmul": 10, "tokens": 100, "flops": 6000.0, **changes}

    records = [
        record("k1", lr_scale=1.0),
        record("probe", purpose="probe"),
        record("nan", status="diverged", loss=None),
        record("a"),
        record("b", rung=1, loss=2.5),
    ]
    assert [run.loss for run in ladder_runs(records)] == [3.0, 2.5]


def test_the_scatter_of_seeds_pools_the_repeat_with_what_is_known():
    def record(purpose, loss, **changes):
        base = {
            "purpose": purpose,
            "status": "done",
            "lr_scale": 1.0,
            "rung": 0,
            "loss": loss,
            "shape": {"d_model": 32},
        }
        return {**base, **changes}

    first, other_size = record("ladder", 4.0), record("ladder", 9.0, shape={"d_model": 48})
    assert seed_scatter([first, other_size]) == pytest.approx(0.003)
    again = record("repeat", 4.0 * math.exp(0.01))
    assert seed_scatter([first, other_size, again]) == pytest.approx(math.sqrt((4 * 0.003**2 + 0.01**2 / 2) / 5))
    assert seed_scatter([first, record("repeat", None, status="diverged")]) == pytest.approx(0.003)


def test_the_registry_keeps_results_and_refuses_another_spec_of_the_same_name(tmp_path):
    registry = Registry(tmp_path / "registry.sqlite")
    assert registry.result("a", {"flops": 1.0}) is None
    assert registry.begin("a", {"flops": 1.0}) == 1
    assert registry.begin("a", {"flops": 1.0}) == 2
    registry.finish("a", {"loss": 3.25})
    assert Registry(tmp_path / "registry.sqlite").result("a", {"flops": 1.0}) == {"loss": 3.25}
    with pytest.raises(DataError, match="other settings"):
        registry.result("a", {"flops": 2.0})


def test_a_sweep_goes_on_with_another_number_of_threads(tmp_path):
    registry = Registry(tmp_path / "registry.sqlite")
    spec = TrialSpec(trial="t", purpose="ladder", rung=0, flops=1e12, shape=SHAPE, design_tokens=1e6, threads=4)
    for number, stored in enumerate((asked_of(spec), spec.to_dict())):  # the second: of a sweep begun before 2026-11-22
        registry.begin(f"t{number}", stored)
        registry.finish(f"t{number}", {"loss": 3.0})
        assert registry.result(f"t{number}", asked_of(replace(spec, threads=1))) == {"loss": 3.0}
        with pytest.raises(DataError, match="other settings"):
            registry.result(f"t{number}", asked_of(replace(spec, seed=1)))


def test_a_full_disk_never_advises_to_delete_the_finished_trials(tmp_path):
    registry = Registry(tmp_path / "registry.sqlite")
    registry.begin("a", {"flops": 1.0})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # less than the files of a write-ahead log
    try:
        with pytest.raises(DataError) as caught:
            registry.finish("a", {"curve": "x" * 50_000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "check the disk" in str(caught.value)
    assert "delete" not in str(caught.value)
    full = sqlite3.OperationalError("database or disk is full")
    full.sqlite_errorcode = sqlite3.SQLITE_FULL
    said = pytest.raises(DataError, match=r"the disk is full \(.* free\); free some space, then resume")
    with said, registry._transaction():
        raise full
    registry.finish("a", {"loss": 3.25})
    assert registry.result("a", {"flops": 1.0}) == {"loss": 3.25}


def test_a_file_that_is_no_registry_is_one_clear_line(tmp_path):
    (tmp_path / "registry.sqlite").write_bytes(b"not a database at all, but long enough to look" * 20)
    with pytest.raises(DataError, match="registry.sqlite"):
        Registry(tmp_path / "registry.sqlite")


LAW = AdditiveLaw(E=1.8, A=480.0, B=2000.0, alpha=0.35, beta=0.37)
TOP = Run(params=4e6, tokens=1e8, flops=6 * 4e14, loss=4.0, rung=2)


def by_flops(flops):
    return lambda shape: (flops / training_flops_per_token(shape), None)


def test_the_best_candidate_is_the_laws_optimum_up_to_the_grid_of_shapes():
    flops = 2.4e16
    ranked = rank_candidates(LAW, by_flops(flops), top=TOP, vocab=1024, context=256, unique_tokens=1e15)
    best, _ = LAW.optimum(flops)
    assert ranked[0].params == pytest.approx(best, rel=0.35)  # neighbours on the path are up to a third apart
    assert ranked[0].loss == min(candidate.loss for candidate in ranked)
    band = flat_band(ranked)
    assert band["params_low"] <= ranked[0].params <= band["params_high"]


def test_a_faster_wide_model_moves_the_choice_up():
    plain = rank_candidates(LAW, by_flops(2.4e16), top=TOP, vocab=1024, context=256, unique_tokens=1e15)

    def faster_when_wide(shape):
        return 2.4e16 / training_flops_per_token(shape) * (shape.d_model / 256) ** 0.6, 100.0

    moved = rank_candidates(LAW, faster_when_wide, top=TOP, vocab=1024, context=256, unique_tokens=1e15)
    assert moved[0].params > plain[0].params


def test_a_small_text_moves_the_choice_to_larger_models():
    plenty = rank_candidates(LAW, by_flops(2.4e16), top=TOP, vocab=1024, context=256, unique_tokens=1e15)
    scarce = rank_candidates(LAW, by_flops(2.4e16), top=TOP, vocab=1024, context=256, unique_tokens=2e7)
    assert scarce[0].params > plenty[0].params
    assert scarce[0].loss > plenty[0].loss


def test_an_empty_purse_is_refused():
    with pytest.raises(BudgetError, match="larger budget"):
        rank_candidates(LAW, lambda shape: (-5.0, -1.0), top=TOP, vocab=1024, context=256, unique_tokens=1e9)


def test_counts_of_the_candidates_are_the_shapes_own():
    ranked = rank_candidates(LAW, by_flops(2.4e16), top=TOP, vocab=1024, context=256, unique_tokens=1e15)
    assert all(candidate.params == count_parameters(candidate.shape).matmul for candidate in ranked)
