"""Write docs/fit.md: a worked example of `chinchilla fit`, its output pasted by running it; `--check` only compares.

Run: PYTHONPATH=src python docs/make_fit_page.py
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from chinchilla_lm.cli.main import run_command

DOCS = Path(__file__).resolve().parent
PAGE, EXAMPLES, PICTURE = DOCS / "fit.md", DOCS / "examples", DOCS / "fit.png"
_TOLERANCE = 0.02  # of a printed number: other versions of numpy and other processors round the last digit otherwise
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")

TEXT = """# Fitting a law to your own runs

Written by `docs/make_fit_page.py`, which runs every command below; a test compares.

`chinchilla fit` reads a table of finished runs and answers: which law, how sure, what speaks against it, what loss
to expect further out. You need one line a run: its size, its training tokens, its final loss. The example is a
sweep whose law we know, because [make_sweep.py](examples/make_sweep.py) made it: seven budgets of six sizes, .3 % of
noise, and one run gone wrong.

```
{head}
```

Columns are found under the names people give them (`N`, `params`, `model_size`; `D`, `tokens`; `val_loss` ...); others
are named with `--params-column` and its like. Units are read where they are stated, as in this header or with
`--tokens-unit B`, and never guessed.

## The fit

```
{fit}
```

How to read it:

- **constants**: value, 95 % interval, relative standard error. The law that made these runs has E = 1.82,
  alpha = .347, beta = .367 and a = .514.
- **best for**: the best size and its tokens for a budget, with the intervals of the fit. `law's loss` with its 95 %
  says how well the runs pin the law down *if its form holds*. `forecast` with its calibrated 90 % is what to plan with:
  it is as wide as such forecasts have erred on public sweeps and on this table's own hidden runs.
- **form**: four laws, each fitted with the larger runs hidden and asked for them. An asterisk marks the one in use;
  `--form best` takes the best.
- **back-test**: what the smaller runs would have said of the larger ones.
- **warnings**: each with its way out. Line 21 is the run that went wrong; Huber's loss kept it from bending the law.

The truth for 1e23 FLOPs is a loss of {truth:.3f} with {best:.3g} parameters.

## Its record, page and pictures

```
{files}
```

`law.json` is the record: the same document that `--json` prints, and all that the page is made from. `fit.html` is one
file that loads nothing from anywhere. The figures of the picture are those of the page; two of them:

![Loss against compute, and the back-test](fit.png)

## What next

The law plans, with intervals from its resamples:

```
{plan}
```

`chinchilla design sweep.csv --budget 1e21` says which further runs would tell most.

## Other questions

| question | command |
|---|---|
| a given model instead of the best one | `--target-params 30B --target-tokens 1T` |
| all three approaches of the paper, and whether they agree | `--method all` |
| the paper's own objective | `--delta 1e-3` (by default delta follows the noise) |
| other intervals | `--intervals delta`, `pairs`, `wild`, `cluster --cluster params`, `parametric` |
| text that repeats | `--form repetition --unique-tokens-column unique` |
| training curves (approach 1) | `--method envelope`; a line a checkpoint: `run`, `n_params`, `n_tokens`, `loss` |
| curves that count steps | `--tokens-per-step 524288` |
| some lines of a larger file | `--where split=final` |
| constants of a law without any doubt cast on it | `--no-diagnosis --bootstrap 0` |

A file with several lines a run is fitted by its final lines, and says how many it left out: the loss in the middle of a
decaying learning rate is no final one. `--checkpoints all` takes them all.

## What it refuses

Nothing is dropped in silence. A line that is no run stops the fit, with its number, the rule and the way out:

```
{refusals}
```

## From Python

