"""Which settings a search tries, and who chooses them: optuna where it is installed, else a seeded draw.

    chooser.propose(number) -> values          the first are the config's own, so that a search can only gain
    chooser.report(number, rung, score)        -> whether to go on; rungs are quarters of the updates
    chooser.finish(number, score)

Both choosers are pure functions of the seed and of what was reported: a killed search goes on as it would have. Scores
are better when higher.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from chinchilla_lm.tune.config import TuneConfig

Values = dict[str, Any]

RUNGS = 4
"""Validations of a trial, at equal parts of its updates; it may be stopped after each but the last."""
# Rates a factor of five around the method's own cover what the literature's grids do (Devlin et al. 2019: 2e-5 to 5e-5;
# Hu et al. 2022: 2e-4 to 1e-3).
_RATE_FACTOR = 5.0
# A trial is stopped when it is not among the better half of those that reached the same rung (Li et al. 2020, ASHA with
# eta = 2), once so many have.
_LEAST_SEEN = 3


@dataclass(frozen=True, kw_only=True)
class Dial:
    """One setting: a range on a logarithmic scale, or a few values."""

    name: str
    low: float = 0.0
    high: float = 0.0
    values: tuple[Any, ...] = ()

    @property
    def is_range(self) -> bool:
        """Say whether it is continuous."""
        return not self.values


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A finished trial as it was recorded.

    Attributes:
        number: from 0.
        values: of the dials.
        reports: rung -> score at that rung.
        score: the best validation; None where it was stopped early or failed.
        state: "finished", "stopped", "failed".
    """

    number: int
    values: Values
    reports: Mapping[int, float]
    score: float | None
    state: str


class Chooser(Protocol):
    """Proposes settings and stops trials that lag."""

    name: str

    def propose(self, number: int) -> Values:
        """Return the values of a trial's dials."""
        ...

    def goes_on(self, number: int, rung: int, score: float) -> bool:
        """Take the score of a trial at a rung, and say whether it goes on."""
        ...

    def finish(self, trial: Trial) -> None:
        """Learn from a trial."""
        ...


def dials_of(config: TuneConfig, rate: float) -> tuple[Dial, ...]:
    """Return what is worth searching for a method, around the config's own values.

    Args:
        config: method, epochs, rows and rank are the middle.
        rate: the learning rate by rule, or the config's own.
    """
    dials = [
        Dial(name="lr", low=rate / _RATE_FACTOR, high=rate * _RATE_FACTOR),
        Dial(name="rows", values=_around(config.rows, (8, 16, 32))),
        Dial(name="warmup", values=_around(config.warmup, (0.0, 0.1))),
    ]
    if config.steps is None:
        dials.append(Dial(name="epochs", values=_around(config.epochs, (config.epochs / 2, config.epochs * 2))))
    if config.method == "lora":
        dials.append(Dial(name="rank", values=_around(config.rank, (4, 8, 16, 32))))
    if config.method == "full":
        dials.append(Dial(name="layer_decay", values=_around(config.layer_decay, (1.0, 0.95, 0.9))))
    if config.method in ("full", "top-k", "gradual"):
        dials.append(Dial(name="weight_decay", values=_around(config.weight_decay, (0.01, 0.1))))
    return tuple(dials)


def make_chooser(dials: Sequence[Dial], own: Values, seed: int) -> Chooser:
    """Return optuna's chooser where the package is installed, else the seeded draw.

    Args:
        dials: what varies.
        own: the first trial's values.
        seed: of every draw.
    """
    try:
        import optuna  # an optional package  # noqa: F401
    except ImportError:
        return RandomChooser(dials=dials, own=own, seed=seed)
    return OptunaChooser(dials=dials, own=own, seed=seed)


