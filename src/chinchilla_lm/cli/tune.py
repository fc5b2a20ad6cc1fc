"""`chinchilla tune`: a model and labelled rows -> a better model, shown before and after.

With --json, exactly one JSON document goes to stdout; what is meant for people goes to stderr. torch is imported inside
the functions, so that `chinchilla tune --help` answers at once.
"""

from __future__ import annotations

import json as json_format
import signal
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter
from rich.console import Console

from chinchilla_lm.cli.terminal import visible
from chinchilla_lm.cli.tune_options import TuneOptions, read_config
from chinchilla_lm.cli.tune_text import tune_lines
from chinchilla_lm.core.errors import ConfigError
from chinchilla_lm.core.tasks import TaskName

if TYPE_CHECKING:
    from chinchilla_lm.tune.config import TuneConfig

_JOB = Group("Job", sort_key=1)


@Parameter(name="*", group=_JOB)
@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """What is done with the rows besides one tuning, and what is printed."""

    config: Path | None = None
    """A TOML file with the same names (underscores); words on the command line win."""
    continue_from: Annotated[Path | None, Parameter(name="--continue", negative="")] = None
    """The run directory of an earlier tuning: go on from its model, replay its rows, and say what was forgotten."""
    search: int = 0
    """Try so many settings on the validation rows first; the test rows are measured once, with the best."""
    fractions: Annotated[tuple[float, ...], Parameter(negative="", show_default=False, consume_multiple=True)] = ()
    """Also tune on these parts of the rows, such as 0.125 0.25 0.5, and say what twice the labels would bring."""
    augment: Literal["perturb", "generate"] | None = None
    """Add training rows: copies with slips and synonyms (perturb), or texts that the model writes for a label."""
    augment_share: float | None = None
    """Added rows for each real one, above 0 and at most 1. [default: 1.0]"""
    synonyms: Path | None = None
    """For --augment perturb: JSON lines with word and senses; without it slips of the keyboard alone."""
    json: Annotated[bool, Parameter(name="--json", negative="")] = False
    """Print one JSON document on stdout."""

    def __post_init__(self) -> None:
        if self.search < 0:
            raise ConfigError(f"--search {self.search} must be 0 or more trials; write 0 for none")
        if not all(0 < fraction < 1 for fraction in self.fractions):
            raise ConfigError(f"--fractions {self.fractions} must each lie in (0, 1); write 0.125 0.25 0.5")
        jobs = (self.search > 0, bool(self.fractions), self.continue_from is not None, self.augment is not None)
        if sum(jobs) > 1:
            raise ConfigError("--search, --fractions, --continue and --augment are four jobs; run one after another")
        if self.augment is None and (self.augment_share is not None or self.synonyms is not None):
            raise ConfigError("--augment-share and --synonyms are for --augment perturb; add it")
        if self.augment_share is not None and not 0 < self.augment_share <= 1:
            raise ConfigError(f"--augment-share {self.augment_share} must lie in (0, 1]; write 1 to double the rows")
        if self.augment == "generate" and self.synonyms is not None:
            raise ConfigError("--synonyms are for --augment perturb; leave them out, or perturb")


@Parameter(name="*", group=Group("Going on (--continue)", sort_key=2))
@dataclass(frozen=True, kw_only=True)
class ContinueOptions:
    """Against forgetting; the fields of `tune.loading.ContinueSettings`."""

    replay: float = 0.1
    """Share of the older training rows that is trained on again, 0 to 1."""
    pull: float = 0.0
    """Pull back to the old weights at every update (L2-SP); 0 for none."""
    averages: Annotated[bool, Parameter(negative="")] = False
    """Go only as far from the old weights to the new ones as the old validation rows allow."""
    has_new_adapter: Annotated[bool, Parameter(name="--new-adapter", negative="")] = False
    """Merge the old LoRA and train a new one."""
    max_drop: float = 0.01
    """Most that an older task may fall for the model to be accepted; else it goes to model-rejected/."""


