"""The forecast: coverage by simulation, the rules that widen and refuse, the records."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from chinchilla_lm.core.errors import FitError
from chinchilla_lm.laws.forms.additive import AdditiveLaw
from chinchilla_lm.laws.trust.bracket import fit_bracket, sort_ladder
from chinchilla_lm.laws.trust.forecast import (
    ADDITIVE_WEIGHT,
    PLATEAU_DROP,
    UNTESTED_DROP,
    YOUNG_WEIGHT,
    Run,
    Target,
    forecast,
)
from chinchilla_lm.laws.trust.inflation import LEARNT

TRUTH = AdditiveLaw(E=1.8, A=482.0, B=2085.0, alpha=0.348, beta=0.366)
BUDGETS = (1e19, 3.16e19, 1e20, 3.16e20)  # where the law's slope is that of real sweeps
SIZES = (0.4, 1.0, 2.5)


def climb(loss=TRUTH.loss, *, budgets=BUDGETS, sizes=SIZES, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    runs = []
    for rung, flops in enumerate(budgets):
        for size in sizes:
            params = TRUTH.optimum(flops)[0] * size
            tokens = flops / 6 / params
            value = loss(params, tokens) * math.exp(noise * rng.standard_normal())
            runs.append(Run(params=params, tokens=tokens, flops=flops, loss=value, rung=rung))
    return runs


def target(flops, size=1.0):
    params = TRUTH.optimum(flops)[0] * size
    return Target(params=params, tokens=flops / 6 / params, flops=flops)


def bent(params, tokens):
    """No floor at all: the other law that a sweep may follow."""
    return 60.0 / params**0.07 + 20.0 / tokens**0.07


@pytest.mark.parametrize("loss", [TRUTH.loss, bent])
def test_the_band_covers_whichever_law_is_true(loss):
    """Ladders whose truth is the additive law or has no floor, with seed noise: 10x ahead, nominal 90 %."""
    at = target(3.16e21)
    inside = 0
    for seed in range(10):
        made = forecast(climb(loss, noise=0.003, seed=seed), at, draws=40)
        inside += made.low <= loss(at.params, at.tokens) <= made.high
    assert inside >= 8  # P(X < 8) = 7 % for exactly 90 %; the seeds are fixed


def test_the_point_lies_between_its_sources_and_the_band_holds_them():
    made = forecast(climb(noise=0.002), target(1e21), seed_sd=0.002)
    additive, line = made.sources["additive"], made.sources["line"]
    assert min(additive, line) <= made.loss <= max(additive, line)
    assert made.low < min(additive, line)
    assert made.high > max(additive, line)
    assert made.high / made.loss == pytest.approx(made.loss / made.low)
    assert made.level == 0.9


def test_without_noise_the_additive_source_is_the_truth():
    at = target(1e21, size=1.7)
    made = forecast(climb(), at, seed_sd=0.0005, draws=20)
    assert made.sources["additive"] == pytest.approx(TRUTH.loss(at.params, at.tokens), rel=1e-3)
    for rung, flops in zip(made.rungs, BUDGETS, strict=True):
        assert rung.flops == pytest.approx(flops)
        assert rung.loss == pytest.approx(TRUTH.loss(*TRUTH.optimum(flops)), rel=1e-4)


def test_off_the_optimum_both_sources_carry_the_excess():
    best, off = (forecast(climb(), target(1e21, size), seed_sd=0.001, draws=20) for size in (1.0, 3.0))
    excess = off.sources["additive"] - best.sources["additive"]
    assert excess > 0
    assert off.sources["line"] - best.sources["line"] == pytest.approx(excess, rel=0.02)


def test_repeated_text_costs_both_sources():
    fresh = target(1e21)
    worn = Target(params=fresh.params, tokens=fresh.tokens, flops=fresh.flops, effective_tokens=fresh.tokens / 3)
    first, second = (forecast(climb(), at, seed_sd=0.001, draws=20) for at in (fresh, worn))
    for source in ("additive", "line"):
        rise = TRUTH.loss(fresh.params, fresh.tokens / 3) - TRUTH.loss(fresh.params, fresh.tokens)
        assert second.sources[source] - first.sources[source] == pytest.approx(rise, rel=0.05)


def test_a_higher_compute_than_6nd_is_no_error():
    """Exact FLOPs are 6 N D plus attention; the optimum of a rung is taken at its own ratio."""
    runs = [
        Run(params=run.params, tokens=run.tokens, flops=run.flops * 1.25, loss=run.loss, rung=run.rung)
        for run in climb()
    ]
    at = target(1e21)
    made = forecast(runs, Target(params=at.params, tokens=at.tokens, flops=1.25e21), seed_sd=0.0005, draws=20)
    plain = forecast(climb(), at, seed_sd=0.0005, draws=20)
    assert made.loss == pytest.approx(plain.loss, rel=1e-9)


def test_same_input_same_forecast():
    first, second = (forecast(climb(noise=0.003), target(1e21)) for _ in range(2))
    assert first.to_dict() == second.to_dict()


def test_back_tests_hide_the_top_rungs():
    made = forecast(climb(noise=0.002), target(1e21), seed_sd=0.002)
    optima = [test for test in made.backtests if test.kind == "optimum"]
    assert [round(test.step, 1) for test in optima] == [3.2, 10.0]
    assert len([test for test in made.backtests if test.kind == "run"]) == 6
    # The hidden rung really is hidden: predicting it from below is what a forecast of the lower rungs says.
    lower = forecast(climb(noise=0.002)[:9], target(BUDGETS[-1]), seed_sd=0.002)
    assert optima[0].predicted == pytest.approx(lower.loss, rel=1e-3)


def test_a_missed_back_test_widens_the_band():
    runs = climb(noise=0.0005)
    spoilt = [
        Run(
            params=run.params,
            tokens=run.tokens,
            flops=run.flops,
            loss=run.loss * (1.08 if run.rung == 3 else 1.0),
            rung=run.rung,
        )
        for run in runs
    ]
    made, plain = (forecast(each, target(1e21), seed_sd=0.001) for each in (spoilt, runs))
    assert max(test.miss for test in made.backtests if test.kind == "optimum") > 0
    assert any(reason.startswith("widened by a factor") for reason in made.reasons)
    assert made.own_ratio > 1.1 > 1 > plain.own_ratio
    assert made.high / made.low > plain.high / plain.low


@pytest.mark.parametrize(
    ("below", "times", "weight"), [(1.0, UNTESTED_DROP, ADDITIVE_WEIGHT), (1e-8, PLATEAU_DROP, YOUNG_WEIGHT)]
)
def test_what_a_ladder_cannot_test_about_its_slope_multiplies_that_share_of_the_band(below, times, weight):
    """Two rungs: noise and the laws' distance aside, the band is `of_drop` of the fall of ln L, so many times."""
    made = forecast(climb(budgets=[below * flops for flops in BUDGETS[:2]]), target(below * 1e20), seed_sd=1e-4)
    assert any(f"{times:g} times a tested one's" in reason for reason in made.reasons)
    drop = math.log(made.rungs[-1].loss / made.loss)
    spread = abs(math.log(made.sources["additive"] / made.sources["line"])) * math.sqrt(weight * (1 - weight))
    scale = LEARNT.scale(np.array(times * drop), np.array(spread), np.array(max(1e-4, made.fit.noise_sd)))
    assert math.log(made.high / made.loss) == pytest.approx(LEARNT.quantile(0.9) * float(scale))


