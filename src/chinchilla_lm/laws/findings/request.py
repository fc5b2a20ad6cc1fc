"""What is asked of a table of runs. A request is a value; settings that conflict are refused, none is ignored."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from chinchilla_lm.core.errors import FitError
from chinchilla_lm.laws.count import ParamsConvention
from chinchilla_lm.laws.fitting.additive import Prior
from chinchilla_lm.laws.fitting.envelope import Schedule
from chinchilla_lm.laws.fitting.isoflop import Remedy

Method = Literal["parametric", "isoflop", "envelope", "all"]
Form = Literal["additive", "coupled", "kaplan", "overtraining", "repetition", "best"]
Objective = Literal["huber", "lad", "ls"]
IntervalMethod = Literal["profile", "delta", "pairs", "wild", "cluster", "parametric"]
ClusterBy = Literal["run", "params"]
Checkpoints = Literal["final", "all"]

# Huber's turn in ln L: 1e-9 is least absolute deviations to five digits on Epoch's runs, 1 is least squares of logs.
_DELTAS = {"lad": 1e-9, "ls": 1.0}


@dataclass(frozen=True, kw_only=True)
class Target:
    """A run to forecast: at least one of a compute, and a size with its tokens.

    Attributes:
        flops: C > 0; alone, the best size for it is taken.
        params: N > 0.
        tokens: D > 0.
    """

    flops: float | None = None
    params: float | None = None
    tokens: float | None = None

    def __post_init__(self) -> None:
        """Refuse a target that names no run.

        Raises:
            FitError: see the message.
        """
        for name in ("flops", "params", "tokens"):
            amount = getattr(self, name)
            if amount is not None and not (math.isfinite(amount) and amount > 0):
                raise FitError(f"target {name}={amount!r} must be finite and > 0; write a number such as 1e22")
        given = [name for name in ("flops", "params", "tokens") if getattr(self, name) is not None]
        if given in (["params"], ["tokens"]):
            raise FitError(
                f"--target-{given[0]} alone names no run; add --target-{'tokens' if given == ['params'] else 'params'} "
                "or --target-flops"
            )


@dataclass(frozen=True, kw_only=True)
class FitRequest:
    """How to fit, and what to say beside.

    Attributes:
        method: approach 3 (parametric), 2 (isoflop), 1 (envelope), or all that the runs allow.
        form: of the parametric law; "best" takes the one that predicts hidden runs best.
        objective: what is least over the runs.
        delta: where Huber turns, in ln L; None scales it to the noise.
        bootstrap: K, resamples behind bands and behind the intervals of the resampling methods; 0 for none.
        intervals: method of the constants' intervals; None: profile for the additive form, pairs for others.
        cluster: whose errors go together, for intervals by cluster or wild; None: each run alone, or for "cluster" runs
            that share a name where they do, else a size.
        remedy: of approach 2.
        schedule: of the learning rate of training curves, for approach 1.
        checkpoints: of a table with several lines a run: fit its final line, or all of them.
        target: the run to forecast, or None.
        params_convention: which weights N counts.
        diagnosis: look for everything that may be wrong.
        prior: what is believed of the exponents before any run, of the additive form; None believes nothing.
        seed: of the resampling, >= 0.
    """

    method: Method = "parametric"
    form: Form = "additive"
    objective: Objective = "huber"
    delta: float | None = None
    bootstrap: int = 4000
    intervals: IntervalMethod | None = None
    cluster: ClusterBy | None = None
    remedy: Remedy = "none"
    schedule: Schedule = "cosine"
    checkpoints: Checkpoints = "final"
    target: Target | None = None
    params_convention: ParamsConvention = "total"
    diagnosis: bool = True
    prior: Prior | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse settings that conflict.

        Raises:
            FitError: see the message.
        """
        if self.objective != "huber" and self.delta is not None:
            raise FitError(f"--delta {self.delta:g} is huber's, and --loss is {self.objective}; leave out one of them")
        if self.delta is not None and not (math.isfinite(self.delta) and self.delta > 0):
            raise FitError(
                f"--delta {self.delta!r} must be finite and > 0; the paper's is 1e-3, auto follows the noise"
            )
        if self.bootstrap < 0 or self.bootstrap == 1:
            raise FitError(f"--bootstrap {self.bootstrap} must be 0 or at least 2; 4000 is common")
        if self.cluster is not None and self.intervals not in ("cluster", "wild"):
            raise FitError(f"--cluster {self.cluster} needs --intervals cluster or wild, whose resamples go by groups")
        if self.intervals not in (None, "profile", "delta") and not self.bootstrap:
            raise FitError(f"--intervals {self.intervals} are made by resampling; give --bootstrap 4000")
        if self.seed < 0:
            raise FitError(f"--seed {self.seed} must be >= 0")
        self._check_method()

    def _check_method(self) -> None:
        if self.method in ("isoflop", "envelope"):
            if self.form != "additive":
                raise FitError(f"--form {self.form} needs --method parametric or all; {self.method} fits no form")
            if self.target is not None:
                raise FitError(
                    f"a target needs a loss for every size, which {self.method} lacks; use --method parametric"
                )
        if self.prior is not None and (self.form != "additive" or self.method in ("isoflop", "envelope")):
            raise FitError("--prior is on the exponents of the additive form; use --method parametric --form additive")
        if self.remedy != "none" and self.method != "isoflop":
            raise FitError(f"--remedy {self.remedy} needs --method isoflop")
        if self.form != "additive" and self.intervals in ("profile", "delta", "wild", "parametric"):
            raise FitError(
                f"--intervals {self.intervals} are made for the additive form; take --intervals pairs or cluster "
                f"with --form {self.form}"
            )

    @property
    def interval_method(self) -> IntervalMethod:
        """The method of the intervals, whether given or not."""
        return self.intervals or ("profile" if self.form == "additive" else "pairs")

    @property
    def huber_delta(self) -> float | None:
        """The delta of the objective; None where it follows the noise."""
        return _DELTAS.get(self.objective, self.delta)