@dataclass(kw_only=True)
class RandomChooser:
    """Independent draws; a trial below the median of its rung is stopped."""

    dials: Sequence[Dial]
    own: Values
    seed: int
    name: str = "random draws, successive halving"
    seen: dict[int, dict[int, float]] = field(default_factory=dict)
    """rung -> trial -> score."""

    def propose(self, number: int) -> Values:
        """Draw each dial; logarithmically in a range."""
        if number == 0:
            return dict(self.own)
        generator = random.Random(f"{self.seed}/{number}")
        return {dial.name: _draw(dial, generator) for dial in self.dials}

    def goes_on(self, number: int, rung: int, score: float) -> bool:
        """Compare with all that reached the rung."""
        others = self.seen.setdefault(rung, {})
        others[number] = score
        if len(others) < _LEAST_SEEN:
            return True
        better = sum(other > score for other in others.values())
        return better < math.ceil(len(others) / 2)

    def finish(self, trial: Trial) -> None:
        """Remember its reports; those of a resumed search come only here."""
        for rung, score in trial.reports.items():
            self.seen.setdefault(rung, {})[trial.number] = score


@dataclass(kw_only=True)
class OptunaChooser:
    """Tree-structured Parzen estimator with successive halving (Bergstra et al. 2011; Li et al. 2020)."""

    dials: Sequence[Dial]
    own: Values
    seed: int
    name: str = "optuna: TPE, successive halving"

    def __post_init__(self) -> None:
        """Make an empty study in memory; the search's own records are what lasts."""
        import optuna  # an optional package, present where this class is used

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna = optuna
        self._study = optuna.create_study(
            direction="maximize",
            pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2),
        )
        self._open: dict[int, Any] = {}

    def propose(self, number: int) -> Values:
        """Ask the study; its sampler is seeded by the trial's number, so that a resumed search asks the same."""
        if number == 0:
            self._study.enqueue_trial(self.own)
        self._study.sampler = self._optuna.samplers.TPESampler(
            seed=self.seed * 100_003 + number, n_startup_trials=5, multivariate=True
        )
        trial = self._study.ask(self._distributions())
        self._open[number] = trial
        return {dial.name: trial.params[dial.name] for dial in self.dials}

    def goes_on(self, number: int, rung: int, score: float) -> bool:
        """Report to the pruner; a rung is its resource."""
        trial = self._open[number]
        trial.report(score, rung)
        return not trial.should_prune()

    def finish(self, trial: Trial) -> None:
        """Tell the study, or add a trial that an earlier process ran."""
        states = self._optuna.trial.TrialState
        state = {"finished": states.COMPLETE, "stopped": states.PRUNED, "failed": states.FAIL}[trial.state]
        if (opened := self._open.pop(trial.number, None)) is not None:
            value = trial.score if trial.state == "finished" else None
            self._study.tell(opened, value, state=None if value is not None else state)
            return
        self._study.add_trial(
            self._optuna.trial.create_trial(
                params={dial.name: trial.values[dial.name] for dial in self.dials},
                distributions=self._distributions(),
                intermediate_values=dict(trial.reports),
                value=trial.score if trial.state == "finished" else (_last(trial.reports) if trial.reports else None),
                state=state if trial.reports or trial.state == "finished" else states.FAIL,
            )
        )

    def _distributions(self) -> dict[str, Any]:
        kinds = self._optuna.distributions
        return {
            dial.name: kinds.FloatDistribution(dial.low, dial.high, log=True)
            if dial.is_range
            else kinds.CategoricalDistribution(dial.values)
            for dial in self.dials
        }


def _around(own: Any, others: Sequence[Any]) -> tuple[Any, ...]:
    """Return the config's own value and the others, each once, sorted."""
    return tuple(sorted({own, *others}))


def _draw(dial: Dial, generator: random.Random) -> Any:
    if dial.is_range:
        return math.exp(generator.uniform(math.log(dial.low), math.log(dial.high)))
    return generator.choice(dial.values)


def _last(reports: Mapping[int, float]) -> float:
    return reports[max(reports)]
