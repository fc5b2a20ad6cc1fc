"""What every form of scaling law has in common: arrays, the protocols of a law, its record, and the checks.

Symbols in this folder: N `params`, D `tokens`, C `flops` (training), L `loss` in nats per token; E, A, B, alpha, beta
as in the papers; k `flops_per_param_token` with C = k N D (6 in the papers). At the optimum N* = G (C/k)^a and
D* = (C/k)^b / G. A law is a value. It never fits, reads files or draws, nor converts between conventions of N: it
stores its own (`laws.conversion` converts a size, and refuses to mix).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, Self, get_args, overload, runtime_checkable

import numpy as np
import numpy.typing as npt

from chinchilla_lm.core.errors import FitError, PlanError
from chinchilla_lm.laws.count import ParamsConvention

Floats = npt.NDArray[np.float64]
_LARGEST_LOG = 690.0  # e^690 is 1e300, near the largest double


@runtime_checkable
class LossLaw(Protocol):
    """A law that states a loss for every size and number of tokens, and so answers every question about them.

    A number in gives a number out, an array an array of its shape. Where a loss cannot be reached, a number raises
    PlanError and an array of sizes holds infinity there.
    """

    form: ClassVar[str]

    @property
    def params_convention(self) -> ParamsConvention:
        """Which weights N counts."""
        ...

    @overload
    def loss(self, params: float, tokens: float) -> float: ...
    @overload
    def loss(self, params: Floats, tokens: Floats) -> Floats: ...
    @overload
    def loss(self, params: float | Floats, tokens: float | Floats) -> float | Floats: ...
    def loss(self, params: float | Floats, tokens: float | Floats) -> float | Floats:
        """Return the loss, nats per token."""
        ...

    @overload
    def gradient(self, params: float, tokens: float) -> tuple[float, float]: ...
    @overload
    def gradient(self, params: Floats, tokens: Floats) -> tuple[Floats, Floats]: ...
    def gradient(self, params: float | Floats, tokens: float | Floats) -> tuple[float | Floats, float | Floats]:
        """Return (dL/dN, dL/dD), nats per token per param and per token."""
        ...

    @overload
    def optimum(self, flops: float, flops_per_param_token: float = 6.0) -> tuple[float, float]: ...
    @overload
    def optimum(self, flops: Floats, flops_per_param_token: float = 6.0) -> tuple[Floats, Floats]: ...
    def optimum(
        self, flops: float | Floats, flops_per_param_token: float = 6.0
    ) -> tuple[float | Floats, float | Floats]:
        """Return (params, tokens) of least loss for a budget."""
        ...

    @overload
    def optimal_loss(self, flops: float, flops_per_param_token: float = 6.0) -> float: ...
    @overload
    def optimal_loss(self, flops: Floats, flops_per_param_token: float = 6.0) -> Floats: ...
    def optimal_loss(self, flops: float | Floats, flops_per_param_token: float = 6.0) -> float | Floats:
        """Return the least loss that a budget reaches."""
        ...

    @overload
    def tokens_for_loss(self, params: float, loss: float) -> float: ...
    @overload
    def tokens_for_loss(self, params: Floats, loss: float) -> Floats: ...
    def tokens_for_loss(self, params: float | Floats, loss: float) -> float | Floats:
        """Return how many tokens a size needs to reach a loss."""
        ...

    def flops_for_loss(self, loss: float, flops_per_param_token: float = 6.0) -> float:
        """Return the least budget that reaches a loss."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Return a record that `forms.record.law_from_dict` reads."""
        ...

    def hash(self) -> str:
        """Return 16 hexadecimal digits that change when any constant does."""
        ...


