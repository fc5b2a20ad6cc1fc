"""What every form promises: gradients, optima, inverse questions and records, against brute force and each other."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_lm.core.errors import FitError, PlanError
from chinchilla_lm.laws.forms.additive import AdditiveLaw
from chinchilla_lm.laws.forms.allocation import AllocationLaw, PowerLine, SingleVariableLaw
from chinchilla_lm.laws.forms.coupled import CoupledLaw
from chinchilla_lm.laws.forms.kaplan import KaplanLaw
from chinchilla_lm.laws.forms.law import LossLaw
from chinchilla_lm.laws.forms.overtraining import OvertrainingLaw
from chinchilla_lm.laws.forms.record import FORMS, law_from_dict
from chinchilla_lm.laws.forms.repetition import RepetitionLaw

ADDITIVE = AdditiveLaw(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658, params_convention="total")
LAWS = {
    "additive": ADDITIVE,
    "no floor": dataclasses.replace(ADDITIVE, E=0.0),
    "kaplan": KaplanLaw(alpha_N=0.076, alpha_D=0.103, N_c=6.4e13, D_c=1.8e13),
    "coupled": CoupledLaw(E=1.6, A=300.0, B=900.0, alpha=0.42, beta=0.45, kappa=0.7),
    "steep": CoupledLaw(E=1.9, A=30.0, B=90.0, alpha=0.2, beta=0.25, kappa=1.6),
    "repetition": RepetitionLaw.from_additive(ADDITIVE),
    "overtraining": OvertrainingLaw(E=1.84, size_scale=212.0, tokens_scale=367.0, eta=0.136),
}
FLOPS = st.floats(1e15, 1e27)
every_law = pytest.mark.parametrize("law", LAWS.values(), ids=list(LAWS))


@every_law
@given(params=st.floats(1e6, 1e12), tokens=st.floats(1e8, 1e14))
def test_gradients_are_finite_differences(law, params, tokens):
    by_params, by_tokens = law.gradient(params, tokens)
    step = 1e-4  # central differences in logarithms: error about step squared
    rise = law.loss(params * math.exp(step), tokens) - law.loss(params * math.exp(-step), tokens)
    assert by_params * params == pytest.approx(rise / (2 * step), rel=1e-5, abs=1e-10)
    rise = law.loss(params, tokens * math.exp(step)) - law.loss(params, tokens * math.exp(-step))
    assert by_tokens * tokens == pytest.approx(rise / (2 * step), rel=1e-5, abs=1e-10)


@every_law
@given(flops=FLOPS, k=st.floats(2.0, 20.0))
def test_the_optimum_spends_the_budget_and_no_other_split_is_better(law, flops, k):
    params, tokens = law.optimum(flops, k)
    assert k * params * tokens == pytest.approx(flops, rel=1e-12)
    steps = np.exp(np.linspace(-9, 9, 2001))
    losses = law.loss(params * steps, tokens / steps)
    assert law.optimal_loss(flops, k) == law.loss(params, tokens)
    assert law.loss(params, tokens) <= losses.min() * (1 + 1e-12)
    assert steps[losses.argmin()] == pytest.approx(1, abs=0.01)


@every_law
@given(flops=FLOPS)
def test_the_budget_for_the_optimal_loss_is_the_budget(law, flops):
    loss = law.optimal_loss(flops)
    slope = 1e-16 * loss / (loss - getattr(law, "E", 0.0))  # what rounding of the loss leaves of the gap
    assert law.flops_for_loss(loss) == pytest.approx(flops, rel=1e-9 + 100 * slope)


@every_law
@given(params=st.floats(1e7, 1e11), tokens=st.floats(1e8, 1e13))
def test_the_tokens_for_a_loss_are_the_tokens(law, params, tokens):
    loss = law.loss(params, tokens)
    found = law.tokens_for_loss(params, loss)
    assert law.loss(params, found) == pytest.approx(loss, rel=1e-12)
    assert found == pytest.approx(tokens, rel=1e-4)  # the loss is flat in tokens where the model is small


@every_law
def test_arrays_are_answered_like_numbers(law):
    flops = np.array([1e18, 1e21, 1e24])
    params, tokens = law.optimum(flops)
    slopes = law.gradient(params, tokens)
    for place, each in enumerate(flops):
        assert (params[place], tokens[place]) == pytest.approx(law.optimum(float(each)), rel=1e-12)
        assert law.optimal_loss(flops)[place] == pytest.approx(law.optimal_loss(float(each)), rel=1e-12)
        single = law.gradient(float(params[place]), float(tokens[place]))
        assert (slopes[0][place], slopes[1][place]) == pytest.approx(single, rel=1e-12)
    loss = law.loss(1e9, 1e11)
    found = law.tokens_for_loss(np.array([1e5, 1e9]), loss)
    assert found[1] == pytest.approx(1e11, rel=1e-9)
    assert math.isinf(found[0])


@every_law
def test_what_cannot_be_reached_is_refused_with_the_floor(law):
    with pytest.raises(PlanError, match=r"loss=.* cannot be reached: .* stays above .* ask for a higher loss"):
        law.tokens_for_loss(1e5, law.loss(1e9, 1e11))
    with pytest.raises(PlanError, match="stays above"):
        law.flops_for_loss(getattr(law, "E", 0.0))
    with pytest.raises(PlanError, match="stays above"):
        law.flops_for_loss(math.nan)


@every_law
@pytest.mark.parametrize("flops", [0.0, -1.0, math.nan, math.inf])
def test_impossible_budgets_are_refused(law, flops):
    with pytest.raises(PlanError, match="write a number such as 1e20"):
        law.optimum(flops)
    with pytest.raises(PlanError, match="flops must be finite"):
        law.optimum(np.array([1e20, flops]))


@every_law
def test_a_law_survives_json_and_its_hash_sees_every_constant(law):
    assert isinstance(law, LossLaw)
    record = json.loads(json.dumps(law.to_dict()))
    assert law_from_dict(record) == law
    assert record["form"] == law.form in FORMS
    for field in dataclasses.fields(law):
        value = getattr(law, field.name)
        if isinstance(value, float) and value > 0:
            changed = dataclasses.replace(law, **{field.name: value * (1 + 1e-12)})
            assert changed.hash() != law.hash()
    with pytest.raises(FitError, match="must be finite and > 0"):
        law_from_dict({**record, dataclasses.fields(law)[1].name: -1.0})


def test_every_form_is_here():
    assert {law.form for law in LAWS.values()} | {"allocation"} == set(FORMS)


@pytest.mark.parametrize("form", ["broken", 3, None, ["additive"]])
def test_an_unknown_form_is_refused(form):
    with pytest.raises(FitError, match="is unknown; choose from additive, kaplan, coupled"):
        law_from_dict({**ADDITIVE.to_dict(), "form": form})


@pytest.mark.parametrize("value", [None, "12", True, math.nan, -1.0])
@pytest.mark.parametrize("law", LAWS.values(), ids=list(LAWS))
def test_a_missing_constant_is_named(law, value):
    name = dataclasses.fields(law)[1].name
    with pytest.raises(FitError, match=name):
        law_from_dict({**law.to_dict(), name: value})


# Identities between the forms.


@given(st.floats(1e6, 1e12), st.floats(1e8, 1e14))
def test_coupled_with_kappa_one_is_additive(params, tokens):
    coupled = CoupledLaw(**{name: getattr(ADDITIVE, name) for name in ("E", "A", "B", "alpha", "beta")}, kappa=1.0)
    assert coupled.loss(params, tokens) == pytest.approx(ADDITIVE.loss(params, tokens), rel=1e-14)
    assert coupled.gradient(params, tokens) == pytest.approx(ADDITIVE.gradient(params, tokens), rel=1e-12)
    assert coupled.flops_for_loss(2.5) == pytest.approx(ADDITIVE.flops_for_loss(2.5), rel=1e-12)


@pytest.mark.parametrize(("name", "sign"), [("coupled", -1), ("additive", 0), ("steep", 1)])
def test_below_one_kappa_makes_text_raise_the_worth_of_size(name, sign):
    # Videau et al. 2026: the mixed derivative has the sign of kappa - 1; the additive form forces it to zero.
    law = LAWS[name]
    with_more_text = law.gradient(1e9, 4e10)[0] - law.gradient(1e9, 2e10)[0]
    assert np.sign(with_more_text) == sign


@given(st.floats(1e6, 1e12), st.floats(1e8, 1e14))
def test_kaplan_is_coupled_without_a_floor(params, tokens):
    law = LAWS["kaplan"]
    assert law.loss(params, tokens) == pytest.approx(law.coupled.loss(params, tokens), rel=1e-12)
    assert law.gradient(params, tokens) == pytest.approx(law.coupled.gradient(params, tokens), rel=1e-12)


def test_kaplan_meets_its_single_variable_limits():
    law = LAWS["kaplan"]
    endless = 1e60
    assert law.loss(1e9, endless) == pytest.approx((6.4e13 / 1e9) ** 0.076)
    assert law.loss(endless, 1e10) == pytest.approx((1.8e13 / 1e10) ** 0.103)
    assert law.a == pytest.approx(0.5754, abs=1e-4)  # the form's own optimum; the paper's .73 is of L(N, S)


@given(st.floats(1e15, 1e26), st.floats(0.5, 5000.0))
def test_overtraining_is_the_same_by_flops_and_ratio_or_by_size_and_tokens(flops, ratio):
    law = LAWS["overtraining"]
    params, tokens = math.sqrt(flops / (6 * ratio)), math.sqrt(flops * ratio / 6)
    assert law.loss_at(flops, ratio) == pytest.approx(law.loss(params, tokens), rel=1e-12)
    assert law.additive.loss(params, tokens) == pytest.approx(law.loss(params, tokens), rel=1e-12)
    code = law.code_form()
    by_code = code["alpha"] * params ** -code["b"] + code["E"]
    by_code += code["beta"] * 6 ** (-code["b"] / 2) * (ratio * params) ** -code["b"]
    assert by_code == pytest.approx(law.loss(params, tokens), rel=1e-12)
    again = OvertrainingLaw.from_code_form(**code)
    assert again.loss(params, tokens) == pytest.approx(by_code, rel=1e-12)


def test_overtraining_s_best_ratio_is_the_same_for_every_budget():
    law = LAWS["overtraining"]
    for flops in (1e18, 1e24):
        params, tokens = law.optimum(flops)
        assert tokens / params == pytest.approx(law.optimal_tokens_per_param, rel=1e-12)
        ratios = law.optimal_tokens_per_param * np.exp(np.linspace(-3, 3, 601))
        assert law.loss_at(flops, ratios).argmin() == 300


def test_a_power_line_is_inverted_and_a_single_variable_gives_its_scale():
    line = PowerLine(intercept=2.0, slope=-0.05)
    assert line.flops_for_loss(line.loss(1e21)) == pytest.approx(1e21)
    assert line.loss(np.array([1e20, 1e21]))[1] == pytest.approx(line.loss(1e21))
    alone = SingleVariableLaw(variable="tokens", scale=5.4e13, exponent=0.095)
    assert alone.loss(5.4e13) == 1
    assert alone.loss(2 * 5.4e13) == pytest.approx(2**-0.095)
    with pytest.raises(PlanError, match="stays above 0"):
        line.flops_for_loss(0.0)
    with pytest.raises(PlanError, match="over 1e300"):
        line.flops_for_loss(1e-30)


def test_an_allocation_survives_json():
    for law in (
        AllocationLaw(coefficient=0.1, exponent=0.5),
        AllocationLaw(coefficient=0.1, exponent=0.7, line=PowerLine(intercept=2.0, slope=-0.05)),
    ):
        assert law_from_dict(json.loads(json.dumps(law.to_dict()))) == law
        assert dataclasses.replace(law, exponent=0.51).hash() != law.hash()
    flops = np.array([1e18, 1e21])
    assert law.optimum(flops)[0][1] == pytest.approx(law.optimum(1e21)[0])
    for exponent in (0.0, 1.0, 1.4):
        with pytest.raises(FitError, match="exponent"):
            AllocationLaw(coefficient=0.1, exponent=exponent)
