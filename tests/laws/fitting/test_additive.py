"""The additive fit: published optima, noise-free recovery, scipy as a second opinion, prior, intervals, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize

from chinchilla_lm.core.errors import FitError
from chinchilla_lm.laws.fitting.additive import Prior, fit_additive
from chinchilla_lm.laws.fitting.noise import noise_scale
from chinchilla_lm.laws.fitting.solver import centred_problem, centred_theta, derivatives, objective, refit
from chinchilla_lm.laws.forms.additive import AdditiveLaw

TRUTH = AdditiveLaw(E=1.8, A=400.0, B=1500.0, alpha=0.34, beta=0.36)


def ladder(noise=0.0, seed=0, sizes=(0.4, 1.0, 2.5), budgets=(1e17, 3e17, 1e18, 3e18)):
    flops = np.repeat(budgets, len(sizes))
    params = np.array([TRUTH.optimum(c)[0] for c in flops]) * np.tile(sizes, len(budgets))
    tokens = flops / 6 / params
    loss = TRUTH.loss(params, tokens) * np.exp(noise * np.random.default_rng(seed).standard_normal(len(flops)))
    return params, tokens, loss


def test_the_optimum_of_the_paper_s_objective_is_found(epoch):
    # Hoffmann et al. eq. 3 with delta = 1e-3 on the 240 digitised runs: recomputed to 11 digits from 4,500 starts.
    fit = fit_additive(*epoch, delta=1e-3)
    assert fit.status == "converged"
    assert fit.objective <= 1.0182741e-3
    assert pytest.approx(477.83, rel=1e-3) == fit.law.A
    assert pytest.approx(2143.42, rel=1e-3) == fit.law.B
    assert pytest.approx(1.81722, abs=1e-5) == fit.law.E
    assert fit.law.alpha == pytest.approx(0.34731, abs=1e-5)
    assert fit.law.beta == pytest.approx(0.36717, abs=1e-5)
    assert fit.law.a == pytest.approx(0.51390, abs=1e-5)


def test_a_small_delta_gives_the_published_least_absolute_deviations(epoch):
    # Besiroglu et al. 2024, eq. 5; the E of these constants is 1.81686, not the printed 1.8172.
    law = fit_additive(*epoch, delta=1e-9).law
    assert pytest.approx(482.01, rel=1e-4) == law.A
    assert pytest.approx(2085.43, rel=1e-4) == law.B
    assert law.alpha == pytest.approx(0.3478, abs=1e-4)
    assert law.beta == pytest.approx(0.3658, abs=1e-4)
    assert pytest.approx(1.81686, abs=1e-5) == law.E


@pytest.mark.parametrize(
    ("delta", "constants"),
    [(1e-2, (1.8381, 538.8, 2905.6, 0.3544, 0.3815)), (1.0, (1.8646, 593.3, 4875.6, 0.3603, 0.4059))],
)
def test_large_deltas_give_least_squares(epoch, delta, constants):
    law = fit_additive(*epoch, delta=delta).law
    assert (law.E, law.A, law.B, law.alpha, law.beta) == pytest.approx(constants, rel=3e-4)


def test_all_245_points_give_another_law(epoch_245):
    # LAWS 2.2: the five distorted points that Besiroglu et al. left out move B sixfold.
    law = fit_additive(*epoch_245, delta=1e-3).law
    assert (law.E, law.alpha, law.beta, law.a) == pytest.approx((1.89134, 0.3493, 0.4531, 0.5646), rel=3e-4)
    assert pytest.approx((495.7, 12846), rel=2e-3) == (law.A, law.B)


def test_delta_is_scaled_to_the_noise_by_default():
    for noise in (0.001, 0.01):
        fit = fit_additive(*ladder(noise=noise, sizes=np.geomspace(0.1, 10, 25), seed=4))
        assert fit.delta == pytest.approx(1.345 * noise, rel=0.2)
    assert fit_additive(*ladder()).delta == 1e-4  # noise-free: not below what losses are logged to
    assert fit_additive(*ladder(noise=0.01), delta=1e-3).delta == 1e-3


def test_the_paper_s_delta_costs_half_as_many_runs_again():
    params, tokens, _ = ladder(sizes=np.geomspace(0.2, 5, 12))
    noise = 0.01 * np.random.default_rng(0).standard_normal((1500, len(params)))
    loss = TRUTH.loss(params, tokens)
    spread = {}
    for delta in (1e-3, 1.345 * 0.01):
        problem = centred_problem(params, tokens, loss, delta=delta)
        draws = refit(centred_theta(TRUTH, params, tokens), problem, loss_kn=loss * np.exp(noise))
        low, high = np.quantile(draws[:, 4] / draws[:, 3:].sum(1), [0.1, 0.9])
        spread[delta] = high - low
    # Least absolute deviations need pi / 2 times the runs of least squares, Huber at 1.345 sd 1.05 times: 1.22 wider.
    assert spread[1e-3] / spread[1.345 * 0.01] == pytest.approx(1.22, abs=0.08)


def test_wild_runs_hardly_move_a_scaled_fit():
    params, tokens, loss = ladder(noise=0.003, sizes=np.geomspace(0.1, 10, 15), seed=6)
    clean = fit_additive(params, tokens, loss).law
    loss = loss.copy()
    loss[::12] *= 1.1
    robust, squares = fit_additive(params, tokens, loss).law, fit_additive(params, tokens, loss, delta=1.0).law
    assert abs(robust.a - clean.a) < 0.015
    assert abs(robust.a - clean.a) < 0.5 * abs(squares.a - clean.a)


def test_a_floor_can_be_held_or_believed():
    runs = ladder(noise=0.003, seed=8)
    held = fit_additive(*runs, prior=Prior(sd=math.inf, E=1.7))
    assert pytest.approx(1.7, rel=1e-12) == held.law.E
    assert held.status == "converged"
    # Believed ever less: from the value itself to what the runs say alone.
    free = fit_additive(*runs, delta=0.003).law.E
    believed = [fit_additive(*runs, delta=0.003, prior=Prior(sd=math.inf, E=1.7, E_sd=sd)).law.E for sd in (1e-5, 10)]
    assert believed[0] == pytest.approx(1.7, abs=1e-3)
    assert believed[1] == pytest.approx(free, abs=1e-3)
    with pytest.raises(FitError, match="sd > 0"):
        fit_additive(*runs, prior=Prior(sd=0))


def test_a_held_floor_is_the_best_law_with_that_floor():
    runs = ladder(noise=0.004, seed=9, sizes=(0.2, 0.5, 1, 2, 5))
    held = fit_additive(*runs, delta=1.0, prior=Prior(sd=math.inf, E=1.6)).law

    def squares(theta):
        predicted = 1.6 + np.exp(theta[0]) / runs[0] ** theta[1] + np.exp(theta[2]) / runs[1] ** theta[3]
        return float((np.log(predicted / runs[2]) ** 2).sum())

    ours = np.array([math.log(held.A), held.alpha, math.log(held.B), held.beta])
    least = minimize(squares, ours, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-14, "maxiter": 4000})
    assert squares(ours) <= least.fun * (1 + 1e-7)


def test_bootstrap_intervals_are_the_published_ones(epoch):
    intervals = fit_additive(*epoch, delta=1e-3, bootstrap=1500, seed=1).intervals
    published = {"E": (1.769, 1.871, 0.0257), "alpha": (0.317, 0.373, 0.0154), "beta": (0.331, 0.415, 0.0206)}
    for name, (low, high, se) in published.items():  # Monte-Carlo error of 1,500 draws: 2 % of an SE, .1 SE at an end
        assert intervals[name].se == pytest.approx(se, rel=0.08)
        assert intervals[name].low == pytest.approx(low, abs=0.3 * se)
        assert intervals[name].high == pytest.approx(high, abs=0.3 * se)
    assert intervals["a"].se == pytest.approx(0.020, rel=0.08)


@pytest.mark.parametrize("seed", range(8))
def test_noise_free_runs_give_back_the_truth(seed):
    rng = np.random.default_rng(seed)
    truth = AdditiveLaw(
        E=rng.uniform(0.5, 3),
        A=10 ** rng.uniform(1.5, 3.5),
        B=10 ** rng.uniform(1.5, 4),
        alpha=rng.uniform(0.2, 0.6),
        beta=rng.uniform(0.2, 0.6),
    )
    params = 10 ** rng.uniform(6, 9, 15)
    tokens = params * 10 ** rng.uniform(0.5, 2, 15)
    fit = fit_additive(params, tokens, truth.loss(params, tokens))
    for name in ("E", "A", "B", "alpha", "beta"):
        assert getattr(fit.law, name) == pytest.approx(getattr(truth, name), rel=1e-6)
    assert fit.status == "converged"


def test_scipy_from_many_starts_finds_nothing_lower():
    params, tokens, loss = ladder(noise=0.004, seed=3, sizes=(0.2, 0.5, 1, 2, 5))
    fit = fit_additive(params, tokens, loss, delta=1e-3)
    problem = centred_problem(params, tokens, loss, delta=1e-3)

    def value(theta):
        return float(objective(theta[None], problem)[0]), derivatives(theta[None], problem)[0][0]

    rng = np.random.default_rng(0)
    best = math.inf
    for _ in range(10):
        start = np.concatenate([rng.uniform(-2, 1, 3), rng.uniform(0.1, 0.8, 2)])
        best = min(best, minimize(value, start, jac=True, method="BFGS", options={"gtol": 1e-12}).fun)
    assert fit.objective <= best * (1 + 1e-9)


def test_derivatives_match_finite_differences():
    problem = centred_problem(*ladder(noise=0.01), delta=0.003)
    theta = np.array([[-0.5, -0.3, 0.4, 0.3, 0.4]])
    gradient, _, hessian = derivatives(theta, problem)
    for axis in range(5):
        step = np.zeros((1, 5))
        step[0, axis] = 1e-6
        slope = (objective(theta + step, problem) - objective(theta - step, problem)) / 2e-6
        assert slope[0] == pytest.approx(gradient[0, axis], rel=1e-5, abs=1e-9)
        bend = (derivatives(theta + step, problem)[0] - derivatives(theta - step, problem)[0])[0] / 2e-6
        np.testing.assert_allclose(bend, hessian[0, axis], rtol=1e-4, atol=1e-7)


def test_a_tight_prior_wins_over_few_runs_and_a_vague_one_does_nothing():
    runs = ladder(noise=0.005, seed=5)
    free = fit_additive(*runs, delta=0.003).law
    vague = fit_additive(*runs, delta=0.003, prior=Prior(sd=100.0)).law
    tight = fit_additive(*runs, delta=0.003, prior=Prior(mean=0.5, sd=0.001)).law
    assert vague.alpha == pytest.approx(free.alpha, abs=1e-4)
    assert tight.alpha == pytest.approx(0.5, abs=0.003)
    assert tight.beta == pytest.approx(0.5, abs=0.003)


def test_more_runs_outweigh_the_prior():
    few = fit_additive(*ladder(noise=0.003, seed=1), delta=0.01, prior=Prior(mean=0.6, sd=0.05)).law
    sizes, budgets = np.geomspace(0.1, 10, 15), np.geomspace(1e16, 1e20, 15)
    many = fit_additive(
        *ladder(noise=0.003, seed=1, sizes=sizes, budgets=budgets), delta=0.01, prior=Prior(mean=0.6, sd=0.05)
    ).law
    assert abs(many.alpha - TRUTH.alpha) < abs(few.alpha - TRUTH.alpha)
    assert many.alpha == pytest.approx(TRUTH.alpha, abs=0.02)


def test_the_prior_is_a_log_posterior_for_gaussian_noise():
    """With a large delta the minimum solves the normal equations of the posterior: gradient of data + prior is 0."""
    runs, prior = ladder(noise=0.004, seed=2), Prior(mean=0.3, sd=0.02, noise_sd=0.02)
    law = fit_additive(*runs, delta=10.0, prior=prior).law

    def posterior(theta):
        e, a, b, alpha, beta = theta
        residual = np.log(np.exp(e) + np.exp(a) / runs[0] ** alpha + np.exp(b) / runs[1] ** beta) - np.log(runs[2])
        pull = ((alpha - prior.mean) ** 2 + (beta - prior.mean) ** 2) / prior.sd**2
        return 0.5 * float((residual**2).sum()) / prior.noise_sd**2 + 0.5 * pull

    ours = np.array([math.log(law.E), math.log(law.A), math.log(law.B), law.alpha, law.beta])
    least = minimize(posterior, ours, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12, "maxiter": 4000})
    assert posterior(ours) <= least.fun + 1e-6


def test_noise_scale_is_the_root_mean_square_for_a_large_delta():
    residuals = np.random.default_rng(0).normal(0, 0.01, 2000)
    assert noise_scale(residuals, 10.0) == pytest.approx(0.01, rel=0.05)
    # In the other limit p(r) is Laplace with mean size s^2 / delta.
    spikes = np.random.default_rng(0).laplace(0, 0.01, 4000)
    assert noise_scale(spikes, 1e-6) ** 2 / 1e-6 == pytest.approx(0.01, rel=0.05)


def test_runs_at_one_ratio_of_tokens_are_called_unidentified():
    params = np.geomspace(1e6, 1e10, 12)
    loss = TRUTH.loss(params, 20 * params) * np.exp(0.003 * np.random.default_rng(1).standard_normal(12))
    fit = fit_additive(params, 20 * params, loss, delta=0.003)
    assert fit.status != "converged"
    assert "give a prior" in fit.warnings[0]


def test_a_law_without_floor_ends_at_the_bound():
    params, tokens, _ = ladder(sizes=(0.2, 0.5, 1, 2, 5))
    loss = 50 / params**0.2 + 80 / tokens**0.2 - 0.05
    fit = fit_additive(params, tokens, loss)
    assert fit.status == "at_bound"
    assert "E" in fit.warnings[0]


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [("loss", math.nan, "loss=nan of run 2"), ("params", -1.0, "params=-1.0 of run 2"), ("tokens", 0.0, "tokens=0.0")],
)
def test_runs_that_are_no_numbers_are_refused(column, value, words):
    runs = dict(zip(("params", "tokens", "loss"), ladder(), strict=True))
    runs[column] = runs[column].copy()
    runs[column][1] = value
    with pytest.raises(FitError, match=words):
        fit_additive(**runs)


def test_too_few_runs_are_refused_with_the_way_out():
    params, tokens, loss = ladder()
    with pytest.raises(FitError, match="give a prior"):
        fit_additive(params[:4], tokens[:4], loss[:4])
    assert fit_additive(params[:4], tokens[:4], loss[:4], delta=0.003, prior=Prior()).n_runs == 4


@pytest.mark.parametrize("column", ["params", "tokens"])
@pytest.mark.parametrize("prior", [None, Prior()])
def test_runs_of_one_size_or_one_length_are_refused(column, prior):
    runs = dict(zip(("params", "tokens", "loss"), ladder(), strict=True))
    runs[column] = np.full_like(runs[column], 1e8)
    with pytest.raises(FitError, match=f"all .* runs have {column}=1e"):
        fit_additive(**runs, prior=prior)


def test_integers_above_the_int64_product_are_taken_as_floats():
    params, tokens, loss = ladder()
    whole = fit_additive(params.round().astype(np.int64), tokens.round().astype(np.int64), loss)
    assert whole.law.alpha == pytest.approx(TRUTH.alpha, rel=1e-3)


def test_the_record_holds_what_scripts_rely_on():
    record = fit_additive(*ladder(noise=0.002), delta=0.003, prior=Prior(), bootstrap=20).to_dict()
    keys = {"schema", "form", "params_convention", "E", "A", "B", "alpha", "beta", "a", "b", "objective", "n_runs"}
    assert keys | {"intervals", "warnings", "hash"} <= set(record)
    assert set(record["intervals"]["a"]) == {"low", "high", "se"}
