"""What a planner answers: the plan, with its flat band, its text, serving and bill. Values; they compute nothing.

Symbols: N `params`, D `tokens`, U `unique_tokens`, C `flops` = 6 N D of training, L `loss` in nats per token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from chinchilla_lm.core.shapes import ModelShape
from chinchilla_lm.laws.count import ParamsConvention
from chinchilla_lm.laws.planning.demand import Demand
from chinchilla_lm.laws.planning.feasible import ShapeOption
from chinchilla_lm.laws.planning.question import Conditions, Goal


@dataclass(frozen=True, kw_only=True)
class FlatBand:
    """Sizes that cost nearly nothing.

    Attributes:
        params_low: smallest size.
        params_high: largest size.
        loss_penalty: what they may cost, relative to the least loss of the same budget.
    """

    params_low: float
    params_high: float
    loss_penalty: float


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A range that holds a number with 90 % chance.

    Attributes:
        low: lower end.
        high: upper end, or None where there is none: in some resamples the loss is never reached.
    """

    low: float
    high: float | None


@dataclass(frozen=True, kw_only=True)
class TextSupport:
    """The largest model whose optimal tokens a text gives in so many passes.

    Attributes:
        epochs: passes.
        params: N.
        tokens: epochs * U.
        flops: 6 N D.
    """

    epochs: float
    params: float
    tokens: float
    flops: float


@dataclass(frozen=True, kw_only=True)
class Serving:
    """What serving costs, and what planning for it saves.

    Attributes:
        demand: tokens served.
        flops: 2 N a token.
        saving_flops: total cost of the training-optimal model of the same loss, less the plan's, in FLOPs of training;
            None where the law cannot say.
        saving_share: the same over that model's total cost.
    """

    demand: Demand
    flops: float
    saving_flops: float | None
    saving_share: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        saving = {"saving_flops": self.saving_flops, "saving_share": self.saving_share}
        return {**self.demand.to_dict(), "flops": self.flops, **saving}


@dataclass(frozen=True, kw_only=True)
class Bill:
    """Device time and money of a plan, training and serving.

    Attributes:
        device: name.
        count: devices that train together.
        gpu_hours: device-hours of training and serving.
        training_gpu_hours: of training alone.
        training_seconds: on the clock, all devices together.
        cost: dollars of training and serving, or None without a price.
    """

    device: str
    count: int
    gpu_hours: float
    training_gpu_hours: float
    training_seconds: float
    cost: float | None


@dataclass(frozen=True, kw_only=True)
class TaskOutlook:
    """What the planned model will score on a suite.

    Attributes:
        name: of the suite.
        accuracy: the median, over all items of the suite's kind.
        low: lower end of the 90 % interval.
        high: upper end.
        chance: accuracy of a guess.
    """

    name: str
    accuracy: float
    low: float
    high: float
    chance: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to train.

    Attributes:
        goal: what was asked.
        conditions: under what.
        params: N in the law's convention.
        tokens: D to train on, repeats included.
        flops: of training, 6 N D.
        total_flops: of training and serving, in FLOPs of training: what a budget pays.
        loss: expected, nats per token; None where the law states none.
        loss_low: lower end of the 90 % band, or None.
        loss_high: upper end, or None.
        tokens_per_param: D / N.
        epochs: D / U, at least 1; 1 without a limit on text.
        overhead: training compute beyond the least that reaches the same loss, as a share; None without a loss, or
            where repeats have spent the text.
        flat_band: sizes of nearly the same loss, or None where the law states no loss.
        law: name of the law.
        params_convention: which weights N counts.
        intervals: by name, of what the goal leaves uncertain: params, tokens, tokens_per_param, flops, gpu_hours, cost.
        text: what the text supports, where it is limited.
        serving: where tokens are served.
        bill: where a device is named.
        shapes: feasible models near this size, best first.
        tasks: suites that the law's own runs were asked.
        notes: what a reader must know, one sentence each.
    """

    goal: Goal
    conditions: Conditions
    params: float
    tokens: float
    flops: float
    total_flops: float
    loss: float | None
    loss_low: float | None
    loss_high: float | None
    tokens_per_param: float
    epochs: float
    overhead: float | None
    flat_band: FlatBand | None
    law: str
    params_convention: ParamsConvention
    intervals: Mapping[str, Interval] = field(default_factory=dict[str, Interval])
    text: tuple[TextSupport, ...] = ()
    serving: Serving | None = None
    bill: Bill | None = None
    shapes: tuple[ShapeOption, ...] = ()
    tasks: tuple[TaskOutlook, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> ModelShape | None:
        """The best feasible shape."""
        return self.shapes[0].shape if self.shapes else None

    @property
    def gpu_hours(self) -> float | None:
        """Device-hours of training and serving."""
        return None if self.bill is None else self.bill.gpu_hours

    @property
    def cost(self) -> float | None:
        """Dollars of training and serving."""
        return None if self.bill is None else self.bill.cost

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        names = ("params", "tokens", "flops", "total_flops", "loss", "loss_low", "loss_high", "tokens_per_param")
        names = (*names, "epochs", "overhead", "gpu_hours", "cost")
        bill = self.bill
        return {
            **{name: getattr(self, name) for name in names},
            "training_gpu_hours": None if bill is None else bill.training_gpu_hours,
            "training_seconds": None if bill is None else bill.training_seconds,
            "flat_band": None if self.flat_band is None else dict(vars(self.flat_band)),
            "intervals": {name: dict(vars(interval)) for name, interval in self.intervals.items()},
            "text": [dict(vars(support)) for support in self.text],
            "serving": None if self.serving is None else self.serving.to_dict(),
            "shape": None if self.shape is None else self.shape.to_dict(),
            "shapes": [option.to_dict() for option in self.shapes],
            "tasks": {task.name: {**vars(task)} for task in self.tasks},
            "law": self.law,
            "params_convention": self.params_convention,
            "notes": list(self.notes),
        }
