"""`chinchilla`: the one command. Each verb stands in the file of its group; nothing heavy is imported to print help.

Exit codes: 0 done, 2 the request was wrong (one line on stderr: the value, the rule, the way out), 1 we failed,
128 + signal when stopped by one; the same command then resumes.
"""

from __future__ import annotations

import os
import sys

# Huge pages for torch's buffers: +2..13 % in training on a CPU (dev/LOG.md); torch reads it when it is imported.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console

from chinchilla_lm import __version__
from chinchilla_lm.cli import chat, compare, design, export, fit, jobs, models, plan, prompt, serve, tune, tune_merge
from chinchilla_lm.core.errors import ChinchillaError

app = App(
    name="chinchilla",
    help="Compute-optimal language models: from text and a budget to a model whose loss was said before training.",
    version=__version__,
    default_parameter=Parameter(negative_iterable=()),
)
app.command(jobs.run)
app.command(jobs.prepare)
app.command(jobs.sweep)
app.command(jobs.train)
app.command(plan.plan)
app.command(fit.fit)
app.command(design.design)
app.command(compare.compare)
app.command(models.evaluate, name="eval")
app.command(models.generate)
app.command(tune.tune)
app.command(tune_merge.merge)
app.command(prompt.prompt)
app.command(serve.serve)
app.command(chat.chat)
app.command(export.export)
app.command(export.push)


def main(arguments: list[str] | None = None) -> None:
    """Run a command and leave with its exit code.

    Args:
        arguments: words after `chinchilla`; None takes the process's own.
    """
    sys.exit(run_command(sys.argv[1:] if arguments is None else arguments))


def run_command(arguments: list[str]) -> int:
    """Run a command; return its exit code, every user's error printed as one line on stderr."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except ChinchillaError as error:
        console.print(f"chinchilla: {error}", style="red", markup=False)
        return error.exit_code
    except CycloptsError as error:
        console.print(f"chinchilla: {' '.join(str(error).split())}; see chinchilla --help", style="red", markup=False)
        return 2
    except KeyboardInterrupt:
        console.print("chinchilla: stopped; the same command resumes", markup=False)
        return 130
    except BrokenPipeError:  # the reader of our output is gone, such as `head`
        return 0
    return 0


if __name__ == "__main__":
    main()