def steepening(params, tokens):
    return 9.0 * (6 * params * tokens / 1e19) ** (-0.004 * math.log(6 * params * tokens / 1e17))


def test_a_steepening_slope_is_not_established():
    made = forecast(climb(steepening, noise=0.001), target(1e21), seed_sd=0.001)
    assert not made.established
    assert "ever faster" in made.reasons[0]
    flat = forecast(climb(noise=0.001), target(1e21), seed_sd=0.001)
    assert made.high / made.loss > (flat.high / flat.loss) ** 1.5


def test_a_bottom_rung_off_the_law_is_left_out_and_named():
    def plateau_below(params, tokens):
        return min(TRUTH.loss(params, tokens), TRUTH.loss(*TRUTH.optimum(2e19)) * 1.001)

    made = forecast(climb(plateau_below, budgets=(3.16e18, *BUDGETS), noise=0.0005), target(1e21), seed_sd=0.001)
    assert any("left out" in reason for reason in made.reasons)
    assert made.rungs[0].flops > 3.2e18
    assert made.established


def test_one_rung_is_not_established():
    made = forecast(climb(budgets=BUDGETS[:1]), target(1e20))
    assert not made.established
    assert "at least two" in made.reasons[0]
    assert made.low < made.loss < made.high


def test_two_rungs_carry_a_wide_forecast():
    made = forecast(climb(budgets=BUDGETS[:2], noise=0.002), target(1e20))
    assert made.established
    assert made.backtests == ()
    assert any("3 times a tested one's" in reason for reason in made.reasons)


def test_an_optimum_at_the_edge_is_not_established():
    made = forecast(climb(sizes=(0.1, 0.2, 0.4)), target(1e21))
    assert not made.established
    assert any("large edge" in reason for reason in made.reasons)


def test_a_target_far_above_the_ladder_is_not_established():
    made = forecast(climb(), target(1e23))
    assert not made.established
    assert any("add a higher rung" in reason for reason in made.reasons)


def test_fewer_than_three_runs_and_broken_numbers_are_refused():
    with pytest.raises(FitError, match="at least 3"):
        forecast(climb()[:2], target(1e21))
    broken = [*climb()[:-1], Run(params=1e6, tokens=1e7, flops=6e13, loss=math.nan, rung=9)]
    with pytest.raises(FitError, match="loss=nan of run 12"):
        forecast(broken, target(1e21))


def test_rungs_are_sorted_by_compute_whatever_their_labels():
    runs = [
        Run(params=run.params, tokens=run.tokens, flops=run.flops, loss=run.loss, rung="dcba"[int(run.rung)])
        for run in climb()
    ]
    rungs = fit_bracket(sort_ladder(runs[::-1]), seed_sd=0.001).rungs
    assert [rung.flops for rung in rungs] == pytest.approx(BUDGETS)


def test_records_have_the_agreed_keys_and_are_json():
    made = forecast(climb(noise=0.002), target(1e21))
    record, law = (json.loads(json.dumps(each, allow_nan=False)) for each in (made.to_dict(), made.law_record()))
    assert {"schema", "law_hash", "tokens", "flops", "loss", "low", "high", "level", "sources"} <= set(record)
    assert {"backtests", "established", "reasons", "unit"} <= set(record)
    assert {"flops", "predicted", "low", "high", "actual"} <= set(record["backtests"][0])
    assert {"schema", "form", "params_convention", "E", "A", "B", "alpha", "beta", "a", "b", "objective"} <= set(law)
    assert {"n_runs", "intervals", "line", "rungs", "warnings", "hash"} <= set(law)
    assert law["hash"] == record["law_hash"]
    assert AdditiveLaw.from_dict(law) == made.law
