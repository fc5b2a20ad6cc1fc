"""`find_law`: its numbers against the laws that they come from; curves, repeats and requests."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from chinchilla_lm.core.errors import FitError
from chinchilla_lm.laws.findings.curves import runs_and_curves
from chinchilla_lm.laws.findings.find import find_law
from chinchilla_lm.laws.findings.fitted import Fitted, fit_law
from chinchilla_lm.laws.findings.repeats import worth_of
from chinchilla_lm.laws.findings.request import FitRequest, Target
from chinchilla_lm.laws.fitting.additive import fit_additive
from chinchilla_lm.laws.fitting.intervals import parameter_intervals
from chinchilla_lm.laws.forms.additive import AdditiveLaw
from chinchilla_lm.laws.forms.record import law_from_dict
from chinchilla_lm.laws.forms.repetition import RepetitionLaw
from chinchilla_lm.laws.table import RunTable

TRUTH = AdditiveLaw(E=1.8, A=482.0, B=2085.0, alpha=0.348, beta=0.366, params_convention="total")


def sweep(noise: float = 0.003, unique_share: float | None = None) -> RunTable:
    rng = np.random.default_rng(5)
    flops = np.repeat(np.geomspace(1e18, 1e21, 7), 7)
    params = TRUTH.optimum(flops)[0] * np.tile(np.geomspace(0.2, 5, 7), 7)
    tokens = flops / 6 / params
    loss = TRUTH.loss(params, tokens) * np.exp(rng.normal(scale=noise, size=len(flops)))
    unique = None if unique_share is None else tokens * unique_share
    return RunTable(params=params, tokens=tokens, flops=flops, loss=loss, unique_tokens=unique)


def quick(**asked) -> FitRequest:
    return FitRequest(**{"bootstrap": 0, "diagnosis": False, **asked})


def test_the_fit_and_its_intervals_are_those_of_the_library():
    table = sweep()
    record = find_law(table, quick())
    fit = fit_additive(table.params, table.tokens, table.loss)
    made = parameter_intervals(table, replace(fit, law=replace(fit.law, params_convention="total")))
    for name in ("E", "A", "B", "alpha", "beta"):
        assert record[name] == getattr(fit.law, name)
    for name in ("E", "A", "B", "alpha", "beta", "a", "b"):
        assert record["intervals"][name] == made.ranges[name].to_dict()


def test_optima_and_frontier_are_the_laws_own():
    record = find_law(sweep(), quick())
    law = law_from_dict(record)
    assert isinstance(law, AdditiveLaw)
    assert [one["flops"] for one in record["optima"]] == [1e21, 1e22, 1e23]
    for one in record["optima"]:
        assert (one["params"], one["tokens"]) == law.optimum(one["flops"])
        assert one["loss"] == law.optimal_loss(one["flops"])
        assert one["intervals"]["loss"]["low"] < one["loss"] < one["intervals"]["loss"]["high"]
    for flops, loss in zip(record["frontier"]["flops"], record["frontier"]["loss"], strict=True):
        assert loss == pytest.approx(law.optimal_loss(flops))


@pytest.mark.parametrize("form", ["additive", "coupled", "kaplan", "overtraining", "repetition"])
def test_a_resample_is_the_law_that_its_six_constants_say(form):
    # The band is drawn from six constants a row; the law's own optimum, by another road, must agree.
    table = sweep(unique_share=2.0)
    made = fit_law(table, form, FitRequest(form=form, intervals="pairs", bootstrap=3), (1e22,))
    law = made.law
    inner = getattr(law, "coupled", getattr(law, "additive", law))  # kaplan and overtraining in these constants
    kappa = getattr(inner, "kappa", 1.0)
    own = np.array([[inner.E, inner.A, inner.B, inner.alpha, inner.beta, kappa]])
    single: Fitted = replace(made, draws_k6=np.repeat(own, 2, axis=0))
    flops = np.array([1e19, 1e22, 1e25])
    assert np.exp(single.optimal_losses(flops)[0]) == pytest.approx(law.optimal_loss(flops), rel=1e-6)
    assert single.optima_of_draws(1e22)["params"].low == pytest.approx(law.optimum(1e22)[0], rel=1e-5)
    assert len(made.draws_k6) == 3
    assert made.optima[1e22].keys() == {"params", "tokens", "loss"}


def test_intervals_by_resampling_hold_the_truth_and_agree():
    # On independent noise all schemes are right, so their widths agree within a factor 2.
    widths = {}
    for method in ("pairs", "wild", "parametric"):
        record = find_law(sweep(), FitRequest(intervals=method, bootstrap=300, diagnosis=False))
        interval = record["intervals"]["a"]
        assert interval["low"] < TRUTH.a < interval["high"]
        widths[method] = interval["high"] - interval["low"]
    assert max(widths.values()) < 2 * min(widths.values())


def test_the_record_is_json_and_the_same_again():
    table = sweep().take(np.arange(0, 49, 3))
    first, second = (json.dumps(find_law(table, FitRequest(bootstrap=30)), allow_nan=False) for _ in range(2))
    assert first == second


def test_repeated_text_is_worth_what_the_law_says():
    law = RepetitionLaw.from_additive(TRUTH)
    table = sweep(unique_share=0.2)
    loss = law.loss(table.params, table.tokens, table.unique_tokens)
    table = replace(table, loss=loss)
    made = fit_law(table, "repetition", quick(form="repetition"), ())
    worth = worth_of(table, replace(made, law=law))
    assert TRUTH.loss(worth.params, worth.tokens) == pytest.approx(loss, rel=1e-12)
    assert (worth.tokens < table.tokens).all()


def test_checkpoints_become_curves_and_their_last_lines_runs():
    params = np.repeat([1e8, 3e8, 1e9], 4)
    tokens = np.tile([4e9, 1e9, 2e9, 3e9], 3)  # out of order
    table = RunTable(
        params=params,
        tokens=tokens,
        flops=6 * params * tokens,
        loss=TRUTH.loss(params, tokens),
        labels=tuple("aaaabbbbcccc"),
    )
    runs, curves = runs_and_curves(table, quick())
    assert runs.tokens.tolist() == [4e9, 4e9, 4e9]
    assert [curve.tokens.tolist() for curve in curves] == [[1e9, 2e9, 3e9, 4e9]] * 3
    assert "9 earlier lines of 3 runs were left out" in runs.warnings[0]
    whole, curves = runs_and_curves(table, quick(checkpoints="all"))
    assert len(whole.loss) == 12
    assert len(curves) == 3
    # A name that stands for runs of several sizes (a seed, say) names no curve.
    seeds = replace(table, labels=tuple("xyzw" * 3))
    assert runs_and_curves(seeds, quick()) == (seeds, ())


@pytest.mark.parametrize(
    ("target", "params", "tokens"),
    [
        (Target(flops=1e22), None, None),
        (Target(params=2e9, tokens=1e11), 2e9, 1e11),
        (Target(flops=1e22, params=2e9), 2e9, 1e22 / 6 / 2e9),
        (Target(flops=1e22, tokens=1e11), 1e22 / 6 / 1e11, 1e11),
    ],
)
def test_a_target_is_completed(target, params, tokens):
    record = find_law(sweep(), quick(target=target))
    ahead = record["forecast"]
    best = law_from_dict(record).optimum(ahead["flops"])
    assert ahead["params"] == pytest.approx(best[0] if params is None else params)
    assert ahead["tokens"] == pytest.approx(best[1] if tokens is None else tokens)
    assert ahead["low"] < TRUTH.loss(ahead["params"], ahead["tokens"]) < ahead["high"]


def test_the_widest_interval_belongs_to_the_farthest_run():
    widths = []
    for flops in (1e21, 1e22, 1e23):
        ahead = find_law(sweep(), quick(target=Target(flops=flops)))["forecast"]
        widths.append(np.log(ahead["high"] / ahead["low"]))
    assert widths == sorted(widths)


@pytest.mark.parametrize("column", ["params", "tokens"])
def test_a_size_that_never_changes_is_refused(column):
    table = replace(sweep(), **{column: np.full(49, 1e9)})
    with pytest.raises(FitError, match=f"all 49 runs have 1e\\+09 {column}"):
        find_law(table, quick())


def test_the_240_runs_of_epoch_give_the_papers_corrected_law(shared_data):
    # Besiroglu et al. 2024 at the paper's delta: the sum's global optimum (recomputed from the public runs).
    from chinchilla_lm.laws.columns import Layout
    from chinchilla_lm.laws.table import read_runs

    layout = Layout(where=("in_besiroglu_240=True",))
    table = read_runs(shared_data / "laws" / "epoch_chinchilla.csv", layout)
    record = find_law(table, quick(delta=1e-3, method="all"))
    assert record["A"] == pytest.approx(477.83, abs=0.05)
    assert record["alpha"] == pytest.approx(0.34731, abs=1e-5)
    assert record["objective"] == pytest.approx(1.0182740e-3, rel=1e-6)
    assert {answer["approach"] for answer in record["approaches"]["answers"]} == {"isoflop", "parametric"}
