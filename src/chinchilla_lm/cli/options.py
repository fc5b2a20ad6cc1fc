"""Options that several commands read: how a file of runs is written, the machine that is paid for, the output."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Group, Parameter

from chinchilla_lm.core.errors import ConfigError, PlanError
from chinchilla_lm.core.units import parse_count

if TYPE_CHECKING:
    from chinchilla_lm.core.units import Budget
    from chinchilla_lm.laws.columns import Layout
    from chinchilla_lm.laws.planning.devices import Device

JsonFlag = Annotated[bool, Parameter(name="--json", negative="")]


def check_page_name(path: Path | None) -> None:
    """Refuse a name that no page can have, before the work takes its minutes.

    Raises:
        ConfigError: neither .html nor .htm.
    """
    if path is not None and path.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--report {path} must end in .html or .htm; rename it")


@Parameter(name="*", group=Group("How the file is written", sort_key=7))
@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """How the file is written. Common column names are found by themselves."""

    params_column: str | None = None
    """The file's name for n_params."""
    tokens_column: str | None = None
    """The file's name for n_tokens."""
    flops_column: str | None = None
    """The file's name for flops; 6ND takes 6 * params * tokens."""
    loss_column: str | None = None
    """The file's name for loss."""
    unique_tokens_column: str | None = None
    """The file's name for n_unique_tokens, for --form repetition."""
    run_column: str | None = None
    """The file's name for run, which the lines of one training curve share."""
    step_column: str | None = None
    """The file's name for step, with --tokens-per-step."""
    params_unit: str | None = None
    """What a number of params counts: M, B, or 1 for plain numbers."""
    tokens_unit: str | None = None
    """What a number of tokens counts: M, B or T."""
    unique_tokens_unit: str | None = None
    """What a number of unique tokens counts."""
    flops_unit: str | None = None
    """What a number of flops counts: 1, PFLOP, EFLOP or PF-days."""
    loss_unit: str | None = None
    """nats (per token) or bits (per token)."""
    tokens_per_step: str | None = None
    """Tokens of a step, where the file counts steps instead of tokens."""
    where: tuple[str, ...] = ()
    """Read only lines with COLUMN=VALUE; may be repeated."""
    duplicates: Literal["refuse", "keep", "drop"] = "refuse"
    """What becomes of a line that repeats another exactly."""

    def words(self) -> list[str]:
        """Return the options as they were given, for a command that reads the same file."""
        given: list[str] = []
        for option in fields(self):
            value = getattr(self, option.name)
            if value != option.default:
                for each in value if isinstance(value, tuple) else (value,):
                    given += [f"--{option.name.replace('_', '-')}", shlex.quote(str(each))]
        return given

    def layout(self) -> Layout:
        """Return what the reader is told."""
        from chinchilla_lm.laws.columns import Layout

        quantities = ("params", "tokens", "flops", "loss", "unique_tokens", "run", "step")
        columns = {name: getattr(self, f"{name}_column") for name in quantities}
        units = {name: getattr(self, f"{name}_unit") for name in quantities[:5]}
        return Layout(
            columns={name: own for name, own in columns.items() if own is not None},
            units={name: unit for name, unit in units.items() if unit is not None},
            where=self.where,
            duplicates=self.duplicates,
            tokens_per_step=None if self.tokens_per_step is None else parse_count(self.tokens_per_step),
        )


@Parameter(name="*", group=Group("Machine, for time and money", sort_key=6))
@dataclass(frozen=True, kw_only=True)
class MachineOptions:
    """What a budget of time or money is spent on."""

    hardware: str | None = None
    """A100, H100, H200, B200, MI300X or TPU-v5p, 8xH100 for eight, a speed in FLOP/s, or a run directory."""
    mfu: float = 0.4
    """Share of the hardware's peak that training reaches."""
    price: float | None = None
    """Dollars for one device-hour."""

    def device(self, budget: Budget | None) -> Device | None:
        """Return the machine that --hardware or the budget itself (`8 H100-hours`) names.

        Raises:
            PlanError: an unknown name, or a number out of range.
        """
        from chinchilla_lm.laws.planning.devices import find_device, is_any_device

        if self.hardware is not None:
            return find_device(self.hardware, self.mfu)
        if budget is not None and budget.device is not None and not is_any_device(budget.device):
            return find_device(budget.device, self.mfu)
        return None


@Parameter(name="*", group=Group("Output", sort_key=9))
@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """What is written besides the answer for people."""

    plot: Path | None = None
    """Draw the answer into this .png or .svg file."""
    json: JsonFlag = False
    """Print one JSON document."""

    def require_picture(self) -> None:
        """Refuse a name that no picture can have, before the work takes its seconds.

        Raises:
            PlanError: neither .png nor .svg.
        """
        if self.plot is not None and self.plot.suffix.lower() not in (".png", ".svg"):
            raise PlanError(f"--plot {self.plot} must end in .png or .svg; rename it")
