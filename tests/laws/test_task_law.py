"""Task laws: exact recovery, coverage by simulation, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest

from chinchilla_lm.core.errors import FitError
from chinchilla_lm.laws.task_law import TaskRun, fit_task_law, hold_out_best


def logistic(loss, slope=1.4, middle=3.0, chance=0.5):
    return chance + (1 - chance) / (1 + np.exp(slope * (np.asarray(loss) - middle)))


def exponential(loss, rate=0.8, middle=1.5, chance=0.25):
    return chance + (1 - chance) * np.exp(-rate * (np.asarray(loss) - middle))


@pytest.mark.parametrize(("truth", "chance", "form"), [(logistic, 0.5, "logistic"), (exponential, 0.25, "exponential")])
def test_noise_free_runs_give_the_truth_back(truth, chance, form):
    losses = np.linspace(2.5, 4.5, 9)
    runs = [TaskRun(loss=loss, accuracy=float(truth(loss)), standard_error=1e-4) for loss in losses]
    law = fit_task_law(runs, chance=chance)
    fit = next(one for one in law.fits if one.form == form)
    assert fit.weight > 0.99
    assert fit.scatter < 1e-3
    for loss in (2.2, 3.3):
        assert fit.accuracy(loss, chance) == pytest.approx(float(truth(loss)), abs=1e-5)
        assert law.forecast(loss).accuracy == pytest.approx(float(truth(loss)), abs=2e-3)
    assert law.warnings == ()


def simulated(draws: np.random.Generator, truth, scatter: float, items: int) -> list[TaskRun]:
    runs = []
    for loss in np.linspace(3.0, 4.8, 8):
        own = float(np.clip(truth(loss) + scatter * draws.standard_normal(), 0.01, 0.99))
        accuracy = draws.binomial(items, own) / items
        runs.append(TaskRun(loss=loss, accuracy=accuracy, standard_error=float(np.sqrt(own * (1 - own) / items))))
    return runs


@pytest.mark.parametrize(
    "truth", [logistic, lambda loss: exponential(loss, chance=0.5)], ids=["logistic", "exponential"]
)
def test_intervals_hold_the_next_model_as_often_as_they_say(truth):
    draws = np.random.default_rng(7)
    inside, trials, scatter = 0, 80, 0.01
    for trial in range(trials):
        law = fit_task_law(simulated(draws, truth, scatter, 2000), chance=0.5)
        real = 2.7
        told = real + 0.05 * draws.standard_normal()  # the forecast loss, with its 90 % interval
        forecast = law.forecast(told, (told - 0.082, told + 0.082), seed=trial)
        inside += forecast.low <= truth(real) + scatter * draws.standard_normal() <= forecast.high
    assert 0.82 <= inside / trials <= 0.99  # nominal .9; the mixture of forms makes it a little wide


def test_the_interval_grows_with_distance_doubt_and_few_items():
    runs = simulated(np.random.default_rng(1), logistic, 0.005, 5000)
    law = fit_task_law(runs, chance=0.5)

    def width(*arguments, **options):
        forecast = law.forecast(*arguments, **options)
        return forecast.high - forecast.low

    assert width(2.9) > width(3.5)
    assert width(2.9, (2.6, 3.2)) > width(2.9)
    assert width(2.9, standard_error=0.05) > width(2.9)
    assert "below the lowest" in law.forecast(1.0).warnings[0]


def test_the_best_model_held_out_is_forecast_from_the_others():
    forecast, measured = hold_out_best(simulated(np.random.default_rng(3), logistic, 0.003, 5000), chance=0.5)
    assert forecast.low <= measured <= forecast.high


def test_runs_at_chance_are_told():
    flat = [TaskRun(loss=loss, accuracy=0.5, standard_error=0.01) for loss in (3.0, 3.5, 4.0, 4.5, 5.0)]
    law = fit_task_law(flat, chance=0.5)
    assert any("above chance" in line for line in law.warnings)
    forecast = law.forecast(2.9)
    assert forecast.accuracy == pytest.approx(0.5, abs=0.02)
    assert forecast.high < 0.6


def test_what_is_no_set_of_runs_is_refused():
    run = TaskRun(loss=3.0, accuracy=0.6, standard_error=0.01)
    with pytest.raises(FitError, match="3 runs do not make a law"):
        fit_task_law([run] * 3, chance=0.5)
    with pytest.raises(FitError, match="same loss"):
        fit_task_law([run] * 5, chance=0.5)
    with pytest.raises(FitError, match="chance must lie"):
        fit_task_law([run] * 5, chance=1.0)
    law = fit_task_law(simulated(np.random.default_rng(0), logistic, 0.01, 500), chance=0.5)
    with pytest.raises(FitError, match="outside its interval"):
        law.forecast(3.0, (3.1, 3.2))