@dataclass(frozen=True)
class _Defaults:
    options: Any = field(default_factory=TuneOptions)
    job: JobOptions = field(default_factory=JobOptions)
    going_on: ContinueOptions = field(default_factory=ContinueOptions)


_DEFAULTS = _Defaults()


def tune(
    task: TaskName | None = None,
    /,
    *,
    options: TuneOptions = _DEFAULTS.options,
    job: JobOptions = _DEFAULTS.job,
    going_on: ContinueOptions = _DEFAULTS.going_on,
) -> None:
    """Fine-tune a model on labelled rows, and measure it before and after on rows that nothing was chosen by.

    The run directory holds the model (an ordinary Hugging Face folder), every record and report.html. Stopped at any
    time, the same command goes on.

    Args:
        task: What is learned; --config may name it instead.
        options: Fields of the config.
        job: What else is done.
        going_on: Of --continue.
    """
    if job.continue_from is None and going_on != _DEFAULTS.going_on:
        raise ConfigError("--replay, --pull, --averages, --new-adapter and --max-drop are for --continue RUN; add it")
    config = read_config(task, options, job.config, older=job.continue_from)
    with _display() as display:
        _run(config, job, going_on, display)
    record = _record(config)
    if job.json:
        print(json_format.dumps(tune_json(record, Path(config.out)), ensure_ascii=False, allow_nan=False))
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for line in tune_lines(Path(config.out)):
        console.print(visible(line), markup=False)


def tune_json(record: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the document of --json.

    Args:
        record: tune.json.
        folder: the run directory.
    """
    intervals, continual = record.get("intervals") or {}, record.get("continual") or {}
    is_accepted = continual.get("is_accepted", True)
    return {
        "task": record.get("task"),
        "metric": record.get("metric"),
        "metrics_before": record.get("metrics_before") or {},
        "metrics_after": record.get("metrics_after") or {},
        "interval": {**(intervals.get("after") or {}), "before": intervals.get("before")},
        "paired": record.get("paired"),
        "evaluated_on": record.get("evaluated_on"),
        "rows": record.get("rows"),
        "cost": record.get("cost"),
        "run_dir": str(folder),
        "model_dir": str(folder / ("model" if is_accepted else "model-rejected")),
        "is_accepted": is_accepted,
        "report": str(folder / "report.html"),
    }


def _run(config: TuneConfig, job: JobOptions, going_on: ContinueOptions, display: Any) -> None:
    """Do the job that was asked for; each is one function of its floor."""
    # torch takes seconds to import
    if job.search:
        from chinchilla_lm.tune.search import search

        search(config, job.search, display)
    elif job.fractions:
        from chinchilla_lm.tune.learning_curve import tune_fractions

        tune_fractions(config, job.fractions, display)
    elif job.continue_from is not None:
        from chinchilla_lm.tune.continual import continue_tuning
        from chinchilla_lm.tune.loading import ContinueSettings

        continue_tuning(job.continue_from, config, display, ContinueSettings(**asdict(going_on)))
    elif job.augment is not None:
        from chinchilla_lm.tune.augmentation import Augmentation, tune_augmented

        share = 1.0 if job.augment_share is None else job.augment_share
        synonyms = None if job.synonyms is None else str(job.synonyms)
        tune_augmented(config, Augmentation(kind=job.augment, share=share, synonyms=synonyms), display)
    else:
        from chinchilla_lm.tune.tuning import tune as tune_model

        tune_model(config, display)
    from chinchilla_lm.report.tune_card import write_tune_card
    from chinchilla_lm.report.tune_page import write_tune_page

    write_tune_card(config.out)
    write_tune_page(config.out)


def _record(config: TuneConfig) -> Mapping[str, Any]:
    from chinchilla_lm.report.tune_record import read_tune_run

    return read_tune_run(config.out).record


def _display() -> Any:
    from chinchilla_lm.cli.display import StudyDisplay

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's stop is a Ctrl-C: save, and resume later
    return StudyDisplay(Console(stderr=True, highlight=False))
