"""Designed sweeps against grids: simulate runs of known truths, refit them, and compare the errors of the answers.

Run: python bench/design.py [--json] [--draws 300]. About two minutes on one core.

Every contender's losses are simulated with .3 % of noise from truths that the additive fit holds exactly or only
nearly; each simulated table is refitted by Huber regression in logs (delta 1.345 sd), and the refit's N*(1e24) and
L*(1e24) are compared with the truth's: four decades beyond the largest run. Branches share half of the noise variance
of their trunk. The designs know the additive law of the truth, or the published laws of other fits; none knows what is
wrong.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from simulated_laws import Loss, coupled

from chinchilla_lm.laws.fitting.additive import fit_additive
from chinchilla_lm.laws.fitting.solver import centred_problem, centred_theta, natural_constants, refit
from chinchilla_lm.laws.forms.additive import AdditiveLaw
from chinchilla_lm.laws.planning.candidates import Space
from chinchilla_lm.laws.planning.costs import CostModel
from chinchilla_lm.laws.planning.design import Rules, suggest_runs
from chinchilla_lm.laws.planning.precision import Belief, Goal, Misfit
from chinchilla_lm.laws.published import PUBLISHED_LAWS, published_law

LAW = published_law("besiroglu2024").law
NOISE_SD = 0.003
TARGET_FLOPS = 1e24
SHARED = 0.5
COOLDOWN = 0.2
SPACE = Space(flops_low=3e17, flops_high=1e20)  # the grids' largest run; 1 to 400 tokens per parameter
GRID_FLOPS = np.geomspace(1e18, 1e20, 5)
N_RUNS = 35


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Runs of a contender; `is_branched` says that runs of one size share a trunk."""

    name: str
    params: np.ndarray
    tokens: np.ndarray
    flops: float
    is_branched: bool = False


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Errors of the refits of one sweep under one truth, in nats."""

    sweep: str
    truth: str
    size_bias: float
    size_sd: float
    size_rmse: float
    loss_bias: float
    loss_sd: float
    loss_rmse: float


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print every outcome as one JSON document")
    parser.add_argument("--draws", type=int, default=300, help="simulated tables for each sweep and truth")
    options = parser.parse_args(arguments)
    sweeps = contenders()
    outcomes = [measure(sweep, name, truth, options.draws) for sweep in sweeps for name, truth in TRUTHS.items()]
    if options.json:
        print(json.dumps([vars(outcome) for outcome in outcomes]))
        return 0
    print_table(sweeps, outcomes)
    print_prices()
    return 0


def contenders() -> list[Sweep]:
    sweeps = [isoflop(width) for width in (0.35, 0.5, 0.7, 1.0)]
    # The shape of OLMo's ladder (Bhagia et al. 2024): five sizes by .5 to 10 times 20 tokens per parameter.
    sizes, lengths = np.geomspace(5.2e7, 4.8e8, 5), np.array([0.5, 1, 2, 5, 10])
    params = np.repeat(sizes, 5)
    tokens = 20 * params * np.tile(lengths, 5)
    sweeps.append(Sweep(name="ladder 5 x 5", params=params, tokens=tokens, flops=float((6 * params * tokens).sum())))
    others = tuple(
        row.law
        for row in PUBLISHED_LAWS.values()
        if isinstance(row.law, AdditiveLaw) and row.law.params_convention == "total" and "besiroglu" not in row.name
    )
    budget = sweeps[0].flops / 4
    trusting = Misfit(coupling=0.0, drift=0.0, small_scale=0.0)
    branches = CostModel(cooldown_fraction=COOLDOWN)
    sweeps.append(designed("design, form trusted", Belief(laws=(LAW,), noise_sd=NOISE_SD, misfit=trusting), budget))
    for name, laws in (("law known", (LAW,)), ("other laws", others)):
        sweeps.append(designed(f"design, {name}", Belief(laws=laws, noise_sd=NOISE_SD), budget))
        sweeps.append(designed(f"branches, {name}", Belief(laws=laws, noise_sd=NOISE_SD), budget, branches))
    return sweeps


def isoflop(half_width: float) -> Sweep:
    """Five budgets by seven sizes, up to `half_width` decades from the optimum on both sides."""
    flops = np.repeat(GRID_FLOPS, 7)
    centre = np.array([LAW.optimum(float(budget))[0] for budget in flops])
    params = centre * np.tile(10 ** np.linspace(-half_width, half_width, 7), len(GRID_FLOPS))
    return Sweep(
        name=f"IsoFLOP 5 x 7, +-{half_width:g}", params=params, tokens=flops / 6 / params, flops=float(flops.sum())
    )


def designed(name: str, belief: Belief, budget: float, cost_model: CostModel | None = None) -> Sweep:
    found = suggest_runs(
        belief,
        Goal(flops=TARGET_FLOPS),
        budget,
        space=SPACE,
        cost_model=cost_model,
        rules=Rules(most_runs=N_RUNS, trunk_share=SHARED),
    )
    params, tokens = np.array([run.params for run in found.runs]), np.array([run.tokens for run in found.runs])
    return Sweep(name=name, params=params, tokens=tokens, flops=found.cost, is_branched=cost_model is not None)


def measure(sweep: Sweep, truth_name: str, truth: Loss, draws: int) -> Outcome:
    params, tokens = sweep.params, sweep.tokens
    expected = truth(params, tokens)
    noise = simulated_noise(sweep, draws)
    delta = 1.345 * NOISE_SD
    start = fit_additive(params, tokens, expected, delta=delta).law
    theta = refit(
        centred_theta(start, params, tokens),
        centred_problem(params, tokens, expected, delta=delta),
        loss_kn=expected * np.exp(noise),
    )
    size_errors, loss_errors = [], []
    true_size, true_loss = optimum(truth)
    for E, A, B, alpha, beta in natural_constants(theta, params, tokens):
        law = AdditiveLaw(E=E, A=A, B=B, alpha=alpha, beta=beta)
        size, length = law.optimum(TARGET_FLOPS)
        size_errors.append(math.log(size / true_size))
        loss_errors.append(math.log(law.loss(size, length) / true_loss))
    size_array, loss_array = np.array(size_errors), np.array(loss_errors)
    return Outcome(
        sweep=sweep.name,
        truth=truth_name,
        size_bias=float(size_array.mean()),
        size_sd=float(size_array.std()),
        size_rmse=float(np.sqrt((size_array**2).mean())),
        loss_bias=float(loss_array.mean()),
        loss_sd=float(loss_array.std()),
        loss_rmse=float(np.sqrt((loss_array**2).mean())),
    )


def simulated_noise(sweep: Sweep, draws: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    own = rng.standard_normal((draws, len(sweep.params)))
    if not sweep.is_branched:
        return NOISE_SD * own
    sizes, trunk = np.unique(sweep.params, return_inverse=True)
    shared = rng.standard_normal((draws, len(sizes)))[:, trunk]
    return NOISE_SD * (math.sqrt(1 - SHARED) * own + math.sqrt(SHARED) * shared)


def optimum(truth: Loss) -> tuple[float, float]:
    """The truth's N* and L* at the target, by golden search."""

    def loss(log_params: float) -> float:
        size = math.exp(log_params)
        return float(truth(np.array([size]), np.array([TARGET_FLOPS / 6 / size]))[0])

    found = minimize_scalar(loss, bounds=(math.log(1e8), math.log(1e13)), method="bounded", options={"xatol": 1e-9})
    return math.exp(found.x), float(found.fun)


