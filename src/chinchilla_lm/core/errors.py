"""Every error that a user may see.

    ChinchillaError          exit code 2: the request was wrong
    ├── UnitError            a number or a unit that cannot be read
    ├── ConfigError          a configuration file or a model shape
    ├── DataError            text, shards, tables, records and files
    ├── PlanError            a budget that no plan can meet
    ├── FitError             runs that do not determine a law
    ├── ModelError           a model folder or a module
    ├── CheckpointError      a checkpoint that cannot be written or resumed
    ├── BudgetError          a job that does not fit its budget
    └── TrainingDiverged     exit code 1: a loss became nan or infinite

A message is one line with three parts: the value, the rule, the way out. Bugs of ours are bare assertions, never these.
"""

from __future__ import annotations


class ChinchillaError(Exception):
    """A fault that one clear line explains; the command prints that line and leaves with `exit_code`."""

    exit_code: int = 2


class UnitError(ChinchillaError):
    """A number or a unit that cannot be read."""


class ConfigError(ChinchillaError):
    """A configuration or a model shape that breaks a rule."""


class DataError(ChinchillaError):
    """Text, a table, a record or a file that cannot be read or written."""


class PlanError(ChinchillaError):
    """A planning question without an answer."""


class FitError(ChinchillaError):
    """Runs that do not determine a law."""


class ModelError(ChinchillaError):
    """A model folder or a model that cannot be used."""


class CheckpointError(ChinchillaError):
    """A checkpoint that cannot be written, read or resumed."""


class BudgetError(ChinchillaError):
    """A job that does not fit its budget."""


class TrainingDiverged(ChinchillaError):  # noqa: N818 - it says what happened; the training, not the request, went wrong
    """The loss became nan or infinite."""

    exit_code = 1