class LawRecord:
    """What a law does with its constants, whatever its form: they are checked when it is made, written, read, hashed.

    A law is a frozen dataclass of constants and a `params_convention`; it overrides nothing of this.
    """

    form: ClassVar[str]
    constants: ClassVar[tuple[str, ...]]
    """Its numbers, each finite and > 0 (E may be 0)."""
    derived: ClassVar[tuple[str, ...]] = ()
    """What follows from them and is written beside them; it is not read."""

    params_convention: ParamsConvention

    def __post_init__(self) -> None:
        """Refuse constants that are no law.

        Raises:
            FitError: a constant that is not finite and > 0 (E may be 0), or an unknown convention.
        """
        check_constants(self, self.constants)

    def to_dict(self) -> dict[str, Any]:
        """Return the constants, and what is derived from them, as JSON values."""
        return record_of(self, self.form, (*self.constants, *self.derived))

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> Self:
        """Build a law from `to_dict`'s mapping or from a whole law.json; other keys are left alone.

        Args:
            mapping: must hold every constant; without a "params_convention" the form's own is taken.

        Returns:
            The law.

        Raises:
            FitError: another form, or a missing or impossible constant.
        """
        fields: dict[str, Any] = dict(constants_in(mapping, cls.form, cls.constants))
        fields["params_convention"] = mapping.get("params_convention", cls.params_convention)
        return cls(**fields)

    def hash(self) -> str:
        """Return 16 hexadecimal digits that change when any constant does."""
        return hash_record(self.to_dict())


def require_positive(number: float | Floats, name: str) -> None:
    """Refuse a number, or an array of numbers, that is no amount.

    Raises:
        PlanError: not finite and > 0.
    """
    if isinstance(number, np.ndarray):
        bad = number[~(np.isfinite(number) & (number > 0))]
        if bad.size == 0:
            return
        number = float(bad.flat[0])
    if not (math.isfinite(number) and number > 0):
        raise PlanError(f"{name} must be finite and > 0, got {number!r}; write a number such as 1e20")


def require_above(loss: float, floor: float, what: str) -> None:
    """Refuse a loss that `what` cannot reach.

    Args:
        loss: asked for, nats per token.
        floor: what is approached and never met.
        what: who cannot, such as "1e9 params on endless text".

    Raises:
        PlanError: not a finite number above the floor.
    """
    if not (math.isfinite(loss) and loss > floor):
        raise PlanError(
            f"loss={loss!r} cannot be reached: {what} stays above {floor:.6g} by this law; ask for a higher loss"
        )


def exp_or_refuse(log_amount: float, what: str) -> float:
    """Return exp(log_amount), or refuse what no double holds.

    Args:
        log_amount: natural logarithm of an amount.
        what: needs that much, for the message.

    Raises:
        PlanError: an amount over 1e300.
    """
    if log_amount > _LARGEST_LOG:
        raise PlanError(f"{what} takes over 1e300 by this law, which is out of reach; ask for a higher loss")
    return math.exp(log_amount)


def check_constants(law: object, names: Sequence[str]) -> None:
    """Refuse constants that are no law: each finite and > 0, but E may be 0; and the law's convention a known one.

    Raises:
        FitError: the constant, the rule, the way out.
    """
    for name in names:
        constant = float(getattr(law, name))
        if not (math.isfinite(constant) and (constant > 0 or (name == "E" and constant == 0))):
            raise FitError(f"law constant {name}={constant!r} must be finite and > 0; check the fit or the file")
    convention = getattr(law, "params_convention", None)
    if convention not in get_args(ParamsConvention):
        choices = ", ".join(get_args(ParamsConvention))
        raise FitError(f"params_convention={convention!r} is unknown; choose from {choices}")


def record_of(law: object, form: str, names: Sequence[str]) -> dict[str, Any]:
    """Return a law's record: form, convention and constants, as JSON values."""
    constants = {name: float(getattr(law, name)) for name in names}
    return {"form": form, "params_convention": getattr(law, "params_convention", None), **constants}


def constants_in(mapping: Mapping[str, Any], form: str, names: Sequence[str]) -> dict[str, float]:
    """Read a law's constants from a record; other keys are left alone.

    Args:
        mapping: a record, or a whole law.json.
        form: what its "form" must be; a record without one is taken at its constants.
        names: of the constants that it must hold.

    Returns:
        The constants by name.

    Raises:
        FitError: another form, or a constant that is missing or no number.
    """
    if mapping.get("form", form) != form:
        raise FitError(f"law form {mapping['form']!r} is unknown here; write a law of form {form!r}")
    missing = [name for name in names if not _is_number(mapping.get(name))]
    if missing:
        needed = " and ".join((", ".join(names[:-1]), names[-1]))
        raise FitError(f"the law lacks the number {missing[0]!r}; it must hold {needed}")
    return {name: float(mapping[name]) for name in names}


def hash_record(record: Mapping[str, Any]) -> str:
    """Return the first 16 hexadecimal digits of a record's SHA-256."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
