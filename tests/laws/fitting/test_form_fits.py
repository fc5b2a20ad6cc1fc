"""Every form's fit: authors' own constants, noise-free recovery, scipy as a second opinion, statuses, refusals."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest
from scipy.optimize import minimize

from chinchilla_lm.core.errors import FitError
from chinchilla_lm.laws.fitting.additive import fit_additive
from chinchilla_lm.laws.fitting.form_fits import FormOptions, fit_form
from chinchilla_lm.laws.fitting.form_models import power_model
from chinchilla_lm.laws.fitting.form_solver import descend, objective_of
from chinchilla_lm.laws.forms.additive import AdditiveLaw
from chinchilla_lm.laws.forms.coupled import CoupledLaw
from chinchilla_lm.laws.forms.kaplan import KaplanLaw
from chinchilla_lm.laws.forms.overtraining import OvertrainingLaw
from chinchilla_lm.laws.forms.repetition import RepetitionLaw

TRUTHS = {
    "additive": AdditiveLaw(E=1.8, A=400.0, B=1500.0, alpha=0.34, beta=0.36),
    "coupled": CoupledLaw(E=1.5, A=900.0, B=3000.0, alpha=0.4, beta=0.42, kappa=0.7),
    "kaplan": KaplanLaw(alpha_N=0.076, alpha_D=0.103, N_c=6.4e13, D_c=1.8e13),
    "overtraining": OvertrainingLaw(E=1.51, size_scale=141.0, tokens_scale=190.0, eta=0.121),
}
# Muennighoff et al. 2023's law of fresh text, held while the half-lives were fitted.
C4 = AdditiveLaw(E=math.exp(0.6254804), A=math.exp(6.255414), B=math.exp(7.3049974), alpha=0.3526596, beta=0.3526596)
# Runs of the table that the authors' fit of the half-lives leaves out (notebook parametric_fit.ipynb, "Custom data
# loading with outliers removed"): every seed and shape variant, deduplicated text, and these that diverged or overfit.
LEFT_OUT = """2b84b4b 2b88b4b 2b812b4b 2b816b4b 2b824b4b 2b855b1b25 4b212b12b 4b224b12b 4b284b1b9 4b284b6b 2b8100m100m
    14m7b5100m 14m300b100m 1b12b7100m 1b13b9100m 1b15b9100m 1b17b5100m 619m3b9100m 619m5b9100m 619m7b5100m 2b84b8100m
    1b58b8100m 1b112b100m 619m22b100m 421m300b1b5 221m91b400m 221m174b400m 221m600b400m 8b712b12b 8b712b1b5 8b712b400m
    8b712b100m 3b926b1b5 2b836b1b5 2b836b400m 2b836b100m 2b246b400m 2b246b100m 1b566b1b5 1b566b100m 1b191b400m
    1b191b1b5 1b1250b1b5 1b5174b1b5 2b291b1b5 2b2174b1b5 8b720b1b5 2b877b1b5"""


def rows_of(shared_data, name):
    path = shared_data / "laws" / name
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    with path.open(newline="") as lines:
        return list(csv.DictReader(lines))


def columns_of(rows, *names):
    return tuple(np.array([float(row[name]) for row in rows]) for name in names)


def sweep(law, noise=0.0, seed=0):
    budgets, sizes = np.repeat(10.0 ** np.arange(17, 21, 0.5), 7), np.tile(np.geomspace(0.15, 7, 7), 8)
    params = 0.1 * budgets**0.5 * sizes
    tokens = budgets / 6 / params
    return params, tokens, law.loss(params, tokens) * np.exp(noise * np.random.default_rng(seed).normal(size=56))


@pytest.mark.parametrize("form", TRUTHS)
def test_noise_free_runs_give_back_the_truth(form):
    truth = TRUTHS[form]
    fit = fit_form(form, *sweep(truth))
    assert fit.status == "converged"
    found, wanted = fit.law.to_dict(), truth.to_dict()
    # An exponent is known to 1e-6 where the objective's valley of doubles ends; scales multiply it by ln N of 20.
    for name in wanted.keys() - {"form", "params_convention"}:
        assert found[name] == pytest.approx(wanted[name], rel=2e-4), name


@pytest.mark.parametrize("form", TRUTHS)
def test_slopes_match_finite_differences(form):
    params, tokens, loss = sweep(TRUTHS[form])
    model = power_model(form, params, tokens, np.log(loss))
    free = model.starts(np.log(loss), np.ones(len(loss)))[:1]
    _, jacobian = model.evaluate(free)
    for column in range(free.shape[1]):
        step = np.zeros(free.shape[1])
        step[column] = 1e-6
        slope = (model.evaluate(free + step)[0] - model.evaluate(free - step)[0]) / 2e-6
        np.testing.assert_allclose(jacobian[..., column], slope, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("form", ["coupled", "kaplan"])
@pytest.mark.parametrize("delta", [1e-3, 1.0])
def test_scipy_from_many_starts_finds_nothing_lower(form, delta):
    fit = fit_form(form, *sweep(TRUTHS[form], noise=0.004, seed=3), delta=delta)
    rng = np.random.default_rng(0)
    best = math.inf
    for _ in range(6):
        start = fit.free + rng.normal(scale=0.3, size=len(fit.free))
        found = minimize(lambda free: objective_of(fit.model, free[None], fit.misfit)[0], start, method="Nelder-Mead")
        found = minimize(lambda free: objective_of(fit.model, free[None], fit.misfit)[0], found.x, method="BFGS")
        best = min(best, found.fun)
    assert fit.objective <= best * (1 + 1e-9)


@pytest.mark.parametrize("delta", [1e-3, 1e-2, 1.0])
def test_the_additive_member_agrees_with_the_additive_fitter(delta):
    runs = sweep(TRUTHS["additive"], noise=0.005, seed=1)
    ours, reference = fit_form("additive", *runs, delta=delta), fit_additive(*runs, delta=delta)
    assert ours.objective == pytest.approx(reference.objective, rel=1e-9)
    assert ours.law.alpha == pytest.approx(reference.law.alpha, abs=1e-6)
    assert ours.law.beta == pytest.approx(reference.law.beta, abs=1e-6)


def test_a_coupled_fit_is_never_worse_than_an_additive_one():
    runs = sweep(TRUTHS["kaplan"], noise=0.003, seed=5)
    additive, coupled = fit_form("additive", *runs, delta=0.01), fit_form("coupled", *runs, delta=0.01)
    assert coupled.objective <= additive.objective * (1 + 1e-9)


@pytest.mark.parametrize(
    ("train_set", "constants"),
    [
        ("c4_original", (113.7, 189.5, 0.2425, 1.508)),
        ("rpj", (166.2, 366.7, 0.2729, 1.837)),
        ("rw_original", (125.1, 246.2, 0.2544, 1.734)),
    ],
)
def test_gadre_s_constants_follow_from_their_five_runs(shared_data, train_set, constants):
    code = gadre_fit(rows_of(shared_data, "gadre_overtraining.csv"), train_set).law.code_form()
    assert (code["alpha"], code["beta"], code["b"], code["E"]) == pytest.approx(constants, rel=5e-4)


def test_gadre_s_predictions_are_their_notebook_s_to_the_last_digit(shared_data):
    rows = rows_of(shared_data, "gadre_overtraining.csv")
    law = gadre_fit(rows, "rpj").law
    errors = {}
    for row in rows:
        if row["train_dataset"] == "rpj":
            params, tokens, loss = (float(row[name]) for name in ("n_params", "n_tokens", "loss"))
            errors[round(params / 1e8) / 10, float(row["token_multiplier"])] = 100 * abs(
                law.loss(params, tokens) / loss - 1
            )
    assert errors[1.4, 640] == pytest.approx(0.7103, abs=5e-5)
    assert errors[6.9, 20] == pytest.approx(0.7320, abs=5e-5)


def gadre_fit(rows, train_set):
    """Four sizes at M = 20 and the smallest at M = 320, least squares of the loss itself (their `fit_ds`)."""
    sizes = {10569312: (20, 320), 78914048: (20,), 153677376: (20,), 411616256: (20,)}
    chosen = [
        row
        for row in rows
        if row["train_dataset"] == train_set
        and float(row["token_multiplier"]) in sizes.get(int(float(row["n_params"])), ())
    ]
    assert len(chosen) == 5
    return fit_form(
        "overtraining",
        *columns_of(chosen, "n_params", "n_tokens", "loss"),
        delta=10.0,
        options=FormOptions(in_nats=True, params_convention="total"),
    )


def test_muennighoff_s_half_lives_are_a_minimum_of_their_runs_and_not_the_lowest(shared_data):
    """Their 182 runs are in the table, so the fit is theirs; the runs behind the law of fresh text are not public.

    At the published half-lives the sum is the notebook's .0158259; the minimum next to them is R_D* = 15.372,
    R_N* = 5.315 in doubles (they print 15.388 and 5.310 in single precision). Two other minima lie lower, by .1 %:
    the runs do not tell R_D* = 15 from 47 or 95.
    """
    rows = [
        row
        for row in rows_of(shared_data, "datablations_c4.csv")
        if row["dedup"] == "False" and "seed" not in row["run"] and "opt" not in row["run"]
    ]
    rows = [row for row in rows if row["run"] not in LEFT_OUT.split()]
    assert len(rows) == 182
    params, tokens, unique, loss = columns_of(rows, "n_params", "n_tokens", "n_unique_tokens", "loss")
    fit = fit_form("repetition", params, tokens, loss, unique_tokens=unique, delta=1e-3, options=FormOptions(base=C4))
    published = np.log([[15.387756, 5.309743]])
    assert objective_of(fit.model, published, fit.misfit)[0] == pytest.approx(0.015825936, abs=5e-9)
    near = np.exp(descend(fit.model, published, fit.misfit).free_kp[0])
    assert near == pytest.approx([15.372, 5.315], abs=1e-3)
    assert fit.objective < 0.0158259 * 0.9995
    assert fit.status == "unidentified"
    assert "two sets of constants" in fit.warnings[0]
    assert fit.law.repeated_tokens > 40


def test_noise_free_repeats_give_back_the_half_lives_with_the_base_free():
    truth = RepetitionLaw.from_additive(TRUTHS["additive"], repeated_tokens=12.0, excess_params=4.0)
    rng = np.random.default_rng(0)
    params, unique = 10 ** rng.uniform(7, 9.5, 80), 10 ** rng.uniform(8, 10, 80)
    tokens = unique * np.where(rng.random(80) < 0.4, 1.0, 10 ** rng.uniform(0, 1.8, 80))
    fit = fit_form("repetition", params, tokens, truth.loss(params, tokens, unique), unique_tokens=unique)
    assert fit.law.repeated_tokens == pytest.approx(12.0, rel=1e-3)
    assert fit.law.excess_params == pytest.approx(4.0, rel=1e-3)
    assert fit.law.beta == pytest.approx(0.36, rel=1e-3)


def test_refitting_with_unit_weights_changes_nothing_and_with_a_zero_drops_the_run():
    params, tokens, loss = sweep(TRUTHS["coupled"], noise=0.004, seed=2)
    fit = fit_form("coupled", params, tokens, loss, delta=0.01)
    weights = np.ones((2, len(loss)))
    weights[1, 0] = 0
    again = fit.refit(weights)
    alone = fit_form("coupled", params[1:], tokens[1:], loss[1:], delta=0.01)
    far = (np.array([1e11]), np.array([1e13]))
    predicted = fit.predict(again, *far)[:, 0]
    assert predicted[0] == pytest.approx(fit.law.loss(1e11, 1e13), rel=1e-6)
    assert predicted[1] == pytest.approx(alone.law.loss(1e11, 1e13), rel=1e-5)


def test_a_tight_prior_holds_its_constant():
    runs = sweep(TRUTHS["coupled"], noise=0.004, seed=2)
    options = FormOptions(priors={"kappa": (0.9, 1e-4), "alpha": (0.3, 1e-4)})
    law = fit_form("coupled", *runs, options=options).law
    assert law.kappa == pytest.approx(0.9, abs=1e-3)
    assert law.alpha * law.kappa == pytest.approx(0.3, abs=1e-3)


def test_runs_at_one_ratio_do_not_determine_a_form():
    params = np.geomspace(1e6, 1e10, 15)
    loss = TRUTHS["additive"].loss(params, 20 * params)
    fit = fit_form("coupled", params, 20 * params, loss * np.exp(0.003 * np.random.default_rng(1).normal(size=15)))
    assert fit.status != "converged"
    assert fit.warnings


def test_the_record_is_json_and_reads_back():
    fit = fit_form("coupled", *sweep(TRUTHS["coupled"], noise=0.004))
    record = fit.to_dict()
    assert record["form"] == "coupled"
    assert CoupledLaw.from_dict(record).hash() == record["hash"]


@pytest.mark.parametrize(
    ("form", "change", "words"),
    [
        ("cubic", {}, "choose from"),
        ("repetition", {}, "needs unique_tokens"),
        ("additive", {"loss": np.array([1.0, math.nan])}, "loss=nan of run 2"),
        ("additive", {"tokens": np.ones(3)}, "one length"),
        ("coupled", {}, "add runs or choose a form with fewer"),
    ],
)
def test_what_cannot_be_fitted_is_refused_with_the_way_out(form, change, words):
    columns = {"params": np.array([1e8, 1e9]), "tokens": np.array([1e9, 1e10]), "loss": np.array([3.0, 2.5])} | change
    with pytest.raises(FitError, match=words):
        fit_form(form, **columns)


def test_weights_that_are_no_weights_are_refused():
    runs = sweep(TRUTHS["additive"])
    with pytest.raises(FitError, match="one for each run"):
        fit_form("additive", *runs, options=FormOptions(weights=np.array([1.0, -1.0])))
