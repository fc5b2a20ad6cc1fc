"""Predictions beyond a table: the fits against other implementations, symmetries, refusals, coverage by simulation."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from chinchilla_lm.core.errors import FitError, PlanError
from chinchilla_lm.laws.fitting.additive import fit_additive
from chinchilla_lm.laws.forms.additive import AdditiveLaw
from chinchilla_lm.laws.forms.coupled import CoupledLaw
from chinchilla_lm.laws.table import RunTable
from chinchilla_lm.laws.trust.calibration import extrapolate, predict
from chinchilla_lm.laws.trust.cuts import FORM_WEIGHTS, choose_cuts
from chinchilla_lm.laws.trust.form_family import fit_members, log_losses, prediction_sd

TRUTH = AdditiveLaw(E=1.82, A=482.0, B=2085.0, alpha=0.348, beta=0.366)
BENT = CoupledLaw(E=1.5, A=40.0, B=120.0, alpha=0.22, beta=0.24, kappa=1.5)


def table(law=TRUTH, *, noise=0.0, seed=0, top=1e21, unit=1.0):
    flops = np.repeat(np.geomspace(1e18, top, 7), 5)
    params = 0.1 * flops**0.5 * np.tile(np.geomspace(0.3, 3, 5), 7)
    tokens = flops / 6 / params
    loss = law.loss(params, tokens) * np.exp(noise * np.random.default_rng(seed).standard_normal(len(flops)))
    return RunTable(params=params, tokens=tokens, flops=flops, loss=loss * unit)


def logs(runs):
    return np.log(runs.params), np.log(runs.tokens), np.log(runs.loss)


def test_the_additive_member_is_the_fit_of_the_careful_solver():
    """Two implementations, one objective: least squares (noise far below the turn), exponents free."""
    runs = table(noise=0.001)
    members = fit_members("additive", *logs(runs), np.ones((1, len(runs.loss))))
    careful = fit_additive(runs.params, runs.tokens, runs.loss, delta=0.004)
    at = (np.array([3e10]), np.array([1e12]))
    mine = log_losses(members.theta_k6, *(np.log(column)[None, :] for column in at))[0, 0]
    assert mine == pytest.approx(math.log(careful.law.loss(3e10, 1e12)), abs=5e-4)


def test_a_coupled_truth_is_found_and_is_the_coupled_law():
    runs = table(BENT)
    theta = fit_members("coupled", *logs(runs), np.ones((1, len(runs.loss)))).theta_k6
    kappa = math.exp(theta[0, 5])
    found = CoupledLaw(
        E=math.exp(theta[0, 2]),
        A=math.exp(theta[0, 0] / kappa),
        B=math.exp(theta[0, 1] / kappa),
        alpha=theta[0, 3] / kappa,
        beta=theta[0, 4] / kappa,
        kappa=kappa,
    )
    at = (np.array([3e8, 3e9]), np.array([6e9, 2e11]))
    asked = log_losses(theta, *(np.log(column)[None, :] for column in at))[0]
    assert np.log(found.loss(*at)) == pytest.approx(asked, abs=1e-9)  # the same formula, written twice
    assert asked == pytest.approx(np.log(BENT.loss(*at)), abs=2e-3)  # the prior on kappa pulls by this much


def test_cuts_are_fitted_together_as_they_are_alone():
    runs = table(noise=0.003)
    weight = np.stack([runs.flops <= cut for cut in (3e19, 3e20, 1e22)]).astype(float)
    together = fit_members("coupled", *logs(runs), weight)
    for cut in range(3):
        alone = fit_members("coupled", *logs(runs), weight[cut : cut + 1])
        assert together.theta_k6[cut] == pytest.approx(alone.theta_k6[0], rel=1e-4, abs=1e-4)


def test_the_textbook_error_is_that_of_refits():
    """Delta method against 40 fresh tables; 40 draws know an sd to 11 %."""
    at = (np.log(np.array([[3e9]])), np.log(np.array([[6e10]])))
    answers = []
    for seed in range(40):
        runs = table(noise=0.004, seed=seed)
        answers.append(log_losses(fit_members("additive", *logs(runs), np.ones((1, 35))).theta_k6, *at)[0, 0])
    runs = table(noise=0.004, seed=99)
    members = fit_members("additive", *logs(runs), np.ones((1, 35)))
    said = prediction_sd(members, *logs(runs), np.ones((1, 35), dtype=bool))(*at)[0, 0]
    assert said == pytest.approx(math.hypot(np.std(answers), 0.004), rel=0.35)


def test_the_point_is_the_weighted_mean_of_its_sources():
    made = predict(table(noise=0.003), 1e10, 2e11)
    mean = sum(weight * math.log(made.sources[form]) for form, weight in FORM_WEIGHTS.items())
    assert math.log(made.loss) == pytest.approx(mean)
    assert made.low < made.loss < made.high
    assert made.flops == pytest.approx(6 * 1e10 * 2e11)
    assert made.decades == pytest.approx(math.log10(1.2e22 / 1e21), abs=1e-6)
    assert made.established


def test_the_unit_of_the_loss_and_of_tokens_does_not_matter():
    """Bits for nats, bytes for tokens: the same forecast in the other unit."""
    plain = predict(table(noise=0.003), 1e10, 2e11)
    bits = predict(table(noise=0.003, unit=1 / math.log(2)), 1e10, 2e11)
    assert bits.loss * math.log(2) == pytest.approx(plain.loss, rel=1e-3)
    assert bits.high / bits.low == pytest.approx(plain.high / plain.low, rel=1e-3)
    runs = table(noise=0.003)
    in_bytes = RunTable(params=runs.params, tokens=4.2 * runs.tokens, flops=runs.flops, loss=runs.loss)
    other = predict(in_bytes, 1e10, 4.2 * 2e11)
    assert other.flops == pytest.approx(plain.flops)
    assert other.loss == pytest.approx(plain.loss, rel=1e-3)


def test_farther_is_wider():
    made = extrapolate(table(noise=0.003))
    widths = [math.log(each.high / each.low) for each in (made.predict(3e9 * k, 6e10 * k) for k in (1, 2, 4, 8))]
    assert widths == sorted(widths)
    assert widths[-1] > 2 * widths[0]


def test_a_wider_level_holds_a_narrower_one():
    made = extrapolate(table(noise=0.003))
    half, most = (made.predict(1e10, 2e11, level=level) for level in (0.5, 0.98))
    assert most.low < half.low < half.loss < half.high < most.high


def test_a_table_that_errs_more_than_public_sets_widens_itself():
    runs = table(noise=0.003)
    drifting = runs.loss * (runs.flops / 1e18) ** 0.02  # 4.7 % a decade worse: no law at all
    bad = RunTable(params=runs.params, tokens=runs.tokens, flops=runs.flops, loss=drifting + 0.5 * np.sin(runs.flops))
    made, plain = (extrapolate(each).predict(1e10, 2e11) for each in (bad, runs))
    assert made.own_ratio > plain.own_ratio
    assert made.high / made.low > 2 * plain.high / plain.low - 1


def test_too_little_is_refused_or_named():
    runs = table()
    few = RunTable(params=runs.params[:4], tokens=runs.tokens[:4], flops=runs.flops[:4], loss=runs.loss[:4])
    with pytest.raises(FitError, match="4 runs are too few"):
        predict(few, 1e10, 2e11)
    broken = RunTable(
        params=runs.params, tokens=runs.tokens, flops=runs.flops, loss=np.where(runs.flops > 9e20, np.nan, 3.0)
    )
    with pytest.raises(FitError, match="loss"):
        predict(broken, 1e10, 2e11)
    with pytest.raises(PlanError, match="params"):
        predict(runs, -1.0, 2e11)
    with pytest.raises(PlanError, match="level"):
        predict(runs, 1e10, 2e11, level=90)
    six = RunTable(params=runs.params[:6], tokens=runs.tokens[:6], flops=runs.flops[:6], loss=runs.loss[:6])
    made = predict(six, 1e9, 2e10)
    assert not made.established
    assert any("too few" in warning for warning in made.warnings)


def test_each_doubt_is_said():
    made = extrapolate(table(noise=0.002))
    assert any("100 times" in warning for warning in made.predict(2e11, 4e12).warnings)
    assert any("tokens per param" in warning for warning in made.predict(5e11, 1e9).warnings)

    def steepening(params, tokens):
        return 9.0 * (6 * params * tokens / 1e18) ** (-0.004 * np.log(6 * params * tokens / 1e16))

    flops = np.repeat(np.geomspace(1e18, 1e21, 7), 5)
    params = 0.1 * flops**0.5 * np.tile(np.geomspace(0.3, 3, 5), 7)
    bent = RunTable(params=params, tokens=flops / 6 / params, flops=flops, loss=steepening(params, flops / 6 / params))
    assert any("ever faster" in warning for warning in predict(bent, 1e10, 2e11).warnings)


def test_a_record_is_json():
    record = json.loads(json.dumps(predict(table(noise=0.003), 1e10, 2e11).to_dict(), allow_nan=False))
    assert {"loss", "low", "high", "raw_low", "raw_high", "decades", "sources", "warnings", "own_ratio"} <= set(record)


def test_cuts_step_down_and_leave_enough_below():
    runs = table()
    cuts = choose_cuts(runs, 1e21)
    assert list(cuts) == sorted(set(cuts))
    assert cuts[-1] == pytest.approx(1e21)
    assert all((runs.flops <= cut * 1.001).sum() >= 8 for cut in cuts)


@pytest.mark.parametrize("law", [TRUTH, BENT], ids=["additive", "coupled"])
def test_the_interval_covers_simulated_truths(law):
    """Six tables with .4 % noise, three runs each at 10x and 60x; 90 % nominal, dependent within a table."""
    inside = []
    for seed in range(6):
        made = extrapolate(table(law, noise=0.004, seed=seed))
        for flops in (1e22, 6e22):
            for size in (0.5, 1, 2):
                params = 0.1 * flops**0.5 * size
                said = made.predict(params, flops / 6 / params)
                inside.append(said.low <= law.loss(params, flops / 6 / params) <= said.high)
    assert np.mean(inside) >= 0.8
