"""`chinchilla fit`: finished runs -> a scaling law, how sure it is, and what speaks against it.

With --json, exactly one JSON document goes to stdout; what is meant for people goes to stderr.
Imports of the laws stand inside the functions, so that `chinchilla --help` need not wait for numpy.
"""

from __future__ import annotations

import json as json_format
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter
from rich.console import Console

from chinchilla_lm.cli.fit_text import fit_lines
from chinchilla_lm.cli.options import JsonFlag, TableOptions
from chinchilla_lm.core.errors import FitError
from chinchilla_lm.core.files import write_json
from chinchilla_lm.core.units import parse_count
from chinchilla_lm.laws.count import ParamsConvention

if TYPE_CHECKING:
    from chinchilla_lm.laws.findings.request import FitRequest, Target

PriorFlag = Annotated[bool, Parameter(negative="")]


@Parameter(name="*", group=Group("How to fit", sort_key=1))
@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How to fit."""

    method: Literal["parametric", "isoflop", "envelope", "all"] = "parametric"
    """parametric (constants of a form), isoflop (a parabola for each compute), envelope (training curves), or all."""
    form: Literal["additive", "coupled", "kaplan", "overtraining", "repetition", "best"] = "additive"
    """additive is E + A/N^alpha + B/D^beta; best takes the form that predicts hidden runs best."""
    loss: Literal["huber", "lad", "ls"] = "huber"
    """What is least: huber of log residuals, lad (their absolute values) or ls (their squares)."""
    delta: str = "auto"
    """Where huber turns from square to straight: auto follows the noise, the paper's is 1e-3."""
    bootstrap: int = 4000
    """Resamples for bands, for the plan's intervals, and for --intervals by resampling; 0 for none."""
    intervals: Literal["profile", "delta", "pairs", "wild", "cluster", "parametric"] | None = None
    """By default profile likelihood (other forms: pairs bootstrap)."""
    cluster: Literal["run", "params"] | None = None
    """Whose errors go together, for --intervals cluster or wild."""
    remedy: Literal["none", "law", "cubic", "local"] = "none"
    """Against the bias of the parabola of --method isoflop."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate of the training curves of --method envelope."""
    checkpoints: Literal["final", "all"] = "final"
    """Of a file with several lines a run: fit the final ones, or all."""
    params_convention: ParamsConvention = "total"
    """Which weights n_params counts."""
    target_flops: str | None = None
    """Also forecast the loss of the best size for this compute, such as 1e22."""
    target_params: str | None = None
    """Forecast a run of this size, with --target-tokens or --target-flops."""
    target_tokens: str | None = None
    """Forecast a run of so many tokens."""
    diagnosis: bool = True
    """Look for what may be wrong, and compare the forms."""
    prior: PriorFlag = False
    """Believe that alpha and beta lie near .35 (sd .15), as in published laws; for few runs."""
    seed: int = 0
    """Of the resampling."""

    def request(self) -> FitRequest:
        """Return what is asked of the runs."""
        from chinchilla_lm.laws.findings.request import FitRequest
        from chinchilla_lm.laws.fitting.additive import Prior

        return FitRequest(
            prior=Prior() if self.prior else None,
            method=self.method,
            form=self.form,
            objective=self.loss,
            delta=_delta(self.delta),
            bootstrap=self.bootstrap,
            intervals=self.intervals,
            cluster=self.cluster,
            remedy=self.remedy,
            schedule=self.schedule,
            checkpoints=self.checkpoints,
            target=self._target(),
            params_convention=self.params_convention,
            diagnosis=self.diagnosis,
            seed=self.seed,
        )

    def _target(self) -> Target | None:
        from chinchilla_lm.laws.findings.request import Target

        texts = {"flops": self.target_flops, "params": self.target_params, "tokens": self.target_tokens}
        if not any(texts.values()):
            return None
        return Target(**{name: parse_count(text) for name, text in texts.items() if text is not None})


@Parameter(name="*", group=Group("Output", sort_key=9))
@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """What is written."""

    json: JsonFlag = False
    """Print one JSON document on stdout."""
    out: Path | None = None
    """Write the same document to this file, which `chinchilla plan --law` reads."""
    plot: Path | None = None
    """Draw the figures into this .png or .svg file."""
    report: Path | None = None
    """Write a page with figures and tables into this .html file."""


_HOW, _TABLE, _OUTPUT = FitOptions(), TableOptions(), OutputOptions()


def fit(
    runs: Path,
    *,
    how: FitOptions = _HOW,
    table: TableOptions = _TABLE,
    output: OutputOptions = _OUTPUT,
) -> None:
    """Fit a scaling law to finished runs, and say what speaks against it.

    Args:
        runs: A CSV file with columns n_params, n_tokens, flops and loss, or common other names for them.
        how: How to fit.
        table: How the file is written.
        output: What is written.
    """
    from chinchilla_lm.laws.findings.find import find_law
    from chinchilla_lm.laws.table import read_runs

    _check_names(output)
    record: dict[str, Any] = {**find_law(read_runs(runs, table.layout()), how.request()), "source": str(runs)}
    console = Console(stderr=output.json, soft_wrap=True, highlight=False, markup=False)
    for line in fit_lines(record):
        console.print(line, style="yellow" if line.startswith("warning: ") else None)
    for path in _write(record, output):
        console.print(f"wrote {path}")
    console.print("")
    for line in _next_steps(record, " ".join([shlex.quote(str(runs)), *table.words()]), output):
        console.print(line)
    if output.json:
        print(json_format.dumps(record, ensure_ascii=False, allow_nan=False))


def _delta(text: str) -> float | None:
    if text == "auto":
        return None
    try:
        return float(text)
    except ValueError:
        raise FitError(f"--delta {text!r} is no number; write auto, or a number such as 1e-3") from None


def _check_names(output: OutputOptions) -> None:
    """Refuse names that no picture, page or record can have, before the fit takes its seconds."""
    for option, path, kinds in (
        ("--out", output.out, (".json",)),
        ("--plot", output.plot, (".png", ".svg")),
        ("--report", output.report, (".html", ".htm")),
    ):
        if path is not None and path.suffix.lower() not in kinds:
            raise FitError(f"{option} {path} must end in {' or '.join(kinds)}; rename it")


def _write(record: Mapping[str, Any], output: OutputOptions) -> list[Path]:
    written: list[Path] = []
    if output.out is not None:
        write_json(output.out, record)
        written.append(output.out)
    if output.plot is not None:
        from chinchilla_lm.report.fit_page import save_fit_picture

        written.append(save_fit_picture(record, output.plot))
    if output.report is not None:
        from chinchilla_lm.report.fit_page import write_fit_page

        written.append(write_fit_page(record, output.report))
    return written


def _next_steps(record: Mapping[str, Any], runs: str, output: OutputOptions) -> list[str]:
    """Return the commands that follow: a model for ten times the compute, and the runs that would tell most."""
    largest = float(record["largest_flops"])
    steps = [f"next runs that tell most:  chinchilla design {runs} --budget {_one_digit(largest)}"]
    if output.out is not None:
        steps.append(
            f"a model for a budget:      chinchilla plan --law {output.out} --budget {_one_digit(10 * largest)}"
        )
    return steps


def _one_digit(flops: float) -> str:
    return f"{flops:.0e}".replace("e+", "e")