```python
from pathlib import Path
from chinchilla_lm.laws.findings.find import find_law
from chinchilla_lm.laws.findings.request import FitRequest, Target
from chinchilla_lm.laws.table import read_runs

record = find_law(read_runs(Path("sweep.csv")), FitRequest(target=Target(flops=1e23)))
print(record["a"], record["forecast"]["low"], record["forecast"]["high"])
```
"""

_BAD_LINES = (
    ("n_params,n_tokens,loss\n1e8,2e9,3.1\n2e8,2e9,nan\n", "nan.csv"),
    ("n_params,n_tokens,loss\n1e8,2e9,3.1\n1e8,-2e9,3.1\n", "negative.csv"),
    ("n_params,n_tokens,loss\n1e8,2e9,3.1\n1e8,2e9,3.1\n", "twice.csv"),
    ("n_params,n_tokens,flops,loss\n1e8,2e9,1.2e18,3.1\n1e8,4e9,2.4e18,3.0\n2e8,4e9,4.8e21,2.9\n", "flops.csv"),
    ("n_params,n_tokens,loss\n0.1,2,3.1\n7,140,2.1\n", "unit.csv"),
    ("size,n_tokens,los\n1e8,2e9,3.1\n", "name.csv"),
)


def fit_page(picture: Path | None = None) -> str:
    """Return the page.

    Args:
        picture: where to draw its figures, or None.
    """
    sys.path.insert(0, str(EXAMPLES))
    from make_sweep import TRUTH

    text = (EXAMPLES / "sweep.csv").read_text(encoding="utf-8")
    with _empty_folder():
        Path("sweep.csv").write_text(text, encoding="utf-8")
        fitted = _said("fit sweep.csv --target-flops 1e23 --out law.json --report fit.html")
        lines = fitted.splitlines()
        first_file = next(place for place, line in enumerate(lines) if line.startswith("wrote "))
        planned = _said("plan --law law.json --budget 1e23")
        if picture is not None:
            _draw(picture)
        for content, name in _BAD_LINES:
            Path(name).write_text(content, encoding="utf-8")
        refusals = "\n".join(_said(f"fit {name}") for _, name in _BAD_LINES)
    return TEXT.format(
        head="\n".join([*text.splitlines()[:4], "..."]),
        fit="\n".join(lines[:first_file]).rstrip(),
        files="\n".join([lines[0], "...", *lines[first_file:]]),
        plan=planned,
        refusals=refusals,
        truth=TRUTH.optimal_loss(1e23),
        best=TRUTH.optimum(1e23)[0],
    )


def is_same(page: str, other: str) -> bool:
    """Say whether two pages agree in their words, and in their numbers up to rounding."""
    if " ".join(_NUMBER.sub("#", page).split()) != " ".join(_NUMBER.sub("#", other).split()):
        return False
    pairs = zip(_NUMBER.findall(page), _NUMBER.findall(other), strict=True)
    return all(abs(float(one) - float(two)) <= _TOLERANCE * max(abs(float(one)), 1.0) for one, two in pairs)


def _said(words: str) -> str:
    """Run a command in this process; return the command and what it printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        run_command(words.split())
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    return "\n".join([f"$ chinchilla {words}", *lines]).rstrip()


def _draw(picture: Path) -> None:
    from chinchilla_lm.report.doubt_charts import backtest_chart
    from chinchilla_lm.report.fit_charts import loss_chart
    from chinchilla_lm.report.picture import save_charts

    record = json.loads(Path("law.json").read_text(encoding="utf-8"))
    save_charts([chart for chart in (loss_chart(record), backtest_chart(record)) if chart], picture, run_name="sweep")


@contextlib.contextmanager
def _empty_folder() -> Iterator[None]:
    before, width = Path.cwd(), os.environ.get("COLUMNS")
    with tempfile.TemporaryDirectory() as folder:
        try:
            os.chdir(folder)
            os.environ["COLUMNS"] = "110"
            yield
        finally:
            os.chdir(before)
            os.environ.pop("COLUMNS")
            if width is not None:
                os.environ["COLUMNS"] = width


def main() -> int:
    """Write or check the page and its example; return the exit code."""
    if "--check" in sys.argv[1:]:
        return 0 if PAGE.exists() and is_same(PAGE.read_text(encoding="utf-8"), fit_page()) else 1
    PAGE.write_text(fit_page(PICTURE), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
