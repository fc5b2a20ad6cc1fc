"""Forms: identities of the optimum, and the JSON round trip."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_lm.core.errors import FitError, PlanError
from chinchilla_lm.laws.forms.additive import AdditiveLaw
from chinchilla_lm.laws.forms.allocation import AllocationLaw, PowerLine

LAW = AdditiveLaw(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658)
FLOPS = st.floats(min_value=1e9, max_value=1e30)


@given(FLOPS, st.floats(min_value=1.0, max_value=20.0))
def test_optimum_spends_the_whole_budget(flops, k):
    for law in (LAW, AllocationLaw(coefficient=0.1, exponent=0.5)):
        params, tokens = law.optimum(flops, k)
        assert k * params * tokens == pytest.approx(flops, rel=1e-12)


@given(FLOPS, st.floats(min_value=0.01, max_value=100.0))
def test_no_other_split_is_better(flops, step):
    params, tokens = LAW.optimum(flops)
    assert LAW.loss(params, tokens) <= LAW.loss(params * step, tokens / step) * (1 + 1e-12)


@given(FLOPS)
def test_optimum_is_the_paper_s_closed_form(flops):
    params, tokens = LAW.optimum(flops)
    assert params == pytest.approx(LAW.G * (flops / 6) ** LAW.a, rel=1e-9)
    assert tokens == pytest.approx((flops / 6) ** LAW.b / LAW.G, rel=1e-9)
    assert LAW.a + LAW.b == pytest.approx(1)


@pytest.mark.parametrize("flops", [0.0, -1.0, math.nan, math.inf])
def test_impossible_budgets_are_refused_with_the_way_out(flops):
    with pytest.raises(PlanError, match="write a number such as 1e20"):
        LAW.optimum(flops)


def test_a_law_survives_json_and_its_hash_sees_every_constant():
    assert AdditiveLaw.from_dict(LAW.to_dict()) == LAW
    changed = {**LAW.to_dict(), "B": LAW.B * (1 + 1e-12)}
    assert AdditiveLaw.from_dict(changed).hash() != LAW.hash()
    assert AdditiveLaw.from_dict(LAW.to_dict()).hash() == LAW.hash()


@pytest.mark.parametrize(
    ("change", "words"),
    [({"B": None}, "lacks the number 'B'"), ({"form": "broken"}, "form 'broken'"), ({"alpha": -0.1}, "alpha=-0.1")],
)
def test_a_law_that_is_none_is_refused(change, words):
    with pytest.raises(FitError, match=words):
        AdditiveLaw.from_dict({**LAW.to_dict(), **change})


def test_an_unknown_convention_is_refused():
    with pytest.raises(FitError, match="matmul"):
        AdditiveLaw(E=1, A=1, B=1, alpha=1, beta=1, params_convention="all")  # type: ignore[arg-type]


def test_a_power_line_is_straight_in_logs():
    line = PowerLine(intercept=2.0, slope=-0.05)
    assert line.loss(1e20) / line.loss(1e21) == pytest.approx(10**0.05)
