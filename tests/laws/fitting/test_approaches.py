"""All three approaches on one table: agreement where the law holds, plain words and a way out where they clash."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from chinchilla_lm.core.errors import FitError
from chinchilla_lm.laws.fitting.approaches import fit_all
from chinchilla_lm.laws.fitting.envelope import Curve
from chinchilla_lm.laws.forms.additive import AdditiveLaw
from chinchilla_lm.laws.table import RunTable


def wide_asymmetric_sweep():
    law = AdditiveLaw(E=1.69, A=406.4, B=410.7, alpha=0.465, beta=0.155)
    flops = np.repeat(np.geomspace(1e18, 1e20, 5), 9)
    params = np.array([law.optimum(c)[0] for c in flops]) * np.tile(np.logspace(-1.2, 1.2, 9), 5)
    tokens = flops / 6 / params
    loss = law.loss(params, tokens) * np.exp(0.002 * np.random.default_rng(0).standard_normal(45))
    return law, RunTable(params=params, tokens=tokens, flops=flops, loss=loss)


def curves_of(law):
    grids = [(size, 20 * size * np.geomspace(1 / 30, 30, 200)) for size in np.geomspace(4.6e7, 1.6e10, 15)]
    return [Curve(params=size, tokens=tokens, loss=law.loss(np.full(200, size), tokens)) for size, tokens in grids]


def test_the_three_agree_where_the_law_holds(simulate, truth):
    found = fit_all(simulate(seed=2, noise=0.001), curves=curves_of(truth), schedule="constant")
    assert [answer.approach for answer in found.answers] == ["envelope", "isoflop", "parametric"]
    assert found.agree is True
    assert not found.warnings
    assert found.flops == pytest.approx(1e21)
    for answer in found.answers:
        assert answer.params == pytest.approx(truth.optimum(1e21)[0], rel=0.1)
        assert answer.interval is not None


def test_a_parabola_off_by_its_bias_is_flagged_with_its_remedy():
    law, table = wide_asymmetric_sweep()
    found = fit_all(table)
    assert found.agree is False
    assert 'remedy "law"' in found.warnings[0]
    assert "approach 2 says" in found.warnings[0]
    assert found.answers[-1].params == pytest.approx(law.optimum(found.flops)[0], rel=0.05)


def test_unfinished_curves_that_contradict_finished_runs_are_blamed(simulate, truth):
    # Losses in the middle of a schedule are too high; the later, the less: large models look worse than they are.
    late = [
        replace(curve, loss=curve.loss * (1 + 0.1 * np.linspace(1, 0, 200) * (curve.params / 4.6e7) ** 0.2))
        for curve in curves_of(truth)
    ]
    found = fit_all(simulate(seed=2, noise=0.001), curves=late, schedule="cosine")
    assert found.agree is False
    assert any("leave approach 1 out" in warning for warning in found.warnings)


def test_what_the_table_does_not_allow_is_left_out_and_said(truth):
    rng = np.random.default_rng(0)
    params, ratio = 10 ** rng.uniform(7.5, 9.5, 30), 10 ** rng.uniform(0.7, 2, 30)
    tokens = params * ratio
    loss = truth.loss(params, tokens) * np.exp(0.002 * rng.standard_normal(30))
    found = fit_all(RunTable(params=params, tokens=tokens, flops=6 * params * tokens, loss=loss), target_flops=1e22)
    assert found.envelope is None
    assert found.flops == 1e22
    assert any("approach 1 was left out" in warning for warning in found.warnings)
    assert found.isoflop is not None or any("approach 2 was left out" in warning for warning in found.warnings)


def test_the_chinchilla_runs_agree_beyond_their_range(epoch_table):
    found = fit_all(epoch_table, params_convention="total")
    assert found.agree is True
    assert found.parametric.law.params_convention == "total"
    assert found.isoflop.law.params_convention == "total"


def test_a_table_too_small_for_approach_3_is_refused(simulate):
    table = simulate(seed=0)
    few = RunTable(params=table.params[:4], tokens=table.tokens[:4], flops=table.flops[:4], loss=table.loss[:4])
    with pytest.raises(FitError, match="give a prior"):
        fit_all(few)


def test_the_record_is_json(simulate):
    record = json.loads(json.dumps(fit_all(simulate(seed=1)).to_dict(), allow_nan=False))
    assert record["method"] == "all"
    assert record["comparison"]["answers"][0]["approach"] == "isoflop"
