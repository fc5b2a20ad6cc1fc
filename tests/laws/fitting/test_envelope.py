"""Approach 1: curves of a known law, what its ends do, public curves, warnings and refusals."""

from __future__ import annotations

import csv
from collections import defaultdict

import numpy as np
import pytest

from chinchilla_lm.core.errors import FitError
from chinchilla_lm.laws.fitting.envelope import Curve, fit_envelope

SIZES = np.geomspace(4.6e7, 1.6e10, 25)


def constant_rate_curves(truth, noise=0.0, seed=0, sizes=SIZES):
    """Every point of a curve is as good as a finished run: what a constant rate with free cooldowns would give."""
    rng = np.random.default_rng(seed)
    curves = []
    for params in sizes:
        tokens = 20 * params * np.geomspace(1 / 30, 30, 300)
        loss = truth.loss(np.full(300, params), tokens) * np.exp(noise * rng.standard_normal(300))
        curves.append(Curve(params=params, tokens=tokens, loss=loss))
    return curves


def read_curves(path, run_column, keeps):
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    points = defaultdict(dict)
    with path.open(newline="") as lines:
        for row in csv.DictReader(lines):
            if keeps(row):
                point = (float(row["n_params"]), float(row["loss"]))
                points[row[run_column]].setdefault(float(row["n_tokens"]), point)
    curves = []
    for by_tokens in points.values():
        tokens = sorted(by_tokens)
        losses = np.array([by_tokens[count][1] for count in tokens])
        curves.append(Curve(params=by_tokens[tokens[0]][0], tokens=np.array(tokens), loss=losses))
    return curves


def test_curves_of_a_known_law_give_its_exponent_and_sizes(truth):
    fit = fit_envelope(constant_rate_curves(truth), schedule="constant")
    assert fit.law.a == pytest.approx(truth.a, abs=0.003)
    assert fit.law.optimum(1e21)[0] == pytest.approx(truth.optimum(1e21)[0], rel=0.01)
    for point in (0, 500, -1):
        assert fit.loss[point] == pytest.approx(truth.loss(*truth.optimum(fit.flops[point])), rel=2e-3)
    assert fit.intervals["a"].low < truth.a < fit.intervals["a"].high
    assert not fit.warnings


def test_the_ends_of_the_sweep_bend_an_untrimmed_envelope(truth):
    # Below the smallest size's own optimum it holds the envelope alone: a flat piece that a power law must not see.
    bent = fit_envelope(constant_rate_curves(truth), schedule="constant", trim_ends=False).law
    assert bent.a == pytest.approx(0.414, abs=0.005)


def test_smoothing_undoes_noise(truth):
    curves = constant_rate_curves(truth, noise=0.003)
    rough = fit_envelope(curves, schedule="constant")
    smooth = fit_envelope(curves, schedule="constant", smoothing=10)
    assert any("smooth the curves" in warning for warning in rough.warnings)
    assert abs(smooth.law.a - truth.a) < 0.6 * abs(rough.law.a - truth.a)
    assert abs(smooth.law.a - truth.a) < 0.015


def test_smoothing_leaves_noise_free_curves_alone(truth):
    plain = fit_envelope(constant_rate_curves(truth), schedule="constant").law
    smooth = fit_envelope(constant_rate_curves(truth), schedule="constant", smoothing=10).law
    assert smooth.a == pytest.approx(plain.a, abs=1e-3)


def test_the_envelope_is_the_lowest_curve(truth):
    curves = constant_rate_curves(truth)
    fit = fit_envelope(curves, schedule="constant")
    for point in range(0, len(fit.flops), 200):
        flops = fit.flops[point]
        rivals = [
            np.interp(np.log(flops), np.log(6 * curve.params * curve.tokens), np.log(curve.loss), right=np.inf)
            for curve in curves
            if 6 * curve.params * curve.tokens[0] <= flops
        ]
        assert np.log(fit.loss[point]) == pytest.approx(min(rivals), abs=1e-9)
        assert 6 * fit.params[point] * fit.tokens[point] == pytest.approx(flops)


def test_decaying_schedules_read_early_are_warned_of(truth):
    """A cosine's middle lies above what a finished run of that length reaches; 94 % of this envelope is such middle."""
    curves = constant_rate_curves(truth)
    assert "add shorter runs" in fit_envelope(curves, schedule="cosine").warnings[0]
    planned = [Curve(params=c.params, tokens=c.tokens, loss=c.loss, horizon_tokens=float(c.tokens[0])) for c in curves]
    assert not fit_envelope(planned, schedule="cosine").warnings


def test_the_dense_curves_of_clark_et_al(shared_data):
    # 13 runs of 6 sizes, all with one cosine of 250,000 steps: shorter lengths are missing, so the warning must come.
    # Kaplan's .73 came from such curves; a is well above the .5 of finished runs.
    curves = read_curves(
        shared_data / "laws" / "clark_routed_curves.csv", "hyper_id", lambda row: row["router_type"] == "Dense"
    )
    assert len(curves) == 13
    fit = fit_envelope(curves)
    assert 0.5 < fit.law.a < 0.65
    assert "decaying schedule" in fit.warnings[0]


def test_the_olmo_ladder_has_too_few_lengths_below_its_optimum(shared_data):
    # 5 sizes x 5 lengths, the shortest at 10 tokens per parameter: small models hold the envelope far too long.
    curves = read_curves(
        shared_data / "laws" / "olmo_ladder_checkpoints.csv", "run", lambda row: not row["run"].startswith("peteish")
    )
    fit = fit_envelope(curves)
    assert fit.law.a < 0.45
    assert "decaying schedule" in fit.warnings[0]


def test_curves_that_are_no_curves_are_refused(truth):
    good = constant_rate_curves(truth)[:4]
    with pytest.raises(FitError, match="3 or more sizes"):
        fit_envelope(good[:2])
    falling = Curve(params=1e8, tokens=np.array([2.0, 1.0]), loss=np.array([3.0, 2.0]))
    with pytest.raises(FitError, match="curve 5 do not rise"):
        fit_envelope([*good, falling])
    broken = Curve(params=1e8, tokens=np.array([1.0, 2.0]), loss=np.array([3.0, np.nan]))
    with pytest.raises(FitError, match="not finite"):
        fit_envelope([*good, broken])
    with pytest.raises(FitError, match="two or more"):
        fit_envelope([*good, Curve(params=1e8, tokens=np.array([1.0]), loss=np.array([3.0]))])
    with pytest.raises(FitError, match="hold the envelope"):
        fit_envelope(good)
    with pytest.raises(FitError, match="choose from"):
        fit_envelope(good, schedule="linear")


def test_the_record_holds_what_scripts_rely_on(truth):
    record = fit_envelope(constant_rate_curves(truth), schedule="constant").to_dict()
    assert {"method", "a", "b", "coefficient", "line", "n_runs", "n_sizes", "intervals", "warnings"} <= set(record)
    assert record["a"] + record["b"] == pytest.approx(1)
