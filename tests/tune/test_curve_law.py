"""The learning curve's law: a known curve is found, its interval is honest, and what cannot be known is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from chinchilla_lm.core.errors import FitError
from chinchilla_lm.metrics.measures import Measures, mean_of
from chinchilla_lm.tune.curve_law import CurvePoint, fit_curve


def _accuracy(error: float, rows: int, order_n: np.ndarray) -> Measures:
    """Measures of a model that misses the hardest rows; `order_n` ranks the rows."""
    wrong = order_n < round(error * rows)
    return mean_of({"accuracy": (~wrong).astype(float).tolist()}, "accuracy")


def _points(floor: float, scale: float, exponent: float, noise: float = 0.0, seed: int = 0) -> list[CurvePoint]:
    generator = np.random.default_rng(seed)
    tests = 4000
    order_n = generator.permutation(tests)
    points = []
    for rows in (100, 200, 400, 800, 1600):
        error = (floor + scale * rows**-exponent) * np.exp(noise * generator.standard_normal())
        points.append(CurvePoint(rows=rows, measures=_accuracy(error, tests, order_n)))
    return points


@pytest.mark.parametrize(("floor", "scale", "exponent"), [(0.05, 2.0, 0.5), (0.0, 1.5, 0.3), (0.1, 4.0, 0.8)])
def test_a_curve_without_noise_is_continued(floor: float, scale: float, exponent: float) -> None:
    law = fit_curve(_points(floor, scale, exponent), draws=100)
    truth = {rows: 1 - floor - scale * rows**-exponent for rows in (1600, 3200)}
    assert law.doubled.rows == 3200
    assert law.doubled.value == pytest.approx(truth[3200], abs=0.006)
    assert law.gain == pytest.approx(truth[3200] - truth[1600], abs=0.006)
    assert law.gain_low < law.gain < law.gain_high
    assert law.doubled.low < law.doubled.value < law.doubled.high


def test_errors_themselves_and_sacrebleus_unit_are_understood() -> None:
    losses = [mean_of({"loss": [1.0 + 3 * rows**-0.5] * 50}, "loss", higher_is_better=False) for rows in (50, 200, 800)]
    law = fit_curve(
        [CurvePoint(rows=rows, measures=each) for rows, each in zip((50, 200, 800), losses, strict=True)], draws=60
    )
    assert law.gain < 0
    assert law.doubled.value == pytest.approx(1 + 3 * 1600**-0.5, abs=0.03)
    bleu = [mean_of({"bleu": [100 - 90 * rows**-0.1] * 50}, "bleu") for rows in (50, 200, 800)]
    law = fit_curve(
        [CurvePoint(rows=rows, measures=each) for rows, each in zip((50, 200, 800), bleu, strict=True)], draws=60
    )
    assert law.doubled.value == pytest.approx(100 - 90 * 1600**-0.1, abs=1.5)


def test_noise_widens_the_interval_and_is_seen() -> None:
    calm, rough = (fit_curve(_points(0.05, 2.0, 0.5, noise=noise, seed=3), draws=200) for noise in (0.0, 0.3))
    assert rough.noise > 2 * calm.noise
    assert rough.gain_high - rough.gain_low > 1.5 * (calm.gain_high - calm.gain_low)


@pytest.mark.slow
def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Thirty simulated curves with 5 % of training noise; 90 % intervals miss about three."""
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(30):
        exponent, floor = generator.uniform(0.2, 0.7), generator.uniform(0.0, 0.1)
        scale = generator.uniform(0.1, 0.3) * 1600**exponent
        law = fit_curve(_points(floor, min(scale, 0.8 * 100**exponent), exponent, 0.05, trial), draws=200, seed=trial)
        truth = min(scale, 0.8 * 100**exponent) * (1600**-exponent - 3200**-exponent)
        covered += law.gain_low <= truth <= law.gain_high
    assert covered >= 24


def test_the_record_is_plain_and_says_what_it_leans_on() -> None:
    law = fit_curve(_points(0.05, 2.0, 0.5)[2:], draws=50)
    record = json.loads(json.dumps(law.as_record(), allow_nan=False))
    assert record["curve"][-1] == record["doubled"]
    assert {"rows", "value", "low", "high"} == set(record["points"][0])
    assert "Twice the rows (1600 more)" in record["sentence"]
    assert any("prior" in warning for warning in law.warnings)
    flat = fit_curve(
        [CurvePoint(rows=n, measures=mean_of({"accuracy": [1.0, 0.0] * 50}, "accuracy")) for n in (10, 40, 90)],
        draws=50,
    )
    assert any("does not fall" in warning for warning in flat.warnings)


def test_two_numbers_of_rows_are_refused() -> None:
    with pytest.raises(FitError, match="tune on at least 3"):
        fit_curve(_points(0.05, 2.0, 0.5)[:2])