def additive(params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    return np.asarray(LAW.loss(params, tokens))


def drifting(params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """The size exponent falls by .016 with each decade of N from 1e8."""
    decades = np.log10(params / 1e8)
    return additive(params, tokens) + LAW.A * params**-LAW.alpha * (10 ** (0.008 * decades**2) - 1)


def short_runs(params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """1 % worse at 1e18 FLOPs, fading as C^-1/2: warm-up."""
    return additive(params, tokens) * (1 + 0.01 * np.sqrt(1e18 / (6 * params * tokens)))


def small_models(params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """2 % worse at 20M params, fading as 1/N: what counting embeddings or depth does."""
    return additive(params, tokens) * (1 + 0.02 * 2e7 / params)


def untuned_ratios(params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Worse by .3 % times the squared decades from 20 tokens per parameter: settings tuned there alone."""
    return additive(params, tokens) * (1 + 0.003 * np.log10(tokens / params / 20) ** 2)


TRUTHS: dict[str, Loss] = {
    "additive": additive,
    "k = .9": coupled(LAW, 0.9),
    "k = 1.1": coupled(LAW, 1.1),
    "alpha drifts": drifting,
    "short runs": short_runs,
    "small models": small_models,
    "ratios": untuned_ratios,
}


def print_table(sweeps: Sequence[Sweep], outcomes: Sequence[Outcome]) -> None:
    print(f"RMSE of ln N*({TARGET_FLOPS:g}) | RMSE of ln L*, per cent; noise {100 * NOISE_SD:g} %")
    print(f"{'':24}{'FLOPs':>9}{'runs':>5}" + "".join(f"{name:>15}" for name in TRUTHS))
    for sweep in sweeps:
        cells = [outcome for outcome in outcomes if outcome.sweep == sweep.name]
        texts = "".join(f"{cell.size_rmse:8.3f} |{100 * cell.loss_rmse:5.2f}" for cell in cells)
        print(f"{sweep.name:24}{sweep.flops:9.2g}{len(sweep.params):5d}{texts}")


def print_prices() -> None:
    """The least compute at which a design's linearised noise is that of the grid of half-width .5: .107 and 1.00 %."""
    grid_flops = 7 * float(GRID_FLOPS.sum())
    trusting = Misfit(coupling=0.0, drift=0.0, small_scale=0.0)
    for misfit_name, misfit in (("form trusted", trusting), ("form doubted", Misfit())):
        belief = Belief(laws=(LAW,), noise_sd=NOISE_SD, misfit=misfit)
        for name, model in (("separate runs", CostModel()), ("branches", CostModel(cooldown_fraction=COOLDOWN))):
            for share in np.geomspace(0.05, 0.6, 20):
                rules = Rules(most_runs=N_RUNS, trunk_share=SHARED)
                found = suggest_runs(
                    belief,
                    Goal(flops=TARGET_FLOPS),
                    share * grid_flops,
                    space=SPACE,
                    cost_model=model,
                    rules=rules,
                )
                if found.sd_after["size"].noise <= 0.107 and found.sd_after["loss"].noise <= 0.0100:
                    part = 100 * found.cost / grid_flops
                    print(f"{misfit_name}, {name}: the +-.5 grid's noise at {part:.0f} % of its FLOPs")
                    break


if __name__ == "__main__":
    sys.exit(main())
